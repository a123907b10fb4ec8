"""Runs that are open when their process dies: delivered once, as failed, with what was known of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from oracle import (
    Host,
    Ledger,
    environment,
    rings,
    times,
    totals,
    wait_for_no_rings,
)
from ringfile import HEADER, WORD
from support import Ingest, clean_environment, run_python, wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9")

Start = Callable[..., Host]

DEAD = "the process ended before the run did"


def by_run(ingest: Ingest) -> dict[str, list[dict[str, Any]]]:
    """All runs that have arrived, by id."""
    found: dict[str, list[dict[str, Any]]] = {}
    for item in ingest.items():
        if item["type"] == "run":
            found.setdefault(item["run_id"], []).append(item)
    return found


def failed(run: dict[str, Any]) -> bool:
    is_failed = run["status_code"] == 2
    assert is_failed == (run.get("status_message") == DEAD)
    return is_failed


def export(env: dict[str, str]) -> None:
    """Deliver all there is."""
    done = subprocess.run(
        [sys.executable, "-m", "picostep", "export", "--once"],
        env=clean_environment(**env),
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


def only(runs: dict[str, list[dict[str, Any]]], run_id: str) -> dict[str, Any]:
    (run,) = runs[run_id]
    return run


# --- killed at random moments -----------------------------------------------------------------------------


@dataclass
class RunLedger:
    """What a host of the program `open_runs` has written down."""

    begun: set[str] = field(default_factory=set)
    before: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    ending: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)

    def read(self, raw: bytes) -> None:
        for line in raw.decode().splitlines():
            kind, run_id, *number = line.split(" ")
            if kind in "ts":
                (self.before if kind == "t" else self.after)[run_id] = int(number[0])
            else:
                {"b": self.begun, "e": self.ending, "E": self.ended}[kind].add(run_id)

    def check(self, run: dict[str, Any]) -> None:
        """Fails unless an arrival says what its host has written down, or was about to."""
        run_id = run["run_id"]
        known = {self.after[run_id], self.before[run_id]}
        if failed(run):
            assert run_id not in self.ended, f"{run_id} had ended, and was reported as failed"
        else:
            assert run_id in self.ending, f"{run_id} was never ended"
        said = {int(text.split(" ")[0]) for text in run.get("prompt", {}).values()}
        assert said <= known, f"{run_id} has parts of the changes {said}, known are {known}"
        assert len(said) == (1 if said or 0 not in known else 0)
        assert run["start_time"] <= run["end_time"]


class RunHost(Host):
    """A host of a program that has such a ledger."""

    def __init__(self, env: dict[str, str], ledger: RunLedger, *program: object) -> None:
        self.runs = ledger
        self._raw = b""
        super().__init__(env, *program)

    def _read(self, fd: int) -> None:
        with open(fd, "rb") as pipe:
            for line in pipe:
                self._raw += line
                self.lines += 1

    def ledger(self, timeout: float = 20.0) -> Ledger:
        self._reader.join(timeout)
        assert not self._reader.is_alive(), "somebody keeps the ledger open"
        self.runs.read(self._raw)
        return Ledger()


def seeded() -> Random:
    seed = os.environ.get("PICOSTEP_SEED") or os.urandom(8).hex()
    print(f"\nPICOSTEP_SEED={seed}")
    return Random(seed)


def kill_after(host: RunHost, random: Random, within: float) -> None:
    """Kill a host some time after its first line."""
    try:
        wait_until(lambda: host.lines or host.process.poll() is not None, 20.0, "a run")
        time.sleep(random.uniform(0.0, within))
        host.kill()
    finally:
        host.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_moments(ring_base: Path, ingest: Ingest) -> None:
    """Every run that had begun arrives once, ended or failed, with its last change or the one under way."""
    random, ledger = seeded(), RunLedger()
    env = environment(ring_base, ingest.url, PICOSTEP_RING_BYTES=str(256 << 20))  # more than a host fills
    cycles = times(15, 500)
    for cycle in range(cycles):
        exporter = "off" if cycle % 4 == 1 else "process"
        seed = random.randrange(1 << 30)
        kill_after(RunHost({**env, "PICOSTEP_EXPORTER": exporter}, ledger, "open_runs", seed), random, 0.06)
    run_python("import picostep; picostep.send_step('r', prompt='p', response='r')", env)
    wait_for_no_rings(ring_base, 60.0)

    counted = totals(ring_base)
    assert counted["shed"] == 0
    runs = by_run(ingest)
    missing = ledger.begun - runs.keys()
    assert not missing, f"lost {len(missing)} of {len(ledger.begun)} runs"
    for arrivals in runs.values():
        assert len(arrivals) == 1
        ledger.check(arrivals[0])
    assert counted["accepted"] == counted["delivered"] == len(runs) + 1
    assert counted["untracked_runs"] == counted["corrupt"] == 0
    open_ones = sum(failed(only(runs, run_id)) for run_id in runs)
    print(f"{cycles} kills: {len(runs)} runs, of which {open_ones} were open; each arrived once")
    assert open_ones > cycles


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("program", "within"), [("changing", 0.01), ("ending", 0.006)])
def test_killed_inside_a_call(ring_base: Path, ingest: Ingest, program: str, within: float) -> None:
    """Of hosts that do nothing but change a run, or end it: at no moment is it nowhere, or half there."""
    random, ledger = seeded(), RunLedger()
    env = environment(ring_base, f"jsonl:{ring_base}/runs.jsonl", PICOSTEP_RING_BYTES=str(256 << 20))
    env["PICOSTEP_TO"] = env.pop("TCC_URL")
    for _ in range(times(2, 50)):
        for _ in range(4):  # rings of this size at once
            kill_after(RunHost({**env, "PICOSTEP_EXPORTER": "off"}, ledger, program), random, within)
        export(env)
    with (ring_base / "runs.jsonl").open() as lines:
        runs = [json.loads(line) for line in lines]
    assert len(runs) == len(ledger.begun)
    assert {run["run_id"] for run in runs} == ledger.begun
    for run in runs:
        assert failed(run) or run["run_id"] in ledger.ending
        assert run["run_id"] not in ledger.ended or not failed(run)
        if program == "changing":
            prompt = run["prompt"]
            assert prompt["user_prompt"] == prompt["system_prompt"]
            assert prompt["user_prompt"] in ("first " * 50, "second " * 50)
    print(f"{len(runs)} kills, {sum(map(failed, runs))} runs open")


# --- ways to leave ----------------------------------------------------------------------------------------

OPEN = """
import ctypes, os, signal, sys, threading
import picostep as tcc
name = sys.argv[1]
kept = tcc.run(name, session_id="s").prompt("question", "system").metadata(a="b")
tcc.run("let go").prompt("p")
ended = tcc.run(name + " ended").prompt("p")
ended.end()
def leave():
    local = tcc.run(name + " local").prompt("p")
    {}
leave()
"""

REPORTED = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "terminated": "os.kill(os.getpid(), signal.SIGTERM)",
    "crashed": "ctypes.string_at(0)",
    "at once": "os._exit(0)",
    "exec": "os.execv(sys.executable, [sys.executable, '-c', ''])",
    "uncaught": "raise KeyError('x')",
    "interrupted": "raise KeyboardInterrupt",
}
NOT_REPORTED = {
    "normal": "pass",
    "sys.exit": "sys.exit(3)",
    "caught": "try: 1 / 0\n    except ZeroDivisionError: pass",
    "thread": "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()",
}


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_ways_to_leave(ring_base: Path, ingest: Ingest) -> None:
    """The open runs of a process that was cut short are reported; one that came to its end abandons them."""
    env = environment(ring_base, ingest.url)
    for name, code in {**REPORTED, **NOT_REPORTED}.items():
        run_python(OPEN.format(code), env, args=(name,), check=False)
    wait_for_no_rings(ring_base)
    runs = by_run(ingest)

    expected = {f"{name} ended" for name in (*REPORTED, *NOT_REPORTED)}
    expected |= {f"{name}{more}" for name in REPORTED for more in ("", " local")}
    assert runs.keys() == expected
    for run_id in expected:
        assert failed(only(runs, run_id)) == (not run_id.endswith(" ended")), run_id
    for name in REPORTED:
        run = dict(only(runs, name))
        assert run.pop("start_time") <= run.pop("end_time")
        assert run == {
            "type": "run",
            "run_id": name,
            "status_code": 2,
            "status_message": DEAD,
            "session_id": "s",
            "prompt": {"user_prompt": "question", "system_prompt": "system"},
            "metadata": {"a": "b"},
        }
    counted = totals(ring_base)
    assert counted["accepted"] == counted["delivered"] == len(expected)


# --- fork -------------------------------------------------------------------------------------------------

FORK = """
import os, signal, time
import picostep as tcc
inherited = tcc.run("ended by a child").prompt("p")
mine = tcc.run("ended by the parent").prompt("p")
lost = tcc.run("left to the child").prompt("before")
if os.fork() == 0:
    inherited.response("by the child").end()
    lost.response("by the child")
    mine.response("by the child")
    own = tcc.run("of the child").prompt("p")
    assert tcc.flush(20.0)
    os._exit(0)
os.wait()
mine.end()
assert tcc.flush(20.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_fork(ring_base: Path, ingest: Ingest) -> None:
    """A run belongs to the process that began it; one that the child has ended has ended."""
    run_python(FORK, environment(ring_base, ingest.url), check=False)
    wait_for_no_rings(ring_base)
    runs = by_run(ingest)
    assert runs.keys() == {"ended by a child", "ended by the parent", "left to the child", "of the child"}
    assert not failed(only(runs, "ended by a child"))
    assert only(runs, "ended by a child")["response"] == "by the child"
    assert not failed(only(runs, "ended by the parent"))
    assert failed(only(runs, "left to the child"))
    assert "response" not in only(runs, "left to the child")
    assert failed(only(runs, "of the child"))


# --- many, large, and what the process goes on with -------------------------------------------------------

MANY = """
import os
import picostep as tcc
tcc.send_step("r", prompt="p", response="r")
assert tcc.flush(20.0)  # an exporter is there
runs = [tcc.run(str(number)).prompt("p" * 300) for number in range(2000)]
assert tcc.stats()["untracked_runs"] == 2000 - 1024, tcc.stats()
for run in runs[1500:]:
    run.end()
os._exit(0)
"""


def test_more_runs_than_slots(ring_base: Path, ingest: Ingest) -> None:
    """What the table has no room for is counted, and delivered when it ends."""
    run_python(MANY, environment(ring_base, ingest.url))
    wait_for_no_rings(ring_base)
    runs = by_run(ingest)
    assert {int(run_id) for run_id in runs} == {*range(1024), *range(1500, 2000)}
    assert {int(run_id) for run_id in runs if failed(only(runs, run_id))} == set(range(1024))
    counted = totals(ring_base)
    assert counted["untracked_runs"] == 2000 - 1024
    assert counted["accepted"] == counted["delivered"] == 1525


GO_ON = """
import os, sys
import picostep as tcc
tcc.send_step("r", prompt="p", response="r")
run = tcc.run("goes on").prompt("x" * 1_000_000)
quiet = tcc.run("says no more").prompt("p")
ends = tcc.run("ends").prompt("p")
assert tcc.shutdown(20.0)
run.metadata(a="without a ring")
print("closed", flush=True)
sys.stdin.read(1)
tcc.send_step("r", prompt="p", response="r")
run.metadata(b="in the new ring")
ends.end()
os._exit(0)
"""


def test_shutdown_and_go_on(ring_base: Path, ingest: Ingest) -> None:
    """A ring that a living process has closed says nothing of its runs; the next one does."""
    host = subprocess.Popen(
        [sys.executable, "-c", GO_ON],
        env=clean_environment(**environment(ring_base, ingest.url)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert host.stdout is not None
        assert host.stdout.readline() == b"closed\n"
        wait_for_no_rings(ring_base)
        assert by_run(ingest) == {}
        host.communicate(b"x", timeout=100)
    finally:
        host.kill()
        host.wait()
    wait_until(lambda: "goes on" in by_run(ingest), 20.0, "the run that went on")
    wait_for_no_rings(ring_base)
    runs = by_run(ingest)
    assert runs.keys() == {"goes on", "ends"}
    assert not failed(only(runs, "ends"))
    run = only(runs, "goes on")
    assert failed(run)
    assert run["metadata"] == {"a": "without a ring", "b": "in the new ring"}
    kept, _, marker = run["prompt"]["user_prompt"].partition("… ")
    assert kept == "x" * len(kept)
    assert marker == f"[picostep kept {len(kept)} of 1000000 characters]"


LEFT = """
import os
import picostep as tcc
runs = [tcc.run(str(number)).prompt("p" * 700) for number in range(1000)]
os._exit(0)
"""


def kill_while_it_writes(env: dict[str, str], ring: Path, target: int) -> bool:
    """Start an exporter and kill it when it has recorded so many runs; False if it was faster."""
    with ring.open("rb", buffering=0) as file:

        def accepted() -> int:
            return int(WORD.unpack(os.pread(file.fileno(), WORD.size, HEADER["accepted"]))[0])

        with subprocess.Popen(
            [sys.executable, "-m", "picostep", "export", "--once"],
            env=clean_environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as exporter:
            deadline = time.monotonic() + 20.0
            while accepted() < target and time.monotonic() < deadline:
                pass
            exporter.kill()
        return target <= accepted() < 1000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_exporter_killed_while_it_writes(ring_base: Path, ingest: Ingest) -> None:
    """Each run is recorded once, however often exporters are killed in the middle of it."""
    env = environment(ring_base, ingest.url)
    random = Random(os.urandom(8).hex())
    killed = rounds = 0
    while killed < times(1, 100):
        assert rounds < times(5, 150), "no exporter was ever killed in time"
        rounds += 1
        run_python(LEFT, {**env, "PICOSTEP_EXPORTER": "off"})
        (ring,) = rings(ring_base)
        first, second = sorted(random.sample(range(1, 800), 2))
        killed += kill_while_it_writes(env, ring, first)
        if ring.exists():
            killed += kill_while_it_writes(env, ring, second)
        export(env)
        assert not rings(ring_base)
        runs = by_run(ingest)
        ingest.take()
        assert {int(run_id) for run_id in runs} == set(range(1000))
        for arrivals in runs.values():
            assert {failed(run) for run in arrivals} == {True}
            assert len({run["end_time"] for run in arrivals}) == 1, "recorded twice"
    counted = totals(ring_base)
    assert counted["accepted"] == counted["delivered"] == 1000 * rounds
    assert counted["corrupt"] == counted.get("torn", 0) == 0
    print(f"\n{killed} exporters killed while they wrote, in {rounds} rounds")
