"""What the benchmarks of picostep time: one step with all setters, by it and its baselines; and its check."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import picostep
from baselines import Dataclass, Floor
from texts import CACHED, COMPLETION, FINISH, REQUESTED, UNCACHED, USED, Texts, chain


def temporary_directory() -> tempfile.TemporaryDirectory[str]:
    """A directory for rings, in memory where that is to be had."""
    shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
    return tempfile.TemporaryDirectory(prefix="picostep-bench-", dir=shm, ignore_cleanup_errors=True)


@contextlib.contextmanager
def exporter(**settings: Any) -> Iterator[None]:
    """A real exporter for all benchmarks, into a file in memory that is cut back whenever it was checked."""
    with temporary_directory() as directory:
        Picostep.output = os.path.join(directory, "steps.jsonl")
        picostep.configure(to=f"jsonl:{Picostep.output}", dir=directory, **settings)
        yield
        picostep.shutdown(10)


class Picostep:
    """The chain, into the ring, with an exporter at work."""

    name = "picostep"
    output = ""
    recorded = 0  # by this process, in all benchmarks

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.run = picostep.run()

    def settle(self) -> None:
        """Empties the ring and the exporter's file before a round."""
        assert picostep.flush(60)
        if os.path.exists(self.output):
            os.truncate(self.output, 0)

    def steps(self, n: int) -> None:
        step, texts = self.run.step, self.texts
        for _ in range(n):
            chain(step(), texts)
        Picostep.recorded += n

    def check(self) -> None:
        """Every step was accepted whole and delivered."""
        self.settle()
        stats = picostep.stats()
        assert stats["delivered"] == Picostep.recorded
        assert stats["shed"] == 0
        assert sum(stats["dropped"].values()) == 0


class SendStep(Picostep):
    """The same in one call."""

    name = "picostep.send_step"

    def steps(self, n: int) -> None:
        send, run_id, texts = picostep.send_step, self.run.run_id, self.texts
        for _ in range(n):
            send(
                run_id,
                prompt=texts.prompt,
                response=texts.response,
                model_requested=REQUESTED,
                model_used=USED,
                prompt_uncached=UNCACHED,
                prompt_cached=CACHED,
                completion=COMPLETION,
                finish_reason=FINISH,
                tool_definitions=texts.tools,
            )
        Picostep.recorded += n


ALL = (Picostep, SendStep, Dataclass, Floor)
