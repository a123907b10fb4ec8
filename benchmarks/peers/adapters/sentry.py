"""
sentry-sdk: a span with the GenAI attributes, below one of an agent's run that stays open.

With `trace_lifecycle="stream"`, in which the spans of a run are sent in batches. In the default nothing is
sent before the run ends, with at most 1,000 of its spans. A step without a run above it is an envelope of
its own, several times as dear, and more than 100 envelopes that wait are dropped.
"""

from __future__ import annotations

import sentry_sdk

from peers.adapters import Adapter
from texts import CACHED, COMPLETION, FINISH, REQUESTED, UNCACHED, USED, Texts


class Spans(Adapter):
    """Its batcher hands over at 1,000 spans or 5 MB, and drops beyond 2,000."""

    burst_bytes = 4_000_000

    def __init__(self, url: str) -> None:
        sentry_sdk.init(
            dsn=f"http://key@{url.removeprefix('http://')}/1",
            traces_sample_rate=1.0,
            trace_lifecycle="stream",
        )
        self.run = sentry_sdk.traces.start_span("run", active=False)

    def step(self, texts: Texts) -> None:
        span = sentry_sdk.traces.start_span(
            f"chat {REQUESTED}",
            attributes={
                "sentry.op": "gen_ai.chat",
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": REQUESTED,
                "gen_ai.input.messages": texts.prompt,
                "gen_ai.tool.definitions": texts.tools,
            },
            parent_span=self.run,
            active=False,
        )
        span.set_attributes(
            {
                "gen_ai.response.model": USED,
                "gen_ai.output.messages": texts.response,
                "gen_ai.response.finish_reasons": FINISH,
                "gen_ai.usage.input_tokens": UNCACHED + CACHED,
                "gen_ai.usage.input_tokens.cached": CACHED,
                "gen_ai.usage.output_tokens": COMPLETION,
            }
        )
        span.end()

    def flush(self) -> None:
        sentry_sdk.flush(60)

    def close(self) -> None:
        sentry_sdk.get_client().close(5)
