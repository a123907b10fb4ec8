"""The local store: one SQLite file that holds runs, steps, tool calls and feedback.

The schema is documented in docs/store.md and a test compares the two.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from picostep.errors import PicostepError
from picostep.payload import merged_metadata, well_formed
from picostep.ringdir import make_directories
from picostep.sinks import RetryLater

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from picostep.record import Record

SCHEMA_VERSION = 1
APPLICATION_ID = 0x7069636F  # "pico": tells our file from any other SQLite database

# Small columns stand before the texts: SQLite keeps a long row in a chain of overflow pages, and a query for
# counts and times should not have to walk it. Not STRICT: that needs SQLite 3.37, which not every
# supported Python is linked with.
SCHEMA = """\
CREATE TABLE runs (
    run_id TEXT NOT NULL PRIMARY KEY,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    status_code INTEGER NOT NULL,
    status_message TEXT,
    shed INTEGER NOT NULL,
    shortened INTEGER NOT NULL,
    withheld INTEGER NOT NULL,
    session_id TEXT,
    conversational INTEGER,
    metadata TEXT,
    user_prompt TEXT,
    system_prompt TEXT,
    response TEXT,
    full_input TEXT,
    full_output TEXT
);
CREATE TABLE steps (
    run_id TEXT NOT NULL,
    step_id TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    first_token_ns INTEGER,
    end_ns INTEGER NOT NULL,
    status_code INTEGER NOT NULL,
    status_message TEXT,
    shed INTEGER NOT NULL,
    shortened INTEGER NOT NULL,
    withheld INTEGER NOT NULL,
    model_requested TEXT,
    model_used TEXT,
    provider TEXT,
    service_tier TEXT,
    finish_reason TEXT,
    prompt_uncached_tokens INTEGER,
    prompt_cached_tokens INTEGER,
    cache_write_tokens INTEGER,
    cache_write_1h_tokens INTEGER,
    completion_tokens INTEGER,
    reasoning_tokens INTEGER,
    real_total_cost TEXT,
    cost_pico,
    cost_status TEXT,
    price_table TEXT,
    prompt TEXT,
    response TEXT,
    tool_definitions TEXT,
    PRIMARY KEY (run_id, step_id)
);
CREATE TABLE tool_calls (
    run_id TEXT NOT NULL,
    tool_call_id TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    status_code INTEGER NOT NULL,
    status_message TEXT,
    shed INTEGER NOT NULL,
    shortened INTEGER NOT NULL,
    withheld INTEGER NOT NULL,
    tool_name TEXT NOT NULL,
    args TEXT,
    result TEXT,
    PRIMARY KEY (run_id, tool_call_id)
);
CREATE TABLE feedback (
    feedback_id TEXT NOT NULL PRIMARY KEY,
    run_id TEXT NOT NULL,
    time_ns INTEGER NOT NULL,
    score TEXT,
    text TEXT
);
CREATE INDEX runs_by_time ON runs (start_ns);
CREATE INDEX runs_by_status ON runs (status_code, start_ns);
CREATE INDEX runs_by_session ON runs (session_id, start_ns);
CREATE INDEX steps_by_run ON steps (run_id, start_ns);
CREATE INDEX steps_by_time ON steps (start_ns);
CREATE INDEX steps_by_status ON steps (status_code, start_ns);
CREATE INDEX steps_by_model ON steps (coalesce(model_used, model_requested), start_ns);
CREATE INDEX tool_calls_by_run ON tool_calls (run_id, start_ns);
CREATE INDEX tool_calls_by_time ON tool_calls (start_ns);
CREATE INDEX tool_calls_by_name ON tool_calls (tool_name, start_ns);
CREATE INDEX feedback_by_run ON feedback (run_id, time_ns);
CREATE INDEX feedback_by_time ON feedback (time_ns);
"""

TABLES = {"run": "runs", "step": "steps", "tool_call": "tool_calls", "feedback": "feedback"}

_BUSY_TIMEOUT = 1.0  # seconds; a longer wait is the exporter's business, which counts it and backs off


class StoreError(PicostepError):
    """A file that is no store of ours, or that we must not touch; the message says which and why."""


class StoreSink:
    """Writes records to a store; a re-delivered record replaces itself.

    Opened at the first delivery and again whenever the file has been removed or replaced, so that deleting
    a store while an exporter runs loses nothing that is recorded afterwards.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path).absolute()
        self._database: _Database | None = None

    def deliver(self, records: Sequence[Record]) -> Mapping[int, str]:
        """Store the records in one transaction, on disk when this returns.

        Returns:
            Index and reason of each record that cannot be stored as it is (a number beyond 64 bits, a
            missing id).

        Raises:
            RetryLater: The file is locked, unreadable, not ours, or the disk is full.
        """
        try:
            return self._open().write(records)
        except (OSError, sqlite3.Error, StoreError) as error:
            self.close()  # also rolls back what was begun
            raise RetryLater(f"store: {error}") from error

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def _open(self) -> _Database:
        if self._database is not None and not self._database.is_at(self._path):
            self.close()
        if self._database is None:
            self._database = _Database(self._path)
        return self._database


class _Database:
    """A connection that may write."""

    def __init__(self, path: Path) -> None:
        self._file = prepare(path)
        # The exporter's thread writes; whoever stops the exporter closes.
        self._connection = sqlite3.connect(
            path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        try:
            self._columns = self._set_up(path)
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
        rows: dict[str, list[list[Any]]] = {table: [] for table in self._columns}
        refused: dict[int, str] = {}
        for index, record in enumerate(records):
            try:
                table = _table_of(record)
                rows[table].append(_row(record, self._columns[table]))
            except ValueError as error:
                refused[index] = f"store: {error}"
        self._connection.execute("BEGIN IMMEDIATE")
        for table, batch in rows.items():
            self._insert(table, batch)
        self._connection.execute("COMMIT")
        return refused

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self._connection.close()

    def _insert(self, table: str, batch: list[list[Any]]) -> None:
        columns = self._columns[table]
        marks = ", ".join("?" * len(columns))
        # REPLACE gives the row a new rowid, by which `tail` finds what has come since.
        statement = f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
        self._connection.executemany(statement, batch)

    def _set_up(self, path: Path) -> dict[str, dict[str, bool]]:
        """Create or check the schema; return the tables' columns, True for those that must be set."""
        execute = self._connection.execute
        # Not WAL: SQLite 3.7.0 to 3.51.2 can corrupt a WAL database that several connections write (the
        # WAL-reset bug), and distributions ship those versions.
        execute("PRAGMA journal_mode = TRUNCATE")
        execute("PRAGMA synchronous = FULL")
        execute("BEGIN IMMEDIATE")  # two exporters may meet a new file at once
        if is_empty(self._connection):
            for statement in SCHEMA.split(";\n")[:-1]:
                execute(statement)
            execute(f"PRAGMA application_id = {APPLICATION_ID}")
            execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        check_version(self._connection, path)
        execute("COMMIT")
        return {table: self._columns_of(table) for table in TABLES.values()}

    def _columns_of(self, table: str) -> dict[str, bool]:
        rows = self._connection.execute(f"PRAGMA table_info({table})")
        return {name: bool(required) for _, name, _, required, *_ in rows}


def is_empty(connection: sqlite3.Connection) -> bool:
    """Whether the database has nothing in it, as one just created."""
    return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def check_version(connection: sqlite3.Connection, path: Path) -> None:
    """
    Raises:
        StoreError: The database belongs to another program or to a newer picostep.
    """
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        raise StoreError(f"{path} is an SQLite database, but not one of picostep's")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version} and this picostep knows version {SCHEMA_VERSION}: "
            "upgrade picostep or choose another store"
        )


def check_owner(path: Path) -> tuple[int, int]:
    """Return device and inode of a store that we may open.

    By lstat, not by opening it: closing any descriptor of an SQLite file drops the POSIX locks that other
    connections of this process hold on it.

    Raises:
        FileNotFoundError: There is none.
        StoreError: It is a symlink, not a file, or someone else's.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{path} is {'a symbolic link' if stat.S_ISLNK(status.st_mode) else 'not a file'}")
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        raise StoreError(f"{path} belongs to user {status.st_uid}")
    return identity(status)


def prepare(path: Path) -> tuple[int, int]:
    """Make sure that the file exists, readable by its owner only, and is ours; return device and inode.

    Raises:
        OSError: It cannot be created.
        StoreError: It is a symlink, not a file, or someone else's.
    """
    make_directories(str(path.parent))
    with suppress(FileExistsError):
        # O_EXCL also refuses a dangling symlink.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    return check_owner(path)


def identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _table_of(record: Record) -> str:
    kind = record.get("kind")
    if kind not in TABLES:
        raise ValueError(f"no table for a record of kind {kind!r}")
    return TABLES[kind]


def _row(record: Record, columns: Mapping[str, bool]) -> list[Any]:
    row = []
    for column, required in columns.items():
        value = _VALUES[column](record) if column in _VALUES else record.get(column)
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


def _metadata(record: Record) -> str | None:
    return json.dumps(merged_metadata(record), ensure_ascii=False) if "metadata" in record else None


def _cost(record: Record) -> str | None:
    cost = record.get("real_total_cost")
    return None if cost is None else str(cost)


# The columns that are not simply what the record has under the same name.
def _pico(record: Record) -> str | int | None:
    """Beyond 64 bits the number is kept as text, which the column's lack of a type leaves alone."""
    pico: int | None = record.get("cost_pico")
    return pico if pico is None or -(2**63) <= pico < 2**63 else str(pico)


_VALUES: dict[str, Callable[[Record], str | int | None]] = {
    "metadata": _metadata,
    "real_total_cost": _cost,
    "cost_pico": _pico,
    "shed": lambda record: "shed" in record,
    "shortened": lambda record: "shortened" in record,
    "withheld": lambda record: "withheld" in record,
    "time_ns": lambda record: record.get("end_ns"),
    "tool_name": lambda record: record.get("tool_name") or "unknown",
}
