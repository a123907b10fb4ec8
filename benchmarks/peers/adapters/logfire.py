"""Logfire: one span with the GenAI attributes; its console output is off, its scrubbing on as by default."""

from __future__ import annotations

import logfire

from peers.adapters import Adapter
from texts import CACHED, COMPLETION, FINISH, REQUESTED, UNCACHED, USED, Texts


class Spans(Adapter):
    """Two records a step, one when it begins: its queue is OpenTelemetry's, 2,048 of them."""

    def __init__(self, url: str) -> None:
        logfire.configure(
            token="pylf_v1_local_0",
            console=False,
            inspect_arguments=False,
            advanced=logfire.AdvancedOptions(base_url=url),
        )

    def step(self, texts: Texts) -> None:
        with logfire.span(
            "chat",
            **{
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": REQUESTED,
                "gen_ai.input.messages": texts.prompt,
                "gen_ai.tool.definitions": texts.tools,
            },
        ) as span:
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

    def flush(self) -> None:
        assert logfire.force_flush(60_000)

    def close(self) -> None:
        logfire.shutdown(5_000)
