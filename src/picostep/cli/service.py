"""The exporter in the foreground: `picostep export`, as a sidecar or a service of systemd."""

from __future__ import annotations

import json
import logging
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from picostep.errors import ConfigError
from picostep.exporter.loop import Exporter
from picostep.exporter.process import SignalStop, tune_interpreter
from picostep.exporter.spool import open_spools
from picostep.exporter.stages import preparation
from picostep.exporter.top_socket import Live
from picostep.ringdir import EXTERNAL, base, open_dir
from picostep.settings.destination import resolve_destination
from picostep.sinks import open_sinks
from picostep.times import iso_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from picostep.exporter.spool import Spool
    from picostep.metrics.publish import Publisher
    from picostep.record import Record
    from picostep.ringdir import RingDir
    from picostep.settings.table import Settings
    from picostep.sinks import Sink

__all__ = ["log_to_stderr", "serve"]

_LOCK_EVERY = 0.5  # seconds between attempts to become the exporter of a directory

log = logging.getLogger(__name__)


def log_to_stderr(as_json: bool, debug: bool) -> None:
    """Send picostep's log, and nobody else's, to standard error; as JSON one object on a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("picostep")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = iso_ms(int(record.created * 1e9))
        return json.dumps({"time": time, "level": record.levelname, "message": record.getMessage()})


def serve(settings: Settings, once: bool, metrics: Sequence[str] = ()) -> list[str]:
    """
    Export `BASE/external` and the directory of these settings until SIGTERM or SIGINT comes.

    Args:
        settings: Where rings are, and where their records go.

        once: End when all rings are empty. Directories of another exporter are then left to it.

        metrics: Where metrics go: port numbers, and `otlp:URL`.

    Returns:
        The paths of the directories that were left to another exporter.

    Raises:
        ConfigError: A sink cannot be opened, or metrics cannot be published as they should.

        RingDirError: A directory cannot be used.
    """
    target = resolve_destination(settings)
    stop = SignalStop(signal.SIGTERM, signal.SIGINT)
    posts = []
    with _publisher(metrics) as publisher:
        for name in dict.fromkeys((EXTERNAL, target.fingerprint)):
            directory = open_dir(base(settings.dir), name, create=True)
            live = Live(directory)
            observers = [live.add, publisher.aggregator.add] if publisher else [live.add]
            prepare = preparation(target, *observers)
            posts.append(_Post(directory, open_sinks(target), prepare, live, publisher, settings, stop, once))
        tune_interpreter()
        log.info("exporting to %s", ", ".join(target.to))
        # One thread for each: a directory that another exporter still serves must not keep the others
        # waiting.
        with ThreadPoolExecutor(len(posts)) as pool:
            results = [pool.submit(post.run) for post in posts]
    served = [result.result() for result in results]
    log.info("stopped" if stop.is_set() else "all rings are empty")
    return [post.path for post, done in zip(posts, served, strict=True) if not done and not stop.is_set()]


@contextmanager
def _publisher(targets: Sequence[str]) -> Iterator[Publisher | None]:
    """Publish metrics, if they are to go anywhere."""
    if not targets:
        yield None
        return
    try:
        from picostep.metrics.publish import Publisher
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "ddsketch":
            raise
        raise ConfigError("--metrics needs the extra: pip install 'picostep[metrics]'") from None
    publisher = Publisher(targets, os.environ)
    try:
        yield publisher
    finally:
        publisher.stop()


class _Post:
    """One ring directory to be served."""

    def __init__(
        self,
        directory: RingDir,
        sinks: Sequence[Sink],
        prepare: Callable[[Sequence[Record]], None],
        live: Live,
        publisher: Publisher | None,
        settings: Settings,
        stop: SignalStop,
        once: bool,
    ) -> None:
        self.path = directory.path
        self._directory = directory
        self._sinks = sinks
        self._prepare = prepare
        self._live = live
        self._publisher = publisher
        self._settings = settings
        self._stop = stop
        self._once = once

    def run(self) -> bool:
        """Serve from the moment when nobody else does; return whether it came to that."""
        try:
            lock = self._lock()
            if lock is not None:
                log.info("serving %s", self.path)
                exporter = self._exporter()
                if self._publisher is not None:
                    self._publisher.watch(exporter.counters)
                self._live.start()
                exporter.run()
                self._live.stop()
                os.close(lock)
            return lock is not None
        finally:
            for sink in self._sinks:
                sink.close()
            self._directory.close()

    def _lock(self) -> int | None:
        lock = self._directory.try_lock()
        if lock is None and not self._once:
            log.info("waiting for another exporter to leave %s", self.path)
            while lock is None and not self._stop.is_set():
                self._stop.wait(_LOCK_EVERY)
                lock = self._directory.try_lock()
        return lock

    def _spools(self) -> list[Spool] | None:
        settings = self._settings
        return open_spools(
            resolve_destination(settings), settings.spool, settings.spool_bytes, settings.spool_age
        )

    def _exporter(self) -> Exporter:
        return Exporter(
            [self._directory],
            self._sinks,
            stop=self._stop,
            prepare=self._prepare,
            spools=self._spools(),
            batch_records=self._settings.batch_records,
            batch_bytes=self._settings.batch_bytes,
            once=self._once,
        )
