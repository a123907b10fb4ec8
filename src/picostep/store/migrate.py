"""
Makes the tables of a store, or adds to an older one what it lacks.

What is there decides, not a number: whatever somebody left undone is done when a file is opened the next
time, and what is done already is left alone. Programs of an earlier layout may write meanwhile: they name the
columns that they fill, so a row of theirs has NULL in the others.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from picostep.store.schema import (
    APPLICATION_ID,
    COLUMNS,
    CREATE_LAYOUT,
    INDEXES,
    MAJOR,
    MINOR,
    StoreError,
    check_version,
    create_table,
    is_empty,
    missing_columns,
)

__all__ = ["bring_up_to_date"]


def bring_up_to_date(connection: sqlite3.Connection, path: Path) -> None:
    """
    Give a store all that this layout has. To be called inside a transaction that may write.

    Args:
        connection: To the file; nothing is committed.

        path: Its name, for messages.

    Raises:
        StoreError: The file is not ours, of another major version, or of a layout whose rows we cannot fill.
    """
    finished = not is_empty(connection) and check_version(connection, path)
    made = {table for table in COLUMNS if _complete(connection, path, table)}
    for name, table, what in INDEXES:
        if table in made or not finished:  # else a missing one is one that its owner has dropped
            connection.execute(f"CREATE INDEX IF NOT EXISTS {name} ON {table} ({what})")
    if not finished:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {MAJOR}")
    if _minor(connection) < MINOR:
        connection.execute(CREATE_LAYOUT)
        connection.execute("INSERT INTO picostep_layout VALUES (?)", (MINOR,))


def _complete(connection: sqlite3.Connection, path: Path, table: str) -> bool:
    """Make a table, or add the columns that it lacks; return whether it was made."""
    missing = missing_columns(connection, path, table)
    if len(missing) == len(COLUMNS[table]):
        connection.execute(create_table(table))
        return True
    for column in missing:
        connection.execute(f"ALTER TABLE {table} ADD COLUMN {column.definition}")
    _check_others(connection, path, table)
    return False


def _check_others(connection: sqlite3.Connection, path: Path, table: str) -> None:
    """Check that no column that we do not know must be filled."""
    known = {column.name for column in COLUMNS[table]}
    for _, name, _, required, default, _ in connection.execute(f"PRAGMA table_info({table})"):
        if required and default is None and name not in known:
            raise StoreError(
                f"{path} has layout {MAJOR}.{_minor(connection)} and this picostep knows {MAJOR}.{MINOR}, "
                f"which cannot fill {table}.{name}: upgrade picostep or choose another store"
            )


def _minor(connection: sqlite3.Connection) -> int:
    """Return the layout's minor version; 0 for a file from before there was one."""
    if not connection.execute("PRAGMA table_info(picostep_layout)").fetchall():
        return 0
    (minor,) = connection.execute("SELECT coalesce(max(minor), 0) FROM picostep_layout").fetchone()
    return int(minor)
