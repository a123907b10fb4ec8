"""The step that every benchmark records: its texts by size and script, its numbers, and the chain of setters.

Imports nothing of picostep, so that other recorders can be measured on the same step, each in an environment
of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHARACTERS = {
    "0.3KB": 300,
    "1KB": 1_000,
    "3KB": 3_000,
    "30KB": 30_000,
    "400KB": 400_000,
}  # of prompt, response and tools together
SIZES = {size: CHARACTERS[size] for size in ("0.3KB", "3KB", "30KB", "400KB")}  # that are compared
SCRIPTS = {"ascii": "a prompt, a response and tools. ", "cjk": "提示和回答以及工具定义的文字。"}

REQUESTED = "gpt-4o"
USED = "gpt-4o-2024-08-06"
UNCACHED, CACHED, COMPLETION = 1200, 300, 250
FINISH = "stop"


@dataclass(frozen=True)
class Texts:
    prompt: str
    response: str
    tools: str

    @classmethod
    def of(cls, size: str, script: str) -> Texts:
        """Half of the characters are the prompt, a third the response, the rest tool definitions."""
        n, pattern = CHARACTERS[size], SCRIPTS[script]
        text = (pattern * (n // len(pattern) + 1))[:n]
        half, third = n // 2, n // 3
        return cls(text[:half], text[half : half + third], text[half + third :])

    def nbytes(self) -> int:
        """As CPython holds the characters."""
        width = 1 if self.prompt.isascii() else 2
        return width * len(self.prompt + self.response + self.tools)

    def steps_per_round(self) -> int:
        """As many as fill less than half of a 16 MiB ring, so that none is shed."""
        return max(4, min(1000, 6_000_000 // (self.nbytes() + 400)))


def chain(step: Any, texts: Texts) -> None:
    step.prompt(texts.prompt).response(texts.response).model(REQUESTED, USED).tokens(
        UNCACHED, CACHED, COMPLETION
    ).finish_reason(FINISH).tool_definitions(texts.tools).end()
