"""A power cut while the backend is away: what was synced to the spool is delivered after it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from oracle import end, exporter_pids, times
from proxy import passing, refuse
from scenario import Scenario
from test_disk import export
from test_power import Disk, disk, pytestmark  # noqa: F401 - the fixture, and where it can be had

Stage = Callable[..., Scenario]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_synced_steps_survive(ring_base: Path, disk: Callable[[], Disk], stage: Stage) -> None:  # noqa: F811
    random, promised = Random(os.urandom(8).hex()), 0
    cuts = times(2, 100)
    for number in range(cuts):
        made = disk()
        scenario = stage(PICOSTEP_DIR=str(ring_base / str(number)), XDG_STATE_HOME=str(made.path))
        scenario.proxy.set(refuse)
        host = scenario.host("paced", random.randrange(1 << 30), "small", 300, 3000, 0)
        host.wait_for_level("synced", 50)
        time.sleep(random.uniform(0.0, 0.5))
        # First what was promised, then the cut: what is written between the two only adds to it.
        told = host.written.levels["synced"]
        (pid,) = exporter_pids(ring_base / str(number))
        os.kill(pid, signal.SIGSTOP)
        made.cut()
        ledger = host.kill()
        end(pid)
        scenario.proxy.set(passing)
        with made.after() as path:
            # The rings are gone with the memory that they were in.
            env = {**scenario.env, "PICOSTEP_DIR": str(ring_base / f"{number}-after")}
            assert export({**env, "XDG_STATE_HOME": str(path)}).returncode == 0
        scenario.oracle.expect(ledger)
        missing = set(ledger.order[:told]) & scenario.oracle.missing()
        assert not missing, f"{len(missing)} of {told} synced steps are lost"
        scenario.oracle.check_nothing_altered()
        promised += told
        scenario.close()
    print(f"\n{cuts} power cuts: {promised} steps were said to be synced, 0 lost")
