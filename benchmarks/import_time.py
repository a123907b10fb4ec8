"""Import time beside the reference, in fresh processes: `python benchmarks/import_time.py`."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROUNDS = 15
CODE = """
import sys, time
before = len(sys.modules)
start = time.perf_counter()
{statements}
print((time.perf_counter() - start) * 1e3, len(sys.modules) - before)
"""


def once(
    statements: str, python: str | Path = sys.executable, env: Mapping[str, str] | None = None
) -> tuple[float, int]:
    """Return the milliseconds that import statements take in a fresh process, and the modules they load."""
    output = subprocess.run(
        [python, "-c", CODE.format(statements=statements)],
        capture_output=True,
        text=True,
        check=True,
        env=env,
        timeout=60,
    ).stdout
    taken, modules = output.split()
    return float(taken), int(modules)


def main() -> None:
    names = ("picostep", "contextcompany")
    results: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        for name in names:
            results[name].append(once(f"import {name}"))
    for name in names:
        taken = statistics.median(taken for taken, _ in results[name])
        print(f"import {name:16}{taken:8.1f} ms{results[name][0][1]:6} modules")


if __name__ == "__main__":
    main()
