# cython: language_level=3, freethreading_compatible=True
"""Run, Step and ToolCall: the state machine, the checks of arguments, the public chainable classes.

An object is a C struct (times, ids, counts) and an array of references to the texts it was given. `finish()`
is the one function that ends an object: it hands the stamped struct to the ring and lets the texts go. No
attribute is a Python object that could refer to others, so instances are invisible to the garbage collector.
"""
cimport cython
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.number cimport PyIndex_Check, PyNumber_Index
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.unicode cimport (
    PyUnicode_1BYTE_KIND, PyUnicode_Check, PyUnicode_CheckExact, PyUnicode_DATA, PyUnicode_FromObject,
    PyUnicode_GET_LENGTH, PyUnicode_KIND,
)
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from picostep._clock cimport clock_offset, monotonic_ns, wall_ns
from picostep._context cimport TRACEPARENT_SIZE, parse_traceparent
from picostep._ids cimport ID_BYTES, format_id, next_id
from picostep._ring cimport (
    CACHE_WRITE_1H_TOKENS, CACHE_WRITE_TOKENS, COMMON_COUNTS, COMPLETION_TOKENS, CONVERSATIONAL, COST_FLOAT,
    COUNTS, FEEDBACK_SCORE, FEEDBACK_TEXT, IS_CONVERSATIONAL, KIND_FEEDBACK, KIND_RUN, KIND_STEP,
    KIND_TOOL_CALL, OWN_ID, OWN_UUID, PROMPT_CACHED_TOKENS, PROMPT_UNCACHED_TOKENS, REASONING_TOKENS,
    RUN_FULL_INPUT, RUN_FULL_OUTPUT, RUN_ID, RUN_METADATA, RUN_RESPONSE, RUN_SESSION_ID, RUN_SYSTEM_PROMPT,
    RUN_USER_PROMPT, RUN_UUID, START_GIVEN, STATUS_MESSAGE, STEP_FINISH_REASON, STEP_MODEL_REQUESTED,
    STEP_MODEL_USED, STEP_PROMPT, STEP_PROVIDER, STEP_REAL_TOTAL_COST, STEP_RESPONSE, STEP_SERVICE_TIER,
    STEP_TOOL_DEFINITIONS, TOOL_CALL_ARGS, TOOL_CALL_RESULT, TOOL_CALL_TOOL_NAME, TRACEPARENT, Draft, Record,
    Ring, append, count_of, count_unrecorded, host, ps_mutex, track, track_again, untrack,
)

from picostep.errors import ArgumentError, ArgumentTypeError, EndedError, MissingFieldError

cdef extern from "_sys.h" nogil:
    int lowest_bit "ps_lowest_bit"(uint32_t) noexcept
    const int64_t MAX_COUNT "PS_MAX_COUNT"      # 2**53: what every JSON reader keeps exactly
    void lock "ps_lock"(ps_mutex *) noexcept
    void unlock "ps_unlock"(ps_mutex *) noexcept

cdef extern from "_sys.h":
    int text_ready "ps_text_ready"(object) except -1

cdef enum State:
    NEW = 0             # made without a factory: nothing can be done with it
    OPEN = 1
    ENDED = 2

cdef enum:
    MAX_FEEDBACK = 2000
    MAX_COST_TEXT = 1000    # short enough to stay whole in any record
    # Slots that outlive end(), for properties and children: ids, and of a step what its cost follows from.
    KEPT = 1 << RUN_ID | 1 << OWN_ID | 1 << TRACEPARENT
    COST_TEXTS = (
        1 << STEP_MODEL_REQUESTED | 1 << STEP_MODEL_USED | 1 << STEP_REAL_TOTAL_COST | 1 << STEP_PROVIDER
        | 1 << STEP_SERVICE_TIER)
    STEP_KEPT = KEPT | COST_TEXTS
    PART_TOKENS = 1 << CACHE_WRITE_TOKENS | 1 << CACHE_WRITE_1H_TOKENS | 1 << REASONING_TOKENS

# As the exporter calls them, by number; None until a cost is read: a host that only records needs none.
cdef tuple text_names = None
cdef tuple count_names = None


# ---- what the runtime tells this module -------------------------------------------------------------------

cdef object runtime = None         # opens rings and destinations: picostep.runtime, bound at import
cdef int default_destination = -1   # -1: not resolved yet
cdef bint disabled = False
cdef bint raising = True
cdef bint keeping = False           # runs that are let go stay in the tables of their rings


def bind(module) -> None:
    """Give this module the functions it calls when something happens for the first time."""
    global runtime
    runtime = module


def use(int destination, bint is_disabled, bint raises) -> None:
    """Set the default destination (-1: resolve at first use), if all is disabled, if misuse raises."""
    global default_destination, disabled, raising
    default_destination, disabled, raising = destination, is_disabled, raises


def keep_runs() -> None:
    """Have runs that are let go from now on reported like those that stay open.

    For a process that ends because of an exception.
    """
    global keeping
    keeping = True


cdef int destination_of(object api_key, object tcc_url, str where) except -1:
    cdef int index
    # An empty text counts as not given, as in the reference.
    if (api_key is None or api_key == "") and (tcc_url is None or tcc_url == ""):
        index = default_destination
        if index >= 0 and (disabled or host.ring[index] != NULL):
            return index
        return runtime.default_destination()
    if not (api_key is None or isinstance(api_key, str)):
        # Without the value: it may well be a key.
        fail(ArgumentTypeError, f"{where}(): api_key must be str, not {type(api_key).__name__}")
        api_key = None
    if not (tcc_url is None or isinstance(tcc_url, str)):
        wrong_type(where, "tcc_url", "str", tcc_url)
        tcc_url = None
    return runtime.destination_index(api_key or None, tcc_url or None, None)


# ---- misuse ------------------------------------------------------------------------------------------------

cdef int fail(object kind, str message) except -1:
    """Raises, or in the mode "log" counts and logs; the caller then goes on as if there had been no call."""
    if raising:
        raise kind(message)
    runtime.misused(kind.__name__, message)
    return 0


cdef str shown(object value):
    """What was given, without the content of texts and without running code of strange types."""
    if value is None or isinstance(value, bool) or type(value) is int or type(value) is float:
        text = repr(value) if type(value) is not int or abs(value) < 10**20 else "a very large int"
        return f"{type(value).__name__} ({text})" if value is not None else "None"
    return type(value).__name__


cdef int wrong_type(str where, str argument, str wanted, object value) except -1:
    return fail(ArgumentTypeError, f"{where}(): {argument} must be {wanted}, not {shown(value)}")


cdef int not_open(int state, str where) except -1:
    if state == NEW:
        return fail(EndedError, f"{where}(): this object was not made by picostep")
    return fail(EndedError, f"{where}(): already ended; an ended object cannot be modified or ended again")


cdef int missing(str where, str field) except -1:
    return fail(
        MissingFieldError,
        f"{where}(): {field} is required; call .{field}(...) before .end(), or use .error()")


# ---- setters on a draft: each returns 1 when it was done, 0 when misuse was logged -------------------------

cdef inline void put(Draft *draft, int slot, object text, bint json) noexcept:
    cdef PyObject *old = draft.text[slot]
    Py_INCREF(text)
    draft.text[slot] = <PyObject *>text
    draft.present |= <uint32_t>1 << slot
    if json:
        draft.json |= <uint32_t>1 << slot
    else:
        draft.json &= ~(<uint32_t>1 << slot)
    Py_XDECREF(old)


cdef inline void drop(Draft *draft, int slot) noexcept:
    cdef PyObject *old = draft.text[slot]
    draft.text[slot] = NULL
    draft.present &= ~(<uint32_t>1 << slot)
    Py_XDECREF(old)


cdef inline void drop_all(Draft *draft, uint32_t keep) noexcept:
    cdef uint32_t left = draft.present & ~keep
    while left:
        drop(draft, lowest_bit(left))
        left &= left - 1


cdef inline object exact(object text):
    """The text itself, or a copy of one of a subclass: that could hold references to anything."""
    text_ready(text)
    return text if PyUnicode_CheckExact(text) else PyUnicode_FromObject(text)


cdef inline int set_text(Draft *draft, int slot, object value, str where, str argument) except -1:
    if PyUnicode_Check(value):
        put(draft, slot, exact(value), False)
        return 1
    return wrong_type(where, argument, "str", value)


cdef inline int optional_text(object value, str where, str argument) except -1:
    """The check of set_optional() alone, for calls that set all of their texts or none."""
    return 1 if value is None or PyUnicode_Check(value) else wrong_type(where, argument, "str", value)


cdef inline int set_optional(Draft *draft, int slot, object value, str where, str argument) except -1:
    return 1 if value is None else set_text(draft, slot, value, where, argument)


cdef inline int set_id(Draft *draft, int slot, object value, str where, str argument) except -1:
    """An empty id counts as not given."""
    if value is None or (PyUnicode_Check(value) and PyUnicode_GET_LENGTH(value) == 0):
        return 1
    return set_text(draft, slot, value, where, argument)


cdef inline int set_traceparent(Draft *draft, object value, str where) except -1:
    return 1 if value is None else set_given_traceparent(draft, value, where)


cdef int set_given_traceparent(Draft *draft, object value, str where) except -1:
    """A text that is no valid one is ignored, whoever sent it; an empty one counts as not given."""
    cdef char text[TRACEPARENT_SIZE]
    if not PyUnicode_Check(value):
        return wrong_type(where, "traceparent", "str", value)
    text_ready(value)
    if PyUnicode_GET_LENGTH(value) == 0:
        return 1
    if (PyUnicode_KIND(value) == PyUnicode_1BYTE_KIND
            and parse_traceparent(<const uint8_t *>PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value), text)):
        put(draft, TRACEPARENT, text[:TRACEPARENT_SIZE].decode("ascii"), False)
    else:
        runtime.ignored_traceparent(where)
    return 1


cdef str snapshot(object value, str where, str argument, bint strict):
    """The JSON of a value, or None when misuse was logged."""
    import json     # a host loads nothing else for it, and what orjson refuses, as lone surrogates, is taken
    try:
        return json.dumps(value, allow_nan=not strict)
    except TypeError as error:
        fail(ArgumentTypeError, f"{where}(): {argument} has no JSON form: {error}")
    except Exception as error:  # too deep, a cycle, NaN; or whatever the methods of a dict's subclass raise
        fail(ArgumentError, f"{where}(): {argument} has no JSON form: {error}")
    return None


cdef inline int set_body(Draft *draft, int slot, object value, str where, str argument) except -1:
    """A text, or provider messages as list or dict."""
    cdef bint json = False
    if PyUnicode_Check(value):
        put(draft, slot, exact(value), False)
        return 1
    value = body(value, &json, where, argument)
    if value is None:
        return 0
    put(draft, slot, value, json)
    return 1


cdef object body(object value, bint *json, str where, str argument):
    """The text to keep of a text, list or dict, and whether that is JSON; None when misuse was logged."""
    json[0] = False
    if PyUnicode_Check(value):
        return exact(value)
    if not isinstance(value, (list, dict)):
        wrong_type(where, argument, "str, list or dict", value)
        return None
    json[0] = True
    return snapshot(value, where, argument, True)


cdef int set_bodies(Draft *draft, int slot, object value, int slot_2, object value_2, int slot_3,
                    object value_3, str where, str argument, str argument_2, str argument_3) except -1:
    """A body and up to two that belong to it: all or none. One that is None is taken back."""
    cdef bint json = False, json_2 = False, json_3 = False
    value = body(value, &json, where, argument)
    if value is None:
        return 0
    if value_2 is not None:
        value_2 = body(value_2, &json_2, where, argument_2)
        if value_2 is None:
            return 0
    if value_3 is not None:
        value_3 = body(value_3, &json_3, where, argument_3)
        if value_3 is None:
            return 0
    put(draft, slot, value, json)
    drop(draft, slot_2)
    drop(draft, slot_3)
    if value_2 is not None:
        put(draft, slot_2, value_2, json_2)
    if value_3 is not None:
        put(draft, slot_3, value_3, json_3)
    return 1


cdef int set_tool_value(Draft *draft, int slot, object value, str where, str argument) except -1:
    """A text as it is; anything else as the text of its JSON."""
    if PyUnicode_Check(value):
        return set_text(draft, slot, value, where, argument)
    text = snapshot(value, where, argument, False)
    if text is None:
        return 0
    put(draft, slot, text, False)
    return 1


cdef inline int as_count(object value, int64_t *out, str where, str argument) except -1:
    cdef int overflow
    cdef int64_t n
    if PyLong_CheckExact(value):
        n = PyLong_AsLongLongAndOverflow(value, &overflow)
        if not overflow and 0 <= n <= MAX_COUNT:
            out[0] = n
            return 1
    return as_odd_count(value, out, 0, where, argument)


cdef object as_index(object value):
    """The int that a value stands for, or None: bools are none, nor is anything that has only __int__."""
    if isinstance(value, bool) or not PyIndex_Check(value):
        return None
    try:
        return PyNumber_Index(value)
    except Exception:       # its __index__ is broken
        return None


cdef int as_odd_count(object value, int64_t *out, int64_t low, str where, str argument) except -1:
    """Ints of other types, and what is wrong with the rest."""
    number = as_index(value)
    if number is None:
        return wrong_type(where, argument, "int", value)
    if not low <= number <= MAX_COUNT:
        span = "≥ 0 and ≤ " if low == 0 else "within ±"
        return fail(ArgumentError, f"{where}(): {argument} must be {span}2**53, not {shown(number)}")
    out[0] = number
    return 1


cdef inline int count(int64_t *counts, uint32_t *has, int kind, object value, str where,
                      str argument) except -1:
    if value is None:
        return 1
    has[0] |= <uint32_t>1 << kind
    return as_count(value, &counts[kind], where, argument)


cdef inline int set_tokens(Draft *draft, object uncached, object cached, object completion,
                           object cache_write, object cache_write_1h, object reasoning, str where) except -1:
    """All or none: a wrong count leaves the others as they were."""
    cdef int64_t counts[COUNTS]
    cdef uint32_t has = 0
    if not (count(counts, &has, PROMPT_UNCACHED_TOKENS, uncached, where, "prompt_uncached")
            and count(counts, &has, PROMPT_CACHED_TOKENS, cached, where, "prompt_cached")
            and count(counts, &has, COMPLETION_TOKENS, completion, where, "completion")):
        return 0
    if (cache_write is not None or cache_write_1h is not None or reasoning is not None
            or draft.record.has_counts & PART_TOKENS):
        if not (count(counts, &has, CACHE_WRITE_TOKENS, cache_write, where, "cache_write")
                and count(counts, &has, CACHE_WRITE_1H_TOKENS, cache_write_1h, where, "cache_write_1h")
                and count(counts, &has, REASONING_TOKENS, reasoning, where, "reasoning")
                and check_part(draft, counts, has, CACHE_WRITE_1H_TOKENS, CACHE_WRITE_TOKENS,
                               "cache_write_1h", "cache_write", where)
                and check_part(draft, counts, has, REASONING_TOKENS, COMPLETION_TOKENS,
                               "reasoning", "completion", where)):
            return 0
    draft.record.has_counts |= has
    if uncached is not None:
        draft.record.counts[PROMPT_UNCACHED_TOKENS] = counts[PROMPT_UNCACHED_TOKENS]
    if cached is not None:
        draft.record.counts[PROMPT_CACHED_TOKENS] = counts[PROMPT_CACHED_TOKENS]
    if completion is not None:
        draft.record.counts[COMPLETION_TOKENS] = counts[COMPLETION_TOKENS]
    has &= PART_TOKENS
    while has:
        draft.more[lowest_bit(has) - COMMON_COUNTS] = counts[lowest_bit(has)]
        has &= has - 1
    return 1


cdef int check_part(Draft *draft, const int64_t *counts, uint32_t has, int part, int whole, str part_name,
                    str whole_name, str where) except -1:
    """A count that is a part of another cannot be larger; either may come first."""
    cdef uint32_t known = has | draft.record.has_counts
    cdef int64_t of_part, of_whole
    if not (known >> part & 1 and known >> whole & 1):
        return 1
    of_part = counts[part] if has >> part & 1 else count_of(&draft.record, part)
    of_whole = counts[whole] if has >> whole & 1 else count_of(&draft.record, whole)
    if of_part <= of_whole:
        return 1
    return fail(
        ArgumentError, f"{where}(): {part_name} ({of_part}) is a part of {whole_name} ({of_whole}), not more")


cdef inline int set_cost(Draft *draft, object value, str where, str argument) except -1:
    if PyFloat_Check(value) and isfinite(PyFloat_AS_DOUBLE(value)) and PyFloat_AS_DOUBLE(value) >= 0:
        drop(draft, STEP_REAL_TOTAL_COST)
        draft.record.cost = PyFloat_AS_DOUBLE(value)
        draft.record.flags |= COST_FLOAT
        return 1
    return set_odd_cost(draft, value, where, argument)


cdef int set_odd_cost(Draft *draft, object value, str where, str argument) except -1:
    """None, ints and Decimals, and what is wrong with the rest."""
    from decimal import Decimal
    if value is None:
        drop(draft, STEP_REAL_TOTAL_COST)
        draft.record.flags &= ~<uint32_t>COST_FLOAT
        return 1
    if isinstance(value, (float, Decimal)):
        number = value
    else:
        number = as_index(value)
        if number is None:
            return wrong_type(where, argument, "int, float or Decimal", value)
    # Comparing a NaN Decimal raises, so finiteness comes first; a float in here is infinite, NaN or negative.
    if isinstance(number, Decimal) and not number.is_finite() or not 0 <= number < 10**300:
        given = f"{number:.6g}" if isinstance(number, (float, Decimal)) else shown(number)
        return fail(ArgumentError, f"{where}(): {argument} must be finite, ≥ 0 and < 1e300, not {given}")
    text = str(number)
    if len(text) > MAX_COST_TEXT:
        limit = MAX_COST_TEXT
        return fail(ArgumentError, f"{where}(): {argument} has {len(text)} digits; the most is {limit}")
    put(draft, STEP_REAL_TOTAL_COST, exact(text), False)
    draft.record.flags &= ~<uint32_t>COST_FLOAT
    return 1


cdef inline int set_status(Draft *draft, object code, object message, str where) except -1:
    cdef int overflow
    cdef int64_t n = 0
    if not PyLong_CheckExact(code):
        if not as_odd_count(code, &n, -MAX_COUNT, where, "code"):
            return 0
    else:
        n = PyLong_AsLongLongAndOverflow(code, &overflow)
        if overflow or not -MAX_COUNT <= n <= MAX_COUNT:
            return as_odd_count(code, &n, -MAX_COUNT, where, "code")
    if not set_optional(draft, STATUS_MESSAGE, message, where, "message"):
        return 0
    draft.record.status_code = n
    return 1


cdef int set_metadata(Draft *draft, object data, dict more, str where) except -1:
    """Appends one line of JSON a call: the exporter merges them."""
    if data is not None and not isinstance(data, dict):
        try:
            data = dict(data)
        except (TypeError, ValueError):
            return wrong_type(where, "data", "a dict", data)
    merged = {**data, **more} if data else more
    for key in merged:
        if not isinstance(key, str):
            return fail(ArgumentTypeError, f"{where}(): metadata keys must be str, not {shown(key)}")
    text = snapshot(merged, where, "metadata", True)
    if text is None:
        return 0
    if draft.text[RUN_METADATA] != NULL:
        text = f"{<object>draft.text[RUN_METADATA]}\n{text}"
    put(draft, RUN_METADATA, text, False)
    return 1


# ---- begin and end -----------------------------------------------------------------------------------------

cdef int new_id(uint8_t *to) except -1:
    cdef int err
    lock(&host.lock)
    err = next_id(&host.ids, to)
    unlock(&host.lock)
    if err:
        raise OSError("the kernel gives no random bytes")
    return 0


cdef inline int begin(Draft *draft, int kind, object start_time, str where) except -1:
    draft.record.kind = <uint8_t>kind
    if start_time is None:
        draft.record.start_ns = monotonic_ns()
        return 0
    return begin_at(draft, start_time, where)


cdef int begin_at(Draft *draft, object start_time, str where) except -1:
    try:
        draft.record.start_ns = runtime.to_ns(start_time, "start_time")
        draft.record.flags |= START_GIVEN
    except (ArgumentError, ArgumentTypeError) as error:
        fail(type(error), f"{where}(): {error}")
        draft.record.start_ns = monotonic_ns()
    return 0


cdef inline int set_own_id(Draft *draft, object value, str where, str argument) except -1:
    set_id(draft, OWN_ID, value, where, argument)
    if draft.text[OWN_ID] == NULL:
        new_id(draft.record.own_uuid)
        draft.record.flags |= OWN_UUID
    return 0


cdef inline int set_run_id(Draft *draft, object value, bint required, str where) except -1:
    cdef int accepted = set_id(draft, RUN_ID, value, where, "run_id")
    if draft.text[RUN_ID] == NULL:
        if required and accepted:
            # In the mode "log" the record is kept, under a run of its own.
            fail(ArgumentError, f"{where}(): run_id must not be empty")
        new_id(draft.record.run_uuid)
        draft.record.flags |= RUN_UUID
    return 0


cdef inline void inherit_run(Draft *draft, Draft *source) noexcept:
    if source.record.flags & RUN_UUID:
        memcpy(draft.record.run_uuid, source.record.run_uuid, ID_BYTES)
        draft.record.flags |= RUN_UUID
    else:
        put(draft, RUN_ID, <object>source.text[RUN_ID], False)
    if source.present & 1 << TRACEPARENT:
        put(draft, TRACEPARENT, <object>source.text[TRACEPARENT], False)


cdef inline int stamp(Draft *draft, object end_time, str where) except -1:
    """Turns the monotonic stamps into Unix times. Raises before it changes anything."""
    cdef Record *record = &draft.record
    cdef int64_t now = monotonic_ns(), offset, end, start = record.start_ns
    lock(&host.lock)
    offset = clock_offset(&host.clock, now)
    unlock(&host.lock)
    if not record.flags & START_GIVEN:
        start += offset
    end = now + offset
    if end_time is not None:
        end = given_end(end_time, end, start, where)
    record.start_ns = start
    record.end_ns = end
    if record.first_token_ns:
        record.first_token_ns += offset
    return 0


cdef int64_t given_end(object end_time, int64_t now, int64_t start, str where) except? -1:
    try:
        end = runtime.to_ns(end_time, "end_time")
    except (ArgumentError, ArgumentTypeError) as error:
        fail(type(error), f"{where}(): {error}")
        return now
    if end < start:
        fail(ArgumentError, f"{where}(): end_time lies before the start")
        return now
    return end


cdef inline bint hand_over(Draft *draft, int destination) except? -1:
    """Appends a stamped record to the ring of its destination. False: dropped, and counted."""
    cdef Ring *ring
    if disabled:
        return False
    ring = host.ring[destination]
    if ring == NULL:
        runtime.open_ring(destination)
        ring = host.ring[destination]
        if ring == NULL:
            count_unrecorded()
            return False
    return append(ring, draft) == 0


# Names of the shared methods, by kind.
cdef tuple STATUS_OF = ("status", "Step.status", "Run.status", "ToolCall.status")
cdef tuple ERROR_OF = ("error", "Step.error", "Run.error", "ToolCall.error")


# ---- the public classes ------------------------------------------------------------------------------------

@cython.freelist(64)
cdef class _Handle:
    """What Run, Step and ToolCall share. Not for direct use."""
    cdef Draft draft
    cdef int destination
    cdef uint8_t state
    # Of runs; here, so that all kinds have one size and share the list of free ones.
    cdef uint16_t slot              # in the table of its ring, counted from 1; 0: none
    cdef uint32_t ring              # number of the ring that was asked for a slot; 0: none yet
    cdef uint32_t forks             # that the process which made it had behind it

    def __init__(self, *args, **kwargs):
        raise TypeError(f"{type(self).__name__} objects are made by picostep.run(), step() and tool_call()")

    def __dealloc__(self):
        drop_all(&self.draft, 0)

    @property
    @cython.critical_section
    def run_id(self) -> str:
        """The run's id: the text given, or a UUID."""
        return id_text(&self.draft, RUN_ID, RUN_UUID, self.draft.record.run_uuid)

    @cython.critical_section
    def status(self, code, message=None):
        """Set the status.

        Args:
            code: 0 for ok, 2 for error; any other int from -2**53 to 2**53 goes out as given.
            message: text; secrets in it are redacted before it leaves the machine. None keeps what was set.

        Returns:
            The object itself.

        Raises:
            EndedError: the object has ended.
            ArgumentTypeError: `code` is no int, or `message` no str.
            ArgumentError: `code` is out of range.
        """
        cdef str where = <str>STATUS_OF[self.draft.record.kind]
        if self.state != OPEN:
            not_open(self.state, where)
        elif set_status(&self.draft, code, message, where) and self.draft.record.kind == KIND_RUN:
            note_run(self)
        return self

    @cython.critical_section
    def error(self, status_message="", end_time=None):
        """End the object as failed (status code 2) and hand it over; nothing else is required.

        Args:
            status_message: what went wrong; "" keeps a message that `status()` set. Secrets in it are
                redacted before it leaves the machine.
            end_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Raises:
            EndedError: the object has ended.
            ArgumentTypeError, ArgumentError: an argument has a wrong type, `end_time` cannot be read or lies
                before the start. The object stays open.
        """
        cdef str where = <str>ERROR_OF[self.draft.record.kind]
        if self.state != OPEN:
            not_open(self.state, where)
            return
        if status_message is None:      # as in the reference
            status_message = ""
        elif not PyUnicode_Check(status_message):
            wrong_type(where, "status_message", "str", status_message)
            status_message = ""
        stamp(&self.draft, end_time, where)
        if self.state == OPEN:
            if status_message:
                set_text(&self.draft, STATUS_MESSAGE, status_message, where, "status_message")
            self.draft.record.status_code = 2
        finish(self, where)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        """End the object if it is open; after an exception, as failed with the exception's text."""
        if self.state != OPEN:
            return
        if kind is None:
            self.end()
            return
        try:
            text = str(error)
        except Exception:
            text = ""
        self.error(text or kind.__name__)

    def __repr__(self):
        state = "open" if self.state == OPEN else "ended"
        return f"<picostep.{type(self).__name__} of run {self.run_id!r}, {state}>"


cdef str id_text(Draft *draft, int slot, int flag, uint8_t *uuid):
    cdef char text[36]
    if draft.record.flags & flag:
        if draft.text[slot] == NULL:
            format_id(uuid, text)
            put(draft, slot, text[:36].decode("ascii"), False)
        return <str><object>draft.text[slot]
    return <str><object>draft.text[slot] if draft.text[slot] != NULL else ""


cdef int finish(_Handle self, str where) except -1:
    """The one way from OPEN to ENDED: hands the stamped record over and lets the texts go."""
    if self.state != OPEN:      # another thread ended it while stamp() read a given time
        return not_open(self.state, where)
    self.state = ENDED
    hand_over(&self.draft, self.destination)
    if self.draft.record.kind == KIND_STEP:
        drop_all(&self.draft, STEP_KEPT)
    else:
        if self.slot:
            forget_run(self)    # now that the ring has it: at no moment is it in neither place
        drop_all(&self.draft, KEPT)
    return 0


cdef int note_run(_Handle self) except -1:
    """Keeps what is known of an open run where it outlives this process.

    In the ring that its destination has now; only by the process that made it, as a child's death says
    nothing of it."""
    cdef Ring *ring = host.ring[self.destination]
    cdef int64_t start, end, now
    if ring == NULL or disabled or self.forks != host.forks:
        return 0
    now = monotonic_ns()
    lock(&host.lock)
    end = now + clock_offset(&host.clock, now)
    unlock(&host.lock)
    # Without the GIL, whoever waits for a lock lets other threads change the run meanwhile: so nothing of it
    # is looked at before the ring is ours.
    lock(&ring.lock)
    if self.state == OPEN:
        start = self.draft.record.start_ns
        if not self.draft.record.flags & START_GIVEN:
            start += end - now
        if ring.number != self.ring:
            self.ring = ring.number
            self.slot = <uint16_t>track(ring, &self.draft, start, end)
        elif self.slot:
            track_again(ring, self.slot, &self.draft, start, end)
    unlock(&ring.lock)
    return 0


cdef int forget_run(_Handle self) except -1:
    """Gives a run's slot back, if the ring is still there."""
    cdef Ring *ring = host.ring[self.destination]
    if ring != NULL and ring.number == self.ring:
        untrack(ring, self.slot)
    self.slot = 0
    return 0


cdef inline int check_made(_Handle parent, str where) except -1:
    """Raises, in every mode: without a factory there is no run that a child could belong to."""
    if parent.state == NEW:
        raise EndedError(f"{where}(): this object was not made by picostep")
    return 0


cdef inline Step new_step(int destination):
    cdef Step made = Step.__new__(Step)
    made.destination = destination
    made.state = OPEN
    return made


cdef inline ToolCall new_tool_call(int destination):
    cdef ToolCall made = ToolCall.__new__(ToolCall)
    made.destination = destination
    made.state = OPEN
    return made


cdef Step step_of(_Handle parent, object step_id, object start_time, str where):
    cdef Step made = new_step(parent.destination)
    check_made(parent, where)
    inherit_run(&made.draft, &parent.draft)
    set_own_id(&made.draft, step_id, where, "step_id")
    begin(&made.draft, KIND_STEP, start_time, where)
    return made


cdef ToolCall tool_call_of(_Handle parent, object tool_name, object tool_call_id, object start_time,
                           str where):
    cdef ToolCall made = new_tool_call(parent.destination)
    check_made(parent, where)
    inherit_run(&made.draft, &parent.draft)
    set_own_id(&made.draft, tool_call_id, where, "tool_call_id")
    set_optional(&made.draft, TOOL_CALL_TOOL_NAME, tool_name, where, "tool_name")
    begin(&made.draft, KIND_TOOL_CALL, start_time, where)
    return made


@cython.final
cdef class Run(_Handle):
    """One run of an agent, made by `picostep.run()`.

    Also a context manager. Thread-safety: methods may be called from any thread; each call is atomic.
    """

    def __dealloc__(self):
        if self.slot and not keeping:
            forget_run(self)

    @cython.critical_section
    def step(self, step_id=None, *, start_time=None) -> Step:
        """Begin a step of this run, which may have ended.

        Args:
            step_id: text; a UUID when None or "".
            start_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Returns:
            The step. It goes where the run goes, and into the same trace.

        Raises:
            ArgumentTypeError, ArgumentError: an argument has a wrong type, or `start_time` cannot be read.
        """
        return step_of(self, step_id, start_time, "Run.step")

    @cython.critical_section
    def tool_call(self, tool_name=None, tool_call_id=None, *, start_time=None) -> ToolCall:
        """Begin a tool call of this run, which may have ended.

        Args:
            tool_name: text; may also be set by `ToolCall.name()`.
            tool_call_id: text; a UUID when None or "".
            start_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Returns:
            The tool call. It goes where the run goes, and into the same trace.

        Raises:
            ArgumentTypeError, ArgumentError: an argument has a wrong type, or `start_time` cannot be read.
        """
        return tool_call_of(self, tool_name, tool_call_id, start_time, "Run.tool_call")

    @cython.critical_section
    def prompt(self, user_prompt, system_prompt=None, full_input=None):
        """Set what the user asked; replaces all three parts.

        Args:
            user_prompt: a text, or a list or dict of provider messages, of which the JSON is kept as it is
                now.
            system_prompt: the same, of the instructions; None for none.
            full_input: the same, of everything the agent was given; None for none.

        Returns:
            The run itself.

        Raises:
            EndedError: the run has ended.
            ArgumentTypeError: an argument is no str, list or dict, or holds what JSON has no form for.
            ArgumentError: a list or dict is too deep, holds itself, or holds NaN or an infinite number.
        """
        if self.state != OPEN:
            not_open(self.state, "Run.prompt")
        elif set_bodies(&self.draft, RUN_USER_PROMPT, user_prompt, RUN_SYSTEM_PROMPT, system_prompt,
                        RUN_FULL_INPUT, full_input, "Run.prompt", "user_prompt", "system_prompt",
                        "full_input"):
            note_run(self)
        return self

    @cython.critical_section
    def response(self, text, full_output=None):
        """Set what the agent answered; replaces both parts.

        Args:
            text: a text, or a list or dict of provider messages, of which the JSON is kept as it is now.
            full_output: the same, of everything the agent put out; None for none.

        Returns:
            The run itself.

        Raises:
            EndedError: the run has ended.
            ArgumentTypeError: an argument is no str, list or dict, or holds what JSON has no form for.
            ArgumentError: a list or dict is too deep, holds itself, or holds NaN or an infinite number.
        """
        if self.state != OPEN:
            not_open(self.state, "Run.response")
        elif set_bodies(&self.draft, RUN_RESPONSE, text, RUN_FULL_OUTPUT, full_output, RUN_FULL_OUTPUT, None,
                        "Run.response", "text", "full_output", ""):
            note_run(self)
        return self

    @cython.critical_section
    def metadata(self, data=None, **kwargs):
        """Merge keys into the run's metadata; of a key that is given again, the last value counts.

        Args:
            data: a mapping, or pairs of key and value. Keys are str, values anything that JSON has a form
                for; all is kept as it is now.
            **kwargs: more of them; they win over `data`.

        Returns:
            The run itself.

        Raises:
            EndedError: the run has ended.
            ArgumentTypeError: `data` is no mapping, a key is no str, or a value has no JSON form.
            ArgumentError: a value is too deep, holds itself, or holds NaN or an infinite number.
        """
        if self.state != OPEN:
            not_open(self.state, "Run.metadata")
        elif set_metadata(&self.draft, data, kwargs, "Run.metadata"):
            note_run(self)
        return self

    def feedback(self, score=None, text=None) -> bool:
        """Record the user's feedback on this run, which may have ended.

        Args:
            score: `"thumbs_up"` or `"thumbs_down"`.
            text: at most 2,000 characters. One of score and text is needed.

        Returns:
            Whether it was recorded. It is delivered later, like everything else.

        Raises:
            ArgumentTypeError, ArgumentError: an argument is not what it should be.
        """
        check_made(self, "Run.feedback")
        return record_feedback(self.run_id, score, text, self.destination, "Run.feedback")

    @cython.critical_section
    def end(self, end_time=None):
        """End the run and hand it over.

        Args:
            end_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Raises:
            MissingFieldError: no prompt was set; the run stays open.
            EndedError: the run has ended.
            ArgumentTypeError, ArgumentError: `end_time` cannot be read or lies before the start; the run
                stays open.
        """
        if self.state != OPEN:
            not_open(self.state, "Run.end")
        elif not self.draft.present & 1 << RUN_USER_PROMPT:
            missing("Run.end", "prompt")
        else:
            stamp(&self.draft, end_time, "Run.end")
            finish(self, "Run.end")


cdef int name_fields() except -1:
    global text_names, count_names
    from picostep.record import counts, texts
    count_names = counts()
    text_names = texts("step")      # last: with it, both are there
    return 0


@cython.final
cdef class Step(_Handle):
    """One request to a model and its response, made by `picostep.step()` or `Run.step()`.

    Also a context manager. Thread-safety: methods may be called from any thread; each call is atomic.
    """

    @property
    @cython.critical_section
    def step_id(self) -> str:
        """The step's id: the text given, or a UUID."""
        return id_text(&self.draft, OWN_ID, OWN_UUID, self.draft.record.own_uuid)

    @property
    def total_cost(self):
        """Cost in US dollars as an exact `decimal.Decimal`; None when it is not known.

        What `cost()` was given, else what follows from model and tokens: at once, also before `end()`. A
        float counts as the shortest decimal that denotes it. `cost_status` says where it comes from.
        """
        return runtime.cost(self.priced(), self.destination)[0]

    @property
    def cost_status(self) -> str:
        """Where `total_cost` comes from, or why there is none.

        One of `picostep.prices.STATUSES`: `"user"`, `"override"`, `"priced"`, `"free"`, `"unknown_model"` and
        so on; docs/reference/prices.md explains them.
        """
        return runtime.cost(self.priced(), self.destination)[1]

    @cython.critical_section
    cdef dict priced(self):
        """What a cost follows from, by the names that the exporter uses."""
        cdef Draft *draft = &self.draft
        cdef Record *record = &draft.record
        cdef uint32_t texts = draft.present & COST_TEXTS, counts = record.has_counts
        cdef int64_t start = record.start_ns
        cdef dict out = {}
        if text_names is None:
            name_fields()
        if self.state == OPEN and not record.flags & START_GIVEN:
            start += wall_ns() - monotonic_ns()
        out["start_ns"] = start
        if record.flags & COST_FLOAT:
            out["real_total_cost"] = record.cost
        while texts:
            out[text_names[lowest_bit(texts)]] = <object>draft.text[lowest_bit(texts)]
            texts &= texts - 1
        while counts:
            out[count_names[lowest_bit(counts)]] = count_of(record, lowest_bit(counts))
            counts &= counts - 1
        return out

    @cython.critical_section
    def prompt(self, text):
        """Set what was sent to the model.

        Args:
            text: a text, or a list or dict of provider messages, of which the JSON is kept as it is now.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: it is no str, list or dict, or holds what JSON has no form for.
            ArgumentError: it is too deep, holds itself, or holds NaN or an infinite number.
        """
        if self.state == OPEN:
            set_body(&self.draft, STEP_PROMPT, text, "Step.prompt", "text")
        else:
            not_open(self.state, "Step.prompt")
        return self

    @cython.critical_section
    def response(self, text):
        """Set what the model answered.

        Args:
            text: a text, or a list or dict of provider messages, of which the JSON is kept as it is now.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: it is no str, list or dict, or holds what JSON has no form for.
            ArgumentError: it is too deep, holds itself, or holds NaN or an infinite number.
        """
        if self.state == OPEN:
            set_body(&self.draft, STEP_RESPONSE, text, "Step.response", "text")
        else:
            not_open(self.state, "Step.response")
        return self

    @cython.critical_section
    def model(self, requested=None, used=None, *, provider=None, service_tier=None):
        """Set the model that was asked for and the one that answered; None keeps what was set.

        Args:
            requested: the name in the request, as the provider writes it.
            used: the name in the response, as the provider writes it.
            provider: who served it: `"openai"`, `"azure"`, `"bedrock"` …; without it the name has to tell.
            service_tier: `"batch"`, `"flex"`, `"priority"` …, where that has a price of its own.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: an argument is no str; none of them is set.
        """
        cdef Draft *draft = &self.draft
        if self.state != OPEN:
            not_open(self.state, "Step.model")
        elif (optional_text(requested, "Step.model", "requested")
                and optional_text(used, "Step.model", "used")
                and optional_text(provider, "Step.model", "provider")
                and optional_text(service_tier, "Step.model", "service_tier")):
            set_optional(draft, STEP_MODEL_REQUESTED, requested, "Step.model", "requested")
            set_optional(draft, STEP_MODEL_USED, used, "Step.model", "used")
            set_optional(draft, STEP_PROVIDER, provider, "Step.model", "provider")
            set_optional(draft, STEP_SERVICE_TIER, service_tier, "Step.model", "service_tier")
        return self

    @cython.critical_section
    def tokens(self, prompt_uncached=None, prompt_cached=None, completion=None, *, cache_write=None,
               cache_write_1h=None, reasoning=None):
        """Set token counts, each an int from 0 to 2**53; None keeps what was set.

        Args:
            prompt_uncached: prompt tokens processed afresh.
            prompt_cached: prompt tokens read from a cache. They are not part of the uncached ones; that they
                were counted twice cannot be seen from here, so prefer `usage()`, which reads a provider's own
                answer.
            completion: tokens generated, reasoning included.
            cache_write: prompt tokens written to a cache; not part of the two above.
            cache_write_1h: those of `cache_write` that live for an hour.
            reasoning: those of `completion` that are reasoning.

        The keywords serve the cost and sinks of your own; The Context Company's ingest has no place for them.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: a count is no int; bools and floats are none. No count is changed.
            ArgumentError: a count is out of range, or a part is larger than its whole. No count is changed.
        """
        if self.state == OPEN:
            set_tokens(&self.draft, prompt_uncached, prompt_cached, completion, cache_write, cache_write_1h,
                       reasoning, "Step.tokens")
        else:
            not_open(self.state, "Step.tokens")
        return self

    @cython.critical_section
    def usage(self, obj):
        """Set the token counts from what a provider reports.

        Args:
            obj: the usage of a response, as object or dict: OpenAI (chat and responses), Anthropic, Gemini,
                LiteLLM. What it does not report keeps what was set.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: it is None, a text, a number or a list.
            ArgumentError: its form is not known, a count is no int from 0 to 2**53, or a part is larger than
                its whole. No count is changed.
        """
        if self.state != OPEN:
            not_open(self.state, "Step.usage")
            return self
        try:
            uncached, cached, completion, cache_write, cache_write_1h, reasoning = runtime.disjoint(obj)
        except (ArgumentError, ArgumentTypeError) as error:
            fail(type(error), f"Step.usage(): {error}")
        else:
            set_tokens(&self.draft, uncached, cached, completion, cache_write, cache_write_1h, reasoning,
                       "Step.usage")
        return self

    @cython.critical_section
    def cost(self, real_total):
        """Set the cost in US dollars. It goes out as given and beats every price.

        Args:
            real_total: an int, float or Decimal, finite, at least 0 and below 1e300. None takes it back.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: it is no number, or a bool.
            ArgumentError: it is out of range, or has more than 1,000 digits.
        """
        if self.state == OPEN:
            set_cost(&self.draft, real_total, "Step.cost", "real_total")
        else:
            not_open(self.state, "Step.cost")
        return self

    @cython.critical_section
    def finish_reason(self, reason):
        """Set why the model stopped.

        Args:
            reason: a text, as the provider writes it. None takes it back, as a provider's object may hold
                one.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: it is neither str nor None.
        """
        if self.state != OPEN:
            not_open(self.state, "Step.finish_reason")
        elif reason is None:
            drop(&self.draft, STEP_FINISH_REASON)
        else:
            set_text(&self.draft, STEP_FINISH_REASON, reason, "Step.finish_reason", "reason")
        return self

    @cython.critical_section
    def tool_definitions(self, definitions):
        """Set the tools that the model could call.

        Args:
            definitions: a text, or a list or dict of the provider's definitions, of which the JSON is kept as
                it is now.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
            ArgumentTypeError: it is no str, list or dict, or holds what JSON has no form for.
            ArgumentError: it is too deep, holds itself, or holds NaN or an infinite number.
        """
        if self.state == OPEN:
            set_body(&self.draft, STEP_TOOL_DEFINITIONS, definitions, "Step.tool_definitions", "definitions")
        else:
            not_open(self.state, "Step.tool_definitions")
        return self

    @cython.critical_section
    def first_token(self):
        """Mark the arrival of the first streamed token, now; only the first call counts.

        Returns:
            The step itself.

        Raises:
            EndedError: the step has ended.
        """
        if self.state != OPEN:
            not_open(self.state, "Step.first_token")
        elif not self.draft.record.first_token_ns:
            self.draft.record.first_token_ns = monotonic_ns()
        return self

    @cython.critical_section
    def tool_call(self, tool_name=None, tool_call_id=None, *, start_time=None) -> ToolCall:
        """Begin a tool call of this step's run, which may have ended.

        Args:
            tool_name: text; may also be set by `ToolCall.name()`.
            tool_call_id: text; a UUID when None or "".
            start_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Returns:
            The tool call. It goes where the step goes, and into the same trace.

        Raises:
            ArgumentTypeError, ArgumentError: an argument has a wrong type, or `start_time` cannot be read.
        """
        return tool_call_of(self, tool_name, tool_call_id, start_time, "Step.tool_call")

    @cython.critical_section
    def end(self, end_time=None):
        """End the step and hand it over.

        Args:
            end_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Raises:
            MissingFieldError: prompt or response was not set; the step stays open.
            EndedError: the step has ended.
            ArgumentTypeError, ArgumentError: `end_time` cannot be read or lies before the start; the step
                stays open.
        """
        cdef uint32_t present = self.draft.present
        if self.state != OPEN:
            not_open(self.state, "Step.end")
        elif not present & 1 << STEP_PROMPT:
            missing("Step.end", "prompt")
        elif not present & 1 << STEP_RESPONSE:
            missing("Step.end", "response")
        else:
            stamp(&self.draft, end_time, "Step.end")
            finish(self, "Step.end")


@cython.final
cdef class ToolCall(_Handle):
    """One call of a tool, made by `picostep.tool_call()`, `Run.tool_call()` or `Step.tool_call()`.

    Also a context manager. Thread-safety: methods may be called from any thread; each call is atomic.
    """

    @property
    @cython.critical_section
    def tool_call_id(self) -> str:
        """The tool call's id: the text given, or a UUID."""
        return id_text(&self.draft, OWN_ID, OWN_UUID, self.draft.record.own_uuid)

    @cython.critical_section
    def name(self, tool_name):
        """Set the tool's name.

        Args:
            tool_name: a text.

        Returns:
            The tool call itself.

        Raises:
            EndedError: the tool call has ended.
            ArgumentTypeError: it is no str.
        """
        if self.state == OPEN:
            set_text(&self.draft, TOOL_CALL_TOOL_NAME, tool_name, "ToolCall.name", "tool_name")
        else:
            not_open(self.state, "ToolCall.name")
        return self

    @cython.critical_section
    def args(self, value):
        """Set the arguments.

        Args:
            value: a text as it is; anything else as the text of its JSON, as it is now.

        Returns:
            The tool call itself.

        Raises:
            EndedError: the tool call has ended.
            ArgumentTypeError: it has no JSON form.
            ArgumentError: it is too deep, or holds itself.
        """
        if self.state == OPEN:
            set_tool_value(&self.draft, TOOL_CALL_ARGS, value, "ToolCall.args", "value")
        else:
            not_open(self.state, "ToolCall.args")
        return self

    @cython.critical_section
    def result(self, value):
        """Set the result.

        Args:
            value: a text as it is; anything else as the text of its JSON, as it is now.

        Returns:
            The tool call itself.

        Raises:
            EndedError: the tool call has ended.
            ArgumentTypeError: it has no JSON form.
            ArgumentError: it is too deep, or holds itself.
        """
        if self.state == OPEN:
            set_tool_value(&self.draft, TOOL_CALL_RESULT, value, "ToolCall.result", "value")
        else:
            not_open(self.state, "ToolCall.result")
        return self

    @cython.critical_section
    def end(self, end_time=None):
        """End the tool call and hand it over.

        Args:
            end_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.

        Raises:
            MissingFieldError: no name was set; the tool call stays open.
            EndedError: the tool call has ended.
            ArgumentTypeError, ArgumentError: `end_time` cannot be read or lies before the start; the tool
                call stays open.
        """
        if self.state != OPEN:
            not_open(self.state, "ToolCall.end")
        elif not self.draft.present & 1 << TOOL_CALL_TOOL_NAME:
            missing("ToolCall.end", "name")
        else:
            stamp(&self.draft, end_time, "ToolCall.end")
            finish(self, "ToolCall.end")


# ---- factories ---------------------------------------------------------------------------------------------

def run(run_id=None, session_id=None, conversational=None, api_key=None, tcc_url=None, *,
        start_time=None, traceparent=None) -> Run:
    """Begin a run.

    Args:
        run_id: text; a UUID when None or "".
        session_id: text that groups runs.
        conversational: whether the run is part of a conversation.
        api_key: sends this run, its steps, tool calls and feedback with another key than the settings'.
        tcc_url: sends this run, its steps and tool calls to another endpoint than the settings'.
        start_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.
        traceparent: the caller's span, as the header of W3C Trace Context has it: sink `otlp` shows this run
            below that, in its trace, and the steps and tool calls made from the run with it. See
            `current_traceparent()`. A text that is not valid is ignored, and the first one logged.

    Returns:
        The run; also a context manager.

    Raises:
        ConfigError: at first use, a setting is not valid.
        ArgumentTypeError, ArgumentError: an argument has a wrong type, or `start_time` cannot be read.
    """
    cdef int destination = destination_of(api_key, tcc_url, "run")
    cdef Run made = Run.__new__(Run)
    cdef Draft *draft = &made.draft
    made.destination = destination
    made.state = OPEN
    set_run_id(draft, run_id, False, "run")
    set_optional(draft, RUN_SESSION_ID, session_id, "run", "session_id")
    set_conversational(draft, conversational, "run")
    set_traceparent(draft, traceparent, "run")
    begin(draft, KIND_RUN, start_time, "run")
    made.forks = <uint32_t>host.forks
    note_run(made)
    return made


cdef int set_conversational(Draft *draft, object value, str where) except -1:
    if value is None:
        return 1
    if not isinstance(value, bool):
        return wrong_type(where, "conversational", "bool", value)
    draft.record.flags |= CONVERSATIONAL
    if value:
        draft.record.flags |= IS_CONVERSATIONAL
    return 1


def step(run_id, step_id=None, api_key=None, tcc_url=None, *, start_time=None, traceparent=None) -> Step:
    """Begin a step of the run with this id.

    Args:
        run_id: text, not empty.
        step_id: text; a UUID when None or "".
        api_key: sends this step with another key than the settings'.
        tcc_url: sends this step to another endpoint than the settings'.
        start_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.
        traceparent: what the run was given, so that both are in one trace.

    Returns:
        The step; also a context manager.

    Raises:
        ConfigError: at first use, a setting is not valid.
        ArgumentTypeError, ArgumentError: an argument is not what it should be.
    """
    cdef int destination = destination_of(api_key, tcc_url, "step")
    cdef Step made = new_step(destination)
    set_run_id(&made.draft, run_id, True, "step")
    set_own_id(&made.draft, step_id, "step", "step_id")
    set_traceparent(&made.draft, traceparent, "step")
    begin(&made.draft, KIND_STEP, start_time, "step")
    return made


def tool_call(run_id, tool_call_id=None, tool_name=None, api_key=None, tcc_url=None, *,
              start_time=None, traceparent=None) -> ToolCall:
    """Begin a tool call of the run with this id.

    Args:
        run_id: text, not empty.
        tool_call_id: text; a UUID when None or "".
        tool_name: text; may also be set by `ToolCall.name()`.
        api_key: sends this tool call with another key than the settings'.
        tcc_url: sends this tool call to another endpoint than the settings'.
        start_time: aware datetime or ISO 8601 text with an offset, for replayed logs; now when None.
        traceparent: what the run was given, so that both are in one trace.

    Returns:
        The tool call; also a context manager.

    Raises:
        ConfigError: at first use, a setting is not valid.
        ArgumentTypeError, ArgumentError: an argument is not what it should be.
    """
    cdef int destination = destination_of(api_key, tcc_url, "tool_call")
    cdef ToolCall made = new_tool_call(destination)
    set_run_id(&made.draft, run_id, True, "tool_call")
    set_own_id(&made.draft, tool_call_id, "tool_call", "tool_call_id")
    set_optional(&made.draft, TOOL_CALL_TOOL_NAME, tool_name, "tool_call", "tool_name")
    set_traceparent(&made.draft, traceparent, "tool_call")
    begin(&made.draft, KIND_TOOL_CALL, start_time, "tool_call")
    return made


# ---- one call for everything at hand -----------------------------------------------------------------------

cdef int conclude(Draft *draft, object status_code, object status_message, object end_time, int destination,
                  str where) except -1:
    set_status(draft, status_code, status_message, where)
    stamp(draft, end_time, where)
    hand_over(draft, destination)
    return 0


def send_step(run_id, *, prompt, response, step_id=None, model_requested=None, model_used=None,
              prompt_uncached=None, prompt_cached=None, completion=None, cost=None, finish_reason=None,
              tool_definitions=None, status_code=0, status_message=None, start_time=None, end_time=None,
              api_key=None, tcc_url=None, provider=None, service_tier=None, cache_write=None,
              cache_write_1h=None, reasoning=None, traceparent=None) -> str:
    """Record a whole step in one call: the fastest way.

    Args:
        run_id, step_id, start_time, api_key, tcc_url, traceparent: as in `step()`.
        prompt, response, tool_definitions: as in the methods of `Step` with these names.
        model_requested, model_used, provider, service_tier: as in `Step.model()`.
        prompt_uncached, prompt_cached, completion, cache_write, cache_write_1h, reasoning: as in
            `Step.tokens()`.
        cost: US dollars, as in `Step.cost()`; None is not given.
        finish_reason: as in `Step.finish_reason()`.
        status_code, status_message: as in `Step.status()`.
        end_time: as in `Step.end()`.

    Returns:
        The step's id.

    Raises:
        ConfigError, ArgumentTypeError, ArgumentError: as the calls it stands for; nothing is recorded then.
    """
    cdef int destination = destination_of(api_key, tcc_url, "send_step")
    cdef Draft draft
    memset(&draft, 0, sizeof(draft))
    try:
        begin(&draft, KIND_STEP, start_time, "send_step")
        set_run_id(&draft, run_id, True, "send_step")
        set_own_id(&draft, step_id, "send_step", "step_id")
        set_body(&draft, STEP_PROMPT, prompt, "send_step", "prompt")
        set_body(&draft, STEP_RESPONSE, response, "send_step", "response")
        set_optional(&draft, STEP_MODEL_REQUESTED, model_requested, "send_step", "model_requested")
        set_optional(&draft, STEP_MODEL_USED, model_used, "send_step", "model_used")
        set_optional(&draft, STEP_PROVIDER, provider, "send_step", "provider")
        set_optional(&draft, STEP_SERVICE_TIER, service_tier, "send_step", "service_tier")
        set_tokens(&draft, prompt_uncached, prompt_cached, completion, cache_write, cache_write_1h, reasoning,
                   "send_step")
        if cost is not None:
            set_cost(&draft, cost, "send_step", "cost")
        set_optional(&draft, STEP_FINISH_REASON, finish_reason, "send_step", "finish_reason")
        if tool_definitions is not None:
            set_body(&draft, STEP_TOOL_DEFINITIONS, tool_definitions, "send_step", "tool_definitions")
        set_traceparent(&draft, traceparent, "send_step")
        conclude(&draft, status_code, status_message, end_time, destination, "send_step")
        return id_text(&draft, OWN_ID, OWN_UUID, draft.record.own_uuid)
    finally:
        drop_all(&draft, 0)


def send_tool_call(run_id, *, name, tool_call_id=None, args=None, result=None, status_code=0,
                   status_message=None, start_time=None, end_time=None, api_key=None, tcc_url=None,
                   traceparent=None) -> str:
    """Record a whole tool call in one call.

    Args:
        run_id, tool_call_id, start_time, api_key, tcc_url, traceparent: as in `tool_call()`.
        name, args, result: as in the methods of `ToolCall`; for args and result None is not given.
        status_code, status_message: as in `ToolCall.status()`.
        end_time: as in `ToolCall.end()`.

    Returns:
        The tool call's id.

    Raises:
        ConfigError, ArgumentTypeError, ArgumentError: as the calls it stands for; nothing is recorded then.
    """
    cdef int destination = destination_of(api_key, tcc_url, "send_tool_call")
    cdef Draft draft
    memset(&draft, 0, sizeof(draft))
    try:
        begin(&draft, KIND_TOOL_CALL, start_time, "send_tool_call")
        set_run_id(&draft, run_id, True, "send_tool_call")
        set_own_id(&draft, tool_call_id, "send_tool_call", "tool_call_id")
        set_text(&draft, TOOL_CALL_TOOL_NAME, name, "send_tool_call", "name")
        if args is not None:
            set_tool_value(&draft, TOOL_CALL_ARGS, args, "send_tool_call", "args")
        if result is not None:
            set_tool_value(&draft, TOOL_CALL_RESULT, result, "send_tool_call", "result")
        set_traceparent(&draft, traceparent, "send_tool_call")
        conclude(&draft, status_code, status_message, end_time, destination, "send_tool_call")
        return id_text(&draft, OWN_ID, OWN_UUID, draft.record.own_uuid)
    finally:
        drop_all(&draft, 0)


def send_run(*, prompt, response=None, steps=(), tool_calls=(), run_id=None, session_id=None,
             conversational=None, system_prompt=None, full_input=None, full_output=None, metadata=None,
             status_code=0, status_message=None, start_time=None, end_time=None, api_key=None,
             tcc_url=None, traceparent=None) -> str:
    """Record a whole run in one call, with its steps and tool calls.

    Args:
        steps: mappings of the keywords of `send_step()`, without `run_id` and those that the run has for all
            of them: `api_key`, `tcc_url` and `traceparent`.
        tool_calls: mappings of the keywords of `send_tool_call()`, likewise.
        run_id, session_id, conversational, start_time, api_key, tcc_url, traceparent: as in `run()`.
        prompt, system_prompt, full_input: as in `Run.prompt()`.
        response, full_output: as in `Run.response()`.
        metadata: as in `Run.metadata()`.
        status_code, status_message: as in `Run.status()`.
        end_time: as in `Run.end()`.

    Returns:
        The run's id.

    Raises:
        ConfigError, ArgumentTypeError, ArgumentError: as the calls it stands for. The steps before a wrong
            one are recorded; the run is not.
    """
    cdef int destination = destination_of(api_key, tcc_url, "send_run")
    cdef Draft draft
    memset(&draft, 0, sizeof(draft))
    try:
        begin(&draft, KIND_RUN, start_time, "send_run")
        set_run_id(&draft, run_id, False, "send_run")
        set_optional(&draft, RUN_SESSION_ID, session_id, "send_run", "session_id")
        set_conversational(&draft, conversational, "send_run")
        set_body(&draft, RUN_USER_PROMPT, prompt, "send_run", "prompt")
        if system_prompt is not None:
            set_body(&draft, RUN_SYSTEM_PROMPT, system_prompt, "send_run", "system_prompt")
        if full_input is not None:
            set_body(&draft, RUN_FULL_INPUT, full_input, "send_run", "full_input")
        if response is not None:
            set_body(&draft, RUN_RESPONSE, response, "send_run", "response")
        if full_output is not None:
            set_body(&draft, RUN_FULL_OUTPUT, full_output, "send_run", "full_output")
        if metadata is not None:
            set_metadata(&draft, metadata, {}, "send_run")
        set_traceparent(&draft, traceparent, "send_run")
        made_id = id_text(&draft, RUN_ID, RUN_UUID, draft.record.run_uuid)
        parsed = <object>draft.text[TRACEPARENT] if draft.text[TRACEPARENT] != NULL else None
        shared = {"api_key": api_key, "tcc_url": tcc_url, "traceparent": parsed}
        send_all(send_step, made_id, steps, "steps", shared)
        send_all(send_tool_call, made_id, tool_calls, "tool_calls", shared)
        conclude(&draft, status_code, status_message, end_time, destination, "send_run")
        return made_id
    finally:
        drop_all(&draft, 0)


cdef int send_all(object send, str run_id, object many, str argument, dict shared) except -1:
    try:
        for one in many:
            send(run_id, **one, **shared)
    except ArgumentTypeError:
        raise
    except TypeError as error:  # not a mapping, or not the keywords that are asked for
        fail(ArgumentTypeError, f"send_run(): {argument}: {error}")
    return 0


def submit_feedback(run_id, score=None, text=None, api_key=None, tcc_url=None) -> bool:
    """Record the user's feedback on a run.

    Args:
        run_id: text.
        score: `"thumbs_up"` or `"thumbs_down"`.
        text: at most 2,000 characters. One of score and text is needed.
        api_key: as in `run()`.
        tcc_url: another endpoint for this feedback.

    Returns:
        Whether it was recorded. It is delivered later, like everything else.

    Raises:
        ConfigError: at first use, a setting is not valid.
        ArgumentTypeError, ArgumentError: an argument is not what it should be.
    """
    cdef int destination
    if not isinstance(tcc_url, str) or not tcc_url:
        optional_text(tcc_url, "submit_feedback", "tcc_url")
        destination = destination_of(api_key, None, "submit_feedback")
    else:
        if api_key is not None and not isinstance(api_key, str):
            fail(ArgumentTypeError, f"submit_feedback(): api_key must be str, not {type(api_key).__name__}")
            api_key = None
        destination = runtime.destination_index(api_key or None, None, tcc_url)
    return record_feedback(run_id, score, text, destination, "submit_feedback")


cdef bint record_feedback(object run_id, object score, object text, int destination, str where) except -1:
    cdef Draft draft
    memset(&draft, 0, sizeof(draft))
    try:
        begin(&draft, KIND_FEEDBACK, None, where)
        if not score and not text:
            return fail(ArgumentError, f"{where}(): score or text is needed")
        if score:
            if not isinstance(score, str):
                return wrong_type(where, "score", "str", score)
            if score != "thumbs_up" and score != "thumbs_down":
                # What was given may be the text of the feedback.
                return fail(
                    ArgumentError,
                    f"{where}(): score must be 'thumbs_up' or 'thumbs_down', not another text")
            set_text(&draft, FEEDBACK_SCORE, score, where, "score")
        if text:
            if not set_text(&draft, FEEDBACK_TEXT, text, where, "text"):
                return False
            if len(text) > MAX_FEEDBACK:
                limit = MAX_FEEDBACK
                return fail(ArgumentError, f"{where}(): text has {len(text)} characters; the most is {limit}")
        if not set_text(&draft, RUN_ID, run_id, where, "run_id"):
            return False
        new_id(draft.record.own_uuid)
        draft.record.flags |= OWN_UUID
        stamp(&draft, None, where)
        return hand_over(&draft, destination) or disabled
    finally:
        drop_all(&draft, 0)
