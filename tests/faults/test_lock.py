"""Several exporters for one directory: one works at any time, and the others take over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from oracle import exporter_pids, times
from scenario import Scenario
from support import clean_environment, wait_until

Stage = Callable[..., Scenario]


@contextmanager
def sidecars(scenario: Scenario, place: Path, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`picostep export`, several times, from when each has the lock or waits for it."""
    logs = [place / f"{number}.log" for number in range(count)]
    started = []
    try:
        for path in logs:
            with path.open("wb") as log:
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "picostep", "export"],
                        env=clean_environment(**scenario.env),
                        stdin=subprocess.DEVNULL,
                        stderr=log,
                    )
                )
        for path in logs:
            wait_until(partial(is_at_work, path), 20.0, "a sidecar that serves or waits")
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def is_at_work(log: Path) -> bool:
    """Whether a sidecar has said what it does with each of its two directories."""
    text = log.read_text()
    return text.count("INFO serving") + text.count("INFO waiting") == 2


def holds_lock(pid: int) -> bool:
    """Whether a process has the lock, by what the kernel says of its descriptors."""
    for info in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):
            path = os.readlink(f"/proc/{pid}/fd/{info.name}")
            if path.endswith("/lock") and "/external/" not in path and "FLOCK" in info.read_text():
                return True
    return False


def is_gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
def test_exporters_that_race(stage: Stage, tmp_path: Path) -> None:
    """Two sidecars and the keepers of two hosts want the lock; whoever has it is told to leave, in turn."""
    scenario = stage(PICOSTEP_BATCH_RECORDS="32")
    with sidecars(scenario, tmp_path, 2) as started:
        hosts = [scenario.host("paced", seed, "small", 500, 3000, 30) for seed in range(2)]
        for host in hosts:
            host.wait_for_promise(200)
        scenario.wait_for_delivery(hosts[0])
        assert scenario.proxy.most_at_once == 1, "two exporters are at work"
        for _ in range(times(2, 30)):
            scenario.wait_for_delivery(hosts[0])
            running = {one.pid for one in started if one.poll() is None}
            candidates = running | exporter_pids(scenario.ring_base)
            (pid,) = filter(holds_lock, candidates)
            os.kill(pid, signal.SIGTERM)
            wait_until(partial(is_gone, pid), 20.0, "it leaves")
        time.sleep(0.2)
        for host in hosts:
            host.process.terminate()
        for host in hosts:
            assert scenario.expect(host.finish(40.0)).report["flushed"]
        scenario.check()
    assert scenario.oracle.repeated() == 0
    assert scenario.proxy.most_at_once == 1, "two exporters were at work"
