"""What a sink answers: what follows for the records, and when to try again."""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING, NamedTuple

from picostep.sinks import Refused, Rejected, RetryLater

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from picostep.exporter.batch import Work
    from picostep.exporter.dead_letters import DeadLetters
    from picostep.record import Record
    from picostep.sinks import Sink

__all__ = ["Answer", "Attempts", "counted_as"]

_FIRST_DELAY = 0.5  # seconds; doubled at every failure
_LONGEST_DELAY = 60.0
_STRIKES = 3  # unexpected exceptions that a single record may cause
_SAME_AGAIN = 60.0  # seconds before the same trouble is logged once more

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """
    What became of records that were offered.

    Attributes:
        settled: How many leading ones are done with.

        not_taken: Those of them that could not be encoded or were refused: index and why.

        rejected: Why the others will never be taken as they are, or "".

        failure: Why the others were not taken now, or "".

        after: Seconds to wait, if the receiver has said so.

        unexpected: Whether the failure may be the fault of one of the records.
    """

    settled: int
    not_taken: Mapping[int, str] = {}
    rejected: str = ""
    failure: str = ""
    after: float | None = None
    unexpected: bool = False


class Attempts:
    """
    Offers records to a sink, in halves where it rejects some, again and again where it fails.

    Nothing that a sink answers or raises gets out of here, and nothing that it says but `reason` is logged.

    Args:
        sink: Belongs to the caller.

        dead_letters: Keep what was dropped; None: nothing does.
    """

    def __init__(self, sink: Sink, dead_letters: DeadLetters | None = None) -> None:
        self.trouble = ""  # why the last attempt failed
        self._sink = sink
        self._dead_letters = dead_letters
        self._name = type(sink).__name__
        self._strikes = 0
        self._failures = 0  # attempts since the last success
        self._retry_at = 0.0
        self._logged: dict[str, float] = {}

    def delay(self) -> float:
        """Return the seconds until the next attempt may be made."""
        return max(0.0, self._retry_at - time.monotonic())

    def offer(self, records: Sequence[Record]) -> Answer:
        """Have the sink take records. Changes nothing here, and may last as long as the sink likes."""
        try:
            return Answer(len(records), self._sink.deliver(records))
        except RetryLater as said:
            return Answer(said.delivered, said.unencodable, failure=said.reason, after=said.after)
        except Rejected as said:
            return Answer(said.delivered, said.unencodable, rejected=said.reason)
        except (OSError, MemoryError) as error:  # no fault of a record
            return Answer(0, failure=f"sink error: {type(error).__name__}")
        except Exception as error:
            return Answer(0, failure=f"sink error: {type(error).__name__}", unexpected=True)

    def apply_answer(self, work: Work, answer: Answer) -> None:
        """Note what an answer to the first range of a work means for it, and when to go on."""
        start, stop = work.todo.pop()
        taken = min(max(answer.settled, 0), stop - start)
        for index, why in answer.not_taken.items():
            if index < taken and isinstance(why, Refused):
                self._drop(
                    work, start + index, counted_as(why), f"a record was rejected: {why}", keep=why.known
                )
            elif index < taken:
                self._drop(work, start + index, counted_as(why), f"a record cannot be encoded: {why}")
        if taken:
            self._strikes = 0
        start += taken
        if start == stop:
            self.apply_backoff(answer)
        elif answer.rejected:
            if stop - start > 1:
                _halve(work, start, stop)
            else:
                self._drop(work, start, "rejected", f"a record was rejected: {answer.rejected}")
            self.apply_backoff(answer)
        elif answer.unexpected:
            self._retry_suspect(work, start, stop, answer)
        else:
            work.todo.append((start, stop))
            self.apply_backoff(answer)

    def apply_backoff(self, answer: Answer) -> None:
        """Note when to go on; also for an answer to records that are no concern of ours any more."""
        if answer.failure:
            self._fail(answer.failure, answer.after)
        elif not answer.rejected:
            self._succeed()

    def _retry_suspect(self, work: Work, start: int, stop: int, answer: Answer) -> None:
        """Deal with an exception that may or may not be the fault of one of the records."""
        if stop - start > 1:
            _halve(work, start, stop)
            return
        self._strikes += 1
        if self._strikes < _STRIKES:
            work.todo.append((start, stop))
            self.apply_backoff(answer)
        else:
            self._strikes = 0
            self._drop(work, start, "encode_error", f"a record was dropped: {answer.failure}")

    def _drop(self, work: Work, index: int, reason: str, message: str, *, keep: bool = True) -> None:
        work.dropped[index] = reason
        self._log(message)
        if keep and self._dead_letters is not None:
            (record,) = work.records(index, index + 1)
            self._dead_letters.write(record, message)

    def _fail(self, reason: str, after: float | None) -> None:
        """Wait before the next attempt: as asked, else at random, up to a limit that grows."""
        limit = min(_FIRST_DELAY * 2.0 ** min(self._failures, 30), _LONGEST_DELAY)
        delay = random.uniform(0.0, limit)
        if after is not None:  # "at once", or a date that has passed, is no reason to go on without a pause
            delay = after if after >= _FIRST_DELAY else max(delay, _FIRST_DELAY)
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


def counted_as(why: str) -> str:
    """Return the counter of a record that a sink has named, and why."""
    return "rejected" if isinstance(why, Refused) else "encode_error"


def _halve(work: Work, start: int, stop: int) -> None:
    middle = (start + stop) // 2
    work.todo += [(middle, stop), (start, middle)]
