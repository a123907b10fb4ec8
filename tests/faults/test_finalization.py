"""Records made while the interpreter ends, and processes that end in the middle of recording."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from oracle import check_totals, environment, exit_time, impatient, times, totals, wait_for_no_rings
from support import Ingest, clean_environment, free_port, run_python, wait_until

# Seconds that picostep may add to an exit, however the backend behaves; beside other work those that it takes
# to get the CPU come to that.
EXIT_LIMIT = 2.0 + times(8.0, 0.25)

# Each records "late" when it runs, and "first" before. What runs after the interpreter has taken modules down
# may find nothing to record with, but must say nothing.
LATE = {
    "a finalizer of a global": """
class Finalized:
    def __init__(self): self.record = record
    def __del__(self): self.record("late")
kept = Finalized()
""",
    "a finalizer in a cycle": """
class Finalized:
    def __init__(self): self.cycle, self.record = self, record
    def __del__(self): self.record("late")
kept = Finalized()
""",
    "weakref.finalize": """
import weakref
class Kept: pass
kept = Kept()
weakref.finalize(kept, record, "late")
""",
    "a pool's thread": """
from concurrent.futures import ThreadPoolExecutor
import time
pool = ThreadPoolExecutor(1)
pool.submit(lambda: (time.sleep(0.2), record("late")))
""",
    "a thread that is not a daemon": """
import threading, time
threading.Thread(target=lambda: (time.sleep(0.2), record("late"))).start()
""",
    "threading._register_atexit": """
import threading
threading._register_atexit(record, "late")
""",
    "atexit, registered first": "",  # see RECORD
    "an uncaught exception's hook": """
import sys
sys.excepthook = lambda *error: record("late")
raise KeyError("x")
""",
    "a thread killed by an exception from elsewhere": """
import ctypes, threading, time
begun = threading.Event()
def work():
    try:
        with picostep.run() as run:
            run.prompt("late")
            begun.set()
            while True: time.sleep(0.001)
    except SystemExit:
        pass
thread = threading.Thread(target=work)
thread.start()
begun.wait(100)
ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
thread.join(100)
""",
}
RECORD = """
import atexit, sys
if sys.argv[1] == "atexit, registered first":
    atexit.register(lambda: record("late"))
import picostep
def record(prompt):
    picostep.send_step("r", prompt=prompt, response="r")
record("first")
"""


def prompts(ingest: Ingest) -> list[str]:
    return sorted(
        item["prompt"] if isinstance(item["prompt"], str) else item["prompt"]["user_prompt"]
        for item in ingest.items()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", LATE)
def test_late_records(ring_base: Path, ingest: Ingest, name: str) -> None:
    env = environment(ring_base, ingest.url)
    done = run_python(RECORD + LATE[name], env, args=(name,), check=False)
    assert done.returncode == (1 if "uncaught" in name else 0), done.stderr
    assert done.stderr == ""
    wait_for_no_rings(ring_base)
    assert prompts(ingest) == ["first", "late"]
    check_totals(ring_base)


ENDS = {
    "abort": ("import os; os.abort()", -signal.SIGABRT, True),
    "SIGSEGV": ("import faulthandler; faulthandler.enable(); faulthandler._sigsegv()", -signal.SIGSEGV, True),
    "a fatal error": (
        "import ctypes; ctypes.pythonapi.Py_FatalError(b'told to')",
        -signal.SIGABRT,
        True,
    ),
    "SIGTERM": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, False),
    "SIGKILL": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, False),
    "sys.exit in a thread": (
        "import threading, sys; t = threading.Thread(target=sys.exit, args=(5,)); t.start(); t.join()",
        0,
        False,
    ),
    "Ctrl-C in asyncio": (
        "import asyncio, os, signal\n"
        "async def main():\n"
        "    with picostep.run() as run:\n"
        "        run.prompt('cancelled')\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        await asyncio.sleep(30)\n"
        "asyncio.run(main())",
        -signal.SIGINT,
        True,
    ),
}
WORK = """
import threading, time
import picostep
for _ in range(100):
    picostep.send_step("r", prompt="p", response="r")
def work():
    while True:
        picostep.send_step("r", prompt="p", response="r")
        time.sleep(0.001)
threading.Thread(target=work, daemon=True).start()
while picostep.stats()["recorded"] <= 100:  # until that has begun
    time.sleep(0.001)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS)
def test_ends_in_the_middle_of_recording(ring_base: Path, ingest: Ingest, name: str) -> None:
    """The exit code is the one without us; what was accepted arrives, and is all that arrives."""
    leave, code, speaks = ENDS[name]
    env = environment(ring_base, ingest.url)
    done = run_python(WORK + leave, env, check=False)
    assert done.returncode == code, done.stderr
    assert speaks or done.stderr == ""
    for line in done.stderr.splitlines():
        assert "picostep/" not in line, done.stderr  # no frame of ours
    if not ingest.items():  # it ended before it had an exporter; the next process brings one
        run_python("import picostep; picostep.send_step('r', prompt='n', response='r')", env)
    wait_for_no_rings(ring_base)
    counted = totals(ring_base)
    assert counted["accepted"] == counted["delivered"] == len(ingest.items()) > 100
    assert not counted["torn"] or code < 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["dead", pytest.param("silent", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["daemon", "ordinary"])
def test_exit_while_threads_record(ring_base: Path, ingest: Ingest, backend: str, kind: str) -> None:
    """They go on for ever, or a little longer; the exit takes two seconds at most, and nothing is lost."""
    import threading

    from support import Reply

    code = (
        "import threading, time\nimport picostep\n"
        "over = threading.Event()\n"
        "def work():\n"
        "    while not over.is_set():\n"
        "        picostep.send_step('r', prompt='p', response='r')\n"
        "        time.sleep(0.001)\n"
        "for _ in range(3): threading.Thread(target=work, daemon={daemon}).start()\n"
        "while picostep.stats()['recorded'] <= 1000: time.sleep(0.01)\n"
        "if not {daemon}: threading.Timer(0.1, over.set).start()\n"
        "print(time.monotonic(), flush=True)\n"
    ).replace("{daemon}", str(kind == "daemon"))
    release = threading.Event()
    port = free_port()
    if backend == "silent":
        ingest.default = Reply(hang=release)
    url = ingest.url if backend == "silent" else f"http://127.0.0.1:{port}"
    done = subprocess.Popen(
        [sys.executable, "-c", code],
        env=clean_environment(**impatient(environment(ring_base, url))),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert done.stdout
    since = float(done.stdout.readline())
    seconds = exit_time(done, since, 60.0)
    _, errors = done.communicate()
    assert done.returncode == 0, errors
    assert seconds <= EXIT_LIMIT + (0.1 if kind == "ordinary" else 0.0), errors
    # What is on disk by then needs no word.
    assert not errors or (errors.count(b"\n") == 1 and b"are not delivered yet" in errors)
    ingest.default = Reply()
    release.set()
    if backend == "silent":
        wait_for_no_rings(ring_base, 40.0)
        items = ingest.items()
    else:
        with Ingest(port) as back:
            wait_for_no_rings(ring_base, 40.0)
            items = back.items()
    counted = totals(ring_base)
    assert counted["accepted"] == counted["delivered"] > 1000
    assert len({item["step_id"] for item in items}) == counted["accepted"]


# --- what is taken away while a host lives ----------------------------------------------------------------

VANISHING = """
import os, shutil, sys, time
import picostep
picostep.send_step("r", prompt="first", response="r")
assert picostep.flush(20.0)
shutil.rmtree(os.environ["PICOSTEP_DIR"])
for _ in range(1000):
    picostep.send_step("r", prompt="second", response="r")
delivered = picostep.flush(5.0)
stats = picostep.stats()
assert stats["recorded"] == stats["accepted"] == 1001, stats
assert stats["delivered"] + stats["in_ring"] == 1001, stats
picostep.shutdown(0.0)
picostep.send_step("r", prompt="third", response="r")
assert picostep.flush(20.0), picostep.stats()
print(delivered)
"""


@pytest.mark.slow
def test_directory_that_vanishes(ring_base: Path, ingest: Ingest) -> None:
    """The host goes on; its exporter keeps what it has open; a ring opened later is in a new directory."""
    done = run_python(VANISHING, environment(ring_base, ingest.url))
    print(f"\nall delivered: {done.stdout.strip()}")
    found = prompts(ingest)
    assert found.count("third") == 1
    assert found.count("second") == 1000


EXPORT = [sys.executable, "-m", "picostep", "export"]


@pytest.mark.slow
def test_sidecar_that_is_killed_and_restarted(ring_base: Path, ingest: Ingest) -> None:
    """A host with an exporter beside it never notices; all that it recorded arrives."""
    code = (
        "import picostep, time\n"
        "for number in range(600):\n"
        "    picostep.send_step('r', prompt=str(number), response='r')\n"
        "    time.sleep(0.003)\n"
        "assert picostep.flush(20.0), picostep.stats()\n"
        "print(picostep.stats()['accepted'])\n"
    )
    env = clean_environment(**environment(ring_base, ingest.url))
    host = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**env, "PICOSTEP_EXPORTER": "external"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    sidecar: subprocess.Popen[bytes] | None = None
    try:
        for _ in range(4):
            known = len(ingest.items())
            sidecar = subprocess.Popen(EXPORT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_until(lambda known=known: len(ingest.items()) > known or host.poll() is not None, 20.0)
            sidecar.kill()
            sidecar.wait()
        sidecar = subprocess.Popen(EXPORT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        output, errors = host.communicate(timeout=100)
        assert (host.returncode, errors) == (0, b"")
        wait_for_no_rings(ring_base)
    finally:
        for process in (host, sidecar):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
    assert int(output) == 600
    assert {item["prompt"] for item in ingest.items()} == set(map(str, range(600)))


# --- a file system that fills up --------------------------------------------------------------------------

FILLED = """
import os, sys
import picostep
base = os.environ["PICOSTEP_DIR"]
picostep.send_step("r", prompt="p", response="r")
filler = os.open(base + "/filler", os.O_WRONLY | os.O_CREAT, 0o600)
def fill():
    for size in (1 << 20, 4096, 1):
        try:
            while True:
                os.write(filler, b"x" * size)
        except OSError:
            pass
if sys.argv[1] == "before":
    fill()
for number in range(3000):
    if number == 20 and sys.argv[1] == "during":
        fill()
    picostep.send_step("r", prompt="p" * 3000, response="r" * 100)
assert picostep.flush(30.0), picostep.stats()
stats = picostep.stats()
assert stats["recorded"] == 3001, stats
assert stats["accepted"] == 3001 - stats["dropped"]["ring_full"] - stats["dropped"]["no_ring"], stats
assert stats["delivered"] == stats["accepted"], stats
print(stats["accepted"], stats["shed"], stats["dropped"]["ring_full"])
"""


@pytest.mark.parametrize("moment", ["before", "during"])
def test_shared_memory_that_others_fill(ring_base: Path, ingest: Ingest, moment: str) -> None:
    """A tmpfs of 8 MiB that another file takes up: no SIGBUS, no exception, and every loss is counted."""
    probe = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "t", str(ring_base)], capture_output=True
    )
    if probe.returncode:
        pytest.skip("needs mount namespaces")
    mounted = f'mount -t tmpfs -o size=8m t {ring_base} && exec {sys.executable} -c "$0" "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, FILLED, moment],
        env=clean_environment(**environment(ring_base, ingest.url)),
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    accepted, shed, full = map(int, done.stdout.split())
    items = ingest.items()
    assert len(items) == accepted
    assert sum(not item.get("prompt") for item in items) == shed
    print(f"\n{moment}: {accepted} accepted, {shed} without bodies, {full} lost and counted")
