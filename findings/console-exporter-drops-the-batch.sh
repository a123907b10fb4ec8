#!/bin/bash
# A span that OTLP takes makes OpenTelemetry's console exporter drop the spans behind it.
#
# Expected: what may be set as an attribute can be printed; an odd value costs that attribute at most.
# What happens: OpenTelemetry for Python now takes bytes, None, nested mappings and lists of mixed types as
# attributes, and encodes them for OTLP. Its own ConsoleSpanExporter and `to_json()` cannot write bytes: of
# a batch of three spans, the first is printed, the second (an image of four bytes) and the third are lost,
# and one line of the log says that exporting failed. SpanLimits' length does not hold for bytes, either:
# text is cut at 10, bytes are not.
# Matters to: programs that print spans while they are built and send them later; images and audio in spans.
# Versions: opentelemetry-sdk 1.45.2, opentelemetry-exporter-otlp-proto-common 1.45.2. 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
install opentelemetry-sdk==1.45.2 opentelemetry-exporter-otlp-proto-common==1.45.2
python_with_limit <<'EOF'
import io
import json
import logging

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

logging.disable(logging.ERROR)  # the traceback of the failed export
printed, spans = io.StringIO(), InMemorySpanExporter()
provider = TracerProvider(span_limits=SpanLimits(max_attribute_length=10))
provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=printed)))
provider.add_span_processor(SimpleSpanProcessor(spans))
tracer = provider.get_tracer("finding")
values = {"first": {"nested": [1, "a", None]}, "second": b"\x89PNG", "third": "text"}
for name, value in values.items():
    with tracer.start_as_current_span(name) as span:
        span.set_attribute("value", value)
provider.force_flush()
shown = [name for name in values if f'"name": "{name}"' in printed.getvalue()]
encoded = encode_spans(spans.get_finished_spans()).resource_spans[0].scope_spans[0].spans
print("spans in the batch:", list(values))
print("encoded for OTLP:", [(span.name, span.attributes[0].value.WhichOneof("value")) for span in encoded])
print("printed by the console exporter:", shown)
assert [span.attributes[0].value.WhichOneof("value") for span in encoded] == [
    "kvlist_value", "bytes_value", "string_value"
]
assert shown == ["first"]
try:
    spans.get_finished_spans()[1].to_json()
except TypeError as error:
    print("to_json():", error)
else:
    raise AssertionError("to_json() writes bytes now")
with tracer.start_as_current_span("long") as span:
    span.set_attributes({"text": "x" * 50, "bytes": b"x" * 50, "nested": {"text": "x" * 50}})
kept = spans.get_finished_spans()[-1].attributes
lengths = {"text": len(kept["text"]), "bytes": len(kept["bytes"]), "nested text": len(kept["nested"]["text"])}
print("with max_attribute_length=10 a length of 50 becomes:", json.dumps(lengths))
assert lengths == {"text": 10, "bytes": 50, "nested text": 10}
EOF
