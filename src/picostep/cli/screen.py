"""Standard output as rich sees it, and the few forms that all commands lay their text out in."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from picostep.store.shapes import status_word

__all__ = ["HEADING", "PREVIEW", "Screen", "cropped", "grid", "status_text", "table"]

PREVIEW = 300
"""Characters of a text that is shown in part."""

HEADING = "bold"
_PIPE_WIDTH = 200  # columns where no terminal sets a limit
_STATUS_STYLES = {None: "yellow", 0: "green", 2: "bold red"}
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


def table() -> Table:
    """Return an empty table without lines."""
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def grid(facts: dict[str, Text]) -> Table:
    """Lay out facts, one a line, each behind its name."""
    made = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        made.add_row(Text(f"  {name}", style="dim"), value)
    return made


def cropped(text: str, style: str = "") -> Text:
    """Return a text on one line, cut where the screen ends."""
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def status_text(code: int | None) -> Text:
    """Return the word for a status, in its colour."""
    return Text(status_word(code), style=_STATUS_STYLES.get(code, "yellow"))
