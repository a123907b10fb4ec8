"""The ring: a bounded file in shared memory that a process appends to and an exporter drains."""

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
    """A file that is not a ring, or one that this version may not read."""

class NewerRing(RingError):
    """A ring of a later version of the format: whole, and for an exporter of that version."""

class JSONText(str):
    """A text that was handed over as a dict or list: its content is JSON."""

    __slots__ = ()

@final
class HostRing:
    """This process's end of a ring; `fd` is an empty locked file, or -1 for private memory."""

    def __new__(cls, fd: int, capacity: int) -> HostRing: ...
    @property
    def destination(self) -> int:
        """Number of the destination that this is the ring of; -1 before `install()`."""

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
        """Give the rest its space and its pages, from a thread of its own."""

    def abandon_runs(self) -> None:
        """Have nothing reported of the runs that are open, nor of later ones, when this process ends."""

    def close(self) -> dict[str, Any]:
        """End this ring; what is in it stays in the file. Return its last counters."""

    def counters(self) -> dict[str, Any]:
        """Return what `RingReader.counters()` does; {} when the ring is closed."""

rings: dict[int, HostRing]

@final
class RingReader:
    """Drains one ring. Not thread-safe."""

    ended: _Ids | None
    """Gets the ids of all runs that are read; `fail_open_runs()` leaves those alone that are in it."""

    def __init__(self, path: str, dir_fd: int | None = None) -> None: ...
    @staticmethod
    def of_private(ring: HostRing) -> RingReader:
        """Return the reader of a ring in this process's private memory."""

    @property
    def name(self) -> str:
        """Name of the file, or "private"."""

    @property
    def pid(self) -> int:
        """Process that made the ring; for people only."""

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
        """Whether nothing lies beyond the cursor."""

    def alive(self) -> bool:
        """Return whether the host lives; False also means that this reader holds the ring's lock."""

    def read(self, max_records: int, max_bytes: int) -> list[Record]:
        """Decode records from the cursor on, and move it; [] when there is nothing now."""

    def fail_open_runs(self) -> int:
        """Record, as failed, the runs that were open when the host died; return how many."""

    def rewind(self) -> None:
        """Move the cursor back to the first record that is not released."""

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
        """Free everything before a position that `read()` reached, and count it."""

    def settle(self, position: int, delivered: int, dropped: Mapping[str, int] | None = None) -> None:
        """Say what became of spooled records, in their order, up to a position."""

    def synced(self) -> None:
        """Say that all spooled records would survive the loss of power."""

    def shrink(self) -> None:
        """Give back the space of an adopted ring that is empty; its counters stay."""

    def note(self, text: str) -> None:
        """Say what goes wrong, in up to 511 ASCII characters, to a host of version 2 in 63; "" clears it."""

    def counters(self) -> dict[str, Any]:
        """Return numbers of records, drops by reason, and the last error."""

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
