"""Hosts that the kernel kills because their container has no more memory: rings count as theirs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from oracle import end
from proxy import passing, refuse
from scenario import Scenario
from support import wait_until

Stage = Callable[..., Scenario]

LIMIT = 96 << 20  # bytes of a container: enough for the interpreters
RING = 512 << 20  # of which half is filled before a host waits: more than the limit

# Where control groups are mounted that can limit memory, and what the limit is called there.
HIERARCHIES = {"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"}


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Path]:
    """A control group that has no more than LIMIT."""
    for top, name in HIERARCHIES.items():
        group = Path(top, f"picostep-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / name).exists():  # else the controller is not enabled here
                (group / name).write_text(str(LIMIT))
                yield group
                return
        finally:
            wait_until(partial(_removed, group), 20.0, "the processes of the group to end")
    pytest.skip("needs a control group for memory, and to be root")


def _removed(group: Path) -> bool:
    with suppress(OSError):  # while somebody is in it
        group.rmdir()
    return not group.exists()


def _ended(group: Path) -> list[str]:
    """End the processes of a group; return which there were."""
    found = (group / "cgroup.procs").read_text().split()
    for pid in found:
        end(int(pid))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["off", "process"])
def test_killed_for_memory(stage: Stage, container: Path, exporter: str) -> None:
    """The ring outlives a host, and its exporter, that were killed for having filled it."""
    scenario = stage(PICOSTEP_RING_BYTES=str(RING), PICOSTEP_SPOOL="off")
    scenario.proxy.set(refuse)
    host = scenario.host("endless", 1, "large", 1, held=True, PICOSTEP_EXPORTER=exporter)
    (container / "cgroup.procs").write_text(str(host.process.pid))
    host.go()
    wait_until(lambda: host.process.poll() is not None, 60.0, "the kernel to kill the host")
    assert host.process.returncode == -signal.SIGKILL, host.output()
    # A container ends with its first process; one that was just being started may not be in the list yet.
    wait_until(lambda: not _ended(container), 20.0, "the container to be empty")
    scenario.expect(host.kill())
    assert len(scenario.oracle.promised) > 10
    scenario.proxy.set(passing)
    scenario.check(60.0)
