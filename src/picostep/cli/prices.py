"""The price table in force, how a price comes about, and what `picostep price` and `prices` print of both."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

import picostep.prices
from picostep.amounts import in_pico
from picostep.cli.failures import NOT_FOUND, USAGE, Failure
from picostep.cli.screen import HEADING, grid, table
from picostep.cli.text import clean, count, exact
from picostep.errors import ArgumentError
from picostep.prices import PriceTable, PriceTableError, builtin, load
from picostep.prices.explanation import explain
from picostep.prices.overrides import Overrides
from picostep.ringdir import make_directories
from picostep.settings.prices import KEYS, MILLION
from picostep.settings.table import Settings
from picostep.settings.urls import refreshed_prices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from rich.table import Table

__all__ = [
    "CostPart",
    "Source",
    "Tables",
    "cost_parts",
    "explained",
    "overrides",
    "price_view",
    "prices_view",
    "refresh",
    "tables",
]

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
class CostPart:
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


def cost_parts(found: dict[str, Any]) -> list[CostPart]:
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
        made.append(CostPart(name, rate, units[name], units[name] * rate))
    return made


def _rate_text(part: CostPart) -> str:
    """Return a rate in US dollars, for a million tokens or one request."""
    return exact(part.rate * (1 if part.name == "request" else MILLION))


def _day(timestamp: float) -> str:
    return f"{datetime.fromtimestamp(timestamp, timezone.utc):%Y-%m-%d}"


# --- for people --------------------------------------------------------------------------------------------


def price_view(found: dict[str, Any], source: Source) -> Iterator[RenderableType]:
    """Lay out what `explained()` found."""
    yield Text(clean(found["row"]), style="bold cyan")
    facts = {"asked": _asked(found)}
    if found["source"] == "override":
        facts["source"] = (
            f"your own prices (overrides {found['table']}), whatever the tier, the time and the length"
        )
    else:
        facts["variant"] = found["variant"]
        facts["valid"] = _validity(found)
        facts["length"] = _length(found["tier"], found["tiers"])
        facts["source"] = f"{found['source']}, table {found['table']}, {_place(source)}"
    yield grid({name: Text(clean(fact)) for name, fact in facts.items()})
    yield _rates(found)
    yield from (Text(f"  {clean(note)}", style="dim") for note in found["notes"])


def prices_view(known: Tables, own: Overrides | None) -> Iterator[RenderableType]:
    """Lay out which price table is in force."""
    yield Text.assemble(("Price table ", HEADING), (known.in_force.table.id, "bold cyan"))
    facts = _table_facts(known.in_force) | {"from": _place(known.in_force)}
    if known.refreshed:
        built_in = known.built_in
        facts["instead of"] = (
            f"the built-in one, {built_in.table.id}: {built_in.table.source}, {built_in.compiled}"
        )
    if own is not None:
        facts["overrides"] = f"{count(len(own))} prices of your own come first (PICOSTEP_PRICES, {own.id})"
    yield grid({name: Text(clean(fact)) for name, fact in facts.items()})


def _table_facts(source: Source) -> dict[str, str]:
    return {"source": source.table.source, "compiled": source.compiled, "models": str(len(source.table))}


def _place(source: Source) -> str:
    return "built in" if source.path is None else source.path


def _asked(found: dict[str, Any]) -> str:
    named = (("provider", found["provider"]), ("tier", found["service_tier"]))
    return ", ".join(
        [
            found["model"],
            *(f"{name} {value}" for name, value in named if value is not None),
            f"at {found['at']}",
        ]
    )


def _validity(found: dict[str, Any]) -> str:
    begin, end = found["from"], found["until"]
    spans = [f"from {begin}" if begin else "", f"until {end}" if end else "", found["daily"] or ""]
    return ", ".join(filter(None, spans)) or "at any time"


def _length(tier: dict[str, int | None], tiers: list[int]) -> str:
    if not tiers:
        return "prompts of any length"
    above = "" if tier["above"] is None else f"more than {tier['above']}"
    up_to = "" if tier["next"] is None else f"up to {tier['next']}"
    return f"prompts of {' and '.join(filter(None, (above, up_to)))} tokens"


def _rates(found: dict[str, Any]) -> Table:
    made = table()
    made.add_column("  RATE")
    made.add_column("USD / 1M TOKENS", justify="right")
    if found["counts"]:
        made.add_column("TOKENS", justify="right")
        made.add_column("COST", justify="right")
    for part in cost_parts(found):
        name = f"  {part.name.replace('_', ' ')}"
        if part.name == "request":
            if not part.rate:
                continue
            name += " (each)"
        cells = [str(part.count), exact(part.pico) if part.count else ""] if found["counts"] else []
        made.add_row(name, _rate_text(part), *cells)
    if found["counts"]:
        made.add_row("  total", "", "", exact(found["pico"]), style="bold")
    return made
