"""What concerns the whole process, called while other threads record: nothing breaks, all is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from oracle import times, totals, wait_for_no_rings
from support import clean_environment

STRESS = """
import json, sys, threading, time
import picostep as tcc

seconds, to = float(sys.argv[1]), sys.argv[2]
sys.setswitchinterval(1e-5)  # threads change places far more often than in a host
tcc.configure(to=to)
end = time.monotonic() + seconds
failures, calls, turns = [], [], []

def steps():
    n = 0
    while time.monotonic() < end:
        tcc.send_step("r", prompt="p" * 100, response="q")
        tcc.step("r").prompt("p").response("q").end()
        n += 2
    calls.append(n)

def runs():
    n = 0
    while time.monotonic() < end:
        run = tcc.run().prompt("p")  # in the table of open runs, of a ring that may be gone by now
        with run.step() as step:
            step.prompt("p").response("q")
        run.tool_call("t").error("x")
        run.response("q").end()
        n += 3
    calls.append(n)

def shared():
    # One run that threads change at once, while its ring comes and goes.
    n = 0
    while time.monotonic() < end:
        run = tcc.run().prompt("p")
        others = [threading.Thread(target=change, args=(run,)) for _ in range(2)]
        for other in others:
            other.start()
        for text in ("a", "b" * 300, "c"):
            run.status(0, text).prompt(text)
        for other in others:
            other.join()
        run.end()
        n += 1
    calls.append(n)

def change(run):
    for text in ("x" * 200, "y", "z" * 50):
        run.metadata(text=text).response(text).status(0)

def turn(act):
    n = 0
    while time.monotonic() < end:
        act()
        n += 1
    turns.append(n)

def guarded(act, *args):
    try:
        act(*args)
    except BaseException as error:
        failures.append(repr(error))

threads = [threading.Thread(target=guarded, args=args) for args in (
    (steps,), (steps,), (runs,), (shared,),
    (turn, lambda: tcc.shutdown(0)),
    (turn, lambda: tcc.shutdown(0.001)),
    (turn, lambda: tcc.configure(to=to, ring_bytes=1 << 18)),
    (turn, lambda: tcc.configure(to=to, ring_bytes=1 << 19)),
    (turn, lambda: tcc.flush(0.002)),
    (turn, lambda: json.dumps(tcc.stats())),
)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
stats = tcc.stats()
print(json.dumps({"failures": failures, "calls": sum(calls), "turns": turns, "stats": stats}))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("exporter", ["process", "thread"])
def test_all_calls_against_recording(ring_base: Path, tmp_path: Path, exporter: str) -> None:
    out = tmp_path / "steps.jsonl"
    env = clean_environment(
        PICOSTEP_DIR=str(ring_base),
        PICOSTEP_EXPORTER=exporter,
        PICOSTEP_SPOOL=str(tmp_path / "spool"),
        XDG_STATE_HOME=str(tmp_path / "state"),
    )
    seconds = times(2.0, 300.0)
    host = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", STRESS, str(seconds), f"jsonl:{out}"],
        env=env,
        capture_output=True,
        text=True,
        timeout=seconds * 2 + 120,
        check=False,
    )
    assert host.returncode == 0, host.stderr[-4000:]
    assert "Traceback" not in host.stderr
    told = json.loads(host.stdout)
    assert told["failures"] == []
    assert all(told["turns"]), told["turns"]
    # Records that met a ring just closed are counted as lost, and every other one as accepted.
    stats = told["stats"]
    assert stats["recorded"] == told["calls"]
    lost = stats["dropped"]["no_ring"] + stats["dropped"]["ring_full"]
    assert stats["accepted"] == told["calls"] - lost
    if exporter == "process":
        wait_for_no_rings(ring_base, 60.0)
        counted = totals(ring_base)
        assert counted["accepted"] == counted["delivered"] == stats["accepted"]
        assert len(out.read_bytes().splitlines()) >= stats["accepted"]
