"""The table of settings, the signature of `configure()` and what people read of both say the same."""

from __future__ import annotations

import inspect
import re
import textwrap

import pytest

import picostep
from picostep.settings.table import TABLE, Choice
from settings_docs import MARKS, PAGE, arguments, table


def test_the_signature_has_what_the_table_has() -> None:
    parameters = inspect.signature(picostep.configure).parameters.values()

    keywords = [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]
    assert keywords == [row.name for row in TABLE if row.argument]
    assert {each.default for each in parameters if each.kind is each.KEYWORD_ONLY} == {None}


def test_the_docstring_says_what_the_table_says() -> None:
    """Written by tests/settings_docs.py."""
    docstring = inspect.getdoc(picostep.configure) or ""

    assert textwrap.indent(arguments(), " " * 4) in f"{docstring}\n"


@pytest.mark.skipif(not PAGE.exists(), reason="docs are not here")
def test_the_page_says_what_the_table_says() -> None:
    """Written by tests/settings_docs.py."""
    start, end = MARKS

    assert PAGE.read_text(encoding="utf-8").partition(start)[2].partition(end)[0] == table()


@pytest.mark.parametrize(
    "row", [row for row in TABLE if isinstance(row.check, Choice)], ids=lambda row: row.name
)
def test_the_words_name_what_is_allowed(row: object) -> None:
    assert set(re.findall(r'"(\w+)"', row.words)) == set(row.check.allowed)  # type: ignore[attr-defined]


def test_variables_are_named_after_their_settings() -> None:
    """But those that the reference has, which keep its names."""
    assert len({row.variable for row in TABLE}) == len(TABLE)
    ours = [row for row in TABLE if not row.variable.startswith("TCC_")]
    assert [row.variable for row in ours] == [f"PICOSTEP_{row.name.upper()}" for row in ours]
    assert {row.variable for row in TABLE} - {row.variable for row in ours} == {
        "TCC_API_KEY",
        "TCC_URL",
        "TCC_DEBUG",
    }
