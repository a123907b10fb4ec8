"""The rings of one directory: found, adopted when their process has died, and removed when they are empty."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from picostep._ring import NewerRing, RingError
from picostep.exporter.ended_runs import EndedRuns
from picostep.exporter.ledger import Ledger
from picostep.ringdir import NEW_PREFIX, RING_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from picostep._ring import RingReader
    from picostep.exporter.batch import Batch
    from picostep.ringdir import RingDir

__all__ = ["DirectoryRings", "Rings", "tell_hosts"]

_SCAN_EVERY = 0.5  # seconds
_STALE_AFTER = 60.0  # seconds after which an unfinished ring that nobody holds is litter
_ASIDE = ".bad"
_KEEP_ASIDE = 4  # files
_GAUGES = ("in_ring", "in_spool", "unsynced")
_MOST = 1 << 63  # records; a damaged file may hold a number that is too long to be written again

log = logging.getLogger(__name__)


class Rings:
    """
    Rings that are read in turn, and stay.

    Args:
        ledger: Knows what was read of each.
    """

    def __init__(self, ledger: Ledger, rings: Sequence[RingReader] = ()) -> None:
        self._ledger = ledger
        self._rings = deque(rings)
        self._last_error = ""
        for ring in rings:
            ledger.open(ring)

    def __len__(self) -> int:
        return len(self._rings)

    @property
    def hosts_live(self) -> bool:
        """Whether any ring's process was alive at the last `refresh()`."""
        return bool(self._rings)

    @property
    def backlog(self) -> int:
        """Bytes that are not released, of the ring that has the most."""
        return max((ring.backlog for ring in self._rings), default=0)

    @property
    def crowded(self) -> bool:
        """Whether a ring is filling up."""
        return any(ring.backlog > ring.size // 2 for ring in self._rings)

    def refresh(self) -> None:
        """See what has changed; cheap enough to be called all the time."""

    def count_gone(self, records: Mapping[str, int]) -> None:
        """Count spooled records of rings that are gone: "delivered", or the reasons of drops."""

    def count(self, sums: dict[str, Any]) -> None:
        """Add what `Exporter.counters()` returns to sums, of which `dropped` is there."""
        for ring in self._rings:
            counters = ring.counters()
            _add(sums, counters)
            for name in _GAUGES:
                sums[name] = sums.get(name, 0) + counters[name]
        sums["rings"] = sums.get("rings", 0) + len(self._rings)

    def fill(self, batch: Batch) -> None:
        """Add the records that are there and find room, beginning with another ring each time."""
        self._rings.rotate(-1)
        for ring in tuple(self._rings):
            if batch.full:
                return
            if not batch.fill(ring) and self._found_empty(ring):
                batch.fill(ring)

    def set_last_error(self, text: str) -> None:
        """Show a text as the last error in the `stats()` of all hosts, also those to come; "" clears it."""
        if text != self._last_error:
            self._last_error = text
            for ring in self._rings:
                ring.set_last_error(text)

    def close(self) -> None:
        while self._rings:
            self._rings.pop().close()

    def _found_empty(self, ring: RingReader) -> bool:
        """
        Take note that a ring has nothing more to read.

        Returns:
            Whether there is something now.
        """
        if ring.backlog and not self._ledger.in_flight(ring):
            ring.release(ring.position, 0)  # what was there is damaged, and is counted now
        return False


class DirectoryRings(Rings):
    """
    The rings of a directory, of which the caller holds the lock; those of dead processes are removed.

    Args:
        directory: Stays open; it belongs to the caller.

        ledger: As for `Rings`.
    """

    def __init__(self, directory: RingDir, ledger: Ledger) -> None:
        super().__init__(ledger)
        self._directory = directory
        self._totals = _Totals(directory)
        self._dead: set[RingReader] = set()
        self._emptied: set[RingReader] = set()  # of the dead: nothing more will be read from them
        self._ended = EndedRuns()
        self._unreadable: set[str] = set()
        self._changed_ns = -1
        self._scan_at = 0.0
        self._clean_at = 0.0

    @property
    def hosts_live(self) -> bool:
        return len(self._dead) < len(self._rings)

    def refresh(self) -> None:
        """Open new rings and see whose process is alive, at changes of the directory and twice a second."""
        now = time.monotonic()
        changed_ns = os.fstat(self._directory.fd).st_mtime_ns
        if changed_ns == self._changed_ns and now < self._scan_at:
            return
        self._changed_ns = changed_ns
        self._scan_at = now + _SCAN_EVERY
        self._open_new()
        self._dead.update(ring for ring in self._rings if not ring.alive())
        if now >= self._clean_at:
            self._clean_at = now + _STALE_AFTER
            self._remove_stale()

    def _found_empty(self, ring: RingReader) -> bool:
        super()._found_empty(ring)
        if ring not in self._dead or not ring.drained or self._ledger.in_flight(ring):
            return False
        if ring not in self._emptied:
            if ring.fail_open_runs():
                return True
            ring.release(ring.position, 0)  # damage may be known from the counters alone
            ring.shrink()
            self._emptied.add(ring)
        if self._ledger.owes(ring):  # its counters are needed until its records have left the spool
            return False
        self._totals.add(ring)
        self._remove(ring.name)
        self._rings.remove(ring)
        self._dead.remove(ring)
        self._emptied.remove(ring)
        self._ledger.close(ring)
        ring.close()
        self._totals.catch_up()  # where the file system was full there is room now
        return False

    def count_gone(self, records: Mapping[str, int]) -> None:
        if records:
            self._totals.count_gone(records)

    def count(self, sums: dict[str, Any]) -> None:
        super().count(sums)
        self._totals.count(sums)

    def _open_new(self) -> None:
        known = {ring.name for ring in self._rings}
        for name in self._names():
            if name.endswith(RING_SUFFIX) and name not in known:
                self._open(name)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._directory.fd)
        except OSError:  # no descriptors left: the next scan will tell
            return []

    def _open(self, name: str) -> None:
        try:
            ring = self._directory.open_ring(name)
        except RingError as error:
            self._skip(name, error)
        except OSError:
            pass  # gone, or no descriptors left
        else:
            ring.ended = self._ended
            ring.set_last_error(self._last_error)
            self._ledger.open(ring)
            self._rings.append(ring)

    def _skip(self, name: str, error: RingError) -> None:
        """Leave a file alone that we cannot read; put it out of the way if damaged and held by nobody."""
        newer = isinstance(error, NewerRing)
        if name not in self._unreadable:
            left = "; it is left to an exporter of that version" if newer else ""
            log.warning("cannot read ring %s: %s%s", name, error, left)
            self._unreadable.add(name)
        if not newer and not self._is_held(name):
            self._set_aside(name)

    def _set_aside(self, name: str) -> None:
        """Give a ring a name that is not scanned, and keep the last few of those to be looked at."""
        fd = self._directory.fd
        with suppress(OSError):
            os.rename(name, f"{name}{_ASIDE}", src_dir_fd=fd, dst_dir_fd=fd)
            self._totals.count_damaged()
            aside = [name for name in self._names() if name.endswith(_ASIDE)]
            aside.sort(key=lambda name: os.stat(name, dir_fd=fd, follow_symlinks=False).st_ctime_ns)
            for name in aside[:-_KEEP_ASIDE]:
                self._remove(name)

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            self._directory.unlink(name)

    def _remove_stale(self) -> None:
        for name in self._names():
            if name.startswith(NEW_PREFIX) and self._age(name) > _STALE_AFTER and not self._is_held(name):
                self._remove(name)

    def _age(self, name: str) -> float:
        """Return the seconds since a file changed; 0 if it is gone."""
        try:
            return time.time() - os.stat(name, dir_fd=self._directory.fd, follow_symlinks=False).st_mtime
        except OSError:
            return 0.0

    def _is_held(self, name: str) -> bool:
        """Whether a living process has a file locked."""
        import fcntl  # not there on Windows, where no ring is a file

        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=self._directory.fd)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(fd)


def tell_hosts(directory: RingDir, text: str) -> None:
    """Show a text as the last error in the `stats()` of every host that has a ring in a directory."""
    rings = DirectoryRings(directory, Ledger(()))
    rings.set_last_error(text)
    rings.refresh()
    rings.close()


class _Totals:
    """
    The file `totals.json`: the sum of the counters of all rings that were removed.

    `last_ring` names the last one, so that it is not added twice when an exporter dies between adding and
    removing it.
    """

    _NAME = "totals.json"
    _LONGEST = 1 << 20  # bytes that are read of it

    def __init__(self, directory: RingDir) -> None:
        self._directory = directory
        self._counters: dict[str, Any] = {
            "rings": 0,
            "damaged_rings": 0,
            "dropped": {},
            "gone": {},
            "last_ring": "",
        }
        loaded = self._load()
        _add(self._counters, loaded)
        self._counters["last_ring"] = loaded.get("last_ring")
        self._saved = True

    def add(self, ring: RingReader) -> None:
        if ring.name == self._counters["last_ring"]:
            return
        _add(self._counters, {**ring.counters(), "rings": 1})
        self._counters["last_ring"] = ring.name
        self._save()

    def count_damaged(self) -> None:
        self._counters["damaged_rings"] += 1
        self._save()

    def count_gone(self, records: Mapping[str, int]) -> None:
        _add(self._counters, {"gone": records})
        self._save()

    def count(self, sums: dict[str, Any]) -> None:
        """Add the counters of rings that were removed to sums."""
        of_records = dict(self._counters)
        for name in ("rings", "damaged_rings"):
            del of_records[name]
        dropped = dict(of_records.pop("gone"))
        _add(sums, of_records)
        _add(sums, {"delivered": dropped.pop("delivered", 0), "dropped": dropped})

    def catch_up(self) -> None:
        """Write what could not be written before."""
        if not self._saved:
            self._save()

    def _load(self) -> dict[str, Any]:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # it may be a FIFO by now
            fd = os.open(self._NAME, flags, dir_fd=self._directory.fd)
            with open(fd, "rb") as file:
                return dict(json.loads(file.read(self._LONGEST)))
        except (OSError, ValueError, TypeError, RecursionError):
            return {}  # missing, or not what we have written

    def _save(self) -> None:
        """Replace the file. Where that fails the sums stay in memory, and the next attempt writes them."""
        fd = self._directory.fd
        new = f"{self._NAME}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._directory.unlink(new)  # of an exporter that died
            with open(os.open(new, flags, 0o600, dir_fd=fd), "w") as file:
                json.dump(self._counters, file)
            os.replace(new, self._NAME, src_dir_fd=fd, dst_dir_fd=fd)
            self._saved = True
        except OSError as error:
            self._saved = False
            log.warning("cannot write %s: %s", self._NAME, error.strerror)


def _add(sums: dict[str, Any], counters: dict[str, Any]) -> None:
    """Add the counters that are counters, among others, to those of the same name."""
    for key, value in counters.items():
        if key in _GAUGES:
            continue
        if isinstance(value, dict) and isinstance(sums.get(key), dict):
            _add(sums[key], value)
        elif isinstance(value, int) and 0 <= value <= _MOST and isinstance(sums.get(key, 0), int):
            sums[key] = sums.get(key, 0) + value
