"""The command line: what it prints, in text and JSON, and how it fails."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from picostep.cli import text
from picostep.cli.commands import picostep
from picostep.sinks.store import StoreSink
from support import clean_environment, run_python, wait_until
from test_store import feedback, run, step, tool_call

NS = 1_000_000
NOW = 1_795_000_000 * 1000 * NS
RUN_ID = "0b2c9a1e-5d3f-4a77-9f00-123456789abc"
HOSTILE = "\x1b]0;title\x07\x1b[31m[red]markup[/red]\x9b2J\u202eevil\r\n\x00\x08 :smile: [link=http://e]x"
FORBIDDEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture
def store(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> Path:
    """A store with an agent's run, a failed one and an open one; PICOSTEP_TO leads to it."""
    path = tmp_path / "store.db"
    sink = StoreSink(str(path))
    sink.deliver(
        [
            run(
                RUN_ID,
                start_ns=NOW,
                end_ns=NOW + 2345 * NS,
                session_id="trip",
                metadata='{"user": "ada"}',
                user_prompt="Plan a weekend\nin Lisbon",
                response="Day 1",
            ),
            step(
                RUN_ID,
                "s1",
                start_ns=NOW + NS,
                end_ns=NOW + 812 * NS,
                first_token_ns=NOW + 131 * NS,
                model_requested="gpt-x",
                prompt="which city?",
                response="Lisbon",
                finish_reason="stop",
                prompt_uncached_tokens=262,
                prompt_cached_tokens=2048,
                completion_tokens=56,
            ),
            tool_call(
                RUN_ID,
                "t1",
                start_ns=NOW + 900 * NS,
                end_ns=NOW + 912 * NS,
                tool_name="weather",
                status_code=2,
                status_message="503",
                args='{"city": "Lisbon"}',
            ),
            feedback(RUN_ID, "f1", end_ns=NOW + 3000 * NS, score="thumbs_up", text="nice"),
            run(
                "failed-run",
                start_ns=NOW - 5000 * NS,
                end_ns=NOW - 4000 * NS,
                status_code=2,
                status_message="why",
            ),
            step("open-run", "s1", start_ns=NOW - 9000 * NS, end_ns=NOW - 8000 * NS, prompt="still going"),
        ]
    )
    sink.close()
    clean_env.setenv("PICOSTEP_TO", f"store:{path}")
    clean_env.setenv("TZ", "UTC")
    time.tzset()
    return path


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner(env=environment).invoke(picostep, list(arguments), prog_name="picostep")


def ok(*arguments: str, **environment: str) -> str:
    result = invoke(*arguments, **environment)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout


def loaded(*arguments: str) -> Any:
    return json.loads(ok(*arguments, "--json"))


def command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "picostep", *arguments],
        # Unbuffered, Python would not notice that a pipe took a part only.
        env=clean_environment(PYTHONUNBUFFERED="", **environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestRuns:
    def test_table(self, store: Path) -> None:
        _, header, *lines = ok("runs").splitlines()

        assert header.split() == [
            "RUN",
            "STARTED",
            "STATUS",
            "STEPS",
            "TOOLS",
            "in(cached)/out",
            "TIME",
            "ERR",
            "PROMPT",
        ]
        assert [re.split("  +", line) for line in lines] == [
            [
                "0b2c9a1e",
                "2026-11-18 11:06",
                "ok",
                "1",
                "1",
                "2310(2048)/56",
                "2.35 s",
                "1",
                "Plan a weekend in Lisbon",
            ],
            ["failed-run", "2026-11-18 11:06", "error", "0", "0", "-", "1.00 s", "0", "hello"],
            ["open-run", "2026-11-18 11:06", "open", "1", "0", "-", "1.00 s", "0", "still going"],
        ]

    def test_json(self, store: Path) -> None:
        found = loaded("runs")

        assert found["store"] == str(store)
        assert [(entry["run_id"], entry["status"]) for entry in found["runs"]] == [
            (RUN_ID, "ok"),
            ("failed-run", "error"),
            ("open-run", "open"),
        ]
        assert found["runs"][0] == {
            "run_id": RUN_ID,
            "start_time": "2026-11-18T11:06:40.000000000Z",
            "end_time": "2026-11-18T11:06:42.345000000Z",
            "duration_ms": 2345.0,
            "status": "ok",
            "status_code": 0,
            "status_message": None,
            "session_id": "trip",
            "steps": 1,
            "failed_steps": 0,
            "tool_calls": 1,
            "failed_tool_calls": 1,
            "prompt_uncached_tokens": 262,
            "prompt_cached_tokens": 2048,
            "completion_tokens": 56,
            "real_total_cost": None,
            "prompt": "Plan a weekend\nin Lisbon",
        }

    def test_limit_and_status(self, store: Path) -> None:
        assert [entry["run_id"] for entry in loaded("runs", "-n", "1")["runs"]] == [RUN_ID]
        assert [entry["run_id"] for entry in loaded("runs", "--status", "error")["runs"]] == ["failed-run"]
        assert [entry["run_id"] for entry in loaded("runs", "--status", "open")["runs"]] == ["open-run"]
        assert [entry["run_id"] for entry in loaded("runs", "--status", "ok")["runs"]] == [RUN_ID]

    def test_none_of_that_status(self, store: Path) -> None:
        os.remove(store)
        sink = StoreSink(str(store))
        sink.deliver([run()])
        sink.close()

        assert ok("runs", "--status", "open") == f"No such runs in {store}.\n"
        assert loaded("runs", "--status", "open") == {"store": str(store), "runs": []}

    def test_a_cost_that_the_program_gave(self, store: Path) -> None:
        sink = StoreSink(str(store))
        sink.deliver([step(RUN_ID, "s2", real_total_cost=0.1), step(RUN_ID, "s3", real_total_cost=0.2)])
        sink.close()

        assert "  $0.30  " in ok("runs")
        assert loaded("runs")["runs"][0]["real_total_cost"] == "0.3"
        assert "$0.30, as the program gave it" in ok("show", "0b")

    @pytest.mark.parametrize("columns", [1, 10, 20, 40, 60, 80, 100])
    def test_no_line_is_wider_than_the_terminal(self, store: Path, columns: int) -> None:
        output = ok("runs", COLUMNS=str(columns))

        assert max(len(line) for line in output.splitlines()) <= columns
        if columns >= 40:
            assert "Plan a" in output
            assert "0b2c9a1e" in output

    def test_ids_are_shown_as_long_as_they_must_be(self, store: Path) -> None:
        sink = StoreSink(str(store))
        common = "conversation-of-the-year-number-"
        other = RUN_ID[:-1] + "d"
        sink.deliver([run(f"{common}{number}") for number in range(2)] + [run(other)])
        sink.close()

        shown = {line.split()[0] for line in ok("runs", COLUMNS="150").splitlines()[2:]}
        assert shown >= {f"{common}0", f"{common}1", RUN_ID, other}


class TestShow:
    def test_text(self, store: Path) -> None:
        lines = ok("show", "0b2c").splitlines()

        assert lines[0] == f"Run {RUN_ID}"
        assert lines[1:7] == [
            "  status    ok",
            "  started   2026-11-18 11:06:40 +0000, took 2.35 s",
            "  tokens    2310(2048)/56  in(cached)/out",
            "  session   trip",
            "  metadata  user=ada",
            "    > Plan a weekend in Lisbon",
        ]
        timeline = lines[lines.index("Timeline") + 1 :]
        assert [re.split("  +", line.strip()) for line in timeline] == [
            ["+1 ms", "811 ms", "step gpt-x", "ok", "2310(2048)/56", "first token 130 ms", "stop"],
            ["> which city?"],
            ["< Lisbon"],
            ["+900 ms", "12 ms", "tool weather", "error"],
            ['> {"city": "Lisbon"}'],
            ["! 503"],
            [""],
            ["Feedback"],
            ["thumbs_up", "nice"],
        ]

    def test_json(self, store: Path) -> None:
        found = loaded("show", RUN_ID)

        assert found.keys() == {"store", "run", "steps", "tool_calls", "feedback"}
        assert found["run"]["metadata"] == {"user": "ada"}
        assert found["run"]["response"] == "Day 1"
        assert found["run"]["shed"] is False
        (only,) = found["steps"]
        assert only["first_token_time"] == "2026-11-18T11:06:40.131000000Z"
        assert only["duration_ms"] == 811.0
        assert found["feedback"][0]["time"] == "2026-11-18T11:06:43.000000000Z"

    def test_full(self, store: Path) -> None:
        long = "\n".join(f"line {number} of the answer" for number in range(500))
        sink = StoreSink(str(store))
        sink.deliver([step("long", prompt=long, response="x" * 1_000_000, tool_definitions="[1]")])
        sink.close()

        short = ok("show", "long")
        full = ok("show", "long", "--full")

        assert len(short) < 1500
        assert "line 499" not in short
        for number in (0, 250, 499):
            assert f"\n      line {number} of the answer\n" in full
        assert full.count("x") >= 1_000_000
        assert "tool definitions" in full

    def test_an_open_run(self, store: Path) -> None:
        assert "open (its end was not recorded" in ok("show", "open-run")
        assert loaded("show", "open-run")["run"]["status"] == "open"

    def test_provider_messages_are_readable(self, store: Path) -> None:
        messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "日本?"}]
        sink = StoreSink(str(store))
        sink.deliver([step("json", prompt=json.dumps(messages), response='{"a": "\\u65e5"}')])
        sink.close()

        output = ok("show", "json")
        assert "> user: 日本?" in output
        assert '< {"a": "日"}' in output

    def test_what_was_lost_is_said(self, store: Path) -> None:
        sink = StoreSink(str(store))
        sink.deliver([run("lossy", shed=True), step("lossy", shortened=True)])
        sink.close()

        output = ok("show", "lossy")
        assert "texts left out: the ring was full" in output
        assert "a text was cut: too long for the ring" in output


class TestTail:
    def test_text(self, store: Path) -> None:
        lines = ok("tail", "-n", "3").splitlines()

        assert [line.split()[2:4] for line in lines] == [
            ["tool_call", "0b2c9a1e"],
            ["run", "0b2c9a1e"],
            ["feedback", "0b2c9a1e"],
        ]

    def test_json_lines(self, store: Path) -> None:
        records = [json.loads(line) for line in ok("tail", "--json").splitlines()]

        assert [record["type"] for record in records] == [
            "step",
            "run",
            "step",
            "tool_call",
            "run",
            "feedback",
        ]
        assert records[3]["tool_name"] == "weather"

    def test_following_from_before_there_is_a_store(
        self, tmp_path: Path, clean_env: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "later.db"
        process = command("tail", "-f", "--json", "--store", str(path))
        assert process.stderr is not None
        assert process.stdout is not None
        try:
            assert process.stderr.readline() == f"Waiting for {path} …\n"
            sink = StoreSink(str(path))
            for number in range(3):
                sink.deliver([step(step_id=str(number))])
                assert json.loads(process.stdout.readline())["step_id"] == str(number)
            path.unlink()
            sink.deliver([step(step_id="in a new store")])
            assert json.loads(process.stdout.readline())["step_id"] == "in a new store"
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=10)
        assert process.returncode == 130
        assert rest == ("", "")


class TestHostileTexts:
    """Texts come from models and their users; a terminal must not act on them."""

    @pytest.fixture
    def hostile(self, store: Path) -> Path:
        sink = StoreSink(str(store))
        texts = dict.fromkeys(
            ("prompt", "response", "model_used", "finish_reason", "tool_definitions"), HOSTILE
        )
        of_run = dict.fromkeys(
            ("user_prompt", "system_prompt", "response", "session_id", "full_input"), HOSTILE
        )
        sink.deliver(
            [
                run(f"h{HOSTILE}", **of_run, metadata=json.dumps({HOSTILE: HOSTILE}), status_message=HOSTILE),
                step(f"h{HOSTILE}", HOSTILE, **texts, status_message=HOSTILE, real_total_cost=HOSTILE and 1),
                tool_call(f"h{HOSTILE}", HOSTILE, tool_name=HOSTILE, args=HOSTILE, result=HOSTILE),
                feedback(f"h{HOSTILE}", HOSTILE, score=HOSTILE, text=HOSTILE),
            ]
        )
        sink.close()
        return store

    @pytest.mark.parametrize(
        "arguments",
        [["runs"], ["show", "h"], ["show", "h", "--full"], ["tail"], ["show", f"nope{HOSTILE[:9]}"]],
    )
    @pytest.mark.parametrize("more", [[], ["--json"]])
    def test_nothing_reaches_the_terminal_raw(
        self, hostile: Path, arguments: list[str], more: list[str]
    ) -> None:
        output = invoke(*arguments, *more).output

        assert output
        assert not FORBIDDEN.search(output)

    def test_it_is_shown_and_not_interpreted(self, hostile: Path) -> None:
        output = ok("show", "h", "--full")

        assert "\\x1b]0;title\\x07\\x1b[31m[red]markup[/red]\\x9b2J\\u202eevil" in output
        assert ":smile: [link=http://e]x" in output

    def test_on_a_terminal_only_our_own_colours(self, hostile: Path) -> None:
        output = ok("show", "h", "--full", FORCE_COLOR="1", TERM="xterm-256color", COLUMNS="100")

        assert "\x1b[" in output
        assert not FORBIDDEN.search(re.sub(r"\x1b\[[0-9;]*m", "", output))
        assert "\x1b[31m[red]" not in output

    def test_no_colours_where_they_are_not_wanted(self, store: Path) -> None:
        assert "\x1b" not in ok("runs")
        coloured = ok("runs", FORCE_COLOR="1", NO_COLOR="1", TERM="xterm-256color")
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]", coloured)


class TestFailures:
    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["show", "nobody"], 1, "no run 'nobody'"),
            (["show", ""], 1, "beginning of more than one run id"),
            (["runs", "--store", "{tmp}/none.db"], 1, "there is no store at {tmp}/none.db"),
            (["tail", "--store", "{tmp}/none.db"], 1, "there is no store at {tmp}/none.db"),
            (["runs", "--store", "{tmp}/empty.db"], 1, "nothing in {tmp}/empty.db yet"),
            (["runs", "--bogus"], 2, "No such option"),
            (["bogus"], 2, "No such command"),
            (["runs", "-n", "0"], 2, "not in the range"),
            (["show"], 2, "Missing argument"),
            (["export", "--to", "bogus"], 2, "no sink 'bogus'"),
            (["export", "--to", "tcc"], 2, "TCC_API_KEY"),
            (["runs", "--store", "{tmp}/notes.txt"], 3, "file is not a database"),
            (["runs", "--store", "{tmp}"], 3, "cannot read {tmp}: "),
            (["demo", "--store", "{tmp}/notes.txt"], 3, "file is not a database"),
            (["demo", "--store", "{tmp}/notes.txt/store.db"], 3, "Not a directory"),
            (["export", "--dir", "{tmp}/notes.txt"], 3, "{tmp}/notes.txt"),
        ],
    )
    def test_exit_codes_and_messages(
        self, store: Path, tmp_path: Path, arguments: list[str], code: int, message: str
    ) -> None:
        (tmp_path / "notes.txt").write_text("not a database " * 1000)
        (tmp_path / "empty.db").touch()
        arguments = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
        message = message.replace("{tmp}", str(tmp_path))

        plain = invoke(*arguments)
        assert (plain.exit_code, plain.stdout) == (code, "")
        assert message in plain.stderr
        assert "Traceback" not in plain.stderr

        machine = invoke(*arguments, "--json")
        assert (machine.exit_code, machine.stdout) == (code, "")
        error = json.loads(machine.stderr)["error"]
        assert message in error["message"]
        assert error["exit_code"] == code
        assert error["kind"] == {1: "not_found", 2: "usage", 3: "io"}[code]

    def test_candidates_are_named(self, store: Path) -> None:
        sink = StoreSink(str(store))
        sink.deliver([run("open-other")])
        sink.close()

        result = invoke("show", "open")
        assert result.exit_code == 1
        assert "open-other\n" in result.stderr
        assert "open-run\n" in result.stderr

    def test_a_wrong_setting_names_its_variable(self, store: Path) -> None:
        result = invoke("runs", PICOSTEP_TO="nonsense")

        assert result.exit_code == 2
        assert "PICOSTEP_TO" in result.stderr

    def test_a_locked_store(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("picostep.sinks.store_reader._BUSY_TIMEOUT", 0.05)
        other = sqlite3.connect(store, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")

        result = invoke("runs")
        other.close()
        assert result.exit_code == 3
        assert "database is locked" in result.stderr

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_store_that_may_not_be_read(self, store: Path) -> None:
        store.chmod(0)

        assert invoke("runs").exit_code == 3

    def test_help_names_the_exit_codes(self) -> None:
        output = ok("--help")

        for code in (0, 1, 2, 3, 130, 141):
            assert re.search(rf"^\s+{code} ", output, re.MULTILINE)
        for name in ("demo", "runs", "show", "tail", "status", "export"):
            assert f"\n  {name} " in output
            assert "--json" in ok(name, "--help")

    def test_without_the_extra(self) -> None:
        code = """
import sys
sys.modules["{}"] = None
sys.argv = ["picostep", "runs"]
from picostep.cli import main
main()
"""
        for missing in ("click", "rich", "rich.console"):
            finished = run_python(code.format(missing), check=False)
            assert finished.returncode == 2
            assert finished.stdout == ""
            assert finished.stderr == (
                "picostep's command line needs the extra: pip install 'picostep[cli]'\n"
            )

    def test_a_reader_that_goes_away(self, store: Path) -> None:
        sink = StoreSink(str(store))
        sink.deliver([step("long", prompt="\n".join(map(str, range(100_000))))])
        sink.close()

        process = command("show", "long", "--full", "--store", str(store))
        assert process.stdout is not None
        assert process.stdout.readline() == "Run long\n"
        process.stdout.close()
        assert process.wait(20) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stderr.close()

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
    def test_output_that_cannot_be_written(self, store: Path) -> None:
        with open("/dev/full", "w") as full:
            finished = subprocess.run(
                [sys.executable, "-m", "picostep", "runs", "--store", str(store)],
                stdout=full,
                stderr=subprocess.PIPE,
                env=clean_environment(),
                text=True,
                timeout=20,
            )
        assert finished.returncode == 3
        assert finished.stderr == "error: No space left on device\n"

    def test_a_terminal_that_is_not_utf_8(self, store: Path) -> None:
        sink = StoreSink(str(store))
        sink.deliver([run("umlaut", user_prompt="to 日本")])
        sink.close()

        process = command("runs", "--store", str(store), PYTHONIOENCODING="latin-1")
        output, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")
        assert "to \\u65e5\\u672c" in output


class TestDemo:
    @pytest.fixture
    def finished(self, tmp_path: Path, ring_base: Path) -> tuple[Path, str]:
        path = tmp_path / "demo.db"
        # The key of a real account must not make it send anything.
        process = command(
            "demo",
            "--store",
            str(path),
            PICOSTEP_DIR=str(ring_base),
            TCC_API_KEY="key",
            TCC_URL="http://127.0.0.1:9",
        )
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        return path, output

    def test_it_shows_what_it_recorded(self, finished: tuple[Path, str]) -> None:
        path, output = finished

        assert f"stored in {path}" in output
        assert "Timeline" in output
        for told in ("get_weather", "gpt-4.1", "thumbs_up", "picostep status"):
            assert told in output
        runs = loaded("runs", "--store", str(path))["runs"]
        assert [entry["status"] for entry in runs] == ["ok", "error", "ok", "ok"]
        assert sum(entry["steps"] for entry in runs) == 5
        assert sum(entry["failed_tool_calls"] for entry in runs) == 2

    def test_the_commands_it_suggests_work(self, finished: tuple[Path, str]) -> None:
        suggested = [line.split("  ")[1] for line in finished[1].partition("Next\n")[2].splitlines()]

        assert len(suggested) == 5
        for line in suggested:
            if "tail" not in line:
                ok(*line.split()[1:])
        assert "give up" in ok(*suggested[0].split()[1:]) or "giving up" in ok(*suggested[0].split()[1:])

    def test_secrets_in_errors_are_redacted(self, finished: tuple[Path, str]) -> None:
        assert b"demo-token" not in finished[0].read_bytes()


class TestStatus:
    RECORD = """
import os, picostep
run = picostep.run()
run.step().prompt("a").response("b").end()
run.prompt("a").end()
{}
"""

    def test_nothing_there(self, ring_base: Path) -> None:
        assert "nothing of this user is being recorded" in ok("status")
        found = loaded("status")
        assert found["directories"] == []
        assert found["base"].startswith(str(ring_base))

    def test_records_that_wait(self, ring_base: Path) -> None:
        run_python(
            self.RECORD.format("os._exit(0)"),
            {"PICOSTEP_DIR": str(ring_base), "PICOSTEP_EXPORTER": "external"},
        )

        (directory,) = loaded("status")["directories"]
        assert (directory["name"], directory["own"], directory["exporter"]) == ("external", False, False)
        (ring,) = directory["rings"]
        assert ring["state"] == "ended"
        assert ring["counters"]["in_ring"] == ring["counters"]["accepted"] == 2
        assert ring["backlog_bytes"] > 0
        output = ok("status")
        assert "external  no exporter" in output
        assert re.search(r"ended +2 +0 +2 +0 ", output)

    def test_a_recording_process(self, ring_base: Path) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", self.RECORD.format("print(picostep.flush(20), flush=True); input()")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment(PICOSTEP_DIR=str(ring_base)),
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"

        (directory,) = loaded("status")["directories"]
        process.communicate("\n", timeout=20)

        assert (directory["own"], directory["exporter"]) == (True, True)
        (ring,) = directory["rings"]
        assert (ring["state"], ring["pid"]) == ("recording", process.pid)
        assert ring["counters"]["delivered"] == 2

    def test_directories_with_unexpected_content(self, ring_base: Path) -> None:
        base = Path(loaded("status")["base"])
        base.mkdir(mode=0o700)
        (base / "open-to-all").mkdir()
        (base / "open-to-all").chmod(0o777)
        odd = base / "odd\x1b[31m"
        odd.mkdir(mode=0o700)
        (odd / "1-a.ring").write_bytes(b"no ring")
        (odd / "1-b.ring").mkdir()
        (odd / "1-c.ring.bad").touch()
        (odd / "totals.json").write_text("[not json")
        os.mkfifo(odd / "exporter.log")

        output = ok("status")
        found = {entry["name"]: entry for entry in loaded("status")["directories"]}

        assert not FORBIDDEN.search(output)
        assert "others can enter it" in found["open-to-all"]["problem"]
        assert [ring["state"] for ring in found[odd.name]["rings"]] == ["unreadable", "unreadable"]
        assert found[odd.name]["damaged"] == ["1-c.ring.bad"]
        assert found[odd.name]["totals"] is None
        assert found[odd.name]["log"] == []


class TestExport:
    def record(self, base: Path, exporter: str = "external") -> None:
        run_python(
            TestStatus.RECORD.format("os._exit(0)"),
            {"PICOSTEP_DIR": str(base), "PICOSTEP_EXPORTER": exporter},
        )

    def test_once(self, ring_base: Path, tmp_path: Path) -> None:
        self.record(ring_base)
        store = tmp_path / "out.db"

        process = command("export", "--once", "--to", f"store:{store}", PICOSTEP_DIR=str(ring_base))
        output, log = process.communicate(timeout=30)

        assert (process.returncode, output) == (0, "")
        assert "all rings are empty" in log
        assert len(loaded("runs", "--store", str(store))["runs"]) == 1
        (external,) = [entry for entry in loaded("status")["directories"] if entry["name"] == "external"]
        assert external["rings"] == []
        assert external["totals"]["delivered"] == 2

    def test_it_serves_what_comes_until_it_is_told_to_end(self, ring_base: Path, tmp_path: Path) -> None:
        store = tmp_path / "out.db"
        process = command("export", "--json", "--to", f"store:{store}", PICOSTEP_DIR=str(ring_base))
        try:
            for count in (1, 2, 3):
                self.record(ring_base)
                wait_until(lambda: store.exists() and _count(store, "runs") == count, 20, f"{count} runs")  # noqa: B023
        finally:
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=20)
        assert process.returncode == 0
        messages = [json.loads(line) for line in log.splitlines()]
        assert messages[-1]["message"] == "stopped"
        assert sum("serving" in entry["message"] for entry in messages) == 2

    def test_another_exporter_is_at_work(self, ring_base: Path, tmp_path: Path) -> None:
        options = ("export", "--to", f"store:{tmp_path / 'out.db'}")
        first = command(*options, PICOSTEP_DIR=str(ring_base))
        try:
            assert first.stderr is not None
            while "serving" not in first.stderr.readline():
                pass
            wait_until(lambda: all(entry["exporter"] for entry in loaded("status")["directories"]), 10)

            once = command(*options, "--once", PICOSTEP_DIR=str(ring_base))
            _, log = once.communicate(timeout=20)
            assert once.returncode == 3
            assert "another exporter is at work" in log

            second = command(*options, PICOSTEP_DIR=str(ring_base))
            assert second.stderr is not None
            while "waiting" not in second.stderr.readline():
                pass
        finally:
            first.send_signal(signal.SIGINT)
            first.communicate(timeout=20)
        assert first.returncode == 0
        while "serving" not in second.stderr.readline():
            pass
        second.send_signal(signal.SIGTERM)
        second.communicate(timeout=20)
        assert second.returncode == 0


def _count(store: Path, table: str) -> int:
    connection = sqlite3.connect(store)
    try:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    except sqlite3.OperationalError:  # not made yet
        return -1
    finally:
        connection.close()


class TestWords:
    @pytest.mark.parametrize(
        ("ns", "shown"),
        [
            (0, "0.00 ms"),
            (999_999, "1.00 ms"),
            (1_000_000, "1 ms"),
            (999_999_999, "999 ms"),
            (1_234_000_000, "1.23 s"),
            (61_000_000_000, "1m 01s"),
            (3_720_000_000_000, "1h 02m"),
            (-5_000_000, "-5 ms"),
        ],
    )
    def test_duration(self, ns: int, shown: str) -> None:
        assert text.duration(ns) == shown

    @pytest.mark.parametrize(
        ("number", "shown"),
        [(None, "-"), (0, "0"), (9999, "9999"), (10_000, "10k"), (12_345, "12.35k"), (2**63, "9.223E")],
    )
    def test_count(self, number: int | None, shown: str) -> None:
        assert text.count(number) == shown

    @pytest.mark.parametrize(
        ("dollars", "shown"),
        [
            ("0", "$0.00"),
            ("1", "$1.00"),
            ("0.1", "$0.10"),
            ("0.00123", "$0.00123"),
            ("0.000000123456", "$0.0000001235"),
            ("1234.5678915", "$1234.567892"),
            ("1E+300", "$1.000e+300"),
        ],
    )
    def test_money(self, dollars: str, shown: str) -> None:
        assert text.money(Decimal(dollars)) == shown

    def test_tokens(self) -> None:
        assert text.tokens(None, None, None) == "-"
        assert text.tokens(10, 5, 3) == "15(5)/3"
        assert text.tokens(10, 0, None) == "10/-"
        assert text.tokens(None, 5, 0) == "5(5)/0"

    def test_times_beyond_the_calendar(self) -> None:
        assert text.clock(2**63 - 1).startswith("2262-04-11")
        assert text.iso(-1) == "1969-12-31T23:59:59.999999999Z"
