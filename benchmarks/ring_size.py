"""How the size of a ring matters: `python benchmarks/ring_size.py`. The default size comes from it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import picostep
from picostep import runtime
from texts import Texts
from workloads import Picostep, exporter, temporary_directory

FIRST = """
import time
import picostep
start = time.perf_counter()
run = picostep.run()
made = time.perf_counter()
run.step().prompt("p").response("r").end()
ended = time.perf_counter()
print(made - start, ended - made)
"""
FORKED = """
import os, time
import picostep
run = picostep.run()
run.step().prompt("p").response("r").end()
if os.fork() == 0:
    start = time.perf_counter()
    run.step().prompt("p").response("r").end()
    print(time.perf_counter() - start, flush=True)
    os._exit(0)
os.wait()
"""


def fresh(code: str, ring_bytes: int, directory: str) -> list[float]:
    """Medians over fresh processes of what the code prints, in ms."""
    env = {
        **os.environ,
        "PICOSTEP_RING_BYTES": str(ring_bytes),
        "PICOSTEP_DIR": directory,
        "PICOSTEP_TO": f"jsonl:{directory}/first.jsonl",
    }
    rows = [
        [
            float(x) * 1e3
            for x in subprocess.run(
                [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
            ).stdout.split()
        ]
        for _ in range(9)
    ]
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def reserved(size: int) -> float:
    """Seconds until the background thread is through."""
    start = time.perf_counter()
    picostep.run()
    (ring,) = runtime._rings.values()
    while ring.ready < size:
        assert time.perf_counter() - start < 10
        time.sleep(0.0005)
    return time.perf_counter() - start


def per_step(text: str, size: int) -> float:
    """Median ns per step when half a ring is written a round."""
    work = Picostep(Texts.of(text, "ascii"))
    n = max(1, size // 2 // (work.texts.nbytes() + 400))
    times = []
    for _ in range(12):
        work.settle()
        start = time.perf_counter()
        work.steps(n)
        times.append((time.perf_counter() - start) / n * 1e9)
    work.check()
    return statistics.median(times)


def main() -> None:
    names = ("ring", "run() ms", "step ms", "forked ms", "reserve ms", "3 KB ns", "30 KB ns", "s at 100 MB/s")
    print(" ".join(f"{name:>13}" for name in names))
    for mib in (1, 4, 16, 64, 256):
        size = mib << 20
        with temporary_directory() as directory:
            (first, step), (forked,) = fresh(FIRST, size, directory), fresh(FORKED, size, directory)
        with exporter(ring_bytes=size):
            through = reserved(size) * 1e3
            small, large = per_step("3KB", size), per_step("30KB", size)
        row = (f"{mib} MiB", f"{first:.2f}", f"{step:.3f}", f"{forked:.2f}", f"{through:.1f}")
        row += (f"{small:.0f}", f"{large:.0f}", f"{size / 1e8:.2f}")
        print(" ".join(f"{cell:>13}" for cell in row))


if __name__ == "__main__":
    main()
