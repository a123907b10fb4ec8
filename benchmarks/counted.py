"""What gates.py counts the instructions of: `python counted.py NAME TURNS DIRECTORY`.

It imports little, because callgrind makes each import take long.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable

import picostep
from baselines import Dataclass
from compiled import cost_loop
from picostep import runtime
from picostep.ringdir import RingDir, base, list_directories, open_dir
from texts import Texts
from workloads import Picostep, SendStep

MANY = 1300
"""Records in the ring from which some are drained."""

AT_ONCE = 100
"""Records of a batch that is drained: a divisor of all numbers of turns."""

PRICES = 20
"""In a turn: one is too short."""

RING_BYTES = 16 << 20
MODEL, NOON = "gpt-4o", 1_795_262_400 * 10**9  # 2026-11-21T12:00:00Z
PICO = 1000 * 2_500_000 + 200 * 1_250_000 + 30 * 2_500_000 + 400 * 10_000_000  # no price for writes
PLAIN = "plain-Python step, 3 KB"


def only_directory(parent: str) -> RingDir:
    """The one ring directory that a host has made below its `PICOSTEP_DIR`."""
    own = base(parent)
    (name,) = list_directories(own)
    return open_dir(own, name, create=False)


def record(kind: type[Picostep], size: str, turns: int) -> None:
    """Record steps into a ring that holds them all; leave them there."""
    kind(Texts.of(size, "ascii")).steps(turns)
    stats = picostep.stats()
    assert (stats["accepted"], stats["shed"], sum(stats["dropped"].values())) == (turns, 0, 0)


def plain(turns: int) -> None:
    work = Dataclass(Texts.of("3KB", "ascii"))
    work.steps(turns)
    assert work.queue.qsize() == turns
    work.check()


def price(turns: int) -> None:
    """Find prices and calculate with them, as the exporter does it for each step."""
    from picostep.prices import builtin

    assert builtin().find(MODEL, "openai") >= 0  # and is in the cache now
    n = turns * PRICES
    assert cost_loop().both(builtin(), [MODEL], "openai", NOON, n) == n * PICO


def drain(turns: int) -> None:
    """Take records of a ring to a file: read, redact, price, encode, append."""
    from picostep.exporter.batch import Batch
    from picostep.exporter.stages import preparation
    from picostep.sinks import open_sinks

    record(Picostep, "3KB", MANY)
    destination = runtime._destinations[runtime.default_destination()]
    prepare, (sink,) = preparation(destination), open_sinks(destination)
    directory = only_directory(runtime.settings().dir or "")
    ring = directory.open_ring(*directory.ring_names())
    for _ in range(0, turns, AT_ONCE):
        batch = Batch(AT_ONCE, 1 << 30, prepare)
        assert batch.fill(ring)
        assert not sink.deliver(batch.records(0, AT_ONCE))


WORKS: dict[str, Callable[[int], None]] = {
    "step, 0.3 KB": lambda turns: record(Picostep, "0.3KB", turns),
    "step, 3 KB": lambda turns: record(Picostep, "3KB", turns),
    "send_step(), 3 KB": lambda turns: record(SendStep, "3KB", turns),
    f"{PRICES} prices": price,
    "drained record, 3 KB": drain,
    PLAIN: plain,
}


def main() -> None:
    name, turns, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    picostep.configure(
        to=f"jsonl:{directory}/out.jsonl", dir=directory, exporter="off", ring_bytes=RING_BYTES
    )
    ring = runtime._rings[runtime.default_destination()]
    deadline = time.monotonic() + 60
    while ring.ready < RING_BYTES:  # a thread is at work until then
        assert time.monotonic() < deadline
        time.sleep(0.05)
    gc.disable()
    WORKS[name](turns)
    os._exit(0)  # without what an interpreter does at its end


if __name__ == "__main__":
    main()
