"""What `picostep costs` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from picostep.cli.screen import cropped, table
from picostep.cli.text import clean, cost, count, one_line, tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from picostep.store.read import CostLine, CostReport, GroupBy, RunSummary

__all__ = ["cost_of", "costs_view", "tokens_of"]

_NO_KEY = {"model": "(no model)", "session": "(no session)", "status": "(never priced)"}


def costs_view(report: CostReport, by: GroupBy, limit: int) -> Iterator[RenderableType]:
    """Lay out a cost report: its first lines, the total, and why steps have no cost."""
    made = table()
    made.add_column(by.upper(), overflow="fold", vertical="bottom")
    for header in ("STEPS", "NO COST", "TOKENS\nin(cached)/out", "COST"):
        made.add_column(header, justify="right", vertical="bottom", no_wrap=True)
    for line in report.lines[:limit]:
        made.add_row(_cost_key(line, by), *_cost_cells(line))
    made.add_row("total", *_cost_cells(report.total), style="bold")
    yield made
    if report.lines[limit:]:
        yield cropped(f"{len(report.lines[limit:])} more lines are in the total (show them: -n)", "dim")
    if report.unpriced:
        reasons = ", ".join(
            f"{count(steps)} {one_line(status, 20) or 'never priced'}"
            for status, steps in report.unpriced.items()
        )
        yield cropped(f"? no cost is known   ≥ some steps have no known cost: {reasons}", "dim")


def _cost_key(line: CostLine, by: GroupBy) -> Text:
    if line.key is None:
        return Text(_NO_KEY.get(by, "-"), style="dim")
    name = f"{line.provider}/{line.key}" if line.provider else line.key
    return Text(one_line(name, 60) if by in ("model", "session") else clean(name))


def _cost_cells(line: CostLine) -> Iterator[Text]:
    yield Text(count(line.steps))
    yield Text(count(line.unpriced_steps), style="yellow" if line.unpriced_steps else "dim")
    yield Text(tokens_of(line))
    yield Text(cost_of(line))


def tokens_of(run: RunSummary | CostLine) -> str:
    """Return the tokens of steps: of their prompts, read from a cache in brackets, and of completions."""
    return tokens(
        run.prompt_uncached_tokens, run.prompt_cached_tokens, run.cache_write_tokens, run.completion_tokens
    )


def cost_of(sum_: RunSummary | CostLine) -> str:
    """Return what steps cost, with a sign where that is not known of all."""
    return cost(sum_.cost_pico, sum_.steps, sum_.unpriced_steps)
