"""The command line: what it prints, in text and JSON, and how it fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import time
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import old_store
from picostep import prices
from picostep.cli import text
from picostep.cli.commands import picostep
from picostep.sinks.store import StoreSink
from support import Ingest, Reply, clean_environment, kill_exporters, run_python, wait_until
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
        # A suite that runs in the background may have inherited that Ctrl-C is to be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )


class TestRuns:
    def test_table(self, store: Path) -> None:
        _, header, *lines, legend = ok("runs").splitlines()

        assert header.split() == [
            "RUN",
            "STARTED",
            "STATUS",
            "STEPS",
            "TOOLS",
            "in(cached)/out",
            "TIME",
            "COST",
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
                "?",
                "1",
                "Plan a weekend in Lisbon",
            ],
            ["failed-run", "2026-11-18 11:06", "error", "0", "0", "-", "1.00 s", "-", "0", "hello"],
            ["open-run", "2026-11-18 11:06", "open", "1", "0", "-", "1.00 s", "?", "0", "still going"],
        ]
        assert legend == "? no cost is known   (why: picostep costs --by status)"

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
            "cache_write_tokens": None,
            "completion_tokens": 56,
            "reasoning_tokens": None,
            "total_cost": None,
            "unpriced_steps": 1,
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
        assert lines[1:8] == [
            "  status    ok",
            "  started   2026-11-18 11:06:40 +0000, took 2.35 s",
            "  tokens    2310(2048)/56  in(cached)/out",
            "  cost      ?  the cost of 1 of 1 steps is not known",
            "  session   trip",
            "  metadata  user=ada",
            "    > Plan a weekend in Lisbon",
        ]
        timeline = lines[lines.index("Timeline") + 1 :]
        assert [re.split("  +", line.strip()) for line in timeline] == [
            ["+1 ms", "811 ms", "step gpt-x", "ok", "2310(2048)/56", "?", "first token 130 ms", "stop"],
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
        assert (found["run"]["traceparent"], only["traceparent"]) == (None, None)

    def test_a_caller_is_shown_in_json(self, store: Path) -> None:
        caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        sink = StoreSink(str(store))
        sink.deliver([step("traced", traceparent=caller)])
        sink.close()

        (only,) = loaded("show", "traced")["steps"]
        assert only["traceparent"] == caller
        assert caller not in ok("show", "traced", "--full")

    def test_a_store_of_an_earlier_layout(self, store: Path, tmp_path: Path) -> None:
        earlier = tmp_path / "earlier.db"
        old_store.make(earlier, [run(), step(), tool_call(), feedback()])
        before = earlier.read_bytes()

        text = ok("show", "run-1", "--store", str(earlier))
        found = loaded("show", "run-1", "--store", str(earlier))

        assert text.startswith("Run run-1\n  status   ok\n")
        assert found.keys() == loaded("show", RUN_ID).keys()
        for part in ("steps", "tool_calls", "feedback"):
            assert [list(row) for row in found[part]] == [list(row) for row in loaded("show", RUN_ID)[part]]
        assert list(found["run"]) == list(loaded("show", RUN_ID)["run"])
        assert earlier.read_bytes() == before

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


class TestCosts:
    @pytest.fixture
    def priced(self, store: Path) -> Path:
        """Adds steps with costs to `RUN_ID`, whose first step has none, and a run whose cost was set."""
        sink = StoreSink(str(store))
        table = "0123456789ab"
        sink.deliver(
            [
                step(
                    RUN_ID,
                    "s2",
                    start_ns=NOW + 2000 * NS,
                    model_used="gpt-x",
                    provider="azure",
                    prompt_uncached_tokens=10,
                    cache_write_tokens=5,
                    completion_tokens=3,
                    cost_pico=1_234_567_891,
                    cost_status="priced",
                    price_table=table,
                ),
                step(
                    RUN_ID,
                    "s3",
                    start_ns=NOW + 2100 * NS,
                    model_used="gpt-x",
                    real_total_cost=12.5,
                    cost_pico=12_500_000_000_000,
                    cost_status="user",
                    price_table="",
                ),
                run("set-run", start_ns=NOW - 86_400_000 * NS, session_id="other"),
                step(
                    "set-run",
                    start_ns=NOW - 86_400_000 * NS,
                    model_used="gpt-x",
                    real_total_cost=0.1,
                    cost_pico=10**11,
                    cost_status="user",
                    price_table="",
                ),
                step(
                    "open-run",
                    "s1",
                    start_ns=NOW - 9000 * NS,
                    model_used="odd",
                    cost_status="unknown_model",
                ),
            ]
        )
        sink.close()
        return store

    def test_runs(self, priced: Path) -> None:
        *lines, legend = ok("runs").splitlines()

        costs = {line.split()[0]: re.split("  +", line)[7] for line in lines[2:]}
        assert costs == {"0b2c9a1e": "≥$12.50", "failed-run": "-", "open-run": "?", "set-run": "$0.10"}
        assert legend.startswith("? no cost is known   ≥ some steps have no known cost ")
        found = {entry["run_id"]: entry for entry in loaded("runs")["runs"]}
        assert found[RUN_ID]["total_cost"] == "12.501234567891"
        assert found[RUN_ID]["unpriced_steps"] == 1
        assert (found["set-run"]["total_cost"], found["set-run"]["unpriced_steps"]) == ("0.1", 0)
        assert (found["failed-run"]["total_cost"], found["failed-run"]["unpriced_steps"]) == (None, 0)

    def test_no_legend_where_nothing_needs_one(self, store: Path) -> None:
        store.unlink()
        sink = StoreSink(str(store))
        sink.deliver([run(), step(cost_pico=1, cost_status="priced"), run("no steps")])
        sink.close()

        assert "cost" not in ok("runs")
        assert "known" not in ok("costs")

    def test_show(self, priced: Path) -> None:
        output = ok("show", "0b")

        (cost,) = [line for line in output.splitlines() if line.startswith("  cost ")]
        assert re.split("  +", cost.strip()) == [
            "cost",
            "≥$12.50",
            "the cost of 1 of 3 steps is not known",
            "($12.50 of it set by the program)",
        ]
        assert "15/3  $0.00123\n" in output
        assert "-  $12.50 (user)\n" in output
        assert "\n  cost     $0.10  (set by the program)\n" in ok("show", "set-run")
        assert "? (unknown_model)" in ok("show", "open-run")
        computed, given = loaded("show", "0b")["steps"][1:]
        assert (computed["total_cost"], computed["cost_status"]) == ("0.001234567891", "priced")
        assert (computed["price_table"], computed["real_total_cost"]) == ("0123456789ab", None)
        assert (given["total_cost"], given["cost_status"]) == ("12.5", "user")
        assert given["real_total_cost"] == "12.5"
        assert "cost_pico" not in given

    def test_by_model(self, priced: Path) -> None:
        _, header, *lines, legend = ok("costs").splitlines()

        assert header.split() == ["MODEL", "STEPS", "NO", "COST", "in(cached)/out", "COST"]
        assert [line.split() for line in lines] == [
            ["gpt-x", "3", "1", "2310(2048)/56", "≥$12.60"],
            ["azure/gpt-x", "1", "0", "15/3", "$0.00123"],
            ["odd", "1", "1", "-", "?"],
            ["total", "5", "2", "2325(2048)/59", "≥$12.60"],
        ]
        assert legend.endswith("≥ some steps have no known cost: 1 never priced, 1 unknown_model")

    def test_json(self, priced: Path) -> None:
        found = loaded("costs", "--by", "session")

        assert found.keys() == {"store", "by", "since", "lines", "left_out", "total", "unpriced"}
        assert (found["by"], found["since"], found["left_out"]) == ("session", None, 0)
        assert [(line["session_id"], line["total_cost"]) for line in found["lines"]] == [
            ("trip", "12.501234567891"),
            ("other", "0.1"),
            (None, None),
        ]
        assert found["total"] == {
            "steps": 5,
            "unpriced_steps": 2,
            "total_cost": "12.601234567891",
            "prompt_uncached_tokens": 272,
            "prompt_cached_tokens": 2048,
            "cache_write_tokens": 5,
            "completion_tokens": 59,
            "reasoning_tokens": None,
        }
        assert found["unpriced"] == {"not_priced": 1, "unknown_model": 1}

    @pytest.mark.parametrize("by", ["model", "day", "session", "run", "status"])
    def test_every_grouping(self, priced: Path, by: str) -> None:
        key = {"session": "session_id", "run": "run_id", "status": "cost_status"}.get(by, by)

        assert ok("costs", "--by", by).splitlines()[-2].split()[:2] == ["total", "5"]
        found = loaded("costs", "--by", by)
        assert all(key in line for line in found["lines"])
        assert found["total"]["total_cost"] == "12.601234567891"

    def test_days_are_utc(self, priced: Path) -> None:
        # In Kiritimati, 14 hours ahead, the runs of 11:06 began on the next day.
        process = command("costs", "--by", "day", "--json", "--store", str(priced), TZ="Pacific/Kiritimati")
        found = json.loads(process.communicate(timeout=100)[0])

        assert [line["day"] for line in found["lines"]] == ["2026-11-17", "2026-11-18"]

    def test_since(self, priced: Path) -> None:
        found = loaded("costs", "--by", "run", "--since", "2026-11-18")
        assert {line["run_id"] for line in found["lines"]} == {RUN_ID, "open-run"}
        assert found["since"] == "2026-11-18T00:00:00.000000000Z"
        later = loaded("costs", "--since", "2026-11-18T12:06:42.05+01:00")
        assert later["total"]["total_cost"] == "12.5"
        assert ok("costs", "--since", "2027-11-18") == f"No such steps in {priced}.\n"

    def test_how_long_ago(self, store: Path) -> None:
        now = time.time_ns()
        sink = StoreSink(str(store))
        sink.deliver(
            [
                step("new", "1", start_ns=now - 30 * 60 * 1000 * NS, model_used="ago", cost_pico=1),
                step("new", "2", start_ns=now - 90 * 60 * 1000 * NS, model_used="ago", cost_pico=2),
                step("new", "3", start_ns=now - 30 * 3600 * 1000 * NS, model_used="ago", cost_pico=4),
            ]
        )
        sink.close()

        for since, total in (("60m", 1), ("3600s", 1), ("2h", 3), ("1d", 3), ("1w", 7)):
            lines = loaded("costs", "--since", since)["lines"]
            (found,) = [line["total_cost"] for line in lines if line["model"] == "ago"]
            assert found == f"0.00000000000{total}"

    def test_limit(self, priced: Path) -> None:
        found = loaded("costs", "-n", "1")
        assert ([line["model"] for line in found["lines"]], found["left_out"]) == (["gpt-x"], 2)
        assert found["total"]["steps"] == 5
        assert "2 more lines are in the total" in ok("costs", "-n", "1")

    def test_texts_of_models_reach_no_terminal(self, store: Path) -> None:
        sink = StoreSink(str(store))
        sink.deliver(
            [
                run(HOSTILE, session_id=HOSTILE),
                step(HOSTILE, HOSTILE, model_used=HOSTILE, provider=HOSTILE, cost_status=HOSTILE),
            ]
        )
        sink.close()

        for by in ("model", "session", "run", "status"):
            for more in ([], ["--json"]):
                assert not FORBIDDEN.search(ok("costs", "--by", by, *more))
        assert not FORBIDDEN.search(ok("show", HOSTILE[:3]))
        assert not FORBIDDEN.search(invoke("price", HOSTILE).output)

    def test_a_narrow_terminal(self, priced: Path) -> None:
        for columns in (40, 60, 80):
            output = ok("costs", COLUMNS=str(columns))
            assert max(len(line) for line in output.splitlines()) <= columns


class TestPrice:
    """Expectations are calculated by hand from prices given here; the table may change, they do not."""

    @pytest.fixture
    def own(self, clean_env: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        path = tmp_path / "own.json"
        path.write_text(
            json.dumps(
                {
                    "model": {
                        "house": {
                            "input": "2.5",
                            "cached_input": "0.25",
                            "cache_write": "3.125",
                            "cache_write_1h": "5",
                            "output": "10",
                            "reasoning": "12",
                            "request": "0.005",
                        }
                    },
                    "provider": {"acme": {"house": {"input": "1", "output": "2"}}},
                }
            )
        )
        clean_env.setenv("PICOSTEP_PRICES", str(path))
        return path

    def test_own_prices(self, own: Path) -> None:
        found = loaded(
            "price",
            "HOUSE",
            *("--prompt", "1000", "--cached", "2000", "--cache-write", "300"),
            *("--cache-write-1h", "100", "--completion", "50", "--reasoning", "20"),
        )

        assert found["status"] == "override"
        assert found["costs"] == {
            "input": "0.0025",  # 1000 * 2.5 / 1,000,000
            "cached_input": "0.0005",
            "cache_write": "0.000625",  # 200 * 3.125 / 1,000,000
            "cache_write_1h": "0.0005",
            "output": "0.0003",  # 30 * 10 / 1,000,000
            "reasoning": "0.00024",
            "request": "0.005",
        }
        assert found["total_cost"] == "0.009665"
        assert found["counts"] == {
            "prompt_uncached": 1000,
            "prompt_cached": 2000,
            "cache_write": 300,
            "cache_write_1h": 100,
            "completion": 50,
            "reasoning": 20,
        }

    def test_own_prices_of_a_provider(self, own: Path) -> None:
        assert loaded("price", "house", "--provider", "acme", "--tokens", "3,0,4")["total_cost"] == "0.000011"
        assert loaded("price", "house", "--tokens", "3,0,4")["total_cost"] == "0.0050475"

    def test_text_of_own_prices(self, own: Path) -> None:
        lines = ok("price", "house", "--tokens", "1000,2000,50", "--at", "2026-11-18").splitlines()

        assert lines[:2] == ["override of house", "  asked   house, at 2026-11-18T00:00:00Z"]
        assert lines[2].startswith("  source  your own prices")
        assert [re.split("  +", line.strip()) for line in lines[3:]] == [
            ["RATE", "USD / 1M TOKENS", "TOKENS", "COST"],
            ["input", "$2.50", "1000", "$0.0025"],
            ["cached input", "$0.25", "2000", "$0.0005"],
            ["cache write", "$3.125", "0"],
            ["cache write 1h", "$5.00", "0"],
            ["output", "$10.00", "50", "$0.0005"],
            ["reasoning", "$12.00", "0"],
            ["request (each)", "$0.005", "1", "$0.005"],
            ["total", "$0.0085"],
        ]

    def test_without_tokens_there_is_no_cost(self, own: Path) -> None:
        found = loaded("price", "house")
        assert (found["counts"], found["costs"], found["total_cost"]) == (None, None, None)
        assert found["rates"]["reasoning"] == "12"
        assert "total" not in ok("price", "house")

    def test_own_prices_that_cannot_be_used(self, own: Path) -> None:
        own.write_text('{"model": {"house": {"input": "0.0000001", "output": "1"}}}')

        result = invoke("price", "house")
        assert result.exit_code == 2
        assert "PICOSTEP_PRICES" in result.stderr
        assert "more than 12 decimals" in result.stderr

    def test_of_the_table(self, clean_env: pytest.MonkeyPatch, small: bytes) -> None:
        """A tier, a date and a service tier, each as the (fixed) table has it."""
        place(small)

        before = loaded("price", "m", "--tokens", "1000,0,100", "--at", "2026-10-31T23:59:59.999999999Z")
        assert before["total_cost"] == "0.0015"  # 1000 * 1 + 100 * 5
        assert (before["from"], before["until"]) == (None, "2026-11-01")
        after = loaded("price", "m", "--tokens", "1000,0,100", "--at", "2026-11-01")
        assert after["total_cost"] == "0.003"  # 1000 * 2 + 100 * 10
        assert (after["from"], after["until"]) == ("2026-11-01", None)
        assert after["tier"] == {"above": None, "next": 5000}
        long = loaded("price", "acme/m", "--tokens", "5000,1,100", "--at", "2026-11-01")
        assert long["total_cost"] == "0.022004"  # 5001 * 4 + 100 * 20
        assert long["tier"] == {"above": 5000, "next": None}
        batch = loaded("price", "m", "--tier", "batch", "--tokens", "1000,0,100", "--at", "2026-11-01")
        assert batch["total_cost"] == "0.0015"
        assert batch["variant"] == "batch"
        output = ok("price", "m", "--tokens", "5000,1,100", "--at", "2026-11-01")
        for told in ("acme/m", "valid    from 2026-11-01", "more than 5000 tokens", "test 1", "prices.bin"):
            assert told in output

    def test_a_corrupt_table_is_not_used_and_said_so(self, clean_env: pytest.MonkeyPatch) -> None:
        path = place(b"PICOcorrupt")

        result = invoke("price", "gpt-4.1", "--tokens", "1,1,1")
        assert result.exit_code == 0
        assert f"the refreshed price table is not used: {path}" in result.stdout


def place(table: bytes) -> Path:
    """Put a table where `picostep prices refresh` would."""
    path = Path(os.environ["XDG_STATE_HOME"]) / "picostep" / "prices.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(table)
    return path


MICRO = 1_000_000  # pico-dollars a token: one dollar for a million tokens


@pytest.fixture(scope="module")
def small() -> bytes:
    """
    A price table of one model, `acme/m`, packed here by hand.

    Per million tokens input costs $1 and output $5; from 2026-11-01 twice as much, with more than 5000 input
    tokens four times as much. Batch is the first price for ever.
    """
    forever, november = -(2**31), 20_758  # days since 1970
    dear = (4 * MICRO, 4 * MICRO, 4 * MICRO, 4 * MICRO, 20 * MICRO, 20 * MICRO, 0, 5000, -1)
    rows = [
        (MICRO, MICRO, MICRO, MICRO, 5 * MICRO, 5 * MICRO, 0, -1, -1),
        dear,
        (2 * MICRO, 2 * MICRO, 2 * MICRO, 2 * MICRO, 10 * MICRO, 10 * MICRO, 0, -1, 1),
    ]
    slots = [(forever, 0, 0, 0), (november, 0, 2, 0), (forever, 0, 0, 0)]
    tracks = [(0, 2, 0), (2, 1, 2)]  # standard; the third variant
    names = "test 1\nstandard\tdefault\tbatch\x1eacme\t0\t=acme\t=m\t\nm\t=m"
    body = b"".join(
        [
            *(struct.pack("<7q2i", *row) for row in rows),
            *(struct.pack("<3iI", *slot) for slot in slots),
            *(struct.pack("<i2H", *track) for track in tracks),
            struct.pack("<2i", 0, 2),
            names.encode(),
        ]
    )
    start = struct.pack("<8s6I", b"PICOCOST", 1, len(rows), len(slots), len(tracks), 1, 64 + len(body))
    digest = blake2b(start + bytes(16) + body, digest_size=16).digest()
    return start + digest + bytes(16) + body


class TestPrices:
    def test_show_the_built_in_table(self, clean_env: pytest.MonkeyPatch) -> None:
        found = loaded("prices", "show")

        manifest = json.loads((Path(prices.__file__).parent / "manifest.json").read_text())
        assert found["in_force"] == found["built_in"]
        assert found["in_force"]["table"] == manifest["id"]
        assert found["in_force"]["compiled"] == manifest["compiled"]
        assert (
            found["in_force"]["models"] == manifest["counts"]["models"] + manifest["counts"]["models resold"]
        )
        assert (found["in_force"]["path"], found["overrides"]) == (None, None)
        output = ok("prices", "show")
        assert f"Price table {manifest['id']}\n" in output
        assert "built in" in output

    def test_show_another_table_and_own_prices(
        self, clean_env: pytest.MonkeyPatch, small: bytes, tmp_path: Path
    ) -> None:
        path = place(small)
        (tmp_path / "own.json").write_text('{"model": {"a": {"input": 1, "output": 2}}}')
        clean_env.setenv("PICOSTEP_PRICES", str(tmp_path / "own.json"))

        found = loaded("prices", "show")
        assert found["in_force"] == {
            "table": prices.load(str(path)).id,
            "source": "test 1",
            "compiled": time.strftime("%Y-%m-%d", time.gmtime(path.stat().st_mtime)),
            "models": 1,
            "path": str(path),
        }
        assert found["built_in"]["path"] is None
        assert found["overrides"]["prices"] == 1
        output = ok("prices", "show")
        for told in (str(path), "test 1", "instead of  the built-in one", "1 prices of your own"):
            assert told in output

    @pytest.mark.parametrize("content", [b"", b"not a table", b"@"])
    def test_a_corrupt_table(self, clean_env: pytest.MonkeyPatch, small: bytes, content: bytes) -> None:
        path = place(small[:-1] if content == b"@" else content)

        result = invoke("prices", "show")
        assert (result.exit_code, result.stdout) == (3, "")
        assert f"cannot be used: {path}" in result.stderr
        assert "The built-in table" in result.stderr
        error = json.loads(invoke("prices", "show", "--json").stderr)["error"]
        assert (error["exit_code"], error["kind"]) == (3, "io")

    def test_a_table_that_cannot_be_read(self, clean_env: pytest.MonkeyPatch) -> None:
        path = place(b"")
        path.unlink()
        path.mkdir()

        result = invoke("prices", "show")
        assert result.exit_code == 3
        assert f"{path}: Is a directory" in result.stderr

    def test_refresh(self, clean_env: pytest.MonkeyPatch) -> None:
        pytest.importorskip("genai_prices")
        path = place(b"corrupt")
        shutil.rmtree(path.parent.parent)

        found = loaded("prices", "refresh")

        assert found["in_force"]["path"] == str(path)
        assert found["in_force"]["source"] == f"genai-prices {version('genai-prices')}"
        assert prices.load(str(path)).id == found["in_force"]["table"]
        assert [stat.S_IMODE(part.stat().st_mode) for part in (path, path.parent, path.parent.parent)] == [
            0o600,
            0o700,
            0o700,
        ]
        assert os.listdir(path.parent) == ["prices.bin"]
        assert str(path) in ok("prices", "show")

    def test_refresh_replaces_what_cannot_be_used(self, clean_env: pytest.MonkeyPatch) -> None:
        pytest.importorskip("genai_prices")
        path = place(b"corrupt")
        with path.open("rb") as reader:
            assert "in_force" in loaded("prices", "refresh")
            assert reader.read() == b"corrupt"  # a new file, not this one overwritten

    def test_refresh_that_cannot_write(self, clean_env: pytest.MonkeyPatch, tmp_path: Path) -> None:
        pytest.importorskip("genai_prices")
        (tmp_path / "file").touch()

        result = invoke("prices", "refresh", XDG_STATE_HOME=str(tmp_path / "file"))
        assert result.exit_code == 3
        assert "Not a directory" in result.stderr

    def test_refresh_without_genai_prices(self, clean_env: pytest.MonkeyPatch) -> None:
        path = place(b"old")
        clean_env.setitem(sys.modules, "genai_prices", None)

        result = invoke("prices", "refresh")
        assert (result.exit_code, result.stdout) == (2, "")
        assert "genai-prices, which is not installed" in result.stderr or sys.version_info < (3, 11)
        assert path.read_bytes() == b"old"

    def test_refresh_on_an_old_python(self, clean_env: pytest.MonkeyPatch) -> None:
        clean_env.setattr(sys, "version_info", (3, 10, 4))

        result = invoke("prices", "refresh")
        assert result.exit_code == 2
        assert "needs Python 3.11 or later, this is 3.10" in result.stderr


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

    @pytest.mark.slow
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
            sink.close()
        finally:
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=100)
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
            (["costs", "--since", "yesterday"], 2, "7d"),
            (["costs", "--by", "colour"], 2, "is not one of"),
            (["costs", "--store", "{tmp}/none.db"], 1, "no store at {tmp}/none.db"),
            (["price", "no-such-model"], 1, "no price for model 'no-such-model' (unknown_model)"),
            (["price", "gpt-4.1", "--provider", "no-such"], 1, "of 'no-such' (unknown_provider)"),
            (["price", "whisper-1", "--provider", "openai"], 1, "(unsupported)"),
            (["price", ""], 1, "no price for model ''"),
            (["price", "\udcff"], 1, "no price for model '\\udcff'"),
            (["price", "gpt-4.1", "--tokens", "1,2"], 2, "three counts"),
            (["price", "gpt-4.1", "--tokens", "1,2,x"], 2, "three counts"),
            (["price", "gpt-4.1", "--tokens", "1,2,3", "--cached", "2"], 2, "give either"),
            (["price", "gpt-4.1", "--completion", "1", "--reasoning", "2"], 2, "reasoning is more"),
            (["price", "gpt-4.1", "--prompt", "-1"], 2, "not in the range"),
            (["price", "gpt-4.1", "--prompt", str(2**63)], 2, "64 bits"),
            (["price", "gpt-4.1", "--at", "2026-11-23T10:00"], 2, "offset"),
            (["prices", "bogus"], 2, "No such command"),
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
        monkeypatch.setattr("picostep.store.read._BUSY_TIMEOUT", 0.05)
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
        for name in ("demo", "runs", "show", "costs", "price", "tail", "status", "export"):
            assert f"\n  {name} " in output
            assert "--json" in ok(name, "--help")
        assert "\n  prices " in output
        for name in ("show", "refresh"):
            assert "--json" in ok("prices", name, "--help")

    @pytest.mark.slow
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
        sink.deliver([step("long", prompt="\n".join(["x" * 70] * 1200))])  # more than a pipe holds
        sink.close()

        process = command("show", "long", "--full", "--store", str(store))
        assert process.stdout is not None
        assert process.stdout.readline() == "Run long\n"
        process.stdout.close()
        assert process.wait(100) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""
        process.stderr.close()

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
    @pytest.mark.parametrize("unbuffered", ["", "1"])
    def test_output_that_cannot_be_written(self, store: Path, unbuffered: str) -> None:
        with open("/dev/full", "w") as full:
            finished = subprocess.run(
                [sys.executable, "-m", "picostep", "runs", "--store", str(store)],
                stdout=full,
                stderr=subprocess.PIPE,
                env=clean_environment(PYTHONUNBUFFERED=unbuffered),
                text=True,
                timeout=100,
            )
        assert finished.returncode == 3
        assert finished.stderr == "error: No space left on device\n"

    def test_a_terminal_that_is_not_utf_8(self, store: Path) -> None:
        sink = StoreSink(str(store))
        sink.deliver([run("umlaut", user_prompt="to 日本")])
        sink.close()

        process = command("runs", "--store", str(store), PYTHONIOENCODING="latin-1")
        output, errors = process.communicate(timeout=100)
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
        output, errors = process.communicate(timeout=100)
        assert (process.returncode, errors) == (0, "")
        return path, output

    def test_it_shows_what_it_recorded(self, finished: tuple[Path, str]) -> None:
        path, output = finished

        assert f"stored in {path}" in output
        assert "Timeline" in output
        for told in ("get_weather", "gpt-4.1", "thumbs_up", "picostep status", "? no cost is known"):
            assert told in output
        runs = loaded("runs", "--store", str(path))["runs"]
        assert [entry["status"] for entry in runs] == ["ok", "error", "ok", "ok"]
        assert sum(entry["steps"] for entry in runs) == 5
        assert sum(entry["failed_tool_calls"] for entry in runs) == 2
        # Computed, unknown, computed, set by the program; the table may be refreshed, so no amounts.
        costs = {entry["session_id"]: entry["total_cost"] for entry in runs}
        assert (costs["trip-bergen"], costs["trip-kyoto"]) == (None, "0.00011")
        assert "0." in costs["trip-lisbon"]
        assert "0." in costs["trip-oslo"]
        assert loaded("costs", "--by", "status", "--store", str(path))["unpriced"] == {"unknown_model": 1}

    @pytest.mark.slow
    def test_the_commands_it_suggests_work(self, finished: tuple[Path, str]) -> None:
        suggested = [line.split("  ")[1] for line in finished[1].partition("Next\n")[2].splitlines()]

        assert len(suggested) == 7
        for line in suggested:
            if "tail" not in line:
                ok(*line.split()[1:])
        assert "give up" in ok(*suggested[0].split()[1:]) or "giving up" in ok(*suggested[0].split()[1:])

    @pytest.mark.slow
    def test_secrets_in_errors_are_redacted(self, finished: tuple[Path, str]) -> None:
        assert b"demo-token" not in finished[0].read_bytes()


class TestSpool:
    """A backend that is away, then one that refuses: what is left, by the command line alone."""

    RECORD = """
import time, picostep
for number in range(3):
    picostep.send_step("r", step_id=f"s{number}", prompt=f"p{number}", response={"a": 1})
deadline = time.monotonic() + 20
while picostep.stats()["in_spool"] < 3:
    assert time.monotonic() < deadline, picostep.stats()
    time.sleep(0.01)
"""

    def test_nothing_there(self, clean_env: pytest.MonkeyPatch) -> None:
        assert "Nothing was ever spooled" in ok("spool")
        assert loaded("spool")["spools"] == []
        assert invoke("spool", "abc").exit_code == 1
        clean_env.setenv("PICOSTEP_SPOOL", "off")
        assert "there are no spools" in invoke("spool").stderr

    def test_what_waits(self, ring_base: Path, ingest: Ingest, clean_env: pytest.MonkeyPatch) -> None:
        clean_env.setenv("TCC_API_KEY", "dev_secret-key")
        clean_env.setenv("TCC_URL", ingest.url)
        ingest.default = Reply(503)
        names = ("TCC_API_KEY", "TCC_URL", "PICOSTEP_DIR")
        run_python(self.RECORD, {name: os.environ[name] for name in names})
        assert loaded("spool")["spools"][0]["exporters"] == 1
        kill_exporters(ring_base)

        wait_until(lambda: loaded("spool")["spools"][0]["exporters"] == 0, 5.0)
        (found,) = loaded("spool")["spools"]
        assert (found["to"], found["records"]) == ("tcc", 3)
        assert 0 < found["bytes"] < 2000
        lines = [json.loads(line) for line in ok("spool", "--records").splitlines()]
        assert [line["step_id"] for line in lines] == ["s0", "s1", "s2"]
        assert lines[0]["response"] == {"a": 1}
        shown = ok("spool", found["sink"][:6])
        assert found["sink"] in shown
        assert "secret" not in shown

        ingest.default = lambda request: Reply(422 if b"p1" in request.body else 200)
        ok_export = invoke("export", "--once")
        assert ok_export.exit_code == 0, ok_export.stderr
        assert loaded("spool")["spools"][0]["records"] == 0
        (dead,) = [json.loads(line) for line in ok("spool", "--dead").splitlines()]
        assert dead["record"]["step_id"] == "s1"
        assert "422" in dead["reason"]


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
        process.communicate("\n", timeout=100)

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
        output, log = process.communicate(timeout=100)

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
            _, log = process.communicate(timeout=100)
        assert process.returncode == 0
        messages = [json.loads(line) for line in log.splitlines()]
        assert messages[-1]["message"] == "stopped"
        assert sum("serving" in entry["message"] for entry in messages) == 2

    @pytest.mark.slow
    def test_another_exporter_is_at_work(self, ring_base: Path, tmp_path: Path) -> None:
        options = ("export", "--to", f"store:{tmp_path / 'out.db'}")
        first = command(*options, PICOSTEP_DIR=str(ring_base))
        try:
            assert first.stderr is not None
            while "serving" not in first.stderr.readline():
                pass
            wait_until(lambda: all(entry["exporter"] for entry in loaded("status")["directories"]), 10)

            once = command(*options, "--once", PICOSTEP_DIR=str(ring_base))
            _, log = once.communicate(timeout=100)
            assert once.returncode == 3
            assert "another exporter is at work" in log

            second = command(*options, PICOSTEP_DIR=str(ring_base))
            assert second.stderr is not None
            while "waiting" not in second.stderr.readline():
                pass
        finally:
            first.send_signal(signal.SIGINT)
            first.communicate(timeout=100)
        assert first.returncode == 0
        while "serving" not in second.stderr.readline():
            pass
        second.send_signal(signal.SIGTERM)
        second.communicate(timeout=100)
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
        ("pico", "shown"),
        [
            (0, "$0.00"),
            (1, "$0.000000000001"),
            (3_200_000_000, "$0.0032"),
            (123_456, "$0.000000123"),
            (123_500_000, "$0.000124"),  # a half goes to the even digit
            (122_500_000, "$0.000122"),
            (122_500_001, "$0.000123"),
            (100_000_000_000, "$0.10"),
            (999_499_999_999, "$0.999"),
            (999_500_000_000, "$1.00"),
            (10**12, "$1.00"),
            (12_345_000_000_000, "$12.34"),
            (12_345_000_000_001, "$12.35"),
            (1_234_567_891_500_000, "$1234.57"),
            (2**90, "$1237940039285380.27"),
        ],
    )
    def test_money(self, pico: int, shown: str) -> None:
        assert text.money(pico) == shown

    def test_money_with_all_digits(self) -> None:
        assert text.exact(0) == "$0.00"
        assert text.exact(2_500_000_000_000) == "$2.50"
        assert text.exact(10**27 + 1) == "$1000000000000000.000000000001"

    def test_a_cost_that_is_not_known_is_not_zero(self) -> None:
        assert text.cost(None, 0, 0) == "-"
        assert text.cost(None, 2, 2) == "?"
        assert text.cost(0, 2, 1) == "≥$0.00"
        assert text.cost(0, 2, 0) == "$0.00"
        assert text.of_step(None, None, None) == "?"
        assert text.of_step(None, "no_usage", None) == "? (no_usage)"
        assert text.of_step(None, "invalid_usage", "1e+20") == "$1e+20 (invalid_usage)"
        assert text.of_step(0, "free", None) == "$0.00 (free)"
        assert text.of_step(10**12, "priced", None) == "$1.00"

    def test_tokens(self) -> None:
        assert text.tokens(None, None, None, None) == "-"
        assert text.tokens(10, 5, None, 3) == "15(5)/3"
        assert text.tokens(10, 5, 7, 3) == "22(5)/3"
        assert text.tokens(10, 0, None, None) == "10/-"
        assert text.tokens(None, None, 4, None) == "4/-"
        assert text.tokens(None, 5, None, 0) == "5(5)/0"

    def test_times_beyond_the_calendar(self) -> None:
        assert text.clock(2**63 - 1).startswith("2262-04-11")
