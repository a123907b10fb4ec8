"""
Ring directories: where they are, whose they are, and who exports them.

Layout and names are described in docs/internals/architecture.md. A directory is used only if it is a real
directory of this user that nobody else can enter; everything in it is reached through its descriptor, so no
part of the way can be swapped.
"""

from __future__ import annotations

import os
import sys

from picostep._ring import HostRing, RingReader
from picostep.errors import PicostepError

__all__ = [
    "EXTERNAL",
    "OwnDir",
    "RingDir",
    "RingDirError",
    "base",
    "list_directories",
    "make_directories",
    "open_dir",
    "open_own",
]

EXTERNAL = "external"
LOCK = "lock"
RING_SUFFIX = ".ring"
NEW_PREFIX = ".new-"
MIN_RING = 256 * 1024


class RingDirError(PicostepError, OSError):
    """Raised for a directory that cannot hold rings: missing, another user's, open to others, or full."""


def base(explicit: str | None) -> str:
    """
    Return the directory that holds this user's ring directories.

    Args:
        explicit: The setting `dir`; its own subdirectory for this user is used. None: `/dev/shm` on Linux,
            the directory for temporary files elsewhere.
    """
    parent = explicit
    if parent is None:
        if sys.platform.startswith("linux") and os.path.isdir("/dev/shm"):
            parent = "/dev/shm"
        else:
            from tempfile import gettempdir

            parent = gettempdir()
    return os.path.join(parent, f"picostep-{os.geteuid()}" if hasattr(os, "geteuid") else "picostep")


def list_directories(base: str) -> list[str]:
    """Return the names of the ring directories below a base; [] when there is no base."""
    try:
        with os.scandir(base) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def open_dir(base: str, name: str, create: bool) -> RingDir:
    """
    Open a ring directory.

    Args:
        base: From `base()`.

        name: A destination's fingerprint, or `EXTERNAL`.

        create: Whether to make what is missing.

    Raises:
        RingDirError: It cannot be used; the message says why.
    """
    return RingDir(*_open(base, name, create))


def open_own(base: str, name: str, create: bool) -> OwnDir:
    """Open a directory of any other use, by the same rules."""
    return OwnDir(*_open(base, name, create))


def _open(base: str, name: str, create: bool) -> tuple[str, int]:
    if create:
        try:
            make_directories(os.path.dirname(base))
        except OSError as error:
            raise RingDirError(
                error.errno, f"cannot make {os.path.dirname(base)}: {error.strerror}"
            ) from None
    parent = _enter(base, base, None, create)
    try:
        path = os.path.join(base, name)
        return path, _enter(path, name, parent, create)
    finally:
        os.close(parent)


def make_directories(path: str) -> None:
    """Make a directory and those above it that are missing, each this user's alone; raises OSError."""
    if not os.path.isdir(path):
        above = os.path.dirname(path)
        if above != path:
            make_directories(above)
        try:  # noqa: SIM105 - a host need not load contextlib
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass


def _enter(path: str, name: str, parent: int | None, create: bool) -> int:
    """Open one directory on the way and check that it is this user's alone."""
    try:
        if create:
            try:  # noqa: SIM105 - a host need not load contextlib
                os.mkdir(name, 0o700, dir_fd=parent)
            except FileExistsError:
                pass
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        raise RingDirError(error.errno, f"cannot use {path}: {error.strerror}") from None
    found = os.fstat(fd)
    problem = None
    if found.st_uid != os.geteuid():
        problem = f"it belongs to user {found.st_uid}"
    elif found.st_mode & 0o077:
        problem = f"others can enter it (mode {found.st_mode & 0o777:o}, must be 700)"
    if problem:
        os.close(fd)
        raise RingDirError(1, f"refusing {path}: {problem}")
    return fd


class OwnDir:
    """
    An open directory of this user's alone, which one process at a time can hold.

    Attributes:
        path: For messages.

        fd: Descriptor that everything in it is reached through.
    """

    __slots__ = ("fd", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd

    def try_lock(self) -> int | None:
        """Take the lock; return its descriptor, to be kept open, or None if another process has it."""
        import fcntl

        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(LOCK, flags, 0o600, dir_fd=self.fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def locked(self) -> bool:
        """Return whether some process holds the lock now."""
        fd = self.try_lock()
        if fd is None:
            return True
        os.close(fd)
        return False

    def unlink(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        try:  # noqa: SIM105 - a host need not load contextlib
            os.unlink(name, dir_fd=self.fd)
        except FileNotFoundError:
            pass

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class RingDir(OwnDir):
    """An open ring directory."""

    __slots__ = ()

    def make_ring(self, capacity: int) -> HostRing:
        """
        Make a ring for this process: complete and locked before it gets a name that exporters look for.

        Args:
            capacity: Bytes of data wanted. No ring takes more than an eighth of what is free, so that many
                processes can share a small `/dev/shm` and leave room for others.

        Raises:
            OSError: Less than 256 KiB can be had, or the directory cannot be written.
        """
        import fcntl

        space = os.statvfs(self.fd)
        eighth = space.f_bavail * space.f_frsize // 8
        if eighth < capacity:
            capacity = 1 << (eighth.bit_length() - 1) if eighth else 0
        if capacity < MIN_RING:
            raise RingDirError(28, f"too little space in {self.path}")
        token = os.urandom(4).hex()
        made, name = f"{NEW_PREFIX}{token}", f"{os.getpid()}-{token}{RING_SUFFIX}"
        fd = os.open(
            made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ring = HostRing(fd, capacity)
            os.rename(made, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except BaseException:
            os.close(fd)
            os.unlink(made, dir_fd=self.fd)
            raise
        return ring

    def ring_names(self) -> list[str]:
        """Return the names of the rings in here, of living and dead processes."""
        return [name for name in os.listdir(self.fd) if name.endswith(RING_SUFFIX)]

    def open_ring(self, name: str) -> RingReader:
        """Open a ring for draining; raises RingError or OSError."""
        return RingReader(name, self.fd)
