"""The test server and helpers do what the other tests take for granted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path

import pytest

from support import (
    Ingest,
    Reply,
    clean_environment,
    exporters,
    free_port,
    ring_directory,
    run_python,
    wait_until,
)


def post(connection: HTTPConnection, body: bytes = b"{}") -> tuple[int, bytes]:
    connection.request("POST", "/v1/custom", body, {"Authorization": "Bearer k"})
    response = connection.getresponse()
    return response.status, response.read()


@pytest.fixture
def connection(ingest: Ingest) -> HTTPConnection:
    return HTTPConnection("127.0.0.1", ingest.port, timeout=10)


def test_keeps_what_it_is_sent(ingest: Ingest, connection: HTTPConnection) -> None:
    assert post(connection, b'{"type": "batch", "items": [{"a": 1}, {"a": 2}]}') == (200, b"{}")
    assert post(connection, b'{"a": 3}') == (200, b"{}")
    connection.close()

    one, two = ingest.wait_for(2)
    assert (one.method, one.path, one.headers["authorization"]) == ("POST", "/v1/custom", "Bearer k")
    assert (one.connection, two.connection) == (0, 0)
    assert ingest.items() == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert len(ingest.take()) == 2
    assert ingest.requests == []


def test_follows_its_script(ingest: Ingest, connection: HTTPConnection) -> None:
    ingest.script(Reply(503, b"later", {"Retry-After": "1"}), Reply(delay=0.05))
    ingest.default = lambda request: Reply(413 if len(request.body) > 2 else 200)

    assert post(connection) == (503, b"later")
    start = time.monotonic()
    assert post(connection) == (200, b"{}")
    assert time.monotonic() - start >= 0.05
    assert post(connection, b"{   }") == (413, b"{}")
    connection.close()


def test_hangs_until_told(ingest: Ingest, connection: HTTPConnection) -> None:
    go = threading.Event()
    ingest.script(Reply(hang=go))
    answers: list[tuple[int, bytes]] = []
    client = threading.Thread(target=lambda: answers.append(post(connection)))
    client.start()
    ingest.wait_for(1)
    assert answers == []

    go.set()
    client.join(10)
    connection.close()
    assert answers == [(200, b"{}")]


def test_drops_a_connection(ingest: Ingest, connection: HTTPConnection) -> None:
    ingest.script(Reply(drop=True))

    with pytest.raises((RemoteDisconnected, ConnectionError)):
        post(connection)
    connection.close()


def test_stops_with_connections_open_and_hanging() -> None:
    before = threading.active_count()
    ingest = Ingest()
    ingest.default = Reply(hang=threading.Event())
    idle = HTTPConnection("127.0.0.1", ingest.port)
    idle.connect()
    idle.request("POST", "/", b"{}")
    ingest.wait_for(1)

    ingest.stop()
    ingest.stop()
    idle.close()

    assert threading.active_count() == before


def test_a_free_port_refuses() -> None:
    with pytest.raises(ConnectionRefusedError):
        HTTPConnection("127.0.0.1", free_port(), timeout=5).connect()


def test_wait_until_gives_up() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.02 s: never"):
        wait_until(lambda: False, 0.02, "never")


class TestRunPython:
    def test_output_and_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TCC_API_KEY", "real")
        code = "import os, sys; print(os.environ.get('TCC_API_KEY'), os.environ['PICOSTEP_TO'], sys.argv[1:])"

        assert run_python(code, {"PICOSTEP_TO": "stdout"}, args=("x",)).stdout == "None stdout ['x']\n"

    def test_a_failure_shows_its_stderr(self) -> None:
        with pytest.raises(AssertionError, match=r"(?s)exit code 1.*ZeroDivisionError"):
            run_python("1/0")

        assert run_python("raise SystemExit(3)", check=False).returncode == 3

    def test_a_process_left_behind_does_not_hold_it_up(self) -> None:
        child = (
            "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1).pid)"
        )
        finished = run_python(f"{child}; import os; os._exit(0)", timeout=20)

        assert finished.seconds < 60

    def test_a_deadline(self) -> None:
        with pytest.raises(AssertionError, match="still running"):
            run_python("import time; time.sleep(60)", timeout=0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_ring_directory_ends_its_exporters() -> None:
    code = "import sys; f = open(sys.argv[1], 'w'); print('open', flush=True); sys.stdin.read()"
    with ring_directory() as base:
        (base / "0123").mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(base / "0123" / "lock")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment(),
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        assert exporters(base) == [process.pid]

    assert exporters(base) == []
    assert not base.exists()
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGKILL


def test_a_ring_directory_is_in_the_environment(ring_base: Path) -> None:
    assert os.environ["PICOSTEP_DIR"] == str(ring_base)
    assert ring_base.stat().st_mode & 0o777 == 0o700
