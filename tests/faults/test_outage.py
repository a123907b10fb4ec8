"""A backend that is away for long, under load: what comes meanwhile waits, and is given back under load."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from oracle import times
from proxy import refuse
from scenario import Scenario, rss

Stage = Callable[..., Scenario]

RATE = times(1000, 5000)
SECONDS = times(8.0, 600.0)
DRAIN = times(30.0, 600.0)
HOST_GROWTH = 8 << 20  # bytes beyond its ring


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_backend_away_under_load(stage: Stage) -> None:
    """The host neither waits nor grows, nothing is lost, and the backlog shrinks while new steps come."""
    scenario = stage(PICOSTEP_SPOOL_BYTES=str(4 << 30))  # three million steps are more than the usual 1 GiB
    host = scenario.host("paced", 1, "kilobyte", RATE, 3000, 60)
    host.wait_for_promise(RATE)  # what grows with the first steps has grown
    scenario.wait_for_delivery(host)
    before = rss(host.process.pid)
    scenario.proxy.set(refuse)
    away = time.monotonic()
    largest = 0
    while time.monotonic() < away + SECONDS:
        largest = max(largest, rss(host.process.pid))
        time.sleep(0.2)
    waiting = len(host.written.order) - len(scenario.oracle.digests)
    drained = scenario.drain(host, RATE, DRAIN)
    host.process.terminate()
    report = scenario.expect(host.finish(90.0)).report
    assert report["flushed"], report
    scenario.check(60.0)
    grown = (largest - before) >> 10
    print(
        f"\n{SECONDS:.0f} s away at {report['rate']}/s: {waiting} steps waited, "
        f"0 of {report['accepted']} lost, drained in {drained:.1f} s under load; host grew by {grown} KiB, "
        f"exporter had {scenario.peak_rss >> 20} MiB; "
        f"load held back {report['held_up']} s; end() in us: {report['end_us']}"
    )
    assert report["held_up"] < 1.0, report
    assert largest - before <= HOST_GROWTH
