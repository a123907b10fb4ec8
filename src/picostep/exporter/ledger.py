"""What was read of each ring, where it is now, and what the ring is told of it."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, NamedTuple

from picostep.exporter.batch import spool_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from picostep._ring import RingReader
    from picostep.exporter.batch import Batch
    from picostep.exporter.sink_worker import Delivery, SinkWorker

__all__ = ["Ledger"]


class _Flight(NamedTuple):
    """A batch that not all sinks are through with, and its deliveries, one for each."""

    batch: Batch
    deliveries: Sequence[Delivery]


class _Account:
    """
    One ring's.

    Attributes:
        in_flight: Batches.

        owed: Records that left the ring for a spool: their end in the ring, and how many.

        pending: Frames of this ring in the spool of each worker.

        reached: Up to where the spool of each worker was emptied of this ring's records.

        dropped: Of those owed, by reason.
    """

    def __init__(self, ring: RingReader, workers: int) -> None:
        self.ring = ring
        self.in_flight = 0
        self.owed: deque[tuple[int, int]] = deque()
        self.pending = [0] * workers
        self.reached = [0] * workers
        self.dropped: Counter[str] = Counter()


class Ledger:
    """
    Releases records from their rings when all workers are through with them, and settles spooled ones when
    they have left all spools.

    Attributes:
        changes: How many times anything moved, and …

        changed_at: … when it did last, by `time.monotonic()`.

    Args:
        workers: All of them, in the order of the deliveries.
    """

    def __init__(self, workers: Sequence[SinkWorker]) -> None:
        self._workers = workers
        self._accounts: dict[bytes, _Account] = {}
        self._flights: deque[_Flight] = deque()
        self._gone: Counter[str] = Counter()
        self.changes = 0
        self.changed_at = time.monotonic()

    def open(self, ring: RingReader) -> None:
        """Begin with a ring, of which earlier exporters may have spooled records."""
        account = self._accounts[spool_name(ring)] = _Account(ring, len(self._workers))
        if any(worker.spool is not None for worker in self._workers):
            self._recover(account)

    def close(self, ring: RingReader) -> None:
        """Forget a ring."""
        self._accounts.pop(spool_name(ring), None)

    def in_flight(self, ring: RingReader) -> bool:
        """Whether records of a ring are read and not released."""
        return self._accounts[spool_name(ring)].in_flight > 0

    def owes(self, ring: RingReader) -> bool:
        """Whether records of a ring are spooled."""
        return bool(self._accounts[spool_name(ring)].owed)

    @property
    def idle(self) -> bool:
        """Whether no batch is in flight."""
        return not self._flights

    def add(self, batch: Batch, deliveries: Sequence[Delivery]) -> None:
        """Take note of a batch that was offered to all workers."""
        self._flights.append(_Flight(batch, deliveries))
        self._note_change()
        for part in batch.slices:
            self._accounts[part.name].in_flight += 1

    def update(self) -> None:
        """Tell the rings what is new."""
        while self._flights and all(delivery.through for delivery in self._flights[0].deliveries):
            self._release(self._flights.popleft())
            self._note_change()
        for index in range(len(self._workers)):
            if self._collect(index):
                self._note_change()
        if all(worker.spool is None or worker.spool.synced for worker in self._workers):
            for account in self._accounts.values():
                account.ring.synced()

    def _note_change(self) -> None:
        self.changes += 1
        self.changed_at = time.monotonic()

    def _release(self, flight: _Flight) -> None:
        dropped: dict[int, str] = {}
        for delivery in flight.deliveries:
            dropped = {**delivery.work.dropped, **dropped}
        spooled_from = min(delivery.moved[0] for delivery in flight.deliveries)
        for part in flight.batch.slices:
            account = self._accounts[part.name]
            account.in_flight -= 1
            here = [index for index in dropped if part.first <= index < part.stop]
            drops = Counter(dropped[index] for index in here)
            spooled = max(0, part.stop - max(part.first, spooled_from))
            spooled -= sum(index >= spooled_from for index in here)
            delivered = part.stop - part.first - spooled - drops.total()
            withheld = sum("withheld" in record for record in flight.batch.records(part.first, part.stop))
            part.ring.release(part.end, delivered, drops, spooled=spooled, withheld=withheld)
            if spooled:
                account.owed.append((part.end, spooled))
            for index, delivery in enumerate(flight.deliveries):
                account.pending[index] += delivery.frames.get(part, 0)
            self._settle_spooled(account)

    def _collect(self, index: int) -> bool:
        """Settle what has left the spool of one worker."""
        collected = self._workers[index].collect()
        touched = {}
        for done in collected:
            account = self._accounts.get(done.ring)
            if account is None:
                self._gone.update({"delivered": done.records - sum(done.dropped.values()), **done.dropped})
                continue
            account.pending[index] -= 1
            account.reached[index] = max(account.reached[index], done.end)
            account.dropped.update(done.dropped)
            touched[done.ring] = account
        for account in touched.values():
            self._settle_spooled(account)
        return bool(collected)

    def _settle_spooled(self, account: _Account) -> None:
        """Count those records as settled that are in no spool any more."""
        waiting = [
            reached for reached, frames in zip(account.reached, account.pending, strict=True) if frames > 0
        ]
        reached = min(waiting, default=account.ring.tail)
        count = 0
        while account.owed and account.owed[0][0] <= reached:
            count += account.owed.popleft()[1]
        if count:
            drops = _take(account.dropped, count)
            account.ring.settle(reached, count - drops.total(), drops)

    def _recover(self, account: _Account) -> None:
        """
        Find out what is still owed of what an earlier exporter has spooled.

        A frame beyond the tail was written by one that died before it released its records: they are in the
        ring, too. What is counted and not found was delivered by one that died before it could say so, or
        lost by damage.
        """
        ring, damaged = account.ring, False
        found: list[tuple[int, int]] = []
        for index, worker in enumerate(self._workers):
            if worker.spool is not None:
                frames = [entry for entry in worker.spool.entries() if entry[0] == spool_name(ring)]
                account.pending[index] = len(frames)
                damaged |= worker.spool.damaged
                owed = [(end, records) for _, end, records in frames if end <= ring.tail]
                found = max(found, owed, key=_total)
        account.owed.extend(found)
        missing = ring.in_spool - _total(found)
        if missing > 0:
            lost = missing if damaged else 0
            ring.settle(0, missing - lost, {"corrupt": lost})
        while missing < 0 and account.owed:
            end, records = account.owed.popleft()
            if records > -missing:
                account.owed.appendleft((end, records + missing))
            missing += records

    def take_gone(self) -> Counter[str]:
        """Return what became of spooled records of rings that are gone, "delivered" or dropped; told once."""
        gone, self._gone = self._gone, Counter()
        return gone


def _total(owed: Iterable[tuple[int, int]]) -> int:
    return sum(records for _, records in owed)


def _take(dropped: Counter[str], most: int) -> Counter[str]:
    """Take drops out of a counter, so many at most."""
    taken: Counter[str] = Counter()
    for reason in list(dropped):
        taken[reason] = min(dropped[reason], most)
        most -= taken[reason]
        dropped[reason] -= taken[reason]
    return taken
