"""What an exporter counts, for `picostep top`: a socket in its ring directory, which costs nothing unused."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from picostep.metrics.aggregate import Aggregator, Snapshot
    from picostep.record import Record
    from picostep.ringdir import RingDir

__all__ = ["NoAnswer", "TopSocket", "ask"]

NAME = "metrics"
_FORMAT = 1
_COUNT_FOR = 60.0  # seconds after an answer
_LONGEST = 2.0  # seconds that an answer may take
_MOST_ANSWERS = 4  # at a time
_MOST_BYTES = 64 << 20  # of an answer
_AGAIN = 1.0  # seconds, where a connection cannot be taken

log = logging.getLogger(__name__)


class TopSocket:
    """
    Sends everybody who connects all sums since it was asked first, and counts as long as somebody asks.

    What a client sends is not read, and one that does not read is given up: neither keeps the exporter
    waiting.

    Args:
        directory: Belongs to the caller, who holds its lock from `start()` to `stop()`.
    """

    def __init__(self, directory: RingDir) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._aggregator: Aggregator | None = None
        self._until = 0.0
        self._listener: socket.socket | None = None
        self._answers = threading.BoundedSemaphore(_MOST_ANSWERS)

    def start(self) -> None:
        """Listen, in a thread; where there can be no socket, do without."""
        listener = None
        try:
            listener = socket.socket(socket.AF_UNIX)
            self._directory.unlink(NAME)  # of an exporter that was killed
            listener.bind(_address(self._directory))
            listener.listen()
            threading.Thread(target=self._serve, args=(listener,), name="picostep-top", daemon=True).start()
        except (OSError, RuntimeError) as error:
            log.warning("picostep top cannot ask this exporter: %s", error)
            if listener is not None:
                listener.close()
        else:
            self._listener = listener

    def add(self, records: Sequence[Record]) -> None:
        """Count records, which must have been priced, if somebody wants to know; raises nothing."""
        aggregator = self._aggregator
        if aggregator is None:
            return
        if time.monotonic() > self._until:
            with self._lock:
                self._aggregator = None
        else:
            aggregator.add(records)

    def stop(self) -> None:
        """Take no more questions."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                self._directory.unlink(NAME)
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread, which closing does not
            listener.close()

    def _serve(self, listener: socket.socket) -> None:
        while listener.fileno() >= 0:
            try:
                connection, _ = listener.accept()
            except OSError:  # no descriptors left, or closed
                time.sleep(_AGAIN)
                continue
            if not self._answers.acquire(blocking=False):
                connection.close()
                continue
            try:
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()
            except RuntimeError:  # no threads left
                connection.close()
                self._answers.release()

    def _answer(self, connection: socket.socket) -> None:
        try:
            with connection:
                connection.settimeout(_LONGEST)
                connection.sendall(json.dumps(self._sums()).encode())
        except OSError:
            pass  # whoever asked went away, or does not read
        except Exception as error:  # a mistake of ours
            log.error("picostep top could not be answered: %s", type(error).__name__)
        finally:
            self._answers.release()

    def _sums(self) -> dict[str, Any]:
        try:
            with self._lock:
                if self._aggregator is None:
                    from picostep.metrics.aggregate import Aggregator

                    self._aggregator = Aggregator()
                self._until = time.monotonic() + _COUNT_FOR
                aggregator = self._aggregator
        except ModuleNotFoundError:
            return {"format": _FORMAT, "error": "needs pip install 'picostep[metrics]' where it runs"}
        return {"format": _FORMAT, "sums": aggregator.snapshot().as_plain()}


class NoAnswer(Exception):
    """An exporter is there, and does not say what it counts; the message says why."""


def ask(directory: RingDir) -> Snapshot | None:
    """
    Return what the exporter of a directory has counted since it was asked first; None if there is none.

    Raises:
        NoAnswer: It is there, but …
    """
    from picostep.metrics.aggregate import Snapshot

    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_LONGEST)
            connection.connect(_address(directory))
            answer = json.loads(_read(connection))
        if answer["format"] != _FORMAT:
            raise NoAnswer("is of another version")
        if "error" in answer:
            raise NoAnswer(str(answer["error"]))
        return Snapshot.from_plain(answer["sums"])
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except OSError:
        raise NoAnswer("does not answer") from None
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        raise NoAnswer("answers what cannot be read") from None


def _read(connection: socket.socket) -> bytes:
    deadline = time.monotonic() + _LONGEST
    found = bytearray()
    while part := connection.recv(1 << 16):
        found += part
        if len(found) > _MOST_BYTES or time.monotonic() > deadline:
            raise TimeoutError
    return bytes(found)


def _address(directory: RingDir) -> str:
    """Return the socket's address: by the descriptor, where that can be done, as a path may be too long."""
    parent = f"/proc/self/fd/{directory.fd}" if sys.platform == "linux" else directory.path
    return f"{parent}/{NAME}"
