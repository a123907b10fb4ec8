"""Import time beside the reference, in fresh processes: `python benchmarks/import_time.py`."""

from __future__ import annotations

import statistics
import subprocess
import sys

ROUNDS = 15
CODE = """
import sys, time
before = len(sys.modules)
start = time.perf_counter()
import {name}
print((time.perf_counter() - start) * 1e3, len(sys.modules) - before)
"""


def once(name: str) -> tuple[float, int]:
    output = subprocess.run(
        [sys.executable, "-c", CODE.format(name=name)], capture_output=True, text=True, check=True
    ).stdout
    taken, modules = output.split()
    return float(taken), int(modules)


def main() -> None:
    names = ("picostep", "contextcompany")
    results: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            results[name].append(once(name))
    for name in names:
        taken = statistics.median(taken for taken, _ in results[name])
        print(f"import {name:16}{taken:8.1f} ms{results[name][0][1]:6} modules")


if __name__ == "__main__":
    main()
