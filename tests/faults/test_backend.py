"""Backends that hang or are gone: what `end()` costs then, and what a ring does that is too small."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from oracle import (
    Host,
    check_equation,
    environment,
    sample,
    wait_for_no_rings,
)
from support import Ingest, Reply, Request, free_port, run_python

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


# --- a ring that is too small -----------------------------------------------------------------------------


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
