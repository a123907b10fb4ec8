"""`picostep.asgi.Flush`: what a worker has answered is delivered before it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import picostep
from oracle import environment
from picostep.asgi import Flush
from support import Ingest, Reply, clean_environment, free_port, kill_exporters, wait_until

HERE = Path(__file__).parent
STARTUP, SHUTDOWN = {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}


async def lived(app: Any, *events: dict[str, Any]) -> list[str]:
    """Play a server's part of the lifespan protocol; return what the application has said."""
    said: list[str] = []
    left = list(events)

    async def receive() -> dict[str, Any]:
        return left.pop(0)

    async def send(message: Any) -> None:
        said.append(message["type"])

    await app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    return said


def application(*words: str, fails: bool = False) -> Callable[..., Any]:
    """An application that receives an event before each word, and raises at its end if it `fails`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for word in words:
            await receive()
            await send({"type": f"lifespan.{word}"})
        if fails:
            raise RuntimeError("the application's own")

    return app


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The timeouts of the waits that `Flush` has asked for."""
    found: list[float | None] = []
    monkeypatch.setattr(picostep.runtime, "wait_for_delivery", found.append)
    return found


@pytest.mark.parametrize(
    ("app", "said"),
    [
        (application("startup.complete", "shutdown.complete"), ["startup.complete", "shutdown.complete"]),
        (application("startup.complete", "shutdown.failed"), ["startup.complete", "shutdown.failed"]),
        # Those that know no lifespan, by an exception as the specification has it, or by a silent return.
        (application(fails=True), ["startup.complete", "shutdown.complete"]),
        (application(), ["startup.complete", "shutdown.complete"]),
        (application("startup.complete"), ["startup.complete", "shutdown.complete"]),
    ],
)
def test_waits_once_before_the_end_is_said(
    waited: list[float | None], app: Callable[..., Any], said: list[str]
) -> None:
    found = asyncio.run(lived(Flush(app, 0.5), STARTUP, SHUTDOWN))
    assert found == [f"lifespan.{word}" for word in said]
    assert waited == [0.5]


def test_a_start_that_fails(waited: list[float | None]) -> None:
    assert asyncio.run(lived(Flush(application("startup.failed")), STARTUP)) == ["lifespan.startup.failed"]
    assert waited == []


def test_an_end_that_fails(waited: list[float | None]) -> None:
    """What the application raises goes on to the server, after the wait."""
    with pytest.raises(RuntimeError, match="the application's own"):
        asyncio.run(lived(Flush(application("startup.complete", fails=True)), STARTUP, SHUTDOWN))
    assert waited == [None]


def test_other_connections_are_the_applications(waited: list[float | None]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": f"{scope['type']}.answer"})

    said: list[str] = []

    async def send(message: Any) -> None:
        said.append(message["type"])

    for kind in ("http", "websocket"):
        asyncio.run(Flush(app)({"type": kind}, None, send))  # type: ignore[arg-type]
    assert said == ["http.answer", "websocket.answer"]
    assert waited == []


@pytest.mark.parametrize(
    ("timeout", "error"), [("2", TypeError), (True, TypeError), (-1, ValueError), (float("nan"), ValueError)]
)
def test_bad_timeouts(timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"Flush\(\): timeout must be"):
        Flush(application(), timeout)


@pytest.mark.slow
def test_what_is_not_delivered_in_time_is_not_waited_for_again(ring_base: Path, tmp_path: Path) -> None:
    """The end of a process: `Flush` waits, then `atexit` does not wait as long once more."""
    code = (
        "import asyncio, sys, time; import picostep as tcc; from picostep.asgi import Flush\n"
        "from test_asgi import STARTUP, SHUTDOWN, application, lived\n"
        "tcc.step('r').prompt('p').response('q').end()\n"
        "start = time.monotonic()\n"
        "asyncio.run(lived(Flush(application()), STARTUP, SHUTDOWN)); print(time.monotonic() - start)\n"
        "import atexit; atexit._run_exitfuncs(); print(time.monotonic() - start)"
    )
    env = clean_environment(
        PICOSTEP_DIR=str(ring_base),
        PICOSTEP_EXPORTER="external",  # and nobody exports
        PICOSTEP_EXIT_TIMEOUT="3",
        PICOSTEP_TO=f"jsonl:{tmp_path / 'steps'}",
        PYTHONPATH=os.pathsep.join([str(HERE), str(HERE.parent)]),
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True
    )
    first, both = map(float, done.stdout.split())
    assert first >= 3
    assert both - first < 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM")
def test_a_worker_of_uvicorn(ring_base: Path, ingest: Ingest, tmp_path: Path) -> None:
    """
    SIGTERM, at which uvicorn leaves `atexit` out; a receiver that takes 0.3 s; a container that ends with it.

    Nobody exports once the server is gone: what it has answered must have arrived.
    """
    ingest.script(*[Reply(delay=0.3)] * 50)
    port = free_port()
    env = environment(
        ring_base, ingest.url, SERVED_LEDGER=str(tmp_path / "ledger"), PICOSTEP_EXIT_TIMEOUT="20"
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "served:flushed", "--no-access-log", f"--port={port}"],
        env=clean_environment(**env, PYTHONPATH=str(HERE)),
        cwd=HERE,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    answered: list[str] = []

    def ask() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/x", timeout=5.0) as response:
                answered.append(json.load(response)["step"])
        except OSError:
            return False
        return True

    try:
        wait_until(ask, 30.0, "uvicorn answers")
        deadline = time.monotonic() + 60.0
        while len(answered) < 40 and time.monotonic() < deadline:
            ask()
        server.send_signal(signal.SIGTERM)
        server.wait(60.0)
    finally:
        server.kill()
        server.wait()
    kill_exporters(ring_base)
    arrived = {item.get("step_id") for request in ingest.take() for item in request.items()}
    assert len(answered) >= 40
    assert set(answered) <= arrived
