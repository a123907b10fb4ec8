"""
A busy host with one recorder, in that recorder's environment: `python -m tail.host MODULE:CLASS URL`.

See peers/lines.py for the protocol; the methods of `Host` are the commands.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import os
import random
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from peers import lines
from peers.adapters import Adapter
from peers.records import audit
from texts import Texts

Handler = Callable[[], None]

TURNS = 40  # of the work that a request makes: about half a millisecond
MODEL_SECONDS = 0.002  # that asyncio's requests wait, as for a model
SHARES = (0.5, 0.99, 0.999)
PROBE_EVERY = 0.002  # seconds between the steps that the probe records


class Nothing(Adapter):
    """The host without a recorder."""

    def __init__(self, url: str) -> None:
        pass

    def step(self, texts: Texts) -> None:
        pass


def work() -> int:
    """What a request costs without recording: containers, text and numbers, none of them kept."""
    found = 0
    for turn in range(TURNS):
        fields = {f"key{number}": number * turn for number in range(20)}
        text = ",".join(f"{name}={value}" for name, value in fields.items())
        found += len(text.split(",")) + sum(fields.values())
    return found


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds at which requests come: at random, and the same for all recorders."""
    draw = random.Random(seed)
    at, found = 0.0, []
    while (at := at + draw.expovariate(rate)) < seconds:
        found.append(at)
    return found


class Host:
    def __init__(self, adapter: str, url: str) -> None:
        self.url = url
        self.adapter: Adapter
        if adapter == "nothing":
            self.make: Callable[[str], Adapter] = Nothing
        else:
            module, name = adapter.split(":")
            self.make = getattr(importlib.import_module(f"peers.adapters.{module}"), name)

    def open(self, cores: list[int], size: str) -> dict[str, Any]:
        """
        Set the recorder up, record a step, and warm up.

        Args:
            cores: For this process and for whatever it starts.
        """
        os.sched_setaffinity(0, cores)
        self.adapter = self.make(self.url)
        texts = Texts.of(size, "ascii")
        self.adapter.step(texts)
        for _ in range(200):
            work()
        return self._settle(texts, 1)

    def run(self, shape: str, size: str, rate: float, seconds: float, seed: int) -> dict[str, Any]:
        """
        Serve requests, each with the work and one step.

        Args:
            shape: A key of `SHAPES`.

            rate: Requests a second, at random times; 0: the next one comes when one is done.

        Returns:
            requests: How many there were; `rate`: of them a second.

            us: Percentiles and maximum of the latency, in microseconds, from the time at which a request
                came, not from when it was begun.

            recorded, here: As of `peers.runner.Runner.round()`.

            shed: How many of them the recorder says it has passed on without their texts.
        """
        texts = Texts.of(size, "ascii")
        step = self.adapter.step

        def handle() -> None:
            work()
            step(texts)

        start = time.perf_counter()
        if rate:
            taken = SHAPES[shape](handle, arrivals(rate, seconds, seed), start)
        else:
            taken = FLAT_OUT[shape](handle, start + seconds)
        lasted = time.perf_counter() - start
        done = self._settle(texts, len(taken))
        return {"requests": len(taken), "rate": len(taken) / lasted, "us": summary(taken), **done}

    def probe(self, size: str, seconds: float, seed: int) -> dict[str, Any]:
        """
        Give up the GIL and take it back, all the time, while another thread records 500 steps a second.

        Returns:
            times: How often.

            us: Percentiles and maximum of how long that took, in microseconds.

            recorded, here, shed: As of `run()`.
        """
        texts = Texts.of(size, "ascii")
        stop = threading.Event()
        count = itertools.count()
        due = arrivals(1 / PROBE_EVERY, seconds, seed)
        start = time.perf_counter()

        def record() -> None:
            for at in due:
                if stop.wait(max(0.0, start + at - time.perf_counter())):
                    break
                self.adapter.step(texts)
                next(count)

        thread = threading.Thread(target=record)
        thread.start()
        # Not time.sleep(0), which waits for the timer slack of the kernel.
        taken, clock, pause, end = [], time.perf_counter, select.select, start + seconds
        before = clock()
        while before < end:
            pause((), (), (), 0)
            after = clock()
            taken.append(after - before)
            before = after
        stop.set()
        thread.join()
        return {"times": len(taken), "us": summary(taken), **self._settle(texts, next(count))}

    def close(self) -> None:
        self.adapter.close()

    def _settle(self, texts: Texts, recorded: int) -> dict[str, Any]:
        self.adapter.flush()
        shed = self.adapter.shed()
        return {"recorded": recorded, "here": audit(self.adapter.take(), texts), "shed": shed}


def summary(taken: list[float]) -> dict[str, float]:
    """Nearest ranks, in microseconds."""
    ordered = sorted(taken)
    shares = {
        f"p{100 * share:g}": ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in SHARES
    }
    return {name: round(value * 1e6, 1) for name, value in {**shares, "max": ordered[-1]}.items()}


def one_thread(handle: Handler, due: list[float], start: float) -> list[float]:
    """Requests that come while another is served wait for it."""
    taken = []
    for at in due:
        _sleep_until(start + at)
        handle()
        taken.append(time.perf_counter() - start - at)
    return taken


def eight_threads(handle: Handler, due: list[float], start: float) -> list[float]:
    """Each request goes to whichever of eight threads is free."""
    coming, taken = iter(due), []
    lock = threading.Lock()

    def serve() -> None:
        while True:
            with lock:
                at = next(coming, None)
            if at is None:
                return
            _sleep_until(start + at)
            handle()
            taken.append(time.perf_counter() - start - at)

    _together(serve)
    return taken


def event_loop(handle: Handler, due: list[float], start: float) -> list[float]:
    """A task for each request: it waits as for a model, then works and records."""
    taken = []

    async def serve(at: float) -> None:
        await asyncio.sleep(MODEL_SECONDS)
        handle()
        taken.append(time.perf_counter() - start - at - MODEL_SECONDS)

    async def main() -> None:
        async with _tasks() as begin:
            for at in due:
                await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
                begin(serve(at))

    asyncio.run(main())
    return taken


def one_thread_flat_out(handle: Handler, end: float) -> list[float]:
    taken, before = [], time.perf_counter()
    while before < end:
        handle()
        after = time.perf_counter()
        taken.append(after - before)
        before = after
    return taken


def eight_threads_flat_out(handle: Handler, end: float) -> list[float]:
    taken: list[float] = []
    _together(lambda: taken.extend(one_thread_flat_out(handle, end)))
    return taken


def event_loop_flat_out(handle: Handler, end: float) -> list[float]:
    """Eight clients, each of which sends its next request when it has the answer to one."""
    taken = []

    async def client() -> None:
        while (before := time.perf_counter()) < end:
            await asyncio.sleep(0)
            handle()
            taken.append(time.perf_counter() - before)

    async def main() -> None:
        await asyncio.gather(*(client() for _ in range(8)))

    asyncio.run(main())
    return taken


class _tasks:
    """Begin tasks, and wait for all of them at the end: `asyncio.TaskGroup` is of Python 3.11."""

    def __init__(self) -> None:
        self._begun: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Callable[[Any], None]:
        return lambda task: self._begun.add(asyncio.ensure_future(task))

    async def __aexit__(self, *error: object) -> None:
        await asyncio.gather(*self._begun)


def _together(serve: Handler) -> None:
    threads = [threading.Thread(target=serve) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _sleep_until(moment: float) -> None:
    left = moment - time.perf_counter()
    if left > 0:
        time.sleep(left)


SHAPES = {"one thread": one_thread, "8 threads": eight_threads, "asyncio": event_loop}
FLAT_OUT = {
    "one thread": one_thread_flat_out,
    "8 threads": eight_threads_flat_out,
    "asyncio": event_loop_flat_out,
}


def main() -> None:
    host = Host(*sys.argv[1:])
    lines.serve({"open": host.open, "run": host.run, "probe": host.probe, "close": host.close})


if __name__ == "__main__":
    main()
