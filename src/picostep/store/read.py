"""
Reads a local store: lists runs, shows one whole, follows what arrives.

Every call opens the file read-only and closes it again, so that a reader never holds a lock while it waits
for a person, and finds the new file when a store was deleted and made again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any, Literal

from picostep.payload import well_formed
from picostep.record import TABLES, Kind, fields_of
from picostep.store.file import identity
from picostep.store.schema import COLUMNS, StoreError, check_version, is_empty, missing_columns

__all__ = [
    "TOKENS",
    "AmbiguousRun",
    "CostLine",
    "CostReport",
    "Cursor",
    "GroupBy",
    "NoStore",
    "Row",
    "RunDetail",
    "RunSummary",
    "StoreReader",
]

Row = dict[str, Any]
"""A row of a table, by column name: every column that picostep knows, and no other."""

GroupBy = Literal["model", "day", "session", "run", "status"]
"""What the lines of a cost report are for; `status` is the step's `cost_status`."""

_BUSY_TIMEOUT = 5.0  # seconds
_PREVIEW = 200  # characters of a prompt that a list may show
_MAX_CANDIDATES = 10


class NoStore(StoreError):
    """There is no file at that path, or no table in it yet."""


class AmbiguousRun(StoreError):
    """
    More than one run id begins with the text given.

    Attributes:
        candidates: The first of them in order of the alphabet, at most ten.
    """

    def __init__(self, prefix: str, candidates: list[str]) -> None:
        super().__init__(f"{prefix!r} is the beginning of more than one run id")
        self.candidates = candidates


@dataclass(frozen=True)
class RunSummary:
    """
    One line of the list of runs.

    A run without a row of its own (it goes on, or its process died) has `status_code` None, and its times
    reach from the first to the last of its records. Tokens and cost are sums over the steps that have them,
    None if none has.
    """

    run_id: str
    start_ns: int
    end_ns: int
    status_code: int | None
    status_message: str | None
    session_id: str | None
    steps: int
    failed_steps: int
    tool_calls: int
    failed_tool_calls: int
    prompt_uncached_tokens: int | None
    prompt_cached_tokens: int | None
    cache_write_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None
    cost_pico: int | None
    """Pico-dollars (1e-12 USD), computed or set by the program; exact."""
    unpriced_steps: int
    """How many steps `cost_pico` leaves out, as their cost is not known."""
    prompt: str | None
    """The beginning of the run's prompt, or of its first step's if the run has no row."""


@dataclass(frozen=True)
class RunDetail:
    """One run with all that belongs to it, in order of time; `run` is None if it has no row of its own."""

    summary: RunSummary
    run: Row | None
    steps: list[Row]
    tool_calls: list[Row]
    feedback: list[Row]


@dataclass(frozen=True)
class CostLine:
    """
    What some steps cost together.

    Sums leave out steps that do not have the value, and are None if none has it; all are exact.
    """

    key: str | None
    """The model, day (UTC, `2026-11-23`), session id, run id or cost status that they share, if any."""
    provider: str | None
    """Who served the model, if the program said so; only in a report by model."""
    steps: int
    unpriced_steps: int
    """Those whose cost is not known."""
    cost_pico: int | None
    """Pico-dollars (1e-12 USD)."""
    prompt_uncached_tokens: int | None
    prompt_cached_tokens: int | None
    cache_write_tokens: int | None
    completion_tokens: int | None
    reasoning_tokens: int | None


TOKENS = tuple(
    each.name for each in fields_of("step") if each.form == "count" and each.name in CostLine.__annotations__
)
"""The counts that are summed up."""


@dataclass(frozen=True)
class CostReport:
    """
    What the steps of a store cost.

    Attributes:
        lines: Days in order of time, everything else with the dearest first.

        total: All lines together; its key is None.

        unpriced: How many steps have no cost, by their `cost_status`; "" for those that were never priced.
    """

    lines: list[CostLine]
    total: CostLine
    unpriced: dict[str, int]


@dataclass(frozen=True)
class Cursor:
    """How far a reader has come: the file it read, and the last row seen in each table."""

    file: tuple[int, int] | None = None
    last: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))


class StoreReader:
    """
    The read side of one store file.

    Every method raises `NoStore` if there is nothing to read, and `StoreError` if the file is not ours, newer
    than this picostep, damaged, unreadable, or locked for five seconds.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path).absolute()

    def runs(
        self, limit: int, *, status: int | None = None, ended: bool = True, open: bool = True
    ) -> list[RunSummary]:
        """
        List runs, the latest first.

        Args:
            limit: How many at most.

            status: Of the ended runs only those with this status code.

            ended: Whether to list runs that have ended.

            open: Whether to list runs that have not.
        """
        with self._connect() as (connection, _):
            rows: list[Row] = []
            if ended:
                rows += _select(connection, _ENDED_RUNS, (status, status, limit))
            if open:
                rows += _select(connection, _OPEN_RUNS, (limit,))
            summaries = [_summary(row, *_parts(connection, row["run_id"], _BRIEF)) for row in rows]
        return sorted(summaries, key=attrgetter("start_ns"), reverse=True)[:limit]

    def run(self, prefix: str) -> RunDetail | None:
        """
        Return the run whose id is, or is the only one that begins with, `prefix`; None if there is none.

        Raises:
            AmbiguousRun: Several run ids begin with `prefix`.
        """
        with self._connect() as (connection, whole):
            run_id = _find(connection, well_formed(prefix))
            if run_id is None:
                return None
            runs = _select(connection, f"SELECT {whole['runs']} FROM runs WHERE run_id = ?", (run_id,))
            parts = _parts(connection, run_id, whole)
        run = runs[0] if runs else None
        return RunDetail(_summary(run or {"run_id": run_id}, *parts), run, *parts)

    def costs(self, by: GroupBy, since_ns: int = 0) -> CostReport:
        """
        Sum up what steps cost.

        Args:
            by: What to group them by. A step's model is the one that answered, else the one asked for.

            since_ns: Only steps that began then or later, Unix nanoseconds.
        """
        with self._connect() as (connection, _):
            connection.create_aggregate("exact_sum", 1, _ExactSum)  # type: ignore[arg-type]
            lines = [_cost_line(row) for row in _select(connection, _costs_query(by), (since_ns,))]
            unpriced = connection.execute(_UNPRICED, (since_ns,)).fetchall()
        if by == "day":
            lines.sort(key=lambda line: line.key or "")
        else:
            lines.sort(key=_dearest_first)
        return CostReport(lines, _together(lines), dict(unpriced))

    def latest(self, limit: int) -> tuple[list[Row], Cursor]:
        """
        Return the records that were stored last, in order of time, and the cursor behind them.

        Each has the columns of its table, and its `type`: run, step, tool_call or feedback.
        """
        rows, cursor = self._rows(Cursor(), limit)
        return rows[-limit:] if limit else [], cursor

    def since(self, cursor: Cursor) -> tuple[list[Row], Cursor]:
        """Return the records stored behind the cursor, in order of time, and the cursor behind them."""
        return self._rows(cursor, -1)

    def _rows(self, cursor: Cursor, limit: int) -> tuple[list[Row], Cursor]:
        """Read what each table has behind the cursor: its latest `limit` rows, or all if that is negative."""
        found: list[Row] = []
        with self._connect() as (connection, whole):
            file = identity(self.path.stat())
            reached = {kind: _newest(connection, table) for kind, table in TABLES.items()}
            # A new file may have the inode of the deleted one, but it has fewer rows.
            same = cursor.file == file and all(reached[kind] >= cursor.last[kind] for kind in TABLES)
            last = cursor.last if same else Cursor().last
            for kind, table in TABLES.items():
                query = (
                    f"SELECT '{kind}' AS type, {whole[table]} FROM {table} "
                    "WHERE rowid > ? ORDER BY rowid DESC LIMIT ?"
                )
                found += _select(connection, query, (last[kind], limit))
        return sorted(found, key=_completed), Cursor(file, reached)

    @contextmanager
    def _connect(self) -> Iterator[tuple[sqlite3.Connection, dict[str, str]]]:
        """
        Open the store for one consistent view of it.

        Returns:
            A connection, and what to select of each table for all columns.
        """
        if not self.path.exists():
            raise NoStore(f"there is no store at {self.path}")
        try:
            with closing(self._open("ro")) as connection:
                connection.execute("BEGIN")
                if self._is_empty(connection):  # its exporter is about to create the tables
                    raise NoStore(f"there is nothing in {self.path} yet")
                check_version(connection, self.path)
                yield connection, {table: self._whole(connection, table) for table in COLUMNS}
        except sqlite3.Error as error:
            raise StoreError(f"cannot read {self.path}: {error}") from error

    def _whole(self, connection: sqlite3.Connection, table: str) -> str:
        """Return what to select of a table; a file that nobody has brought up to date may lack columns."""
        missing = missing_columns(connection, self.path, table)
        if len(missing) == len(COLUMNS[table]):
            raise NoStore(f"{self.path} has no table {table} yet: it is made with the next record")
        return ", ".join(
            f"NULL AS {column.name}" if column in missing else column.name for column in COLUMNS[table]
        )

    def _is_empty(self, connection: sqlite3.Connection) -> bool:
        try:
            return is_empty(connection)
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error):
                raise
        self._recover()
        return is_empty(connection)

    def _recover(self) -> None:
        """
        Roll back what a killed exporter left half-written.

        A read-only connection may not do it ("attempt to write a readonly database"), and nobody could look
        at the store until the next exporter comes.
        """
        with closing(self._open("rw")) as connection:
            is_empty(connection)

    def _open(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode={mode}", uri=True, timeout=_BUSY_TIMEOUT, isolation_level=None
        )
        connection.text_factory = _text
        return connection


# --- queries ----------------------------------------------------------------------------------------------

_ENDED_RUNS = f"""
SELECT run_id, start_ns, end_ns, status_code, status_message, session_id,
       substr(user_prompt, 1, {_PREVIEW}) AS user_prompt
FROM runs WHERE ? IS NULL OR status_code = ? ORDER BY start_ns DESC LIMIT ?
"""

_OPEN_RUNS = """
SELECT run_id FROM (
    SELECT run_id, min(start_ns) AS start_ns FROM steps GROUP BY run_id
    UNION ALL SELECT run_id, min(start_ns) FROM tool_calls GROUP BY run_id
    UNION ALL SELECT run_id, min(time_ns) FROM feedback GROUP BY run_id
)
WHERE run_id NOT IN (SELECT run_id FROM runs) GROUP BY run_id ORDER BY min(start_ns) DESC LIMIT ?
"""
"""Answered from indexes alone: a store of many gigabytes is listed without visiting its rows."""

_BRIEF = {
    "steps": f"start_ns, end_ns, status_code, {', '.join(TOKENS)}, cost_pico, "
    f"substr(prompt, 1, {_PREVIEW}) AS prompt",
    "tool_calls": "start_ns, end_ns, status_code",
    "feedback": "time_ns",
}

_COST_KEYS: dict[GroupBy, str] = {
    "model": "coalesce(nullif(model_used, ''), nullif(model_requested, ''))",
    "day": "strftime('%Y-%m-%d', steps.start_ns / 1000000000, 'unixepoch')",
    "session": "session_id",
    "run": "steps.run_id",
    "status": "cost_status",
}

_UNPRICED = """
SELECT coalesce(cost_status, ''), count(*) FROM steps
WHERE cost_pico IS NULL AND start_ns >= ? GROUP BY 1 ORDER BY 2 DESC, 1
"""


def _costs_query(by: GroupBy) -> str:
    # An index by run or model would have the whole table visited in random order.
    source = "steps LEFT JOIN runs USING (run_id)" if by == "session" else "steps"
    sums = ", ".join(f"exact_sum({column}) AS {column}" for column in ("cost_pico", *TOKENS))
    return f"""
        SELECT {_COST_KEYS[by]} AS "key", {"provider" if by == "model" else "NULL"} AS provider,
               count(*) AS steps, sum(cost_pico IS NULL) AS unpriced_steps, {sums}
        FROM {source} WHERE steps.start_ns >= ? GROUP BY 1, 2
    """


class _ExactSum:
    """An aggregate function: SQLite's own sum() ends in an error beyond 64 bits, and makes floats of text."""

    def __init__(self) -> None:
        self._total: int | None = None

    def step(self, value: int | str | None) -> None:
        if value is not None:
            self._total = (self._total or 0) + int(value)

    def finalize(self) -> str | None:
        return None if self._total is None else str(self._total)


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "replace")  # another program may have written what is not UTF-8


def _select(connection: sqlite3.Connection, query: str, values: tuple[Any, ...]) -> list[Row]:
    cursor = connection.execute(query, values)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _newest(connection: sqlite3.Connection, table: str) -> int:
    (rowid,) = connection.execute(f"SELECT coalesce(max(rowid), 0) FROM {table}").fetchone()
    return int(rowid)


def _find(connection: sqlite3.Connection, prefix: str) -> str | None:
    source = " UNION ".join(
        f"SELECT run_id FROM {table} WHERE run_id BETWEEN ? AND ?" for table in TABLES.values()
    )
    rows = connection.execute(
        f"{source} ORDER BY run_id LIMIT {_MAX_CANDIDATES}", (prefix, prefix + "\U0010ffff") * len(TABLES)
    ).fetchall()
    candidates = [run_id for (run_id,) in rows]
    if len(candidates) > 1 and candidates[0] != prefix:
        raise AmbiguousRun(prefix, candidates)
    return candidates[0] if candidates else None


def _parts(
    connection: sqlite3.Connection, run_id: str, columns: dict[str, str]
) -> tuple[list[Row], list[Row], list[Row]]:
    """Select steps, tool calls and feedback of a run in order of time."""

    def of(table: str, time: str) -> list[Row]:
        query = f"SELECT {columns[table]} FROM {table} WHERE run_id = ? ORDER BY {time}, rowid"
        return _select(connection, query, (run_id,))

    return of("steps", "start_ns"), of("tool_calls", "start_ns"), of("feedback", "time_ns")


# --- from rows to summaries -------------------------------------------------------------------------------


def _summary(run: Row, steps: list[Row], tool_calls: list[Row], feedback: list[Row]) -> RunSummary:
    """Sum up a run; `run` holds nothing but the run_id if it has no row."""
    timed = [run] if "start_ns" in run else steps + tool_calls
    given = [row["time_ns"] for row in feedback]
    prompt = run["user_prompt"] if "user_prompt" in run else next(map(itemgetter("prompt"), steps), None)
    return RunSummary(
        run_id=run["run_id"],
        start_ns=min(row["start_ns"] for row in timed) if timed else min(given),
        end_ns=max(row["end_ns"] for row in timed) if timed else max(given),
        status_code=run.get("status_code"),
        status_message=run.get("status_message"),
        session_id=run.get("session_id"),
        steps=len(steps),
        failed_steps=_failed(steps),
        tool_calls=len(tool_calls),
        failed_tool_calls=_failed(tool_calls),
        **{name: _sum(step[name] for step in steps) for name in TOKENS},
        cost_pico=_sum(step["cost_pico"] for step in steps),
        unpriced_steps=sum(step["cost_pico"] is None for step in steps),
        prompt=prompt and prompt[:_PREVIEW],
    )


def _failed(rows: list[Row]) -> int:
    return sum(row["status_code"] == 2 for row in rows)


def _sum(values: Iterable[int | str | None]) -> int | None:
    # In Python: sum() of SQLite ends in an error where 64 bits do not suffice.
    known = [int(value) for value in values if value is not None]
    return sum(known) if known else None


def _cost_line(row: Row) -> CostLine:
    sums = {name: None if row[name] is None else int(row[name]) for name in ("cost_pico", *TOKENS)}
    return CostLine(**(row | sums))


def _together(lines: list[CostLine]) -> CostLine:
    return CostLine(
        key=None,
        provider=None,
        steps=sum(line.steps for line in lines),
        unpriced_steps=sum(line.unpriced_steps for line in lines),
        **{name: _sum(getattr(line, name) for line in lines) for name in ("cost_pico", *TOKENS)},
    )


def _dearest_first(line: CostLine) -> tuple[int, int, str, str]:
    """Sort by cost, those without one last, then by the number of steps."""
    cost = -1 if line.cost_pico is None else line.cost_pico
    return -cost, -line.steps, line.key or "", line.provider or ""


def _completed(row: Row) -> int:
    """Say when a record was complete: the order in which records are made."""
    time: int = row["time_ns"] if row["type"] == "feedback" else row["end_ns"]
    return time
