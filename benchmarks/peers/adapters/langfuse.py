"""Langfuse: a generation, opened, updated and ended; OpenTelemetry's batch processor and OTLP beneath."""

from __future__ import annotations

from langfuse import Langfuse

from peers.adapters import Adapter
from texts import CACHED, COMPLETION, FINISH, REQUESTED, UNCACHED, USED, Texts


class Generations(Adapter):
    burst_steps = 1000  # its queue is OpenTelemetry's

    def __init__(self, url: str) -> None:
        self.client = Langfuse(public_key="pk-lf-0", secret_key="sk-lf-0", base_url=url)

    def step(self, texts: Texts) -> None:
        generation = self.client.start_observation(
            name="chat",
            as_type="generation",
            model=REQUESTED,
            input=texts.prompt,
            metadata={"tools": texts.tools},
        )
        generation.update(
            output=texts.response,
            metadata={"model_used": USED, "finish_reason": FINISH},
            usage_details={"input": UNCACHED, "input_cached_tokens": CACHED, "output": COMPLETION},
        )
        generation.end()

    def flush(self) -> None:
        self.client.flush()

    def close(self) -> None:
        self.client.shutdown()
