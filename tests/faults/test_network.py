"""Every fault of `proxy` between exporter and receiver: the host does not notice, and no promise is broken."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import proxy
from oracle import KEY, exit_time, exporter_pids, times, wait_for_no_rings
from proxy import Fault, redirect, refuse, refusing, status
from receiver import Receiver
from scenario import Scenario
from support import wait_until

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
SWALLOWED = 8 << 20
"""Bytes of an answer without end that may get under way: what is read of it, and the buffers of two sockets."""


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
        before = len(host.written.order)
        scenario.outage(FAULTS[name], seconds)
        promised = len(host.written.order)
        assert promised > before, "the host was held up"
        wait_until(lambda: scenario.delivered(host) >= promised, 60.0, f"delivery after {name}")
    host.process.terminate()
    report = scenario.expect(host.finish(60.0)).report
    assert report["flushed"], report
    assert report["end_us"]["p50"] < 100
    scenario.check()
    assert scenario.receiver.keys() == {f"Bearer {KEY}"}
    assert scenario.proxy.poured <= SWALLOWED
    print(
        f"\n{len(names)} faults of {seconds} s, {exporter}: {report['accepted']} steps, 0 lost, "
        f"{scenario.oracle.repeated()} came twice; end() in us: {report['end_us']}; "
        f"{scenario.samples} + {report['samples']} samples; exporter {scenario.peak_rss >> 20} MiB"
    )
