"""The exporter's loop: rings in, sinks out."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Protocol

from picostep.exporter.batch import Batch, Breaks
from picostep.exporter.dead_letters import DeadLetters
from picostep.exporter.ledger import Ledger
from picostep.exporter.rings import DirectoryRings, Rings
from picostep.exporter.sink_worker import SinkWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from picostep._ring import RingReader
    from picostep.exporter.spool import Spool
    from picostep.record import Record
    from picostep.ringdir import RingDir
    from picostep.sinks import Sink

__all__ = ["Exporter", "Stop"]

_SHORTEST_PAUSE = 0.002  # seconds between looks into the rings: after work, and …
_LONGEST_PAUSE = 0.05  # … when nothing has come for a while
_SPOOL_EVERY = 0.25  # seconds between reads that are no full batch while sinks fail: frames of some size
_GIVE_UP_AFTER = 600.0  # seconds without progress and without a living host

log = logging.getLogger(__name__)


class Stop(Protocol):
    """Tells the exporter to end; a `threading.Event` is one."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float) -> object:
        """Return after the timeout, in seconds, or as soon as it is set."""


class Exporter:
    """
    Moves records from rings to sinks until there are no more to come or it is told to stop.

    It never raises because of a record, a ring or a sink. Records leave their ring when every sink has taken
    them, itself or into its spool; what is under way when it stops stays where it is for the next exporter.
    It knows nothing of signals, nor of the process it runs in.

    Thread-safety: `run()` belongs to one thread, and starts one for each sink; `stop` may be set, and
    `counters()` called, by any.

    Args:
        directories: Ring directories, of which the caller holds the locks.

        sinks: All of them get every record. They and the directories are closed by the caller.

        stop: Ends `run()` after the requests that are under way.

        spools: One for each sink; None: there are none.

        rings: More rings, which are in no directory.

        batch_records: Records offered to a sink at once, at most.

        batch_bytes: The same in bytes of the ring; a single record may be larger.

        break_every: Let other threads run after so many seconds of work: for use within a host. None: do not.

        linger: End when this many seconds have passed without a ring. None: stay.

        once: End when all rings and spools are empty.

        prepare: Completes the records that were read, before any sink gets them.
    """

    def __init__(
        self,
        directories: Sequence[RingDir],
        sinks: Sequence[Sink],
        *,
        stop: Stop,
        prepare: Callable[[Sequence[Record]], None],
        spools: Sequence[Spool] | None = None,
        rings: Sequence[RingReader] = (),
        batch_records: int = 512,
        batch_bytes: int = 1 << 20,
        break_every: float | None = None,
        linger: float | None = None,
        once: bool = False,
    ) -> None:
        breaks = None if break_every is None else Breaks(break_every)
        self._news = threading.Event()
        self._lock = threading.Lock()  # of rings and ledger
        self._spools = spools or ()
        stores: Sequence[Spool | None] = spools or [None] * len(sinks)
        self._workers = [
            SinkWorker(
                sink,
                spool,
                DeadLetters(spool.base, spool.sink) if spool is not None else None,
                wake=self._tell_rings,
                at_once=batch_records,
                most_bytes=batch_bytes,
                breaks=breaks,
            )
            for sink, spool in zip(sinks, stores, strict=True)
        ]
        self._ledger = Ledger(self._workers)
        self._sources = [
            *(DirectoryRings(each, self._ledger) for each in directories),
            Rings(self._ledger, rings),
        ]
        self._stop = stop
        self._new_batch = partial(Batch, batch_records, batch_bytes, prepare, breaks)
        self._batch_bytes = batch_bytes
        self._linger = linger
        self._once = once
        self._last_counters: dict[str, Any] | None = None
        self._read_at = 0.0
        self._seen_ring = time.monotonic()

    def run(self) -> None:
        """Work until done; the class says when that is."""
        for rings in self._sources:  # before spools are emptied: the ledger compares them with the rings
            rings.refresh()
        for worker in self._workers:
            worker.start()
        pause = _SHORTEST_PAUSE
        try:
            while not self._stop.is_set():
                with self._lock:
                    before = self._ledger.changes
                    batch = self._read()
                    self._move(batch)
                    moved = bool(batch) or self._ledger.changes > before
                    if batch is not None and not moved and self._finished():
                        return
                for worker in self._workers:
                    worker.deliver_inline()
                pause = _SHORTEST_PAUSE if moved else min(pause * 1.5, _LONGEST_PAUSE)
                self._wait(pause)
        except Exception as error:  # a mistake of ours; its text may quote a record
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error("exporter failed: %s at %s:%s", type(error).__name__, place.filename, place.lineno)
            raise
        finally:
            for worker in self._workers:
                worker.stop()
            with self._lock:
                self._ledger.update()
                self._last_counters = self._count()
            self.close()

    def counters(self) -> dict[str, Any]:
        """
        Return the sums over all rings, also those that are gone, by their names in `picostep.stats()`.

        And `rings`: how many there are. It waits for what `run()` is doing, and does not change afterwards.
        """
        with self._lock:
            return self._last_counters or self._count()

    def close(self) -> None:
        """Let go of all rings and spools; for a forked child, in which `run()` does not go on."""
        for rings in self._sources:
            rings.close()
        for spool in self._spools:
            spool.close()

    def _count(self) -> dict[str, Any]:
        sums: dict[str, Any] = {"dropped": {}}
        for rings in self._sources:
            rings.count(sums)
        return sums

    def _tell_rings(self) -> None:
        """Tell the rings at once what a sink has taken: until then it would be sent again after a crash."""
        with self._lock:
            self._ledger.update()
        self._news.set()

    def _move(self, batch: Batch | None) -> None:
        """Do what can be done now, with a new batch or without."""
        if batch:
            self._ledger.add(batch, [worker.offer(batch) for worker in self._workers])
        hurry = any(rings.crowded for rings in self._sources) or self._held_up()
        for worker in self._workers:
            worker.run_due(hurry=hurry)
        self._ledger.update()
        trouble = next((worker.trouble for worker in self._workers if worker.trouble), "")
        for rings in self._sources:
            rings.set_last_error(trouble)
            rings.count_gone(self._ledger.take_gone())

    def _read(self) -> Batch | None:
        """Read what there is, if all sinks have room for it, and if it is worth a frame where they spool."""
        now = time.monotonic()
        for rings in self._sources:
            rings.refresh()
        if not all(worker.has_room for worker in self._workers):
            return None
        worth_it = now >= self._read_at or any(each.backlog >= self._batch_bytes for each in self._sources)
        if not worth_it and any(worker.spooling for worker in self._workers):
            return None
        self._read_at = now + _SPOOL_EVERY
        batch = self._new_batch()
        for rings in self._sources:
            rings.fill(batch)
        return batch

    def _held_up(self) -> bool:
        """Whether a sink has nothing to do while a whole batch waits until another one has room."""
        return (
            any(worker.waits for worker in self._workers)
            and not all(worker.has_room for worker in self._workers)
            and any(rings.backlog >= self._batch_bytes for rings in self._sources)
        )

    def _wait(self, pause: float) -> None:
        if self._ledger.idle:
            self._stop.wait(pause)
        else:  # whoever brings news may bring room for more
            self._news.wait(pause)
            self._news.clear()

    def _finished(self) -> bool:
        """Whether to end, now that all rings are empty."""
        idle = self._ledger.idle and all(worker.idle for worker in self._workers)
        if self._once:
            return idle
        if self._linger is None:
            return False
        now = time.monotonic()
        if any(self._sources) or not idle:
            self._seen_ring = now
            return now - self._ledger.changed_at > _GIVE_UP_AFTER and not any(
                rings.hosts_live for rings in self._sources
            )
        return now - self._seen_ring >= self._linger
