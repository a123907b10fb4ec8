"""The local store: what is written, what survives, what is refused, and how it reads back."""

from __future__ import annotations

import os
import random
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import old_store
from picostep._ring import JSONText
from picostep.record import FIELDS
from picostep.sinks import RetryLater
from picostep.sinks.store import StoreSink
from picostep.store.read import AmbiguousRun, Cursor, GroupBy, NoStore, StoreReader
from picostep.store.schema import StoreError
from picostep.store.shapes import row_object
from support import clean_environment, run_python, wait_until

# The columns of layout 1.1 that 1.0 lacks.
ADDED = {"runs": "traceparent", "steps": "traceparent", "tool_calls": "traceparent"}
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DOCS = Path(__file__).parents[2] / "docs" / "reference" / "store.md"
SECOND = 1_000_000_000


def step(run_id: str = "run-1", step_id: str = "step-1", **more: Any) -> dict[str, Any]:
    return {
        "kind": "step",
        "run_id": run_id,
        "step_id": step_id,
        "start_ns": 1 * SECOND,
        "end_ns": 2 * SECOND,
        "status_code": 0,
        "seq": 0,
        **more,
    }


def run(run_id: str = "run-1", **more: Any) -> dict[str, Any]:
    record = step(run_id, **{"kind": "run", "user_prompt": "hello", **more})
    del record["step_id"]
    return record


def tool_call(run_id: str = "run-1", tool_call_id: str = "call-1", **more: Any) -> dict[str, Any]:
    record = step(run_id, **{"kind": "tool_call", "tool_call_id": tool_call_id, **more})
    del record["step_id"]
    return record


def feedback(run_id: str = "run-1", feedback_id: str = "feedback-1", **more: Any) -> dict[str, Any]:
    record = step(run_id, **{"kind": "feedback", "feedback_id": feedback_id, **more})
    del record["step_id"]
    return record


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "directory" / "store.db"


@pytest.fixture
def sink(path: Path) -> Any:
    opened = StoreSink(str(path))
    yield opened
    opened.close()


class TestSchema:
    def test_the_documented_schema_is_the_real_one(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([step()])

        documented = re.search(r"## Tables\n\n```sql\n(.*?);\n```", DOCS.read_text(), re.DOTALL)
        assert documented
        found = [sql for (sql,) in rows(path, "SELECT sql FROM sqlite_master WHERE sql NOT NULL")]
        assert documented[1].split(";\n") == found
        assert rows(path, "PRAGMA user_version") == [(1,)]
        assert rows(path, "SELECT minor FROM picostep_layout") == [(1,)]
        assert re.findall(r"^\| (\d+\.\d+) \|", DOCS.read_text(), re.MULTILINE)[-1] == "1.1"

    def test_the_documented_queries_work(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([step(model_used="m", status_code=2, status_message="why")])

        queries = re.findall(r"```sql\n(SELECT.*?)```", DOCS.read_text(), re.DOTALL)
        assert len(queries) == 2
        assert rows(path, queries[1]) == [("1970-01-01 00:00:01", "run-1", "why")]
        assert rows(path, queries[0]) == []  # only the last day

    def test_lists_are_answered_from_indexes(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([step()])

        for query in (
            "SELECT * FROM steps WHERE run_id = 'a' ORDER BY start_ns",
            "SELECT * FROM steps WHERE coalesce(model_used, model_requested) = 'a' ORDER BY start_ns",
            "SELECT * FROM steps WHERE status_code = 2 ORDER BY start_ns",
            "SELECT * FROM runs ORDER BY start_ns DESC",
            "SELECT * FROM tool_calls WHERE tool_name = 'a' ORDER BY start_ns",
        ):
            (plan,) = rows(path, f"EXPLAIN QUERY PLAN {query}")
            assert "USING INDEX" in plan[3], query


class TestWriting:
    def test_every_field_is_stored(self, sink: StoreSink, path: Path) -> None:
        texts = "prompt response model_requested model_used finish_reason tool_definitions"
        fields: dict[str, Any] = {name: f"the {name}" for name in texts.split()}
        fields |= {"prompt_uncached_tokens": 1, "prompt_cached_tokens": 2, "completion_tokens": 2**53}
        fields |= {"provider": "azure", "service_tier": "batch", "cache_write_tokens": 5}
        fields |= {"cache_write_1h_tokens": 4, "reasoning_tokens": 0, "cost_pico": 2**63 - 1}
        fields |= {"cost_status": "priced", "price_table": "0123456789ab"}
        fields |= {"first_token_ns": 3, "start_ns": 2, "end_ns": 4, "status_code": 7, "shed": True}
        stored_run: dict[str, Any] = {
            "session_id": "s",
            "conversational": False,
            "system_prompt": "sys",
            "response": "r",
        }
        stored_run |= {"full_input": "i", "full_output": "o", "user_prompt": "p", "shortened": True}
        stored_run |= {"withheld": True, "traceparent": TRACEPARENT}
        fields |= {"traceparent": TRACEPARENT}

        assert sink.deliver([step(**fields), run(**stored_run), feedback(score="up", text="good")]) == {}

        reader = StoreReader(str(path))
        detail = reader.run("run-1")
        assert detail is not None
        assert detail.run is not None
        (found,) = detail.steps
        assert {**found, **fields} == found
        assert {**detail.run, **stored_run} == detail.run
        assert detail.feedback == [
            {
                "feedback_id": "feedback-1",
                "run_id": "run-1",
                "time_ns": 2 * SECOND,
                "score": "up",
                "text": "good",
            }
        ]

    def test_a_redelivered_record_replaces_itself(self, sink: StoreSink, path: Path) -> None:
        records = [step(prompt="old", response="gone"), run(), tool_call(), feedback()]
        sink.deliver(records)
        sink.deliver([step(prompt="new"), *records[1:]])

        assert rows(path, "SELECT prompt, response FROM steps") == [("new", None)]
        for table in ("runs", "steps", "tool_calls", "feedback"):
            assert rows(path, f"SELECT count(*) FROM {table}") == [(1,)]

    def test_ids_are_unique_within_their_run_only(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([step("a"), step("b"), tool_call("a"), tool_call("b")])

        assert rows(path, "SELECT count(*) FROM steps") == [(2,)]
        assert rows(path, "SELECT count(*) FROM tool_calls") == [(2,)]

    @pytest.mark.parametrize(
        ("cost", "text"),
        [
            (0, "0"),
            (0.1, "0.1"),
            (1e-7, "1e-07"),
            (2**70, "1180591620717411303424"),
            (Decimal("0.10"), "0.10"),
            (Decimal("1E-30"), "1E-30"),
        ],
    )
    def test_a_cost_is_kept_as_given(self, sink: StoreSink, path: Path, cost: Any, text: str) -> None:
        sink.deliver([step(real_total_cost=cost)])

        assert rows(path, "SELECT real_total_cost, typeof(real_total_cost) FROM steps") == [(text, "text")]

    @pytest.mark.parametrize(
        ("pico", "stored"),
        [
            (0, (0, "integer")),
            (2**63 - 1, (2**63 - 1, "integer")),
            (2**63, ("9223372036854775808", "text")),
            (10**27 - 1, ("9" * 27, "text")),
        ],
    )
    def test_no_cost_is_rounded(
        self, sink: StoreSink, path: Path, pico: int, stored: tuple[int | str, str]
    ) -> None:
        sink.deliver([step(cost_pico=pico)])

        assert rows(path, "SELECT cost_pico, typeof(cost_pico) FROM steps") == [stored]
        assert StoreReader(str(path)).runs(1)[0].cost_pico == pico

    @pytest.mark.parametrize(
        ("given", "stored"),
        [
            ("", ""),
            ("nul\0inside", "nul\0inside"),
            ("lone \ud800 and \udc00.", "lone \ufffd and \ufffd."),
            ("pair \ud83d\ude00", "pair 😀"),
            ("\ufeffbom 日本 😀", "\ufeffbom 日本 😀"),
            (JSONText('[{"role": "user"}]'), '[{"role": "user"}]'),
        ],
    )
    def test_texts(self, sink: StoreSink, path: Path, given: str, stored: str) -> None:
        assert sink.deliver([step(prompt=given)]) == {}

        assert rows(path, "SELECT prompt FROM steps") == [(stored,)]

    def test_metadata_is_merged(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([run(metadata='{"a": "1", "b": "é"}\n{"a": 12345678901234567890}')])

        assert rows(path, "SELECT metadata FROM runs") == [('{"a": 12345678901234567890, "b": "é"}',)]

    def test_a_tool_without_a_name_is_unknown(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([tool_call(), tool_call(tool_call_id="2", tool_name=""), tool_call("b", tool_name="t")])

        found = rows(path, "SELECT tool_name FROM tool_calls ORDER BY tool_name")
        assert found == [("t",), ("unknown",), ("unknown",)]

    def test_one_bad_record_harms_no_other(self, sink: StoreSink, path: Path) -> None:
        no_id = step()
        del no_id["step_id"]

        refused = sink.deliver(
            [
                step(status_code=2**63),
                no_id,
                run(metadata="{not json"),
                {"kind": "x"},
                step(status_code=-(2**63)),
            ]
        )

        assert refused.keys() == {0, 1, 2, 3}
        assert "status_code does not fit" in refused[0]
        assert "step_id is missing" in refused[1]
        assert rows(path, "SELECT status_code FROM steps") == [(-(2**63),)]


class TestFile:
    def test_only_its_owner_can_read_it(self, path: Path) -> None:
        previous = os.umask(0)
        try:
            sink = StoreSink(str(path))
            sink.deliver([step()])
        finally:
            os.umask(previous)
        sink.close()

        assert [stat.S_IMODE(part.stat().st_mode) for part in (path, path.parent, path.parent.parent)] == [
            0o600,
            0o700,
            0o700,
        ]

    def test_a_symlink_is_refused(self, tmp_path: Path) -> None:
        target = tmp_path / "target.db"
        for exists in (False, True):
            if exists:
                target.touch()
            link = tmp_path / f"link-{exists}.db"
            link.symlink_to(target)

            with pytest.raises(RetryLater, match="symbolic link"):
                StoreSink(str(link)).deliver([step()])
        assert target.read_bytes() == b""

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_a_file_of_someone_else_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        path.touch()
        os.chown(path, 12345, 12345)

        with pytest.raises(RetryLater, match="belongs to user 12345"):
            StoreSink(str(path)).deliver([step()])

    @pytest.mark.parametrize("place", ["file/store.db", "file/below/store.db", "."])
    def test_a_path_where_no_file_can_be(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").touch()

        with pytest.raises(RetryLater):
            StoreSink(str(tmp_path / place)).deliver([step()])

    def test_a_file_that_is_no_database_stays_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "notes.txt"
        path.write_text("these are my notes, not a database" * 100)
        before = path.read_bytes()

        with pytest.raises(RetryLater, match="not a database"):
            StoreSink(str(path)).deliver([step()])
        assert path.read_bytes() == before

    def test_a_database_of_another_program_stays_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "theirs.db"
        theirs = sqlite3.connect(path)
        theirs.execute("CREATE TABLE runs (a)")
        theirs.close()

        with pytest.raises(RetryLater, match="not one of picostep's"):
            StoreSink(str(path)).deliver([step()])
        assert rows(path, "SELECT name FROM sqlite_master") == [("runs",)]

    def test_a_deleted_store_is_made_again(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([step()])
        path.unlink()
        sink.deliver([step(step_id="after")])

        assert rows(path, "SELECT step_id FROM steps") == [("after",)]

    def test_it_is_not_in_wal_mode_and_synchronous(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([step()])

        assert rows(path, "PRAGMA journal_mode") == [("delete",)]  # what a file without WAL says
        assert not list(path.parent.glob("*-wal"))


def columns(path: Path) -> dict[str, list[str]]:
    """Names of the columns of each table, in the file's order."""
    return {
        table: [name for (name,) in rows(path, f"SELECT name FROM pragma_table_info('{table}')")]
        for table in ("runs", "steps", "tool_calls", "feedback")
    }


def change(path: Path, *statements: str) -> None:
    """Do to a store what somebody else may have done."""
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def add_columns(*tables: str) -> list[str]:
    return [f"ALTER TABLE {table} ADD COLUMN {ADDED[table]} TEXT" for table in tables]


class TestLayouts:
    """Files of earlier and later layouts, and such that are unfinished."""

    RECORDS = (run(), step(prompt="old"), tool_call(), feedback())

    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        """A store of layout 1.0 with a record of each kind."""
        path = tmp_path / "store.db"
        old_store.make(path, self.RECORDS)
        return path

    @staticmethod
    def check_complete(path: Path, tmp_path: Path) -> None:
        """Check that a store is like a new one, and has what `RECORDS` put in and one more step."""
        new = tmp_path / "new.db"
        fresh = StoreSink(str(new))
        fresh.deliver([step()])
        fresh.close()
        assert columns(path) == columns(new)
        for query in (
            "PRAGMA application_id",
            "PRAGMA user_version",
            "SELECT minor FROM picostep_layout",
            "SELECT name FROM sqlite_master WHERE type = 'index' ORDER BY name",
            "PRAGMA integrity_check",
        ):
            assert rows(path, query) == rows(new, query), query
        assert rows(path, "SELECT step_id, prompt, traceparent FROM steps ORDER BY step_id") == [
            ("new", None, TRACEPARENT),
            ("step-1", "old", None),
        ]
        for table in ("runs", "tool_calls", "feedback"):
            assert rows(path, f"SELECT count(*) FROM {table}") == [(1,)]

    def test_what_was_added_may_be_empty(self) -> None:
        """SQLite adds no other column to rows that are there, and an older exporter could not fill it."""
        assert [each.name for each in FIELDS if each.since and "NOT NULL" in (each.column or "")] == []
        assert {each.name for each in FIELDS if each.since} == {"traceparent"}

    def test_one_of_layout_1_0_is_brought_up_to_date(self, old: Path, tmp_path: Path) -> None:
        sink = StoreSink(str(old))
        sink.deliver([step(step_id="new", traceparent=TRACEPARENT)])
        sink.close()

        self.check_complete(old, tmp_path)

    @pytest.mark.parametrize(
        "done",
        [
            add_columns("runs"),
            add_columns("steps", "tool_calls"),
            add_columns("runs", "steps", "tool_calls"),
            ["CREATE TABLE picostep_layout (minor INTEGER NOT NULL PRIMARY KEY)"],
            [
                "CREATE TABLE picostep_layout (minor INTEGER NOT NULL PRIMARY KEY)",
                "INSERT INTO picostep_layout VALUES (1)",
                *add_columns("tool_calls"),
            ],
            ["PRAGMA user_version = 0"],
            ["PRAGMA user_version = 0", "DROP INDEX steps_by_model", *add_columns("runs")],
        ],
    )
    def test_one_half_brought_up_to_date_is_finished(
        self, old: Path, tmp_path: Path, done: list[str]
    ) -> None:
        change(old, *done)

        sink = StoreSink(str(old))
        sink.deliver([step(step_id="new", traceparent=TRACEPARENT)])
        sink.close()

        self.check_complete(old, tmp_path)

    def test_one_without_version_may_lack_tables(self, old: Path, tmp_path: Path) -> None:
        change(old, "PRAGMA user_version = 0", "DROP TABLE feedback", "DROP TABLE tool_calls")
        with pytest.raises(NoStore, match="no table tool_calls yet"):
            StoreReader(str(old)).runs(1)

        sink = StoreSink(str(old))
        sink.deliver([step(step_id="new", traceparent=TRACEPARENT), tool_call(), feedback()])
        sink.close()

        self.check_complete(old, tmp_path)

    def test_a_number_alone_is_no_store_yet(self, tmp_path: Path) -> None:
        path = tmp_path / "store.db"
        change(path, f"PRAGMA application_id = {old_store.APPLICATION_ID}")
        with pytest.raises(NoStore, match="nothing in"):
            StoreReader(str(path)).runs(1)

        sink = StoreSink(str(path))
        sink.deliver([*self.RECORDS, step(step_id="new", traceparent=TRACEPARENT)])
        sink.close()

        self.check_complete(path, tmp_path)

    def test_a_copy_by_dump_needs_its_number_again(self, old: Path, tmp_path: Path) -> None:
        """As docs/store.md says."""
        copy = tmp_path / "copy.db"
        source, target = sqlite3.connect(old), sqlite3.connect(copy)
        target.executescript("\n".join(source.iterdump()))
        source.close()
        target.close()
        sink = StoreSink(str(copy))
        with pytest.raises(RetryLater, match="not one of picostep's"):
            sink.deliver([step()])
        documented = re.search(r"`(PRAGMA application_id = [^`]+)`", DOCS.read_text())
        assert documented
        change(copy, documented[1])

        sink.deliver([step(step_id="new", traceparent=TRACEPARENT)])
        sink.close()

        self.check_complete(copy, tmp_path)

    def test_readers_read_an_older_one_and_leave_it_alone(self, old: Path) -> None:
        before = old.read_bytes()
        reader = StoreReader(str(old))

        detail = reader.run("run-1")
        latest, _ = reader.latest(10)

        assert detail is not None
        assert detail.run is not None
        assert (detail.run["user_prompt"], detail.run["traceparent"]) == ("hello", None)
        assert (detail.steps[0]["prompt"], detail.steps[0]["traceparent"]) == ("old", None)
        assert len(latest) == 4
        assert [summary.run_id for summary in reader.runs(10)] == ["run-1"]
        assert reader.costs("model").total.steps == 1
        assert old.read_bytes() == before

    def test_the_keys_of_a_row_are_the_same_whatever_the_layout(self, old: Path, tmp_path: Path) -> None:
        newer = tmp_path / "newer.db"
        sink = StoreSink(str(newer))
        sink.deliver(self.RECORDS)
        sink.close()
        change(newer, "ALTER TABLE steps ADD COLUMN of_a_later_layout TEXT")

        found = [
            [list(row_object(row)) for row in StoreReader(str(path)).latest(10)[0]] for path in (old, newer)
        ]

        assert found[0] == found[1]
        assert ["traceparent" in keys for keys in found[0]] == [True, True, True, False]

    def test_programs_of_layout_1_0_go_on(self, old: Path) -> None:
        """One that has the file open leaves the new column empty; one that opens it later fills it, too."""
        before, later, sink = (
            old_store.StoreSink(str(old)),
            old_store.StoreSink(str(old)),
            StoreSink(str(old)),
        )
        before.deliver([step(step_id="a", traceparent=TRACEPARENT)])
        sink.deliver([step(step_id="b", traceparent=TRACEPARENT)])
        before.deliver([step(step_id="c", traceparent=TRACEPARENT)])
        later.deliver([step(step_id="d", traceparent=TRACEPARENT)])
        sink.deliver([step(step_id="e", traceparent=TRACEPARENT)])
        for writer in (before, later, sink):
            writer.close()

        assert rows(old, "SELECT step_id FROM steps WHERE traceparent IS NOT NULL ORDER BY step_id") == [
            ("b",),
            ("d",),
            ("e",),
        ]
        assert rows(old, "SELECT count(*) FROM steps") == [(6,)]

    def test_several_bring_it_up_to_date_at_once(self, old: Path, tmp_path: Path) -> None:
        sinks = [StoreSink(str(old)) for _ in range(4)]
        barrier = threading.Barrier(len(sinks))
        problems: list[BaseException] = []

        def deliver(sink: StoreSink) -> None:
            barrier.wait(10)
            for _ in range(20):
                try:
                    sink.deliver([step(step_id="new", traceparent=TRACEPARENT)])
                    return
                except RetryLater as error:  # as an exporter does
                    problems.append(error)

        threads = [threading.Thread(target=deliver, args=(sink,)) for sink in sinks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for sink in sinks:
            sink.close()

        assert {str(problem) for problem in problems} <= {"store: database is locked"}
        self.check_complete(old, tmp_path)

    def test_an_older_file_may_take_the_place_of_the_one_that_is_open(
        self, sink: StoreSink, path: Path, old: Path, tmp_path: Path
    ) -> None:
        sink.deliver([step()])
        path.write_bytes(old.read_bytes())  # in place: the same file, as far as names and numbers tell
        with pytest.raises(RetryLater, match="traceparent"):
            sink.deliver([step(step_id="new", traceparent=TRACEPARENT)])

        assert sink.deliver([step(step_id="new", traceparent=TRACEPARENT)]) == {}

        self.check_complete(path, tmp_path)

    def test_one_of_a_later_layout_is_written(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([step()])
        sink.close()
        change(
            path,
            "INSERT INTO picostep_layout VALUES (7)",
            "ALTER TABLE steps ADD COLUMN parent_id TEXT",
            "ALTER TABLE steps ADD COLUMN attempts INTEGER NOT NULL DEFAULT 1",
            "CREATE TABLE events (event_id TEXT NOT NULL)",
        )

        assert sink.deliver([step(step_id="2", parent_id="p", attempts=3)]) == {}

        assert rows(path, "SELECT step_id, parent_id, attempts FROM steps") == [
            ("step-1", None, 1),
            ("2", None, 1),
        ]
        assert rows(path, "SELECT minor FROM picostep_layout") == [(1,), (7,)]
        assert len(StoreReader(str(path)).latest(10)[0]) == 2

    def test_one_whose_rows_cannot_be_filled_is_refused_and_can_be_read(
        self, sink: StoreSink, path: Path
    ) -> None:
        sink.deliver([step()])
        sink.close()
        change(
            path,
            "INSERT INTO picostep_layout VALUES (7)",
            "DROP TABLE feedback",
            "CREATE TABLE feedback (feedback_id TEXT NOT NULL PRIMARY KEY, run_id TEXT NOT NULL, "
            "time_ns INTEGER NOT NULL, score TEXT, text TEXT, channel TEXT NOT NULL)",
        )
        before = path.read_bytes()

        with pytest.raises(
            RetryLater, match=r"layout 1\.7.*knows 1\.1.*fill feedback\.channel: upgrade picostep"
        ):
            sink.deliver([step(step_id="2")])
        assert path.read_bytes() == before
        assert StoreReader(str(path)).runs(1)[0].steps == 1

    @pytest.mark.parametrize("version", [2, 99, -1])
    def test_one_of_another_version_is_refused_by_name(
        self, sink: StoreSink, path: Path, version: int
    ) -> None:
        sink.deliver([step()])
        sink.close()
        change(path, f"PRAGMA user_version = {version}")
        before = path.read_bytes()

        with pytest.raises(
            RetryLater, match=f"schema version {version} .*upgrade picostep or choose another"
        ):
            sink.deliver([step()])
        with pytest.raises(StoreError, match=f"schema version {version} .*upgrade picostep"):
            StoreReader(str(path)).runs(1)
        assert path.read_bytes() == before

    def test_a_table_that_is_not_as_we_make_it_is_refused(self, old: Path) -> None:
        change(old, "ALTER TABLE steps RENAME COLUMN end_ns TO ended")
        before = old.read_bytes()

        with pytest.raises(RetryLater, match="steps has no column end_ns"):
            StoreSink(str(old)).deliver([step()])
        with pytest.raises(StoreError, match="steps has no column end_ns"):
            StoreReader(str(old)).runs(1)
        assert old.read_bytes() == before

    def test_what_its_owner_dropped(self, sink: StoreSink, path: Path) -> None:
        """A table is made again, as no record could be stored without it; an index stays away."""
        sink.deliver([step()])
        sink.close()
        change(path, "DROP TABLE feedback", "DROP INDEX steps_by_model")

        assert sink.deliver([feedback()]) == {}

        assert rows(path, "SELECT feedback_id FROM feedback") == [("feedback-1",)]
        indexes = rows(path, "SELECT name FROM sqlite_master WHERE type = 'index'")
        assert ("feedback_by_time",) in indexes
        assert ("steps_by_model",) not in indexes


def test_the_store_knows_neither_sinks_nor_the_command_line() -> None:
    code = (
        "import sys, picostep.store.read, picostep.store.write, picostep.store.shapes; "
        "print([name for name in sys.modules if name.startswith(('picostep.sinks', 'picostep.cli'))])"
    )

    assert run_python(code).stdout.strip() == "[]"


class TestTrouble:
    def test_locked(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([step()])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")

        with pytest.raises(RetryLater, match="database is locked"):
            sink.deliver([step(step_id="2")])
        other.close()
        assert sink.deliver([step(step_id="2")]) == {}
        assert rows(path, "SELECT count(*) FROM steps") == [(2,)]

    def test_a_full_disk_loses_nothing_that_was_there(self, path: Path) -> None:
        code = """
import resource, sys
from picostep.record import FIELDS
from picostep.sinks import RetryLater
from picostep.sinks.store import StoreSink
step = dict(kind="step", run_id="r", start_ns=1, end_ns=2, status_code=0, seq=0, prompt="x" * 10_000)
sink = StoreSink(sys.argv[1])
sink.deliver([dict(step, step_id="kept")])
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
big = [dict(step, step_id=str(number)) for number in range(100)]
try:
    sink.deliver(big)
except RetryLater as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if len(sys.argv) > 2:
    sink.deliver(big)
"""
        first = run_python(code, args=(str(path),))
        assert re.match("store: .*(full|disk I/O error)", first.stdout)
        assert rows(path, "SELECT step_id FROM steps") == [("kept",)]
        assert rows(path, "PRAGMA integrity_check") == [("ok",)]

        run_python(code, args=(str(path), "retry"))
        assert rows(path, "SELECT count(*) FROM steps") == [(101,)]

    def test_a_killed_writer_leaves_a_store_that_can_be_read(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([run(), step()])
        sink.close()
        killed = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = TRUNCATE")
connection.execute("PRAGMA cache_size = 2")  # so that pages reach the file before the commit
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE runs SET user_prompt = 'half-written'")
for number in range(1000):
    connection.execute("INSERT INTO feedback VALUES (?, 'run-1', 1, NULL, ?)", (str(number), "x" * 1000))
os.kill(os.getpid(), signal.SIGKILL)
"""
        assert run_python(killed, args=(str(path),), check=False).returncode == -signal.SIGKILL
        assert (path.parent / f"{path.name}-journal").stat().st_size > 0

        detail = StoreReader(str(path)).run("run-1")

        assert detail is not None
        assert detail.run is not None
        assert detail.run["user_prompt"] == "hello"
        assert detail.feedback == []

    @pytest.mark.slow
    def test_readers_and_two_writers_at_once(self, sink: StoreSink, path: Path) -> None:
        """Every batch is seen whole or not at all, and none is lost."""
        batches, size = 40, 20
        writer = f"""
import sys
from picostep.record import FIELDS
from picostep.sinks import RetryLater
from picostep.sinks.store import StoreSink
sink = StoreSink(sys.argv[1])
for batch in range({batches}):
    records = [
        dict(kind="step", run_id=f"{{sys.argv[2]}}-{{batch}}", step_id=str(number), start_ns=1, end_ns=2,
             status_code=0, seq=0, prompt="x" * 3000)
        for number in range({size})
    ]
    while True:
        try:
            sink.deliver(records)
            break
        except RetryLater as error:
            assert "locked" in str(error), error
"""
        sink.deliver([run("first")])
        environment = clean_environment()
        writers = [
            subprocess.Popen([sys.executable, "-c", writer, str(path), name], env=environment)
            for name in ("a", "b")
        ]
        reader = StoreReader(str(path))
        seen = 0
        while any(process.poll() is None for process in writers):
            summaries = reader.runs(1000)
            assert {summary.steps for summary in summaries} <= {0, size}
            assert len(summaries) >= seen
            seen = len(summaries)

        assert [process.returncode for process in writers] == [0, 0]
        assert len(reader.runs(1000)) == 2 * batches + 1

    def test_closing_from_another_thread(self, sink: StoreSink) -> None:
        sink.deliver([step()])
        thread = threading.Thread(target=sink.close)
        thread.start()
        thread.join(100)

        assert sink.deliver([step()]) == {}


class TestReading:
    def test_a_run_is_summed_up(self, sink: StoreSink, path: Path) -> None:
        sink.deliver(
            [
                run(start_ns=1, end_ns=10, session_id="s", status_code=2, status_message="bad"),
                step(prompt_uncached_tokens=5, completion_tokens=7, real_total_cost=0.1, cost_pico=10**11),
                step(step_id="2", prompt_cached_tokens=3, cost_pico=2**63, status_code=2),
                step(step_id="3", prompt_uncached_tokens=2**62, completion_tokens=2**62, cost_pico=2**62),
                step(step_id="4", prompt_uncached_tokens=2**62, completion_tokens=2**62, cost_pico=2**62),
                step(step_id="5", cache_write_tokens=11, reasoning_tokens=13, cost_status="unknown_model"),
                tool_call(status_code=2),
                tool_call(tool_call_id="2"),
            ]
        )

        (summary,) = StoreReader(str(path)).runs(10)

        assert (summary.run_id, summary.start_ns, summary.end_ns) == ("run-1", 1, 10)
        assert (summary.status_code, summary.status_message, summary.session_id) == (2, "bad", "s")
        assert (summary.steps, summary.failed_steps) == (5, 1)
        assert (summary.tool_calls, summary.failed_tool_calls) == (2, 1)
        assert summary.prompt_uncached_tokens == 2**63 + 5
        assert (summary.prompt_cached_tokens, summary.completion_tokens) == (3, 2**63 + 7)
        assert (summary.cache_write_tokens, summary.reasoning_tokens) == (11, 13)
        assert (summary.cost_pico, summary.unpriced_steps) == (2**64 + 10**11, 1)
        assert summary.prompt == "hello"

    def test_what_nobody_told_is_not_zero(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([run(), step()])

        (summary,) = StoreReader(str(path)).runs(10)

        assert summary.prompt_uncached_tokens is None
        assert summary.completion_tokens is None
        assert summary.cache_write_tokens is None
        assert summary.reasoning_tokens is None
        assert (summary.cost_pico, summary.unpriced_steps) == (None, 1)

    def test_runs_without_a_row_are_open(self, sink: StoreSink, path: Path) -> None:
        sink.deliver(
            [
                step("of steps", start_ns=5, end_ns=6, prompt="first prompt"),
                step("of steps", "2", start_ns=7, end_ns=20),
                tool_call("of tools", start_ns=8, end_ns=9),
                feedback("of feedback", end_ns=3),
            ]
        )
        reader = StoreReader(str(path))

        found = {summary.run_id: summary for summary in reader.runs(10)}

        assert list(found) == ["of tools", "of steps", "of feedback"]  # the latest first
        assert {summary.status_code for summary in found.values()} == {None}
        assert (found["of steps"].start_ns, found["of steps"].end_ns) == (5, 20)
        assert found["of steps"].prompt == "first prompt"
        assert (found["of feedback"].start_ns, found["of feedback"].end_ns) == (3, 3)
        assert [summary.run_id for summary in reader.runs(10, ended=False)] == list(found)
        assert reader.runs(10, open=False) == []

    def test_limit_and_status(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([run(str(number), start_ns=number, status_code=2 * (number % 2)) for number in range(6)])
        sink.deliver([step("open", start_ns=3)])
        reader = StoreReader(str(path))

        assert [found.run_id for found in reader.runs(2)] == ["5", "4"]
        assert [found.run_id for found in reader.runs(9, status=2, open=False)] == ["5", "3", "1"]
        assert len(reader.runs(9)) == 7

    def test_the_beginning_of_an_id_is_enough(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([run("abc"), step("abcd"), run("other"), step("%_"), step("é\ufffdx")])
        reader = StoreReader(str(path))

        def found(prefix: str) -> str | None:
            detail = reader.run(prefix)
            return detail.summary.run_id if detail else None

        assert found("o") == "other"
        assert found("abc") == "abc"  # whole, though another begins with it
        assert found("abcd") == "abcd"
        assert found("%") == "%_"
        assert found("é\udcff") == "é\ufffdx"  # an argument that was no UTF-8
        assert found("O") is None
        assert found("abcde") is None
        with pytest.raises(AmbiguousRun) as caught:
            reader.run("ab")
        assert caught.value.candidates == ["abc", "abcd"]

    def test_a_timeline_is_in_order_of_time(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([step(step_id=str(start), start_ns=start) for start in (3, 1, 2)])

        detail = StoreReader(str(path)).run("run-1")

        assert detail is not None
        assert [row["step_id"] for row in detail.steps] == ["1", "2", "3"]
        assert detail.run is None

    def test_following(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([step(step_id=str(number), end_ns=number) for number in range(5)])
        sink.deliver([run(end_ns=10)])
        reader = StoreReader(str(path))

        latest, cursor = reader.latest(3)
        assert [row.get("step_id", row["type"]) for row in latest] == ["3", "4", "run"]
        assert reader.since(cursor) == ([], cursor)

        sink.deliver([feedback(), tool_call(), step(step_id="4", prompt="delivered again")])
        rows_since, cursor = reader.since(cursor)
        assert sorted(row["type"] for row in rows_since) == ["feedback", "step", "tool_call"]

        path.unlink()
        with pytest.raises(NoStore):
            reader.since(cursor)
        sink.deliver([step(step_id="new")])
        again, cursor = reader.since(cursor)
        assert [row["step_id"] for row in again] == ["new"]

    def test_from_the_first_row(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([step(), run()])

        found, _ = StoreReader(str(path)).since(Cursor())

        assert {row["type"] for row in found} == {"step", "run"}
        assert StoreReader(str(path)).latest(0)[0] == []

    def test_missing_empty_and_damaged(self, tmp_path: Path) -> None:
        with pytest.raises(NoStore, match="no store at"):
            StoreReader(str(tmp_path / "none.db")).runs(1)
        (tmp_path / "empty.db").touch()
        with pytest.raises(NoStore, match="nothing in"):
            StoreReader(str(tmp_path / "empty.db")).runs(1)
        (tmp_path / "damaged.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
        with pytest.raises(StoreError, match="cannot read"):
            StoreReader(str(tmp_path / "damaged.db")).runs(1)

    def test_reading_leaves_the_file_alone(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([run(), step()])
        sink.close()
        before = path.read_bytes(), sorted(path.parent.iterdir())
        reader = StoreReader(str(path))

        reader.runs(10)
        reader.run("run-1")
        reader.latest(10)

        assert (path.read_bytes(), sorted(path.parent.iterdir())) == before

    def test_it_waits_for_a_writer(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([run()])
        writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        writer.execute("BEGIN EXCLUSIVE")
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(StoreReader(str(path)).runs(1)))
        thread.start()
        writer.execute("UPDATE runs SET user_prompt = 'changed'")
        writer.execute("COMMIT")
        wait_until(lambda: found, 10, "the reader's answer")
        thread.join()
        writer.close()

        assert found[0][0].prompt == "changed"


class TestCosts:
    """Sums of costs over a store, by what they are grouped by."""

    DAY = 86_400 * SECOND

    @pytest.fixture
    def reader(self, sink: StoreSink, path: Path) -> StoreReader:
        sink.deliver(
            [
                run("run-1", session_id="first"),
                run("run-2", session_id="second"),
                run("run-3"),
                step("run-1", "1", model_requested="a", model_used="b", cost_pico=7, cost_status="priced"),
                step("run-1", "2", model_requested="b", cost_pico=2**63, cost_status="user"),
                step("run-2", "1", model_used="b", provider="azure", cost_pico=3, cost_status="priced"),
                step("run-2", "2", start_ns=self.DAY - 1, model_used="", model_requested="c"),
                step("run-3", "1", start_ns=self.DAY, model_used="c", cost_status="unknown_model"),
                step("open", "1", start_ns=3 * self.DAY, cost_status="no_usage", completion_tokens=2),
            ]
        )
        return StoreReader(str(path))

    @pytest.mark.parametrize(
        ("by", "lines"),
        [
            (
                "model",
                [
                    ("b", None, 2, 0, 2**63 + 7),
                    ("b", "azure", 1, 0, 3),
                    ("c", None, 2, 2, None),
                    (None, None, 1, 1, None),
                ],
            ),
            (
                "day",
                [
                    ("1970-01-01", None, 4, 1, 2**63 + 10),
                    ("1970-01-02", None, 1, 1, None),
                    ("1970-01-04", None, 1, 1, None),
                ],
            ),
            (
                "session",
                [
                    ("first", None, 2, 0, 2**63 + 7),
                    ("second", None, 2, 1, 3),
                    (None, None, 2, 2, None),
                ],
            ),
            (
                "run",
                [
                    ("run-1", None, 2, 0, 2**63 + 7),
                    ("run-2", None, 2, 1, 3),
                    ("open", None, 1, 1, None),
                    ("run-3", None, 1, 1, None),
                ],
            ),
            (
                "status",
                [
                    ("user", None, 1, 0, 2**63),
                    ("priced", None, 2, 0, 10),
                    (None, None, 1, 1, None),
                    ("no_usage", None, 1, 1, None),
                    ("unknown_model", None, 1, 1, None),
                ],
            ),
        ],
    )
    def test_groups(self, reader: StoreReader, by: GroupBy, lines: list[tuple[Any, ...]]) -> None:
        report = reader.costs(by)

        assert [
            (line.key, line.provider, line.steps, line.unpriced_steps, line.cost_pico)
            for line in report.lines
        ] == lines
        assert (report.total.steps, report.total.unpriced_steps, report.total.cost_pico) == (6, 3, 2**63 + 10)
        assert report.total.completion_tokens == 2
        assert report.total.prompt_uncached_tokens is None
        assert report.unpriced == {"": 1, "no_usage": 1, "unknown_model": 1}

    def test_since(self, reader: StoreReader) -> None:
        report = reader.costs("run", self.DAY)

        assert [line.key for line in report.lines] == ["open", "run-3"]
        assert report.unpriced == {"no_usage": 1, "unknown_model": 1}
        assert reader.costs("day", 3 * self.DAY + 1).lines == []

    def test_sums_are_exact_and_end_nowhere(self, sink: StoreSink, path: Path) -> None:
        generator = random.Random(20_261_123)
        records, cost, tokens = [], 0, 0
        for number in range(3000):
            pico = generator.randrange(2 ** generator.randrange(1, 90))
            count = generator.randrange(2**53)
            records.append(step(step_id=str(number), cost_pico=pico, prompt_cached_tokens=count))
            cost, tokens = cost + pico, tokens + count
        assert cost > 2**89
        assert tokens > 2**63
        sink.deliver(records)
        reader = StoreReader(str(path))

        total = reader.costs("model").total
        assert (total.cost_pico, total.prompt_cached_tokens) == (cost, tokens)
        assert reader.runs(1)[0].cost_pico == cost

    def test_an_empty_store_has_no_costs(self, sink: StoreSink, path: Path) -> None:
        sink.deliver([run()])

        report = StoreReader(str(path)).costs("model")
        assert (report.lines, report.unpriced) == ([], {})
        assert (report.total.steps, report.total.cost_pico) == (0, None)
