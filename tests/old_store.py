"""
A store as programs made and wrote it before its layout had a minor version: 1.0.

Such files and such programs are in use beside newer ones. So this says what they do, apart from the code
under test, and does not change with it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
APPLICATION_ID = 0x7069636F
TABLES = {"run": "runs", "step": "steps", "tool_call": "tool_calls", "feedback": "feedback"}
FLAGS = ("shed", "shortened", "withheld")


class StoreSink:
    """
    Writes records as such a program does.

    It asks the file for its columns once, when it opens it, and names them when it inserts. A file with
    another number than 1 is refused. After an error the file is opened again, and the same records are given
    again.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._columns: dict[str, list[str]] = {}

    def deliver(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Store records in one transaction; raises `sqlite3.Error` where they cannot be stored now."""
        try:
            connection = self._connection = self._connection or self._open()
            connection.execute("BEGIN IMMEDIATE")
            for kind, table in TABLES.items():
                columns = self._columns[table]
                rows = [
                    [_value(record, column) for column in columns]
                    for record in records
                    if record["kind"] == kind
                ]
                marks = ", ".join("?" * len(columns))
                connection.executemany(
                    f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows
                )
            connection.execute("COMMIT")
        except sqlite3.Error:
            self.close()
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=1.0, isolation_level=None)
        execute = connection.execute
        execute("PRAGMA journal_mode = TRUNCATE")
        execute("PRAGMA synchronous = FULL")
        execute("BEGIN IMMEDIATE")
        if execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            for statement in SCHEMA.split(";\n")[:-1]:
                execute(statement)
            execute(f"PRAGMA application_id = {APPLICATION_ID}")
            execute("PRAGMA user_version = 1")
        assert execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert execute("PRAGMA user_version").fetchone() == (1,)
        execute("COMMIT")
        self._columns = {
            table: [name for _, name, *_ in execute(f"PRAGMA table_info({table})")]
            for table in TABLES.values()
        }
        return connection


def _value(record: Mapping[str, Any], column: str) -> Any:
    if column in FLAGS:
        return column in record
    if column == "time_ns":
        return record["end_ns"]
    if column == "tool_name":
        return record.get(column) or "unknown"
    return record.get(column)


def make(path: Path, records: Sequence[Mapping[str, Any]] = ()) -> None:
    """Make a store of this layout with records in it."""
    sink = StoreSink(str(path))
    sink.deliver(records)
    sink.close()
