"""The standard variables of OpenTelemetry: read where settings are, used by sink `otlp` and for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

from picostep.errors import ConfigError
from picostep.settings.table import Choice
from picostep.settings.urls import header_carries

__all__ = ["PROTOCOLS", "metric_interval", "otlp_rows"]

PROTOCOLS = ("http/json", "http/protobuf")
_PROTOCOL = Choice(*PROTOCOLS)
_COMPRESSION = Choice("none", "gzip")
_LONGEST_TIMEOUT = 300_000  # milliseconds
_LONGEST_INTERVAL = 86_400_000
_OURS = ("content-type", "content-encoding", "content-length", "transfer-encoding", "host")
_TOKEN = "!#$%&'*+-.^_`|~"  # what a header's name may hold besides letters and digits

Plain = tuple[tuple[str, ...], ...]


def otlp_rows(environ: Mapping[str, str], signal: str = "TRACES") -> Plain:
    """
    Check the variables.

    `OTEL_EXPORTER_OTLP_TRACES_…` wins over `OTEL_EXPORTER_OTLP_…`; an empty variable counts as not set.

    Args:
        environ: Where they are.

        signal: `TRACES` or `METRICS`.

    Returns:
        What is set, as rows of text: `("protocol", one of PROTOCOLS)`, `("compression", "gzip")`,
        `("timeout", seconds)`, `("certificate", absolute path)`, `("header", name, value)`,
        `("resource", key, value)`.

    Raises:
        ConfigError: A variable cannot be used. The message names it, and shows no header.
    """
    rows: list[tuple[str, ...]] = []
    protocol, name = _given(environ, signal, "PROTOCOL")
    if protocol:
        rows.append(("protocol", _PROTOCOL(protocol, name)))
    compression, name = _given(environ, signal, "COMPRESSION")
    if compression and _COMPRESSION(compression, name) != "none":
        rows.append(("compression", compression))
    timeout, name = _given(environ, signal, "TIMEOUT")
    if timeout:
        rows.append(("timeout", _seconds(timeout, name, _LONGEST_TIMEOUT)))
    certificate, name = _given(environ, signal, "CERTIFICATE")
    if certificate:
        rows.append(("certificate", _absolute(certificate)))
    headers, name = _given(environ, signal, "HEADERS")
    rows += [("header", *header) for header in _headers(headers, name).items()]
    rows += [("resource", *attribute) for attribute in _resource(environ).items()]
    return tuple(rows)


def metric_interval(environ: Mapping[str, str]) -> float:
    """Return the seconds between pushes of metrics; raises ConfigError for a variable that is none."""
    name = "OTEL_METRIC_EXPORT_INTERVAL"
    given = environ.get(name, "").strip()
    return float(_seconds(given, name, _LONGEST_INTERVAL)) if given else 60.0


def _given(environ: Mapping[str, str], signal: str, name: str) -> tuple[str, str]:
    """Return the value of a variable, or "", and its whole name."""
    for whole in (f"OTEL_EXPORTER_OTLP_{signal}_{name}", f"OTEL_EXPORTER_OTLP_{name}"):
        value = environ.get(whole, "").strip()
        if value:
            return value, whole
    return "", whole


def _seconds(text: str, name: str, longest: int) -> str:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= longest):
        raise ConfigError(f"{name} must be a number of milliseconds from 1 to {longest}, got {text[:80]!r}")
    return str(int(text) / 1000)


def _absolute(path: str) -> str:
    from os.path import abspath, expanduser

    return abspath(expanduser(path))


def _headers(text: str, name: str) -> dict[str, str]:
    headers = {}
    for key, value in _pairs(text, name):
        key = key.lower()
        if not (key.isascii() and key.translate(dict.fromkeys(map(ord, _TOKEN))).isalnum()):
            raise ConfigError(f"{name}: a header's name is letters, digits and {_TOKEN}")
        if key in _OURS:
            raise ConfigError(f"{name}: header {key!r} is set by the sink itself")
        if not all(map(header_carries, value)):
            raise ConfigError(f"{name}: the value of header {key!r} holds what no header can carry")
        headers[key] = value
    return headers


def _resource(environ: Mapping[str, str]) -> dict[str, str]:
    name = "OTEL_RESOURCE_ATTRIBUTES"
    attributes = dict(_pairs(environ.get(name, ""), name))
    service = environ.get("OTEL_SERVICE_NAME", "").strip()
    return {**attributes, "service.name": service} if service else attributes


def _pairs(text: str, name: str) -> list[tuple[str, str]]:
    """Take `key=value,key=value` apart, values percent-encoded, as W3C Baggage has it."""
    pairs = []
    for number, item in enumerate(text.split(","), 1):
        key, equals, value = item.partition("=")
        if key.strip() and equals:
            pairs.append((unquote(key.strip()), unquote(value.strip())))
        elif item.strip():
            raise ConfigError(f"{name}: part {number} is not key=value (a comma in a value is %2C)")
    return pairs
