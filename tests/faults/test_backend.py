"""Backends that hang, are gone, slow or wrong: the host does not notice, and its records wait for them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from oracle import (
    Host,
    Oracle,
    check_equation,
    check_totals,
    end,
    environment,
    exit_time,
    exporter_pids,
    sample,
    times,
    wait_for_exporter,
    wait_for_no_rings,
)
from support import Ingest, Reply, Request, clean_environment, free_port, run_python, wait_until

Start = Callable[..., Host]


class Backend(Ingest):
    """
    An ingest that can fail, and counts the records that it has said yes to.

    `failing` makes the answers while it is set; after that they are 200.
    """

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)
        self.failing: Callable[[Request], Reply] | None = None
        self.taken = 0
        self._taking = threading.Lock()
        self.default = self._decide

    def _decide(self, request: Request) -> Reply:
        failing = self.failing
        reply = failing(request) if failing else Reply()
        if 200 <= reply.status < 300 and reply.hang is None and not reply.drop:
            with self._taking:
                self.taken += len(request.items())
        return reply


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as server:
        yield server


# --- what end() costs -------------------------------------------------------------------------------------

COMPARE = """
import statistics, sys, time, json
import picostep
text = "x" * 3000
runs = [picostep.run(), picostep.run(api_key="dev_other", tcc_url=sys.argv[1])]
batches = ([], [])
for number in range(62):
    for which in (0, 1) if number % 2 else (1, 0):
        run = runs[which]
        steps = [run.step().prompt(text).response("r") for _ in range(50)]
        start = time.perf_counter_ns()
        for step in steps:
            step.end()
        batches[which].append((time.perf_counter_ns() - start) / 50)
    time.sleep(0.002)
dropped = picostep.stats()["dropped"]
assert not any(dropped.values()), dropped
print(json.dumps([statistics.median(b[2:]) for b in batches]))
sys.stdout.flush()
import os
os._exit(0)
"""


@contextmanager
def absent() -> Iterator[str]:
    yield f"http://127.0.0.1:{free_port()}"


@contextmanager
def hung() -> Iterator[str]:
    """Accepts connections, by its backlog, and never reads from them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def answering(reply: Reply) -> Iterator[str]:
    with Ingest() as server:
        server.default = reply
        yield server.url


BAD: dict[str, Callable[[], Any]] = {
    "absent": absent,
    "hung": hung,
    "slow": lambda: answering(Reply(delay=0.5)),
    "500": lambda: answering(Reply(500)),
    "401": lambda: answering(Reply(401)),
    "disconnecting": lambda: answering(Reply(drop=True)),
}


@pytest.mark.parametrize("kind", ["absent", "hung"])
def test_cost_of_end(ring_base: Path, ingest: Ingest, kind: str) -> None:
    """Batches that go to a good and to a bad backend, in turn; the bound is wide, the figures are printed."""
    with BAD[kind]() as url:
        done = run_python(COMPARE, environment(ring_base, ingest.url), args=(url,), timeout=60.0)
    good, bad = json.loads(done.stdout)
    print(f"\nend() of a 3 KB step, median: {good:.0f} ns with a good backend, {bad:.0f} ns with one {kind}")
    assert bad < 3 * good + 2_000
    assert good < 3 * bad + 2_000


# --- how long the host stays ------------------------------------------------------------------------------

LEAVE = """
import os, sys, time
import picostep
for number in range(300):
    picostep.send_step("r", prompt=f"p{number}", response="r" * 1000)
time.sleep(0.3)
print(time.monotonic(), flush=True)
"""


@pytest.mark.parametrize(
    ("kind", "exporter"),
    [("absent", "process"), ("hung", "process"), ("slow", "process"), ("hung", "thread"), ("401", "thread")],
)
def test_exit_with_a_bad_backend(ring_base: Path, exporter: str, kind: str) -> None:
    """The host leaves within 2 s + 250 ms and says what is left; it is all in the ring."""
    with BAD[kind]() as url:
        host = subprocess.Popen(
            [sys.executable, "-c", LEAVE],
            env=clean_environment(**environment(ring_base, url, PICOSTEP_EXPORTER=exporter)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            assert host.stdout
            assert host.stderr
            began = float(host.stdout.readline())
            seconds = exit_time(host, began, 20.0)
            errors = host.stderr.read().decode()
        finally:
            with suppress(ProcessLookupError):
                host.kill()
            host.communicate()
        print(f"\n{kind}, {exporter}: left after {seconds:.3f} s")
        assert host.returncode == 0, errors
        assert seconds <= 2.25
        if kind != "slow":
            assert seconds >= 1.9, "it did not wait for its records"
            assert errors.count("not delivered yet") == 1, errors
            if exporter == "process":
                (counted,) = sample(ring_base)
                assert counted["accepted"] == counted["in_ring"] == counted["readable"] == 300


# --- what is left when it comes back ----------------------------------------------------------------------


SAMPLING = """
import json, os, sys, threading, time
import picostep

begun = done = 0
stop = threading.Event()
samples = 0
wrong = []

def watch():
    global samples
    while not stop.is_set():
        least = done
        stats = picostep.stats()
        most = begun
        after = sum(stats["dropped"][name] for name in ("encode_error", "rejected", "corrupt"))
        before = sum(stats["dropped"][name] for name in ("ring_full", "no_ring"))
        if stats["accepted"] != stats["delivered"] + stats["in_ring"] + after:
            wrong.append(stats)
        if not least <= stats["accepted"] + before == stats["recorded"] <= most:
            wrong.append((least, most, stats))
        samples += 1
        time.sleep(0.0005)

watcher = threading.Thread(target=watch)
watcher.start()
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for number in range(20):
        begun += 1
        step_id = f"{os.getpid()}-{begun}"
        picostep.send_step("r", step_id=step_id, prompt=f"p{begun}", response="r" * (begun % 3000))
        done += 1
    time.sleep(0.01)
flushed = picostep.flush(float(sys.argv[2]))
stop.set()
watcher.join()
assert not wrong, wrong[:3]
assert picostep.stats()["recorded"] == done
print(json.dumps({"done": done, "samples": samples, "flushed": flushed, **picostep.stats()}))
"""


def slow(request: Request) -> Reply:
    return Reply(delay=0.1)


def flapping() -> Callable[[Request], Reply]:
    count = 0

    def reply(request: Request) -> Reply:
        nonlocal count
        count += 1
        return (Reply(503, headers={"Retry-After": "0"}), Reply(), Reply(drop=True), Reply(429))[count % 4]

    return reply


def picky(request: Request) -> Reply:
    """Refuses every batch with a certain record."""
    return Reply(400 if any(item["prompt"].endswith("7") for item in request.items()) else 200)


FAILING: dict[str, Callable[[], Callable[[Request], Reply]]] = {
    "slow": lambda: slow,
    "flapping": flapping,
    "500": lambda: lambda _: Reply(500),
    "401": lambda: lambda _: Reply(401),
    "redirecting": lambda: lambda _: Reply(307, headers={"Location": "/elsewhere"}),
    "garbage": lambda: lambda _: Reply(200, b"\x00\xff<html>" * 100),
    "oversized": lambda: lambda _: Reply(200, b"x" * (8 << 20)),
    "dropping": lambda: lambda _: Reply(drop=True),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("kind", "exporter"),
    [*((kind, "process") for kind in FAILING), *((kind, "thread") for kind in ("slow", "flapping", "500"))],
)
def test_nothing_is_lost_while_it_fails(ring_base: Path, backend: Backend, kind: str, exporter: str) -> None:
    """The equation holds at every sample, seen from inside and from outside; then the backend comes back."""
    backend.failing = FAILING[kind]()
    seconds = times(0.5, 10.0)
    host = subprocess.Popen(
        [sys.executable, "-c", SAMPLING, str(seconds), "20"],
        env=clean_environment(**environment(ring_base, backend.url, PICOSTEP_EXPORTER=exporter)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        outside = 0
        recovers = time.monotonic() + seconds
        while host.poll() is None:
            for counted in sample(ring_base):
                check_equation(counted)
                # The ring is read before the backend is asked: it has said yes to at least as many.
                assert counted["delivered"] <= backend.taken
                outside += 1
            if time.monotonic() > recovers:
                backend.failing = None
            time.sleep(0.01)
            assert time.monotonic() < recovers + 60.0, "the host hangs"
    finally:
        with suppress(ProcessLookupError):
            host.kill()
        output, errors = host.communicate()
    assert host.returncode == 0, errors
    result = json.loads(output)
    print(f"\n{kind}, {exporter}: {result['done']} records, {result['samples']} + {outside} samples")
    assert result["flushed"], result
    assert result["samples"] > 100
    assert outside > 5
    assert not any(result["dropped"].values())
    assert result["accepted"] == result["delivered"] == result["done"]
    arrived = {item["step_id"] for item in backend.items()}
    assert len(arrived) == result["done"]
    assert all(request.path == "/" for request in backend.requests), "it followed a redirect"


def test_rejected_records_are_counted(ring_base: Path, backend: Backend) -> None:
    """A backend that refuses single records: they are dropped, counted as rejected, and the others arrive."""
    backend.failing = picky
    done = run_python(SAMPLING, environment(ring_base, backend.url), args=("0.5", "20"))
    result = json.loads(done.stdout)
    refused = sum(1 for number in range(1, result["done"] + 1) if number % 10 == 7)
    assert result["dropped"]["rejected"] == refused
    assert result["delivered"] == result["done"] - refused
    assert result["in_ring"] == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_to_another_server(ring_base: Path, ingest: Ingest, status: int) -> None:
    """It is an error like others: the record is kept, and the other server sees nothing."""
    with Ingest() as other:
        ingest.script(Reply(status, headers={"Location": f"{other.url}/v1/custom"}))
        done = run_python(
            "import picostep\n"
            "picostep.send_step('r', prompt='p', response='r')\n"
            "assert picostep.flush(20.0)\n",
            environment(ring_base, ingest.url),
        )
        assert done.stderr == ""
        assert other.requests == []
    assert len(ingest.requests) == 2


# --- outages that last longer than the host ---------------------------------------------------------------


@pytest.mark.parametrize("adopted", [False, True], ids=["same exporter", "adopted"])
@pytest.mark.parametrize("outage", ["absent", "hung", "disconnecting"])
def test_delivered_after_the_host_is_gone(
    ring_base: Path, start_host: Start, outage: str, adopted: bool
) -> None:
    """A backend is away from the first record to the host's end, and longer; its records wait for it."""
    port = free_port()
    env = environment(ring_base, f"http://127.0.0.1:{port}", PICOSTEP_EXIT_TIMEOUT="0.2")
    released = threading.Event()
    server = Backend(port) if outage != "absent" else None
    if server:
        server.failing = lambda _: Reply(hang=released) if outage == "hung" else Reply(drop=True)
    try:
        ledger = start_host(env, "some", 1, "mixed", 200).finish(20.0)
        assert ledger.promised == ledger.intended.keys()
        assert len(ledger.promised) == 200
        (counted,) = sample(ring_base)
        assert counted["accepted"] == counted["in_ring"] == counted["readable"] == 200
        if adopted:
            pid = wait_for_exporter(ring_base)
            end(pid)
            wait_until(lambda: not exporter_pids(ring_base))
        if server:
            if outage != "hung" or adopted:
                server.take()  # what got no answer does not count
            server.failing = None
            released.set()
        else:
            server = Backend(port)
        oracle = Oracle(server)
        oracle.expect(ledger)
        if adopted:
            oracle.expect(start_host({**env, "PICOSTEP_EXIT_TIMEOUT": "2"}, "adopt").finish(20.0))
        wait_for_no_rings(ring_base, 30.0)
        check_totals(ring_base)
        oracle.check_nothing_lost()
    finally:
        released.set()
        if server:
            server.stop()


@pytest.mark.timeout(200)
def test_full_ring_sheds_and_counts(ring_base: Path, backend: Backend) -> None:
    """An outage longer than the ring is large: bodies go first, then records; the equation still holds."""
    backend.failing = lambda _: Reply(503)
    code = (
        "import json, picostep\n"
        "for n in range(6000):\n"
        "    picostep.send_step('r', step_id=str(n), prompt='p' * 1000, response='r')\n"
        "print(json.dumps(picostep.stats()))\n"
    )
    env = environment(ring_base, backend.url, PICOSTEP_RING_BYTES=str(256 << 10), PICOSTEP_EXIT_TIMEOUT="0")
    result = json.loads(run_python(code, env).stdout)
    assert result["recorded"] == 6000
    assert result["shed"] > 0
    assert result["dropped"]["ring_full"] > 0
    assert result["accepted"] + result["dropped"]["ring_full"] == 6000
    (counted,) = sample(ring_base)
    check_equation(counted)
    assert counted["readable"] == result["accepted"]
    backend.failing = None
    wait_for_no_rings(ring_base, 30.0)
    assert len({item["step_id"] for item in backend.items() if "step_id" in item}) == result["accepted"]
