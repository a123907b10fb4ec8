"""How OTLP is sent: OpenTelemetry's variables, and the settings of sink `otlp` that win over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote

from picostep.errors import ConfigError
from picostep.settings.table import COMPRESSIONS, PROTOCOLS, Choice, numbered
from picostep.settings.urls import header_carries

TYPE_CHECKING = False  # what type checkers take for typing.TYPE_CHECKING; the host need not load typing
if TYPE_CHECKING:
    from typing import NoReturn

    from picostep.settings.table import Settings

__all__ = ["metric_interval", "otlp_rows", "own_headers", "rows_for", "rows_of"]

_LONGEST_TIMEOUT = 300  # seconds
_LONGEST_INTERVAL = 86_400_000  # milliseconds
_OURS = ("content-type", "content-encoding", "content-length", "transfer-encoding", "host")
_TOKEN = "!#$%&'*+-.^_`|~"  # what a header's name may hold besides letters and digits
_ONLY = "only"  # begins a row for one sink: its spec follows, then the row
_said: set[str] = set()  # what was logged

Row = tuple[str, ...]
Plain = tuple[Row, ...]


def otlp_rows(environ: Mapping[str, str], signal: str = "TRACES") -> Plain:
    """
    Read the variables that all users of OpenTelemetry in this process share.

    `OTEL_EXPORTER_OTLP_TRACES_…` wins over `OTEL_EXPORTER_OTLP_…`; an empty variable counts as not set. They
    may be meant for others: one that cannot be used here, or a part of one, is logged once and ignored.

    Args:
        environ: Where they are.

        signal: `TRACES` or `METRICS`.

    Returns:
        What is set, as rows of text: `("protocol", one of PROTOCOLS)`, `("compression", "gzip")`,
        `("timeout", seconds)`, `("certificate", absolute path)`, `("header", name, value)`,
        `("resource", key, value)`.
    """
    rows: list[Row] = []
    for kind, check in _CHECKS.items():
        for name in (f"OTEL_EXPORTER_OTLP_{signal}_{kind.upper()}", f"OTEL_EXPORTER_OTLP_{kind.upper()}"):
            text = environ.get(name, "").strip()
            try:
                value = check(text, name) if text else ""
            except ConfigError as error:
                _ignore(str(error))
                value = ""
            if value:
                rows += [(kind, value)] if value != "none" else []
                break
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"):
        headers = _headers(environ.get(name, ""), name, _ignore)
        if headers:
            rows += [("header", *header) for header in headers.items()]
            break
    rows += [("resource", *attribute) for attribute in _resource(environ).items()]
    return tuple(rows)


def rows_of(settings: Settings, environ: Mapping[str, str], specs: Iterable[str]) -> Plain:
    """
    Return the rows for the sinks `otlp` of a destination.

    Besides those of `otlp_rows()` there are `("content", "off")`, and rows for one sink: `("only", spec, …)`.
    A protocol that is only a shared one's is `("protocol", …, "shared")`: the sink may do without.

    Args:
        settings: Win over the variables of OpenTelemetry.

        environ: Has those, and the headers that `settings` leaves to it.

        specs: Of these sinks, in their order.

    Raises:
        ConfigError: A setting cannot be used, or is for a sink that there is not.
    """
    specs = list(specs)
    headers = settings.otlp_headers
    if not headers:
        headers = own_headers(environ.get("PICOSTEP_OTLP_HEADERS", ""), "PICOSTEP_OTLP_HEADERS")
    own: dict[int, list[Row]] = {}
    for kind in _CHECKS:
        for number, value in getattr(settings, f"otlp_{kind}"):
            own.setdefault(number, []).append((kind, str(value)))
    for number, *header in headers:
        own.setdefault(int(number), []).append(("header", *map(str, header)))
    if own and max(own) > len(specs):
        raise ConfigError(f"a setting for sink otlp number {max(own)}, but there are {len(specs)}")
    shared = [(*row, "shared") if row[0] == "protocol" else row for row in otlp_rows(environ)]
    rows = _replaced(shared, own.pop(0, []))
    if not settings.otlp_content:
        rows = (*rows, ("content", "off"))
    only = [(_ONLY, specs[number - 1], *row) for number in sorted(own) for row in own[number]]
    return (*rows, *only)


def rows_for(rows: Iterable[Row], spec: str) -> Plain:
    """Return the rows that hold for one sink, in the form of `otlp_rows()`."""
    rows = list(rows)
    return _replaced(
        [row for row in rows if row[0] != _ONLY], [row[2:] for row in rows if row[:2] == (_ONLY, spec)]
    )


def _replaced(rows: Iterable[Row], by: list[Row]) -> Plain:
    """Put rows in the place of all others of their kinds; "none" is the absence of a row."""
    kinds = {row[0] for row in by}
    return (*(row for row in rows if row[0] not in kinds), *(row for row in by if row[1:] != ("none",)))


def own_headers(text: str, name: str) -> tuple[tuple[int | str, ...], ...]:
    """
    Read headers for all sinks `otlp`, or for one by its number.

    Args:
        text: `name=value,2:name=value`, values percent-encoded; `none` or `2:none`: none at all.

        name: By which it was given, for messages.

    Returns:
        Number of the sink (0: all), name, value; number and `"none"`.

    Raises:
        ConfigError: It cannot be used. The message shows no header.
    """
    found: list[tuple[int | str, ...]] = []
    for item in text.split(","):
        number, rest = numbered(item)
        if rest == "none":
            found.append((number, "none"))
        else:
            found += [(number, *header) for header in _headers(rest, name, _refuse).items()]
    return tuple(found)


def metric_interval(environ: Mapping[str, str]) -> float:
    """Return the seconds between pushes of metrics; raises ConfigError for a variable that is none."""
    name = "OTEL_METRIC_EXPORT_INTERVAL"
    text = environ.get(name, "").strip()
    if not text:
        return 60.0
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= _LONGEST_INTERVAL):
        raise ConfigError(
            f"{name} must be a number of milliseconds from 1 to {_LONGEST_INTERVAL}, got {text[:80]!r}"
        )
    return int(text) / 1000


def _ignore(message: str) -> None:
    if message not in _said:
        import logging

        _said.add(message)
        logging.getLogger(__name__).warning("ignored: %s", message)


def _refuse(message: str) -> NoReturn:
    raise ConfigError(message)


def _timeout(text: str, name: str) -> str:
    """
    Return the seconds that a timeout means, as text.

    The specification has milliseconds, the SDK for Python seconds. What would be too short for any answer if
    it were milliseconds is seconds.
    """
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1000 * _LONGEST_TIMEOUT:  # nor is a NaN
        raise ConfigError(
            f"{name} must be a number of seconds below 1000, or of milliseconds up to "
            f"{1000 * _LONGEST_TIMEOUT}, got {text[:80]!r}"
        )
    return str(number / 1000 if number >= 1000 else min(number, float(_LONGEST_TIMEOUT)))


def _absolute(path: str) -> str:
    from os.path import abspath, expanduser

    return abspath(expanduser(path))


def _headers(text: str, name: str, refuse: Callable[[str], None]) -> dict[str, str]:
    headers = {}
    for key, value in _pairs(text, name, refuse):
        key = key.lower()
        if not (key.isascii() and key.translate(dict.fromkeys(map(ord, _TOKEN))).isalnum()):
            refuse(f"{name}: a header's name is letters, digits and {_TOKEN}")
        elif key in _OURS:
            refuse(f"{name}: header {key!r} is set by the sink itself")
        elif not all(map(header_carries, value)):
            refuse(f"{name}: the value of header {key!r} holds what no header can carry")
        else:
            headers[key] = value
    return headers


def _resource(environ: Mapping[str, str]) -> dict[str, str]:
    name = "OTEL_RESOURCE_ATTRIBUTES"
    attributes = dict(_pairs(environ.get(name, ""), name, _ignore))
    service = environ.get("OTEL_SERVICE_NAME", "").strip()
    return {**attributes, "service.name": service} if service else attributes


def _pairs(text: str, name: str, refuse: Callable[[str], None]) -> list[tuple[str, str]]:
    """Take `key=value,key=value` apart, values percent-encoded, as W3C Baggage has it."""
    pairs = []
    for number, item in enumerate(text.split(","), 1):
        key, equals, value = item.partition("=")
        if key.strip() and equals:
            pairs.append((unquote(key.strip()), unquote(value.strip())))
        elif item.strip():
            refuse(f"{name}: part {number} is not key=value (a comma in a value is %2C)")
    return pairs


_CHECKS: dict[str, Callable[[str, str], str]] = {
    "protocol": Choice(*PROTOCOLS),
    "compression": Choice(*COMPRESSIONS),
    "timeout": _timeout,
    "certificate": lambda text, name: _absolute(text),
}
