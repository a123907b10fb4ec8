"""
The directories of a sink's spool: `BASE/SINK/LANE/`, and files that were set aside in `BASE/SINK/bad/`.

An exporter has a lane of its own, locked, and takes over the files of lanes that nobody holds.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from picostep import _ring
from picostep.exporter import segment
from picostep.ringdir import OwnDir, RingDirError, open_own

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ACK", "ASIDE", "SEGMENT", "Lanes", "ack_name"]

LANES = 1000
ASIDE = "bad"
ASIDE_BYTES = 64 << 20
SEGMENT, ACK = ".seg", ".ack"


class Lanes:
    """
    The lane that an exporter holds, the files in it, and the way to the other lanes of the sink.

    Args:
        base, sink: As for `Spool`.
    """

    def __init__(self, base: str, sink: str) -> None:
        self._base = base
        self._sink = sink
        self._top: OwnDir | None = None
        self._lane: OwnDir | None = None
        self._lock = -1
        self._forks = _ring.forks()

    @property
    def held(self) -> bool:
        """Whether there is a lane."""
        return self._lane is not None

    @property
    def fd(self) -> int:
        """Descriptor of the lane that is held."""
        assert self._lane is not None
        return self._lane.fd

    # ---- lanes ---------------------------------------------------------------------------------------------

    def open(self, create: bool) -> None:
        """Open the sink's directory, and take the first lane that is free; raises OSError."""
        if self._top is None:
            self._top = open_own(self._base, self._sink, create)
            if create:
                _sync_directory(self._base)
        for number in range(LANES):
            lane = open_own(self._top.path, str(number), create=True)
            lock = lane.try_lock()
            if lock is not None:
                break
            lane.close()
        else:
            raise OSError(errno.EBUSY, "too many exporters")
        _ring.close_in_child(lock)
        os.fsync(self._top.fd)
        self._lane, self._lock = lane, lock

    def adopt(self) -> Iterator[bool]:
        """
        Move the files of other lanes into this one, lane by lane.

        Yields:
            For each lane whether it could be had; one that others hold is no matter if it has no files.
        """
        for lane in self._others():
            try:
                names = [name for name in os.listdir(lane.fd) if name.endswith(SEGMENT)]
                lock = lane.try_lock() if names else None
                if lock is not None:
                    self._move_files(lane, lock, names)
            finally:
                lane.close()
            if names:
                yield lock is not None

    def _move_files(self, lane: OwnDir, lock: int, names: list[str]) -> None:
        try:
            for name in names:
                for each in (ack_name(name), name):
                    with suppress(FileNotFoundError):
                        os.rename(each, each, src_dir_fd=lane.fd, dst_dir_fd=self.fd)
        finally:
            os.close(lock)

    def _others(self) -> Iterator[OwnDir]:
        assert self._top is not None
        mine = os.fstat(self.fd)
        for name in os.listdir(self._top.fd):
            if name.isdigit():
                with suppress(RingDirError):
                    lane = open_own(self._top.path, name, create=False)
                    if os.path.samestat(os.fstat(lane.fd), mine):
                        lane.close()
                    else:
                        yield lane

    def measure_others(self) -> int:
        """Return the bytes in other lanes."""
        total = 0
        for lane in self._others():
            with suppress(OSError):
                total += sum(entry.stat().st_size for entry in os.scandir(lane.fd))
            lane.close()
        return total

    def forget(self) -> None:
        """Take another lane next time; what could still be read of this one is gone."""
        assert self._lane is not None
        _ring.keep_in_child(self._lock)
        os.close(self._lock)
        self._lane.close()
        self._lane, self._top = None, None

    def close(self) -> None:
        """Let go of the lane; in a forked child, too, where the core has closed its lock."""
        if self._lane is not None:
            if self._forks == _ring.forks():
                _ring.keep_in_child(self._lock)
                os.close(self._lock)
            self._lane.close()
            self._lane = None
        if self._top is not None:
            self._top.close()
            self._top = None

    # ---- the files of the lane -----------------------------------------------------------------------------

    def open_file(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)

    def unlink(self, name: str) -> None:
        if self._lane is not None:
            with suppress(OSError):
                self._lane.unlink(name)

    def load_ack(self, name: str) -> tuple[int, int]:
        """Return how many records of a segment are settled, and the attempts to read on; 0 if not known."""
        try:
            fd = self.open_file(ack_name(name), os.O_RDONLY)
        except OSError:
            return 0, 0
        try:
            return segment.unpack_ack(os.read(fd, segment.ACK_BYTES + 1))
        except OSError:
            return 0, 0
        finally:
            os.close(fd)

    def save_ack(self, name: str, settled: int, attempts: int) -> None:
        """Write how far a segment is settled. Where that fails, a crash costs duplicates."""
        with suppress(OSError):
            fd = self.open_file(ack_name(name), os.O_WRONLY | os.O_CREAT)
            try:
                os.pwrite(fd, segment.pack_ack(settled, attempts), 0)
            finally:
                os.close(fd)

    def set_aside(self, name: str) -> None:
        """Keep a copy of a damaged segment to be looked at, and of all such copies the last few."""
        if self._top is None or self._lane is None:
            return
        with suppress(OSError):
            aside = open_own(self._top.path, ASIDE, create=True)
            try:
                with suppress(FileExistsError):
                    os.link(name, name, src_dir_fd=self._lane.fd, dst_dir_fd=aside.fd)
                _keep_last(aside, ASIDE_BYTES)
            finally:
                aside.close()


def ack_name(name: str) -> str:
    """Return the name of the file that says how far a segment is settled."""
    return f"{name.removesuffix(SEGMENT)}{ACK}"


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _keep_last(directory: OwnDir, most_bytes: int) -> None:
    """Remove the oldest files of a directory until the others are within a limit."""
    for name in sorted(os.listdir(directory.fd), reverse=True):
        most_bytes -= os.stat(name, dir_fd=directory.fd, follow_symlinks=False).st_size
        if most_bytes < 0:
            directory.unlink(name)
