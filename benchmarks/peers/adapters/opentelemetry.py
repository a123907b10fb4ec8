"""OpenTelemetry: one span with the GenAI attributes, BatchSpanProcessor, OTLP over HTTP; no options.

A real exporter and not an in-memory one: what a batch costs the caller while it is encoded belongs to the
figures, as far as the batch processor starts that on its own (from 512 spans, or 5 s).
"""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

from peers.adapters import Adapter
from texts import CACHED, COMPLETION, FINISH, REQUESTED, UNCACHED, USED, Texts


class BatchProcessor(Adapter):
    """Its queue drops the oldest of more than 2,048 spans."""

    burst_steps = 1000

    def __init__(self, url: str) -> None:
        self.provider = TracerProvider()
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{url}/v1/traces")))
        self.tracer = self.provider.get_tracer("benchmark")

    def step(self, texts: Texts) -> None:
        span = self.tracer.start_span(
            f"chat {REQUESTED}",
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": REQUESTED,
                "gen_ai.input.messages": texts.prompt,
                "gen_ai.tool.definitions": texts.tools,
            },
        )
        span.set_attributes(
            {
                "gen_ai.response.model": USED,
                "gen_ai.output.messages": texts.response,
                "gen_ai.response.finish_reasons": (FINISH,),
                "gen_ai.usage.input_tokens": UNCACHED + CACHED,
                "gen_ai.usage.cache_read.input_tokens": CACHED,
                "gen_ai.usage.output_tokens": COMPLETION,
            }
        )
        span.end()

    def flush(self) -> None:
        assert self.provider.force_flush(60_000)

    def close(self) -> None:
        self.provider.shutdown()
