"""Real servers whose requests record: what a client was answered is recorded, however the server ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import oracle
from oracle import (
    Ledger,
    Oracle,
    check_totals,
    end,
    environment,
    exit_time,
    impatient,
    times,
    wait_for_no_rings,
)
from support import Ingest, Request, clean_environment, free_port, wait_until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds workers in /proc"),
    pytest.mark.timeout(300),
]

HERE = Path(__file__).parent
CLIENTS = 4
EXIT_LIMIT = 2.0 + times(8.0, 0.25)  # seconds that picostep may add to the exit of a server, or other work
STARTS = 20.0

UVICORN = ["uvicorn", "served:asgi", "--no-access-log"]
GUNICORN = [
    "gunicorn",
    "served:wsgi",
    "--workers=2",
    "--worker-tmp-dir=/dev/shm",
    "--no-control-socket",
    "--graceful-timeout=5",
]
SERVERS: dict[str, list[str]] = {
    "uvicorn": UVICORN,
    "uvicorn, 2 workers": [*UVICORN, "--workers=2"],
    "gunicorn": [*GUNICORN, "--worker-class=sync"],
    "gunicorn, preloaded": [*GUNICORN, "--worker-class=sync", "--preload"],
    "gunicorn, threads": [*GUNICORN, "--worker-class=gthread", "--threads=4"],
    "gunicorn, threads, preloaded": [*GUNICORN, "--worker-class=gthread", "--threads=4", "--preload"],
}


class Steps:
    """
    What an `Oracle` looks at of an ingest: the steps. The other kinds are kept here.

    Args:
        ingest: Its requests are taken out of it.
    """

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest
        self.others: dict[str, Counter[str]] = {"run": Counter(), "tool_call": Counter()}

    def take(self) -> list[Request]:
        found = []
        for request in self._ingest.take():
            steps = []
            for item in request.items():
                if "step_id" in item:
                    steps.append(item)
                elif "tool_call_id" in item:
                    self.others["tool_call"][item["tool_call_id"]] += 1
                else:
                    self.others["run"][item["run_id"]] += 1
            found.append(replace(request, body=json.dumps({"type": "batch", "items": steps}).encode()))
        return found


class Server:
    """
    A server in a process of its own, and clients that keep asking it.

    Args:
        name: A key of `SERVERS`.

        env: Settings of picostep and of `served`.

        more: Further arguments of the server.
    """

    def __init__(self, name: str, env: dict[str, str], more: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        self.answers: list[dict[str, str]] = []
        self.unanswered = 0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - until close()
        self._stop = threading.Event()
        self._clients: list[threading.Thread] = []
        module, *arguments = SERVERS[name]
        self._workers = 2 if "--workers=2" in arguments else 1
        if module == "uvicorn":
            place = ["--host=127.0.0.1", f"--port={self.port}"]
        else:
            place = [f"--bind=127.0.0.1:{self.port}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, *place, *more],
            env=clean_environment(**env, PYTHONPATH=str(HERE)),
            cwd=HERE,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def wait_until_it_answers(self) -> None:
        try:
            wait_until(self._answers, STARTS)
        except AssertionError:
            raise AssertionError(f"no answer within {STARTS} s: {self.log()}") from None

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5.0)
        try:
            self._ask(connection, "first")
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return True

    def _ask(self, connection: http.client.HTTPConnection, name: str) -> None:
        connection.request("GET", f"/{name}")
        response = connection.getresponse()
        body = response.read()
        assert response.status == 200, (response.status, body)
        self.answers.append(json.loads(body))

    def ask_all_the_time(self) -> None:
        """Have clients ask until the server is gone or `stop_asking()`; return when all workers answer."""
        for number in range(CLIENTS):
            self._clients.append(threading.Thread(target=self._be_client, args=(number,)))
            self._clients[-1].start()
        # A worker of gunicorn that is told to end while it starts may not hear it.
        wait_until(lambda: len(self.workers()) >= self._workers, STARTS, "all workers answer")

    def _be_client(self, number: int) -> None:
        for count in range(100_000):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10.0)
            try:
                self._ask(connection, f"{number}/{count}")
            except (OSError, http.client.HTTPException):
                self.unanswered += 1
                self._stop.wait(0.01)  # it restarts
            finally:
                connection.close()
            if self._stop.wait(0.002):
                return

    def stop_asking(self) -> None:
        self._stop.set()
        for client in self._clients:
            client.join(20.0)
            assert not client.is_alive()
        self._clients.clear()

    def wait_for_answers(self, count: int) -> None:
        """Wait for so many more answers than there are."""
        goal = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= goal, 30.0, f"{count} answers; {self.log()}")

    def workers(self) -> set[int]:
        """Pids of processes that have answered."""
        return {int(answer["pid"]) for answer in self.answers}

    def end(self, number: int, timeout: float = 30.0) -> float:
        """Send the server a signal; return the seconds that it took to end."""
        start = time.monotonic()
        os.kill(self.process.pid, number)
        return exit_time(self.process, start, timeout)

    def log(self) -> str:
        with suppress(OSError):
            return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors="replace")
        return ""

    def close(self) -> None:
        """End it, its workers and its clients, if need be."""
        self._stop.set()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for client in self._clients:
            client.join(20.0)
        self._log.close()


Serve = Callable[..., Server]


def servers(*always: str, campaign: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Parametrize a test by servers, some of them in campaigns only."""
    names = [*always, *(pytest.param(name, marks=oracle.campaign) for name in campaign)]
    return pytest.mark.parametrize("name", names)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers; those that are left end with the test."""
    started: list[Server] = []

    def start(name: str, env: dict[str, str], *more: str) -> Server:
        started.append(Server(name, env, more))
        started[-1].wait_until_it_answers()
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


def settings(ring_base: Path, url: str, ledger: Path, **more: str) -> dict[str, str]:
    return environment(ring_base, url, SERVED_LEDGER=str(ledger), **more)


def check(server: Server, ledger: Path, ingest: Ingest, ring_base: Path, at_import: int = 0) -> None:
    """
    Everything that was answered has arrived, once; nothing arrived that was not recorded; nobody complained.

    Args:
        at_import: How many steps were recorded without a request.
    """
    log = server.log()
    assert "Traceback" not in log, log
    found = Ledger.parse(ledger.read_bytes())  # it fails when an id was given twice
    found.order = [answer["step"] for answer in server.answers]
    assert len(found.promised) == len(server.answers)
    assert len(found.intended) >= len(found.promised) + at_import
    steps = Steps(ingest)
    arrived = Oracle(steps)
    arrived.expect(found)
    arrived.check_nothing_lost()
    wait_for_no_rings(ring_base)
    arrived.check_nothing_altered()
    assert arrived.repeated() == 0
    for kind, others in steps.others.items():
        assert {answer[kind] for answer in server.answers} <= others.keys(), kind
        assert set(others.values()) == {1}, kind
    counted = check_totals(ring_base)
    assert counted["accepted"] == arrived.arrivals.total() + sum(map(len, steps.others.values()))


@pytest.mark.slow
@servers(
    "uvicorn",
    "uvicorn, 2 workers",
    "gunicorn, threads, preloaded",
    campaign=("gunicorn", "gunicorn, preloaded", "gunicorn, threads"),
)
def test_server_that_is_told_to_end(
    ring_base: Path, ingest: Ingest, ledger: Path, serve: Serve, name: str
) -> None:
    """With requests under way: SIGTERM as from systemd, Kubernetes or Docker."""
    at_import = "preloaded" in name
    env = settings(ring_base, ingest.url, ledger, SERVED_AT_IMPORT=str(int(at_import)))
    server = serve(name, env)
    server.ask_all_the_time()
    server.wait_for_answers(times(60, 2000))
    seconds = server.end(signal.SIGTERM)
    server.stop_asking()
    check(server, ledger, ingest, ring_base, int(at_import))
    print(f"\n{name}: {len(server.answers)} answers, ended in {seconds:.2f} s")


@servers("uvicorn", campaign=("uvicorn, 2 workers", "gunicorn, threads, preloaded"))
def test_server_that_is_interrupted(
    ring_base: Path, ingest: Ingest, ledger: Path, serve: Serve, name: str
) -> None:
    server = serve(name, settings(ring_base, ingest.url, ledger))
    server.ask_all_the_time()
    server.wait_for_answers(40)
    server.end(signal.SIGINT)
    server.stop_asking()
    check(server, ledger, ingest, ring_base)


@pytest.mark.slow
@servers("gunicorn", campaign=("gunicorn, threads, preloaded",))
def test_workers_that_are_replaced(
    ring_base: Path, ingest: Ingest, ledger: Path, serve: Serve, name: str
) -> None:
    """All the time, by `--max-requests`, and at SIGHUP, which makes gunicorn load the application anew."""
    server = serve(name, settings(ring_base, ingest.url, ledger), "--max-requests=25")
    server.ask_all_the_time()
    for _ in range(times(2, 20)):
        server.wait_for_answers(60)
        os.kill(server.process.pid, signal.SIGHUP)
    server.wait_for_answers(60)
    server.stop_asking()
    server.end(signal.SIGTERM)
    assert len(server.workers()) >= 6
    check(server, ledger, ingest, ring_base)


@pytest.mark.slow
@servers("gunicorn, threads, preloaded", campaign=("uvicorn, 2 workers",))
def test_workers_that_are_killed(
    ring_base: Path, ingest: Ingest, ledger: Path, serve: Serve, name: str
) -> None:
    """The server starts another; what the dead one had answered is delivered."""
    server = serve(name, settings(ring_base, ingest.url, ledger))
    server.ask_all_the_time()
    for _ in range(times(2, 30)):
        known = len(server.answers)
        server.wait_for_answers(40)
        end(int(server.answers[known + 39]["pid"]))
    server.wait_for_answers(40)
    server.stop_asking()
    server.end(signal.SIGTERM)
    assert len(server.workers()) >= 3
    check(server, ledger, ingest, ring_base)


@pytest.mark.slow
@servers("gunicorn, threads", campaign=("uvicorn", "uvicorn, 2 workers"))
def test_exit_with_a_dead_backend(ring_base: Path, ledger: Path, serve: Serve, name: str) -> None:
    """Two seconds longer than without picostep at most; all is delivered when the backend is back."""
    plain = serve(name, {"SERVED_PLAIN": "1"})
    plain.ask_all_the_time()
    plain.wait_for_answers(20)
    plain.stop_asking()
    baseline = plain.end(signal.SIGTERM)
    port = free_port()
    server = serve(name, impatient(settings(ring_base, f"http://127.0.0.1:{port}", ledger)))
    server.ask_all_the_time()
    server.wait_for_answers(40)
    server.stop_asking()
    seconds = server.end(signal.SIGTERM)
    assert seconds <= baseline + EXIT_LIMIT, f"{seconds:.2f} s, without picostep {baseline:.2f} s"
    with Ingest(port) as ingest:
        check(server, ledger, ingest, ring_base)
    print(f"\n{name}: ends in {seconds:.2f} s, without picostep in {baseline:.2f} s")
