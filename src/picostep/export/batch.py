"""Records on their way from rings to sinks."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from picostep._ring import RingReader
    from picostep.export.payload import Record

__all__ = ["Batch", "Breaks"]

_READ_BETWEEN_BREAKS = 8  # records


class _Part(NamedTuple):
    """Consecutive records of one ring: up to `stop` in the batch, up to `position` in the ring."""

    ring: RingReader
    stop: int
    position: int


class Batch:
    """
    Records of one or more rings, which keep them until they are settled.

    Args:
        max_records: How many it takes.

        max_bytes: The same in bytes of the ring; the last record may reach beyond.

        prepare: Called with the records of each read, to complete them.

        breaks: Called between records, wherever they are read or iterated; None: nothing is.
    """

    def __init__(
        self,
        max_records: int,
        max_bytes: int,
        prepare: Callable[[Sequence[Record]], None],
        breaks: Breaks | None = None,
    ) -> None:
        self._records_left = max_records
        self._bytes_left = max_bytes
        self._prepare = prepare
        self._breaks = breaks
        self._records: list[Record] = []
        self._parts: deque[_Part] = deque()
        self._released = 0
        self._dropped: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def full(self) -> bool:
        return self._records_left <= 0 or self._bytes_left <= 0

    def fill(self, ring: RingReader) -> bool:
        """Read from a ring until it is empty or the batch full; return whether there was anything."""
        found = False
        while not self.full and self._read(ring):
            found = True
            if self._breaks is not None:
                self._breaks()
        return found

    def _read(self, ring: RingReader) -> bool:
        before = ring.position
        count = self._records_left if self._breaks is None else min(self._records_left, _READ_BETWEEN_BREAKS)
        records = ring.read(count, self._bytes_left)
        if records:
            self._prepare(records)
            self._records += records
            self._records_left -= len(records)
            self._bytes_left -= ring.position - before
            self._parts.append(_Part(ring, len(self._records), ring.position))
        return bool(records)

    def records(self, start: int, stop: int) -> Sequence[Record]:
        """Return some of the records, to be given to a sink."""
        records = self._records[start:stop]
        return records if self._breaks is None else _WithBreaks(records, self._breaks)

    def drop(self, index: int, reason: str) -> None:
        """Count a record as dropped, not delivered, when it is released. The first reason counts."""
        self._dropped.setdefault(index, reason)

    def release(self, settled: int) -> bool:
        """Let the rings forget the parts within the first `settled` records; return if there were any."""
        before = self._released
        while self._parts and self._parts[0].stop <= settled:
            ring, stop, position = self._parts.popleft()
            dropped = self._count_dropped(self._released, stop)
            ring.release(position, stop - self._released - dropped.total(), dropped)
            self._released = stop
        return self._released > before

    def _count_dropped(self, start: int, stop: int) -> Counter[str]:
        if not self._dropped:
            return Counter()
        return Counter(self._dropped[index] for index in range(start, stop) if index in self._dropped)


class Breaks:
    """
    Gives up the GIL now and then, so that the threads of the host do not have to wait until it is taken away.

    By time and not by records: in a busy host, getting the GIL back takes a switch interval of 5 ms, and how
    much work that buys must not depend on how small the records are.

    Args:
        every: Seconds of work between breaks.
    """

    def __init__(self, every: float) -> None:
        self._every = every
        self._due = 0.0

    def __call__(self) -> None:
        """Take a break if one is due."""
        if time.monotonic() >= self._due:
            time.sleep(0)
            self._due = time.monotonic() + self._every


class _WithBreaks(list["Record"]):
    """Records that make whoever iterates them take breaks."""

    def __init__(self, records: list[Record], breaks: Breaks) -> None:
        super().__init__(records)
        self._breaks = breaks

    def __iter__(self) -> Iterator[Record]:
        for record in super().__iter__():
            self._breaks()
            yield record
