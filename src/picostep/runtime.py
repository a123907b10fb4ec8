"""
What this process records into: its destinations and a ring for each; it waits for and counts what they hold.

The compiled core calls in here when something happens for the first time: a default destination is needed,
a run names one of its own, a destination has no ring yet (at the first record, and again in a forked child).
Nothing in here holds a lock that recording could need: two threads may make a ring at once, and the second
is thrown away.
"""

from __future__ import annotations

import atexit
import os
import sys
from _thread import get_ident
from time import monotonic, sleep

from picostep import _api, _ring
from picostep._ring import rings as _rings
from picostep.errors import ConfigError, PicostepError
from picostep.ringdir import EXTERNAL, base, open_dir
from picostep.settings.urls import refreshed_prices
from picostep.times import to_ns
from picostep.usage import disjoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from decimal import Decimal
    from logging import Logger
    from threading import Thread
    from typing import TypeVar

    from picostep._keeper import Keeper
    from picostep.prices.overrides import Overrides
    from picostep.ringdir import RingDir
    from picostep.settings.destination import Destination
    from picostep.settings.table import Settings

    T = TypeVar("T")

# The core finds these here, by name.
__all__ = [
    "cost",
    "default_destination",
    "destination_index",
    "disjoint",
    "ignored_traceparent",
    "misused",
    "open_ring",
    "to_ns",
]

MAX_DESTINATIONS = 64
NOWHERE = MAX_DESTINATIONS  # the core has no ring there: what is recorded into it is counted as lost
FLUSH_TIMEOUT = 30.0
FORK_TIMEOUT = 2.0  # seconds

_settings: Settings | None = None
_default: tuple[Settings, int] | None = None  # the default destination of these settings
_destinations: list[Destination] = []
_numbers: dict[tuple[str | None, str | None, str | None], int] = {}
_keepers: dict[int, Keeper] = {}
_threads: dict[int, Thread] = {}
_overrides: dict[int, Overrides] = {}
_retired: list[dict[str, object]] = []
_given_up: dict[int, int] = {}  # the head of each ring that was waited for in vain, before the exit
_misuses: dict[str, int] = {}
_traceparent_ignored = False
_forks = 0
_importing: set[int] = set()  # threads that may hold a lock of the import system on our behalf
_at_exit_known = False


def settings() -> Settings:
    """Return the settings in force, read from the environment at first use; raises ConfigError."""
    global _settings
    if _settings is None:
        from picostep.settings.table import Settings

        found = Settings.resolve()
        if _settings is None:  # another thread may have configured meanwhile
            _settings = found
    return _settings


def configure(arguments: Mapping[str, object]) -> None:
    """
    Put settings in force for what is begun from now on.

    Args:
        arguments: Those of `api.configure()`.

    Raises:
        ConfigError: One of them cannot be used; nothing is changed.
    """
    global _settings, _numbers
    _may_import(_load_settings)
    from picostep.settings.table import Settings

    new = Settings.resolve(**arguments)
    if not new.disabled:
        _where(new)
    # In this order: other threads may resolve destinations between any two of these lines.
    _settings = new
    _numbers = {}
    _api.use(-1, new.disabled, new.misuse == "raise")


def _load_settings() -> None:
    """Import what settings need, which is not needed before the first record or `configure()`."""
    from picostep.settings import destination, table  # noqa: F401


# ---- called by the core ------------------------------------------------------------------------------------


def default_destination() -> int:
    """Return the number of the default destination, with a ring; raises ConfigError."""
    return NOWHERE if _interrupts_itself() else _may_import(_resolve_default)


def destination_index(api_key: str | None, tcc_url: str | None, feedback_url: str | None) -> int:
    """Return the number of the destination of one run, step, tool call or feedback; raises ConfigError."""
    key = (api_key, tcc_url, feedback_url)
    number = _numbers.get(key)
    if number is not None and _has_ring(number):
        return number
    if _interrupts_itself():
        return NOWHERE
    try:
        return _may_import(lambda: _resolve(key))
    except ConfigError as error:
        del api_key, tcc_url, feedback_url, key  # they may be shown with the traceback
        raise error.with_traceback(None) from None


def _interrupts_itself() -> bool:
    """
    Return whether an earlier call of this thread into this module is under way.

    A signal handler, a finalizer or a tracing hook may come in between any two lines, also when a module is
    half imported. Importing that once more would raise or, before Python 3.12, wait for ever.
    """
    frame = sys._getframe(1).f_back
    while frame is not None:
        if frame.f_code in _ENTRIES:
            return True
        frame = frame.f_back
    return False


def _may_import(function: Callable[[], T]) -> T:
    """Call a function; `os.fork()` in other threads waits for it."""
    thread = get_ident()
    try:
        _importing.add(thread)
        return function()
    finally:
        _importing.discard(thread)


def _before_fork() -> None:
    """
    Let other threads finish what they import.

    The child would find the lock of a half imported module held by a thread that it does not have, and would
    wait for ever when it needs that module. Not by a lock of ours: who imports may wait for one who forks.
    """
    deadline = monotonic() + FORK_TIMEOUT
    while _importing - {get_ident()} and monotonic() < deadline:
        sleep(0.0005)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_importing.clear)


def _resolve_default() -> int:
    global _default
    while True:
        current, known = settings(), _default
        if known is not None and known[0] is current:
            number = known[1]
        else:
            number = _number(_nowhere(current) if current.disabled else _where(current))
            _default = current, number
        _api.use(number, current.disabled, current.misuse == "raise")
        if settings() is current:  # else another thread has configured meanwhile
            break
    if not current.disabled:
        _provide_ring(number)
    return number


def _resolve(key: tuple[str | None, str | None, str | None]) -> int:
    numbers = _numbers  # before the settings: what follows from older ones is not found under newer ones
    current = settings()
    if current.disabled:
        return _resolve_default()
    number = numbers.get(key)
    if number is None:
        number = numbers[key] = _number(_where(current, *key))
    _provide_ring(number)
    return number


def _nowhere(current: Settings) -> Destination:
    """Return the destination of what is not recorded; its steps have a cost, too."""
    from picostep.settings.destination import Destination

    return Destination((), prices=current.prices)


def _where(current: Settings, *own: str | None) -> Destination:
    """Work out a destination; no frame that holds the key stays in the traceback of an error."""
    from picostep.settings.destination import resolve_destination

    try:
        return resolve_destination(current, *own)
    except ConfigError as error:
        del own
        raise error.with_traceback(None) from None


def _number(wanted: Destination) -> int:
    """Return the number of a destination; those that are equal share one."""
    for number, known in enumerate(_destinations):
        if known == wanted:
            return number
    if len(_destinations) == MAX_DESTINATIONS:
        raise ConfigError(
            f"more than {MAX_DESTINATIONS} destinations (keys and URLs) in one process: each has its own ring"
        )
    _destinations.append(wanted)
    return len(_destinations) - 1


def cost(step: dict[str, object], number: int) -> tuple[Decimal | None, str]:
    """
    Return what a step costs in US dollars, and the status of that.

    Args:
        step: As much of its record as is known.

        number: Its destination, whose prices come first.

    Raises:
        PriceTableError: The built-in price table was damaged after it was installed.

        OSError: It cannot be read.
    """
    given = step.get("real_total_cost")
    if given is not None:
        from decimal import Decimal

        return Decimal(repr(given) if isinstance(given, float) else str(given)), "user"
    from picostep.prices.steps import current, price_step

    found = price_step(step, _overrides_of(number), current())
    return found.usd, found.status


def _overrides_of(number: int) -> Overrides | None:
    found = _overrides.get(number)
    if found is None and number != NOWHERE and _destinations[number].prices:
        from picostep.prices.overrides import Overrides

        found = _overrides[number] = Overrides.from_plain(_destinations[number].prices)
    return found


def misused(kind: str, message: str) -> None:
    """Count a wrong call; log the first of each kind. Only in the mode misuse="log"."""
    seen = _misuses.get(kind, 0)
    _misuses[kind] = seen + 1
    if not seen:
        _logger().warning("%s: %s (further ones of this kind are only counted, in stats())", kind, message)


def ignored_traceparent(where: str) -> None:
    """Log the first one that is not valid; in every mode, as clients send them."""
    global _traceparent_ignored
    if not _traceparent_ignored:
        _traceparent_ignored = True
        _logger().warning("%s(): a traceparent is not valid: ignored, like all further ones", where)


def open_ring(number: int) -> None:
    """Give a destination a ring and an exporter, unless it has a ring. Never raises: losses are counted."""
    if number != NOWHERE and not _interrupts_itself():
        _may_import(lambda: _provide_ring(number))


_ENTRIES = frozenset(
    function.__code__ for function in (default_destination, destination_index, open_ring, _load_settings)
)


def _provide_ring(number: int) -> None:
    _forget_parent()
    if _has_ring(number):
        return
    if not _destinations[number].to:  # begun while recording was switched off
        return
    try:
        _open_ring(number, settings())
    except Exception as error:  # whatever it is, the host goes on
        _logger().warning("cannot record: %s", error)


def _has_ring(number: int) -> bool:
    ring = _rings.get(number)
    return ring is not None and ring.open


# ---- rings and their exporters -----------------------------------------------------------------------------


def _forget_parent() -> None:
    """In a forked child, let go of what is the parent's. The core has closed its files already."""
    global _forks
    if _forks != _ring.forks():
        _forks = _ring.forks()
        _rings.clear()
        _keepers.clear()
        _threads.clear()
        _retired.clear()
        _given_up.clear()
        _misuses.clear()


def _directory_name(number: int, current: Settings) -> str:
    if current.exporter == "external" and _default is not None and number == _default[1]:
        return EXTERNAL
    return _destinations[number].fingerprint


def _open_ring(number: int, current: Settings) -> None:
    global _at_exit_known
    directory: RingDir | None = None
    try:
        directory = open_dir(base(current.dir), _directory_name(number, current), create=True)
        ring = directory.make_ring(current.ring_bytes)
    # AttributeError: a platform without descriptors of directories.
    except (OSError, AttributeError) as error:
        if directory is not None:
            directory.close()
        directory = None
        ring = _ring.HostRing(-1, current.ring_bytes)
        problem = str(error)
    if not ring.install(number):
        ring.close()  # another thread was faster; an exporter removes the empty file
        if directory is not None:
            directory.close()
        return
    if not _at_exit_known:
        _at_exit_known = True
        atexit.register(_at_exit)
    if directory is None:
        problem = f"no ring in shared memory, so records do not outlive the process: {problem}"
        _start_thread(number, current, ring, problem)
        return
    try:
        if current.exporter == "thread" or (
            current.exporter == "process" and not _start_process(number, current, directory)
        ):
            _start_thread(number, current, directory.path)
    finally:
        directory.close()
        ring.reserve()  # last: while pages are made, the process's other calls that map memory wait


def _start_process(number: int, current: Settings, directory: RingDir) -> bool:
    """Have an exporter process kept for this destination; False when this host cannot start one."""
    keeper = _keepers.get(number)
    if keeper is None:
        from picostep.launch import exporter_process

        keeper = exporter_process(_destinations[number], current, directory, lambda: _process_failed(number))
        if keeper is None:
            return False
        keeper = _keepers.setdefault(number, keeper)  # another thread may have been faster
    return keeper.start()


def _process_failed(number: int) -> None:
    """From the keeper's thread: no exporter process can be started, so a thread has to do."""
    current = settings()
    directory = open_dir(base(current.dir), _directory_name(number, current), create=True)
    directory.close()
    _start_thread(number, current, directory.path, "no exporter process can be started")


def _start_thread(
    number: int, current: Settings, where: str | _ring.HostRing, problem: str | None = None
) -> None:
    """Export from a thread: a directory, when its lock is free, or a private ring."""
    if number in _threads:
        return
    from picostep.launch import exporter_thread

    thread = exporter_thread(_destinations[number], current.limits, where, _may_import, problem)
    _threads[number] = thread
    thread.start()


# ---- waiting and counting ----------------------------------------------------------------------------------


def flush(timeout: float) -> bool:
    """Wait until all that was accepted is delivered; False when the time is over first."""
    return _wait_until_all(lambda ring, head: ring.settled >= head, timeout)


def _wait_until_all(done: Callable[[_ring.HostRing, int], bool], timeout: float) -> bool:
    """Wait until something holds for all rings as far as they are filled now."""
    _forget_parent()
    targets = [(ring, ring.head) for ring in list(_rings.values())]  # others may open and close rings
    deadline = monotonic() + timeout
    pause = 0.0005
    while not all(done(ring, head) for ring, head in targets):
        left = deadline - monotonic()
        if left <= 0:
            return False
        sleep(min(pause, left))
        pause = min(pause * 1.5, 0.01)
    return True


def wait_for_delivery(timeout: float | None = None) -> None:
    """
    Wait like `flush()`, for `exit_timeout` by default; what is not delivered by then is not waited for again.

    For whoever is told of the end of the process before `atexit` is, if that is at all.
    """
    if timeout is None:
        timeout = settings().exit_timeout
    if not flush(timeout):
        _given_up.update({number: ring.head for number, ring in list(_rings.items())})


def shutdown(timeout: float) -> bool:
    """Flush, then give the rings up; a later record opens new ones. What is left is for an exporter."""
    done = flush(timeout)
    for keeper in list(_keepers.values()):
        keeper.stop()
    for ring in list(_rings.values()):
        if not ring.private:  # a private ring is all there is of its records
            _retired.append(ring.close())
    return done


def stats() -> dict[str, object]:
    """Return what `api.stats()` documents."""
    _forget_parent()
    total: dict[str, int] = {}
    # All reasons from the beginning, as programs that watch them look them up by name.
    dropped = dict.fromkeys(("ring_full", "no_ring", "rejected", "encode_error", "corrupt", "expired"), 0)
    dropped["no_ring"] = _ring.unrecorded()
    last_error = ""
    rings = list(_rings.items())
    for counters in [*_retired, *(ring.counters() for _, ring in rings)]:
        for name, value in counters.items():
            if isinstance(value, int):
                total[name] = total.get(name, 0) + value
            elif isinstance(value, dict):
                for reason, count in value.items():
                    dropped[reason] = dropped.get(reason, 0) + count
            elif value:
                last_error = str(value)
    names = (
        *("recorded", "accepted", "delivered", "in_ring", "in_spool", "unsynced"),
        *("shed", "shortened", "withheld", "untracked_runs"),
    )
    result: dict[str, object] = {name: total.get(name, 0) for name in names}
    result["recorded"] = total.get("recorded", 0) + dropped["no_ring"]
    result["dropped"] = dropped
    result["last_error"] = last_error or None
    result["misuse"] = dict(_misuses)
    result["price_table_errors"] = _price_table_errors()
    result["rings"] = [
        {
            "destination": _destinations[number].fingerprint,
            "private": ring.private,
            "exporter_pid": (_keepers[number].child or None) if number in _keepers else None,
            "exporter_starts": _keepers[number].starts if number in _keepers else 0,
            **ring.counters(),
        }
        for number, ring in rings
    ]
    return result


def _price_table_errors() -> int:
    """Count refreshed price tables that cannot be used; loads the modules for prices only if there is one."""
    from os.path import exists

    if "picostep.prices.steps" not in sys.modules:
        try:
            if not exists(refreshed_prices()):
                return 0
        except ConfigError:
            return 0
    from picostep.prices import steps

    try:
        steps.current()
    except (PicostepError, OSError) as error:  # the built-in one is damaged, too
        _logger().error("no price table: %s", error)
    return steps.errors()


def _at_exit() -> None:
    """Leave when the records are delivered or spooled, after `exit_timeout` at the latest."""
    if _ends_by_exception():
        _api.keep_runs()  # reported as failed, like those of a process that is killed
    else:
        for ring in list(_rings.values()):
            ring.abandon_runs()
    current = settings()
    if current.exporter == "off":
        return
    if all(_given_up.get(number) == ring.head for number, ring in list(_rings.items())):
        timeout = 0.0  # nothing has come since somebody waited in vain
    else:
        timeout = current.exit_timeout
    if _wait_until_all(lambda ring, head: ring.tail >= head, timeout):
        return
    rings = list(_rings.values())
    waiting = sum(ring.counters().get("in_ring", 0) for ring in rings)
    lost = sum(ring.counters().get("in_ring", 0) for ring in rings if ring.private)
    _logger().warning(
        "%d records are not delivered yet (%s); %s",
        waiting,
        stats()["last_error"] or "no error reported",
        "they are lost with this process" if lost else f"they stay in {base(current.dir)} for an exporter",
    )


def _ends_by_exception() -> bool:
    """Return whether nobody caught an exception of the main thread, and the interpreter ends for that."""
    return getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1")  # a prompt goes on


def _logger() -> Logger:
    import logging

    return logging.getLogger("picostep")


_api.bind(sys.modules[__name__])
