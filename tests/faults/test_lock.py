"""Several exporters for one directory: one works at any time, and the others take over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

from oracle import times
from scenario import Scenario
from support import clean_environment, exporters, wait_until

Stage = Callable[..., Scenario]


@contextmanager
def sidecars(scenario: Scenario, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`picostep export`, several times."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "picostep", "export"],
            env=clean_environment(**scenario.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(count)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_exporters_that_race(stage: Stage) -> None:
    """Two sidecars and the keepers of two hosts want the lock; whoever has it is told to leave, in turn."""
    scenario = stage(PICOSTEP_BATCH_RECORDS="32")
    hosts = [scenario.host("paced", seed, "small", 500, 3000, 30) for seed in range(2)]
    with sidecars(scenario, 2) as started:
        wait_until(lambda: set(exporters(scenario.ring_base)) >= {one.pid for one in started}, 20.0)
        for host in hosts:
            host.wait_for_promise(200)
        for _ in range(times(3, 30)):
            promised = len(hosts[0].written.order)
            wait_until(lambda: scenario.delivered(hosts[0]) >= promised, 20.0, "delivery")
            os.kill(holder(scenario), signal.SIGTERM)
        time.sleep(0.2)
        for host in hosts:
            host.process.terminate()
        for host in hosts:
            assert scenario.expect(host.finish(40.0)).report["flushed"]
        scenario.check()
    assert scenario.oracle.repeated() == 0
    assert scenario.proxy.most_at_once == 1, "two exporters were at work"
