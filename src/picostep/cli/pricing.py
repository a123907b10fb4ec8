"""The price table in force, for `picostep price` and `picostep prices`, and how a price comes about."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import picostep.prices
from picostep.amounts import in_pico
from picostep.cli.failures import NOT_FOUND, USAGE, Failure
from picostep.cli.text import exact
from picostep.errors import ArgumentError
from picostep.prices import PriceTable, PriceTableError, builtin, load
from picostep.prices.explanation import explain
from picostep.prices.overrides import Overrides
from picostep.ringdir import make_directories
from picostep.settings.prices import KEYS, MILLION
from picostep.settings.table import Settings
from picostep.settings.urls import refreshed_prices

__all__ = ["Part", "Source", "Tables", "explained", "overrides", "parts", "rate_text", "refresh", "tables"]

_BUCKETS = (
    "prompt_uncached",
    "prompt_cached",
    "cache_write",
    "cache_write_1h",
    "completion",
    "reasoning",
)


@dataclass(frozen=True)
class Source:
    """
    A price table and where it is from.

    Attributes:
        path: Its file; None for the built-in one.

        compiled: The day (UTC) on which it was made, as `2026-11-23`.
    """

    table: PriceTable
    path: str | None
    compiled: str


@dataclass(frozen=True)
class Tables:
    """
    The built-in price table, and the refreshed one if there is one.

    Attributes:
        problem: Why the refreshed table's file cannot be used.
    """

    built_in: Source
    refreshed: Source | None
    problem: str | None

    @property
    def in_force(self) -> Source:
        return self.refreshed or self.built_in


@dataclass(frozen=True)
class Part:
    """A part of a cost: so many tokens (or requests) at a rate, both in pico-dollars."""

    name: str
    rate: int
    count: int
    pico: int


def tables() -> Tables:
    """Read both price tables, as programs that record find them."""
    manifest = json.loads(Path(picostep.prices.__file__).with_name("manifest.json").read_bytes())
    built_in = Source(builtin(), None, manifest["compiled"])
    path = refreshed_prices()
    try:
        return Tables(built_in, Source(load(path), path, _day(os.stat(path).st_mtime)), None)
    except FileNotFoundError:
        return Tables(built_in, None, None)
    except (PriceTableError, OSError) as error:
        text = str(error) if isinstance(error, PriceTableError) else f"{path}: {error.strerror}"
        return Tables(built_in, None, text)


def refresh() -> Source:
    """
    Compile the installed genai-prices into the file of the refreshed table.

    Raises:
        Failure: genai-prices is missing or not usable.

        OSError: The file cannot be written.
    """
    if sys.version_info < (3, 11):
        version = ".".join(map(str, sys.version_info[:2]))
        raise Failure(f"compiling a price table needs Python 3.11 or later, this is {version}", USAGE)
    if find_spec("genai_prices") is None:
        raise Failure(
            "compiling a price table needs genai-prices, which is not installed here",
            USAGE,
            "pip install --upgrade 'picostep[prices]'",
        )
    from picostep.prices.compile import refresh as compile_into

    path = refreshed_prices()
    make_directories(os.path.dirname(path))
    return Source(compile_into(path), path, _day(os.stat(path).st_mtime))


def overrides() -> Overrides | None:
    """Return the prices that PICOSTEP_PRICES names; raises ConfigError if they cannot be used."""
    own = Settings.resolve().prices
    return Overrides.from_plain(own) if own else None


def explained(
    known: Tables, model: str, provider: str | None, tier: str | None, start_ns: int, counts: dict[str, int]
) -> dict[str, Any]:
    """
    Tell how the price of a model comes about.

    Args:
        counts: Counts of tokens by the names that `picostep.prices.price()` has for them; {} for none.

    Returns:
        What `picostep.prices.explain()` returns, and `counts`: those given, and 0 for the others. If none is
        given, `counts`, `pico` and `usd` are None.

    Raises:
        Failure: There is no price, or the counts contradict each other.
    """
    try:
        found = explain(
            model,
            start_ns=start_ns,
            provider=provider,
            service_tier=tier,
            overrides=overrides(),
            table=known.in_force.table,
            **counts,
        )
    except ArgumentError as error:
        raise Failure(str(error), USAGE) from error
    if found["status"] == "invalid_usage":
        raise Failure("reasoning is more than completion, or writes for an hour more than all writes", USAGE)
    if found["pico"] is None:
        of = f" of {provider!r}" if provider is not None else ""
        why = "".join(f"{note}\n" for note in found["notes"])
        raise Failure(
            f"no price for model {model!r}{of} ({found['status']})",
            NOT_FOUND,
            f"{why}Prices of your own: PICOSTEP_PRICES=FILE",
        )
    if known.problem:
        found["notes"].append(f"the refreshed price table is not used: {known.problem}")
    if not counts:
        found |= {"pico": None, "usd": None}
    return found | {"counts": {name: counts.get(name, 0) for name in _BUCKETS} if counts else None}


def parts(found: dict[str, Any]) -> list[Part]:
    """Take the cost that `explained()` found apart; counts are 0 if it was given none."""
    counts = found["counts"] or dict.fromkeys(_BUCKETS, 0)
    units = {
        "input": counts["prompt_uncached"],
        "cached_input": counts["prompt_cached"],
        "cache_write": counts["cache_write"] - counts["cache_write_1h"],
        "cache_write_1h": counts["cache_write_1h"],
        "output": counts["completion"] - counts["reasoning"],
        "reasoning": counts["reasoning"],
        "request": 1 if found["counts"] else 0,
    }
    made = []
    for name in KEYS:
        rate = in_pico(found["rates"][name], 1 if name == "request" else MILLION, name)
        made.append(Part(name, rate, units[name], units[name] * rate))
    return made


def rate_text(part: Part) -> str:
    """Return a rate in US dollars, for a million tokens or one request."""
    return exact(part.rate * (1 if part.name == "request" else MILLION))


def _day(timestamp: float) -> str:
    return f"{datetime.fromtimestamp(timestamp, timezone.utc):%Y-%m-%d}"
