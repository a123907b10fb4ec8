"""
The JSON that commands print, but for what a store holds: the same keys always.

Money is text, in US dollars, with all its digits.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from picostep.amounts import usd
from picostep.cli.prices import Source, Tables, cost_parts
from picostep.cli.rings import Directory
from picostep.cli.spools import Waiting
from picostep.prices.overrides import Overrides
from picostep.settings.destination import Destination
from picostep.times import iso_ns

if TYPE_CHECKING:
    from picostep.cli.top import Load, Tally
    from picostep.metrics.histogram import Histogram

__all__ = ["document", "line", "price", "prices", "spool", "status", "top"]


def document(value: Any) -> str:
    """Return a JSON document; everything beyond ASCII is escaped, so a terminal is safe."""
    return json.dumps(value, indent=2)


def line(value: Any) -> str:
    """Return JSON on one line."""
    return json.dumps(value)


def status(base: str, target: Destination, directories: list[Directory]) -> dict[str, Any]:
    """Return what `status --json` prints."""
    return {
        "base": base,
        "settings": {"destination": target.fingerprint, "to": list(target.to)},
        "directories": [asdict(directory) for directory in directories],
    }


def top(base: str, load: Load) -> dict[str, Any]:
    """Return what `top --json` prints."""
    return {
        "base": base,
        "seconds": load.seconds,
        "exporters": load.exporters,
        "problems": load.problems,
        "hosts": load.hosts,
        "in_ring": load.in_ring,
        "fullest_ring": load.fullest,
        "in_spool": load.in_spool,
        "spool_bytes": load.spool_bytes,
        "dropped": load.dropped,
        "total": _tally(load.total()),
        "models": [{"model": model or None, **_tally(tally)} for model, tally in load.models.items()],
    }


def _tally(tally: Tally) -> dict[str, Any]:
    steps = tally.steps
    return {
        "steps": steps.count,
        "errors": tally.errors,
        "unpriced_steps": steps.unpriced,
        "total_cost": None if steps.unpriced == steps.count else usd(steps.cost_pico),
        "prompt_uncached_tokens": steps.prompt_uncached,
        "prompt_cached_tokens": steps.prompt_cached,
        "cache_write_tokens": steps.cache_write,
        "completion_tokens": steps.completion,
        "duration_ms": _percentiles(steps.duration),
        "first_token_ms": _percentiles(steps.first_token),
    }


def _percentiles(histogram: Histogram) -> dict[str, float | None]:
    found = {f"p{share}": histogram.quantile(share / 100) for share in (50, 99)}
    return {name: None if ns is None else ns / 1e6 for name, ns in found.items()}


def spool(base: str, names: dict[str, str], found: list[Waiting]) -> dict[str, Any]:
    """Return what `spool --json` prints."""
    return {
        "base": base,
        "spools": [
            {
                "sink": each.sink,
                "to": names.get(each.sink),
                "records": each.records,
                "bytes": each.bytes,
                "oldest_time": None if each.oldest_ns is None else iso_ns(each.oldest_ns),
                "exporters": each.exporters,
                "dead_letter_bytes": each.dead_letters,
                "damaged_files": each.damaged,
            }
            for each in found
        ],
    }


def price(found: dict[str, Any], table: Source) -> dict[str, Any]:
    """Return what `price --json` prints."""
    costs = {part.name: usd(part.pico) for part in cost_parts(found)} if found["counts"] else None
    shaped = {name: value for name, value in found.items() if name not in ("pico", "usd")}
    place = None if found["source"] == "override" else table.path
    return shaped | {"table_path": place, "costs": costs, "total_cost": found["usd"]}


def prices(known: Tables, own: Overrides | None) -> dict[str, Any]:
    """Return what `prices show --json` prints."""
    return {
        "in_force": _source(known.in_force),
        "built_in": _source(known.built_in),
        "overrides": None if own is None else {"id": own.id, "prices": len(own)},
    }


def _source(source: Source) -> dict[str, Any]:
    return {
        "table": source.table.id,
        "source": source.table.source,
        "compiled": source.compiled,
        "models": len(source.table),
        "path": source.path,
    }
