"""What picostep is compared with where nothing need be installed: plain Python, and the floor; and checks.

Like texts.py this imports nothing of picostep.
"""

from __future__ import annotations

import queue
import sys
import time
from dataclasses import dataclass
from typing import Any

from compiled import compiled
from texts import Texts, chain


@dataclass(slots=True)
class PlainStep:
    """What a careful person writes in plain Python: a slotted dataclass on a queue. No ids, no checks."""

    queue: queue.SimpleQueue[Any]
    start_ns: int
    end_ns: int = 0
    prompt_: str | None = None
    response_: str | None = None
    requested: str | None = None
    used: str | None = None
    uncached: int | None = None
    cached: int | None = None
    completion: int | None = None
    reason: str | None = None
    tools: str | None = None

    def prompt(self, text: str) -> PlainStep:
        self.prompt_ = text
        return self

    def response(self, text: str) -> PlainStep:
        self.response_ = text
        return self

    def model(self, requested: str | None = None, used: str | None = None) -> PlainStep:
        if requested is not None:
            self.requested = requested
        if used is not None:
            self.used = used
        return self

    def tokens(
        self, uncached: int | None = None, cached: int | None = None, completion: int | None = None
    ) -> PlainStep:
        if uncached is not None:
            self.uncached = uncached
        if cached is not None:
            self.cached = cached
        if completion is not None:
            self.completion = completion
        return self

    def finish_reason(self, reason: str) -> PlainStep:
        self.reason = reason
        return self

    def tool_definitions(self, definitions: str) -> PlainStep:
        self.tools = definitions
        return self

    def end(self) -> None:
        self.end_ns = time.time_ns()
        self.queue.put(self)


class Dataclass:
    """The plain-Python baseline."""

    name = "dataclass + SimpleQueue"

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.count = 0

    def settle(self) -> None:
        while not self.queue.empty():
            self.last = self.queue.get()

    def steps(self, n: int) -> None:
        texts, to = self.texts, self.queue
        for _ in range(n):
            chain(PlainStep(to, time.time_ns()), texts)
        self.count += n

    def check(self) -> None:
        self.settle()
        assert (self.last.prompt_, self.last.tools) == (self.texts.prompt, self.texts.tools)


class Floor:
    """No-op chain, two clock reads, the copy."""

    name = "floor"

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.floor = compiled("floor")
        self.run = self.floor.FloorRun()

    def settle(self) -> None:
        pass

    def steps(self, n: int) -> None:
        step, texts = self.run.step, self.texts
        for _ in range(n):
            chain(step(), texts)

    def check(self) -> None:
        encoding = "latin-1" if self.texts.tools.isascii() else f"utf-16-{sys.byteorder[0]}e"
        raw = self.texts.tools.encode(encoding)
        assert self.floor.last(len(raw)) == raw
