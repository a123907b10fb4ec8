"""Records on their way from rings to sinks."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from picostep._ring import RingReader
    from picostep.export.payload import Record

__all__ = ["Batch"]


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

        slice_records: Pause after so many records, wherever they are read or iterated, to let other
            threads run;
            None: never.
    """

    def __init__(self, max_records: int, max_bytes: int, slice_records: int | None = None) -> None:
        self._records_left = max_records
        self._bytes_left = max_bytes
        self._slice_records = slice_records
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
            if self._slice_records is not None:
                time.sleep(0)
        return found

    def _read(self, ring: RingReader) -> bool:
        before = ring.position
        records = ring.read(
            min(self._records_left, self._slice_records or self._records_left), self._bytes_left
        )
        if records:
            self._records += records
            self._records_left -= len(records)
            self._bytes_left -= ring.position - before
            self._parts.append(_Part(ring, len(self._records), ring.position))
        return bool(records)

    def records(self, start: int, stop: int) -> Sequence[Record]:
        """Return some of the records, to be given to a sink."""
        records = self._records[start:stop]
        return records if self._slice_records is None else _Sliced(records, self._slice_records)

    def drop(self, index: int, reason: str) -> None:
        """Count a record as dropped, not delivered, when it is released. The first reason counts."""
        self._dropped.setdefault(index, reason)

    def release(self, settled: int) -> bool:
        """
        Let the rings forget the parts that lie within the first `settled` records; return whether there
        were any.
        """
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


class _Sliced(list["Record"]):
    """A list that gives up the GIL now and then while it is iterated."""

    def __init__(self, records: list[Record], size: int) -> None:
        super().__init__(records)
        self._size = size

    def __iter__(self) -> Iterator[Record]:
        for index, record in enumerate(super().__iter__()):
            if index % self._size == 0:
                time.sleep(0)
            yield record
