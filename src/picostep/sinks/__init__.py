"""
Where records go: one small class each, one protocol.

A third party adds a sink by an entry point in the group `picostep.sinks`, named like the scheme of its spec:
`callable(rest, destination) -> Sink`, where `rest` is what follows the colon.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from math import inf
from typing import TYPE_CHECKING, Protocol

from picostep.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from picostep.record import Record
    from picostep.settings.destination import Destination

    Factory = Callable[[str, Destination], "Sink"]

__all__ = ["Refused", "Rejected", "RetryLater", "Sink", "Undelivered", "open_sink", "open_sinks"]

ENTRY_POINTS = "picostep.sinks"


class Undelivered(Exception):
    """
    Base of the two answers by which a sink says that it did not take all records.

    Args:
        reason: Short and free of content, keys and URLs ("http 503"): it is logged and shown in `stats()`.

        delivered: How many leading records of the batch are settled all the same; they are not offered again.

        unencodable: Those among the settled ones that could not be encoded or were `Refused`: index and why.
    """

    def __init__(
        self, reason: str, *, delivered: int = 0, unencodable: Mapping[int, str] | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delivered = delivered
        self.unencodable = unencodable or {}


class RetryLater(Undelivered):
    """
    Raised when the receiver does not take records now; the same records are offered again later.

    Args:
        after: Seconds that the receiver asked to wait, or None. At most 300 are honoured; what is negative
            or not finite counts as None.
    """

    LONGEST = 300.0

    def __init__(
        self,
        reason: str,
        after: float | None = None,
        *,
        delivered: int = 0,
        unencodable: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__(reason, delivered=delivered, unencodable=unencodable)
        self.after = min(after, self.LONGEST) if after is not None and 0 <= after < inf else None


class Rejected(Undelivered):
    """
    Raised when the receiver will never take these records as they are (too large, not valid).

    The exporter offers the rest in halves until it has found the record at fault, which it drops and counts.
    """


class Refused(str):
    """
    Why a record will never be taken, where the receiver has taken others of the same request.

    Among what `deliver()` returns, it is counted as `rejected`.

    Args:
        known: Whether it is this record; False: the receiver said how many, so as many are named.
    """

    __slots__ = ("known",)

    known: bool

    def __new__(cls, reason: str, *, known: bool) -> Refused:
        self = super().__new__(cls, reason)
        self.known = known
        return self


class Sink(Protocol):
    """What the exporter needs of a receiver. Used by one thread at a time."""

    def deliver(self, records: Sequence[Record]) -> Mapping[int, str]:
        """
        Return when every record is delivered or durably stored.

        The exporter may offer a record again that was taken already, after a crash for example: a sink should
        use the ids to replace it, where the receiver can.

        Args:
            records: One or more; to be iterated in order and not changed.

        Returns:
            Those that could not be encoded, or were `Refused`: index and why, without content. Normally
            empty.

        Raises:
            RetryLater: Not now. Any other exception counts as this; a record that alone makes the sink raise
                again and again is dropped and counted.

            Rejected: Never, as they are.
        """

    def close(self) -> None:
        """Release files and connections."""


def open_sinks(destination: Destination) -> list[Sink]:
    """Open all sinks of a destination, or none; raises ConfigError like `open_sink()`."""
    sinks: list[Sink] = []
    try:
        for spec in destination.to:
            sinks.append(open_sink(spec, destination))
    except ConfigError:
        for sink in sinks:
            sink.close()
        raise
    return sinks


def open_sink(spec: str, destination: Destination) -> Sink:
    """
    Open the sink that a spec names: `tcc`, `stdout`, `jsonl:PATH`, `store:PATH`, `otlp:URL`, or a third
    party's scheme.

    Raises:
        ConfigError: The scheme is unknown, or the sink cannot be opened with what the spec and the
            destination give.
    """
    scheme, _, rest = spec.partition(":")
    try:
        return _factory(scheme)(rest, destination)
    except ConfigError:
        raise
    except Exception as error:  # a third party's module may raise anything
        raise ConfigError(f"sink {scheme!r} cannot be opened: {type(error).__name__}") from error


# Imported when used: each sink needs libraries that the others do not.


def _tcc(rest: str, destination: Destination) -> Sink:
    from picostep.sinks.tcc import TccSink

    return TccSink(destination)


def _jsonl(path: str, destination: Destination) -> Sink:
    from picostep.sinks.jsonl import JsonlSink

    return JsonlSink(path)


def _stdout(rest: str, destination: Destination) -> Sink:
    from picostep.sinks.jsonl import StdoutSink

    return StdoutSink()


def _store(path: str, destination: Destination) -> Sink:
    from picostep.sinks.store import StoreSink

    return StoreSink(path)


def _otlp(url: str, destination: Destination) -> Sink:
    from picostep.sinks.otlp import OtlpSink

    return OtlpSink(url, destination)


_BUILT_IN: dict[str, Factory] = {
    "tcc": _tcc,
    "jsonl": _jsonl,
    "stdout": _stdout,
    "store": _store,
    "otlp": _otlp,
}


def _factory(scheme: str) -> Factory:
    if scheme in _BUILT_IN:
        return _BUILT_IN[scheme]
    found = entry_points(group=ENTRY_POINTS, name=scheme)
    if not found:
        raise ConfigError(
            f"unknown sink {scheme!r}: expected one of {', '.join(_BUILT_IN)}, or a scheme that an installed "
            f"package adds by an entry point in {ENTRY_POINTS!r}"
        )
    factory: Factory = next(iter(found)).load()
    return factory
