"""
What people read of the table of settings: the Args of `configure()` and docs/reference/settings.md.

`python tests/settings_docs.py` writes both anew, after a change in the table.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from picostep.settings.table import TABLE, Seconds, Setting, Size, Whole

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference" / "settings.md"
API = ROOT / "src" / "picostep" / "api.py"
MARKS = "<!-- the table of settings -->\n", "<!-- end -->\n"
UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


def size(number: int) -> str:
    unit, name = next(unit for unit in UNITS if number % unit[0] == 0)
    return f"{number // unit:,} {name}"


def seconds(number: float) -> str:
    return f"{number / 86400:g} days" if number >= 86400 else f"{number:,g} s"


def limits(row: Setting[object]) -> str:
    """Say what the check of a number allows."""
    check = row.check
    if isinstance(check, Size):
        return f"from {size(check.low)} to {size(check.high)}"
    if isinstance(check, Whole):
        return f"from {check.low:,} to {check.high:,}"
    if isinstance(check, Seconds):
        return f"{'more than 0, at most' if check.more else 'from 0 to'} {seconds(check.high)}"
    return ""


def default(row: Setting[object]) -> str:
    value = row.default
    if row.otherwise:
        return row.otherwise
    if isinstance(row.check, Size):
        assert isinstance(value, int)
        return size(value)
    if isinstance(row.check, Seconds):
        assert isinstance(value, float)
        return seconds(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f'`"{value}"`' if isinstance(value, str) else f"{value:,}"


def wrapped(text: str, width: int, indent: str = "") -> str:
    return textwrap.fill(
        text, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


def sentences(row: Setting[object]) -> str:
    allowed = limits(row)
    return f"{row.words}. {allowed[:1].upper()}{allowed[1:]}{'. ' if allowed else ''}".strip()


def arguments() -> str:
    """Return the Args of the docstring of `configure()`, from the left margin."""
    rows = [row for row in TABLE if row.argument]
    texts = [f"{row.name}: {sentences(row)} Else `{row.variable}`; else {default(row)}." for row in rows]
    return "\n\n".join(wrapped(text, 102, "    ") for text in texts) + "\n"


def table() -> str:
    """Return the table of the page, and a paragraph for each row of it."""
    lines = ["| argument | variable | default | allowed |", "|---|---|---|---|"]
    paragraphs = []
    for row in TABLE:
        name = f"`{row.name}`" if row.argument else ""
        lines.append(f"| {name} | `{row.variable}` | {default(row)} | {limits(row)} |")
        paragraphs.append(wrapped(f"**{row.name}**: {row.words}.", 120))
    return "\n\n".join(["\n".join(lines), *paragraphs]) + "\n"


def replaced(text: str, start: str, end: str, by: str) -> str:
    before, found, rest = text.partition(start)
    assert found
    return before + start + by + end + rest.partition(end)[2]


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text(), *MARKS, table()))
    start, end = "    Args:\n        to: ", "\n    Raises:\n        UnknownSettingError"
    written = textwrap.indent(arguments(), " " * 8).removeprefix("        to: ")
    API.write_text(replaced(API.read_text(), start, end, written))
