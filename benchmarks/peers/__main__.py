"""
The same step on picostep and its peers, interleaved: `nox -s peers`, or `python -m peers` in benchmarks.

The driver: it makes the environments, starts the ingest and a process per peer, lets them take turns,
checks what arrived, and writes benchmarks/results/peers.json; report.py makes RESULTS.md and the README's
table of it. docs/internals/performance.md says what is measured, and how each peer is treated.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import import_time
import report
from peers import environments
from peers.catalogue import INGEST, PEERS, ROOT, Peer
from peers.lines import Failed, Process
from provenance import provenance
from texts import SIZES

ROUNDS = 21
WARM_UP = 2
IMPORTS = 9
QUANTILES = [0.0, *(1 - 10 ** (-i / 10) for i in range(1, 41)), 1.0]
"""Denser towards the end: 10 steps a decade of what is beyond."""


@dataclass
class Measured:
    """One peer and what is known of it by now."""

    peer: Peer
    environment: dict[str, Any] = field(default_factory=dict)
    process: Process | None = None
    error: str = ""
    imports: list[tuple[float, int]] = field(default_factory=list)
    means: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    taken: dict[str, list[int]] = field(default_factory=dict)
    delivered: dict[str, dict[str, int | str]] = field(default_factory=dict)
    retained: dict[str, dict[str, float]] = field(default_factory=dict)

    def result(self) -> dict[str, Any]:
        packages = self.environment.get("packages", {})
        return {
            "key": self.peer.key,
            "title": self.peer.title,
            "requirements": list(self.peer.requirements),
            "packages": packages,
            "bytes": self.environment.get("bytes"),
            "import_ms": [round(taken, 2) for taken, _ in self.imports],
            "modules": self.imports[0][1] if self.imports else None,
            "delivers": self.peer.delivers,
            "checked": self.peer.checked,
            "error": self.error,
            "sizes": {
                size: {
                    "samples": len(taken),
                    "quantiles": [round(value) for value in quantiles(taken)],
                    "median": round(statistics.median(taken)),
                    "p99": round(percentile(taken, 0.99)),
                    "p999": round(percentile(taken, 0.999)),
                    "max": max(taken),
                    "means": [round(mean, 1) for mean in self.means[size]],
                    "cpu": [round(used, 1) for used in self.cpu[size]],
                    "delivered": self.delivered.get(size),
                    "retained": self.retained.get(size),
                }
                for size, taken in self.taken.items()
                if taken and not self.error
            },
        }


def percentile(taken: Sequence[int], share: float) -> float:
    """The nearest rank."""
    ordered = sorted(taken)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def quantiles(taken: Sequence[int]) -> list[float]:
    ordered = sorted(taken)
    return [ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in QUANTILES]


class Driver:
    def __init__(self, peers: Sequence[Peer], log: TextIO, place: Path) -> None:
        self.measured = [Measured(peer) for peer in peers]
        self.log, self.place = log, place
        cores = sorted(os.sched_getaffinity(0))
        self.core = cores[-1]
        self.others = cores[:-1] or cores
        # Inherited by the ingest, by the runners until they pin themselves, and by picostep's exporter.
        os.sched_setaffinity(0, self.others)
        self.ingest: Process

    @property
    def living(self) -> list[Measured]:
        return [one for one in self.measured if not one.error]

    def install(self) -> None:
        for one in self.measured:
            say(f"environment of {one.peer.key}")
            try:
                one.environment = environments.made(one.peer.environment, one.peer.requirements)
            except environments.NotInstalled as e:
                one.error = f"cannot be installed: {e}"
        environments.made(*INGEST)

    def measure_imports(self) -> None:
        os.sched_setaffinity(0, {self.core})  # inherited
        for turn in range(IMPORTS + 1):
            for one in self.living:
                if one.peer.imports:
                    with one_fails(one):
                        python = environments.python(one.peer.environment)
                        found = import_time.once(one.peer.imports, python, self._environment())
                        if turn:  # the first reads the files from disk
                            one.imports.append(found)
        os.sched_setaffinity(0, self.others)

    @contextlib.contextmanager
    def open_ingest(self) -> Iterator[str]:
        python = environments.python(INGEST[0])
        self.ingest = self.process([str(python), "-m", "peers.ingest"], str(ROOT / "tests"))
        try:
            yield f"http://127.0.0.1:{self.ingest('port')}"
        finally:
            self.ingest.end()

    @contextlib.contextmanager
    def open_runners(self, url: str, size: str) -> Iterator[None]:
        """A process for each peer; stopped, but for the one whose turn it is."""
        try:
            for one in self.living:
                python = environments.python(one.peer.environment)
                one.process = self.process([str(python), "-m", "peers.runner", one.peer.adapter, url])
                with one_fails(one):
                    done = one.process("open", core=self.core, size=size)
                    self.check(one, size, done)
                one.process.pause()
            yield
        finally:
            for one in self.measured:
                if one.process is not None:
                    one.process.resume()
                    if not one.error:
                        with one_fails(one):
                            one.process("close", timeout=60)
                    one.process.end()
                    one.process = None

    def rounds(self, sizes: Sequence[str], rounds: int) -> None:
        order = random.Random(rounds)
        for turn in range(rounds + WARM_UP):
            say(f"round {turn + 1} of {rounds + WARM_UP}")
            for size in sizes:
                turns = self.living
                order.shuffle(turns)  # so that none always comes after the same other
                for one in turns:
                    with one_fails(one), self._turn(one) as process:
                        done = process("round", size=size)
                        self.check(one, size, done, counts=turn >= WARM_UP)
                        if turn >= WARM_UP:
                            one.means.setdefault(size, []).append(done["mean"])
                            one.cpu.setdefault(size, []).append(done["cpu"])
                            one.taken.setdefault(size, []).extend(done["taken"])

    def retained(self, sizes: Sequence[str]) -> None:
        for size in sizes:
            for one in self.living:
                with one_fails(one), self._turn(one) as process:
                    done = process("retained", size=size)
                    self.check(one, size, done)
                    if "objects" in done:
                        one.retained[size] = {key: done[key] for key in ("objects", "bytes", "elsewhere")}

    @contextlib.contextmanager
    def _turn(self, one: Measured) -> Iterator[Process]:
        assert one.process is not None
        one.process.resume()
        try:
            yield one.process
        finally:
            one.process.pause()

    def check(self, one: Measured, size: str, done: dict[str, Any], counts: bool = False) -> int:
        """
        Compare what was recorded with what arrived.

        Returns:
            How many steps are missing at the ingest's deadline, or came without their texts and the recorder
            says so, where it was asked: they count as dropped.

        Raises:
            Failed: Steps came twice, or are not what they were otherwise, or nobody recorded them.
        """
        if not one.peer.checked:
            return 0
        recorded = done["recorded"]
        arrived = self.ingest("take", size=size, steps=recorded) if one.peer.delivers else done["here"]
        if counts:
            sums = one.delivered.setdefault(
                size, dict.fromkeys(("recorded", "dropped", "requests", "bytes"), 0)
            )
            sums["recorded"] += recorded
            sums["dropped"] += recorded - arrived["steps"]
            sums["requests"] += arrived.get("requests", 0)
            sums["bytes"] += arrived.get("bytes", 0)
        shed = int(done.get("shed", 0))
        if arrived["steps"] > recorded or arrived["repeated"] or arrived["wrong"] != shed:
            raise Failed(
                f"{size}: of {recorded} steps {arrived['steps']} arrived, {arrived['wrong']} of them wrong "
                f"({arrived['example']}), {arrived['repeated']} once more"
            )
        return int(recorded - arrived["steps"]) + shed

    def process(self, command: Sequence[str], *path: str) -> Process:
        return Process(command, self._environment(*path), self.place, self.log)

    def _environment(self, *path: str) -> dict[str, str]:
        """Nothing that a peer might read: no proxies, keys or settings, a home of its own."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.place),
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), *path]),
        }


@contextlib.contextmanager
def one_fails(one: Measured) -> Iterator[None]:
    """A peer that fails is left out from there on, and the report says why."""
    try:
        yield
    except Exception as e:
        one.error = f"{type(e).__name__}: {e}" if not isinstance(e, Failed) else str(e)
        say(f"{one.peer.key} is left out: {one.error}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def choose(text: str, known: Sequence[str]) -> list[str]:
    """A list separated by commas, in the order of what is known."""
    chosen = text.split(",") if text else list(known)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise SystemExit(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
    return [name for name in known if name in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description="The same step on picostep and its peers.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--sizes", default="", help=f"of {','.join(SIZES)}")
    parser.add_argument("--only", default="", help=f"of {','.join(peer.key for peer in PEERS)}")
    parser.add_argument("--trial", action="store_true", help="print the section, write nothing")
    options = parser.parse_args()
    sizes = choose(options.sizes, list(SIZES))
    keys = choose(options.only, [peer.key for peer in PEERS])
    where = provenance()
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        environments.BUILD.mkdir(parents=True, exist_ok=True)
        log = stack.enter_context((environments.BUILD / "log").open("w", encoding="utf-8"))
        driver = Driver([peer for peer in PEERS if peer.key in keys], log, place)
        driver.install()
        driver.measure_imports()
        with driver.open_ingest() as url:
            with driver.open_runners(url, sizes[0]):
                driver.rounds(sizes, options.rounds)
            with driver.open_runners(url, sizes[0]):  # fresh ones: what the rounds left is not in the way
                driver.retained(sizes)
    result = {
        "kind": "peers",
        **where,
        "rounds": options.rounds,
        "sizes": sizes,
        "core": driver.core,
        "others": driver.others,
        "shares": [round(share, 6) for share in QUANTILES],
        "peers": [one.result() for one in driver.measured],
    }
    report.publish(result, options.trial)


if __name__ == "__main__":
    main()
