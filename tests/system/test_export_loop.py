"""The exporter's loop: real rings of real processes, alive and dead; sinks that fail in every way."""

from __future__ import annotations

import fcntl
import json
import logging
import marshal
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import picostep.exporter
from picostep import ringdir
from picostep.exporter import attempts, loop, process
from picostep.exporter.attempts import Attempts
from picostep.exporter.batch import Work
from picostep.exporter.build import wait_for_lock
from picostep.exporter.loop import Exporter
from picostep.launch import BOOT
from picostep.record import Record
from picostep.ringdir import RingDir
from picostep.settings.destination import Destination
from picostep.settings.table import Settings
from picostep.sinks import Refused, Rejected, RetryLater
from support import Ingest, Reply, clean_environment, free_port, run_python, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rings are private there")

# Records argv[1] steps, whose prompts are their numbers; then as many more as each line of stdin says.
HOST = """
import sys, picostep
run, n = picostep.run("r"), 0
def record(count):
    global n
    for n in range(n, n + count):
        run.step(f"s{n}").prompt(str(n)).response("x").end()
    n += 1
record(int(sys.argv[1]))
if len(sys.argv) > 2:
    print(flush=True)
    for line in sys.stdin:
        record(int(line))
        print(flush=True)
"""


class Recorder:
    """A sink that keeps what it takes, after asking `judge`."""

    def __init__(self, judge: Callable[[Sequence[Record]], Any] = lambda records: None) -> None:
        self.offered: list[list[str]] = []
        self.taken: list[str] = []
        self._judge = judge

    def deliver(self, records: Sequence[Record]) -> dict[int, str]:
        prompts = [record["prompt"] for record in records]
        self.offered.append(prompts)
        unencodable: dict[int, str] = self._judge(records) or {}
        self.taken += prompts
        return unencodable

    def close(self) -> None:
        pass


def script(*answers: Any) -> Callable[[Sequence[Record]], Any]:
    """Give these answers, or raise them, one at a time; then nothing more."""
    rest = iter(answers)

    def judge(records: Sequence[Record]) -> Any:
        answer = next(rest, None)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return judge


def numbers(*ranges: range) -> list[str]:
    return [str(number) for numbers in ranges for number in numbers]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_FIRST_DELAY", 0.01)


@pytest.fixture
def directory(ring_base: Path, clean_env: pytest.MonkeyPatch) -> Iterator[RingDir]:
    """The ring directory of hosts that record for `stdout`, with no exporter of their own."""
    clean_env.setenv("PICOSTEP_TO", "stdout")
    clean_env.setenv("PICOSTEP_EXPORTER", "off")
    name = Destination(("stdout",)).fingerprint
    directory = ringdir.open_dir(ringdir.base(str(ring_base)), name, create=True)
    yield directory
    directory.close()


def dead_host(directory: RingDir, count: int) -> None:
    before = len(ring_names(directory))
    run_python(HOST, env_of_hosts(), args=(str(count),))
    assert len(ring_names(directory)) == before + 1


def env_of_hosts() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PICOSTEP_TO", "PICOSTEP_EXPORTER", "PICOSTEP_DIR")}


@contextmanager
def live_host(count: int) -> Iterator[Callable[[int], None]]:
    """A process that has recorded `count` steps, and records more when the yielded function says how many."""
    environment = clean_environment(**env_of_hosts())
    command = [sys.executable, "-c", HOST, str(count), "stay"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as host:
        assert host.stdin is not None
        assert host.stdout is not None
        stdin, stdout = host.stdin, host.stdout
        assert stdout.readline() == "\n"

        def record(more: int) -> None:
            stdin.write(f"{more}\n")
            assert stdout.readline() == "\n"

        try:
            yield record
        finally:
            stdin.close()
            assert host.wait(100) == 0


@contextmanager
def running(exporter: Exporter, stop: threading.Event) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=exporter.run)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(100)
        assert not thread.is_alive()


def exporter(directories: Sequence[RingDir], sinks: Sequence[Any], **options: Any) -> Exporter:
    """An exporter that leaves records as they are: prices are the subject of other tests."""
    return Exporter(
        directories, sinks, **{"stop": threading.Event(), "prepare": lambda records: None, **options}
    )


def drain(directory: RingDir, *sinks: Any, **options: Any) -> None:
    exporter([directory], sinks, once=True, **options).run()


def ring_names(directory: RingDir) -> list[str]:
    """Like `directory.ring_names()`, whose descriptor an exporter may be reading from in another thread."""
    return [path.name for path in Path(directory.path).glob("*.ring")]


def len_is(items: Sequence[Any], count: int) -> bool:
    return len(items) == count


def totals(directory: RingDir) -> Any:
    return json.loads(Path(directory.path, "totals.json").read_text())


def counters(directory: RingDir) -> dict[str, Any]:
    (name,) = ring_names(directory)
    ring = directory.open_ring(name)
    try:
        return ring.counters()
    finally:
        ring.close()


# --- rings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"batch_records": 7}, {"batch_bytes": 1}, {"break_every": 0.0}])
def test_dead_hosts_are_emptied_and_removed(directory: RingDir, options: dict[str, Any]) -> None:
    dead_host(directory, 100)
    dead_host(directory, 50)
    sink = Recorder()
    exporter([directory], [sink], linger=0.0, **options).run()
    assert sorted(sink.taken, key=int) == sorted(numbers(range(100), range(50)), key=int)
    assert ring_names(directory) == []
    found = totals(directory)
    assert (found["rings"], found["accepted"], found["delivered"]) == (2, 150, 150)
    assert sum(found["dropped"].values()) == 0
    assert Path(directory.path, "totals.json").stat().st_mode & 0o777 == 0o600


def test_batches_keep_their_limits(directory: RingDir) -> None:
    dead_host(directory, 100)
    sink = Recorder()
    drain(directory, sink, batch_records=30)
    assert [len(batch) for batch in sink.offered] == [30, 30, 30, 10]
    dead_host(directory, 4)
    sink = Recorder()
    drain(directory, sink, batch_bytes=1)
    assert [len(batch) for batch in sink.offered] == [1, 1, 1, 1]


def test_every_ring_has_its_turn(directory: RingDir) -> None:
    for count in (100, 100, 100):
        dead_host(directory, count)
    sink = Recorder()
    drain(directory, sink, batch_records=10)
    assert [batch.count("0") for batch in sink.offered[:4]] == [1, 1, 1, 0]


def test_live_host_is_served_soon_and_kept(directory: RingDir) -> None:
    stop, sink = threading.Event(), Recorder()
    made = exporter([directory], [sink], stop=stop, linger=0.1)
    with live_host(10) as record, running(made, stop) as thread:
        wait_until(lambda: sink.taken == numbers(range(10)))
        for count in (13, 16, 19, 22, 25):
            record(3)
            wait_until(partial(len_is, sink.taken, count), 2.0)
        assert counters(directory)["delivered"] == 25
    assert sink.taken == numbers(range(25))
    assert not thread.is_alive()


def test_new_host_is_found_and_exporter_leaves_after_the_last(directory: RingDir) -> None:
    stop, sink = threading.Event(), Recorder()
    with running(exporter([directory], [sink], stop=stop, linger=1.0), stop) as thread:
        with live_host(3):
            wait_until(lambda: sink.taken == numbers(range(3)))
        wait_until(lambda: not ring_names(directory))
        wait_until(lambda: not thread.is_alive())
    assert totals(directory)["delivered"] == 3


def test_host_dies_while_the_sink_is_stuck(directory: RingDir) -> None:
    stop, allow = threading.Event(), threading.Event()

    def judge(records: Sequence[Record]) -> None:
        if not allow.is_set():
            raise RetryLater("no")

    sink = Recorder(judge)
    with ExitStack() as hosts:
        hosts.enter_context(live_host(5))
        with running(exporter([directory], [sink], stop=stop, linger=0.0), stop) as thread:
            wait_until(lambda: sink.offered)
            hosts.close()
            allow.set()
            wait_until(lambda: not thread.is_alive())
    assert sink.taken == numbers(range(5))
    assert ring_names(directory) == []


def test_ring_is_not_counted_twice(directory: RingDir) -> None:
    dead_host(directory, 5)
    (name,) = ring_names(directory)
    drain(directory, Recorder())
    before = totals(directory)
    dead_host(directory, 5)
    (other,) = ring_names(directory)
    os.rename(Path(directory.path, other), Path(directory.path, name))  # as if it had not been removed
    drain(directory, Recorder())
    assert ring_names(directory) == []
    assert totals(directory) == before


def test_damaged_totals_do_not_matter(directory: RingDir) -> None:
    shapeless = ("", "[1]", "{", "\0", "[" * 100_000, '{"rings":"x","delivered":null,"dropped":5}')
    # The longest number that can be read: one more, and it could not be written.
    for rubbish in (*shapeless, '{"accepted":%s}' % ("9" * 4300), '{"accepted":-7,"delivered":-1}'):
        Path(directory.path, "totals.json").write_text(rubbish)
        dead_host(directory, 1)
        drain(directory, Recorder())
        assert totals(directory)["delivered"] == 1


def test_damaged_rings_are_put_aside(directory: RingDir, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(6):
        Path(directory.path, f"{number}-bad.ring").write_bytes(b"x" * number * 100_000)
    Path(directory.path, "link.ring").symlink_to("/etc/passwd")
    Path(directory.path, "dir.ring").mkdir()
    dead_host(directory, 5)
    sink = Recorder()
    drain(directory, sink)
    assert sink.taken == numbers(range(5))
    assert set(ring_names(directory)) <= {"link.ring", "dir.ring"}
    assert sum(name.startswith(tuple("012345")) for name in os.listdir(directory.path)) <= 4
    assert totals(directory)["damaged_rings"] >= 6


def test_unreadable_ring_of_a_living_process_is_left(directory: RingDir) -> None:
    path = Path(directory.path, "1-newer.ring")
    path.write_bytes(b"from the future")
    path.chmod(0o600)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        drain(directory, Recorder())
        assert path.exists()
    drain(directory, Recorder())
    assert not path.exists()


def test_litter_is_removed(directory: RingDir) -> None:
    old, held, young = (Path(directory.path, f".new-{name}") for name in ("old", "held", "young"))
    for path in (old, held, young):
        path.touch()
    for path in (old, held):
        os.utime(path, (0, 0))
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        drain(directory, Recorder())
    assert [path.exists() for path in (old, held, young)] == [False, True, True]


# --- sinks that fail ----------------------------------------------------------------------------------------


def test_retry_offers_the_same_again(directory: RingDir) -> None:
    dead_host(directory, 5)
    sink = Recorder(script(RetryLater("http 503"), RetryLater("http 503", 0.05)))
    drain(directory, sink)
    assert sink.offered == 3 * [numbers(range(5))]
    assert totals(directory)["delivered"] == 5


def test_what_was_delivered_is_not_offered_again(directory: RingDir) -> None:
    dead_host(directory, 6)
    sink = Recorder(
        script(RetryLater("no", delivered=2, unencodable={1: "why"}), Rejected("400", delivered=2), None)
    )
    drain(directory, sink)
    assert sink.offered == [
        numbers(range(6)),
        numbers(range(2, 6)),
        numbers(range(4, 5)),
        numbers(range(5, 6)),
    ]
    assert totals(directory)["delivered"] == 5
    assert totals(directory)["dropped"]["encode_error"] == 1


def test_rejected_record_is_found_and_dropped(directory: RingDir) -> None:
    dead_host(directory, 100)

    def judge(records: Sequence[Record]) -> None:
        if {"17", "18", "90"} & {record["prompt"] for record in records}:
            raise Rejected("http 413")

    sink = Recorder(judge)
    drain(directory, sink)
    assert sink.taken == [number for number in numbers(range(100)) if number not in ("17", "18", "90")]
    assert len(sink.offered) < 50
    found = totals(directory)
    assert (found["delivered"], found["dropped"]["rejected"]) == (97, 3)


def test_record_that_breaks_the_sink_is_dropped(directory: RingDir) -> None:
    dead_host(directory, 20)

    def judge(records: Sequence[Record]) -> None:
        if any(record["prompt"] == "7" for record in records):
            raise KeyError(records[0]["prompt"])

    sink = Recorder(judge)
    drain(directory, sink)
    assert sink.taken == [number for number in numbers(range(20)) if number != "7"]
    assert sink.offered.count(["7"]) == 3
    assert totals(directory)["dropped"]["encode_error"] == 1


@pytest.mark.parametrize("error", [OSError(5, "I/O"), MemoryError(), ConnectionError()])
def test_trouble_of_the_system_drops_nothing(directory: RingDir, error: Exception) -> None:
    dead_host(directory, 1)
    sink = Recorder(script(*[error] * 5))
    drain(directory, sink)
    assert sink.taken == ["0"]
    assert len(sink.offered) == 6


def test_unencodable_is_counted(directory: RingDir) -> None:
    dead_host(directory, 5)
    drain(directory, Recorder(script({0: "TypeError", 3: "TypeError"})))
    found = totals(directory)
    assert (found["delivered"], found["dropped"]["encode_error"]) == (3, 2)


def test_refused_is_counted(directory: RingDir) -> None:
    dead_host(directory, 5)
    drain(
        directory,
        Recorder(script({0: Refused("no", known=True), 2: "TypeError", 3: Refused("no", known=False)})),
    )
    found = totals(directory)
    assert (found["delivered"], found["dropped"]["encode_error"], found["dropped"]["rejected"]) == (2, 1, 2)


def test_each_sink_gets_each_record_once(directory: RingDir) -> None:
    dead_host(directory, 10)
    good, bad = Recorder(), Recorder(script(RetryLater("no"), {4: "why"}))
    picky = Recorder(script(Rejected("no"), Rejected("no"), Rejected("no"), Rejected("no")))
    drain(directory, good, bad, picky)
    assert good.offered == [numbers(range(10))]
    assert bad.taken == good.taken == numbers(range(10))
    assert picky.taken == numbers(range(1, 10))
    found = totals(directory)
    assert (found["delivered"], sum(found["dropped"].values())) == (8, 2)


def test_without_threads_of_its_own(directory: RingDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it ends, Python 3.12 starts no thread any more: sinks are served all the same, in their order."""
    started = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "picostep-sink":
            raise RuntimeError("can't create new thread at interpreter shutdown")
        started(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    dead_host(directory, 100)
    plain, retried = Recorder(), Recorder(script(RetryLater("busy"), RetryLater("busy")))
    drain(directory, plain, retried, batch_records=30)
    assert plain.taken == retried.taken == numbers(range(100))
    assert ring_names(directory) == []


def test_stop_hands_over_what_is_not_delivered(directory: RingDir) -> None:
    dead_host(directory, 20)
    stop = threading.Event()
    stuck = Recorder(script(None, *[RetryLater("no", 300.0)] * 9))
    with running(exporter([directory], [stuck], stop=stop, batch_records=10), stop):
        wait_until(lambda: len(stuck.offered) == 2)
        begun = time.monotonic()
    assert time.monotonic() - begun < 30  # not the 300 that the sink wants
    following = Recorder()
    drain(directory, following)
    assert stuck.taken == numbers(range(10))
    assert following.taken == numbers(range(10, 20))
    assert totals(directory)["delivered"] == 20


def test_gives_up_when_nobody_lives_and_nothing_moves(
    directory: RingDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_GIVE_UP_AFTER", 0.2)
    dead_host(directory, 3)
    sink = Recorder(script(*[RetryLater("no")] * 10_000))
    exporter([directory], [sink], linger=0.0).run()
    assert sink.taken == []
    assert len(ring_names(directory)) == 1
    drain(directory, sink := Recorder())
    assert sink.taken == numbers(range(3))


def test_hosts_see_why_and_when_it_is_over(directory: RingDir) -> None:
    stop, allow = threading.Event(), threading.Event()

    def judge(records: Sequence[Record]) -> None:
        if not allow.is_set():
            raise RetryLater("http 503 " + "é" * 600)

    with live_host(1), running(exporter([directory], [Recorder(judge)], stop=stop), stop):
        wait_until(lambda: counters(directory)["last_error"])
        assert counters(directory)["last_error"] == ("http 503 " + "?" * 600)[:511]
        allow.set()
        wait_until(lambda: counters(directory)["last_error"] == "")


def test_log_tells_changes_only(directory: RingDir, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    dead_host(directory, 1)
    drain(directory, Recorder(script(*[RetryLater("http 503")] * 5, *[KeyError("content")] * 2)))
    assert [record.getMessage() for record in caplog.records] == [
        "Recorder: http 503; trying again",
        "Recorder: sink error: KeyError; trying again",
        "Recorder: delivers again",
    ]


def test_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_FIRST_DELAY", 0.5)
    after: list[float | None] = [None]

    def judge(records: Sequence[Record]) -> None:
        raise RetryLater("no", after[0])

    record = {"prompt": "p"}
    work = Work([record], 1, None)
    retries = Attempts(Recorder(judge))

    def attempt() -> None:
        retries.apply_answer(work, retries.offer(work.records(*work.todo[-1])))

    longest = 0.0
    for failures in range(2000):
        attempt()
        assert 0 <= retries.delay() <= min(0.5 * 2 ** min(failures, 9), 60)
        longest = max(longest, retries.delay())
    assert longest > 30  # at random up to the limit, not always little
    for asked, given in [(7.0, 7.0), (1000.0, 300.0)]:
        after[0] = asked
        attempt()
        assert given - 0.1 < retries.delay() <= given


@pytest.mark.parametrize("asked", [0.0, 0.001])
def test_asked_not_to_wait(monkeypatch: pytest.MonkeyPatch, asked: float) -> None:
    """A receiver that is down and says so all the same is not met by requests without end."""
    monkeypatch.setattr(attempts, "_FIRST_DELAY", 0.5)

    def judge(records: Sequence[Record]) -> None:
        raise RetryLater("no", asked)

    work = Work([{"prompt": "p"}], 1, None)
    retries = Attempts(Recorder(judge))
    delays = []
    for _ in range(40):
        retries.apply_answer(work, retries.offer(work.records(*work.todo[-1])))
        delays.append(retries.delay())
    assert all(0.4 < delay <= max(0.5, min(0.5 * 2**failures, 60.0)) for failures, delay in enumerate(delays))
    assert max(delays) > 10


# --- how it is put together ---------------------------------------------------------------------------------


def test_waiting_for_the_lock(directory: RingDir) -> None:
    """As long as another exporter has it, and not when told to stop."""
    base, name = os.path.split(directory.path)
    other = ringdir.open_dir(base, name, create=False)
    held = other.try_lock()
    assert held is not None
    stop = threading.Event()
    stop.set()
    assert wait_for_lock(directory, stop) is None

    class ThirdTime:
        waits = 0

        def is_set(self) -> bool:
            return False

        def wait(self, timeout: float) -> None:
            self.waits += 1
            if self.waits == 3:
                os.close(held)

    leaves = ThirdTime()
    lock = wait_for_lock(directory, leaves)
    assert lock is not None
    assert leaves.waits == 3
    assert other.locked()
    os.close(lock)
    other.close()


def test_the_picture_has_all_rooms() -> None:
    (folder,) = picostep.exporter.__path__
    rooms = {path.stem for path in Path(folder).glob("*.py")} - {"__init__"}
    told = set(re.findall(r"\w+", picostep.exporter.__doc__ or ""))
    assert rooms - told == set()


# --- the process --------------------------------------------------------------------------------------------


@contextmanager
def exporter_process(
    directory: RingDir, destination: Destination, *fds: int
) -> Iterator[subprocess.Popen[bytes]]:
    """Start an exporter as a host's keeper does."""
    lock = directory.try_lock()
    assert lock is not None
    config = {
        "path": sys.path,
        "base": os.path.dirname(directory.path),
        "directory": os.path.basename(directory.path),
        "lock_fd": lock,
        "destination": destination.as_dict(),
        "limits": Settings.resolve().limits.as_dict(),
    }
    command = [sys.executable, "-I", "-S", "-c", BOOT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[lock, *fds]) as process:
        os.close(lock)
        assert process.stdin is not None
        process.stdin.write(marshal.dumps(config))
        process.stdin.close()
        try:
            yield process
        finally:
            process.kill()


def tcc(url: str) -> Destination:
    return Destination(("tcc",), "dev_secret-key", f"{url}/v1/custom", f"{url}/v1/feedback")


def log_of(directory: RingDir) -> str:
    path = Path(directory.path, process.LOG_NAME)
    assert path.stat().st_mode & 0o777 == 0o600
    return path.read_text()


@pytest.mark.slow
def test_process_works_until_it_is_not_needed(directory: RingDir, ingest: Ingest) -> None:
    dead_host(directory, 20)
    with exporter_process(directory, tcc(ingest.url)) as exporter:
        assert directory.locked()
        assert exporter.wait(100) == 0
    assert [item["prompt"] for item in ingest.items()] == numbers(range(20))
    assert ring_names(directory) == []
    assert not directory.locked()
    assert log_of(directory) == ""


def test_process_keeps_to_itself(directory: RingDir, ingest: Ingest) -> None:
    """Neither open files of the host nor its place in the system."""
    reader, writer = os.pipe()
    os.dup2(writer, 200)
    pipe = os.readlink("/proc/self/fd/200")
    with live_host(1), exporter_process(directory, tcc(ingest.url), 200) as exporter:
        ingest.wait_for(1)
        proc = Path(f"/proc/{exporter.pid}")
        assert os.readlink(proc / "cwd") == "/"
        here = os.getpriority(os.PRIO_PROCESS, 0)  # 19 is the nicest
        assert os.getpriority(os.PRIO_PROCESS, exporter.pid) == min(here + process.NICENESS, 19)
        assert os.readlink(proc / "fd" / "0") == os.devnull
        assert pipe not in [os.readlink(fd) for fd in (proc / "fd").iterdir()]
        assert b"secret-key" not in (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
        exporter.send_signal(signal.SIGINT)
        exporter.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            exporter.wait(0.2)
        exporter.terminate()
        assert exporter.wait(100) == 0
    for fd in (reader, writer, 200):
        os.close(fd)


def test_process_ends_soon_when_told(directory: RingDir) -> None:
    with live_host(5), exporter_process(directory, tcc(f"http://127.0.0.1:{free_port()}")) as exporter:
        wait_until(lambda: counters(directory)["last_error"])
        exporter.terminate()
        assert exporter.wait(100) == 0
    assert counters(directory)["in_ring"] == 5
    assert "connect failed: ECONNREFUSED" in log_of(directory)
    assert "127.0.0.1" not in log_of(directory)


def test_process_that_cannot_start_says_why(directory: RingDir) -> None:
    with live_host(1), exporter_process(directory, Destination(("nosuch:x",))) as exporter:
        assert exporter.wait(100) == process.CANNOT_START
        assert counters(directory)["last_error"].startswith("unknown sink 'nosuch'")
    assert "unknown sink 'nosuch'" in log_of(directory)


def test_process_honours_retry_after(directory: RingDir, ingest: Ingest) -> None:
    ingest.script(Reply(status=429, headers={"Retry-After": "1"}))
    dead_host(directory, 1)
    with exporter_process(directory, tcc(ingest.url)):
        first, second = ingest.wait_for(2)
    assert 1.0 <= second.at - first.at < 3.0


def test_log_stays_within_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = process._BoundedLog(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), 1000)
    for number in range(500):
        handler.handle(logging.LogRecord("", logging.INFO, "", 0, f"line {number}", None, None))
        assert path.stat().st_size <= 1000
    kept = path.read_text().splitlines()
    assert kept[-1] == "line 499"
    assert kept == [f"line {number}" for number in range(500 - len(kept), 500)]
    assert len(kept) > 40


# --- the thread ---------------------------------------------------------------------------------------------

RECORD_IN_THREAD = """
import os, sys, time, picostep
def record(prompt):
    picostep.run("r").step().prompt(prompt).response("x").end()
    assert picostep.flush(10)
record("parent")
if len(sys.argv) > 1:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        os.read(reader, 1)  # until the parent is dead
        record("child")
        os._exit(0)
"""


def in_thread(ingest: Ingest, base: Path) -> dict[str, str]:
    return {
        "TCC_API_KEY": "dev_key",
        "TCC_BASE_URL": ingest.url,
        "PICOSTEP_DIR": str(base),
        "PICOSTEP_EXPORTER": "thread",
    }


def test_thread_of_the_host(ring_base: Path, ingest: Ingest) -> None:
    run_python(RECORD_IN_THREAD, in_thread(ingest, ring_base))
    assert [item["prompt"] for item in ingest.items()] == ["parent"]


def test_thread_without_a_directory(tmp_path: Path, ingest: Ingest) -> None:
    (tmp_path / "file").touch()
    ended = run_python(RECORD_IN_THREAD, in_thread(ingest, tmp_path / "file"))
    assert [item["prompt"] for item in ingest.items()] == ["parent"]
    assert ended.stderr.count("\n") == 1


def test_thread_of_a_forked_child_takes_over(ring_base: Path, ingest: Ingest) -> None:
    run_python(RECORD_IN_THREAD, in_thread(ingest, ring_base), args=("fork",))
    assert [item["prompt"] for item in ingest.wait_for_items(2)] == ["parent", "child"]


@pytest.mark.parametrize("private", [False, True])
def test_thread_that_cannot_start_says_why(ring_base: Path, tmp_path: Path, private: bool) -> None:
    (tmp_path / "file").touch()
    settings = {"PICOSTEP_EXPORTER": "thread", "PICOSTEP_TO": "jsonl:/missing/secret"}
    settings["PICOSTEP_DIR"] = str(tmp_path / "file" if private else ring_base)
    code = """
import time, picostep
picostep.run("r").step().prompt("p").response("x").end()
deadline = time.monotonic() + 10
while not picostep.stats()["last_error"] and time.monotonic() < deadline:
    time.sleep(0.01)
print(picostep.stats()["last_error"])
picostep.configure(exit_timeout=0)
"""
    ended = run_python(code, settings)
    assert "cannot open" in ended.stdout
    assert "a\\rb" not in ended.stderr


def test_stdout_is_the_hosts(ring_base: Path) -> None:
    env = {"PICOSTEP_TO": "stdout", "PICOSTEP_DIR": str(ring_base)}
    lines = run_python(HOST, env, args=("3",)).stdout.splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["0", "1", "2"]
