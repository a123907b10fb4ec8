"""Tables and texts for people."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from picostep.cli.pricing import Source, Tables, parts, rate_text
from picostep.cli.rings import Directory, Ring
from picostep.cli.spools import Waiting
from picostep.cli.text import (
    UNKNOWN,
    clean,
    clock,
    cost,
    count,
    date_and_time,
    duration,
    exact,
    gist,
    lines,
    metadata_line,
    of_step,
    one_line,
    rate,
    short_id,
    size,
    tokens,
)
from picostep.prices.overrides import Overrides
from picostep.store.read import CostLine, CostReport, GroupBy, Row, RunDetail, RunSummary
from picostep.store.shapes import status_word

if TYPE_CHECKING:
    from picostep.cli.top import Load, Tally
    from picostep.metrics.histogram import Histogram

__all__ = ["Screen", "costs", "demo", "price", "prices", "run_detail", "runs", "status", "tail_line", "top"]

_PIPE_WIDTH = 200  # columns where no terminal sets a limit
_PREVIEW = 300  # characters of a text that is shown in part
_SHORTEST_PROMPT = 12  # columns
_STATUS_STYLES = {None: "yellow", 0: "green", 2: "bold red"}
_RULE = "bold"
_PADDING = re.compile(r" +$", re.MULTILINE)


class Screen:
    """Standard output as rich sees it: colours on a terminal only, and never more than its width."""

    def __init__(self) -> None:
        self._console = Console(markup=False, highlight=False, emoji=False)
        if not self._console.is_terminal and "COLUMNS" not in os.environ:
            self._console.width = _PIPE_WIDTH

    @property
    def width(self) -> int:
        """Columns."""
        return self._console.width

    @property
    def takes_pages(self) -> bool:
        """Whether it is a terminal that can show one page in the place of another."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    @contextmanager
    def pages(self) -> Iterator[Callable[[Callable[[int, int], Iterator[RenderableType]]], None]]:
        """
        Take the whole terminal, and give it back as it was.

        Yields:
            What shows a page: a function that lays it out for as many columns and lines as there are then.
        """
        with Live(console=self._console, screen=True, auto_refresh=False) as live:

            def show(page: Callable[[int, int], Iterator[RenderableType]]) -> None:
                width, height = self._console.size
                live.update(Group(*page(width, height)), refresh=True)

            yield show

    def print(self, *parts: RenderableType) -> None:
        """Write each part on lines of its own."""
        with self._console.capture() as capture:
            for part in parts:
                self._print(part)
        # Rich has decided about colours by now; click writes, so that a closed pipe is a plain exception.
        click.echo(_PADDING.sub("", capture.get()), nl=False, color=True)

    def _print(self, part: RenderableType) -> None:
        if isinstance(part, Text):  # print() joins texts to new ones, without their layout
            self._console.print(part, no_wrap=part.no_wrap, overflow=part.overflow)
        else:
            self._console.print(part)


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


# --- runs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    header: str
    cell: Callable[[RunSummary], Text]
    right: bool = False


def runs(found: Sequence[RunSummary], width: int) -> Iterator[RenderableType]:
    """Lay out the list of runs; on a narrow terminal the columns that matter least give way to the prompt."""
    yield _runs_table(found, width)
    yield from _legend(found)


def _legend(sums: Sequence[RunSummary | CostLine]) -> Iterator[Text]:
    """Say what the signs in a column of costs mean, those that are in it."""
    signs = []
    if any(entry.steps and entry.cost_pico is None for entry in sums):
        signs.append("? no cost is known")
    if any(entry.unpriced_steps and entry.cost_pico is not None for entry in sums):
        signs.append("≥ some steps have no known cost")
    if signs:
        yield _cropped(f"{'   '.join(signs)}   (why: picostep costs --by status)", "dim")


def _runs_table(runs: Sequence[RunSummary], width: int) -> Table:
    columns = [_run_column(runs), *_COLUMNS]
    if any(_errors(run) for run in runs):
        columns.insert(-1, _ERRORS)
    for header in _EXPENDABLE:
        if _natural_width(columns[:-1], runs) + _SHORTEST_PROMPT <= width:
            break
        columns = [column for column in columns if column.header != header]
    made = _table()
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


def _tokens_of(run: RunSummary | CostLine) -> str:
    return tokens(
        run.prompt_uncached_tokens, run.prompt_cached_tokens, run.cache_write_tokens, run.completion_tokens
    )


def _cost_of(sum_: RunSummary | CostLine) -> str:
    return cost(sum_.cost_pico, sum_.steps, sum_.unpriced_steps)


def _prompt_cell(run: RunSummary) -> Text:
    return _cropped(one_line(run.prompt or run.status_message or "", _PREVIEW))


def _cropped(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _status(code: int | None) -> Text:
    return Text(status_word(code), style=_STATUS_STYLES.get(code, "yellow"))


_ERRORS = _Column("ERR", _error_cell, right=True)
_COLUMNS = (
    _Column("STARTED", lambda run: Text(clock(run.start_ns))),
    _Column("STATUS", lambda run: _status(run.status_code)),
    _Column("STEPS", lambda run: Text(str(run.steps)), right=True),
    _Column("TOOLS", lambda run: Text(str(run.tool_calls)), right=True),
    _Column("TOKENS\nin(cached)/out", lambda run: Text(_tokens_of(run)), right=True),
    _Column("TIME", lambda run: Text(duration(run.end_ns - run.start_ns)), right=True),
    _Column("COST", lambda run: Text(_cost_of(run)), right=True),
    _Column("PROMPT", _prompt_cell),
)
_EXPENDABLE = ("TOOLS", "TIME", "STEPS", "STARTED", "TOKENS\nin(cached)/out", "COST", "ERR")


# --- one run ----------------------------------------------------------------------------------------------


def run_detail(detail: RunDetail, full: bool) -> Iterator[RenderableType]:
    """Lay out one run: what it was, its steps and tool calls in order of time, and its feedback."""
    yield Text.assemble(("Run ", _RULE), (clean(detail.summary.run_id), "bold cyan"))
    yield _facts(detail)
    yield from _texts(detail.run or {}, _RUN_TEXTS, full)
    entries = sorted([*detail.steps, *detail.tool_calls], key=itemgetter("start_ns"))
    if entries:
        yield Text("\nTimeline", style=_RULE)
        width = max(cell_len(_what(entry)) for entry in entries)
        for entry in entries:
            yield _headline(entry, detail.summary.start_ns, width)
            yield from _texts(entry, _ENTRY_TEXTS, full)
    if detail.feedback:
        yield Text("\nFeedback", style=_RULE)
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
        "status": _status(summary.status_code),
        "started": Text(f"{date_and_time(summary.start_ns)}, took {took}"),
        "tokens": Text(f"{_tokens_of(summary)}  in(cached)/out"),
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
    return _grid(facts)


def _grid(facts: dict[str, Text]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        grid.add_row(Text(f"  {name}", style="dim"), value)
    return grid


def _explained_cost(detail: RunDetail) -> str:
    summary = detail.summary
    given = [step for step in detail.steps if step["cost_status"] == "user" and step["cost_pico"] is not None]
    shown = _cost_of(summary)
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
            yield _cropped(f"    {mark} {one_line(gist(text), _PREVIEW)}", style)


def _headline(entry: Row, run_start_ns: int, width: int) -> Text:
    at = f"+{duration(entry['start_ns'] - run_start_ns)}"
    took = duration(entry["end_ns"] - entry["start_ns"])
    line = _cropped(f"  {at:>10}  {took:>8}  {set_cell_size(_what(entry), width)}  ")
    line.append_text(_status(entry["status_code"]))
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
    shown = clean(text) if full else one_line(text, _PREVIEW)
    return "  ".join(filter(None, (clean(row["score"] or ""), shown)))


# --- costs ------------------------------------------------------------------------------------------------

_NO_KEY = {"model": "(no model)", "session": "(no session)", "status": "(never priced)"}


def costs(report: CostReport, by: GroupBy, limit: int) -> Iterator[RenderableType]:
    """Lay out a cost report: its first lines, the total, and why steps have no cost."""
    made = _table()
    made.add_column(by.upper(), overflow="fold", vertical="bottom")
    for header in ("STEPS", "NO COST", "TOKENS\nin(cached)/out", "COST"):
        made.add_column(header, justify="right", vertical="bottom", no_wrap=True)
    for line in report.lines[:limit]:
        made.add_row(_cost_key(line, by), *_cost_cells(line))
    made.add_row("total", *_cost_cells(report.total), style="bold")
    yield made
    if report.lines[limit:]:
        yield _cropped(f"{len(report.lines[limit:])} more lines are in the total (show them: -n)", "dim")
    if report.unpriced:
        reasons = ", ".join(
            f"{count(steps)} {one_line(status, 20) or 'never priced'}"
            for status, steps in report.unpriced.items()
        )
        yield _cropped(f"? no cost is known   ≥ some steps have no known cost: {reasons}", "dim")


def _cost_key(line: CostLine, by: GroupBy) -> Text:
    if line.key is None:
        return Text(_NO_KEY.get(by, "-"), style="dim")
    name = f"{line.provider}/{line.key}" if line.provider else line.key
    return Text(one_line(name, 60) if by in ("model", "session") else clean(name))


def _cost_cells(line: CostLine) -> Iterator[Text]:
    yield Text(count(line.steps))
    yield Text(count(line.unpriced_steps), style="yellow" if line.unpriced_steps else "dim")
    yield Text(_tokens_of(line))
    yield Text(_cost_of(line))


# --- prices -----------------------------------------------------------------------------------------------


def price(found: dict[str, Any], table: Source) -> Iterator[RenderableType]:
    """Lay out what `pricing.explained()` found."""
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
        facts["source"] = f"{found['source']}, table {found['table']}, {_place(table)}"
    yield _grid({name: Text(clean(fact)) for name, fact in facts.items()})
    yield _rates(found)
    yield from (Text(f"  {clean(note)}", style="dim") for note in found["notes"])


def prices(known: Tables, own: Overrides | None) -> Iterator[RenderableType]:
    """Lay out which price table is in force."""
    yield Text.assemble(("Price table ", _RULE), (known.in_force.table.id, "bold cyan"))
    facts = _table_facts(known.in_force) | {"from": _place(known.in_force)}
    if known.refreshed:
        built_in = known.built_in
        facts["instead of"] = (
            f"the built-in one, {built_in.table.id}: {built_in.table.source}, {built_in.compiled}"
        )
    if own is not None:
        facts["overrides"] = f"{count(len(own))} prices of your own come first (PICOSTEP_PRICES, {own.id})"
    yield _grid({name: Text(clean(fact)) for name, fact in facts.items()})


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
    made = _table()
    made.add_column("  RATE")
    made.add_column("USD / 1M TOKENS", justify="right")
    if found["counts"]:
        made.add_column("TOKENS", justify="right")
        made.add_column("COST", justify="right")
    for part in parts(found):
        name = f"  {part.name.replace('_', ' ')}"
        if part.name == "request":
            if not part.rate:
                continue
            name += " (each)"
        cells = [str(part.count), exact(part.pico) if part.count else ""] if found["counts"] else []
        made.add_row(name, rate_text(part), *cells)
    if found["counts"]:
        made.add_row("  total", "", "", exact(found["pico"]), style="bold")
    return made


# --- demo -------------------------------------------------------------------------------------------------


def demo(details: Sequence[RunDetail], store: Path, option: str, width: int) -> Iterator[RenderableType]:
    """Lay out the demo's runs, the first of them in full, and what to try next with `option` appended."""
    summaries = [detail.summary for detail in details]
    yield Text(f"Recorded {len(details)} runs of a scripted agent; they are stored in {clean(str(store))}\n")
    yield from runs(summaries[::-1], width)
    yield Text()
    yield from run_detail(details[0], full=False)
    yield Text("\nNext", style=_RULE)
    failed = next((run for run in summaries if run.status_code == 2), summaries[-1])
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)  # to be copied
    grid.add_column()
    for command, purpose in (
        (f"picostep show {short_id(failed.run_id)}{option}", "why that run failed"),
        (f"picostep show {short_id(summaries[0].run_id)} --full{option}", "the run above with whole texts"),
        (f"picostep runs{option}", "all runs in this store"),
        (f"picostep costs{option}", "what its steps cost, by model"),
        ("picostep price gpt-4.1 --tokens 184,1024,23", "how the first step's cost comes about"),
        ("picostep tail -f", "what your own program records, as it comes"),
        ("picostep status", "rings, exporters, counters"),
    ):
        grid.add_row(Text(f"  {clean(command)}", style="bold"), Text(purpose, style="dim"))
    yield grid


# --- tail -------------------------------------------------------------------------------------------------


def tail_line(row: Row) -> Text:
    """Lay out one record on one line."""
    kind = row["type"]
    line = _cropped(f"{clock(row['time_ns'] if kind == 'feedback' else row['end_ns'])}  ")
    line.append(f"{kind:<9}  ", style="bold")
    line.append(f"{short_id(row['run_id'])}  ", style="cyan")
    if kind == "feedback":
        return line.append(_feedback(row, full=False))
    line.append_text(_status(row["status_code"]))
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
        yield one_line(gist(text), _PREVIEW)


# --- status -----------------------------------------------------------------------------------------------


def status(directories: Sequence[Directory], to: str) -> Iterator[RenderableType]:
    """Lay out ring directories; `to` says where this shell's settings send records."""
    for directory in directories:
        yield Text.assemble(
            (clean(directory.name), "bold cyan"), "  ", _exporter_state(directory), _whose(directory, to)
        )
        if directory.problem:
            yield Text(f"  cannot be read: {clean(directory.problem)}", style="red")
        if directory.rings or directory.totals:
            yield Padding(_rings_table(directory), (0, 0, 0, 2))
        for name in directory.damaged:
            yield Text(f"  damaged, set aside: {clean(name)}", style="red")
        yield from (_cropped(f"  log  {clean(line)}", "dim") for line in directory.log)


# --- top --------------------------------------------------------------------------------------------------

_HOUR = 3600


def top(load: Load, width: int, height: int | None) -> Iterator[RenderableType]:
    """Lay out what there is to do now: sums, then as many models as there are lines for."""
    yield _top_title(load)
    for name, problem in sorted(load.problems.items()):
        yield _cropped(f"  the exporter of {clean(name)} {one_line(problem, _PREVIEW)}", "red")
    yield _top_waiting(load)
    if not load.exporters and not load.problems:
        yield _cropped("No exporter is at work: waiting for one …", "yellow")
        return
    if not load.models:
        yield _cropped(f"No step in {load.seconds:.3g} s.", "dim")
        return
    lines = list(load.models.items())
    room = len(lines) if height is None else max(1, height - _TOP_LINES - len(load.problems))
    yield Text()
    yield _top_table(load, lines[:room], width)
    if lines[room:]:
        yield _cropped(f"{len(lines[room:])} more models are in the total", "dim")


_TOP_LINES = 7  # of all but models and problems: title, what waits, empty, header (2), total, more


def _top_title(load: Load) -> Text:
    exporters = f"{load.exporters} exporter{'s' if load.exporters != 1 else ''}"
    hosts = f"{load.hosts} process{'es' if load.hosts != 1 else ''}"
    title = Text.assemble(("picostep top", _RULE), f"   {exporters}, {hosts}   last {load.seconds:.3g} s")
    title.no_wrap, title.overflow = True, "ellipsis"
    return title


def _top_waiting(load: Load) -> Text:
    """Say what waits in rings and spools, and what is lost."""
    spooled = f" ({size(load.spool_bytes)})" if load.spool_bytes else ""
    made = Text(no_wrap=True, overflow="ellipsis")
    made.append(f"ring {load.fullest:.0%}", style="bold red" if load.fullest > 0.5 else "")
    made.append(f", {count(load.in_ring)} records   ")
    made.append(f"spool {count(load.in_spool)} records{spooled}", style="yellow" if load.in_spool else "")
    made.append("   ")
    made.append(f"dropped {count(load.dropped)}", style="bold red" if load.dropped else "")
    return made


@dataclass(frozen=True)
class _TopColumn:
    header: str
    cell: Callable[[Tally, float], str]
    style: Callable[[Tally], str] = lambda tally: ""


def _error_share(tally: Tally) -> str:
    return f"{tally.errors / tally.steps.count:.1%}" if tally.errors else "0"


def _hourly(tally: Tally, seconds: float) -> str:
    steps = tally.steps
    known = None if steps.unpriced == steps.count else round(steps.cost_pico * _HOUR / seconds)
    return cost(known, steps.count, steps.unpriced)


def _cached_share(tally: Tally) -> str:
    steps = tally.steps
    read = steps.prompt_uncached + steps.prompt_cached + steps.cache_write
    return f"{steps.prompt_cached / read:.0%}" if read else UNKNOWN


def _percentile(histogram: Histogram, share: float) -> str:
    found = histogram.quantile(share)
    return UNKNOWN if found is None else duration(round(found))


_TOP_COLUMNS = (
    _TopColumn("STEPS\n/s", lambda tally, seconds: rate(tally.steps.count, seconds)),
    _TopColumn(
        "\nERR", lambda tally, _: _error_share(tally), lambda tally: "bold red" if tally.errors else ""
    ),
    _TopColumn("DURATION\np50", lambda tally, _: _percentile(tally.steps.duration, 0.5)),
    _TopColumn("\np99", lambda tally, _: _percentile(tally.steps.duration, 0.99)),
    _TopColumn("FIRST TOKEN\np50", lambda tally, _: _percentile(tally.steps.first_token, 0.5)),
    _TopColumn("\np99", lambda tally, _: _percentile(tally.steps.first_token, 0.99)),
    _TopColumn("TOKENS/s\nin", lambda tally, seconds: rate(tally.steps.input_tokens.sum, seconds)),
    _TopColumn("\ncached", lambda tally, _: _cached_share(tally)),
    _TopColumn("\nout", lambda tally, seconds: rate(tally.steps.completion, seconds)),
    _TopColumn("COST\n/h", _hourly),
)
# What matters least, by its place, goes first where there is no room.
_TOP_EXPENDABLE = (7, 4, 5, 6, 2, 8, 9, 3, 1)
_SHORTEST_MODEL = 12  # columns
_LONGEST_MODEL = 40


def _top_table(load: Load, lines: Sequence[tuple[str, Tally]], width: int) -> Table:
    total = load.total()
    kept = list(range(len(_TOP_COLUMNS)))
    tallies = [*(tally for _, tally in lines), total]
    widths = [
        2
        + max(*map(len, each.header.split("\n")), *(len(each.cell(tally, load.seconds)) for tally in tallies))
        for each in _TOP_COLUMNS
    ]
    for place in _TOP_EXPENDABLE:
        if sum(widths[each] for each in kept) + _SHORTEST_MODEL <= width:
            break
        kept.remove(place)
    columns = [_TOP_COLUMNS[place] for place in kept]
    made = _table()
    room = max(width - sum(widths[place] for place in kept), _SHORTEST_MODEL)
    made.add_column("MODEL", vertical="bottom", no_wrap=True, overflow="ellipsis", max_width=room - 2)
    for column in columns:
        made.add_column(column.header, justify="right", vertical="bottom", no_wrap=True)
    for name, tally in [*lines, ("total", total)]:
        shown = one_line(name, _LONGEST_MODEL) or "(no model)"
        cells = (Text(each.cell(tally, load.seconds), style=each.style(tally)) for each in columns)
        made.add_row(Text(shown), *cells, style="bold" if tally is total else "")
    return made


def spools(found: Sequence[Waiting], names: Mapping[str, str]) -> RenderableType:
    """Lay out spools; `names` gives those of this shell's sinks."""
    made = _table()
    for header in ("SPOOL", "OF"):
        made.add_column(header)
    for header in ("WAITING", "ON DISK", "SINCE", "EXPORTERS", "REFUSED", "DAMAGED"):
        made.add_column(header, justify="right")
    for each in found:
        made.add_row(
            each.sink,
            clean(names.get(each.sink, "")),
            count(each.records),
            size(each.bytes),
            "" if each.oldest_ns is None else clock(each.oldest_ns),
            str(each.exporters),
            size(each.dead_letters) if each.dead_letters else "0",
            Text(str(each.damaged), style="red" if each.damaged else ""),
        )
    return made


def _exporter_state(directory: Directory) -> Text:
    if directory.exporter:
        return Text("exporter at work", style="green")
    waiting = any(ring.backlog_bytes for ring in directory.rings)
    return Text("no exporter", style="bold red" if waiting else "dim")


def _whose(directory: Directory, to: str) -> str:
    return f"  the settings of this shell: {clean(to)}" if directory.own else ""


def _rings_table(directory: Directory) -> Table:
    made = _table()
    for header in ("PROCESS", "STATE"):
        made.add_column(header)
    for header in ("RECORDED", "DELIVERED", "IN RING", "SPOOLED", "DROPPED", "USED"):
        made.add_column(header, justify="right")
    made.add_column("LAST ERROR")
    for ring in directory.rings:
        made.add_row(*_ring_cells(ring))
    if directory.totals:
        ended = f"{directory.totals.get('rings', 0)} ended"
        made.add_row("earlier", ended, *_counter_cells(directory.totals), style="dim")
    return made


def _ring_cells(ring: Ring) -> Iterator[str | Text]:
    yield str(ring.pid) if ring.pid else clean(ring.name)
    yield ring.state
    if ring.counters is None:
        yield from [""] * 6
        yield Text(clean(ring.problem or ""), style="red")
        return
    yield from _counter_cells(ring.counters)
    yield f"{size(ring.backlog_bytes)} of {size(ring.size_bytes)}"
    yield Text(clean(ring.counters["last_error"]), style="red")


def _counter_cells(counters: dict[str, Any]) -> Iterator[Text]:
    dropped = counters.get("dropped", {})
    yield Text(count(counters.get("recorded", 0)))
    yield Text(count(counters.get("delivered", 0)))
    yield Text(count(counters.get("in_ring", 0)))
    yield Text(count(counters.get("in_spool", 0)))
    reasons = ", ".join(f"{count(number)} {clean(reason)}" for reason, number in dropped.items() if number)
    yield Text(reasons or "0", style="red" if reasons else "")
