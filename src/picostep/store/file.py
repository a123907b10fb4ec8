"""The file of a store: made for its owner only, not reached by a link, told from one that took its place."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from picostep.ringdir import make_directories
from picostep.store.schema import StoreError

__all__ = ["identity", "prepare"]


def prepare(path: Path) -> tuple[int, int]:
    """
    Make sure that the file exists, readable by its owner only, and is ours; return device and inode.

    Raises:
        OSError: It cannot be created.

        StoreError: It is a symlink, not a file, or someone else's.
    """
    make_directories(str(path.parent))
    with suppress(FileExistsError):
        # O_EXCL also refuses a dangling symlink.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    return _check_owner(path)


def identity(status: os.stat_result) -> tuple[int, int]:
    """Return device and inode."""
    return status.st_dev, status.st_ino


def _check_owner(path: Path) -> tuple[int, int]:
    """
    Return device and inode of a store that we may open.

    By lstat, not by opening it: closing any descriptor of an SQLite file drops the POSIX locks that other
    connections of this process hold on it.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path} is {'a symbolic link' if stat.S_ISLNK(status.st_mode) else 'not a file'}")
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        raise StoreError(f"{path} belongs to user {status.st_uid}")
    return identity(status)
