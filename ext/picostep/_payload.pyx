# cython: language_level=3, freethreading_compatible=True
"""Which fields the JSON of a record has: for every record that leaves a ring, so in C."""
from cpython.dict cimport PyDict_SetItem
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport int64_t, uint32_t

from picostep._cost import usd
from picostep.record import local as local_fields
from picostep.record import on_wire

cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithErrorRef "PyDict_GetItemWithError" (object, object) except? NULL

cdef tuple STEP_FIELDS = on_wire("step")
cdef tuple RUN_PROMPT_FIELDS = on_wire("run", "prompt")
cdef tuple RUN_FIELDS = on_wire("run")
cdef tuple TOOL_CALL_FIELDS = on_wire("tool_call")
cdef tuple FEEDBACK_FIELDS = on_wire("feedback")
cdef tuple LOCAL_FIELDS = local_fields()


def wire(dict record not None) -> dict:
    """Return the object that the ingest takes for a step, run or tool call, or the body of a feedback.

    A key that is not set is absent. Values are those of the record, except that metadata is merged: a cost
    may be a `Decimal`, and a text a `JSONText`, which stands for the JSON value in it. Times are ISO 8601,
    UTC, cut to milliseconds.

    Raises:
        Exception: of any type, for a damaged record.
    """
    kind = record["kind"]
    if kind == "step":
        return step(record)
    if kind == "run":
        return run(record)
    if kind == "tool_call":
        return tool_call(record)
    if kind == "feedback":
        return feedback(record)
    raise KeyError(kind)


def local(dict record not None) -> dict:
    """Return everything known of a record: `wire(record)`, and what the ingest has no place for.

    That is `first_token_time`, `provider`, `service_tier`, more counts, `total_cost` (US dollars, exact),
    `cost_status`, `price_table`, `traceparent`, `shed`, `shortened`, `withheld`. A feedback has the form
    `type run_id feedback_id time score? text?`.

    Raises:
        Exception: of any type, for a damaged record.
    """
    cdef dict fields = local_feedback(record) if record["kind"] == "feedback" else wire(record)
    if "first_token_ns" in record:
        fields["first_token_time"] = iso_time(record["first_token_ns"])
    if "cost_pico" in record:
        fields["total_cost"] = total_cost(record)
    copy(record, fields, LOCAL_FIELDS)
    return fields


def total_cost(dict record not None):
    """Return what a step with `cost_pico` costs, in US dollars: as the user gave it, else computed."""
    given = record.get("real_total_cost")
    return usd(record["cost_pico"]) if given is None else given


def merged_metadata(dict record not None) -> dict:
    """Return the metadata of a run that has some: the JSON objects of its lines, later keys win.

    A line that was cut as the record was too large is left out.

    Raises:
        ValueError: a line is not JSON.
    """
    import json

    cdef dict merged = {}
    for line in record["metadata"].split("\n"):
        try:
            # Not orjson: it rounds large integers and refuses lone surrogates.
            merged.update(json.loads(line))
        except ValueError:
            if line and "shortened" not in record:
                raise
    return merged


cdef dict step(dict record):
    cdef dict fields = {
        "type": "step",
        "run_id": record["run_id"],
        "step_id": record["step_id"],
    }
    time(record, fields)
    copy(record, fields, STEP_FIELDS)
    return fields


cdef dict tool_call(dict record):
    cdef dict fields = {
        "type": "tool_call",
        "run_id": record["run_id"],
        "tool_call_id": record["tool_call_id"],
        "tool_name": record.get("tool_name") or "unknown",
    }
    time(record, fields)
    copy(record, fields, TOOL_CALL_FIELDS)
    for key in ("args", "result"):
        if key in record:
            fields[key] = str(record[key])      # the ingest knows them as text, also where it is JSON
    return fields


cdef dict run(dict record):
    cdef dict prompt = {}
    cdef dict fields = {
        "type": "run",
        "run_id": record["run_id"],
    }
    time(record, fields)
    copy(record, prompt, RUN_PROMPT_FIELDS)
    if prompt:
        fields["prompt"] = prompt
    copy(record, fields, RUN_FIELDS)
    if "metadata" in record:
        fields["metadata"] = merged_metadata(record)
    return fields


cdef dict feedback(dict record):
    cdef dict fields = {"runId": record["run_id"]}
    copy(record, fields, FEEDBACK_FIELDS)
    return fields


cdef dict local_feedback(dict record):
    cdef dict fields = {
        "type": "feedback",
        "run_id": record["run_id"],
        "feedback_id": record["feedback_id"],
        "time": iso_time(record["end_ns"]),
    }
    copy(record, fields, FEEDBACK_FIELDS)
    return fields


cdef int time(dict record, dict fields) except -1:
    fields["start_time"] = iso_time(record["start_ns"])
    fields["end_time"] = iso_time(record["end_ns"])
    fields["status_code"] = record["status_code"]
    return 0


cdef int copy(dict record, dict fields, tuple keys) except -1:
    """Copies those of the keys that are there."""
    cdef PyObject *value
    for key in keys:
        value = PyDict_GetItemWithErrorRef(record, key)
        if value != NULL:
            PyDict_SetItem(fields, key, <object>value)
    return 0


cdef str iso_time(int64_t ns):
    """A Unix time in ISO 8601, UTC, cut to milliseconds: from the year 1677 to 2262.

    From days to a date as in http://howardhinnant.github.io/date_algorithms.html#civil_from_days."""
    cdef char text[24]
    cdef int64_t seconds = ns // 1_000_000_000         # towards the past, as all divisions here
    cdef uint32_t day = <uint32_t>(seconds // 86400 + 719468)     # since 0000-03-01
    cdef uint32_t second = <uint32_t>(seconds % 86400)
    cdef uint32_t era = day // 146097, of_era = day % 146097      # 400 years
    cdef uint32_t year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    cdef uint32_t of_year = of_era - (365 * year + year // 4 - year // 100)
    cdef uint32_t month = (5 * of_year + 2) // 153      # 0: March
    year += era * 400 + (month >= 10)
    digits(text, 4, year)
    text[4] = c"-"
    digits(text + 5, 2, month + 3 if month < 10 else month - 9)
    text[7] = c"-"
    digits(text + 8, 2, of_year - (153 * month + 2) // 5 + 1)
    text[10] = c"T"
    digits(text + 11, 2, second // 3600)
    text[13] = c":"
    digits(text + 14, 2, second // 60 % 60)
    text[16] = c":"
    digits(text + 17, 2, second % 60)
    text[19] = c"."
    digits(text + 20, 3, <uint32_t>(ns // 1_000_000 - seconds * 1000))
    text[23] = c"Z"
    return PyUnicode_DecodeASCII(text, 24, NULL)


cdef inline void digits(char *text, int n, uint32_t number) noexcept nogil:
    while n:
        n -= 1
        text[n] = <char>(c"0" + number % 10)
        number //= 10
