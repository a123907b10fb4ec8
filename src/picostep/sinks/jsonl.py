"""Writes records as JSON, one a line, to a file or to standard output."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from picostep.errors import ConfigError
from picostep.payload import encode_each, encode_local
from picostep.sinks import RetryLater

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from picostep.record import Record

__all__ = ["JsonlSink", "StdoutSink"]

_STDOUT = 1
_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT
if sys.platform != "win32":  # which has none of these
    _FLAGS |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class JsonlSink:
    """
    Appends to a file, which it creates readable by its owner only. Several exporters may share one.

    Args:
        path: Absolute; not a symbolic link.

    Raises:
        ConfigError: The file cannot be opened, is not a regular file, or belongs to another user.
    """

    def __init__(self, path: str) -> None:
        try:
            self._fd = os.open(path, _FLAGS, 0o600)
        except OSError as error:
            raise ConfigError(f"sink jsonl: cannot open {path!r}: {error.strerror}") from error
        found = os.fstat(self._fd)
        problem = None
        if not stat.S_ISREG(found.st_mode):
            problem = "is not a regular file"
        elif hasattr(os, "geteuid") and found.st_uid != os.geteuid():
            problem = f"belongs to user {found.st_uid}"
        if problem:
            os.close(self._fd)
            raise ConfigError(f"sink jsonl: {path!r} {problem}")

    def deliver(self, records: Sequence[Record]) -> Mapping[int, str]:
        """
        Append the records in one write; they are on disk when this returns.

        Raises:
            RetryLater: Disk full, I/O error, or another exporter is writing. The file is as it was before.
        """
        unencodable: dict[int, str] = {}
        encoded = encode_each(records, encode_local, unencodable)
        lines = b"\n".join((*encoded.values(), b""))
        try:
            self._append(lines)
        except OSError as error:
            raise RetryLater(f"jsonl: {_reason(error)}") from error
        return unencodable

    def close(self) -> None:
        os.close(self._fd)

    def _append(self, lines: bytes) -> None:
        with _exclusive(self._fd):
            size = os.fstat(self._fd).st_size
            if self._ends_within_line(size):
                lines = b"\n" + lines
            try:
                _write(self._fd, lines)
                os.fsync(self._fd)
            except OSError:
                os.ftruncate(self._fd, size)
                raise

    def _ends_within_line(self, size: int) -> bool:
        """Whether a crash has left a part of a line at the end."""
        if size == 0:
            return False
        os.lseek(self._fd, size - 1, os.SEEK_SET)
        return os.read(self._fd, 1) != b"\n"


class StdoutSink:
    """Writes to file descriptor 1."""

    def __init__(self) -> None:
        self._mid_line = False

    def deliver(self, records: Sequence[Record]) -> Mapping[int, str]:
        """
        Write the records.

        Raises:
            RetryLater: Nobody reads, or there is no room; `delivered` counts the lines that were written
                whole.
        """
        unencodable: dict[int, str] = {}
        encoded = encode_each(records, encode_local, unencodable)
        for index, line in encoded.items():
            try:
                self._write_line(line)
            except OSError as error:
                settled = {bad: why for bad, why in unencodable.items() if bad < index}
                raise RetryLater(f"stdout: {_reason(error)}", delivered=index, unencodable=settled) from error
        return unencodable

    def close(self) -> None:
        pass

    def _write_line(self, line: bytes) -> None:
        if self._mid_line:
            line = b"\n" + line
        self._mid_line = True
        _write(_STDOUT, line + b"\n")
        self._mid_line = False


def _reason(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "I/O error")


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:  # a full disk takes what fits, and says why at the next attempt
        view = view[os.write(fd, view) :]


@contextmanager
def _exclusive(fd: int) -> Iterator[None]:
    """
    Lock a file against other exporters that append to it.

    Raises:
        BlockingIOError: Another program has had it locked for a second.
    """
    if sys.platform == "win32":  # no two exporters share a file there
        yield
        return
    import fcntl

    deadline = time.monotonic() + 1.0
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)
    try:
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
