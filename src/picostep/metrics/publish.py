"""Where metrics go: ports of this machine that are scraped, receivers that are pushed to."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from picostep.errors import ConfigError
from picostep.metrics.aggregate import Aggregator
from picostep.metrics.families import families
from picostep.metrics.otlp import Pusher
from picostep.metrics.server import Server
from picostep.metrics.text import text
from picostep.settings import otel
from picostep.settings.urls import otlp_endpoint
from picostep.sinks.otlp.http import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from picostep.metrics.aggregate import Snapshot
    from picostep.metrics.families import Family

__all__ = ["Publisher"]

_OTLP = "otlp:"
_OTLP_PATH = "/v1/metrics"


class Publisher:
    """
    Counts records and publishes what it has counted until it is stopped.

    Attributes:
        aggregator: Gets the records.

    Args:
        targets: Port numbers, and `otlp:URL`.

        environ: Has the variables of OpenTelemetry.

    Raises:
        ConfigError: One of them cannot be used; then none is.
    """

    def __init__(self, targets: Sequence[str], environ: Mapping[str, str]) -> None:
        self.aggregator = Aggregator()
        self._rings: list[Callable[[], Mapping[str, Any]]] = []
        ports = [_port(target) for target in targets if not target.startswith(_OTLP)]
        receivers = [_receiver(target, environ) for target in targets if target.startswith(_OTLP)]
        every = otel.metric_interval(environ)
        with ExitStack() as opened:
            for port in ports:
                opened.callback(Server(port, self.text).stop)
            for receiver in receivers:
                opened.callback(Pusher(receiver, every, self._collect).stop)
            self._opened = opened.pop_all()

    def watch(self, counters: Callable[[], Mapping[str, Any]]) -> None:
        """Publish the counters of an exporter, too: `Exporter.counters`."""
        self._rings.append(counters)

    def stop(self) -> None:
        """Push once more to each receiver, and end."""
        self._opened.close()

    def text(self) -> bytes:
        """Return everything as Prometheus has it."""
        return text(self._collect()[0])

    def _collect(self) -> tuple[Iterator[Family], Snapshot]:
        sums: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        for counters in self._rings:
            found = dict(counters())
            dropped.update(found.pop("dropped"))
            sums.update(found)
        snapshot = self.aggregator.snapshot()
        return families(snapshot, {**sums, "dropped": dropped}), snapshot


def _port(target: str) -> int:
    if not (target.isascii() and target.isdigit() and 1 <= int(target[:6]) <= 65535):
        raise ConfigError(
            f"--metrics takes a port from 1 to 65535 or otlp:http://host:port, got {target[:80]!r}"
        )
    return int(target)


def _receiver(target: str, environ: Mapping[str, str]) -> Receiver:
    url = otlp_endpoint(target.removeprefix(_OTLP), "--metrics", _OTLP_PATH)
    # Receivers written in Rust take metrics as JSON, and lose them: opentelemetry-rust 2487 and 3527.
    return Receiver(url, otel.otlp_rows(environ, "METRICS"), "--metrics", prefer_protobuf=True)
