"""
The layout of a store: its tables, columns and indexes, and how a file says which layout it has.

The columns are those of `picostep.record.FIELDS`; docs/store.md shows the whole, and a test compares the two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from picostep.errors import PicostepError
from picostep.record import FIELDS, TABLES, Field, Kind, fields_of

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

APPLICATION_ID = 0x7069636F  # "pico": tells our file from any other SQLite database

MAJOR = 1
"""`PRAGMA user_version`: a program that knows another one leaves the file alone."""

MINOR = max(field.since for field in FIELDS)
"""
The largest row of table `picostep_layout`: counts what was added, and programs that know less go on.

A number of its own, because those from before there was one refuse a file whose `user_version` is not 1.
"""


class StoreError(PicostepError):
    """A file that is no store of ours, or that we must not touch; the message says which and why."""


class Column(NamedTuple):
    """
    A column of a table.

    Attributes:
        name: Its name.

        type: What follows the name in SQL.

        field: What it holds.
    """

    name: str
    type: str
    field: Field

    @property
    def required(self) -> bool:
        """Whether a row must have a value here."""
        return "NOT NULL" in self.type

    @property
    def definition(self) -> str:
        """The SQL of it."""
        return f"{self.name} {self.type}".rstrip()


def _columns(kind: Kind) -> tuple[Column, ...]:
    """
    Return the columns of a kind's table; what was added later comes last.

    SQLite adds a column behind the others. A new file has the same order, so that rows can be copied between
    any two stores.
    """
    stored = [field for field in fields_of(kind) if field.column is not None]
    stored.sort(key=lambda field: field.since)
    return tuple(Column(field.called or field.name, field.column or "", field) for field in stored)


COLUMNS: dict[str, tuple[Column, ...]] = {table: _columns(kind) for kind, table in TABLES.items()}
"""By table. Not STRICT: that needs SQLite 3.37, which not every supported Python is linked with."""

_PRIMARY_KEYS = {"steps": "run_id, step_id", "tool_calls": "run_id, tool_call_id"}
"""Of those tables where it is more than one column."""

INDEXES = (
    ("runs_by_time", "runs", "start_ns"),
    ("runs_by_status", "runs", "status_code, start_ns"),
    ("runs_by_session", "runs", "session_id, start_ns"),
    ("steps_by_run", "steps", "run_id, start_ns"),
    ("steps_by_time", "steps", "start_ns"),
    ("steps_by_status", "steps", "status_code, start_ns"),
    ("steps_by_model", "steps", "coalesce(model_used, model_requested), start_ns"),
    ("tool_calls_by_run", "tool_calls", "run_id, start_ns"),
    ("tool_calls_by_time", "tool_calls", "start_ns"),
    ("tool_calls_by_name", "tool_calls", "tool_name, start_ns"),
    ("feedback_by_run", "feedback", "run_id, time_ns"),
    ("feedback_by_time", "feedback", "time_ns"),
)
"""Name, table, and what it is of."""

CREATE_LAYOUT = "CREATE TABLE IF NOT EXISTS picostep_layout (minor INTEGER NOT NULL PRIMARY KEY)"


def create_table(table: str) -> str:
    """Return the SQL that makes a table."""
    lines = [column.definition for column in COLUMNS[table]]
    if table in _PRIMARY_KEYS:
        lines.append(f"PRIMARY KEY ({_PRIMARY_KEYS[table]})")
    body = ",\n".join(f"    {line}" for line in lines)
    return f"CREATE TABLE {table} (\n{body}\n)"


def is_empty(connection: sqlite3.Connection) -> bool:
    """Whether the database has nothing in it, as one just created."""
    return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def check_version(connection: sqlite3.Connection, path: Path) -> bool:
    """
    Check that a database that has something in it is a store that we know.

    Returns:
        Whether it says so itself: a store restored from a part or a copy may have no version yet.

    Raises:
        StoreError: The database belongs to another program or to a newer picostep.
    """
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        raise StoreError(f"{path} is an SQLite database, but not one of picostep's")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in (0, MAJOR):
        raise StoreError(
            f"{path} has schema version {version} and this picostep knows version {MAJOR}: "
            "upgrade picostep or choose another store"
        )
    return bool(version)


def missing_columns(connection: sqlite3.Connection, path: Path, table: str) -> list[Column]:
    """
    Return what a table of the file lacks: nothing, what later layouts brought, or all if there is no table.

    Raises:
        StoreError: It lacks what cannot be added, so it was not made by picostep.
    """
    there = {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}
    missing = [column for column in COLUMNS[table] if column.name not in there]
    for column in missing:
        if there and column.required:
            raise StoreError(f"{path} is not as picostep makes it: {table} has no column {column.name}")
    return missing
