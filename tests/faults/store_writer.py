"""
A program that writes steps to a store until so many are in it.

Run as `python store_writer.py MODULE PATH NAME FIRST LAST BATCH`: with the `StoreSink` of a module it writes
the steps FIRST to LAST - 1 of NAME, in batches. On standard output it says `open` before it opens the file,
and then, after each batch, how many of NAME are stored. Like an exporter it leaves the file to others between
two batches, and tries again when it is locked.
"""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

PAUSE = 0.01  # seconds


def step(name: str, number: int) -> dict[str, Any]:
    """Return a step of which everything follows from its name and number."""
    return {
        "kind": "step",
        "run_id": name,
        "step_id": f"{name}-{number}",
        "start_ns": 1_795_000_000_000_000_000 + number,
        "end_ns": 1_795_000_001_000_000_000 + number,
        "status_code": 0,
        "seq": number,
        "completion_tokens": number,
        "prompt": f"{name} {number} " * (1 + number % 50),
        "traceparent": f"00-{number + 1:032x}-{number + 1:016x}-01",
    }


def main(module: str, path: str, name: str, first: str, last: str, batch: str) -> None:
    sink = import_module(module).StoreSink(path)
    stored = int(first)
    print("open", flush=True)
    while stored < int(last):
        until = min(stored + int(batch), int(last))
        try:
            sink.deliver([step(name, number) for number in range(stored, until)])
        except Exception as error:
            if "locked" not in str(error):
                raise
            continue
        stored = until
        print(stored, flush=True)
        time.sleep(PAUSE)
    sink.close()


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))  # where `old_store` is
    main(*sys.argv[1:])
