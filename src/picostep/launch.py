"""
Starts what exports a ring: a process that the core keeps alive, or a thread of this process.

Imported with the first ring, so a program that imports picostep and records nothing does without.
"""

from __future__ import annotations

import os
import sys

from picostep._keeper import Keeper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Thread
    from types import ModuleType

    from picostep._ring import HostRing
    from picostep.ringdir import RingDir
    from picostep.settings.destination import Destination
    from picostep.settings.table import Limits

__all__ = ["BOOT", "exporter_process", "exporter_thread"]

# What the exporter runs: -I -S keep the host's environment, user site and .pth hooks out. Its own standard
# library comes first. load(), not read(): a child that the host forks meanwhile may keep the pipe open.
BOOT = (
    "import sys, marshal; c = marshal.load(sys.stdin.buffer); sys.path += c['path']; "
    "from picostep.exporter.process import main; raise SystemExit(main(c))"
)


def exporter_process(
    destination: Destination,
    limits: Limits,
    directory: RingDir,
    when_failed: Callable[[], None],
) -> Keeper | None:
    """
    Make what keeps an exporter process for a directory; it starts none before its `start()`.

    Args:
        destination: Where the records go.

        limits: What else the exporter is told.

        directory: Whose rings are exported.

        when_failed: Called from another thread when no process can be started after all.

    Returns:
        None where this host can start no process.
    """
    interpreter = _interpreter()
    if interpreter is None or "stdout" in destination.to:  # another process has another standard output
        return None
    environment = [
        name + b"=" + value
        for name, value in os.environb.items()
        if not name.startswith((b"TCC_", b"OTEL_EXPORTER_", b"PICOSTEP_OTLP_")) and name != b"PYTHONHOME"
    ]
    # glibc would give the memory of every batch back to the kernel and fetch it again, page by page: half
    # the time.
    environment.append(b"MALLOC_TRIM_THRESHOLD_=%d" % (1 << 26))
    try:
        return Keeper(
            os.fsencode(os.path.join(directory.path, "lock")),
            [os.fsencode(interpreter), b"-I", b"-S", b"-c", BOOT.encode()],
            environment,
            _config(destination, limits, directory),
            when_failed,
        )
    except OSError:
        return None


def exporter_thread(
    destination: Destination,
    limits: Limits,
    where: str | HostRing,
    may_import: Callable[[Callable[[], ModuleType]], ModuleType],
    problem: str | None = None,
) -> Thread:
    """
    Make a thread that exports; the caller starts it.

    Args:
        destination: Where the records go.

        limits: What else the exporter is told.

        where: The path of a directory, which it exports when nobody else does; or a private ring.

        may_import: Calls a function that imports, so that no fork comes in between.

        problem: Why it has to be a thread; logged.
    """
    import threading

    return threading.Thread(
        target=_export,
        args=(destination, limits, where, may_import, problem),
        name="picostep-exporter",
        daemon=True,
    )


def _export(
    destination: Destination,
    limits: Limits,
    where: str | HostRing,
    may_import: Callable[[Callable[[], ModuleType]], ModuleType],
    problem: str | None,
) -> None:
    if problem:
        from logging import getLogger

        getLogger("picostep").warning("%s", problem)
    exporter = may_import(_thread_exporter)
    if isinstance(where, str):
        exporter.export_shared(where, destination, limits)
    else:
        exporter.export_private(where, destination, limits)


def _thread_exporter() -> ModuleType:
    from picostep.exporter import thread

    return thread


def _config(destination: Destination, limits: Limits, directory: RingDir) -> bytes:
    import marshal

    above = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    script, *others = sys.path or [""]
    # The script's own directory comes last: it may hold a module that is named like one that we need.
    path = [entry for entry in (above, *others, script) if entry and os.path.isabs(entry)]
    return marshal.dumps(
        {
            "path": list(dict.fromkeys(path)),
            "base": os.path.dirname(directory.path),
            "directory": os.path.basename(directory.path),
            "lock_fd": 3,
            "destination": destination.as_dict(),
            "limits": limits.as_dict(),
        }
    )


def _interpreter() -> str | None:
    """Return the Python that runs this process; None where there is none to start: frozen, embedded."""
    if getattr(sys, "frozen", False) or not hasattr(os, "posix_spawn"):
        return None
    version = "{}.{}".format(*sys.version_info)
    candidates = [
        sys.executable,
        getattr(sys, "_base_executable", ""),
        f"{sys.base_exec_prefix}/bin/python{version}",
    ]
    for path in candidates:
        if path and os.path.basename(path).startswith("python") and os.access(path, os.X_OK):
            return path
    return None
