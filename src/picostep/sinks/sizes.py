"""What a receiver refuses as too large, and what is sent instead."""

from __future__ import annotations

import logging
import time
from math import inf
from typing import TYPE_CHECKING, TypeVar

from picostep.record import content
from picostep.sinks.http import TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from picostep.record import Record

__all__ = ["Sizes", "shed"]

_FORGOTTEN_AFTER = 600.0  # seconds; the receiver may have another limit by then
_LEAST = 64 * 1024  # bytes; whoever takes less of several records is offered these, and they are halved
_SHORT = 1_000  # characters of a text that is never left out

log = logging.getLogger(__name__)

T = TypeVar("T")


class Sizes:
    """
    Sends what is not too large, and remembers what was, so that its like is not tried in vain again.

    A refusal tells nothing about sizes where something as large was taken: some receivers say 413 to what is
    in a record, or to the number of records. A record goes in a lesser form only where that is of use.

    Args:
        name: Of the sink, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._taken = 0  # bytes of the largest request since a refusal that was a surprise
        self._together: float = inf  # bytes that a request of several records should not exceed
        self._alone: float = inf  # bytes of the smallest request of one record that was too large
        self._forget_at = inf

    @property
    def most(self) -> float:
        """Bytes of several records that may go together."""
        self._forget()
        return self._together

    def send_several(self, body: bytes, send: Callable[[bytes], T]) -> T:
        """Send a request of several records; raises what `send` does."""
        try:
            answer = send(body)
        except TooLarge:
            if self._is_news(len(body)):
                self._together = max(len(body) // 2, _LEAST)
            raise
        self._took(len(body))
        return answer

    def send_one(self, forms: Iterable[bytes], send: Callable[[bytes], T]) -> T:
        """
        Send the first form of one record that is not too large.

        Args:
            forms: Whole requests, each with less of the record than the one before.

            send: Returns an answer, or raises; TooLarge makes the next form be tried.

        Raises:
            TooLarge: All of them are.
        """
        self._forget()
        refused = 0
        said: TooLarge | None = None
        body = b""
        for body in forms:
            if len(body) < self._alone:
                try:
                    answer = send(body)
                except TooLarge as error:
                    refused, said = len(body), error
                else:
                    self._took(len(body))
                    if refused and self._is_news(refused):
                        self._learn(refused)
                    return answer
        if said is not None:
            raise said
        answer = send(body)  # all are larger than what was too large: the least of them may be taken yet
        self._took(len(body))
        return answer

    def _took(self, size: int) -> None:
        self._taken = max(self._taken, size)
        if size >= self._alone:
            self._alone = inf

    def _is_news(self, size: int) -> bool:
        """Return whether a refusal says something about sizes."""
        if size > self._taken:
            self._forget_at = time.monotonic() + _FORGOTTEN_AFTER
            return True
        self._taken = 0  # what comes next decides whether the limit was lowered
        return False

    def _learn(self, size: int) -> None:
        if self._alone == inf:
            log.warning(
                "%s: http 413 to a record of %d bytes: what is too large goes without long texts",
                self._name,
                size,
            )
        self._alone = min(self._alone, size)

    def _forget(self) -> None:
        if time.monotonic() >= self._forget_at:
            self._together = self._alone = self._forget_at = inf
            self._taken = 0


def shed(record: Record) -> Record | None:
    """Return a record without its long texts, marked as shed; None where it has none, or would be empty."""
    texts = content()
    kept = record.copy()
    for key, value in record.items():
        if key in texts and isinstance(value, str) and len(value) > _SHORT:
            del kept[key]  # type: ignore[misc]
    if len(kept) == len(record) or (record["kind"] == "feedback" and "score" not in kept):
        return None
    kept["shed"] = True
    return kept
