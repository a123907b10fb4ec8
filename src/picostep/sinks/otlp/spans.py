"""
Records as spans, by OpenTelemetry's GenAI conventions (1.41) and, beside them, OpenInference's.

docs/reference/otlp.md has the mapping; `json` and `protobuf` bring spans into the forms that are sent.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from hashlib import blake2b
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from picostep.payload import merged_metadata, total_cost, well_formed
from picostep.record import spans_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from picostep.record import Record

__all__ = ["Span", "Value", "repaired", "span"]

Value = str | bool | int | float | list[str]

INTERNAL, CLIENT = 1, 3  # SpanKind
UNSET, OK, ERROR = 0, 1, 2  # StatusCode
_STATUS = {0: OK, 2: ERROR}

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NIL = "0" * 32
_INT64 = range(-(2**63), 2**63)
_MOST_NS = 2**63 - 1  # OTLP has twice that; who keeps times in 64 bits with a sign answers 500 to it
_LEVELS = 200  # of JSON that is rewritten; orjson, in receivers too, can write 254
_NUL = "\\u0000"  # in JSON
_REPEATED = 400_000  # characters of a text that goes out by each of its names; a longer one by the first only
_SHORT = 1_000  # the same where the whole was too large for the receiver


class Span(NamedTuple):
    """
    A span, whatever form it is sent in.

    Attributes:
        trace_id, span_id, parent_id: Hex digits, 32 and 16; parent_id is "" for a root.

        start_ns, end_ns: Unix time.

        flags: Those of W3C Trace Context.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Value]
    status: int
    message: str
    flags: int


def span(record: Record, content: bool = True, *, repeat: bool = True) -> Span:
    """
    Return the span of a run, step or tool call.

    The ids follow from those of the record and, where it has a `traceparent`, from that: whoever gets it
    twice can tell, and children need not know when their run is sent.

    Args:
        content: Whether texts, metadata and the session's id are among the attributes.

        repeat: Whether texts of some length go out by each of their names; else by the first only.

    Raises:
        Exception: Of any type, for a damaged record.
    """
    kind, run_id = record["kind"], record["run_id"]
    name, own_id, attributes = _BUILDERS[kind](record, content, _REPEATED if repeat else _SHORT)
    status = _STATUS.get(record["status_code"], UNSET)
    if status == ERROR:
        attributes["error.type"] = "_OTHER"  # what the conventions have where no class of errors is known
    elif status == UNSET:
        attributes["picostep.status_code"] = record["status_code"]
    for mark in ("shed", "shortened", "withheld"):
        if mark in record:
            attributes[f"picostep.{mark}"] = True
    message = record.get("status_message", "")
    has_nul = "\0" in message  # PostgreSQL refuses it: receivers that use it lose the span, or refuse it
    for value in attributes.values():
        if not isinstance(value, str):
            _check(value)
        elif "\0" in value:  # the name and the list have nothing that is not here, too
            has_nul = True
    trace_id, caller, flags = _context(record)
    of_run = _span_id("run", run_id)
    made = Span(
        trace_id,
        of_run if kind == "run" else _span_id(kind, run_id, own_id),
        caller if kind == "run" else of_run,
        name,
        CLIENT if kind == "step" else INTERNAL,
        min(max(record["start_ns"], 0), _MOST_NS),
        min(max(record["end_ns"], 0), _MOST_NS),
        attributes,
        status,
        message,
        flags,
    )
    return repaired(made) if has_nul else made


def repaired(made: Span) -> Span:
    """Return the span with U+FFFD for each lone surrogate and each NUL."""
    return made._replace(
        name=_storable(made.name),
        message=_storable(made.message),
        attributes={key: _repaired(value) for key, value in made.attributes.items()},
    )


def _repaired(value: Value) -> Value:
    if isinstance(value, str):
        return _storable(value)
    return [_storable(item) for item in value] if isinstance(value, list) else value


def _storable(text: str) -> str:
    return well_formed(text).replace("\0", "\ufffd")


def _check(value: Value) -> None:
    """Refuse numbers that OTLP cannot hold; a damaged ring may have any."""
    if isinstance(value, float) and not isfinite(value):
        raise ValueError("not finite")
    if isinstance(value, int) and value not in _INT64:
        raise OverflowError("beyond 64 bits")


# --- ids --------------------------------------------------------------------------------------------------


def _context(record: Record) -> tuple[str, str, int]:
    """Return the trace's id, the caller's span in it ("" for none), and the flags."""
    if "traceparent" not in record:
        return _trace_id(record["run_id"]), "", 0
    _, trace_id, caller, flags = record["traceparent"].split("-")
    return trace_id, caller, int(flags, 16)


def _trace_id(run_id: str) -> str:
    if _UUID.fullmatch(run_id):
        digits = run_id.replace("-", "")
        if digits != _NIL:  # not valid as the id of a trace
            return digits
    return _digest(16, "trace", run_id)


def _span_id(*parts: str) -> str:
    return _digest(8, *parts)


def _digest(size: int, *parts: str) -> str:
    text = "\0".join((*parts, *(str(len(part)) for part in parts)))
    return blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=size, person=b"picostep span"
    ).hexdigest()


# --- kinds of records ---------------------------------------------------------------------------------------


def _run(record: Record, content: bool, repeated: int) -> tuple[str, str, dict[str, Value]]:
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "invoke_agent",
        "openinference.span.kind": "AGENT",
        "picostep.run_id": record["run_id"],
    }
    if "conversational" in record:
        attributes["picostep.conversational"] = record["conversational"]
    metadata = {"run_id": record["run_id"]}
    if content:
        _copy(record, attributes, _RUN_TEXTS, repeated)
        if "metadata" in record:
            metadata |= merged_metadata(record)
        if "system_prompt" in record:
            attributes["gen_ai.system_instructions"] = _dumps([_text_part(record["system_prompt"])])
        _messages_of(record, attributes, "user_prompt", "user", "input", repeated)
        _messages_of(record, attributes, "response", "assistant", "output", repeated)
    attributes["metadata"] = _metadata(metadata)
    return "invoke_agent", "", attributes


def _step(record: Record, content: bool, repeated: int) -> tuple[str, str, dict[str, Value]]:
    step_id = record["step_id"]
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "chat",
        "openinference.span.kind": "LLM",
        "picostep.run_id": record["run_id"],
        "picostep.step_id": step_id,
        "metadata": _dumps({"run_id": record["run_id"], "step_id": step_id}),
    }
    _copy(record, attributes, _STEP_NAMES, repeated)
    requested = record.get("model_requested")
    model = record.get("model_used", requested)
    if model is not None:
        attributes["llm.model_name"] = model
    if "finish_reason" in record:
        attributes["gen_ai.response.finish_reasons"] = [record["finish_reason"]]
    if "first_token_ns" in record:
        attributes["gen_ai.response.time_to_first_chunk"] = (
            record["first_token_ns"] - record["start_ns"]
        ) / 1e9
    _count(record, attributes)
    _price(record, attributes)
    if content:
        _texts_of_step(record, attributes, repeated)
    name = requested if requested is not None else model
    return f"chat {name}" if name else "chat", step_id, attributes


def _tool_call(record: Record, content: bool, repeated: int) -> tuple[str, str, dict[str, Value]]:
    call_id, name = record["tool_call_id"], record.get("tool_name") or "unknown"
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        "gen_ai.tool.call.id": call_id,
        "openinference.span.kind": "TOOL",
        "tool.name": name,
        "picostep.run_id": record["run_id"],
        "picostep.tool_call_id": call_id,
        "metadata": _dumps({"run_id": record["run_id"], "tool_call_id": call_id}),
    }
    if content:
        _copy(record, attributes, _TOOL_CALL_TEXTS, repeated)
        if "args" in record:
            attributes["gen_ai.tool.call.arguments"] = _parsable(record["args"])
    return f"execute_tool {name}", call_id, attributes


_BUILDERS = {"run": _run, "step": _step, "tool_call": _tool_call}

# Field of a record, and the attributes that it becomes as it is.
_RUN_TEXTS = spans_of("run")
_STEP_NAMES = spans_of("step")
_TOOL_CALL_TEXTS = spans_of("tool_call")
_PROMPT_TOKENS = ("prompt_uncached_tokens", "prompt_cached_tokens", "cache_write_tokens")


def _copy(
    record: Mapping[str, Any],
    attributes: dict[str, Value],
    names: Mapping[str, tuple[str, ...]],
    repeated: int,
) -> None:
    for field, keys in names.items():
        if field in record:
            value = record[field]
            for key in keys[:1] if isinstance(value, str) and len(value) > repeated else keys:
                attributes[key] = value


def _count(record: Mapping[str, Any], attributes: dict[str, Value]) -> None:
    """Add the whole prompt: their count contains what was read from and put in a cache, ours are disjoint."""
    counts = [record[field] for field in _PROMPT_TOKENS if field in record]
    if counts:
        attributes["gen_ai.usage.input_tokens"] = attributes["llm.token_count.prompt"] = sum(counts)


def _price(record: Record, attributes: dict[str, Value]) -> None:
    cost = total_cost(record) if "cost_pico" in record else record.get("real_total_cost")
    if cost is not None:
        attributes["picostep.cost_usd"] = str(cost)  # exact, where a double is not
        attributes["llm.cost.total"] = float(cost)
        attributes["mlflow.llm.cost"] = _dumps({"total_cost": float(cost)})


# --- texts of a step ----------------------------------------------------------------------------------------


def _texts_of_step(record: Record, attributes: dict[str, Value], repeated: int) -> None:
    for field, role, side in (("prompt", "user", "input"), ("response", "assistant", "output")):
        for number, message in enumerate(_messages_of(record, attributes, field, role, side, repeated)):
            key = f"llm.{side}_messages.{number}.message"
            attributes[f"{key}.role"] = message["role"]
            text = "".join(part["content"] for part in message["parts"] if part["type"] == "text")
            if text:
                attributes[f"{key}.content"] = text
    definitions = record.get("tool_definitions")
    if definitions is not None:
        escaped = "\\u" in definitions  # only lone surrogates do harm here
        attributes["gen_ai.tool.definitions"] = _parsable(definitions) if escaped else definitions
        tools = _parsed(definitions) if len(definitions) <= repeated else None
        for number, tool in enumerate(tools if isinstance(tools, list) else ()):
            with suppress(RecursionError):
                attributes[f"llm.tools.{number}.tool.json_schema"] = _dumps(tool)


def _messages_of(
    record: Mapping[str, Any], attributes: dict[str, Value], field: str, role: str, side: str, repeated: int
) -> list[dict[str, Any]]:
    """Add the messages in a field, and return those that are to be repeated by OpenInference's names."""
    text = record.get(field)
    if text is None:
        return []
    # The conventions demand a reason of every output; receivers that check do not show messages without.
    more = {"finish_reason": record.get("finish_reason", "")} if side == "output" else {}
    messages, attributes[f"gen_ai.{side}.messages"] = _messages(text, role, more)
    if len(text) > repeated:
        return []
    attributes[f"{side}.value"] = text
    return messages


def _messages(text: str, role: str, more: Mapping[str, str]) -> tuple[list[dict[str, Any]], str]:
    """
    Return messages in the form of the conventions (`role` and `parts`), and the JSON of them.

    Args:
        text: The messages of a provider as JSON (one, or a list of them), or just a text.

        role: Whose the text is.

        more: Goes into each message.
    """
    found = _parsed(text)
    listed = [found] if isinstance(found, dict) else found
    if isinstance(listed, list) and listed and all(_is_message(each) for each in listed):
        messages = [{"role": each["role"], "parts": _parts(each), **more} for each in listed]
        with suppress(RecursionError):  # too deep to be taken apart: a text like any other
            return messages, _dumps(messages)
    messages = [{"role": role, "parts": [_text_part(text)], **more}]
    return messages, _dumps(messages)


def _parsed(text: str) -> Any:
    """Return the object or list that a text is the JSON of; None if it is none."""
    if text[:1] not in ("[", "{"):
        return None
    try:
        return orjson.loads(well_formed(text))
    except ValueError:
        pass
    try:
        return json.loads(text) if "\\u" in text else None  # has escapes of lone surrogates, perhaps
    except (ValueError, RecursionError):
        return None


def _parsable(text: str) -> str:
    """
    Return a text that may be parsed as JSON, and what is found be stored.

    Receivers parse the arguments and definitions of tools, and lose the span if they then find an integer,
    a character or a depth that they cannot store.
    """
    try:
        value = json.loads(text)  # exact, unlike orjson; what is no JSON is found to be none at once
        with suppress(TypeError):
            if _NUL.encode() not in orjson.dumps([[value]]):  # as deep as a receiver puts it
                return text
        return _dumps([[value]])[2:-2]
    except ValueError:
        return text
    except RecursionError:
        return _dumps(text)


def _metadata(fields: dict[str, Any]) -> str:
    """Return metadata as JSON; of values that are too deep for some reader, the text."""
    try:
        return _dumps([[fields]])[2:-2]  # as deep as a receiver puts it
    except RecursionError:
        nested = {key: value for key, value in fields.items() if isinstance(value, dict | list)}
        return _dumps({**fields, **{key: json.dumps(value) for key, value in nested.items()}})


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str)


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a message of OpenAI's, Anthropic's or Gemini's form says; the unknown stays as it is."""
    if "tool_call_id" in message:
        return [_answer_part(message["tool_call_id"], message.get("content"))]
    parts = []
    for key in ("content", "parts", "tool_calls"):
        found = message.get(key)
        parts += [
            _part(block) for block in (found if isinstance(found, list) else [found]) if block is not None
        ]
    return parts


def _part(block: Any) -> dict[str, Any]:
    if isinstance(block, str):
        return _text_part(block)
    if not isinstance(block, dict):
        return {"type": "unknown", "content": block}
    kind = block.get("type")
    if kind in (None, "text", "input_text", "output_text"):
        text = block.get("text", block.get("content"))
        return _text_part(text) if isinstance(text, str) else {"type": "unknown", "content": block}
    if kind == "function" and isinstance(block.get("function"), dict):
        function = block["function"]
        return _call_part(block.get("id"), function.get("name"), function.get("arguments"))
    if kind == "tool_use":
        return _call_part(block.get("id"), block.get("name"), block.get("input"))
    if kind == "tool_result":
        return _answer_part(block.get("tool_use_id"), block.get("content"))
    return block


def _call_part(call_id: Any, name: Any, arguments: Any) -> dict[str, Any]:
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": arguments}


def _answer_part(call_id: Any, response: Any) -> dict[str, Any]:
    return {"type": "tool_call_response", "id": call_id, "response": response}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "content": text}


def _dumps(value: Any) -> str:
    """
    Return a value as JSON that any receiver can read and store what it has read.

    Other JSON of records (`payload`, `segment`) keeps lone surrogates and long integers as they are; here
    they are replaced, as some receivers drop a span that has them.

    Raises:
        RecursionError: It has too many levels.
    """
    try:
        made = orjson.dumps(value, option=orjson.OPT_STRICT_INTEGER).decode()
    except TypeError:  # lone surrogates, an integer beyond 53 bits, more than 254 levels
        made = _NUL
    if _NUL not in made:
        return made
    return json.dumps(_plain(value, _LEVELS), ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any, levels: int) -> Any:
    if isinstance(value, str):
        return _storable(value)
    if isinstance(value, dict | list) and not levels:
        raise RecursionError
    if isinstance(value, dict):
        return {_storable(key): _plain(item, levels - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, levels - 1) for item in value]
    if isinstance(value, int) and value not in _INT64:
        return str(value)  # all its digits
    return None if isinstance(value, float) and not isfinite(value) else value
