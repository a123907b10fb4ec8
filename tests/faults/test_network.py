"""Every fault of `proxy` between exporter and receiver: hosts do not notice, and no promise is broken."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from itertools import pairwise

import pytest

import proxy
from oracle import KEY, end, exporter_pids, impatient, sample, times, wait_for_exporter
from proxy import Fault, passing, redirect, refuse, refusing, status
from scenario import Scenario
from support import Ingest, wait_until

Stage = Callable[..., Scenario]

FAULTS: dict[str, Fault] = {
    **{
        fault.__name__: fault
        for fault in (
            refuse,
            proxy.blackhole,
            proxy.hang,
            proxy.hang_after,
            proxy.reset_before,
            proxy.reset_within,
            proxy.reset_after,
            proxy.slow,
            proxy.truncate_head,
            proxy.truncate_body,
            proxy.oversized,
            proxy.oversized_error,
            proxy.endless_chunks,
            proxy.bomb,
            proxy.strange_encoding,
            proxy.garbage,
            proxy.long_head,
        )
    },
    "408": status(408),
    "429": status(429, "Retry-After: 0"),
    "500": status(500),
    "503": status(503, "Retry-After: 1"),
    "401": status(401),
    "403": status(403),
    "404": status(404),
}
IN_THREAD = ("refuse", "hang", "reset_after", "oversized", "503")
LATE = times(10.0, 0.4)  # seconds by which a request may come too late; the more beside other work
SWALLOWED = 8 << 20
"""Bytes of an answer without end that get under way: what is read of it, and the buffers of two sockets."""


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("exporter", ["process", "thread"])
def test_each_fault(stage: Stage, exporter: str) -> None:
    """One after the other under load, with a pause between them in which all that waits is delivered."""
    seconds = times(0.15, 12.0)
    scenario = stage(PICOSTEP_EXPORTER=exporter, PICOSTEP_BATCH_RECORDS="64")
    host = scenario.host("paced", 1, "small", times(400, 150), 3000, 60)
    host.wait_for_promise(100)
    names = FAULTS if exporter == "process" else times(IN_THREAD, tuple(FAULTS))
    for name in names:
        scenario.outage(FAULTS[name], seconds, host)
        scenario.wait_for_delivery(host, 60.0)
    host.process.terminate()
    report = scenario.expect(host.finish(60.0)).report
    assert report["flushed"], report
    assert report["end_us"]["p50"] < times(10_000, 100)  # no end() waits for a backend
    scenario.check()
    assert scenario.receiver.keys() == {f"Bearer {KEY}"}
    assert scenario.proxy.poured <= SWALLOWED
    print(
        f"\n{len(names)} faults of {seconds} s, {exporter}: {report['accepted']} steps, 0 lost, "
        f"{scenario.oracle.repeated()} came twice; end() in us: {report['end_us']}; "
        f"{scenario.samples} + {report['samples']} samples; exporter {scenario.peak_rss >> 20} MiB"
    )


# --- rules of delivery ------------------------------------------------------------------------------------


def requests_under(scenario: Scenario, fault: Fault, count: int, timeout: float = 20.0) -> list[float]:
    """Set a fault; return when the first requests came that met it."""
    before = len(scenario.proxy.requests)
    scenario.proxy.set(fault)
    wait_until(lambda: len(scenario.proxy.requests) >= before + count, timeout, f"{count} requests")
    return scenario.proxy.requests[before : before + count]


def log_of(scenario: Scenario) -> list[str]:
    """The exporter's log without times and pids."""
    (path,) = scenario.ring_base.glob("*/*/exporter.log")
    return [line.split(" ", 2)[2] for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_statuses_that_pause(stage: Stage) -> None:
    """They say nothing about the records, which are kept; each gets one line, and no redirect is followed."""
    scenario = stage()
    host = scenario.host("paced", 1, "small", 100, 3000, 30)
    host.wait_for_promise()
    with Ingest() as elsewhere:
        faults = {code: status(code) for code in (401, 403, 404)}
        faults |= {code: redirect(code, f"{elsewhere.url}/v1/custom") for code in (301, 302, 303, 307, 308)}
        for code, fault in faults.items():
            requests_under(scenario, fault, 3 if code == 401 else times(1, 3))
            scenario.proxy.set(passing)
            scenario.wait_for_delivery(host)
        assert elsewhere.requests == []
    host.process.terminate()
    scenario.expect(host.finish(40.0))
    scenario.check()
    assert scenario.oracle.repeated() == 0
    lines = log_of(scenario)
    for code in faults:
        (line,) = [line for line in lines if f"http {code}" in line]
        assert line.startswith("WARNING")


@pytest.mark.parametrize("code", [400, *(pytest.param(code, marks=pytest.mark.slow) for code in (413, 422))])
def test_records_that_are_refused(stage: Stage, code: int) -> None:
    """Halving finds each of them: it is dropped and counted, and all others arrive."""
    scenario = stage(refused=lambda step_id: step_id.endswith("7"), PICOSTEP_BATCH_RECORDS="128")
    scenario.proxy.set(refusing(code, rb'"step_id":"[^"]*7"'))
    host = scenario.host("paced", code, "small", 1000, 0.4, 30)
    report = scenario.expect(host.finish(40.0)).report
    assert report["flushed"]
    counted = scenario.check()
    assert counted["rejected"] > 0
    assert scenario.oracle.repeated() == 0


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_backoff_and_retry_after(stage: Stage) -> None:
    """Pauses double up to their limit, drawn at random below it; what a receiver asks for comes first."""
    scenario = stage()
    host = scenario.host("paced", 1, "small", times(100, 5), 3000, 30)
    host.wait_for_promise()
    at = requests_under(scenario, status(500), times(3, 7), 120.0)
    limits = [0.5 * 2**number for number in range(len(at) - 1)]
    pauses = [later - sooner for sooner, later in pairwise(at)]
    print(f"\npauses after 500: {[round(pause, 2) for pause in pauses]}")
    assert all(pause <= limit + LATE for pause, limit in zip(pauses, limits, strict=True))
    asked = {
        "1": (1.0, 1.5),
        "-5": (0.0, 0.9),
        **times({}, {formatdate(time.time() + 120.0, usegmt=True): (60.0, 120.0)}),
        **times({}, {"nan": (0.0, 0.9), "inf": (0.0, 0.9), "soon": (0.0, 0.9), "0": (0.5, 0.9)}),
        **times({}, {formatdate(0, usegmt=True): (0.5, 0.9), "1000000000": (300.0, 301.0)}),
        "Wed, 21 Oct 99999999999999999999 07:28:00 GMT": (0.0, 0.9),
    }
    for after, (least, most) in asked.items():
        scenario.proxy.set(passing)
        scenario.wait_for_delivery(host, 70.0)
        first, second = requests_under(scenario, status(503, f"Retry-After: {after}"), 2, 320.0)
        assert least <= second - first <= most + LATE, after
    scenario.proxy.set(passing)
    end(wait_for_exporter(scenario.ring_base))  # the next one knows nothing of the pause
    scenario.wait_for_delivery(host)
    host.process.terminate()
    scenario.expect(host.finish(60.0))
    scenario.check()


# --- hosts that leave meanwhile ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "exporter", "killed"),
    [
        ("refuse", "process", False),
        pytest.param("hang", "process", True, marks=pytest.mark.slow),
        pytest.param("401", "thread", False, marks=pytest.mark.slow),
        *times([], [("blackhole", "process", False), ("reset_after", "thread", False)]),
    ],
)
def test_exit_during_a_fault(stage: Stage, name: str, exporter: str, killed: bool) -> None:
    """The host leaves in time; what it leaves behind is delivered later, also by the next exporter."""
    scenario = stage(PICOSTEP_EXPORTER=exporter)
    scenario.env = impatient(scenario.env)
    scenario.proxy.set(FAULTS[name])
    stays = []
    for number in range(times(1, 40)):
        host = scenario.host("some", number, "small", 200)
        scenario.expect(host.finish(20.0))
        stays.append(host.ended_at - host.last_line_at)
        waiting = sum(ring["in_ring"] for ring in sample(scenario.ring_base))
        assert waiting == 0 or stays[-1] >= 1.9, "it did not wait for its records to be on disk"
    print(f"\n{len(stays)} exits with {name}, {exporter}: {min(stays):.2f} to {max(stays):.2f} s")
    assert max(stays) <= 2.0 + times(8.0, 0.25)  # the more beside other work
    assert stays[0] >= 0.5  # the sink was given time; later records go to the spool at once
    if killed:
        end(wait_for_exporter(scenario.ring_base))
        wait_until(lambda: not exporter_pids(scenario.ring_base))
    scenario.proxy.set(passing)
    scenario.check(70.0)
