"""Spans as OTLP/JSON: ids in hex, 64-bit numbers as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from picostep.sinks.otlp.spans import repaired

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from picostep.sinks.otlp.spans import Span, Value

__all__ = ["encode_span", "rejected_spans", "request"]


def encode_span(made: Span) -> bytes:
    """Return a span by itself."""
    try:
        return orjson.dumps(_span(made))
    except TypeError:  # lone surrogates
        return orjson.dumps(_span(repaired(made)))


def request(encoded: Iterable[bytes], resource: Mapping[str, Value], scope: tuple[str, str]) -> bytes:
    """Return the body of a request with spans from `encode_span()`; scope: name and version."""
    return b'{"resourceSpans":[{"resource":%b,"scopeSpans":[{"scope":%b,"spans":[%b]}]}]}' % (
        orjson.dumps({"attributes": _attributes(resource)}),
        orjson.dumps({"name": scope[0], "version": scope[1]}),
        b",".join(encoded),
    )


def rejected_spans(body: bytes) -> int:
    """Return how many spans an answer says were not taken; raises an exception of any type if it is none."""
    return int(orjson.loads(body)["partialSuccess"]["rejectedSpans"])


def _span(made: Span) -> dict[str, Any]:
    parent = {"parentSpanId": made.parent_id} if made.parent_id else {}
    flags = {"flags": made.flags} if made.flags else {}
    return {
        "traceId": made.trace_id,
        "spanId": made.span_id,
        **parent,
        **flags,
        "name": made.name,
        "kind": made.kind,
        "startTimeUnixNano": str(made.start_ns),
        "endTimeUnixNano": str(made.end_ns),
        "attributes": _attributes(made.attributes),
        "status": {"code": made.status, "message": made.message} if made.message else {"code": made.status},
    }


def _attributes(attributes: Mapping[str, Value]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Value) -> dict[str, Any]:
    if isinstance(value, str):
        return {"stringValue": value}
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"arrayValue": {"values": [{"stringValue": item} for item in value]}}
