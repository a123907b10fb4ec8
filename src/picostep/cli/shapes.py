"""The JSON that commands print: the store's columns with readable times, and the same keys always."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from picostep.cli.rings import Directory
from picostep.cli.text import iso, status_word
from picostep.config import Destination
from picostep.sinks.store_reader import Row, RunDetail, RunSummary

__all__ = ["detail", "document", "line", "record", "runs", "status"]

_FLAGS = ("shed", "shortened", "conversational")


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


def record(row: Row) -> dict[str, Any]:
    """Return a row with ISO times instead of nanoseconds, JSON instead of JSON text, true instead of 1."""
    shaped: dict[str, Any] = {}
    for column, value in row.items():
        if column.endswith("_ns"):
            name = "time" if column == "time_ns" else column.removesuffix("_ns") + "_time"
            shaped[name] = None if value is None else iso(value)
        elif column == "metadata":
            shaped[column] = None if value is None else json.loads(value)
        elif column in _FLAGS:
            shaped[column] = None if value is None else bool(value)
        else:
            shaped[column] = value
    if "end_ns" in row:
        shaped["duration_ms"] = (row["end_ns"] - row["start_ns"]) / 1e6
    return shaped


def _summary(summary: RunSummary) -> dict[str, Any]:
    cost = summary.real_total_cost
    return {
        **record(asdict(summary)),
        "status": status_word(summary.status_code),
        "real_total_cost": None if cost is None else str(cost),
    }
