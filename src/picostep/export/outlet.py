"""One sink, what it has yet to take of a batch, and when to try again."""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING

from picostep.sinks import Rejected, RetryLater

if TYPE_CHECKING:
    from collections.abc import Mapping

    from picostep.export.batch import Batch
    from picostep.sinks import Sink

__all__ = ["Outlet"]

_FIRST_DELAY = 0.5  # seconds; doubled at every failure
_LONGEST_DELAY = 60.0
_STRIKES = 3  # unexpected exceptions that a single record may cause
_SAME_AGAIN = 60.0  # seconds before the same trouble is logged once more

log = logging.getLogger(__name__)


class Outlet:
    """
    Offers batches to a sink, in halves where it rejects one, again and again where it fails.

    Nothing that a sink answers or raises gets out of here, and nothing that it says but `reason` is logged.
    """

    def __init__(self, sink: Sink) -> None:
        self.trouble = ""  # why the last attempt failed
        self._sink = sink
        self._name = type(sink).__name__
        self._batch: Batch
        self._todo: list[tuple[int, int]] = []  # ranges of the batch that were not taken, the first one last
        self._end = 0
        self._strikes = 0
        self._failures = 0  # attempts since the last success
        self._retry_at = 0.0
        self._logged: dict[str, float] = {}

    def offer(self, batch: Batch) -> None:
        """Begin with a batch; the one before must be done."""
        self._batch = batch
        self._end = len(batch)
        self._todo = [(0, self._end)]

    @property
    def done(self) -> bool:
        """Whether the batch is settled: taken, or dropped and counted."""
        return not self._todo

    @property
    def settled(self) -> int:
        """How many leading records of the batch are settled."""
        return self._todo[-1][0] if self._todo else self._end

    def delay(self) -> float:
        """Return the seconds until the next attempt may be made."""
        return max(0.0, self._retry_at - time.monotonic())

    def attempt(self) -> None:
        """Offer the first records that are not settled."""
        start, stop = self._todo.pop()
        try:
            unencodable = self._sink.deliver(self._batch.records(start, stop))
        except RetryLater as answer:
            self._put_back(self._take(start, stop, answer.delivered, answer.unencodable), stop)
            self._fail(answer.reason, answer.after)
        except Rejected as answer:
            self._reject(self._take(start, stop, answer.delivered, answer.unencodable), stop, answer.reason)
        except (OSError, MemoryError) as error:  # no fault of a record
            self._put_back(start, stop)
            self._fail(f"sink error: {type(error).__name__}")
        except Exception as error:
            self._stumble(start, stop, f"sink error: {type(error).__name__}")
        else:
            self._take(start, stop, stop - start, unencodable)
            self._succeed()

    def _take(self, start: int, stop: int, count: int, unencodable: Mapping[int, str]) -> int:
        """Settle `count` records from `start`; return where the others begin."""
        for index, why in unencodable.items():
            self._drop(start + index, "encode_error", f"a record cannot be encoded: {why}")
        if count > 0:
            self._strikes = 0
        return min(start + max(count, 0), stop)

    def _put_back(self, start: int, stop: int) -> None:
        if start < stop:
            self._todo.append((start, stop))

    def _reject(self, start: int, stop: int, reason: str) -> None:
        if stop - start > 1:
            self._halve(start, stop)
        elif start < stop:
            self._drop(start, "rejected", f"a record was rejected: {reason}")

    def _stumble(self, start: int, stop: int, reason: str) -> None:
        """Deal with an exception that may or may not be the fault of one of the records."""
        if stop - start > 1:
            self._halve(start, stop)
            return
        self._strikes += 1
        if self._strikes < _STRIKES:
            self._put_back(start, stop)
            self._fail(reason)
        else:
            self._strikes = 0
            self._drop(start, "encode_error", f"a record was dropped: {reason}")

    def _halve(self, start: int, stop: int) -> None:
        middle = (start + stop) // 2
        self._todo += [(middle, stop), (start, middle)]

    def _drop(self, index: int, counted_as: str, message: str) -> None:
        self._batch.drop(index, counted_as)
        self._log(message)

    def _fail(self, reason: str, after: float | None = None) -> None:
        """Wait before the next attempt: as asked, else at random, up to a limit that grows."""
        limit = min(_FIRST_DELAY * 2.0 ** min(self._failures, 30), _LONGEST_DELAY)
        delay = random.uniform(0.0, limit) if after is None else max(after, _FIRST_DELAY)
        self._failures += 1
        self._retry_at = time.monotonic() + delay
        if reason != self.trouble:
            self.trouble = reason
            self._log(f"{reason}; trying again")

    def _succeed(self) -> None:
        self._failures = 0
        if self.trouble:
            self.trouble = ""
            self._log("delivers again")

    def _log(self, message: str) -> None:
        now = time.monotonic()
        if now >= self._logged.get(message, 0.0) + _SAME_AGAIN or message not in self._logged:
            self._logged[message] = now
            log.warning("%s: %s", self._name, message)
