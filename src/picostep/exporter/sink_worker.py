"""One sink with the thread that works for it, the batches that it is to take, and its spool."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from typing import TYPE_CHECKING

from picostep.exporter.attempts import Attempts, counted_as
from picostep.exporter.batch import Work
from picostep.exporter.spool import Part

if TYPE_CHECKING:
    from collections.abc import Callable

    from picostep.exporter.attempts import Answer
    from picostep.exporter.batch import Batch, Breaks, Slice
    from picostep.exporter.dead_letters import DeadLetters
    from picostep.exporter.spool import Done, Spool
    from picostep.sinks import Sink

__all__ = ["Delivery", "SinkWorker"]

IN_FLIGHT = 2  # batches: one is delivered while the next is read
PATIENCE = 1.0  # seconds that a batch waits for its sink before it is spooled …
LITTLE_PATIENCE = 0.1  # … and while rings are filling up or another sink could have more
UNREADABLE_AGAIN = 1.0  # seconds until the spool is read again after an error
ADOPT_EVERY = 60.0  # seconds between looks for what other exporters have left

log = logging.getLogger(__name__)


class Delivery:
    """
    A batch on its way to one sink.

    Attributes:
        work: The batch's records without those that were moved to the spool.

        moved: The range of the batch that was moved to the spool.

        comes_first: Whether that was all there was in the spool.

        frames: How many frames hold what was moved of each slice of the batch.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.work = batch.work()
        self.since = time.monotonic()
        self.moved = (len(batch), len(batch))
        self.comes_first = False
        self.frames: dict[Slice, int] = {}

    @property
    def through(self) -> bool:
        """Whether each record was delivered, dropped or spooled."""
        return not self.work.todo


class SinkWorker:
    """
    Brings batches to a sink in their order; what it cannot take soon goes to the spool, and from there.

    While there is anything in the spool, all that comes goes there, too. A batch that is being offered when
    it is moved to the spool is taken out of that again if the sink takes it after all.

    Thread-safety: one thread, the exporter's, calls everything that is public.

    Args:
        sink: Belongs to the caller.

        spool: None: what the sink does not take waits in the rings.

        dead_letters: As for `Attempts`.

        wake: Called when something has changed, from the thread of the sink.

        at_once, most_bytes: Records and bytes that are offered at once, at most; a record may be larger.

        breaks: As for `Batch`.
    """

    def __init__(
        self,
        sink: Sink,
        spool: Spool | None,
        dead_letters: DeadLetters | None,
        *,
        wake: Callable[[], None],
        at_once: int,
        most_bytes: int,
        breaks: Breaks | None,
    ) -> None:
        self.spool = spool
        self.failure: BaseException | None = None  # a mistake of ours that ended the thread
        self._attempts = Attempts(sink, dead_letters)
        self._wake = wake
        self._at_once = at_once
        self._most_bytes = most_bytes
        self._breaks = breaks
        self._queue: deque[Delivery] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._has_thread = True
        self._adopt_at = time.monotonic() + ADOPT_EVERY
        self._thread = threading.Thread(target=self._run, name="picostep-sink", daemon=True)

    # ---- the exporter's side -------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver, in a thread of its own; where there can be none, `deliver_inline()` does it."""
        try:
            self._thread.start()
        except RuntimeError:  # Python 3.12 and later start none while the interpreter ends
            self._has_thread = False

    def deliver_inline(self) -> None:
        """Deliver what is due now, if there is no thread that does."""
        if not self._has_thread:
            self._run(self._is_due)

    def stop(self) -> None:
        """End after the request that is under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def has_room(self) -> bool:
        """Whether another batch can be offered."""
        return len(self._queue) < IN_FLIGHT

    @property
    def spooling(self) -> bool:
        """Whether what is offered goes to the spool."""
        return bool(self.spool)

    @property
    def idle(self) -> bool:
        """Whether everything that was offered is delivered or dropped."""
        return not self._queue and not self.spool

    @property
    def waits(self) -> bool:
        """Whether the sink works, and has nothing to do."""
        return self.idle and not self.trouble

    @property
    def trouble(self) -> str:
        """Why nothing is delivered, or spooled; "" if all is well."""
        return self._attempts.trouble or (self.spool.trouble if self.spool is not None else "")

    def offer(self, batch: Batch) -> Delivery:
        """Take a batch; its delivery tells how far that has come."""
        delivery = Delivery(batch)
        with self._changed:
            self._queue.append(delivery)
            self._changed.notify_all()
        return delivery

    def run_due(self, *, hurry: bool) -> None:
        """
        Do what is due: move to the spool what has waited too long, sync, take over what others have left.

        Args:
            hurry: Rings are filling up, or another sink waits for this one.
        """
        if self.failure is not None:
            raise self.failure
        if self.spool is None:
            return
        with self._changed:
            patience = LITTLE_PATIENCE if hurry else PATIENCE
            if self._queue and (self.spool or time.monotonic() - self._queue[0].since >= patience):
                while self._queue and self._move(self._queue[0]):
                    self._queue.popleft()
                self._changed.notify_all()
        self.spool.sync()
        if time.monotonic() >= self._adopt_at:
            self._adopt_at = time.monotonic() + ADOPT_EVERY
            self.spool.adopt()
            with self._changed:
                self._changed.notify_all()

    def collect(self) -> list[Done]:
        """Return what has left the spool since the last call."""
        return [] if self.spool is None else self.spool.collect()

    def _move(self, delivery: Delivery) -> bool:
        """Move what is left of a batch to the spool; return whether all of it could be."""
        assert self.spool is not None
        work = delivery.work
        if delivery.moved[0] == delivery.moved[1]:
            delivery.moved = (work.settled, work.settled)
        for part in delivery.batch.slices:
            first = max(part.first, work.settled)
            if first < part.stop and work.todo:
                records = work.records(first, part.stop)
                frames = self.spool.append(Part(part.name, part.start, part.end, records))
                if not frames:
                    return False
                if delivery.moved[0] == delivery.moved[1]:
                    delivery.comes_first = len(self.spool) == part.stop - first
                delivery.frames[part] = frames
                delivery.moved = (delivery.moved[0], part.stop)
                work.skip(part.stop)
        return True

    # ---- the sink's side -----------------------------------------------------------------------------------

    def _run(self, while_true: Callable[[], bool] = lambda: True) -> None:
        try:
            while while_true() and self._turn():
                self._wake()
        except Exception as error:  # a mistake of ours; its text may quote a record
            place = traceback.extract_tb(error.__traceback__)[-1]
            log.error("delivery failed: %s at %s:%s", type(error).__name__, place.filename, place.lineno)
            self.failure = error
            self._wake()

    def _turn(self) -> bool:
        """Wait for something to do, and do it; False when it is time to stop."""
        with self._changed:
            while not self._stopping and not self._is_due():
                delay = self._attempts.delay()
                self._changed.wait(delay if delay > 0.0 else None)
            if self._stopping:
                return False
            delivery = None if self.spool else self._queue[0]
        if delivery is None:
            self._deliver_spooled()
        else:
            self._deliver(delivery)
        return True

    def _is_due(self) -> bool:
        return self._attempts.delay() <= 0.0 and bool(self._queue or self.spool)

    def _deliver(self, delivery: Delivery) -> None:
        """Offer the first records of a batch."""
        work = delivery.work
        with self._changed:
            if not work.todo:  # it was moved just now
                return
            start, stop = work.todo[-1]
        answer = self._attempts.offer(work.records(start, stop))
        with self._changed:
            if delivery.moved[0] <= start < delivery.moved[1]:
                self._take_back(delivery, start, answer)
            else:
                self._attempts.apply_answer(work, answer)
            if not work.todo and self._queue and self._queue[0] is delivery:
                self._queue.popleft()

    def _take_back(self, delivery: Delivery, start: int, answer: Answer) -> None:
        """Note that records were settled while they were moved to the spool, if they come first there."""
        assert self.spool is not None
        self._attempts.apply_backoff(answer)
        if not delivery.comes_first:  # others were taken over meanwhile: these will be sent again
            return
        moved = min(answer.settled, delivery.moved[1] - start)
        dropped = {index: counted_as(why) for index, why in answer.not_taken.items()}
        self.spool.mark_settled(moved, {index: reason for index, reason in dropped.items() if index < moved})
        for index, reason in dropped.items():
            if index >= moved:
                delivery.work.dropped[start + index] = reason
        delivery.work.skip(start + answer.settled)

    def _deliver_spooled(self) -> None:
        """Offer what comes first in the spool, until it is settled or the sink fails."""
        assert self.spool is not None
        if self.spool.drop_unreadable():
            return
        records = self.spool.read(self._at_once, self._most_bytes)
        if not records and not self.spool.drop_unreadable():
            with self._changed:
                self._changed.wait(UNREADABLE_AGAIN)
        work = Work(records, self._at_once, self._breaks)
        while work.todo and not self._stopping and self._attempts.delay() <= 0.0:
            settled = work.settled
            answer = self._attempts.offer(work.records(*work.todo[-1]))
            self._attempts.apply_answer(work, answer)
            here = range(settled, work.settled)
            self.spool.mark_settled(
                len(here), {index - settled: work.dropped[index] for index in here if index in work.dropped}
            )
            self._wake()
