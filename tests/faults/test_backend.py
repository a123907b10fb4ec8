"""Backends that hang or are gone: what `end()` costs then, and what a ring does that is too small."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from oracle import (
    check_equation,
    environment,
    sample,
    wait_for_no_rings,
)
from support import Ingest, Reply, free_port, run_python

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


BAD = {"absent": absent, "hung": hung}


@pytest.mark.parametrize("kind", BAD)
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
def test_full_ring_sheds_and_counts(ring_base: Path, ingest: Ingest) -> None:
    """An outage longer than the ring is large: bodies go first, then records; the equation still holds."""
    ingest.default = Reply(503)
    code = (
        "import json, picostep, time\n"
        "for n in range(6000):\n"
        "    picostep.send_step('r', step_id=str(n), prompt='p' * 1000, response='r')\n"
        "deadline = time.monotonic() + 20.0\n"
        "while not picostep.stats()['rings'][0]['exporter_pid']:\n"  # else nobody would take what is left
        "    assert time.monotonic() < deadline\n"
        "    time.sleep(0.001)\n"
        "print(json.dumps(picostep.stats()))\n"
    )
    env = environment(ring_base, ingest.url, PICOSTEP_RING_BYTES=str(256 << 10), PICOSTEP_EXIT_TIMEOUT="0")
    result = json.loads(run_python(code, env).stdout)
    assert result["recorded"] == 6000
    assert result["shed"] > 0
    assert result["dropped"]["ring_full"] > 0
    assert result["accepted"] + result["dropped"]["ring_full"] == 6000
    (counted,) = sample(ring_base)
    check_equation(counted)
    assert counted["readable"] == result["accepted"]
    ingest.take()
    ingest.default = Reply()
    wait_for_no_rings(ring_base, 30.0)
    assert len({item["step_id"] for item in ingest.items() if "step_id" in item}) == result["accepted"]
