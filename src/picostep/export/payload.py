"""
What goes over the network: the JSON of a record.

`wire()` and `encode()` give the form of The Context Company's ingest; `local()` and `encode_local()` give the
same and whatever else is known of the record, for files and streams of one's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any

import orjson

from picostep._ring import JSONText
from picostep.prices import Cost

__all__ = [
    "Record",
    "encode",
    "encode_each",
    "encode_local",
    "encode_priced",
    "local",
    "merged_metadata",
    "total_cost",
    "wire",
]

Record = dict[str, Any]
"""One decoded record of a ring, with only the keys that are set."""

_EPOCH = datetime(1970, 1, 1)

_STEP_FIELDS = (
    "prompt",
    "response",
    "model_requested",
    "model_used",
    "finish_reason",
    "status_message",
    "prompt_uncached_tokens",
    "prompt_cached_tokens",
    "completion_tokens",
    "real_total_cost",
    "tool_definitions",
)
_RUN_PROMPT_FIELDS = ("user_prompt", "system_prompt", "full_input")
_RUN_FIELDS = ("session_id", "conversational", "response", "full_output", "status_message")
_LOCAL_FIELDS = (
    "provider",
    "service_tier",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "reasoning_tokens",
    "cost_status",
    "price_table",
    "shed",
    "shortened",
    "withheld",
)


def wire(record: Record) -> dict[str, Any]:
    """
    Return the object that the ingest takes for a record: a step, run or tool call, or the body of a feedback.

    A key that is not set is absent. Values are those of the record, except that metadata is merged: a cost
    may be a `Decimal`, and a text a `JSONText`, which stands for the JSON value in it.
    """
    return _WIRE[record["kind"]](record)


def encode(record: Record) -> bytes:
    """
    Return the JSON of `wire(record)`.

    Numbers are exact. Lone surrogates, which UTF-8 cannot hold, become `\\udXXX` escapes.

    Raises:
        Exception: Of any type, for a damaged record.
    """
    return _dumps(wire(record))


def local(record: Record) -> dict[str, Any]:
    """
    Return everything known of a record: `wire(record)` and `first_token_time`, `provider`, `service_tier`,
    the counts that the ingest does not know, `total_cost` (USD, exact), `cost_status`, `price_table`, `shed`,
    `shortened`, `withheld`.

    A feedback has the form `type run_id feedback_id time score? text?`.
    """
    kind = record["kind"]
    fields = _local_feedback(record) if kind == "feedback" else _WIRE[kind](record)
    if "first_token_ns" in record:
        fields["first_token_time"] = _time(record["first_token_ns"])
    if "cost_pico" in record:
        fields["total_cost"] = total_cost(record)
    _copy(record, fields, _LOCAL_FIELDS)
    return fields


def total_cost(record: Record) -> int | float | Decimal | None:
    """Return what a step with `cost_pico` costs, in US dollars: as the user gave it, else computed."""
    given: int | float | Decimal | None = record.get("real_total_cost")
    return Cost(record["cost_pico"], record["cost_status"]).usd if given is None else given


def encode_priced(record: Record) -> bytes:
    """Return the JSON of `wire(record)` in which a step's `real_total_cost` may also be a computed one."""
    fields = wire(record)
    if "cost_pico" in record:
        fields["real_total_cost"] = total_cost(record)
    return _dumps(fields)


def encode_local(record: Record) -> bytes:
    """Return the JSON of `local(record)`, on one line, as `encode()` does it."""
    return _dumps(local(record))


def encode_each(
    records: Iterable[Record], encoder: Callable[[Record], bytes], unencodable: dict[int, str]
) -> dict[int, bytes]:
    """
    Encode records one by one, so that a bad one harms no other.

    Args:
        records: To be iterated once.

        encoder: `encode` or `encode_local`.

        unencodable: Gets the index of every record that could not be encoded, and the name of the exception.

    Returns:
        Index and JSON of the others, in order.
    """
    encoded = {}
    for index, record in enumerate(records):
        try:
            encoded[index] = encoder(record)
        except Exception as error:  # its text may quote the record
            unencodable[index] = type(error).__name__
    return encoded


def _step(record: Record) -> dict[str, Any]:
    fields = {
        "type": "step",
        "run_id": record["run_id"],
        "step_id": record["step_id"],
        "start_time": _time(record["start_ns"]),
        "end_time": _time(record["end_ns"]),
        "status_code": record["status_code"],
    }
    _copy(record, fields, _STEP_FIELDS)
    return fields


def _tool_call(record: Record) -> dict[str, Any]:
    fields = {
        "type": "tool_call",
        "run_id": record["run_id"],
        "tool_call_id": record["tool_call_id"],
        "tool_name": record.get("tool_name") or "unknown",
        "start_time": _time(record["start_ns"]),
        "end_time": _time(record["end_ns"]),
        "status_code": record["status_code"],
    }
    _copy(record, fields, ("status_message",))
    for key in ("args", "result"):
        if key in record:
            fields[key] = str(record[key])  # the ingest knows them as text, also where it is JSON
    return fields


def _run(record: Record) -> dict[str, Any]:
    fields = {
        "type": "run",
        "run_id": record["run_id"],
        "start_time": _time(record["start_ns"]),
        "end_time": _time(record["end_ns"]),
        "status_code": record["status_code"],
    }
    prompt: dict[str, Any] = {}
    _copy(record, prompt, _RUN_PROMPT_FIELDS)
    if prompt:
        fields["prompt"] = prompt
    _copy(record, fields, _RUN_FIELDS)
    if "metadata" in record:
        fields["metadata"] = merged_metadata(record)
    return fields


def _feedback(record: Record) -> dict[str, Any]:
    fields = {"runId": record["run_id"]}
    _copy(record, fields, ("score", "text"))
    return fields


_WIRE: dict[str, Callable[[Record], dict[str, Any]]] = {
    "step": _step,
    "run": _run,
    "tool_call": _tool_call,
    "feedback": _feedback,
}


def _local_feedback(record: Record) -> dict[str, Any]:
    fields = {
        "type": "feedback",
        "run_id": record["run_id"],
        "feedback_id": record["feedback_id"],
        "time": _time(record["end_ns"]),
    }
    _copy(record, fields, ("score", "text"))
    return fields


def _copy(record: Record, fields: dict[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        if key in record:
            fields[key] = record[key]


def merged_metadata(record: Record) -> dict[str, Any]:
    """
    Return the metadata of a run that has some: the JSON objects of its lines, later keys win.

    A line that was cut as the record was too large is left out.

    Raises:
        ValueError: A line is not JSON.
    """
    merged: dict[str, Any] = {}
    for line in record["metadata"].split("\n"):
        try:
            merged.update(
                json.loads(line)
            )  # not orjson: it rounds large integers and refuses lone surrogates
        except ValueError:
            if line and "shortened" not in record:
                raise
    return merged


def _time(ns: int) -> str:
    """Return a Unix time in ISO format, UTC, cut to milliseconds."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return f"{_second(seconds)}.{rest // 1_000_000:03d}Z"


@lru_cache(maxsize=256)
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()


def _dumps(fields: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(fields, default=_embedded, option=orjson.OPT_PASSTHROUGH_SUBCLASS)
    except TypeError:  # lone surrogates, or an integer beyond 64 bits
        return _ascii(fields).encode("ascii")


def _embedded(value: object) -> orjson.Fragment:
    """Return the JSON of a value that orjson does not know."""
    if isinstance(value, JSONText | Decimal):
        return orjson.Fragment(str(value))
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _ascii(value: Any) -> str:
    """Encode anything that `_dumps` may meet, slowly, with everything beyond ASCII escaped."""
    if isinstance(value, JSONText | Decimal):
        return str(value)
    if type(value) is dict:
        return "{" + ",".join(f"{json.dumps(key)}:{_ascii(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
