"""What the setting `prices` may be: checked here, in the host; used by `picostep.prices`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from picostep.amounts import in_pico
from picostep.errors import ArgumentError, ArgumentTypeError, ConfigError
from picostep.settings.files import read

__all__ = ["KEYS", "MILLION", "Plain", "prices_in", "prices_of"]

MILLION = 1_000_000
KEYS = ("input", "cached_input", "cache_write", "cache_write_1h", "output", "reasoning", "request")
_FALLBACK = {
    "cached_input": "input",
    "cache_write": "input",
    "cache_write_1h": "cache_write",
    "reasoning": "output",
}

Row = tuple[str | int, ...]
Plain = tuple[Row, ...]


def prices_of(prices: object) -> Plain:
    """
    Check prices that code gives.

    Args:
        prices: A mapping as `picostep.prices.Overrides` describes it.

    Returns:
        Rows of provider ("" for any), model, and pico-dollars a token in the order of `KEYS` (the last one:
        a request); names in lower case, in order, each model once.

    Raises:
        ConfigError: Something cannot be used; the message says what.
    """
    if not isinstance(prices, Mapping):
        raise ConfigError(f"prices must be a mapping or a file's name, not {type(prices).__name__}")
    rows = []
    for key, rates in prices.items():
        if isinstance(key, str):
            rows.append(_row("", key, rates))
        elif isinstance(key, tuple) and len(key) == 2 and all(isinstance(part, str) for part in key):
            rows.append(_row(key[0], key[1], rates))
        else:
            raise ConfigError(f"prices: a key must be a model or (provider, model), got {key!r}")
    return _in_order(rows)


def prices_in(path: str) -> Plain:
    """
    Check prices in a TOML or JSON file, as `picostep.prices.Overrides.from_file()` describes it.

    Returns:
        Rows as of `prices_of()`.

    Raises:
        ConfigError: The file cannot be read, or something in it cannot be used. It names the file.
    """
    content = read(path, "prices")
    rows = []
    try:
        for kind, entries in content.items():
            if kind not in ("model", "provider"):
                raise ConfigError(
                    f'prices: {kind!r} is not known: there are [model."NAME"] and [provider."P"."NAME"]'
                )
            for name, entry in _mapping(entries, kind).items():
                if kind == "model":
                    rows.append(_row("", name, entry))
                else:
                    rows += [_row(name, model, rates) for model, rates in _mapping(entry, name).items()]
        return _in_order(rows)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _in_order(rows: Iterable[Row]) -> Plain:
    """Put prices in order; refuse a second one of the same model: which of the two was meant?"""
    found: dict[Row, Row] = {}
    for row in sorted(rows, key=lambda row: row[:2]):
        if row[:2] in found:
            raise ConfigError(f"prices: {row[1]!r} is there twice")
        found[row[:2]] = row
    return tuple(found.values())


def _row(provider: str, model: str, rates: object) -> tuple[str | int, ...]:
    """Check one price; return provider, model and the seven rates."""
    name = f"{provider}/{model}" if provider else model
    if not model:
        raise ConfigError("prices: a model needs a name")
    given = _mapping(rates, name)
    for key in given:
        if key not in KEYS:
            raise ConfigError(f"prices[{name!r}]: {key!r} is not known; there are {', '.join(KEYS)}")
    for key in ("input", "output"):
        if key not in given:
            raise ConfigError(f"prices[{name!r}]: {key!r} is missing (0 if there is no charge)")
    found: dict[str, int] = {"request": 0}
    for key in KEYS:
        if key in given:
            try:
                found[key] = in_pico(
                    given[key], 1 if key == "request" else MILLION, f"prices[{name!r}][{key!r}]"
                )
            except (ArgumentError, ArgumentTypeError) as error:
                raise ConfigError(str(error)) from None
        elif key in _FALLBACK:
            found[key] = found[_FALLBACK[key]]
    return (provider.lower().strip(), model.lower(), *(found[key] for key in KEYS))


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"prices[{name!r}] must be a mapping, not {type(value).__name__}")
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"prices[{name!r}]: a key must be str, got {key!r}")
    return value
