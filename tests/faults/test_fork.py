"""Processes that fork while they record: nobody hangs, no id is given twice, nothing is lost."""

from __future__ import annotations

import os
import sys
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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(name, marks=pytest.mark.slow) for name in ("spawn", "forkserver"))]
)
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
        time.sleep(120)
        os._exit(0)
    children.append(pid)
    time.sleep(0.0001)
try:
    assert picostep.flush(40.0), "the exporter waits for the children"
    (ring,) = picostep.stats()["rings"]
    os.kill(ring["exporter_pid"], 9)
    picostep.send_step("r", prompt="p", response="r")
    assert picostep.flush(40.0), "the lock of the exporter before lives on in the children"
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
import os, pathlib, sys, time
import picostep
picostep.send_step("r", prompt="parent", response="r")
assert picostep.flush(20.0)
if os.fork() == 0:
    deadline = time.monotonic() + 60
    while not pathlib.Path(sys.argv[1]).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    picostep.send_step("r", prompt="child", response="r")
    os._exit(0)
os._exit(0)
"""


def test_child_that_outlives_its_parent(ring_base: Path, ingest: Ingest, tmp_path: Path) -> None:
    """The parent's ring is given up when the parent dies, though the child had it open at the fork."""
    go_on = tmp_path / "go on"
    run_python(CHILD_OUTLIVES, environment(ring_base, ingest.url), args=(str(go_on),))
    wait_for_no_rings(ring_base, 10.0)
    assert [item["prompt"] for item in ingest.items()] == ["parent"]  # it waits
    go_on.touch()
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
    run_python(STATS, environment(ring_base, ingest.url))
    wait_until(lambda: len(ingest.items()) == 4, 10.0)


# --- forks of every kind, at every moment -----------------------------------------------------------------

# Eight threads record while others fork. A child records, ends in one of several ways, and tells its ids.
LOAD = """
import faulthandler, itertools, os, random, signal, sys, threading, time, warnings
import picostep

# Python 3.12 and later warn at such forks, by code that takes locks: it is that code which can hang then.
warnings.simplefilter("ignore", DeprecationWarning)
forks, seconds = int(sys.argv[1]), float(sys.argv[2])
faulthandler.dump_traceback_later(seconds, exit=True)
faulthandler.register(signal.SIGUSR1, all_threads=True)
reading, writing = os.pipe()
stop = threading.Event()
recorded = itertools.count()

def record(prompt="parent"):
    step = picostep.step("r").prompt(prompt).response("r")
    os.write(writing, step.step_id.encode() + b"\\n")
    step.end()

def load():
    while not stop.is_set():
        record()
        time.sleep(0.002)

def reap(pid):
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.001)
    os.kill(pid, signal.SIGUSR1)  # it says where it hangs
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"

def fork_once(number, depth=0):
    fork = os.forkpty if number % 10 == 3 else os.fork
    answer = fork()
    pid = answer[0] if isinstance(answer, tuple) else answer
    if pid == 0:
        try:
            for _ in range(3):
                record("child")
            if depth == 0 and number % 4 == 0:
                if fork_once(number + 1, 1):
                    os._exit(7)
                record("child")
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(8)
    status = reap(pid)
    if isinstance(answer, tuple):
        os.close(answer[1])
    return status

ids = []
def collect():
    with open(reading, "rb") as lines:
        ids.extend(lines.read().split())

collector = threading.Thread(target=collect)
collector.start()
threads = [threading.Thread(target=load) for _ in range(8)]
for thread in threads:
    thread.start()
results = []

def fork_some(count):
    for number in range(count):
        time.sleep(random.uniform(0.0, 0.01))
        results.append(fork_once(number))

others = [threading.Thread(target=fork_some, args=(forks // 2,))]  # not only from the main thread
for thread in others:
    thread.start()
fork_some(forks - forks // 2)
for thread in others:
    thread.join()
stop.set()
for thread in threads:
    thread.join()
os.close(writing)
collector.join()
assert results == [0] * forks, [result for result in results if result]
assert len(ids) == len(set(ids)), len(ids) - len(set(ids))
print(len(ids))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("exporter", ["process", "thread"])
def test_forks_under_load(ring_base: Path, ingest: Ingest, exporter: str) -> None:
    """
    From two threads, by fork() and forkpty(), in children as well, while eight threads record.

    Where a child exports by itself, its `os._exit()` may come between a delivery and the note of it: what was
    in flight is then delivered again by another process, the same in every byte.
    """
    forks = times(30, 500)
    env = environment(ring_base, ingest.url, PICOSTEP_EXPORTER=exporter)
    done = run_python(LOAD, env, timeout=60.0 + forks, args=(str(forks), str(50.0 + forks)))
    if exporter == "thread":  # what the last one left is taken by the next process
        last = environment(ring_base, ingest.url)
        run_python("import picostep; picostep.send_step('r', prompt='p', response='r')", last)
    wait_for_no_rings(ring_base)
    items = ingest.items()
    by_id = {item["step_id"]: item for item in items}
    assert len(by_id) == int(done.stdout) + (exporter == "thread")
    assert all(item == by_id[item["step_id"]] for item in items)
    assert exporter == "thread" or len(items) == len(by_id)
    print(f"\n{forks} forks, {exporter}: {len(by_id)} steps, {len(items) - len(by_id)} delivered twice")


# A fork comes while another thread opens its first ring: at each line of that, but for those of modules that
# are being imported, of which the next test is.
OPENING = """
import faulthandler, os, signal, sys, threading
import picostep, picostep.settings.destination, picostep.settings.table
picostep.runtime.FORK_TIMEOUT = 0.01  # else fork() waits for the thread that waits for it

def trial(nth):
    reached, go = threading.Event(), threading.Event()
    lines = 0
    OURS = ("runtime.py", "ringdir.py", "table.py", "destination.py", "urls.py")

    def line(frame, event, arg):
        nonlocal lines
        if event == "line" and frame.f_code.co_filename.endswith(OURS):
            lines += 1
            if lines == nth:
                reached.set()
                go.wait(100)
        return line

    def first():
        sys.settrace(line)
        picostep.send_step("r", prompt="p", response="r")
        sys.settrace(None)
        reached.set()

    thread = threading.Thread(target=first)
    thread.start()
    reached.wait(100)
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # faulthandler would wait for its thread in the parent
        picostep.send_step("r", prompt="p", response="r")
        stats = picostep.stats()
        os._exit(0 if stats["accepted"] == 1 else 9)
    go.set()
    thread.join()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, (nth, code)
    stats = picostep.stats()
    assert stats["accepted"] == 1, stats
    return lines >= nth

nth = 1
while True:
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(60, exit=True)
        os._exit(0 if trial(nth) else 3)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 3:
        break
    assert code == 0, (nth, code)
    nth += int(sys.argv[1])
assert nth > 20
print(nth)
"""


@pytest.mark.slow
def test_fork_while_another_thread_opens_a_ring(ring_base: Path) -> None:
    env = environment(ring_base, "http://127.0.0.1:9/", PICOSTEP_EXPORTER="off")
    done = run_python(OPENING, env, timeout=100.0, args=(str(times(11, 1)),))
    print(f"\nforked at {done.stdout.strip()} lines")


# The same where modules are imported: the thread goes on by itself, slowly.
IMPORTING = """
import faulthandler, os, signal, sys, threading, time
import picostep

def trial(nth):
    reached, lines = threading.Event(), 0

    def line(frame, event, arg):
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == nth:
                reached.set()
                time.sleep(0.03)
        return line

    def first():
        sys.settrace(line)
        picostep.send_step("r", prompt="p", response="r")
        sys.settrace(None)
        reached.set()

    thread = threading.Thread(target=first)
    thread.start()
    reached.wait(100)
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        picostep.send_step("r", prompt="p", response="r")
        os._exit(0 if picostep.stats()["accepted"] == 1 else 9)
    thread.join()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, (nth, code)
    return lines >= nth

nth, step, trials = 1, int(sys.argv[1]), 0
while True:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if trial(nth) else 3)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 3:
        break
    assert code == 0, (nth, code)
    nth += step
    trials += 1
assert trials > 10
print(trials)
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fork_while_another_thread_imports(ring_base: Path) -> None:
    """The child must not find a module locked for ever."""
    env = environment(ring_base, "http://127.0.0.1:9/", PICOSTEP_EXPORTER="off")
    done = run_python(IMPORTING, env, timeout=250.0, args=(str(times(701, 37)),))
    print(f"\nforked at {done.stdout.strip()} lines")


SPAWNS = """
import os, subprocess, sys
import picostep
picostep.send_step("r", prompt="p", response="r")

def before_exec():
    picostep.send_step("r", prompt="before exec", response="r")

for number in range(5):
    subprocess.run([sys.executable, "-S", "-c", ""], preexec_fn=before_exec, check=True)  # fork()
    subprocess.run([sys.executable, "-S", "-c", ""], close_fds=False, check=True)  # vfork() or posix_spawn()
    os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", ""], os.environ), 0)
    picostep.send_step("r", prompt="p", response="r")
assert picostep.stats()["accepted"] == 6, picostep.stats()
"""


def test_subprocesses(ring_base: Path, ingest: Ingest) -> None:
    """Also one that records between fork() and exec(); a child by vfork() leaves its parent's rings alone."""
    run_python(SPAWNS, environment(ring_base, ingest.url))
    wait_for_no_rings(ring_base)
    assert sorted(item["prompt"] for item in ingest.items()) == ["before exec"] * 5 + ["p"] * 6
