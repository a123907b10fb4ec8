"""Records made in the middle of recording: by signal handlers, finalizers, hooks, log handlers, arguments."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from oracle import environment, times
from support import Ingest, free_port, run_python

# --- the first record -------------------------------------------------------------------------------------

# In a forked child each, as the first record comes but once in a process: at the nth line that Python
# executes for it, another is made. Most of the lines are those of modules that are imported to check a URL.
FIRST = """
import faulthandler, os, sys, traceback
import picostep

def record():
    with picostep.run() as run:
        run.prompt("p")
        with run.step() as step:
            step.prompt("p").response("r").tokens(completion=3)

def first(nth):
    lines, errors = 0, []

    def line(frame, event, arg):
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == nth:
                sys.settrace(None)
                attempt()
        return line

    def attempt():
        try:
            record()
        except BaseException:
            errors.append(traceback.format_exc())

    sys.settrace(line)
    attempt()
    sys.settrace(None)
    if lines < nth:
        return 3
    stats = picostep.stats()
    counted = stats["accepted"] + stats["dropped"]["no_ring"]
    if stats["recorded"] != 4 or counted != 4 or stats["accepted"] < 2:
        errors.append(f"{stats}")
    attempt()
    if picostep.stats()["accepted"] != stats["accepted"] + 2:
        errors.append(f"{picostep.stats()} after {stats}")
    if errors:
        print("line", nth, *errors, file=sys.stderr, flush=True)
    return 1 if errors else 0

nth, step, tried = 1, int(sys.argv[1]), 0
while True:
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(60, exit=True)
        os._exit(first(nth))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 3:
        break
    assert code == 0, (nth, code)
    nth += step
    tried += 1
assert tried > 20, tried
print(tried, "places in", nth, "lines")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(900)
def test_records_in_the_middle_of_the_first(ring_base: Path) -> None:
    """They are accepted, or counted as lost while modules are half imported; the first never suffers."""
    env = environment(ring_base, f"http://127.0.0.1:{free_port()}/", PICOSTEP_EXPORTER="off")
    done = run_python(FIRST, env, timeout=800.0, args=(str(times(97, 7)),))
    print(f"\n{done.stdout}")


# --- many records -----------------------------------------------------------------------------------------

# What takes the place of an exporter, as JSON and sinks would be slower than the recording.
DRAIN = """
import os, select, sys, time
from picostep._ring import RingReader
ring, count, told = RingReader(sys.argv[1]), 0, False
while not told or ring.backlog:
    records = ring.read(4096, 1 << 20)
    count += len(records)
    ring.release(ring.position, len(records))
    if not records:
        time.sleep(0.001)
        told = told or bool(select.select([0], [], [], 0)[0])
print(count)
"""

HOOKS = """
import faulthandler, gc, glob, itertools, logging, os, signal, subprocess, sys, threading, time
import picostep

goal, hooks, seconds = int(sys.argv[1]), sys.argv[2].split("+"), float(sys.argv[3])
faulthandler.dump_traceback_later(seconds, exit=True)
calls = itertools.count()  # counted in C: a handler cannot come in between
by_hooks = itertools.count()

def record():
    next(calls)
    picostep.send_step("r", prompt="p", response="r")

def hook(*_):
    next(by_hooks)
    record()

class Cycle:
    def __init__(self):
        self.cycle = self

    def __del__(self):
        hook()

class Handler(logging.Handler):
    def emit(self, message):
        hook()

if "log" in hooks:
    picostep.configure(misuse="log")
record()  # the first one after configure() is the subject of another test
(ring,) = glob.glob(os.environ["PICOSTEP_DIR"] + "/*/*/*.ring")
drain = subprocess.Popen(
    [sys.executable, "-c", sys.argv[4], ring], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
)
if "signal" in hooks:
    signal.signal(signal.SIGALRM, hook)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
if "gc" in hooks:
    gc.callbacks.append(hook)
    gc.set_threshold(1)
if "log" in hooks:
    logging.getLogger("picostep").addHandler(Handler())
    logging.getLogger("picostep").propagate = False

def work():
    if "trace" in hooks:
        sys.settrace(lambda frame, event, arg: hook())
    if "profile" in hooks:
        sys.setprofile(lambda frame, event, arg: hook() if event == "c_call" else None)
    with picostep.run() as run:
        next(calls)
        run.prompt({"m": ["p"]})
        for _ in range(rounds):
            for _ in range(50):
                record()
            next(calls)
            with run.step() as step:
                step.prompt({"m": ["p"]}).response(["r"]).tokens(1, 2, 3)
            if "gc" in hooks:
                Cycle()
            if "log" in hooks:
                picostep.runtime._misuses.clear()  # only the first of a kind is logged
                step.end()
    sys.settrace(None)
    sys.setprofile(None)

if "monitoring" in hooks:
    sys.monitoring.use_tool_id(3, "test")
    sys.monitoring.register_callback(3, sys.monitoring.events.CALL, hook)
    sys.monitoring.set_local_events(3, work.__code__, sys.monitoring.events.CALL)
start = time.monotonic()
rounds = goal // 51 // 3 + 1
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
work()
for thread in threads:
    thread.join()
signal.setitimer(signal.ITIMER_REAL, 0)
gc.callbacks.clear()
gc.collect()
if "monitoring" in hooks:
    sys.monitoring.free_tool_id(3)
spent = time.monotonic() - start
drained = int(drain.communicate("")[0])
stats, recorded, hooked = picostep.stats(), next(calls), next(by_hooks)
dropped = stats["dropped"]
assert recorded >= goal and hooked > goal // 3000, (recorded, hooked)
assert stats["recorded"] == recorded, (recorded, stats)
assert stats["accepted"] == recorded - dropped["ring_full"] == drained, (recorded, stats, drained)
assert stats["delivered"] == drained, (stats, drained)
print(f"{recorded} records, {hooked} by hooks, in {spent:.1f} s; {dropped['ring_full']} found the ring full")
"""

KINDS = [
    "signal",
    "gc",
    "log",
    *(pytest.param(hook, marks=pytest.mark.slow) for hook in ("trace", "profile")),
    pytest.param("monitoring", marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="PEP 669")),
    pytest.param("signal+gc+log", marks=pytest.mark.slow),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("hooks", KINDS)
def test_hooks_that_record(ring_base: Path, hooks: str) -> None:
    """From three threads: nobody hangs, and the counters are what was recorded."""
    count = times(30_000, 10_000_000 if "+" in hooks else 1_000_000)
    env = {"PICOSTEP_DIR": str(ring_base), "PICOSTEP_TO": "stdout", "PICOSTEP_EXPORTER": "off"}
    done = run_python(HOOKS, env, timeout=800.0, args=(str(count), hooks, str(times(60, 700)), DRAIN))
    assert done.stderr == ""
    print(f"\n{hooks}: {done.stdout}")


# --- arguments that call back -----------------------------------------------------------------------------

HOSTILE = """
import datetime, faulthandler
import picostep
faulthandler.dump_traceback_later(100, exit=True)
ended = []

class Ends:
    # What calls a method of it ends the object that it is given to, and records.
    target = None

    def strike(self):
        picostep.send_step("r", prompt="p", response="r")
        if self.target is not None:
            target, self.target = self.target, None
            target.end()
            ended.append(target)

class Count(Ends, int):
    def __index__(self):
        self.strike()
        return 7

class Index(Ends):
    def __index__(self):
        self.strike()
        return 7

class Mapping(Ends, dict):
    def items(self):
        self.strike()
        return super().items()

class Text(Ends, str):
    def __str__(self):
        self.strike()
        return "text"

    def __len__(self):
        self.strike()
        return 3

    def __eq__(self, other):
        self.strike()
        return False

    __hash__ = str.__hash__

class Zone(Ends, datetime.tzinfo):
    def utcoffset(self, when):
        self.strike()
        return datetime.timedelta(0)

class Broken(Ends, Exception):
    def __str__(self):
        self.strike()
        return "broken"

def step():
    return picostep.step("r").prompt("p").response("r").tokens(1)

def count(value): return lambda step: step.tokens(value, completion=value)
def body(value): return lambda step: step.prompt(value)
def text(value): return lambda step: step.model(value).finish_reason(value)
def when(zone): return lambda step: step.end(datetime.datetime(2100, 1, 1, tzinfo=zone))
def leave(error):
    def act(step):
        with step:
            raise error
    return act

for target_too in (False, True):
    for hostile, act in [
        *((kind(), count) for kind in (Count, Index)),
        *((kind({"a": 1}), body) for kind in (Mapping,)),
        *((kind("abc"), text) for kind in (Text,)),
        (Zone(), when),
        (Broken(), leave),
    ]:
        given = step()
        hostile.target = given if target_too else None
        try:
            act(hostile)(given)
        except (picostep.PicostepError, Broken):
            pass
        if hostile.target is not None:  # none of its methods was called
            hostile.target = None
        try:
            given.end()
        except picostep.EndedError:
            pass
        try:
            given.end()
        except picostep.EndedError:
            pass
        else:
            raise AssertionError("ended twice")
        repr(given), given.step_id
assert len(ended) >= 3, ended
assert picostep.flush(20.0)
"""


def test_arguments_that_end_what_they_are_given_to(ring_base: Path, ingest: Ingest) -> None:
    """Each object is recorded once, whatever its arguments do in the middle of a call."""
    done = run_python(HOSTILE, environment(ring_base, ingest.url))
    assert done.stderr == ""
    items = ingest.items()
    own = [item["step_id"] for item in items if item.get("prompt_uncached_tokens") is not None]
    assert len(own) == len(set(own)) == 12
