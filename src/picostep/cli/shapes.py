"""
The JSON that commands print: the store's columns with readable times, and the same keys always.

Money is text, in US dollars, with all its digits.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picostep.amounts import usd
from picostep.cli.prices import Source, Tables, cost_parts
from picostep.cli.rings import Directory
from picostep.cli.spools import Waiting
from picostep.cli.text import iso, status_word
from picostep.prices.overrides import Overrides
from picostep.settings.destination import Destination
from picostep.store.read import CostLine, CostReport, GroupBy, Row, RunDetail, RunSummary

if TYPE_CHECKING:
    from picostep.cli.top import Load, Tally
    from picostep.metrics.histogram import Histogram

__all__ = ["costs", "detail", "document", "line", "price", "prices", "record", "runs", "status", "top"]

_FLAGS = ("shed", "shortened", "withheld", "conversational")


def document(value: Any) -> str:
    """Return a JSON document; everything beyond ASCII is escaped, so a terminal is safe."""
    return json.dumps(value, indent=2)


def line(value: Any) -> str:
    """Return JSON on one line."""
    return json.dumps(value)


def runs(store: Path, summaries: list[RunSummary]) -> dict[str, Any]:
    """Return what `runs --json` prints."""
    return {"store": str(store), "runs": [_summary(summary) for summary in summaries]}


def detail(store: Path, run: RunDetail) -> dict[str, Any]:
    """Return what `show --json` prints: `run` has the summary and, if the run has ended, its own columns."""
    return {
        "store": str(store),
        "run": _summary(run.summary) | (record(run.run) if run.run else {}),
        "steps": [record(row) for row in run.steps],
        "tool_calls": [record(row) for row in run.tool_calls],
        "feedback": [record(row) for row in run.feedback],
    }


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
        "total_cost": None if steps.unpriced == steps.count else _usd(steps.cost_pico),
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
                "oldest_time": None if each.oldest_ns is None else iso(each.oldest_ns),
                "exporters": each.exporters,
                "dead_letter_bytes": each.dead_letters,
                "damaged_files": each.damaged,
            }
            for each in found
        ],
    }


def record(row: Row) -> dict[str, Any]:
    """
    Return a row with ISO times instead of nanoseconds, `total_cost` instead of pico-dollars, JSON instead of
    JSON text, true instead of 1.
    """
    shaped: dict[str, Any] = {}
    for column, value in row.items():
        if column.endswith("_ns"):
            name = "time" if column == "time_ns" else column.removesuffix("_ns") + "_time"
            shaped[name] = None if value is None else iso(value)
        elif column == "metadata":
            shaped[column] = None if value is None else json.loads(value)
        elif column == "cost_pico":
            given = row.get(
                "real_total_cost"
            )  # kept apart from what was computed, and exact where a sum is not
            shaped["total_cost"] = _usd(value) if given is None else given
        elif column in _FLAGS:
            shaped[column] = None if value is None else bool(value)
        else:
            shaped[column] = value
    if "end_ns" in row:
        shaped["duration_ms"] = (row["end_ns"] - row["start_ns"]) / 1e6
    return shaped


def costs(
    store: Path, report: CostReport, by: GroupBy, since_ns: int | None, limit: int | None
) -> dict[str, Any]:
    """Return what `costs --json` prints."""
    return {
        "store": str(store),
        "by": by,
        "since": None if since_ns is None else iso(since_ns),
        "lines": [_cost_line(line, by) for line in report.lines[:limit]],
        "left_out": len(report.lines[limit:]) if limit is not None else 0,
        "total": _cost_line(report.total),
        "unpriced": {status or "not_priced": steps for status, steps in report.unpriced.items()},
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


def _cost_line(line: CostLine, by: GroupBy | None = None) -> dict[str, Any]:
    key: dict[str, Any] = {}
    if by is not None:
        key[_KEYS.get(by, by)] = line.key
    if by == "model":
        key["provider"] = line.provider
    return key | {
        "steps": line.steps,
        "unpriced_steps": line.unpriced_steps,
        "total_cost": _usd(line.cost_pico),
        "prompt_uncached_tokens": line.prompt_uncached_tokens,
        "prompt_cached_tokens": line.prompt_cached_tokens,
        "cache_write_tokens": line.cache_write_tokens,
        "completion_tokens": line.completion_tokens,
        "reasoning_tokens": line.reasoning_tokens,
    }


_KEYS: dict[GroupBy, str] = {"session": "session_id", "run": "run_id", "status": "cost_status"}


def _summary(summary: RunSummary) -> dict[str, Any]:
    return {**record(asdict(summary)), "status": status_word(summary.status_code)}


def _usd(pico: int | str | None) -> str | None:
    return None if pico is None else usd(int(pico))
