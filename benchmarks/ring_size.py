"""How the size of a ring matters: `python benchmarks/ring_size.py`. The default in docs/architecture.md comes from this."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time

from workloads import Picostep, Texts, exporter

import picostep
from picostep import recorder

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
    env = {**os.environ, "PICOSTEP_RING_BYTES": str(ring_bytes), "PICOSTEP_DIR": directory, "PICOSTEP_TO": f"jsonl:{directory}/first.jsonl"}
    rows = [
        [float(x) * 1e3 for x in subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout.split()]
        for _ in range(9)
    ]
    return [statistics.median(column) for column in zip(*rows, strict=True)]


def reserved(size: int) -> float:
    """Seconds until the background thread is through."""
    start = time.perf_counter()
    picostep.run()
    (ring,) = recorder._rings.values()
    while ring.ready < size:
        assert time.perf_counter() - start < 10
        time.sleep(0.0005)
    return time.perf_counter() - start


def main() -> None:
    print(f"{'ring':>8}{'run() ms':>10}{'step ms':>9}{'forked ms':>11}{'reserve ms':>12}{'3 KB ns':>9}{'30 KB ns':>10}{'buffer at 100 MB/s':>20}")
    for mib in (1, 4, 16, 64, 256):
        size = mib << 20
        with tempfile.TemporaryDirectory(prefix="picostep-bench-", dir="/dev/shm", ignore_cleanup_errors=True) as directory:  # noqa: S108
            first, (forked,) = fresh(FIRST, size, directory), fresh(FORKED, size, directory)
        with exporter(ring_bytes=size):
            through = reserved(size)
            cost = []
            for text in ("3KB", "30KB"):
                work = Picostep(Texts.of(text, "ascii"))
                # Half a ring a round, as many rounds as see all of it several times.
                n = max(1, size // 2 // (len(work.texts.prompt + work.texts.response + work.texts.tools) + 400))
                times = []
                for _ in range(12):
                    work.settle()
                    start = time.perf_counter()
                    work.steps(n)
                    times.append((time.perf_counter() - start) / n * 1e9)
                cost.append(statistics.median(times))
                work.check()
        print(f"{mib:>4} MiB{first[0]:>10.2f}{first[1]:>9.3f}{forked:>11.2f}{through * 1e3:>12.1f}{cost[0]:>9.0f}{cost[1]:>10.0f}{mib / 95.4:>18.2f} s")


if __name__ == "__main__":
    main()
