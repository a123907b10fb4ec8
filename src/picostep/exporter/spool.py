"""
A sink's spool: records on disk that the sink could not take when the rings brought them.

`BASE/SINK/LANE/` holds segments (see `segment` for their format, `lanes` for the directories). There is no
ledger: what is there is found by reading the headers of all frames.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import Counter, deque
from contextlib import suppress
from itertools import count as numbers
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from picostep.exporter import segment
from picostep.exporter.lanes import ACK, SEGMENT, Lanes, ack_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from picostep.record import Record
    from picostep.settings.destination import Destination

__all__ = ["Done", "Part", "Spool", "open_spools"]

SEGMENT_BYTES = 8 << 20
PIECE_BYTES = 256 << 10  # of JSON in a frame, about: what damage to one costs
SYNC_AFTER = 1.0  # seconds …
SYNC_BYTES = 4 << 20  # … or bytes after which what was written is synced
KEEP_FREE = 512 << 20  # bytes of the file system that are left free, or …
KEEP_FREE_PART = 20  # … this part of it, if that is less
ATTEMPTS = 3  # to read a frame, each ended by a crash or an I/O error
ADOPT_WITHIN = 0.5  # seconds for exporters that are just ending

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """Consecutive records of one ring, which lie from `start` to `end` in it."""

    ring: bytes
    start: int
    end: int
    records: Iterable[Record]


class Done(NamedTuple):
    """
    Records of one ring that are out of the spool.

    Attributes:
        end: Position in the ring up to which all before them are, too.

        records: How many; those in `dropped`, by reason, were not delivered.
    """

    ring: bytes
    end: int
    records: int
    dropped: Mapping[str, int]


class _File:
    """One segment of the lane."""

    __slots__ = ("created_ns", "fd", "frames", "name", "next_seq", "reader", "settled", "size")

    def __init__(self, name: str, fd: int, created_ns: int, size: int) -> None:
        self.name = name
        self.fd = fd  # to write to; -1: not any more
        self.reader = -1  # opened by the thread that reads, when it comes to this file
        self.created_ns = created_ns
        self.size = size
        self.next_seq = 0
        self.settled = 0  # leading records
        self.frames = 0  # that are not settled

    def close_writer(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def close(self) -> None:
        self.close_writer()
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1


class _Entry(NamedTuple):
    file: _File
    frame: segment.SpoolFrame

    @property
    def waiting(self) -> int:
        """Records that are not settled."""
        return min(self.frame.records, self.frame.seq + self.frame.records - self.file.settled)


class Spool:
    """
    The records that wait for one sink, in the order in which they came.

    Nothing in here raises because of the disk: what cannot be written stays where it is, and what cannot be
    read is dropped and counted.

    Thread-safety: `read()` and `mark_settled()` belong to one thread, everything else to another.

    Args:
        base: Directory of all spools; made when there is something to spool.

        sink: 16 hex digits that stand for the sink, where it sends, and by which key. Records of one sink are
            never given to another.

        most_bytes: What all lanes of the sink may hold.

        most_seconds: Age at which records are dropped.
    """

    def __init__(self, base: str, sink: str, most_bytes: int, most_seconds: float) -> None:
        self.trouble = ""  # why nothing can be written
        self.base = base
        self.sink = sink
        self._sink = bytes.fromhex(sink)
        self._most_bytes = most_bytes
        self._most_ns = int(most_seconds * 1e9)
        # Age by a clock of our own: setting the system's must not throw everything away.
        self._clock_ns = time.time_ns() - time.monotonic_ns()
        self._lock = Lock()
        self._entries: deque[_Entry] = deque()
        self._waiting = 0  # records
        self._bytes = 0  # in this lane
        self._foreign_bytes = 0  # in other lanes
        self._partly: Counter[str] = Counter()  # dropped of the first entry
        self._done: list[Done] = []
        self.damaged = False  # whether adopted files have lost records, of which the rings are not known
        self._lanes = Lanes(base, sink)
        self._active: _File | None = None
        self._unsynced: set[_File] = set()
        self._unsynced_bytes = 0
        self._sync_at = 0.0
        with suppress(OSError):  # there is nothing yet, or it cannot be used: append() says why
            self._open(create=False)

    # ---- what is there -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Records that wait."""
        return self._waiting

    @property
    def synced(self) -> bool:
        """Whether the loss of power would take nothing."""
        return not self._unsynced

    def entries(self) -> list[tuple[bytes, int, int]]:
        """Return ring, end and number of the waiting records of each frame."""
        with self._lock:
            return [(entry.frame.ring, entry.frame.end, entry.waiting) for entry in self._entries]

    # ---- writing -------------------------------------------------------------------------------------------

    def append(self, part: Part) -> int:
        """
        Write records, all or none.

        Returns:
            The number of frames; 0 where there is no room or the disk fails: `trouble` says why.
        """
        try:
            frames = self._append(part)
        except (OSError, ValueError) as error:
            self._fail(error)
            return 0
        self.trouble = ""
        return frames

    def _append(self, part: Part) -> int:
        if not self._lanes.held:
            self._open(create=True)
        file = self._writable()
        data, frames, seq = bytearray(), [], file.next_seq
        for records, flags, is_last in _pieces(part.records):
            # Only with the last one everything up to the end of the part is in here.
            end = part.end if is_last else part.start
            packed = segment.pack(self._sink, records, flags, seq, part.ring, end)
            offset = file.size + len(data)
            raw_size = sum(map(len, records))
            frames.append(
                segment.SpoolFrame(offset, len(packed), raw_size, len(records), seq, part.ring, end)
            )
            data += packed
            seq += len(records)
        self._check_room(len(data))
        try:
            _write(file.fd, data, file.size)
        except OSError:
            try:
                os.ftruncate(file.fd, file.size)
            except OSError:
                self._retire(file)  # nothing is written behind a hole
            raise
        with self._lock:
            file.size += len(data)
            file.next_seq = seq
            file.frames += len(frames)
            self._entries += [_Entry(file, frame) for frame in frames]
            self._waiting += sum(frame.records for frame in frames)
            self._bytes += len(data)
            if not self._unsynced:
                self._sync_at = time.monotonic() + SYNC_AFTER
            self._unsynced.add(file)
            self._unsynced_bytes += len(data)
        return len(frames)

    def sync(self) -> None:
        """
        Sync what was written, if that is due by time or bytes.

        After an error the kernel may have dropped what was written and call the next sync a success. So that
        file is never said to be synced, and nothing more is written to it.
        """
        if not self._unsynced_bytes or (
            self._unsynced_bytes < SYNC_BYTES and time.monotonic() < self._sync_at
        ):
            return
        self._unsynced_bytes = 0
        with self._lock:  # a file may be settled, and closed, meanwhile
            fds = [(file, os.dup(file.fd)) for file in self._unsynced if file is self._active]
        for file, fd in fds:
            try:
                os.fdatasync(fd)
            except OSError as error:
                self._fail(error)
                self._retire(file)
            else:
                with self._lock:
                    self._unsynced.discard(file)
            finally:
                os.close(fd)

    def _writable(self) -> _File:
        """Return the file to write to: a new one where there is none, or it is large enough."""
        if self._active is not None and self._active.size >= SEGMENT_BYTES:
            self._sync_at = 0.0
            self.sync()  # after an error it has retired the file
            if self._active is not None:
                self._retire(self._active)
        if self._active is None:
            self._active = self._new_file()
        return self._active

    def _retire(self, file: _File) -> None:
        """Write no more to the active file."""
        with self._lock:
            self._active = None
            file.close_writer()
            self._drop_if_empty(file)

    def _new_file(self) -> _File:
        self._foreign_bytes = self._lanes.measure_others()
        self._check_room(segment.HEADER_BYTES)
        created_ns = self._now_ns()
        name = f"{created_ns:016x}-{os.urandom(4).hex()}{SEGMENT}"
        try:
            fd = self._lanes.open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileNotFoundError:  # somebody has removed the lane
            self._lanes.forget()
            self._active = None
            raise
        try:
            _write(fd, segment.pack_header(self._sink, created_ns), 0)
            os.fsync(self._lanes.fd)
        except OSError:
            os.close(fd)
            self._lanes.unlink(name)
            raise
        with self._lock:
            self._bytes += segment.HEADER_BYTES
        return _File(name, fd, created_ns, segment.HEADER_BYTES)

    def _check_room(self, size: int) -> None:
        """Raise OSError where so much more would pass a limit."""
        if self._bytes + self._foreign_bytes + size > self._most_bytes:
            raise OSError(errno.EDQUOT, "limit reached")
        space = os.fstatvfs(self._lanes.fd)
        keep = min(KEEP_FREE, space.f_blocks * space.f_frsize // KEEP_FREE_PART)
        if space.f_bavail * space.f_frsize < size + keep:
            raise OSError(errno.ENOSPC, "disk full")

    def _fail(self, error: OSError | ValueError) -> None:
        name = _name(error) if isinstance(error, OSError) else "too large"
        if self.trouble != f"spool: {name}":
            self.trouble = f"spool: {name}"
            log.warning("nothing can be spooled: %s", name)

    # ---- reading -------------------------------------------------------------------------------------------

    def read(self, most_records: int, most_bytes: int) -> list[Record]:
        """
        Return the records that come next: those of one frame, and of more within these limits.

        Returns:
            [] when there are none, or when the disk cannot give them now.
        """
        with self._lock:
            if not self._entries:
                return []
            file = self._entries[0].file
        attempts = self._lanes.load_ack(file.name)[1]
        if attempts >= ATTEMPTS:
            return []
        # A crash from here on counts as an attempt. After one, frames are read one by one: which is it?
        self._lanes.save_ack(file.name, file.settled, attempts + 1)
        try:
            records = self._read(1 if attempts else most_records, most_bytes)
        except segment.DamagedFrame:
            log.warning("a frame of %s is damaged", file.name)
            self._lanes.save_ack(file.name, file.settled, ATTEMPTS)
            return []
        except OSError as error:
            log.warning("cannot read %s: %s", file.name, _name(error))
            return []
        self._lanes.save_ack(file.name, file.settled, 0)
        return records

    def _read(self, most_records: int, most_bytes: int) -> list[Record]:
        """Read frames within the limits; raises what the first of them raises."""
        records: list[Record] = []
        size = 0
        for index in numbers():
            with self._lock:
                if index >= len(self._entries):
                    break
                entry = self._entries[index]
            size += entry.frame.raw_size
            if records and (len(records) + entry.waiting > most_records or size > most_bytes):
                break
            try:
                found = self._decode(entry)
            except (segment.DamagedFrame, OSError):
                if not records:
                    raise
                break  # what is before goes first
            records += found[len(found) - entry.waiting :]
        return records

    def drop_unreadable(self) -> bool:
        """Drop the first records that are too old or cannot be read; return whether there were any."""
        found = False
        while True:
            with self._lock:
                entry = self._entries[0] if self._entries else None
            if entry is None:
                return found
            if self._now_ns() - entry.file.created_ns > self._most_ns:
                reason = "expired"
            elif self._lanes.load_ack(entry.file.name)[1] >= ATTEMPTS:
                reason = "corrupt"
                self._lanes.set_aside(entry.file.name)
            else:
                return found
            found = True
            self.mark_settled(entry.waiting, dict.fromkeys(range(entry.waiting), reason))

    def mark_settled(self, count: int, dropped: Mapping[int, str] = MappingProxyType({})) -> None:
        """
        Say that the first records are done with.

        Args:
            count: How many.

            dropped: Those of them that were not delivered: index and reason.
        """
        if not count:
            return
        first = 0
        with self._lock:
            self._waiting -= count
            while first < count:
                entry = self._entries[0]
                step = min(count - first, entry.waiting)
                self._partly.update(
                    dropped[index] for index in range(first, first + step) if index in dropped
                )
                first += step
                entry.file.settled = max(entry.file.settled, entry.frame.seq) + step
                if not entry.waiting:
                    self._pop()
            if self._entries:
                file = self._entries[0].file
                self._lanes.save_ack(file.name, file.settled, 0)

    def collect(self) -> list[Done]:
        """Return what is out of the spool since the last call; remove the active file if that is empty."""
        with self._lock:
            if self._active is not None:
                active, self._active = self._active, None
                if not self._drop_if_empty(active):
                    self._active = active
            done, self._done = self._done, []
            return done

    def _pop(self) -> None:
        file, frame = self._entries.popleft()
        self._done.append(Done(frame.ring, frame.end, frame.records, dict(self._partly)))
        self._partly.clear()
        file.frames -= 1
        self._drop_if_empty(file)

    def _drop_if_empty(self, file: _File) -> bool:
        """Remove a file of which everything is settled; never the active one, which may be written to now."""
        if file.frames or file is self._active:
            return False
        self._unsynced.discard(file)
        self._bytes -= file.size
        file.close()
        self._lanes.unlink(file.name)
        self._lanes.unlink(ack_name(file.name))
        return True

    def _decode(self, entry: _Entry) -> list[Record]:
        if entry.file.reader < 0:
            entry.file.reader = self._lanes.open_file(entry.file.name, os.O_RDONLY)
        return segment.decode(entry.file.reader, self._sink, entry.frame)

    def _now_ns(self) -> int:
        return time.monotonic_ns() + self._clock_ns

    # ---- what others have left -----------------------------------------------------------------------------

    def adopt(self, within: float = 0.0) -> None:
        """
        Take over what is in lanes that nobody holds.

        Args:
            within: Seconds to wait for those that are held, at most.
        """
        deadline = time.monotonic() + within
        with suppress(OSError):
            if not self._lanes.held:
                self._open(create=False)
            while self._lanes.held and self._adopt_all() and time.monotonic() < deadline:
                time.sleep(0.01)

    def _open(self, create: bool) -> None:
        """Take a lane, and look into all."""
        self._lanes.open(create)
        self._find_files()
        self.adopt(ADOPT_WITHIN)

    def _adopt_all(self) -> bool:
        """Take over what can be had; return whether there is more in lanes that others hold."""
        held = False
        for taken in self._lanes.adopt():
            if taken:
                self._find_files()
            else:
                held = True
        return held

    def _find_files(self) -> None:
        """Look for segments in the lane that are not known yet."""
        names = set(os.listdir(self._lanes.fd))
        known = {entry.file.name for entry in self._entries}
        if self._active is not None:
            known.add(self._active.name)
        for name in sorted(names):
            if name.endswith(SEGMENT) and name not in known:
                self._find_frames(name)
            elif name.endswith(ACK) and name.replace(ACK, SEGMENT) not in names:
                self._lanes.unlink(name)

    def _find_frames(self, name: str) -> None:
        """Look into a file; one that cannot be read counts as damaged, and the next look may find more."""
        for _ in range(ATTEMPTS):
            try:
                file, entries, damaged = self._scan(name)
                break
            except FileNotFoundError:
                return
            except OSError as error:
                log.warning("cannot read %s: %s", name, _name(error))
        else:
            self.damaged = True
            return
        if damaged:
            self.damaged = True
            self._lanes.set_aside(name)
        with self._lock:
            file.frames = len(entries)
            self._bytes += file.size
            self._entries += entries
            self._waiting += sum(entry.waiting for entry in entries)
            self._drop_if_empty(file)

    def _scan(self, name: str) -> tuple[_File, list[_Entry], bool]:
        """Return a file, its frames that are not settled, and whether there is damage."""
        fd = self._lanes.open_file(name, os.O_RDWR)
        try:
            found = os.fstat(fd)
            made = segment.created_ns(os.pread(fd, segment.HEADER_BYTES, 0), self._sink)
            file = _File(name, -1, made or found.st_mtime_ns, found.st_size)
            file.settled = self._lanes.load_ack(name)[0]
            entries, whole, end = [], segment.HEADER_BYTES, segment.HEADER_BYTES
            for frame in segment.frames(fd, self._sink):
                whole += frame.size
                end = frame.offset + frame.size
                file.next_seq = frame.seq + frame.records
                if file.next_seq > file.settled:
                    entries.append(_Entry(file, frame))
            damaged = (
                made is None or whole != end or (end < file.size and not segment.is_torn(fd, self._sink, end))
            )
        finally:
            os.close(fd)
        if damaged:
            log.warning("%s is damaged: %d bytes are skipped", name, file.size - whole)
        return file, entries, damaged

    def close(self) -> None:
        """Close all files. For a forked child, too: takes no lock, and the core has closed the lane's."""
        for file in {entry.file for entry in self._entries}:
            file.close()
        if self._active is not None:
            self._active.close()
            self._active = None
        self._lanes.close()


def open_spools(
    destination: Destination, base: str, most_bytes: int, most_seconds: float
) -> list[Spool] | None:
    """
    Open the spools of a destination, one for each of its sinks; None where there can be none.

    Args:
        base: Directory of all spools; "" for none.

        most_bytes, most_seconds: As for `Spool`.
    """
    if not base or not hasattr(os, "O_NOFOLLOW"):
        return None
    return [
        Spool(base, destination.sink_fingerprint(spec), most_bytes, most_seconds) for spec in destination.to
    ]


def _pieces(records: Iterable[Record]) -> Iterator[tuple[list[bytes], int, bool]]:
    """Yield the JSON of as many records as a frame takes, its flags, and whether it is the last one."""
    piece: list[bytes] = []
    size = flags = 0
    for record in records:
        encoded, flag = segment.encode(record)
        if piece and (size + len(encoded) > PIECE_BYTES or len(piece) == segment.MOST_RECORDS):
            yield piece, flags, False
            piece, size, flags = [], 0, 0
        piece.append(encoded)
        size += len(encoded)
        flags |= flag
    if piece:
        yield piece, flags, True


def _name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "I/O error")


def _write(fd: int, data: bytes | bytearray, offset: int) -> None:
    view = memoryview(data)
    while view:  # a full disk takes what fits, and says why at the next attempt
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
