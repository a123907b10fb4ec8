"""
The JSON of what a store holds: its columns with readable times, and the same keys always.

Money is text, in US dollars, with all its digits.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from picostep.amounts import usd
from picostep.store.read import TOKENS, CostLine, CostReport, GroupBy, Row, RunDetail, RunSummary
from picostep.store.schema import COLUMNS
from picostep.times import iso_ns

__all__ = ["costs_object", "row_object", "run_object", "runs_object", "status_word"]

_FORMS = {column.name: column.field.form for columns in COLUMNS.values() for column in columns}
_STATUS_WORDS = {None: "open", 0: "ok", 2: "error"}
_KEYS: dict[GroupBy, str] = {"session": "session_id", "run": "run_id", "status": "cost_status"}


def runs_object(store: Path, summaries: list[RunSummary]) -> dict[str, Any]:
    """Return what `runs --json` prints."""
    return {"store": str(store), "runs": [_summary(summary) for summary in summaries]}


def run_object(store: Path, run: RunDetail) -> dict[str, Any]:
    """Return what `show --json` prints: `run` has the summary and, if the run has ended, its own columns."""
    return {
        "store": str(store),
        "run": _summary(run.summary) | (row_object(run.run) if run.run else {}),
        "steps": [row_object(row) for row in run.steps],
        "tool_calls": [row_object(row) for row in run.tool_calls],
        "feedback": [row_object(row) for row in run.feedback],
    }


def row_object(row: Row) -> dict[str, Any]:
    """
    Return a row with ISO times instead of nanoseconds, `total_cost` instead of pico-dollars, JSON instead of
    JSON text, true instead of 1.
    """
    shaped: dict[str, Any] = {}
    for column, value in row.items():
        form = _FORMS.get(column)
        if form == "time":
            name = "time" if column == "time_ns" else column.removesuffix("_ns") + "_time"
            shaped[name] = None if value is None else iso_ns(value)
        elif column == "metadata":
            shaped[column] = None if value is None else json.loads(value)
        elif column == "cost_pico":
            # What the program gave is kept apart from what was computed, and exact where a sum is not.
            given = row.get("real_total_cost")
            shaped["total_cost"] = _usd(value) if given is None else given
        elif form == "flag":
            shaped[column] = None if value is None else bool(value)
        else:
            shaped[column] = value
    if "end_ns" in row:
        shaped["duration_ms"] = (row["end_ns"] - row["start_ns"]) / 1e6
    return shaped


def costs_object(
    store: Path, report: CostReport, by: GroupBy, since_ns: int | None, limit: int | None
) -> dict[str, Any]:
    """Return what `costs --json` prints."""
    return {
        "store": str(store),
        "by": by,
        "since": None if since_ns is None else iso_ns(since_ns),
        "lines": [_cost_line(line, by) for line in report.lines[:limit]],
        "left_out": len(report.lines[limit:]) if limit is not None else 0,
        "total": _cost_line(report.total),
        "unpriced": {status or "not_priced": steps for status, steps in report.unpriced.items()},
    }


def status_word(code: int | None) -> str:
    """Return ok, error, or open for a run that has not ended."""
    return _STATUS_WORDS.get(code, f"code {code}")


def _cost_line(line: CostLine, by: GroupBy | None = None) -> dict[str, Any]:
    key: dict[str, Any] = {}
    if by is not None:
        key[_KEYS.get(by, by)] = line.key
    if by == "model":
        key["provider"] = line.provider
    counts = {"steps": line.steps, "unpriced_steps": line.unpriced_steps, "total_cost": _usd(line.cost_pico)}
    return key | counts | {name: getattr(line, name) for name in TOKENS}


def _summary(summary: RunSummary) -> dict[str, Any]:
    return {**row_object(asdict(summary)), "status": status_word(summary.status_code)}


def _usd(pico: int | str | None) -> str | None:
    return None if pico is None else usd(int(pico))
