"""What a process holds before and after many turns of a scenario: memory blocks, memory, descriptors."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from picostep import runtime
from picostep._ring import RingReader

TURNS = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
"""Of each scenario, unless it says otherwise."""
NOISE = 15 if sys.version_info >= (3, 11) else 100
"""
Blocks that come and go with the interpreter's caches: Python 3.10 makes one for each function at its 1,024th
call.
"""
MIB = 1 << 20


def drain() -> None:
    """Empty this process's rings, so that the next records are not dropped."""
    for ring in runtime._rings.values():
        if ring.private:
            continue
        (path,) = Path(os.environ["PICOSTEP_DIR"]).rglob("*.ring")
        reader = RingReader(str(path))
        while records := reader.read(1000, 1 << 30):
            reader.release(reader.position, len(records))
        reader.close()


def memory() -> int:
    """Bytes of this process that are in no file; 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) * 1024


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else []


def turn(scenario: Callable[[], object], turns: int, between: Callable[[], None]) -> None:
    for number in range(turns):
        if number % 500 == 0:
            between()
        scenario()
    between()
    gc.collect()


def check(
    scenarios: Iterable[tuple[str, Callable[[], object]]],
    between: Callable[[], None] = drain,
    turns: int = TURNS,
) -> int:
    """Return how many scenarios leave more behind after many turns than after a quarter of that, or 50."""
    bad = 0
    for name, scenario in scenarios:
        try:
            turn(scenario, max(turns // 4, min(turns, 50)), between)
        except AssertionError as problem:
            raise SystemExit(f"{name}: {problem}") from None
        before, held, open_before = sys.getallocatedblocks(), memory(), descriptors()
        turn(scenario, turns, between)
        blocks, grown = sys.getallocatedblocks() - before, memory() - held
        # An allocator that counts no blocks is that of a checker, which keeps memory and finds leaks itself.
        if before == 0:
            continue
        if blocks > NOISE or grown > MIB or descriptors() != open_before:
            opened = len(descriptors()) - len(open_before)
            print(f"{name}: {blocks} blocks, {grown} bytes, {opened} descriptors more in {turns} turns")
            bad += 1
    print(f"{turns} turns each")
    return bad


@contextmanager
def refused(*errors: type[BaseException]) -> Iterator[None]:
    """Fail unless one of the errors is raised."""
    try:
        yield
    except errors:
        return
    raise AssertionError("accepted")
