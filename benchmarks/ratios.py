"""Medians and ratios from one interleaved run: `python benchmarks/ratios.py [ROUNDS]`."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time

import picostep
from texts import SCRIPTS, SIZES, Texts
from workloads import ALL, exporter


def measure(size: str, script: str, rounds: int) -> dict[str, list[float]]:
    texts = Texts.of(size, script)
    works = [workload(texts) for workload in ALL]
    n = texts.steps_per_round()
    taken: dict[str, list[float]] = {work.name: [] for work in works}
    for turn in range(rounds + 2):
        for work in works:
            work.settle()
            start = time.perf_counter()
            work.steps(n)
            if turn >= 2:  # the first two warm up
                taken[work.name].append((time.perf_counter() - start) / n * 1e9)
    for work in works:
        work.check()
    return taken


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 31
    print(
        f"picostep {picostep.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"medians of {rounds} rounds"
    )
    print(
        f"{'ns per step':16}"
        + "".join(f"{workload.name:>26}" for workload in ALL)
        + f"{'/ dataclass':>13}{'/ floor':>9}"
    )
    for size, script in ((size, script) for script in SCRIPTS for size in SIZES):
        with exporter():
            taken = measure(size, script, rounds)
        median = {name: statistics.median(values) for name, values in taken.items()}
        ours = taken["picostep"]
        ratios = [
            statistics.median(a / b for a, b in zip(ours, taken[other], strict=True))
            for other in ("dataclass + SimpleQueue", "floor")
        ]
        row = f"{size + ' ' + script:16}" + "".join(f"{median[workload.name]:>26,.0f}" for workload in ALL)
        print(row + f"{ratios[0]:>13.2f}{ratios[1]:>9.2f}")


if __name__ == "__main__":
    main()
