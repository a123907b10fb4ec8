"""How an exporter is put together, wherever it runs: as a process, as a thread, or as `picostep export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from picostep.exporter.loop import Exporter
from picostep.exporter.spool import open_spools
from picostep.exporter.stages import preparation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from picostep._ring import RingReader
    from picostep.exporter.loop import Stop
    from picostep.record import Record
    from picostep.ringdir import RingDir
    from picostep.settings.destination import Destination
    from picostep.settings.table import Limits
    from picostep.sinks import Sink

__all__ = ["open_exporter", "wait_for_lock"]

LOCK_EVERY = 0.5  # seconds between attempts to become the exporter of a directory


def open_exporter(
    directories: Sequence[RingDir],
    sinks: Sequence[Sink],
    destination: Destination,
    limits: Limits,
    *,
    stop: Stop,
    observers: Sequence[Callable[[Sequence[Record]], None]] = (),
    rings: Sequence[RingReader] = (),
    break_every: float | None = None,
    linger: float | None = None,
    once: bool = False,
) -> Exporter:
    """
    Return an exporter that is ready to run, with the stages and the spools of a destination.

    The sinks are opened before, by `open_sinks()`: some who call this must know whether that can be done
    before they hold the lock, and others make one exporter after another with the same sinks.

    Args:
        directories, sinks, stop, rings, break_every, linger, once: As for `Exporter`.

        destination: Where the sinks lead to.

        limits: What its spools may hold, and what it may send at once.

        observers: As for `preparation()`.
    """
    return Exporter(
        directories,
        sinks,
        stop=stop,
        prepare=preparation(destination, *observers),
        spools=open_spools(destination, limits.spool, limits.spool_bytes, limits.spool_age),
        rings=rings,
        batch_records=limits.batch_records,
        batch_bytes=limits.batch_bytes,
        break_every=break_every,
        linger=linger,
        once=once,
    )


def wait_for_lock(directory: RingDir, stop: Stop) -> int | None:
    """Take the lock of a directory when nobody else has it; None if told to stop before."""
    # Not by a call that blocks: a process forked meanwhile would share the descriptor, and so the lock to
    # come.
    while (lock := directory.try_lock()) is None and not stop.is_set():
        stop.wait(LOCK_EVERY)
    return lock
