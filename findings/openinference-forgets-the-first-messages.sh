#!/bin/bash
# A span of a long conversation loses its beginning, not its end.
#
# Expected: where a span has more attributes than OpenTelemetry allows (128), what comes last is dropped, as
# OpenTelemetry's specification wants it; the log would at least say that something is missing.
# What happens: OpenTelemetry's SDK for Python drops the oldest attribute for each new one. OpenInference
# sets input and output first, then two attributes a message, then the model's answer. With a conversation
# of 80 messages the whole input and output, the provider, the parameters, the system prompt and the next 19
# messages are gone; the last messages are there. The span says how many are missing, not which.
# Matters to: whoever searches traces by provider, or judges answers by their system prompt. A larger
# OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT helps.
# Versions: opentelemetry-sdk 1.45.2, openinference-instrumentation-openai 0.1.66, openai 3.57.0.
# 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
unset OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT OTEL_ATTRIBUTE_COUNT_LIMIT
install opentelemetry-sdk==1.45.2 openinference-instrumentation-openai==0.1.66 openai==3.57.0
python_with_limit <<'EOF'
import logging

import openai
from model_server import chat, serve
from openinference.instrumentation.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

logging.disable(logging.WARNING)  # one line for each attribute that is dropped
spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
OpenAIInstrumentor().instrument(tracer_provider=provider)
url, _ = serve(lambda path, body, count: (200, chat("Good.")))
client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
kept = {}
for length in (10, 80):
    messages = [{"role": "system", "content": "Be brief."}]
    messages += [{"role": "user", "content": f"Line {i}"} for i in range(1, length)]
    client.chat.completions.create(model="gpt-4o", messages=messages)
    span = spans.get_finished_spans()[-1]
    kept[length] = span.attributes
    texts = [i for i in range(length) if f"llm.input_messages.{i}.message.content" in span.attributes]
    print(f"{length} messages: {len(span.attributes)} attributes kept, {span.dropped_attributes} dropped;",
          f"messages {texts[0]} to {texts[-1]} have a text")
early = ("llm.system", "input.value", "output.value", "llm.invocation_parameters",
         "llm.input_messages.0.message.content", "llm.input_messages.19.message.content")
for name in early:
    print(f"{name}: 10 messages {name in kept[10]}, 80 messages {name in kept[80]}")
assert len(kept[80]) == 128
assert not any(name in kept[80] for name in early)
assert all(name in kept[10] for name in early[:5])
assert kept[80]["llm.input_messages.79.message.content"] == "Line 79"
EOF
