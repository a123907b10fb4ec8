"""How hosts and exporters end, what they share meanwhile, and who gets to see the key."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from oracle import (
    KEY,
    Host,
    Oracle,
    environment,
    exporter_pids,
    rings,
    totals,
    wait_for_exporter,
    wait_for_no_rings,
)
from support import Ingest, clean_environment, run_python, wait_until

Start = Callable[..., Host]

RECORD = "import picostep\npicostep.send_step('r', prompt='{}', response='r')\n"
ONE = RECORD.format("one")


def prompts(ingest: Ingest) -> list[str]:
    return sorted(item["prompt"] for item in ingest.items())


# --- ways to leave ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("exporter", ["process", pytest.param("thread", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("leave", "code"),
    [
        ("", 0),
        ("import sys; sys.exit(3)", 3),
        ("raise KeyError('x')", 1),
        ("import threading, sys; t = threading.Thread(target=sys.exit); t.start(); t.join()", 0),
    ],
)
def test_ordinary_exit_delivers(
    ring_base: Path, ingest: Ingest, exporter: str, leave: str, code: int
) -> None:
    """Without flush(): all records are out when the process is gone."""
    many = "import picostep\nfor n in range(500): picostep.send_step('r', prompt='one', response='r')\n"
    env = environment(ring_base, ingest.url, PICOSTEP_EXPORTER=exporter)
    done = run_python(many + leave, env, check=False)
    assert done.returncode == code, done.stderr
    assert prompts(ingest) == ["one"] * 500
    assert "picostep" not in done.stderr


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        ("import os; os._exit(4)", 4),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("import os; os.abort()", -signal.SIGABRT),
        ("import os, sys; os.execv(sys.executable, [sys.executable, '-c', ''])", 0),
    ],
)
def test_sudden_exit_delivers(ring_base: Path, ingest: Ingest, leave: str, code: int) -> None:
    """The exporter, or the next one, takes what a process left that ran no code of ours at its end."""
    env = environment(ring_base, ingest.url)
    first = run_python(ONE + "picostep.flush(20.0)", env)  # its exporter is there for the next host
    assert first.returncode == 0
    assert run_python(RECORD.format("two") + leave, env, check=False).returncode == code
    wait_until(lambda: prompts(ingest) == ["one", "two"], 10.0)


def test_records_made_by_atexit_handlers(ring_base: Path, ingest: Ingest) -> None:
    """Handlers run before and after ours; both may still record."""
    run_python(
        "import atexit\n"
        "atexit.register(lambda: picostep.send_step('r', prompt='last', response='r'))\n"
        f"{RECORD.format('first')}"
        "atexit.register(lambda: picostep.send_step('r', prompt='second', response='r'))\n",
        environment(ring_base, ingest.url),
    )
    wait_until(lambda: prompts(ingest) == ["first", "last", "second"], 10.0)


def test_recording_goes_on_after_shutdown(ring_base: Path, ingest: Ingest) -> None:
    run_python(
        f"{RECORD.format('1')}assert picostep.shutdown(20.0)\n"
        "picostep.send_step('r', prompt='2', response='r')\nassert picostep.flush(20.0)\n"
        "assert picostep.stats()['accepted'] == picostep.stats()['delivered'] == 2, picostep.stats()\n",
        environment(ring_base, ingest.url),
    )
    assert prompts(ingest) == ["1", "2"]
    wait_for_no_rings(ring_base)


DAEMONS = """
import threading, time
import picostep

def record():
    while True:
        for _ in range(50):
            picostep.send_step("r", prompt="p" * 300, response="r")
        time.sleep(0.002)

for _ in range(4):
    threading.Thread(target=record, daemon=True).start()
while picostep.stats()["recorded"] < 1000:
    time.sleep(0.005)
"""


def test_daemon_threads_that_record_to_the_end(ring_base: Path, ingest: Ingest) -> None:
    done = run_python(DAEMONS, environment(ring_base, ingest.url))
    assert done.stderr == ""
    wait_for_no_rings(ring_base)
    counted = totals(ring_base)
    assert counted["accepted"] == counted["delivered"] == len(ingest.items()) >= 1000


REENTRANT = """
import gc, itertools, signal
import picostep

recorded = itertools.count()  # counted in C: a handler cannot come in between
alarms = 0

def record():
    next(recorded)
    picostep.send_step("r", prompt={"messages": ["p"]}, response="r")

def alarm(*_):
    global alarms
    alarms += 1
    record()

class Finalized:
    def __init__(self):
        self.cycle = self

    def __del__(self):
        record()

record()  # what is imported at first use cannot be imported by a handler that interrupts that
signal.signal(signal.SIGALRM, alarm)
gc.set_threshold(5)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0002)
made = 0
while made < 2000 or alarms < 100:
    Finalized()
    record()
    made += 1
signal.setitimer(signal.ITIMER_REAL, 0)
gc.collect()
assert picostep.flush(60.0)
stats, count = picostep.stats(), next(recorded)
assert count == 1 + 2 * made + alarms, (count, made, alarms)
assert stats["accepted"] == stats["delivered"] == count, (count, stats)
print(count)
"""


def test_records_made_by_signal_handlers_and_finalizers(ring_base: Path, ingest: Ingest) -> None:
    """They may come in the middle of any other call, also of one that records."""
    done = run_python(REENTRANT, environment(ring_base, ingest.url))
    assert len(ingest.items()) == int(done.stdout)


COUNT = """
import sys, threading
import picostep
sys.setswitchinterval(1e-6)
stop = False
errors = []

def count():
    while not stop:
        try:
            picostep.stats()
            picostep.flush(0)
        except Exception as error:
            errors.append(error)

threads = [threading.Thread(target=count) for _ in range(3)]
for thread in threads:
    thread.start()
for number in range(60):
    picostep.run(api_key=f"dev_{number}", tcc_url="http://127.0.0.1:9/").prompt("p").end()
    if number % 20 == 19:
        picostep.shutdown(0)
stop = True
for thread in threads:
    thread.join()
assert not errors, errors
"""


def test_counting_while_other_threads_open_rings(ring_base: Path) -> None:
    env = {"PICOSTEP_DIR": str(ring_base), "PICOSTEP_EXPORTER": "off", "PICOSTEP_RING_BYTES": str(256 << 10)}
    run_python(COUNT, env)


# --- exporter and host ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_hosts_share_an_exporter_which_leaves_after_them(
    ring_base: Path, ingest: Ingest, start_host: Start
) -> None:
    env, oracle = environment(ring_base, ingest.url), Oracle(ingest)
    hosts = [start_host(env, "endless", seed, "small", 1) for seed in range(2)]
    for host in hosts:
        host.wait_for_promise(50)
    pid = wait_for_exporter(ring_base)
    for host in hosts:
        host.wait_for_promise(200)
        assert exporter_pids(ring_base) == {pid}
    for host in hosts:
        oracle.expect(host.kill())
    oracle.check_nothing_lost()
    wait_for_no_rings(ring_base)
    assert exporter_pids(ring_base) == {pid}
    wait_until(lambda: not exporter_pids(ring_base), 10.0, "the exporter ends when it is not needed")
    assert oracle.repeated() == 0


@pytest.mark.slow
def test_exporter_stays_while_a_host_is_idle_and_is_its_own_group(ring_base: Path, ingest: Ingest) -> None:
    """Ctrl-C, and the end of a whole process group, are for the host alone."""
    code = f"{ONE}import time\npicostep.flush(20.0)\nprint('ready', flush=True)\ntime.sleep(60)\n"
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
        host = subprocess.Popen(
            [sys.executable, "-c", code],
            env=clean_environment(**environment(ring_base, ingest.url)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            assert host.stdout
            assert host.stdout.readline() == b"ready\n"
            pid = wait_for_exporter(ring_base)
            assert os.getsid(pid) != os.getsid(host.pid)
            os.killpg(host.pid, number)
            host.wait(100)
            assert exporter_pids(ring_base) == {pid}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(host.pid, signal.SIGKILL)
            host.communicate()
    pid = wait_for_exporter(ring_base)
    os.kill(pid, signal.SIGINT)
    run_python(RECORD.format("after"), environment(ring_base, ingest.url))
    assert "after" in prompts(ingest)
    assert exporter_pids(ring_base) == {pid}


def test_pipes_of_the_host_are_closed_with_it(ring_base: Path, ingest: Ingest) -> None:
    """Whoever reads a host's output to its end does not wait for the exporter, which another host keeps."""
    code = f"{ONE}import sys\npicostep.flush(20.0)\nprint('ready', flush=True)\nsys.stdin.read()\n"
    hosts = []
    try:
        for _ in range(2):
            host = subprocess.Popen(
                [sys.executable, "-c", code],
                env=clean_environment(**environment(ring_base, ingest.url)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            hosts.append(host)
            assert host.stdout
            assert host.stdout.readline() == b"ready\n"
        pid = wait_for_exporter(ring_base)
        assert hosts[0].communicate(b"", timeout=100) == (b"", b"")
        assert exporter_pids(ring_base) == {pid}
    finally:
        for host in hosts:
            host.kill()
            host.communicate()


@pytest.mark.slow
def test_rings_adopted_by_a_thread(ring_base: Path, ingest: Ingest, start_host: Start) -> None:
    """The thread exporter does the same jobs: it takes over rings of dead processes."""
    oracle, env = Oracle(ingest), environment(ring_base, ingest.url)
    host = start_host({**env, "PICOSTEP_EXPORTER": "off"}, "endless", 1, "mixed", 2)
    host.wait_for_promise(100)
    oracle.expect(host.kill())
    adopter = start_host({**env, "PICOSTEP_EXPORTER": "thread"}, "endless", 2, "small", 1)
    adopter.wait_for_promise()
    wait_until(lambda: len(rings(ring_base)) == 1, 20.0, "the dead host's ring is removed")
    oracle.expect(adopter.kill())
    oracle.expect(start_host(env, "adopt").finish(20.0))
    oracle.check_nothing_lost()


# --- who sees the key -------------------------------------------------------------------------------------


def test_key_is_nowhere_to_be_seen(ring_base: Path, ingest: Ingest) -> None:
    """Not in an argv, the exporter's environment, a ring, a log, a name. It is in the request."""
    other_key = "dev_other-0123456789"
    code = (
        "import picostep, sys\n"
        "picostep.send_step('r', prompt='one', response='r')\n"
        "key = sys.stdin.readline().strip()\n"
        "picostep.run(api_key=key, tcc_url=sys.argv[1]).prompt('two').end()\n"
        "picostep.flush(20.0)\nprint(picostep.stats())\nprint('ready', flush=True)\nsys.stdin.read()\n"
    )
    host = subprocess.Popen(
        [sys.executable, "-c", code, ingest.url + "/other"],
        env=clean_environment(**environment(ring_base, ingest.url, TCC_DEBUG="1")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        assert host.stdin
        host.stdin.write(f"{other_key}\n".encode())
        host.stdin.flush()
        ingest.wait_for(2)
        pids = wait_until(lambda: exporter_pids(ring_base), 10.0)
        assert len(pids) == 2  # a directory, and so an exporter, for each destination
        seen = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in [*pids, host.pid]) + b"".join(
            Path(f"/proc/{pid}/environ").read_bytes() for pid in pids
        )
        for path in ring_base.rglob("*"):
            seen += str(path).encode()
            if path.is_file():
                seen += path.read_bytes()
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    finally:
        output = host.communicate(b"", timeout=100)[0]
    assert b"ready" in output
    for key in (KEY, other_key):
        assert key.encode() not in seen + output
    keys = {request.path: request.headers["authorization"] for request in ingest.requests}
    assert keys == {"/": f"Bearer {KEY}", "/other": f"Bearer {other_key}"}


@pytest.mark.parametrize("exporter", ["process", pytest.param("thread", marks=pytest.mark.slow)])
def test_a_destination_of_its_own(ring_base: Path, ingest: Ingest, exporter: str) -> None:
    """A run with its own key and URL, and its steps, go there and nowhere else."""
    code = (
        "import picostep, sys\n"
        "for number in range(50):\n"
        "    with picostep.run() as run:\n"
        "        run.prompt('default')\n"
        "        with run.step() as step: step.prompt('default').response('r')\n"
        "    with picostep.run(api_key='dev_other', tcc_url=sys.argv[1]) as run:\n"
        "        run.prompt('other')\n"
        "        with run.step() as step: step.prompt('other').response('r')\n"
        "        with run.tool_call('t') as call: call.args('other')\n"
    )
    with Ingest() as other:
        env = environment(ring_base, ingest.url, PICOSTEP_EXPORTER=exporter)
        run_python(code, env, args=(other.url,))
        for server, key, word, count in ((ingest, KEY, "default", 100), (other, "dev_other", "other", 150)):
            assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {key}"}
            items = server.items()
            assert len(items) == count
            for item in items:
                assert json.dumps(item).count(f'"{word}"') == 1


# --- ring directories that cannot be used -----------------------------------------------------------------


def a_file(base: Path) -> None:
    (base / f"picostep-{os.geteuid()}").touch()


def a_link(base: Path) -> None:
    (base / "elsewhere").mkdir(mode=0o700)
    (base / f"picostep-{os.geteuid()}").symlink_to("elsewhere")


def open_to_others(base: Path) -> None:
    (base / f"picostep-{os.geteuid()}").mkdir()
    (base / f"picostep-{os.geteuid()}").chmod(0o777)


def foreign(base: Path) -> None:
    (base / f"picostep-{os.geteuid()}").mkdir(mode=0o700)
    try:
        os.chown(base / f"picostep-{os.geteuid()}", 12345, 12345)
    except PermissionError:
        pytest.skip("only root can give a directory away")


def unwritable(base: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root can write everywhere")
    base.chmod(0o500)


FALLBACK = (
    "import picostep, json\n"
    "for n in range(100): picostep.send_step('r', prompt='p' * 1000, response='r')\n"
    "picostep.run().prompt('q').end()\n"
    "assert picostep.flush(20.0), picostep.stats()\n"
    "(ring,) = picostep.stats()['rings']\n"
    "assert ring['private'], ring\n"
    "for n in range(100): picostep.send_step('r', prompt='p' * 1000, response='r')\n"
)


@pytest.mark.parametrize(
    "spoil",
    [
        a_file,
        unwritable,
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in (a_link, open_to_others, foreign)),
    ],
)
def test_unusable_directory(ring_base: Path, ingest: Ingest, spoil: Callable[[Path], None]) -> None:
    """A private ring and the thread exporter take over; one warning says so, and all is delivered."""
    spoil(ring_base)
    done = run_python(FALLBACK, environment(ring_base, ingest.url))
    assert len(ingest.items()) == 201
    (line,) = done.stderr.splitlines()
    assert "records do not outlive the process" in line
    assert str(ring_base) in line
    assert not rings(ring_base)
    ring_base.chmod(0o700)


def test_full_file_system(ring_base: Path, ingest: Ingest) -> None:
    """The same where no file of the least size can be had."""

    def allow_small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-c", FALLBACK],
        env=clean_environment(**environment(ring_base, ingest.url)),
        preexec_fn=allow_small_files,
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert len(ingest.items()) == 201
    assert done.stderr.decode().count("records do not outlive the process") == 1
    assert not list(ring_base.glob("*/*/.new-*"))


@pytest.fixture
def small_file_system(ring_base: Path) -> Path:
    """A tmpfs of 64 MB, as containers have it at /dev/shm; nobody but its own mount namespace sees it."""
    probe = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "t", str(ring_base)], capture_output=True
    )
    if probe.returncode:
        pytest.skip("needs mount namespaces")
    return ring_base


WORKERS = """
import os, sys
import picostep
children = []
for number in range(40):
    pid = os.fork()
    if pid == 0:
        for n in range(20):
            picostep.send_step("r", prompt="p" * 20_000, response="r")
        assert picostep.flush(30.0), picostep.stats()
        os.write(1, b".")
        sys.stdin.read()  # keeps its ring until all have one
        sys.exit(0)
    children.append(pid)
"""


@pytest.mark.slow
def test_many_workers_in_a_small_shared_memory(small_file_system: Path, ingest: Ingest) -> None:
    """Forty workers and 64 MB: rings get smaller, then private; all deliver, and others have room left."""
    reading, writing = os.pipe()
    script = (
        f"{WORKERS}"
        f"os.read({reading}, 1)\n"
        f"space = os.statvfs({str(small_file_system)!r})\n"
        "os.write(2, f'free {space.f_bavail * space.f_frsize}\\n'.encode())\n"
        "failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in children)\n"
        "assert not failed, failed\n"
    )
    mounted = f'mount -t tmpfs -o size=64m t {small_file_system} && exec {sys.executable} -c "$0"'
    host = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", mounted, script],
        env=clean_environment(**environment(small_file_system, ingest.url)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[reading],
        start_new_session=True,
    )
    os.close(reading)
    try:
        assert host.stdin
        ingest.wait_for_items(800, 60.0)
        os.write(writing, b"x")
        host.stdin.close()
        host.stdin = None
        output, errors = host.communicate(timeout=100)
    finally:
        os.close(writing)
        with suppress(ProcessLookupError):
            os.killpg(host.pid, signal.SIGKILL)
        host.wait()
    assert host.returncode == 0, errors
    assert output == b"." * 40
    assert len(ingest.items()) == 800
    free = int(errors.split(b"free ")[1].split()[0])
    assert free >= 4 << 20, f"{free} bytes left of 64 MB"


@pytest.mark.parametrize("name", ["rubbish.ring", "1-00000000.ring"])
def test_hostile_files_beside_the_rings(ring_base: Path, ingest: Ingest, name: str) -> None:
    """Files that are no rings, links and pipes harm neither the exporter nor the rings beside them."""
    env = environment(ring_base, ingest.url)
    run_python(ONE, env)
    (directory,) = ring_base.glob("*/*")
    (directory / name).write_bytes(os.urandom(300_000))
    (directory / name).chmod(0o600)
    (directory / "link.ring").symlink_to("/etc/passwd")
    os.mkfifo(directory / "pipe.ring", 0o600)
    (directory / "short.ring").write_bytes(b"PICPSTEP")
    run_python(RECORD.format("two"), env)
    assert prompts(ingest) == ["one", "two"]
    assert Path("/etc/passwd").exists()
