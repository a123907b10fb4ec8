"""What is in the ring directories now, and what `picostep status` prints of it."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.padding import Padding
from rich.text import Text

from picostep._ring import RingError
from picostep.cli.screen import cropped, table
from picostep.cli.text import clean, count, size
from picostep.ringdir import RingDirError, list_directories, open_dir

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from picostep._ring import RingReader
    from picostep.ringdir import RingDir

__all__ = ["Directory", "Ring", "scan", "status_view"]

_TAIL_BYTES = 16 * 1024


@dataclass(frozen=True)
class Ring:
    """
    One process's ring.

    Attributes:
        state: `recording` (its process lives), `ended`, or `in use` (someone holds it, and no process of that
            number is to be seen: an exporter that adopted it, or a host in another container).

        problem: Why it cannot be read; the other attributes are then 0 and {}.
    """

    name: str
    state: str
    pid: int = 0
    size_bytes: int = 0
    backlog_bytes: int = 0
    counters: dict[str, Any] | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Directory:
    """
    One destination's ring directory.

    Attributes:
        name: The destination's fingerprint, or `external`.

        own: Whether this shell's settings lead to it.

        exporter: Whether an exporter is at work; None if that cannot be told.

        damaged: Names of files that an exporter has set aside.

        totals: Sums over the rings that were drained and removed; None before the first.

        log: The last lines of the exporter's log, oldest first.

        problem: Why the directory cannot be read.
    """

    name: str
    path: str
    own: bool
    exporter: bool | None = None
    rings: tuple[Ring, ...] = ()
    damaged: tuple[str, ...] = ()
    totals: dict[str, Any] | None = None
    log: tuple[str, ...] = ()
    problem: str | None = None


def scan(base: str, own: str, log_lines: int) -> list[Directory]:
    """
    Look into all ring directories of a base.

    Args:
        base: From `ringdir.base()`. A base that does not exist has none.

        own: The name that this shell's settings lead to; it comes first.

        log_lines: How many lines of each log.
    """
    names = sorted(list_directories(base), key=lambda name: (name != own, name))
    return [_scan_directory(base, name, name == own, log_lines) for name in names]


def _scan_directory(base: str, name: str, own: bool, log_lines: int) -> Directory:
    try:
        opened = open_dir(base, name, create=False)
    except RingDirError as error:
        return Directory(name, os.path.join(base, name), own, problem=error.strerror)
    try:
        return _read(opened, name, own, log_lines)
    finally:
        opened.close()


def _read(opened: RingDir, name: str, own: bool, log_lines: int) -> Directory:
    log = _end_of(opened, "exporter.log").splitlines()
    rings = (_ring(opened, ring_name) for ring_name in sorted(opened.ring_names()))
    return Directory(
        name,
        opened.path,
        own,
        exporter=opened.locked(),
        rings=tuple(ring for ring in rings if ring),
        damaged=tuple(sorted(entry for entry in os.listdir(opened.fd) if entry.endswith(".bad"))),
        totals=_totals(opened),
        log=tuple(log[-log_lines:]) if log_lines else (),
    )


def _ring(opened: RingDir, name: str) -> Ring | None:
    try:
        reader = opened.open_ring(name)
    except FileNotFoundError:  # drained and removed meanwhile
        return None
    except (RingError, OSError) as error:
        return Ring(name, "unreadable", problem=str(error))
    try:
        return Ring(name, _state(reader), reader.pid, reader.size, reader.backlog, counters=reader.counters())
    except RingError as error:
        return Ring(name, "unreadable", problem=str(error))
    finally:
        reader.close()


def _state(reader: RingReader) -> str:
    if not reader.alive():
        return "ended"
    try:
        os.kill(reader.pid, 0)
    except ProcessLookupError:
        return "in use"
    except (PermissionError, OverflowError):
        pass
    return "recording"


def _totals(opened: RingDir) -> dict[str, Any] | None:
    with suppress(ValueError):
        totals = json.loads(_end_of(opened, "totals.json"))
        if isinstance(totals, dict):
            return totals
    return None


def _end_of(opened: RingDir, name: str) -> str:
    """Return the last 16 KiB of a file in the directory; "" if it is not there or not a plain file."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(name, flags, dir_fd=opened.fd), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                return ""
            start = max(0, found.st_size - _TAIL_BYTES)
            file.seek(start)
            return file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


# --- for people --------------------------------------------------------------------------------------------


def status_view(directories: Sequence[Directory], to: str) -> Iterator[RenderableType]:
    """Lay out ring directories; `to` says where this shell's settings send records."""
    for directory in directories:
        yield Text.assemble(
            (clean(directory.name), "bold cyan"), "  ", _exporter_state(directory), _whose(directory, to)
        )
        if directory.problem:
            yield Text(f"  cannot be read: {clean(directory.problem)}", style="red")
        if directory.rings or directory.totals:
            yield Padding(_rings_table(directory), (0, 0, 0, 2))
        for name in directory.damaged:
            yield Text(f"  damaged, set aside: {clean(name)}", style="red")
        yield from (cropped(f"  log  {clean(line)}", "dim") for line in directory.log)


def _exporter_state(directory: Directory) -> Text:
    if directory.exporter:
        return Text("exporter at work", style="green")
    waiting = any(ring.backlog_bytes for ring in directory.rings)
    return Text("no exporter", style="bold red" if waiting else "dim")


def _whose(directory: Directory, to: str) -> str:
    return f"  the settings of this shell: {clean(to)}" if directory.own else ""


def _rings_table(directory: Directory) -> Table:
    made = table()
    for header in ("PROCESS", "STATE"):
        made.add_column(header)
    for header in ("RECORDED", "DELIVERED", "IN RING", "SPOOLED", "DROPPED", "USED"):
        made.add_column(header, justify="right")
    made.add_column("LAST ERROR")
    for ring in directory.rings:
        made.add_row(*_ring_cells(ring))
    if directory.totals:
        ended = f"{directory.totals.get('rings', 0)} ended"
        made.add_row("earlier", ended, *_counter_cells(directory.totals), style="dim")
    return made


def _ring_cells(ring: Ring) -> Iterator[str | Text]:
    yield str(ring.pid) if ring.pid else clean(ring.name)
    yield ring.state
    if ring.counters is None:
        yield from [""] * 6
        yield Text(clean(ring.problem or ""), style="red")
        return
    yield from _counter_cells(ring.counters)
    yield f"{size(ring.backlog_bytes)} of {size(ring.size_bytes)}"
    yield Text(clean(ring.counters["last_error"]), style="red")


def _counter_cells(counters: dict[str, Any]) -> Iterator[Text]:
    dropped = counters.get("dropped", {})
    yield Text(count(counters.get("recorded", 0)))
    yield Text(count(counters.get("delivered", 0)))
    yield Text(count(counters.get("in_ring", 0)))
    yield Text(count(counters.get("in_spool", 0)))
    reasons = ", ".join(f"{count(number)} {clean(reason)}" for reason, number in dropped.items() if number)
    yield Text(reasons or "0", style="red" if reasons else "")
