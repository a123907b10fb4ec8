"""
One peer in a process of its own, in that peer's environment: `python -m peers.runner MODULE:CLASS URL`.

See lines.py for the protocol; the methods of `Runner` are the commands.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import signal
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peers import lines
from peers.adapters import Adapter
from peers.records import audit
from texts import Texts

PR_SET_PDEATHSIG = 1
RETAINED = 200  # steps, at most
WARM_UP = 50  # steps before those that are timed, at most, and a tenth of a burst


def whole(step: Callable[[Texts], None], texts: Texts, n: int) -> tuple[int, int]:
    """Nanoseconds for n steps, and of CPU of all threads meanwhile; nothing is timed in between."""
    cpu, start = time.process_time_ns(), time.perf_counter_ns()
    for _ in range(n):
        step(texts)
    end = time.perf_counter_ns()
    return end - start, time.process_time_ns() - cpu


def each(step: Callable[[Texts], None], texts: Texts, n: int) -> list[int]:
    """Nanoseconds of each of n steps, with what reading the clock costs."""
    clock = time.perf_counter_ns
    taken = [0] * n
    for i in range(n):
        start = clock()
        step(texts)
        taken[i] = clock() - start
    return taken


def renewed(texts: Texts) -> Texts:
    """The same in strings of its own, as those of a request are."""
    return Texts(*(f" {text}"[1:] for text in (texts.prompt, texts.response, texts.tools)))


class Runner:
    def __init__(self, adapter: str, url: str) -> None:
        self.name, self.url = adapter, url
        self.adapter: Adapter

    def open(self, core: int, size: str, with_helpers: bool = False) -> dict[str, Any]:
        """
        Set the peer up, record a few steps, and only then pin this process, with all its threads.

        So an exporter that is a process of its own has started, and stays where the driver is; with
        `with_helpers` it is on the same core.
        """
        if with_helpers:
            os.sched_setaffinity(0, {core})
        module, name = self.name.split(":")
        self.adapter = getattr(importlib.import_module(f"peers.adapters.{module}"), name)(self.url)
        texts = Texts.of(size, "ascii")
        n = 3
        whole(self.adapter.step, texts, n)
        done = self._settle(texts, n)
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {core})
        return done

    def round(self, size: str) -> dict[str, Any]:
        """
        Record a round twice: timed as a whole, and step by step; with a flush after each burst, not timed.

        Before each burst come some steps that are not timed either: others had the core and its caches.

        Returns:
            mean: Nanoseconds per step in the first pass.

            cpu: Nanoseconds of CPU per step in the first pass, of all threads.

            taken: Nanoseconds of each step of the second.

            recorded: Steps in both, with those that were not timed.

            here: The audit of what the peer keeps in this process; see `records.Audit`.
        """
        texts = Texts.of(size, "ascii")
        bursts = list(self._bursts(texts))
        total, cpu, taken, done = 0, 0, [], self._settle(texts, 0)
        for n in bursts:
            warm = min(WARM_UP, n // 10)
            whole(self.adapter.step, texts, warm)
            wall, used = whole(self.adapter.step, texts, n)
            total, cpu = total + wall, cpu + used
            done = self._settle(texts, warm + n, done)
        for n in bursts:
            warm = min(WARM_UP, n // 10)
            each(self.adapter.step, texts, warm)
            taken += each(self.adapter.step, texts, n)
            done = self._settle(texts, warm + n, done)
        steps = sum(bursts)
        return {"mean": total / steps, "cpu": cpu / steps, "taken": taken, **done}

    def sustained(self, size: str, steps: int) -> dict[str, Any]:
        """
        Record and deliver, in bursts.

        Returns:
            wall, cpu: Seconds until everything was handed over, and of CPU of all threads and helpers.

            recorded, here: As of `round()`.
        """
        texts = Texts.of(size, "ascii")
        burst = max(1, min(self.adapter.burst_steps, self.adapter.burst_bytes // texts.nbytes()))
        start, cpu, left = time.perf_counter(), self._cpu(), steps
        while left > 0:
            whole(self.adapter.step, texts, min(burst, left))
            self.adapter.flush()
            left -= burst
        wall, cpu = time.perf_counter() - start, self._cpu() - cpu
        return {"wall": wall, "cpu": cpu, **self._settle(texts, steps)}

    def _cpu(self) -> float:
        ticks = os.sysconf("SC_CLK_TCK")
        helpers = 0.0
        for pid in self.adapter.helpers():
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
            helpers += (int(fields[11]) + int(fields[12])) / ticks
        return time.process_time() + helpers

    def retained(self, size: str) -> dict[str, Any]:
        """
        Measure what one step leaves behind until it is delivered.

        Each step has strings of its own, which the caller drops. The steps are recorded in one go, at most
        200 and no more than a burst; meanwhile no other thread of the process gets the GIL unless the
        caller blocks, so that nothing is sent. Garbage is collected before and after.

        Returns:
            objects: Objects more that the garbage collector tracks (`gc.get_objects()`), per step.

            bytes: Bytes more in Python's heap (`tracemalloc`), per step. What a library in C or Rust
                allocates by itself is not seen.

            elsewhere: Bytes outside of it that the peer tells of, per step: picostep's ring.

            recorded, here: As of `round()`.
        """
        texts = Texts.of(size, "ascii")
        n = min(RETAINED, next(self._bursts(texts)))
        self._settle(texts, 0)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(60)
        tracemalloc.start()
        try:
            gc.collect()
            before = self._memory()
            for _ in range(n):
                self.adapter.step(renewed(texts))
            gc.collect()
            after = self._memory()
        finally:
            tracemalloc.stop()
            sys.setswitchinterval(interval)
        objects, held, elsewhere = ((b - a) / n for a, b in zip(before, after, strict=True))
        done = self._settle(texts, n)
        if not self.adapter.keeps:
            return done
        return {"objects": objects, "bytes": held, "elsewhere": elsewhere, **done}

    def close(self) -> None:
        self.adapter.close()

    def _memory(self) -> tuple[int, int, int]:
        # The list of all objects is made after the bytes are read, and gone before the next step.
        elsewhere, held = self.adapter.elsewhere(), tracemalloc.get_traced_memory()[0]
        return len(gc.get_objects()), held, elsewhere

    def _bursts(self, texts: Texts) -> Iterator[int]:
        left = min(self.adapter.round_steps, texts.steps_per_round() * 6)
        most = max(1, min(self.adapter.burst_steps, self.adapter.burst_bytes // texts.nbytes()))
        while left > 0:
            yield min(most, left)
            left -= most

    def _settle(self, texts: Texts, n: int, done: dict[str, Any] | None = None) -> dict[str, Any]:
        """Flush, take what stays here, collect garbage; return the sums with n steps more."""
        self.adapter.flush()
        here = audit(self.adapter.take(), texts)
        gc.collect()
        if done is None:
            return {"recorded": n, "here": here}
        sums = {name: done["here"][name] + here[name] for name in here}  # type: ignore[literal-required]
        return {"recorded": done["recorded"] + n, "here": sums}


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the driver may have stopped it
    runner = Runner(*sys.argv[1:])
    lines.serve(
        {
            "open": runner.open,
            "round": runner.round,
            "sustained": runner.sustained,
            "retained": runner.retained,
            "close": runner.close,
        }
    )


if __name__ == "__main__":
    main()
