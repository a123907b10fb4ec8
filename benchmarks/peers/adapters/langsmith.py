"""LangSmith: a RunTree, posted when it begins and patched when it ends, as its documentation has it."""

from __future__ import annotations

from langsmith import Client
from langsmith.run_trees import RunTree

from peers.adapters import Adapter
from texts import CACHED, COMPLETION, FINISH, REQUESTED, UNCACHED, USED, Texts


class Runs(Adapter):
    def __init__(self, url: str) -> None:
        self.client = Client(api_url=url, api_key="key")

    def step(self, texts: Texts) -> None:
        run = RunTree(
            name="chat",
            run_type="llm",
            inputs={"prompt": texts.prompt, "tools": texts.tools},
            extra={"metadata": {"ls_model_name": REQUESTED}},
            ls_client=self.client,
        )
        run.post()
        run.end(
            outputs={
                "response": texts.response,
                "model": USED,
                "finish_reason": FINISH,
                "usage_metadata": {
                    "input_tokens": UNCACHED + CACHED,
                    "output_tokens": COMPLETION,
                    "total_tokens": UNCACHED + CACHED + COMPLETION,
                    "input_token_details": {"cache_read": CACHED},
                },
            }
        )
        run.patch()

    def flush(self) -> None:
        self.client.flush(60)

    def close(self) -> None:
        self.client.cleanup()
