"""What `picostep runs`, `show`, `tail` and `demo` print for people."""

from __future__ import annotations

import json
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

from picostep.cli.costs import cost_of, tokens_of
from picostep.cli.screen import HEADING, PREVIEW, cropped, grid, status_text, table
from picostep.cli.text import (
    clean,
    clock,
    cost,
    date_and_time,
    duration,
    gist,
    lines,
    metadata_line,
    of_step,
    one_line,
    short_id,
    tokens,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from rich.console import RenderableType

    from picostep.store.read import Row, RunDetail, RunSummary

__all__ = ["demo_view", "run_view", "runs_view", "tail_line"]

_SHORTEST_PROMPT = 12  # columns


# --- the list of runs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    header: str
    cell: Callable[[RunSummary], Text]
    right: bool = False


def runs_view(found: Sequence[RunSummary], width: int) -> Iterator[RenderableType]:
    """Lay out the list of runs; on a narrow terminal the columns that matter least give way to the prompt."""
    yield _runs_table(found, width)
    yield from _legend(found)


def _legend(sums: Sequence[RunSummary]) -> Iterator[Text]:
    """Say what the signs in a column of costs mean, those that are in it."""
    signs = []
    if any(entry.steps and entry.cost_pico is None for entry in sums):
        signs.append("? no cost is known")
    if any(entry.unpriced_steps and entry.cost_pico is not None for entry in sums):
        signs.append("≥ some steps have no known cost")
    if signs:
        yield cropped(f"{'   '.join(signs)}   (why: picostep costs --by status)", "dim")


def _runs_table(runs: Sequence[RunSummary], width: int) -> Table:
    columns = [_run_column(runs), *_COLUMNS]
    if any(_errors(run) for run in runs):
        columns.insert(-1, _ERRORS)
    for header in _EXPENDABLE:
        if _natural_width(columns[:-1], runs) + _SHORTEST_PROMPT <= width:
            break
        columns = [column for column in columns if column.header != header]
    made = table()
    for column in columns:
        made.add_column(
            column.header,
            justify="right" if column.right else "left",
            vertical="bottom",
            no_wrap=column is not columns[-1],  # only the prompt is cut
        )
    for run in runs:
        made.add_row(*(column.cell(run) for column in columns))
    return made


def _run_column(runs: Sequence[RunSummary]) -> _Column:
    """Show as much of the ids as tells them apart; `show` takes such a beginning."""
    ids = {run.run_id for run in runs}
    length = 8
    while len({run_id[:length] for run_id in ids}) < len(ids):
        length += 1
    return _Column("RUN", lambda run: Text(short_id(run.run_id, length), style="cyan"))


def _natural_width(columns: Sequence[_Column], runs: Sequence[RunSummary]) -> int:
    return sum(
        2 + max(*map(cell_len, column.header.split("\n")), *(column.cell(run).cell_len for run in runs), 0)
        for column in columns
    )


def _errors(run: RunSummary) -> int:
    return run.failed_steps + run.failed_tool_calls


def _error_cell(run: RunSummary) -> Text:
    return Text(str(_errors(run)), style="bold red" if _errors(run) else "dim")


def _prompt_cell(run: RunSummary) -> Text:
    return cropped(one_line(run.prompt or run.status_message or "", PREVIEW))


_ERRORS = _Column("ERR", _error_cell, right=True)
_COLUMNS = (
    _Column("STARTED", lambda run: Text(clock(run.start_ns))),
    _Column("STATUS", lambda run: status_text(run.status_code)),
    _Column("STEPS", lambda run: Text(str(run.steps)), right=True),
    _Column("TOOLS", lambda run: Text(str(run.tool_calls)), right=True),
    _Column("TOKENS\nin(cached)/out", lambda run: Text(tokens_of(run)), right=True),
    _Column("TIME", lambda run: Text(duration(run.end_ns - run.start_ns)), right=True),
    _Column("COST", lambda run: Text(cost_of(run)), right=True),
    _Column("PROMPT", _prompt_cell),
)
_EXPENDABLE = ("TOOLS", "TIME", "STEPS", "STARTED", "TOKENS\nin(cached)/out", "COST", "ERR")


# --- one run ----------------------------------------------------------------------------------------------


def run_view(detail: RunDetail, full: bool) -> Iterator[RenderableType]:
    """Lay out one run: what it was, its steps and tool calls in order of time, and its feedback."""
    yield Text.assemble(("Run ", HEADING), (clean(detail.summary.run_id), "bold cyan"))
    yield _facts(detail)
    yield from _texts(detail.run or {}, _RUN_TEXTS, full)
    entries = sorted([*detail.steps, *detail.tool_calls], key=itemgetter("start_ns"))
    if entries:
        yield Text("\nTimeline", style=HEADING)
        width = max(cell_len(_what(entry)) for entry in entries)
        for entry in entries:
            yield _headline(entry, detail.summary.start_ns, width)
            yield from _texts(entry, _ENTRY_TEXTS, full)
    if detail.feedback:
        yield Text("\nFeedback", style=HEADING)
        for row in detail.feedback:
            yield Text(f"  {_feedback(row, full)}")


# Column, label in full, mark of a preview (empty: only in full), style.
_Texts = tuple[tuple[str, str, str, str], ...]
_RUN_TEXTS: _Texts = (
    ("system_prompt", "system prompt", "", ""),
    ("user_prompt", "prompt", ">", ""),
    ("full_input", "full input", "", ""),
    ("response", "response", "<", ""),
    ("full_output", "full output", "", ""),
    ("status_message", "message", "!", "red"),
)
_ENTRY_TEXTS: _Texts = (
    ("tool_definitions", "tool definitions", "", ""),
    ("prompt", "prompt", ">", "dim"),
    ("args", "arguments", ">", "dim"),
    ("response", "response", "<", ""),
    ("result", "result", "<", ""),
    ("status_message", "message", "!", "red"),
)


def _facts(detail: RunDetail) -> RenderableType:
    summary, run = detail.summary, detail.run or {}
    took = duration(summary.end_ns - summary.start_ns)
    facts = {
        "status": status_text(summary.status_code),
        "started": Text(f"{date_and_time(summary.start_ns)}, took {took}"),
        "tokens": Text(f"{tokens_of(summary)}  in(cached)/out"),
    }
    if summary.status_code is None:
        facts["status"].append(" (its end was not recorded: it goes on, or its process died)", style="dim")
    if summary.steps:
        facts["cost"] = Text(_explained_cost(detail))
    if summary.session_id:
        facts["session"] = Text(clean(summary.session_id))
    if run.get("metadata"):
        facts["metadata"] = Text(clean(metadata_line(json.loads(run["metadata"]))))
    if run and (losses := _losses(run)):
        facts["note"] = Text(losses)
    return grid(facts)


def _explained_cost(detail: RunDetail) -> str:
    summary = detail.summary
    given = [step for step in detail.steps if step["cost_status"] == "user" and step["cost_pico"] is not None]
    shown = cost_of(summary)
    if summary.unpriced_steps:
        shown += f"  the cost of {summary.unpriced_steps} of {summary.steps} steps is not known"
    if given:
        sum_ = cost(sum(int(step["cost_pico"]) for step in given), len(given), 0)
        shown += f"  ({'' if len(given) == summary.steps else f'{sum_} of it '}set by the program)"
    return shown


def _texts(row: Row, columns: _Texts, full: bool) -> Iterator[Text]:
    for column, label, mark, style in columns:
        text = row.get(column)
        if not text:
            continue
        if full:
            yield Text(f"    {label}", style="dim")
            yield from (Text(f"      {line}", style=style, overflow="fold") for line in lines(text))
        elif mark:
            yield cropped(f"    {mark} {one_line(gist(text), PREVIEW)}", style)


def _headline(entry: Row, run_start_ns: int, width: int) -> Text:
    at = f"+{duration(entry['start_ns'] - run_start_ns)}"
    took = duration(entry["end_ns"] - entry["start_ns"])
    line = cropped(f"  {at:>10}  {took:>8}  {set_cell_size(_what(entry), width)}  ")
    line.append_text(status_text(entry["status_code"]))
    for fact in _entry_facts(entry):
        line.append(f"  {fact}")
    return line


def _what(entry: Row) -> str:
    if "tool_name" in entry:
        return f"tool {one_line(entry['tool_name'], 40)}"
    model = entry["model_used"] or entry["model_requested"] or "unknown model"
    return f"step {one_line(model, 40)}"


_COUNTS = ("prompt_uncached", "prompt_cached", "cache_write", "completion")


def _entry_facts(entry: Row) -> Iterator[str]:
    if "tool_name" not in entry:
        yield tokens(*(entry[f"{name}_tokens"] for name in _COUNTS))
        yield of_step(
            None if entry["cost_pico"] is None else int(entry["cost_pico"]),
            entry["cost_status"],
            entry["real_total_cost"],
        )
        if entry["first_token_ns"] is not None:
            yield f"first token {duration(entry['first_token_ns'] - entry['start_ns'])}"
        if entry["finish_reason"]:
            yield one_line(entry["finish_reason"], 20)
    if losses := _losses(entry):
        yield losses


def _losses(row: Row) -> str:
    notes = {
        "shed": "texts left out: the ring was full",
        "shortened": "a text was cut: too long for the ring",
        "withheld": "a text was withheld: it could not be redacted",
    }
    return ", ".join(note for flag, note in notes.items() if row[flag])


def _feedback(row: Row, full: bool) -> str:
    text = row["text"] or ""
    shown = clean(text) if full else one_line(text, PREVIEW)
    return "  ".join(filter(None, (clean(row["score"] or ""), shown)))


# --- demo -------------------------------------------------------------------------------------------------


def demo_view(details: Sequence[RunDetail], store: Path, option: str, width: int) -> Iterator[RenderableType]:
    """Lay out the demo's runs, the first of them in full, and what to try next with `option` appended."""
    summaries = [detail.summary for detail in details]
    yield Text(f"Recorded {len(details)} runs of a scripted agent; they are stored in {clean(str(store))}\n")
    yield from runs_view(summaries[::-1], width)
    yield Text()
    yield from run_view(details[0], full=False)
    yield Text("\nNext", style=HEADING)
    failed = next((run for run in summaries if run.status_code == 2), summaries[-1])
    made = Table.grid(padding=(0, 2))
    made.add_column(no_wrap=True)  # to be copied
    made.add_column()
    for command, purpose in (
        (f"picostep show {short_id(failed.run_id)}{option}", "why that run failed"),
        (f"picostep show {short_id(summaries[0].run_id)} --full{option}", "the run above with whole texts"),
        (f"picostep runs{option}", "all runs in this store"),
        (f"picostep costs{option}", "what its steps cost, by model"),
        ("picostep price gpt-4.1 --tokens 184,1024,23", "how the first step's cost comes about"),
        ("picostep tail -f", "what your own program records, as it comes"),
        ("picostep status", "rings, exporters, counters"),
    ):
        made.add_row(Text(f"  {clean(command)}", style="bold"), Text(purpose, style="dim"))
    yield made


# --- tail -------------------------------------------------------------------------------------------------


def tail_line(row: Row) -> Text:
    """Lay out one record on one line."""
    kind = row["type"]
    line = cropped(f"{clock(row['time_ns'] if kind == 'feedback' else row['end_ns'])}  ")
    line.append(f"{kind:<9}  ", style="bold")
    line.append(f"{short_id(row['run_id'])}  ", style="cyan")
    if kind == "feedback":
        return line.append(_feedback(row, full=False))
    line.append_text(status_text(row["status_code"]))
    line.append(f"  {duration(row['end_ns'] - row['start_ns'])}")
    for fact in _tail_facts(row):
        line.append(f"  {fact}")
    return line


_TAIL_TEXTS = {"run": "user_prompt", "step": "response", "tool_call": "result"}


def _tail_facts(row: Row) -> Iterator[str]:
    kind = row["type"]
    if kind != "run":
        yield _what(row).partition(" ")[2]
        yield from _entry_facts(row)
    text = row["status_message"] or row[_TAIL_TEXTS[kind]]
    if text:
        yield one_line(gist(text), PREVIEW)
