"""The exporter's loop: rings in, sinks out."""

from __future__ import annotations

import logging
import time
import traceback
from functools import partial
from typing import TYPE_CHECKING, Protocol

from picostep.export.batch import Batch, Breaks
from picostep.export.inbox import DirectoryInbox, Inbox
from picostep.export.outlet import Outlet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from picostep._ring import RingReader
    from picostep.export.payload import Record
    from picostep.ringdir import RingDir
    from picostep.sinks import Sink

__all__ = ["Exporter", "Stop"]

_SHORTEST_PAUSE = 0.002  # seconds between looks into the rings: after work, and …
_LONGEST_PAUSE = 0.05  # … when nothing has come for a while
_CHECK_EVERY = 0.5  # seconds between looks at the rings while sinks fail
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
    them; what is under way when it stops stays in the rings for the next exporter. It knows nothing of
    signals, nor of the process it runs in.

    Thread-safety: `run()` belongs to one thread; `stop` may be set by any.

    Args:
        directories: Ring directories, of which the caller holds the locks.

        sinks: All of them get every record. They and the directories are closed by the caller.

        stop: Ends `run()` after the request that is under way.

        rings: More rings, which are in no directory.

        batch_records: Records offered to a sink at once, at most.

        batch_bytes: The same in bytes of the ring; a single record may be larger.

        break_every: Let other threads run after so many seconds of work: for use within a host. None: do not.

        linger: End when this many seconds have passed without a ring. None: stay.

        once: End when all rings are empty.

        prepare: Completes the records that were read, before any sink gets them.
    """

    def __init__(
        self,
        directories: Sequence[RingDir],
        sinks: Sequence[Sink],
        *,
        stop: Stop,
        prepare: Callable[[Sequence[Record]], None],
        rings: Sequence[RingReader] = (),
        batch_records: int = 512,
        batch_bytes: int = 1 << 20,
        break_every: float | None = None,
        linger: float | None = None,
        once: bool = False,
    ) -> None:
        self._inboxes = [*map(DirectoryInbox, directories), Inbox(rings)]
        self._outlets = [Outlet(sink) for sink in sinks]
        self._stop = stop
        breaks = None if break_every is None else Breaks(break_every)
        self._new_batch = partial(Batch, batch_records, batch_bytes, prepare, breaks)
        self._linger = linger
        self._once = once
        self._seen_ring = self._progress = time.monotonic()

    def run(self) -> None:
        """Work until done; the class says when that is."""
        pause = _SHORTEST_PAUSE
        try:
            while not self._stop.is_set():
                batch = self._read()
                if batch:
                    if not self._deliver(batch):
                        return
                    pause = _SHORTEST_PAUSE
                elif self._finished():
                    return
                else:
                    self._stop.wait(pause)
                    pause = min(pause * 1.5, _LONGEST_PAUSE)
        except Exception as error:  # a mistake of ours; its text may quote a record
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error("exporter failed: %s at %s:%s", type(error).__name__, place.filename, place.lineno)
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Let go of all rings; for a forked child, in which `run()` does not go on."""
        for inbox in self._inboxes:
            inbox.close()

    def _read(self) -> Batch:
        batch = self._new_batch()
        for inbox in self._inboxes:
            inbox.refresh()
            inbox.fill(batch)
        return batch

    def _deliver(self, batch: Batch) -> bool:
        """Have all sinks take a batch, however long that lasts; False when it was given up."""
        for outlet in self._outlets:
            outlet.offer(batch)
        while True:
            self._attempt(batch)
            if all(outlet.done for outlet in self._outlets):
                return True
            if self._stop.is_set() or self._abandoned():
                return False
            delay = min(outlet.delay() for outlet in self._outlets if not outlet.done)
            self._stop.wait(min(delay, _CHECK_EVERY))
            for inbox in self._inboxes:
                inbox.refresh()

    def _attempt(self, batch: Batch) -> None:
        """Let each sink that is due try once, and let the rings know of what is settled."""
        for outlet in self._outlets:
            if not outlet.done and outlet.delay() <= 0.0:
                outlet.attempt()
        if batch.release(min(outlet.settled for outlet in self._outlets)):
            self._progress = time.monotonic()
        trouble = next((outlet.trouble for outlet in self._outlets if outlet.trouble), "")
        for inbox in self._inboxes:
            inbox.announce(trouble)

    def _finished(self) -> bool:
        """Whether to end, now that all rings are empty."""
        if self._once:
            return True
        if any(self._inboxes):
            self._seen_ring = time.monotonic()
            return False
        return self._linger is not None and time.monotonic() - self._seen_ring >= self._linger

    def _abandoned(self) -> bool:
        """Whether to leave what the sinks do not take to a later exporter."""
        if self._linger is None or any(inbox.hosts_live for inbox in self._inboxes):
            return False
        return time.monotonic() - self._progress > _GIVE_UP_AFTER
