"""
What is on disk for sinks that could not take it, and what `picostep spool` prints of it.

Takes no lock, changes nothing.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from picostep.cli.screen import table
from picostep.cli.text import clean, clock, count, size
from picostep.exporter import segment
from picostep.exporter.dead_letters import NAME, OLDER
from picostep.exporter.lanes import ASIDE, SEGMENT, ack_name
from picostep.ringdir import OwnDir, list_directories, open_own

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import RenderableType

    from picostep.exporter.segment import SpoolFrame
    from picostep.record import Record

__all__ = ["Waiting", "dead_letters", "records", "spools_view", "waiting"]


@dataclass(frozen=True)
class Waiting:
    """
    The spool of one sink.

    Attributes:
        sink: 16 hex digits.

        records: Not delivered yet.

        bytes: Of all files.

        oldest_ns: Unix time at which the oldest file was begun; None when there is none.

        exporters: How many are at work on it.

        dead_letters: Bytes of what the sink refused.

        damaged: Files that were set aside.
    """

    sink: str
    records: int
    bytes: int
    oldest_ns: int | None
    exporters: int
    dead_letters: int
    damaged: int


def waiting(base: str) -> list[Waiting]:
    """Look into all spools below a directory; one that cannot be read is left out."""
    found = []
    for sink in list_directories(base):
        with suppress(OSError, ValueError):
            found.append(_scan(base, sink))
    return found


def records(base: str, sink: str) -> Iterator[Record]:
    """
    Yield the records that wait for a sink, oldest file first; what is damaged is left out.

    Raises:
        OSError: There is no such spool, or it cannot be read.
    """
    top = open_own(base, sink, create=False)
    key = bytes.fromhex(sink)
    try:
        for lane in _lanes(top):
            for name, fd in _segments(lane):
                for frame, skip in _unsettled(lane, name, fd, key):
                    with suppress(segment.DamagedFrame):
                        yield from segment.decode(fd, key, frame)[skip:]
    finally:
        top.close()


def dead_letters(base: str, sink: str) -> Iterator[bytes]:
    """Yield the lines of what a sink refused, oldest first; raises OSError likewise."""
    top = open_own(base, sink, create=False)
    try:
        for name in (OLDER, NAME):
            with suppress(FileNotFoundError), open(_open(top, name), "rb") as file:
                yield from file
    finally:
        top.close()


def _scan(base: str, sink: str) -> Waiting:
    key = bytes.fromhex(sink)
    top = open_own(base, sink, create=False)
    try:
        count = size = exporters = 0
        oldest = []
        for lane in _lanes(top):
            exporters += lane.locked()
            for name, fd in _segments(lane):
                size += os.fstat(fd).st_size
                oldest.append(int(name[:16], 16))
                count += sum(frame.records - skip for frame, skip in _unsettled(lane, name, fd, key))
        dead = sum(_size(top, name) for name in (NAME, OLDER))
        return Waiting(sink, count, size, min(oldest, default=None), exporters, dead, _set_aside(top))
    finally:
        top.close()


def _lanes(top: OwnDir) -> Iterator[OwnDir]:
    for name in sorted(name for name in os.listdir(top.fd) if name.isdigit()):
        lane = open_own(top.path, name, create=False)
        try:
            yield lane
        finally:
            lane.close()


def _segments(lane: OwnDir) -> Iterator[tuple[str, int]]:
    """Yield name and descriptor of each file; an exporter may remove it meanwhile."""
    for name in sorted(name for name in os.listdir(lane.fd) if name.endswith(SEGMENT)):
        with suppress(FileNotFoundError):
            fd = _open(lane, name)
            try:
                yield name, fd
            finally:
                os.close(fd)


def _unsettled(lane: OwnDir, name: str, fd: int, key: bytes) -> Iterator[tuple[SpoolFrame, int]]:
    """Yield the frames that are not settled, and how many records at their beginning are."""
    settled = 0
    with suppress(FileNotFoundError):
        ack = _open(lane, ack_name(name))
        settled, _ = segment.unpack_ack(os.read(ack, segment.ACK_BYTES + 1))
        os.close(ack)
    for frame in segment.frames(fd, key):
        if frame.seq + frame.records > settled:
            yield frame, max(0, settled - frame.seq)


def _open(directory: OwnDir, name: str) -> int:
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory.fd)


def _size(directory: OwnDir, name: str) -> int:
    try:
        return os.stat(name, dir_fd=directory.fd, follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _set_aside(top: OwnDir) -> int:
    try:
        aside = open_own(top.path, ASIDE, create=False)
    except OSError:
        return 0
    try:
        return len(os.listdir(aside.fd))
    finally:
        aside.close()


# --- for people --------------------------------------------------------------------------------------------


def spools_view(found: Sequence[Waiting], names: Mapping[str, str]) -> RenderableType:
    """Lay out spools; `names` gives those of this shell's sinks."""
    made = table()
    for header in ("SPOOL", "OF"):
        made.add_column(header)
    for header in ("WAITING", "ON DISK", "SINCE", "EXPORTERS", "REFUSED", "DAMAGED"):
        made.add_column(header, justify="right")
    for each in found:
        made.add_row(
            each.sink,
            clean(names.get(each.sink, "")),
            count(each.records),
            size(each.bytes),
            "" if each.oldest_ns is None else clock(each.oldest_ns),
            str(each.exporters),
            size(each.dead_letters) if each.dead_letters else "0",
            Text(str(each.damaged), style="red" if each.damaged else ""),
        )
    return made
