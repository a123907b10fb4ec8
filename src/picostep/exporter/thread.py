"""The exporter as a thread of the host, for where no process can be started."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from picostep._ring import RingReader
from picostep.errors import ConfigError
from picostep.exporter.build import open_exporter, wait_for_lock
from picostep.exporter.rings import tell_hosts
from picostep.ringdir import open_dir
from picostep.sinks import open_sinks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from picostep._ring import HostRing
    from picostep.exporter.loop import Exporter
    from picostep.ringdir import RingDir
    from picostep.settings.destination import Destination
    from picostep.settings.table import Limits
    from picostep.sinks import Sink

__all__ = ["export_private", "export_shared"]

BREAK_EVERY = 0.0003  # seconds of work between breaks in which the host's threads get the GIL
RESTART_AFTER = 1.0  # seconds

log = logging.getLogger(__name__)

_held: list[Callable[[], None]] = []  # close what a forked child must not keep: locks, above all


def export_private(ring: HostRing, destination: Destination, limits: Limits) -> None:
    """Export a ring in this process's own memory, for good."""
    try:
        sinks = open_sinks(destination)
    except ConfigError as error:
        log.error("cannot export: %s", error)
        RingReader.of_private(ring).set_last_error(str(error))
        return
    _run_for_good(lambda: _exporter((), sinks, destination, limits, rings=(RingReader.of_private(ring),)))


def export_shared(path: str, destination: Destination, limits: Limits) -> None:
    """Export the rings of a directory, for good, from the moment when no other exporter does."""
    directory = open_dir(os.path.dirname(path), os.path.basename(path), create=True)
    lock = wait_for_lock(directory, threading.Event())
    assert lock is not None  # nobody sets that event
    release = partial(os.close, lock)
    _held.append(release)
    try:
        sinks = open_sinks(destination)
    except ConfigError as error:
        log.error("cannot export: %s", error)
        tell_hosts(directory, str(error))
        _held.remove(release)
        release()
        return
    _run_for_good(lambda: _exporter((directory,), sinks, destination, limits))


def _exporter(
    directories: Sequence[RingDir],
    sinks: Sequence[Sink],
    destination: Destination,
    limits: Limits,
    rings: Sequence[RingReader] = (),
) -> Exporter:
    return open_exporter(
        directories,
        sinks,
        destination,
        limits,
        stop=threading.Event(),  # never set: the thread ends with the process
        rings=rings,
        break_every=BREAK_EVERY,
    )


def _run_for_good(make: Callable[[], Exporter]) -> None:
    """Run one exporter after another: none ends unless by a mistake, which must not be the end."""
    while True:
        exporter = make()
        _held.append(exporter.close)
        with suppress(Exception):  # it has logged it
            exporter.run()
        _held.remove(exporter.close)
        time.sleep(RESTART_AFTER)


def _forget_parent() -> None:
    while _held:
        _held.pop()()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)
