"""Rings and their hosts: death, forks, file systems that are full, directories that cannot be used."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import picostep
from picostep.ringdir import RingDir, RingDirError, base, list_directories, open_dir
from ringfile import KIB, Rig, drain, ids, only_directory, record_some
from support import clean_environment, ring_directory, run_python, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rings in files need POSIX")

TESTS = Path(__file__).parents[1]
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def settings(directory: Path) -> dict[str, str]:
    return {"PICOSTEP_EXPORTER": "off", "PICOSTEP_DIR": str(directory), "PICOSTEP_TO": "stdout"}


@contextmanager
def host(directory: Path, code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has written a byte; killed at the end if it still lives."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=clean_environment(**settings(directory)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"x"
            yield process
        finally:
            process.kill()


# --- death ------------------------------------------------------------------------------------------------


def test_a_ring_is_adopted_when_its_host_is_dead(tmp_path: Path) -> None:
    """By its kernel lock, whatever the pid in the header says; and every record up to the last is there."""
    endless = """
    import os, picostep
    number = 0
    while True:
        picostep.send_step("run", step_id=str(number), prompt="p" * (number % 3000), response="深")
        number += 1
        if number == 50:
            os.write(1, b"x")
    """
    with host(tmp_path, endless) as process:
        directory = only_directory(tmp_path)
        (name,) = directory.ring_names()
        reader = directory.open_ring(name)
        assert reader.pid == process.pid
        assert reader.alive()
        seen = ids(reader.read(20, 1 << 20))
        assert reader.alive()
        reader.release(reader.position, 20)
        process.kill()
        process.wait()
    assert not reader.alive()
    assert not reader.alive()
    seen += ids(drain(reader))
    counters = reader.counters()
    second = directory.open_ring(name)
    assert second.alive(), "the first reader has adopted it"
    second.close()
    reader.close()
    third = directory.open_ring(name)
    assert not third.alive()
    third.close()
    directory.close()

    assert counters["accepted"] == counters["delivered"] == len(seen)
    # Some were dropped as nobody drained the ring; none of those that were accepted.
    assert seen[:50] == list(range(50))
    assert seen == sorted(set(seen))


def test_a_child_does_not_keep_its_parent_alive(tmp_path: Path) -> None:
    """A parent is killed while a child of it lives on: its ring is free for adoption at once."""
    code = """
    import os, picostep
    picostep.send_step("run", prompt="p", response="r")
    if os.fork() == 0:
        os.write(1, b"x")
    os.read(0, 1)
    """
    with host(tmp_path, code) as process:
        directory = only_directory(tmp_path)
        (name,) = directory.ring_names()
        process.kill()
        process.wait()
        reader = directory.open_ring(name)
        assert not reader.alive()
        assert len(list(drain(reader))) == 1
        reader.close()
        directory.close()
        assert process.stdin is not None
        process.stdin.close()


# --- fork -------------------------------------------------------------------------------------------------

FORKS = """
import ctypes, os, sys, time, picostep
from pathlib import Path

base, how = Path(sys.argv[1]), sys.argv[2]
fork = os.fork if how == "python" else ctypes.CDLL(None).fork

def rings():
    return sorted(base.rglob("*.ring"))

def held():
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:
            pass
    return [path for path in found if path.endswith(".ring") or "/.new-" in path]

begun = picostep.step("run").prompt("begun by the parent").response("r")
picostep.send_step("run", prompt="before", response="r")
(mine,) = rings()
out = os.open(base / "ids", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

def record(who):
    for _ in range(300):
        os.write(out, (picostep.send_step("run", prompt=who, response="r") + " ").encode())

def child():
    assert held() == [], held()
    begun.end()
    record("child")
    assert len(held()) == 1 and held() != [str(mine)], held()
    assert picostep.stats()["accepted"] == 301, picostep.stats()
    pid = fork()
    if pid == 0:
        record("grandchild")
        assert picostep.stats()["accepted"] == 300, picostep.stats()
    else:
        assert os.waitpid(pid, 0)[1] == 0

# While only children record, the parent's file stays as it is, once it has all its space.
deadline = time.monotonic() + 10
while mine.read_bytes()[64:72] != mine.read_bytes()[72:80]:
    assert time.monotonic() < deadline
before = mine.read_bytes()
for generation in range(3):
    pid = fork()
    if pid == 0:
        try:
            child()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
assert mine.read_bytes() == before
assert held() == [str(mine)], held()
record("parent")
begun.end()
assert picostep.stats()["accepted"] == 302, picostep.stats()
assert len(rings()) == 7, rings()
ids = (base / "ids").read_text().split()
assert len(ids) == len(set(ids)) == 300 * 7
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["python", "c"])
def test_fork(tmp_path: Path, how: str) -> None:
    """Also by C code: a child has its own ring and its own ids, and leaves its parent's alone."""
    run_python(FORKS, settings(tmp_path), args=(str(tmp_path), how))

    directory = only_directory(tmp_path)
    counts = []
    for name in directory.ring_names():
        reader = directory.open_ring(name)
        assert not reader.alive()
        counts.append(len(list(drain(reader))))
        reader.close()
    directory.close()
    assert sorted(counts) == [300] * 3 + [301] * 3 + [302]


@pytest.mark.slow
def test_fork_while_threads_record(tmp_path: Path) -> None:
    """Children of a busy process are not stuck, and no record of either side is lost."""
    code = """
    import os, sys, threading, picostep
    stop, sent = threading.Event(), [0] * 3

    def record(number):
        while not stop.is_set():
            picostep.send_step("run", prompt="p", response="r")
            sent[number] += 1

    picostep.send_step("run", prompt="p", response="r")
    threads = [threading.Thread(target=record, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for generation in range(20):
        pid = os.fork()
        if pid == 0:
            for _ in range(50):
                picostep.send_step("run", prompt="p", response="r")
            os._exit(0 if picostep.stats()["accepted"] == 50 else 1)
        assert os.waitpid(pid, 0)[1] == 0
    stop.set()
    for thread in threads:
        thread.join()
    counters = picostep.stats()
    assert counters["recorded"] == sum(sent) + 1, (counters, sent)
    """
    run_python(textwrap.dedent(code), settings(tmp_path))


# --- space ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with ring_directory() as directory:
        made = Rig(directory)
        yield made
        made.close()


def test_records_that_overtake_the_reservation(rig: Rig) -> None:
    """The first megabytes, written before any thread has made room for them."""
    rig.renew(8 << 20, reserve=False)
    assert rig.ring.ready == 256 * KIB
    record_some(1000, size=5000)
    assert rig.ring.ready >= rig.ring.head
    assert rig.path.stat().st_blocks * 512 >= rig.ring.head
    reader = rig.reader()
    assert ids(drain(reader)) == list(range(1000))
    record_some(1000, size=5000)
    assert rig.ring.ready == 8 << 20
    assert ids(drain(reader)) == list(range(1000))
    reader.close()


def test_the_reservation_ends(rig: Rig) -> None:
    rig.renew(8 << 20)
    wait_until(lambda: rig.ring.ready == 8 << 20)
    assert rig.path.stat().st_blocks * 512 >= 8 << 20


def can_mount() -> bool:
    command = "d=$(mktemp -d); mount -t tmpfs -o size=1m none $d && umount $d; e=$?; rmdir $d; exit $e"
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, check=False)
    return done.returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="no tmpfs can be mounted in a namespace of its own")


def run_on_tmpfs(tmp_path: Path, size: str, code: str) -> str:
    """Run code whose first argument is a file system of its own; return what it writes."""
    target = tmp_path / "small"
    target.mkdir()
    script = 'mount -t tmpfs -o "size=$1" none "$2" && exec "$3" -c "$4" "$2"'
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{textwrap.dedent(code)}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", size, str(target), sys.executable, code],
        env=clean_environment(**settings(target)),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_mount
@pytest.mark.parametrize("reserve", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "size", [300, *(pytest.param(size, marks=pytest.mark.slow) for size in (1000, 20_000, 3_000_000))]
)
def test_no_space_for_the_rest(tmp_path: Path, reserve: bool, size: int) -> None:
    """The ring becomes as large as it can be; what is accepted is there; no store meets a missing page."""
    code = f"""
    from pathlib import Path
    import picostep
    from ringfile import Rig, drain
    rig = Rig(Path(sys.argv[1]))
    rig.renew(64 << 20, reserve={reserve})
    sent = 0

    def send():
        global sent
        picostep.send_step("run", step_id=str(sent), prompt="p" * {size}, response="r" * (sent % 100))
        sent += 1

    while not rig.ring.counters()["dropped"]["ring_full"]:
        send()
        assert sent < 100_000
    reader = rig.reader()
    seq = 0
    for lap in range(4):
        counters = rig.check()
        records = list(drain(reader))
        assert len(records) == counters["in_ring"] > 10, counters
        for record in records:
            assert record["seq"] == seq
            seq += 1
            if "shed" not in record:
                assert record["response"] == "r" * (int(record["step_id"]) % 100)
                assert record["prompt"].startswith("p" * min({size}, 100_000))
        assert any("shed" not in record for record in records)
        for _ in range(100):
            send()
    assert reader.size < 4 << 20
    """
    run_on_tmpfs(tmp_path, "4m", code)


@needs_mount
def test_no_space_for_the_table_of_runs(tmp_path: Path) -> None:
    """Runs beyond the slots that have their space are counted; no store meets a missing page."""
    code = """
    import os
    from pathlib import Path
    import picostep
    from ringfile import Rig, images
    rig = Rig(Path(sys.argv[1]))
    rig.renew(1 << 20, reserve=False)
    runs = [picostep.run(str(number)).prompt("p" * 300) for number in range(40)]
    with open(f"{sys.argv[1]}/filling", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            pass
    runs += [picostep.run(str(number)).prompt("p" * 300) for number in range(40, 100)]
    found = images(rig.raw())
    assert len(found) == 64, len(found)
    assert rig.ring.counters()["untracked_runs"] == 100 - 64
    for run in runs:
        run.response("r").end()
    assert not images(rig.raw())
    assert rig.check()["accepted"] == 100
    """
    run_on_tmpfs(tmp_path, "4m", code)


@pytest.mark.slow
@needs_mount
def test_many_processes_on_a_small_file_system(tmp_path: Path) -> None:
    """40 at once on the 64 MB that a container has: all record, and something is left for others."""
    code = '''
    import os, subprocess
    host = """if True:
        import sys, picostep
        for number in range(300):
            picostep.send_step("run", prompt="p" * 300, response="r")
        counters = picostep.stats()
        assert counters["accepted"] == 300, counters
        print("done", flush=True)
        sys.stdin.read()
        print([ring["private"] for ring in picostep.stats()["rings"]])
    """
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", host]
    hosts = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(40)]
    for process in hosts:
        line = process.stdout.readline()
        assert line == b"done\\n", process.communicate()[1].decode()
    space = os.statvfs(sys.argv[1])
    for process in hosts:
        out, problems = process.communicate()
        assert process.returncode == 0, problems
        print(out.decode().strip(), problems.decode()[:200])
    print(space.f_bavail * space.f_frsize)
    '''
    out = run_on_tmpfs(tmp_path, "64m", code)

    assert int(out.split()[-1]) >= 64 * 2**20 // 20, out


def test_too_little_space_for_a_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = open_dir(base(str(tmp_path)), "x", create=True)

    class Space:
        f_bavail, f_frsize = 500, 4096

    monkeypatch.setattr(os, "statvfs", lambda fd: Space)
    with pytest.raises(RingDirError, match="too little space"):
        directory.make_ring(1 << 20)
    Space.f_bavail = 24 * KIB
    ring = directory.make_ring(16 << 20)
    (name,) = directory.ring_names()
    reader = directory.open_ring(name)
    assert reader.size == 8 << 20, "an eighth of the 96 MiB that are free, as a power of two"
    reader.close()
    ring.close()
    directory.close()


# --- directories ------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[RingDir]:
    made = open_dir(base(str(tmp_path)), "x", create=True)
    yield made
    made.close()


def test_directories_and_rings_are_private(tmp_path: Path, directory: RingDir) -> None:
    for path in (Path(base(str(tmp_path))), Path(directory.path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    ring = directory.make_ring(1 << 20)
    (name,) = directory.ring_names()
    assert stat.S_IMODE((Path(directory.path) / name).stat().st_mode) == 0o600
    assert name.startswith(f"{os.getpid()}-")
    reader = directory.open_ring(name)
    assert reader.alive()
    assert reader.size == 1 << 20
    reader.close()
    ring.close()
    directory.unlink(name)
    directory.unlink(name)
    assert directory.ring_names() == []
    directory.close()
    directory.close()


def test_a_directory_has_one_exporter(tmp_path: Path, directory: RingDir) -> None:
    other = open_dir(base(str(tmp_path)), "x", create=False)
    assert not directory.locked()
    lock = directory.try_lock()
    assert lock is not None
    assert other.try_lock() is None
    assert other.locked()
    os.close(lock)
    lock = other.try_lock()
    assert lock is not None
    assert directory.locked()
    os.close(lock)
    other.close()


def test_what_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(RingDirError, match="cannot use"):
        open_dir(base(str(tmp_path)), "x", create=False)
    assert list_directories(base(str(tmp_path))) == []
    assert list(tmp_path.iterdir()) == []


def a_file(path: Path) -> None:
    path.write_text("")


def open_to_others(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


def a_symlink(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")
    elsewhere.mkdir(0o700)
    path.symlink_to(elsewhere)


def foreign(path: Path) -> None:
    path.mkdir(0o700)
    os.chown(path, 65534, 65534)


UNUSABLE = [
    a_file,
    open_to_others,
    a_symlink,
    pytest.param(foreign, marks=pytest.mark.skipif(not IS_ROOT, reason="only root gives files away")),
]


@pytest.mark.parametrize("make", UNUSABLE)
@pytest.mark.parametrize("level", ["base", "destination"])
def test_directories_that_are_refused(tmp_path: Path, make: Callable[[Path], None], level: str) -> None:
    path = Path(base(str(tmp_path)))
    if level == "destination":
        path.mkdir(0o700)
        path /= "x"
    make(path)

    with pytest.raises(RingDirError, match="picostep") as caught:
        open_dir(base(str(tmp_path)), "x", create=True)
    assert isinstance(caught.value, picostep.PicostepError)
    assert isinstance(caught.value, OSError)


@pytest.mark.skipif(IS_ROOT, reason="root may write everywhere")
def test_a_parent_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RingDirError, match="cannot"):
        open_dir(base(str(tmp_path / "new")), "x", create=True)
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("make", UNUSABLE)
@pytest.mark.parametrize("exporter", ["process", pytest.param("off", marks=pytest.mark.slow)])
def test_a_host_without_a_directory(tmp_path: Path, make: Callable[[Path], None], exporter: str) -> None:
    """It records into its own memory: one warning, no exception, and a thread of the host exports."""
    make(Path(base(str(tmp_path))))
    code = """
    import picostep
    with picostep.run("run") as run:
        run.prompt("p")
        run.step("step").prompt("p").response("r").end()
    counters = picostep.stats()
    assert counters["accepted"] == 2, counters
    assert [ring["private"] for ring in counters["rings"]] == [True], counters
    assert picostep.flush(20), picostep.stats()
    assert picostep.stats()["delivered"] == 2, picostep.stats()
    """
    target = tmp_path / "out.jsonl"
    env = settings(tmp_path) | {"PICOSTEP_TO": f"jsonl:{target}", "PICOSTEP_EXPORTER": exporter}

    done = run_python(textwrap.dedent(code), env)

    assert done.stderr.count("no ring in shared memory") == 1
    assert len(done.stderr.splitlines()) == 1
    assert len(target.read_text().splitlines()) == 2
