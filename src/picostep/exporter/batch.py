"""Records on their way from rings to sinks."""

from __future__ import annotations

import time
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from picostep._ring import RingReader
    from picostep.record import Record

__all__ = ["Batch", "Breaks", "Slice", "Work", "spool_name"]

_READ_BETWEEN_BREAKS = 8  # records


class Slice(NamedTuple):
    """
    The part of a batch that comes from one ring: where it begins and ends, in the batch and in the ring.

    Attributes:
        name: What the ring is called in spools.
    """

    ring: RingReader
    name: bytes
    first: int
    stop: int
    start: int
    end: int


def spool_name(ring: RingReader) -> bytes:
    """Return what a ring is called in spools: 8 bytes."""
    return blake2b(ring.name.encode(), digest_size=8).digest()


class Batch:
    """
    Records of one or more rings, which keep them until they are released.

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
        self.slices: list[Slice] = []
        self._records_left = max_records
        self._bytes_left = max_bytes
        self._prepare = prepare
        self._breaks = breaks
        self._records: list[Record] = []

    def __len__(self) -> int:
        return len(self._records)

    @property
    def full(self) -> bool:
        return self._records_left <= 0 or self._bytes_left <= 0

    def fill(self, ring: RingReader) -> bool:
        """Read from a ring until it is empty or the batch full; return whether there was anything."""
        first, start = len(self._records), ring.position
        while not self.full and self._read(ring):
            if self._breaks is not None:
                self._breaks()
        if len(self._records) == first:
            return False
        self.slices.append(Slice(ring, spool_name(ring), first, len(self._records), start, ring.position))
        return True

    def _read(self, ring: RingReader) -> bool:
        before = ring.position
        count = self._records_left if self._breaks is None else min(self._records_left, _READ_BETWEEN_BREAKS)
        records = ring.read(count, self._bytes_left)
        if records:
            self._prepare(records)
            self._records += records
            self._records_left -= len(records)
            self._bytes_left -= ring.position - before
        return bool(records)

    def records(self, start: int, stop: int) -> Sequence[Record]:
        """Return some of the records, to be given to a sink."""
        return _with_breaks(self._records[start:stop], self._breaks)

    def work(self) -> Work:
        """Return all of the records as the work of one sink."""
        return Work(self._records, len(self._records) or 1, self._breaks)


class Work:
    """
    Records that one sink is to take: which of them are settled, and which of these were dropped.

    Attributes:
        todo: Ranges that are not settled, the first one last. Together they reach to the end.

        dropped: Index and reason.

    Args:
        records: All of them.

        at_once: How many are offered at once, at most.

        breaks: As for `Batch`.
    """

    def __init__(self, records: Sequence[Record], at_once: int, breaks: Breaks | None) -> None:
        self._records = records
        self._breaks = breaks
        starts = range(0, len(records), at_once)
        self.todo = [(start, min(start + at_once, len(records))) for start in reversed(starts)]
        self.dropped: dict[int, str] = {}

    @property
    def settled(self) -> int:
        """How many leading records are settled."""
        return self.todo[-1][0] if self.todo else len(self._records)

    def records(self, start: int, stop: int) -> Sequence[Record]:
        """Return some of the records, to be given to the sink."""
        return _with_breaks(self._records[start:stop], self._breaks)

    def skip(self, stop: int) -> None:
        """Count everything before an index as settled."""
        while self.todo and self.todo[-1][0] < stop:
            _, end = self.todo.pop()
            if end > stop:
                self.todo.append((stop, end))


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

    def __init__(self, records: Iterable[Record], breaks: Breaks) -> None:
        super().__init__(records)
        self._breaks = breaks

    def __iter__(self) -> Iterator[Record]:
        for record in super().__iter__():
            self._breaks()
            yield record


def _with_breaks(records: Sequence[Record], breaks: Breaks | None) -> Sequence[Record]:
    return records if breaks is None else _WithBreaks(records, breaks)
