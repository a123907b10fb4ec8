"""Processes that fork while they record: nobody hangs, no id is given twice, nothing is lost."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oracle import Host, Oracle, check_totals, environment, times, wait_for_no_rings
from support import Ingest, run_python, wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

Start = Callable[..., Host]


def check(ring_base: Path, oracle: Oracle) -> None:
    """All that was recorded has arrived, once, and no ring is left."""
    oracle.check_nothing_lost()
    assert oracle.promised == oracle.intended.keys()
    wait_for_no_rings(ring_base)
    assert oracle.repeated() == 0
    assert check_totals(ring_base)["accepted"] == len(oracle.promised)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("exporter", ["process", "thread"])
def test_fork_from_recording_threads(
    ring_base: Path, ingest: Ingest, start_host: Start, exporter: str
) -> None:
    """Children leave normally, by `os._exit` after their last `end()`, and have children themselves."""
    oracle = Oracle(ingest)
    forks = times(25 if exporter == "process" else 8, 100)
    host = start_host(environment(ring_base, ingest.url, PICOSTEP_EXPORTER=exporter), "forking", 1, forks)
    oracle.expect(host.finish(60.0 + forks))
    if exporter == "thread":  # what the last one left is taken by the next process
        oracle.expect(start_host(environment(ring_base, ingest.url), "adopt").finish(20.0))
    check(ring_base, oracle)
    print(f"\n{forks} forks, {exporter}: {len(oracle.promised)} steps, all delivered once")


@pytest.mark.skipif(sys.platform != "linux", reason="fork() through ctypes")
def test_fork_by_c_code(ring_base: Path, ingest: Ingest, start_host: Start) -> None:
    """No hook of Python runs in such a child."""
    oracle = Oracle(ingest)
    host = start_host(environment(ring_base, ingest.url), "forked_by_c", 1, times(10, 100))
    oracle.expect(host.finish(120.0))
    check(ring_base, oracle)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(ring_base: Path, ingest: Ingest, start_host: Start, method: str) -> None:
    oracle = Oracle(ingest)
    host = start_host(environment(ring_base, ingest.url), "processes", method, times(3, 20))
    oracle.expect(host.finish(120.0))
    check(ring_base, oracle)


PREFORK = """
import os, time
import picostep
picostep.send_step("r", prompt="p", response="r")
children = []
for _ in range(60):
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    children.append(pid)
    time.sleep(0.0001)
try:
    assert picostep.flush(10.0), "the exporter waits for the children"
    (ring,) = picostep.stats()["rings"]
    os.kill(ring["exporter_pid"], 9)
    picostep.send_step("r", prompt="p", response="r")
    assert picostep.flush(10.0), "the lock of the exporter before lives on in the children"
finally:
    for pid in children:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
"""


def test_children_forked_while_the_exporter_starts(ring_base: Path, ingest: Ingest) -> None:
    """A server that forks workers right after its first record: they must not hold up any exporter."""
    for _ in range(times(1, 10)):
        run_python(PREFORK, environment(ring_base, ingest.url))
        assert len(ingest.take()) == 2


CHILD_OUTLIVES = """
import os, sys, time
import picostep
picostep.send_step("r", prompt="parent", response="r")
assert picostep.flush(20.0)
if os.fork() == 0:
    time.sleep(float(sys.argv[1]))
    picostep.send_step("r", prompt="child", response="r")
    os._exit(0)
os._exit(0)
"""


def test_child_that_outlives_its_parent(ring_base: Path, ingest: Ingest) -> None:
    """The parent's ring is given up when the parent dies, though the child had it open at the fork."""
    run_python(CHILD_OUTLIVES, environment(ring_base, ingest.url), args=("1.5",))
    wait_for_no_rings(ring_base, 1.4)
    items = ingest.wait_for_items(2)
    assert sorted(item["prompt"] for item in items) == ["child", "parent"]
    wait_for_no_rings(ring_base)


STATS = """
import os, sys
import picostep
for number in range(3):
    picostep.send_step("r", prompt="p", response="r")
assert picostep.flush(20.0)
if os.fork() == 0:
    before = picostep.stats()
    assert before["recorded"] == before["accepted"] == 0, before
    assert not before["rings"], before
    picostep.send_step("r", prompt="p", response="r")
    assert picostep.stats()["accepted"] == 1, picostep.stats()
    assert picostep.flush(20.0)
    sys.exit(0)
_, status = os.wait()
assert status == 0, status
assert picostep.stats()["accepted"] == 3, picostep.stats()
"""


def test_child_counts_for_itself(ring_base: Path, ingest: Ingest) -> None:
    start = time.monotonic()
    run_python(STATS, environment(ring_base, ingest.url))
    wait_until(lambda: len(ingest.items()) == 4, 10.0)
    assert time.monotonic() - start < 20.0
