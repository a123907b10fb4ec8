"""Spans as protobuf; needs the extra `otlp`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from picostep.sinks.otlp.spans import repaired

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from picostep.sinks.otlp.spans import Span, Value

__all__ = ["encode_span", "rejected_spans", "request"]


def encode_span(made: Span) -> bytes:
    """Return a `ScopeSpans` with just this span, of which any number can be joined."""
    try:
        message = _span(made)
    except UnicodeEncodeError:  # lone surrogates
        message = _span(repaired(made))
    return bytes(trace_pb2.ScopeSpans(spans=[message]).SerializeToString())


def request(encoded: Iterable[bytes], resource: Mapping[str, Value], scope: tuple[str, str]) -> bytes:
    """Return the body of a request with spans from `encode_span()`; scope: name and version."""
    spans = trace_pb2.ScopeSpans(scope=InstrumentationScope(name=scope[0], version=scope[1]))
    for each in encoded:
        spans.MergeFromString(each)
    resource_spans = trace_pb2.ResourceSpans(
        resource=Resource(attributes=_attributes(resource)), scope_spans=[spans]
    )
    return bytes(ExportTraceServiceRequest(resource_spans=[resource_spans]).SerializeToString())


def rejected_spans(body: bytes) -> int:
    """Return how many spans an answer says were not taken; raises DecodeError if it is none."""
    return int(ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans)


def _span(made: Span) -> trace_pb2.Span:
    return trace_pb2.Span(
        trace_id=bytes.fromhex(made.trace_id),
        span_id=bytes.fromhex(made.span_id),
        parent_span_id=bytes.fromhex(made.parent_id),
        flags=made.flags,
        name=made.name,
        kind=trace_pb2.Span.SpanKind.ValueType(made.kind),
        start_time_unix_nano=made.start_ns,
        end_time_unix_nano=made.end_ns,
        attributes=_attributes(made.attributes),
        status=trace_pb2.Status(
            code=trace_pb2.Status.StatusCode.ValueType(made.status), message=made.message
        ),
    )


def _attributes(attributes: Mapping[str, Value]) -> list[KeyValue]:
    return [KeyValue(key=key, value=_value(value)) for key, value in attributes.items()]


def _value(value: Value) -> AnyValue:
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    return AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=item) for item in value]))
