"""
The ring: a bounded file in shared memory that one process appends records to and an exporter drains.

`append()` is the only thing a host does when a step ends. It copies the record and its texts as CPython holds
them and publishes them by one store (`Frame.commit`). The kernel keeps the pages when the process is killed.
The exporter reads the file with pread(), so a file that was damaged or truncated can give it wrong bytes but
no fault, and checks every length.
"""

from collections.abc import Mapping
from typing import Any, Protocol, final

from picostep.record import Record

ENDED_BY_DEATH: str
"""Status message of a run whose process is dead."""

class _Ids(Protocol):
    """Ids of runs: a set of str is one."""

    def add(self, run_id: str, /) -> None: ...
    def __contains__(self, run_id: str, /) -> bool: ...

class RingError(Exception):
    """A file that is not a ring, or one that this version may not read. The message says why."""

class NewerRing(RingError):
    """A ring of a later version of the format: whole, and for an exporter of that version."""

class JSONText(str):
    """A text that was handed over as a dict or list: its content is JSON."""

    __slots__ = ()

@final
class HostRing:
    """
    This process's end of a ring.

    Args:
        fd: an empty file, locked by the caller; the ring closes it. -1: private memory that dies with the
            process.
        capacity: bytes of data, 64 KiB to 1 GiB.

    Attributes:
        destination: number of the destination that this is the ring of; -1 before `install()`.

    Raises:
        OSError: the file system or memory has no room for the first 256 KiB.
    """

    def __new__(cls, fd: int, capacity: int) -> HostRing: ...
    @property
    def destination(self) -> int: ...
    @property
    def open(self) -> bool:
        """False after `close()`, and in a forked child."""

    @property
    def private(self) -> bool:
        """Whether the ring dies with the process."""

    @property
    def head(self) -> int:
        """End of the newest record, in bytes since the ring was made."""

    @property
    def tail(self) -> int:
        """Everything before this position is out of the ring: delivered, spooled, or counted as dropped."""

    @property
    def settled(self) -> int:
        """Everything before this position is delivered to all sinks, or counted as dropped."""

    @property
    def ready(self) -> int:
        """Bytes of the ring that have their space in the file system."""

    def install(self, destination: int) -> bool:
        """Make this the ring of a destination; False when that has one already."""

    def reserve(self) -> None:
        """Start to give the ring its space and its pages, in the background; nothing if it is closed."""

    def abandon_runs(self) -> None:
        """Have nothing reported of the runs that are open, nor of later ones, when this process ends."""

    def close(self) -> dict[str, Any]:
        """
        End this ring: the next record of its destination opens another. Exporters take what is in it.

        Returns:
            Its last counters(); empty when it was closed before, or another thread is just closing it.
        """

    def counters(self) -> dict[str, Any]:
        """Return what `RingReader.counters()` does; {} when the ring is closed."""

rings: dict[int, HostRing]

@final
class RingReader:
    """
    The exporter's end of a ring: a file of any process, or a private ring of this one.

    Args:
        path: the ring's file; relative to `dir_fd` when that is given. No symbolic link is followed.
        dir_fd: descriptor of the directory.

    Attributes:
        ended: gets the ids of all runs that are read; `fail_open_runs()` leaves those alone that are in it.
        name: of the file, or "private".
        pid: of the process that made the ring; for people only.

    Raises:
        RingError: not a ring, of another version or byte order, of another owner, or open to others.
        OSError: the file cannot be opened.

    Not thread-safe: one exporter, one reader.
    """

    ended: _Ids | None

    def __init__(self, path: str, dir_fd: int | None = None) -> None: ...
    @staticmethod
    def of_private(ring: HostRing) -> RingReader:
        """Return the reader of a ring in this process's private memory."""

    @property
    def name(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def size(self) -> int:
        """Bytes of data that the ring holds at most."""

    @property
    def position(self) -> int:
        """Where the next `read()` goes on."""

    @property
    def backlog(self) -> int:
        """Bytes between the oldest record that is not released and the newest."""

    @property
    def drained(self) -> bool:
        """Whether nothing lies beyond the cursor; of a dead host, after a `read()` that found nothing."""

    def alive(self) -> bool:
        """Return whether the host lives; False also means that this reader holds the ring's lock now."""

    def read(self, max_records: int, max_bytes: int) -> list[Record]:
        """
        Decode records from the cursor on, and move it.

        Returns:
            At most `max_records` dicts of together about `max_bytes` bytes (at least one when there is one);
            [] when there is nothing now. What is damaged is skipped, and counted with the next release().
        """

    def fail_open_runs(self) -> int:
        """
        Record, as failed, the runs that were open when the host of this ring died.

        Only when the ring is adopted and all of it is released. What is recorded is read like everything
        else. One that is in `ended` is left out.

        Returns:
            How many were recorded, 64 at most: the rest when these are released. 0: nothing is left in the
            table; what was damaged in it is counted with the next release().
        """

    @property
    def tail(self) -> int:
        """Everything before this position was released."""

    @property
    def in_spool(self) -> int:
        """Records of this ring that wait on disk."""

    def release(
        self,
        position: int,
        delivered: int,
        dropped: Mapping[str, int] | None = None,
        *,
        spooled: int = 0,
        withheld: int = 0,
    ) -> None:
        """
        Free everything before a position that `read()` reached, and count it.

        Args:
            position: `position` after the last record that is done with.
            delivered: how many of the records were delivered or durably stored.
            dropped: how many were not, by reason: "encode_error", "rejected", "corrupt", "expired".
            spooled: how many wait on disk now; settle() tells what becomes of them.
            withheld: how many of them all have a text that was withheld.
        """

    def settle(self, position: int, delivered: int, dropped: Mapping[str, int] | None = None) -> None:
        """
        Say what became of spooled records: those up to a position, in their order.

        Args:
            position: end of the last of them; settled() of the host tells how far that has come.
            delivered: how many were delivered.
            dropped: how many were not, by reason as for release().
        """

    def synced(self) -> None:
        """Say that all spooled records would survive the loss of power."""

    def shrink(self) -> None:
        """Give back the space of an adopted ring that is empty; its counters stay."""

    def set_last_error(self, text: str) -> None:
        """
        Say what goes wrong, in up to 511 ASCII characters: the host shows it in stats(). "" clears it.

        A host of version 2 shows 63 of them.
        """

    def counters(self) -> dict[str, Any]:
        """
        Count records: recorded, accepted, shed, shortened, delivered, in_ring, dropped by reason, torn.

        And last_error: text.
        """

    def close(self) -> None:
        """Give up the file and, if the ring was adopted, its lock."""

def forks() -> int:
    """Return how many forks lie between the process that loaded picostep and this one."""

def unrecorded() -> int:
    """Return how many records of this process were lost because it could have no ring at all."""

def close_in_child(fd: int) -> None:
    """Have forked children close a descriptor, so that a kernel lock on it stays with this process."""

def keep_in_child(fd: int) -> None:
    """Take `close_in_child()` back, before the descriptor is closed here."""
