"""ddtrace: an LLM span of LLM Observability, annotated; agentless, APM tracing off as its manual says."""

from __future__ import annotations

import os

from peers.adapters import Adapter
from texts import CACHED, COMPLETION, FINISH, REQUESTED, UNCACHED, USED, Texts


class LlmObs(Adapter):
    """
    Its buffer drops spans beyond 1,000, and a caller that would fill it beyond 5 MiB sends it itself:
    bursts stay below both.
    """

    burst_bytes = 3_000_000

    def __init__(self, url: str) -> None:
        os.environ.update(
            DD_LLMOBS_OVERRIDE_ORIGIN=url,
            DD_APM_TRACING_ENABLED="false",
            DD_INSTRUMENTATION_TELEMETRY_ENABLED="false",
            DD_REMOTE_CONFIGURATION_ENABLED="false",
        )
        from ddtrace.llmobs import LLMObs

        self.llmobs = LLMObs
        LLMObs.enable(
            ml_app="benchmark",
            agentless_enabled=True,
            api_key="key",
            site="datadoghq.com",
            integrations_enabled=False,
        )

    def step(self, texts: Texts) -> None:
        with self.llmobs.llm(model_name=USED, name="chat", model_provider="openai") as span:
            self.llmobs.annotate(
                span,
                input_data=texts.prompt,
                output_data=texts.response,
                metadata={"model_requested": REQUESTED, "finish_reason": FINISH},
                metrics={
                    "input_tokens": UNCACHED + CACHED,
                    "cache_read_input_tokens": CACHED,
                    "output_tokens": COMPLETION,
                },
                tool_definitions=[{"name": "tools", "description": texts.tools, "schema": {}}],
            )

    def flush(self) -> None:
        self.llmobs.flush()

    def close(self) -> None:
        self.llmobs.disable()
