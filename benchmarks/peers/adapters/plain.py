"""What one can do without a library: a dataclass on a queue, a dict encoded by orjson; and the floor."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterable

import baselines
from peers.adapters import Adapter
from peers.records import Record
from texts import CACHED, COMPLETION, FINISH, REQUESTED, UNCACHED, USED, Texts, chain


class Dataclass(Adapter):
    """A slotted dataclass with the same setters on a `SimpleQueue`: no ids, no checks, texts by reference."""

    burst_steps = 1000

    def __init__(self, url: str) -> None:
        self.queue: queue.SimpleQueue[baselines.PlainStep] = queue.SimpleQueue()

    def step(self, texts: Texts) -> None:
        chain(baselines.PlainStep(self.queue, time.time_ns()), texts)

    def take(self) -> Iterable[Record]:
        for _ in range(self.queue.qsize()):
            step = self.queue.get()
            yield Record(
                None,
                step.prompt_,
                step.response_,
                step.tools,
                step.requested,
                step.used,
                step.uncached,
                step.cached,
                step.completion,
                step.reason,
            )


class Orjson(Adapter):
    """A dict of what is known of the step, encoded by orjson, on a `SimpleQueue`: no ids, no checks."""

    burst_steps = 1000

    def __init__(self, url: str) -> None:
        from orjson import dumps

        self.dumps = dumps
        self.queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def step(self, texts: Texts) -> None:
        step = {
            "start_ns": time.time_ns(),
            "prompt": texts.prompt,
            "response": texts.response,
            "requested": REQUESTED,
            "used": USED,
            "uncached": UNCACHED,
            "cached": CACHED,
            "completion": COMPLETION,
            "finish": FINISH,
            "tools": texts.tools,
        }
        step["end_ns"] = time.time_ns()
        self.queue.put(self.dumps(step))

    def take(self) -> Iterable[Record]:
        for _ in range(self.queue.qsize()):
            step = json.loads(self.queue.get())
            yield Record(None, *(step[name] for name in Record._fields[1:]))


class Floor(Adapter):
    """The chain of calls doing nothing, two clock reads, the copy: it keeps the last steps only."""

    burst_steps = 1000

    def __init__(self, url: str) -> None:
        self.floor = baselines.Floor(Texts("", "", ""))

    def step(self, texts: Texts) -> None:
        self.floor.texts = texts
        chain(self.floor.run.step(), texts)

    def flush(self) -> None:
        self.floor.check()
