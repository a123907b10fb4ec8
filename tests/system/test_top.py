"""`picostep top`, and the socket of exporters that it asks."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, Group

from picostep.cli.commands import picostep
from picostep.cli.top import Load, Tally, Watch, top_view
from picostep.exporter import top_socket
from picostep.exporter.top_socket import NoAnswer, TopSocket, ask
from picostep.metrics.aggregate import Aggregator, Snapshot, Steps
from picostep.ringdir import RingDir, base, open_dir
from support import clean_environment, exporters, kill_exporters, run_python, wait_until
from timed import START, exact, step

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="exporters are threads there")

# Records as many steps as each line of its input says, and says what they were.
HOST = """
import json, random, sys
from datetime import datetime, timedelta, timezone
import picostep

rnd = random.Random(7)
print(picostep.send_step("r", prompt="p", response="r") and picostep.flush(20), flush=True)
for line in sys.stdin:
    told = []
    for _ in range(int(line)):
        micros, tokens = int(rnd.lognormvariate(13, 1)), rnd.randrange(1, 500)
        model, status = rnd.choice(["gpt-4o", "own-model"]), rnd.choice([0, 0, 0, 2, 5])
        start = datetime(2026, 11, 25, tzinfo=timezone.utc)
        picostep.send_step(
            "r", prompt="p", response="r", model_used=model, status_code=status, cost=tokens,
            prompt_uncached=tokens, prompt_cached=2 * tokens, completion=tokens,
            start_time=start, end_time=start + timedelta(microseconds=micros))
        told.append([model, status, micros, tokens])
    assert picostep.flush(20)
    print(json.dumps(told), flush=True)
"""


Told = tuple[str, int, int, int]
"""Model, status, microseconds and tokens of a step."""


class Host:
    """A process that records what it is told to."""

    def __init__(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOST],
            env=clean_environment(**environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "True\n"

    def record(self, count: int) -> list[Told]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        return [tuple(each) for each in json.loads(self._line())]

    def end(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=100)

    def _line(self) -> str:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 30)[0]
        return self.process.stdout.readline()


@pytest.fixture
def settings(ring_base: Path, tmp_path: Path) -> dict[str, str]:
    return {
        "PICOSTEP_DIR": str(ring_base),
        "PICOSTEP_TO": f"jsonl:{tmp_path / 'out'}",
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }


@pytest.fixture
def host(settings: dict[str, str]) -> Iterator[Host]:
    made = Host(**settings)
    yield made
    made.end()


@pytest.fixture
def directory(ring_base: Path) -> Iterator[RingDir]:
    with closing(open_dir(base(str(ring_base)), "made", create=True)) as made:
        yield made


@contextmanager
def listening(directory: RingDir) -> Iterator[TopSocket]:
    made = TopSocket(directory)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def connected(directory: RingDir) -> socket.socket | None:
    """A client; None where too many wait already."""
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(10)
    try:
        made.connect(top_socket._address(directory))
    except BlockingIOError:
        made.close()
        return None
    return made


def answer(directory: RingDir) -> Snapshot:
    found = ask(directory)
    assert found is not None
    return found


# --- the socket -------------------------------------------------------------------------------------------


@pytest.mark.slow
@given(
    st.lists(
        st.builds(
            step,
            model_used=st.sampled_from(["a", "b\udc80", "深\n"]),
            end_ns=st.integers(START, START + 10**14),
            first_token_ns=st.integers(START, START + 10**10),
            completion_tokens=st.integers(0, 2**53),
            cost_pico=st.integers(0, 2**80),
            status_code=st.sampled_from([0, 2, 7]),
        ),
        max_size=20,
    )
)
def test_what_is_sent_is_what_was_counted(records: list[dict[str, Any]]) -> None:
    aggregator = Aggregator()
    aggregator.add([*records, {"kind": "run", "status_code": 0}])
    sent = aggregator.snapshot()
    came = Snapshot.from_plain(json.loads(json.dumps(sent.as_plain())))
    assert came.as_plain() == sent.as_plain()
    assert list(came.steps) == list(sent.steps)
    for share in (0, 0.5, 0.99, 1):
        assert came.total().duration.quantile(share) == sent.total().duration.quantile(share)
    came.total().merge(sent.total(), -1)


def test_counts_from_the_first_question_until_nobody_asks(
    directory: RingDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listening(directory) as made:
        made.add([step()])
        assert made._aggregator is None
        first = answer(directory)
        assert first.steps == {}
        made.add([step(), step()])
        second = answer(directory)
        assert (second.start_ns, second.total().count) == (first.start_ns, 2)

        later = time.monotonic() + 61
        monkeypatch.setattr(top_socket.time, "monotonic", lambda: later)
        made.add([step()])
        assert made._aggregator is None
        monkeypatch.undo()
        third = answer(directory)
        assert third.start_ns > first.start_ns
        assert third.steps == {}


def test_nothing_is_loaded_before_the_first_question(ring_base: Path) -> None:
    code = """
import os, sys
from picostep.exporter.top_socket import TopSocket
from picostep.ringdir import open_dir
live = TopSocket(open_dir(sys.argv[1], "d", create=True))
live.start()
live.add([{"kind": "step"}])
print([name for name in sys.modules if "metrics" in name or "ddsketch" in name])
live.stop()
"""
    assert run_python(code, args=(str(ring_base),)).stdout == "[]\n"


def test_without_the_library(directory: RingDir) -> None:
    code = """
import sys
sys.modules["ddsketch"] = None
from picostep.exporter.top_socket import TopSocket
from picostep.ringdir import open_dir
live = TopSocket(open_dir(*sys.argv[1:], create=False))
live.start()
print(flush=True)
input()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, os.path.dirname(directory.path), "made"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        with pytest.raises(NoAnswer, match=r"^needs pip install 'picostep\[metrics\]' where it runs$"):
            ask(directory)
    finally:
        process.communicate("\n", timeout=100)


def test_no_exporter(directory: RingDir) -> None:
    assert ask(directory) is None
    left = socket.socket(socket.AF_UNIX)
    left.bind(top_socket._address(directory))
    left.close()
    assert ask(directory) is None  # it was killed …
    with listening(directory):
        assert ask(directory) is not None  # … and another one takes its place
    assert ask(directory) is None
    assert os.listdir(directory.fd) == []


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    with closing(open_dir(str(tmp_path / ("x" * 120)), "y" * 120, create=True)) as made, listening(made):
        assert ask(made) is not None


def test_where_there_can_be_no_socket(directory: RingDir, caplog: pytest.LogCaptureFixture) -> None:
    os.mkdir("metrics", dir_fd=directory.fd)
    with listening(directory) as made:
        made.add([step()])
    assert "picostep top cannot ask this exporter" in caplog.text
    assert ask(directory) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "said",
    [
        *(b"", b"[", b"null", b"{}", b"\xff", b"[" * 100_000),
        *(b'{"format":2}', b'{"format":1}', b'{"format":1,"sums":{"steps":[[1,2]]}}'),
        b'{"format":1,"sums":{"steps":[[["","","","",""],[[1],[]]]]}}',
    ],
)
def test_answers_of_something_else(directory: RingDir, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(top_socket._address(directory))
        server.listen()
        reader = subprocess.Popen(
            [sys.executable, "-c", "import sys; from picostep.exporter.top_socket import *; "
             "from picostep.ringdir import open_dir\n"
             "try: ask(open_dir(*sys.argv[1:], create=False))\n"
             "except NoAnswer as error: print(error)",
             os.path.dirname(directory.path), "made"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        server.settimeout(20)
        connection, _ = server.accept()
        with connection:
            connection.sendall(said)
        out, _ = reader.communicate(timeout=100)
    assert re.fullmatch("(is of another version|answers what cannot be read)\n", out)


def test_hostile_clients(host: Host, settings: dict[str, str]) -> None:
    """Some hang, some send garbage, some go away: all is delivered, and others are answered."""
    base_path = base(settings["PICOSTEP_DIR"])
    (name,) = os.listdir(base_path)
    with ExitStack() as opened:
        directory = opened.enter_context(closing(open_dir(base_path, name, create=False)))
        first = answer(directory)
        for number in range(40):
            client = opened.enter_context(wait_until(lambda: connected(directory), 20))
            if number % 3 == 1:
                with suppress(ConnectionError):  # it was sent away
                    client.sendall(b"\0garbage\r\n" * 100)
            elif number % 3 == 2:
                client.close()
        told = host.record(500)
        found = wait_until(lambda: _answered(directory), 20)
        assert found.start_ns == first.start_ns
        assert found.total().count == len(told)
    (pid,) = exporters(Path(settings["PICOSTEP_DIR"]))
    wait_until(lambda: _threads(pid) <= 4, 20, "threads of answers gone")


def _answered(directory: RingDir) -> Snapshot | None:
    try:
        return ask(directory)
    except NoAnswer:  # too many at a time
        return None


def _threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


# --- what is shown ----------------------------------------------------------------------------------------


def check(load: Load, told: list[Told]) -> None:
    """What is known of some seconds is what hosts have recorded in them."""
    assert {model: tally.steps.count for model, tally in load.models.items()} == Counter(
        model for model, *_ in told
    )
    for model, tally in load.models.items():
        of_model = [each for each in told if each[0] == model]
        tokens = sum(tokens for *_, tokens in of_model)
        steps = tally.steps
        assert (steps.prompt_uncached, steps.prompt_cached, steps.completion) == (tokens, 2 * tokens, tokens)
        assert (steps.cost_pico, steps.unpriced) == (tokens * 10**12, 0)
        assert tally.errors == sum(status == 2 for _, status, *_ in of_model)
        durations = [micros * 1000 for _, _, micros, _ in of_model]
        for share in (0.5, 0.99):
            assert steps.duration.quantile(share) == pytest.approx(exact(durations, share), 0.0101)


@pytest.mark.slow
def test_several_exporters(host: Host, settings: dict[str, str], tmp_path: Path) -> None:
    """Of hosts with other settings, and one in the foreground that serves two directories."""
    sidecar = subprocess.Popen(
        [sys.executable, "-m", "picostep", "export", "--to", f"jsonl:{tmp_path / 'third'}"],
        env=clean_environment(**settings),
        stderr=subprocess.DEVNULL,
    )
    other = Host(**settings | {"PICOSTEP_TO": f"jsonl:{tmp_path / 'other'}"})
    external = Host(**settings | {"PICOSTEP_EXPORTER": "external"})
    try:
        watch = Watch(base(settings["PICOSTEP_DIR"]), None, 3)
        wait_until(lambda: watch.scan().exporters == 4, 20, "all exporters")
        told = [*host.record(300), *other.record(200), *external.record(100)]
        load = watch.scan()
        assert (load.exporters, load.hosts, load.problems) == (4, 3, {})
        assert (load.in_ring, load.in_spool, load.dropped, load.fullest) == (0, 0, 0, 0.0)
        check(load, told)

        told += host.record(50)
        check(watch.scan(), told)  # sums over three intervals …
        watch.scan()
        check(watch.scan(), told[600:])  # … of which the first is over by now
        assert watch.scan().models == {}
    finally:
        sidecar.terminate()
        sidecar.wait(100)
        other.end()
        external.end()


@pytest.mark.slow
def test_an_exporter_that_is_killed(host: Host, settings: dict[str, str]) -> None:
    """Its counts begin at nothing once more, and no rate becomes negative."""
    rings = Path(settings["PICOSTEP_DIR"])
    watch = Watch(base(str(rings)), None, 10**6)
    watch.scan()
    told = host.record(100)
    check(watch.scan(), told)
    kill_exporters(rings)
    loads = [wait_until(lambda: (load := watch.scan()).exporters and load, 20)]
    told += host.record(10)
    loads.append(watch.scan())
    check(loads[-1], told)
    for load in loads:
        assert all(min(tally.steps.as_plain()[0]) >= 0 for tally in load.models.values())


def test_what_somebody_else_has_asked_for_is_left_out(host: Host, settings: dict[str, str]) -> None:
    first, second = (Watch(base(settings["PICOSTEP_DIR"]), None, 100) for _ in range(2))
    first.scan()
    told = host.record(100)
    assert second.scan().models == {}
    told += host.record(30)
    check(second.scan(), told[100:])
    check(first.scan(), told)


def test_what_waits_is_shown(host: Host, settings: dict[str, str], tmp_path: Path) -> None:
    os.kill(exporters(Path(settings["PICOSTEP_DIR"]))[0], signal.SIGSTOP)
    code = """
import os, picostep
for _ in range(50):
    picostep.send_step("r", prompt="p", response="r")
os._exit(0)
"""
    run_python(code, settings)
    load = Watch(base(settings["PICOSTEP_DIR"]), None, 1).scan()
    assert load.in_ring == 50
    assert load.fullest > 0
    assert list(load.problems.values()) == ["does not answer"]


# --- the command ------------------------------------------------------------------------------------------


def command(settings: dict[str, str], *options: str, **popen: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "picostep", "top", *options],
        env=clean_environment(**settings),
        # A suite that runs in the background may have inherited that Ctrl-C is to be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        **popen,
    )


def recorded_during(process: subprocess.Popen[bytes], host: Host) -> tuple[list[Told], str]:
    """Record one step after another until a command has ended; return all, and what it has printed."""
    told = []
    while process.poll() is None:
        told += host.record(1)
    assert process.returncode == 0
    assert process.stdout is not None
    with process.stdout:
        return told, process.stdout.read().decode()


def test_json(host: Host, settings: dict[str, str]) -> None:
    """What it says of an interval is true of as many steps in succession."""
    told, out = recorded_during(command(settings, "--json", "-i", "1", stdout=subprocess.PIPE), host)
    found = json.loads(out)
    assert (found["exporters"], found["hosts"], found["problems"]) == (1, 1, {})
    assert 1 <= found["seconds"] < 60
    total, count = found["total"], found["total"]["steps"]
    assert count > 0
    spans = [told[first : first + count] for first in range(len(told) - count + 1)]
    (span,) = [span for span in spans if sum(each[3] for each in span) == Decimal(total["total_cost"])]
    assert total["errors"] == sum(status == 2 for _, status, *_ in span)
    assert total["completion_tokens"] == sum(each[3] for each in span)
    assert total["duration_ms"]["p50"] == pytest.approx(exact([m for _, _, m, _ in span], 0.5) / 1000, 0.0101)
    assert total["first_token_ms"] == {"p50": None, "p99": None}
    by_model = Counter(model for model, *_ in span)
    assert {each["model"]: each["steps"] for each in found["models"]} == by_model


@pytest.mark.slow
def test_once(host: Host, settings: dict[str, str]) -> None:
    """So it is without a terminal, also when nobody says so."""
    _, out = recorded_during(command(settings, "-i", "0.5", stdout=subprocess.PIPE), host)
    lines = out.splitlines()
    assert lines[0].startswith("picostep top   1 exporter, 1 process   last ")
    assert [line.split()[0] for line in lines[-3:]] in (
        ["gpt-4o", "own-model", "total"],
        ["own-model", "gpt-4o", "total"],
    )
    assert "\x1b" not in out


def test_nobody_to_ask(ring_base: Path) -> None:
    result = CliRunner().invoke(picostep, ["top", "--once", "-i", "0.1"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no exporter is at work in" in result.stderr


def test_on_a_terminal(settings: dict[str, str]) -> None:
    """It waits for an exporter, follows what comes, and leaves the terminal as it was."""
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    before = termios.tcgetattr(terminal)
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    process = command(settings | {"TERM": "xterm"}, "-i", "0.2", start_new_session=True, **streams)
    seen = b""

    def shows(text: bytes) -> bool:
        nonlocal seen
        while select.select([main], [], [], 0)[0]:
            seen += os.read(main, 1 << 16)
        return text in seen

    try:
        wait_until(lambda: shows(b"No exporter is at work"), 20)
        host = Host(**settings)
        try:
            wait_until(lambda: shows(b"No step in"), 20)
            wait_until(lambda: host.record(10) and shows(b"own-model"), 20)
        finally:
            host.end()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(100) == 130
        assert shows(b"\x1b[?1049h")
        restored = seen.rindex(b"\x1b[?1049l")
        assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
        assert restored > seen.rindex(b"own-model")
        assert b"Traceback" not in seen
        assert termios.tcgetattr(terminal) == before
    finally:
        process.kill()
        process.wait()
        os.close(main)
        os.close(terminal)


HOSTILE = "\x1b]0;title\x07[red]markup[/red]\x9b2J\u202eevil\r\n"


def load_of(*models: str) -> Load:
    tallies = {}
    for number, model in enumerate(models, 1):
        steps = Steps()
        for _ in range(number):
            steps.add(step(cost_pico=10**9, prompt_uncached_tokens=123_456, completion_tokens=7 * number))
        tallies[model] = Tally(steps, errors=number % 2)
    return Load(10.0, tallies, 1, {HOSTILE: HOSTILE}, 3, 4, 5, 0.06, 7, 8)


@pytest.mark.parametrize(
    "width", [20, *(pytest.param(width, marks=pytest.mark.slow) for width in (30, 40, 60, 100, 120)), 80, 200]
)
@pytest.mark.parametrize("height", [10, 24, None])
def test_narrow_terminals(width: int, height: int | None) -> None:
    """Columns go, models are cut short, and what is left is whole."""
    models = ["gpt-4o", HOSTILE, "", *(f"model-of-some-length-{number}" for number in range(20))]
    load = load_of(*models)
    console = Console(width=width, markup=False, highlight=False, emoji=False, color_system=None)
    with console.capture() as capture:
        console.print(Group(*top_view(load, width, height)))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    assert height is None or len(lines) <= height
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", capture.get())
    shown = [line for line in lines if line.startswith(("gpt-4o", "total"))]
    assert len(shown) == 2
    per_second = 276 / 10
    assert f" {per_second}" in shown[1]
    assert "…" not in shown[0] + shown[1]
    assert bool(re.match(r"\d+ more mod", lines[-1])) == (height is not None)
