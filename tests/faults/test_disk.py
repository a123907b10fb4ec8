"""Disks that are full or fail, under the exporter or the ring: nothing is lost uncounted."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from oracle import Host, check_totals, environment, rings, sample, times
from picostep.exporter.spool import SYNC_AFTER
from proxy import Proxy, passing, refuse
from support import Ingest, clean_environment, wait_until
from workload import digest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs strace and mount namespaces")

Start = Callable[..., Host]
STEPS = 60


def in_file(path: Path) -> dict[str, str]:
    """Digest of each step that a file of JSON lines holds; fails if a line is damaged or comes twice."""
    found = [json.loads(line) for line in path.read_text().splitlines() if line]
    assert len({step["step_id"] for step in found}) == len(found)
    return {step["step_id"]: digest(step) for step in found}


def in_store(path: Path) -> dict[str, str]:
    """The same of a store."""
    with closing(sqlite3.connect(path)) as store:
        store.row_factory = sqlite3.Row
        (sound,) = store.execute("PRAGMA integrity_check").fetchone()
        assert sound == "ok"
        rows = [dict(row) for row in store.execute("SELECT * FROM steps")]
    return {
        row["step_id"]: digest({name: value for name, value in row.items() if value is not None})
        for row in rows
    }


READERS = {"jsonl": in_file, "store": in_store}


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if not found:
        pytest.skip("needs strace")
    if subprocess.run([found, "-o", "/dev/null", "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    return found


def export(env: dict[str, str], *under: str, timeout: float = 30.0) -> subprocess.CompletedProcess[bytes]:
    """Run `picostep export --once` under another program."""
    command = [*under, sys.executable, "-m", "picostep", "export", "--once"]
    try:
        return subprocess.run(
            command,
            env=clean_environment(**env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"still at it after {timeout} s: {error.stderr!r}") from None


CALLS = {"jsonl": ("write", "fsync", "ftruncate"), "store": ("pwrite64", "fdatasync", "openat")}
SWEEP = [
    (sink, f"{call}:error={error}:when={number}")
    for sink, calls in CALLS.items()
    for call in calls
    for error in ("ENOSPC", "EIO", "EDQUOT", "EINTR")
    for number in range(1, 11)
]
FEW = [
    ("jsonl", "write:error=ENOSPC:when=2"),
    ("jsonl", "fsync:error=EIO:when=1"),
    ("store", "pwrite64:error=ENOSPC:when=3"),
    ("store", "fdatasync:error=EIO:when=1"),
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_calls_that_fail(ring_base: Path, tmp_path: Path, start_host: Start, strace: str) -> None:
    """Each call that the exporter makes for its sink fails once; everything is stored once all the same."""
    for number, (sink, injection) in enumerate(times(FEW, SWEEP)):
        path = tmp_path / f"{number}.{sink}"
        env = environment(ring_base / str(number), "http://127.0.0.1:9", PICOSTEP_TO=f"{sink}:{path}")
        env["PICOSTEP_BATCH_RECORDS"] = "16"
        ledger = start_host({**env, "PICOSTEP_EXPORTER": "off"}, "some", number, "small", STEPS).finish(20.0)
        calls = ",".join(CALLS[sink])
        under = [strace, "-f", "-qq", "-o", str(tmp_path / "trace"), "-P", str(path), "-P", f"{path}-journal"]
        done = export(env, *under, "-e", f"trace={calls}", "-e", f"inject={injection}")
        assert done.returncode == 0, (injection, done.stderr)
        assert not rings(ring_base / str(number)), injection
        assert READERS[sink](path) == ledger.intended, injection
        assert b"Traceback" not in done.stderr, (injection, done.stderr)
        counted = check_totals(ring_base / str(number))
        assert counted["delivered"] == STEPS
        if (sink, injection) in FEW:
            assert "(INJECTED)" in (tmp_path / "trace").read_text(), injection
    print(f"\n{number + 1} failures injected, 0 steps lost")


WRITING, READING = ("pwrite64", "fdatasync", "fsync", "fstatfs"), ("pread64", "pwrite64")
SPOOL_SWEEP = [
    (calls, f"{call}:error={error}:when={number}")
    for calls in (WRITING, READING)
    for call in calls
    for error in ("ENOSPC", "EIO", "EDQUOT")
    for number in range(1, 6)
]
SPOOL_FEW = [
    (WRITING, "pwrite64:error=ENOSPC:when=2"),
    (WRITING, "fdatasync:error=EIO:when=1"),
    (READING, "pread64:error=EIO:when=2"),
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_calls_that_fail_for_the_spool(
    ring_base: Path, tmp_path: Path, start_host: Start, strace: str, ingest: Ingest
) -> None:
    """Each call that the exporter makes for its spool fails once; everything arrives once all the same."""
    proxy = Proxy(ingest.port)
    for number, (calls, injection) in enumerate(times(SPOOL_FEW, SPOOL_SWEEP)):
        base, place, trace = ring_base / str(number), tmp_path / str(number), tmp_path / "trace"
        env = environment(base, proxy.url, PICOSTEP_SPOOL=str(place), PICOSTEP_BATCH_RECORDS="16")
        proxy.set(refuse)
        ledger = start_host({**env, "PICOSTEP_EXPORTER": "off"}, "some", number, "small", STEPS).finish(20.0)
        # -D: the exporter is our child, not strace's.
        under = [strace, "-D", "-f", "-qq", "-o", str(trace), "-e", f"trace={','.join(calls)}"]
        injected = [*under, "-e", f"inject={injection}"]
        spool_all(env, base, injected if calls is WRITING else [])
        proxy.set(passing)
        files = [option for path in place.rglob("*.[sa]*") for option in ("-P", str(path))]
        done = export(env, *([*injected, *files] if calls is READING else []))
        assert done.returncode == 0, (injection, done.stderr)
        assert b"Traceback" not in done.stderr, (injection, done.stderr)
        assert not rings(base), injection
        items = [item for item in ingest.items() if item["step_id"] in ledger.intended]
        assert {item["step_id"]: digest(item) for item in items} == ledger.intended, injection
        assert len(items) == STEPS, injection
        assert check_totals(base)["delivered"] == STEPS
        if (calls, injection) in SPOOL_FEW:
            assert "(INJECTED)" in trace.read_text(), injection
    proxy.stop()
    print(f"\n{number + 1} failures injected, 0 steps lost")


def spool_all(env: dict[str, str], ring_base: Path, under: Sequence[str]) -> None:
    """Run an exporter that has no backend until everything is in the spool, and synced or not any more."""
    command = [*under, sys.executable, "-m", "picostep", "export"]
    process = subprocess.Popen(command, env=clean_environment(**env), stderr=subprocess.PIPE)
    try:
        wait_until(lambda: [ring["in_spool"] for ring in sample(ring_base)] == [STEPS], 30.0, "it is spooled")
        time.sleep(SYNC_AFTER)
        process.terminate()
        _, errors = process.communicate(timeout=100)
        assert b"Traceback" not in errors, errors
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_host_without_space_for_its_ring(ring_base: Path, ingest: Ingest, strace: str) -> None:
    """A ring whose space cannot be had, from the first call on or later: no exception, and all is counted."""
    code = (
        "import json, picostep\n"
        "for n in range(300): picostep.send_step('r', step_id=str(n), prompt='p' * 20_000, response='r')\n"
        "picostep.flush(20.0)\n"
        "print(json.dumps(picostep.stats()))\n"
    )
    under = [strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fallocate"]
    for number in times((1, 2), tuple(range(1, 21))):
        before = len(ingest.items())
        host = subprocess.run(
            [*under, "-e", f"inject=fallocate:error=ENOSPC:when={number}+", sys.executable, "-c", code],
            env=clean_environment(**environment(ring_base, ingest.url)),
            capture_output=True,
            timeout=100,
        )
        assert host.returncode == 0, host.stderr
        counted = json.loads(host.stdout)
        assert counted["recorded"] == 300
        assert counted["accepted"] == counted["delivered"] == 300 - sum(counted["dropped"].values())
        assert len(ingest.items()) - before == counted["delivered"]


@pytest.fixture
def small_disk(ring_base: Path) -> list[str]:
    """The begin of a command that runs another in a mount namespace where `ring_base` is a tmpfs of 8 MiB."""
    mount = f"mount -t tmpfs -o size=8m,mode=700 t {ring_base}"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs mount namespaces")
    return ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$0" "$@"']


FULL = """
import json, os, sys, time
from pathlib import Path
import picostep
from picostep._ring import RingReader

place = Path(sys.argv[1])

def record(first, last):
    for number in range(first, last):
        picostep.send_step("r", step_id=str(number), prompt="p" * 500, response="r")

record(0, 100)
assert picostep.flush(20.0)
filler = os.open(place / "filler", os.O_WRONLY | os.O_CREAT)
size = 1 << 20
while size:
    try:
        os.write(filler, b"x" * size)
    except OSError:
        size //= 2
record(100, 300)
waits = not picostep.flush(1.0)
stats = picostep.stats()
assert waits, "nothing was full"
assert not any(stats["dropped"].values()), stats
assert stats["accepted"] == 300 == stats["delivered"] + stats["in_ring"] + stats.get("in_spool", 0), stats
assert "ENOSPC" in stats["last_error"], stats
os.unlink(place / "filler")
os.close(filler)
assert picostep.flush(20.0), picostep.stats()
assert picostep.stats()["delivered"] == 300
found = [json.loads(line)["step_id"] for line in (place / "out").read_text().splitlines() if line]
assert found == [str(number) for number in range(300)], found
"""


@pytest.mark.slow
def test_full_disk(ring_base: Path, small_disk: list[str]) -> None:
    """The sink's file system is full for a while, and with it that of ring, log and totals."""
    env = {"PICOSTEP_DIR": str(ring_base), "PICOSTEP_TO": f"jsonl:{ring_base}/out"}
    done = subprocess.run(
        [*small_disk, sys.executable, "-c", FULL, str(ring_base)],
        env=clean_environment(**env),
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr.decode()


# A host that is killed while the disk is full: its ring is removed, and what that counted is not forgotten.
COUNTED = """
import os, signal, sys, time
from pathlib import Path
import picostep

place = Path(sys.argv[1])
picostep.send_step("r", prompt="p", response="r")
assert picostep.flush(20.0)
exporter = picostep.stats()["rings"][0]["exporter_pid"]
pid = os.fork()
if pid == 0:
    picostep.send_step("r", prompt="p", response="r")
    assert picostep.flush(20.0)
    filler, size = os.open(place / "filler", os.O_WRONLY | os.O_CREAT), 1 << 20
    while size:
        try:
            os.write(filler, b"x" * size)
        except OSError:
            size //= 2
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(pid, 0)
deadline = time.monotonic() + 20.0
while len(list(place.glob("*/*/*.ring"))) > 1:
    assert time.monotonic() < deadline
    time.sleep(0.01)
os.kill(exporter, signal.SIGTERM)
while Path(f"/proc/{exporter}").exists() and time.monotonic() < deadline:
    time.sleep(0.01)
print(*(path.read_text() for path in place.glob("*/*/totals.json")))
os._exit(0)
"""


def test_totals_on_a_full_disk(ring_base: Path, ingest: Ingest, small_disk: list[str]) -> None:
    """What a removed ring has counted is written down, though there was no room for it at first."""
    done = subprocess.run(
        [*small_disk, sys.executable, "-c", COUNTED, str(ring_base)],
        env=clean_environment(**environment(ring_base, ingest.url)),
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["accepted"] == 1
