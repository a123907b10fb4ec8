"""Writes a local store: records become rows, many of them in one transaction."""

from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from picostep.payload import merged_metadata, well_formed
from picostep.record import TABLES
from picostep.store.file import identity, prepare
from picostep.store.migrate import bring_up_to_date
from picostep.store.schema import COLUMNS, Column

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from picostep.record import Record

__all__ = ["StoreWriter"]

_BUSY_TIMEOUT = 1.0  # seconds; a longer wait is the exporter's business, which counts it and backs off


class StoreWriter:
    """
    The write side of one store file, which is made or brought up to date first.

    Args:
        path: Of the file.

    Raises:
        OSError: It cannot be created.

        sqlite3.Error: It is locked, damaged, no database, or the disk is full.

        StoreError: It is not ours, or newer than we can write.
    """

    def __init__(self, path: Path) -> None:
        self._file = prepare(path)
        # The exporter's thread writes; whoever stops the exporter closes.
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            self._set_up(path)
        except BaseException:
            self._connection.close()
            raise

    def is_at(self, path: Path) -> bool:
        """Whether the path still names the file that this connection has open."""
        try:
            return identity(path.lstat()) == self._file
        except FileNotFoundError:
            return False

    def write(self, records: Sequence[Record]) -> dict[int, str]:
        """
        Store records in one transaction, on disk when this returns; one that is there replaces itself.

        Returns:
            Index and reason of each that cannot be stored as it is.

        Raises:
            sqlite3.Error: Nothing was stored; the connection is of no further use.
        """
        rows: dict[str, list[list[Any]]] = {table: [] for table in _CELLS}
        refused: dict[int, str] = {}
        for index, record in enumerate(records):
            try:
                table = _table_of(record)
                rows[table].append(_row(record, _CELLS[table]))
            except ValueError as error:
                refused[index] = f"store: {error}"
        self._connection.execute("BEGIN IMMEDIATE")
        for table, batch in rows.items():
            self._connection.executemany(_INSERTS[table], batch)
        self._connection.execute("COMMIT")
        return refused

    def close(self) -> None:
        """Close the file, and take back what was begun."""
        with suppress(sqlite3.Error):
            self._connection.close()

    def _set_up(self, path: Path) -> None:
        execute = self._connection.execute
        # Not WAL: SQLite 3.7.0 to 3.51.2 can corrupt a WAL database that several connections write (the
        # WAL-reset bug), and distributions ship those versions.
        execute("PRAGMA journal_mode = TRUNCATE")
        execute("PRAGMA synchronous = FULL")
        execute("BEGIN IMMEDIATE")  # two exporters may meet a new file at once
        bring_up_to_date(self._connection, path)
        execute("COMMIT")


def _table_of(record: Record) -> str:
    kind = record.get("kind")
    if kind not in TABLES:
        raise ValueError(f"no table for a record of kind {kind!r}")
    return TABLES[kind]


def _row(record: Record, cells: Sequence[_Cell]) -> list[Any]:
    row = []
    for column, key, required, make in cells:
        value = record.get(key) if make is None else make(record)
        if value is None and required:
            raise ValueError(f"{column} is missing")
        row.append(_storable(column, value))
    return row


def _storable(column: str, value: Any) -> str | int | None:
    """
    Raises:
        ValueError: An integer does not fit in 64 bits; SQLite would keep it as a rounded float.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return well_formed(value)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{column} does not fit in 64 bits")
    return int(value)


# --- from fields to columns -------------------------------------------------------------------------------


class _Cell(NamedTuple):
    """How a column gets its value: what a record has under a key, or what a function makes of the record."""

    column: str
    key: str
    required: bool
    make: Callable[[Record], str | int | None] | None


def _metadata(record: Record) -> str | None:
    return json.dumps(merged_metadata(record), ensure_ascii=False) if "metadata" in record else None


def _cost(record: Record) -> str | None:
    cost = record.get("real_total_cost")
    return None if cost is None else str(cost)


def _pico(record: Record) -> str | int | None:
    """Beyond 64 bits the number is kept as text, which the column's lack of a type leaves alone."""
    pico: int | None = record.get("cost_pico")
    return pico if pico is None or -(2**63) <= pico < 2**63 else str(pico)


_MADE: dict[str, Callable[[Record], str | int | None]] = {
    "metadata": _metadata,
    "real_total_cost": _cost,
    "cost_pico": _pico,
    "tool_name": lambda record: record.get("tool_name") or "unknown",
}


def _cell(column: Column) -> _Cell:
    key = column.field.name
    make = _MADE.get(key)
    if column.field.form == "flag" and column.required:  # a record has it only where it is true
        make = lambda record: key in record  # noqa: E731
    return _Cell(column.name, key, column.required, make)


def _insert(table: str, cells: Sequence[_Cell]) -> str:
    names = ", ".join(cell.column for cell in cells)
    # REPLACE gives the row a new rowid, by which `tail` finds what has come since.
    return f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({', '.join('?' * len(cells))})"


_CELLS = {table: tuple(map(_cell, columns)) for table, columns in COLUMNS.items()}
_INSERTS = {table: _insert(table, cells) for table, cells in _CELLS.items()}
