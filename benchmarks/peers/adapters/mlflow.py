"""MLflow (the package mlflow-tracing): a root span of its own trace, to a tracking server."""

from __future__ import annotations

import mlflow

from peers.adapters import Adapter
from texts import CACHED, COMPLETION, FINISH, REQUESTED, UNCACHED, USED, Texts


class Traces(Adapter):
    """Its queue takes 1,000 tasks: one for a step, one for five spans."""

    burst_steps = 200
    burst_bytes = 100_000_000
    round_steps = 200  # a flush ends and restarts its threads: a second

    def __init__(self, url: str) -> None:
        mlflow.set_tracking_uri(url)

    def step(self, texts: Texts) -> None:
        span = mlflow.start_span_no_context(
            "chat",
            span_type="LLM",
            inputs={"prompt": texts.prompt, "tools": texts.tools},
            attributes={"mlflow.llm.model": REQUESTED},
            experiment_id="0",
        )
        span.set_attributes(
            {
                "model_used": USED,
                "finish_reason": FINISH,
                "mlflow.chat.tokenUsage": {
                    "input_tokens": UNCACHED + CACHED,
                    "output_tokens": COMPLETION,
                    "total_tokens": UNCACHED + CACHED + COMPLETION,
                    "cache_read_input_tokens": CACHED,
                },
            }
        )
        span.end(outputs={"response": texts.response})

    def flush(self) -> None:
        mlflow.flush_trace_async_logging()
