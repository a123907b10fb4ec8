"""
The exporter as a process of its own.

Started by a host's keeper, with its configuration on standard input and the lock of the ring directory as an
open descriptor.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import select
import signal
import stat
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from picostep.errors import ConfigError

if TYPE_CHECKING:
    from picostep.ringdir import RingDir
    from picostep.settings.destination import Destination
    from picostep.settings.table import Limits

__all__ = ["SignalStop", "main", "tune_interpreter"]

LINGER = 3.0  # seconds without a ring, after which the process ends
LOG_NAME = "exporter.log"
LOG_BYTES = 256 * 1024
NICENESS = 10
SWITCH_INTERVAL = 0.0005  # seconds
_MALLOPT = {-1: 16 << 20, -3: 16 << 20, -8: 1}  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX of malloc.h

CANNOT_START = 3

log = logging.getLogger(__name__)


def main(config: dict[str, Any]) -> int:
    """
    Export the rings of one directory until no host needs it any more.

    Args:
        config: `path` (unused here), `base` and `directory` (where the rings are), `lock_fd`, `destination`
            (`Destination.as_dict()`), `limits` (`Limits.as_dict()`).

    Returns:
        Exit status: 0, or 3 when a sink cannot be opened.
    """
    _detach(config["lock_fd"])
    from picostep.ringdir import open_dir
    from picostep.settings.destination import Destination
    from picostep.settings.table import Limits

    directory = open_dir(config["base"], config["directory"], create=False)
    limits = Limits(config["limits"])
    _log_to(directory, limits.debug)
    return _export(directory, Destination.from_dict(config["destination"]), limits)


def _export(directory: RingDir, destination: Destination, limits: Limits) -> int:
    from picostep.exporter.build import open_exporter
    from picostep.exporter.rings import tell_hosts
    from picostep.exporter.top_socket import TopSocket
    from picostep.sinks import open_sinks

    try:
        sinks = open_sinks(destination)
    except ConfigError as error:
        log.error("cannot start: %s", error)
        tell_hosts(directory, str(error))
        return CANNOT_START
    top_socket = TopSocket(directory)
    exporter = open_exporter(
        [directory],
        sinks,
        destination,
        limits,
        stop=SignalStop(signal.SIGTERM),
        observers=[top_socket.add],
        linger=LINGER,
    )
    tune_interpreter()
    top_socket.start()
    exporter.run()
    top_socket.stop()
    for sink in sinks:
        sink.close()
    return 0


def tune_interpreter() -> None:
    """
    Set up a process that does nothing but export.

    While one thread compresses or writes what must leave the rings, another decodes and sends. With the usual
    interval the first would wait 5 ms for the GIL after each piece. And every batch is megabytes of small
    blocks: glibc, left to itself, would give them back to the system each time, and spend as much time on
    getting them again as everything else takes.
    """
    sys.setswitchinterval(SWITCH_INTERVAL)
    with suppress(ImportError, OSError, AttributeError):  # other C libraries have no mallopt
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _MALLOPT.items():
            mallopt(option, value)
    gc.freeze()  # modules and classes are never garbage


def _detach(lock_fd: int) -> None:
    """Let go of what the host had open, and of its place in the system."""
    os.closerange(lock_fd + 1, min(os.sysconf("SC_OPEN_MAX"), 1 << 20))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.chdir("/")
    os.umask(0o077)
    _dump_no_core()
    with suppress(OSError):
        os.nice(NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the host, which then exits at its own pace
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _dump_no_core() -> None:
    """
    Keep the key and the texts out of core files, also out of those that the kernel pipes to a program.

    A limit of 0 does not hold for the latter, one of 1 byte does for both. Debuggers and profilers of this
    user can still attach, as they can to the host, which has the same in its memory.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 0 if hard == 0 else 1
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


class SignalStop:
    """
    Set by a signal: the exporter's `stop`. To be made in the main thread.

    The interpreter itself writes a byte to a pipe when a signal comes, in whichever thread that is. Neither a
    `threading.Event`, which a handler must not set (it would wait for a lock that the interrupted `wait()`
    may hold), nor the handler will do: it runs when the main thread does, which may be waiting for others.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        for number in signals:
            signal.signal(number, lambda number, frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def is_set(self) -> bool:
        return bool(select.select([self._reader], [], [], 0.0)[0])

    def wait(self, timeout: float) -> None:
        select.select([self._reader], [], [], timeout)


class _BoundedLog(logging.Handler):
    """
    Appends to a file, of which it keeps the younger half when it has reached its limit.

    Args:
        fd: Open for reading and appending.

        limit: Bytes.
    """

    def __init__(self, fd: int, limit: int) -> None:
        super().__init__()
        self._fd = fd
        self._limit = limit

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        with suppress(OSError):  # nobody to tell
            size = os.fstat(self._fd).st_size
            if size + len(line) > self._limit:
                self._halve(size)
            os.write(self._fd, line)

    def _halve(self, size: int) -> None:
        os.lseek(self._fd, max(0, size - self._limit // 2), os.SEEK_SET)
        kept = os.read(self._fd, self._limit // 2).partition(b"\n")[2]
        os.ftruncate(self._fd, 0)
        os.write(self._fd, kept)


def _log_to(directory: RingDir, debug: bool) -> None:
    # Not waiting for whoever reads a FIFO, should it be one.
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handler: logging.Handler = logging.NullHandler()
    with suppress(OSError):
        fd = os.open(LOG_NAME, flags, 0o600, dir_fd=directory.fd)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            handler = _BoundedLog(fd, LOG_BYTES)
        else:
            os.close(fd)
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(process)d %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("picostep")  # ours alone: urllib3 logs URLs
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
