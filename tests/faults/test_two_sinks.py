"""Two sinks of which one is dead for long: the other is served as ever, and it gets everything afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from oracle import Oracle, times
from proxy import Fault, hang, refuse, status
from receiver import Receiver
from scenario import Scenario, rss
from support import wait_until

Stage = Callable[..., Scenario]

RATE = 150  # steps a second
DEATHS: Sequence[Fault] = (refuse, hang, status(503))
SECONDS = times(6.0, 3600.0)  # of all of them
GIVES_UP = times("1000", "10000")  # milliseconds
DRAIN = times(90.0, 900.0)  # a pause between two attempts may be a minute
# Seconds after which a step has come to the sink that works. One is due while the first batches wait for the
# dead sink, then a quarter between two frames of its spool; beside other work there is no telling.
LATEST = times(60.0, 3.0)
HOST_GROWTH = 8 << 20  # bytes beyond its ring


@pytest.fixture
def healthy() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.mark.slow
@pytest.mark.timeout(times(240, 6000))
def test_one_sink_dead_for_long(stage: Stage, healthy: Receiver) -> None:
    """The host does not notice it, the other sink hardly; nothing grows, and it gets everything."""
    scenario = stage(PICOSTEP_SPOOL_BYTES=str(4 << 30))
    scenario.env |= {"TCC_URL": healthy.url, "PICOSTEP_TO": f"tcc,otlp:{scenario.proxy.url}"}
    scenario.env["OTEL_EXPORTER_OTLP_TIMEOUT"] = GIVES_UP
    alive = Oracle(healthy)
    host = scenario.host("paced", 1, "kilobyte", RATE, 2 * SECONDS + 60, 60)
    host.wait_for_promise(3 * RATE)
    scenario.wait_for_delivery(host)
    before = rss(host.process.pid)
    alive.collect()
    usual, largest = len(alive.ages), before
    scenario.proxy.set(DEATHS[0])
    known = len(host.written.order)
    for death in DEATHS:
        scenario.proxy.set(death)
        over, steps = time.monotonic() + SECONDS / len(DEATHS), len(host.written.order) + RATE
        while time.monotonic() < over or len(host.written.order) < steps:
            largest = max(largest, rss(host.process.pid))
            alive.collect()
            time.sleep(0.2)
        written = host.written.order[:]
        wait_until(lambda written=written: reached(alive, written), 20.0, "the sink that works has them all")
    recorded = len(host.written.order)
    waiting = recorded - len(scenario.oracle.digests)
    during = len(alive.ages)
    drained = scenario.drain(host, RATE, DRAIN)
    host.process.terminate()
    ledger = scenario.expect(host.finish(90.0))
    report = ledger.report
    assert report["flushed"], report
    counted = scenario.check(60.0)
    alive.expect(ledger)
    alive.check_nothing_lost(5.0)
    print(
        f"\n{SECONDS:.0f} s dead at {report['rate']}/s: {waiting} steps waited, 0 of {counted['accepted']} "
        f"lost, {scenario.oracle.repeated()} came twice, drained in {drained:.1f} s under load;\n"
        f"from end() to the sink that works: {ages(alive.ages[:usual])} before, "
        f"{ages(alive.ages[usual:during])} meanwhile, {ages(alive.ages[during:])} after that;\n"
        f"host grew by {(largest - before) >> 10} KiB, exporter had {scenario.peak_rss >> 20} MiB; "
        f"end() in us: {report['end_us']}"
    )
    assert waiting > 0.8 * (recorded - known)  # but for what was under way when it died
    assert counted["accepted"] == len(alive.digests) == len(ledger.order)
    assert alive.repeated() == 0
    assert max(alive.ages) < LATEST
    assert report["held_up"] == 0, report
    assert largest - before <= HOST_GROWTH


def reached(oracle: Oracle, steps: list[str]) -> bool:
    """Whether all these steps have arrived."""
    oracle.collect()
    return oracle.digests.keys() >= set(steps)


def ages(found: list[float]) -> str:
    ordered = sorted(found)
    last = len(ordered) - 1
    median, late, latest = (ordered[round(share * last)] * 1e3 for share in (0.5, 0.99, 1.0))
    return f"{median:.0f}/{late:.0f}/{latest:.0f} ms (p50/p99/max)"
