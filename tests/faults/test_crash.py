"""Hosts killed at random moments: what `end()` has returned for is delivered exactly as it was recorded."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import picostep
from oracle import (
    Host,
    Oracle,
    campaign,
    environment,
    times,
    wait_for_exporter,
)
from scenario import Scenario
from support import Ingest

Start = Callable[..., Host]

Stage = Callable[..., Scenario]

CYCLES = times(40, 2000)
IN_FLIGHT = 4
MUTANT_CYCLES = 60
RATE = times(500, 2000)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_hosts(stage: Stage) -> None:
    """
    Some are killed while they start, most while they record.

    Every third has no exporter; what it leaves is adopted by that of another one.
    """
    random = Random(os.urandom(8).hex())
    scenario = stage()
    waiting: deque[Host] = deque()
    for cycle in range(CYCLES + IN_FLIGHT):
        if cycle < CYCLES:
            exporter = "off" if cycle % 3 == 2 else "process"
            program = ("endless", cycle, "mixed", 1 + cycle % 2)
            waiting.append(scenario.host(*program, held=True, PICOSTEP_EXPORTER=exporter))
        if cycle >= IN_FLIGHT:
            host = waiting.popleft()
            host.go()
            if random.random() < 0.9:
                host.wait_for_promise()
            time.sleep(random.uniform(0.0, 0.06))
            scenario.expect(host.kill())
            scenario.hosts.remove(host)
        if cycle % 50 == 49:
            scenario.oracle.check_nothing_lost(120.0)
    counted = scenario.check(60.0)
    beyond = len(scenario.oracle.digests) - len(scenario.oracle.promised)
    print(
        f"\n{CYCLES} kills: {len(scenario.oracle.promised)} steps promised, 0 lost; "
        f"{beyond} more were delivered whole, {counted.get('torn', 0)} were torn"
    )
    assert scenario.oracle.repeated() == 0


def large_text_cycle(start_host: Start, env: dict[str, str], oracle: Oracle, random: Random) -> None:
    """Kill a host that does hardly anything but copy texts, and have its ring adopted."""
    host = start_host({**env, "PICOSTEP_EXPORTER": "off"}, "endless", random.randrange(1 << 30), "large", 1)
    host.wait_for_promise()
    time.sleep(random.uniform(0.0, 0.01))
    oracle.expect(host.kill())
    oracle.expect(start_host(env, "adopt").finish(20.0))
    oracle.check_nothing_lost()


def large_text_environment(ring_base: Path, ingest: Ingest) -> dict[str, str]:
    return environment(ring_base, ingest.url, PICOSTEP_RING_BYTES=str(256 << 20))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_inside_the_copy(ring_base: Path, ingest: Ingest, start_host: Start) -> None:
    """The test that the mutant below must fail."""
    random, oracle = Random(os.urandom(8).hex()), Oracle(ingest)
    for _ in range(times(5, MUTANT_CYCLES)):
        large_text_cycle(start_host, large_text_environment(ring_base, ingest), oracle, random)


@campaign
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commit_before_the_copy_is_found(
    tmp_path: Path, ring_base: Path, ingest: Ingest, start_host: Start
) -> None:
    """A core that publishes a record before its texts are copied fails within a few kills."""
    env = large_text_environment(ring_base, ingest)
    env["PYTHONPATH"] = str(build_mutant(tmp_path))
    random, oracle = Random(os.urandom(8).hex()), Oracle(ingest)
    for cycle in range(MUTANT_CYCLES):
        try:
            large_text_cycle(start_host, env, oracle, random)
        except AssertionError as error:
            if "is not what was recorded" not in str(error):
                raise
            print(f"\nfound in cycle {cycle + 1}: {error}")
            return
    raise AssertionError(f"not found in {MUTANT_CYCLES} cycles")


def build_mutant(place: Path) -> Path:
    """Copy the package with a ring that stores the commit word first; return where to import it from."""
    root = Path(__file__).parents[2]
    if not (root / "ext").is_dir():
        pytest.skip("needs the source tree")
    source = place / "source"
    shutil.copytree(root / "ext", source / "ext", ignore=shutil.ignore_patterns("*.c.tmp", "build"))
    shutil.copytree(
        Path(picostep.__file__).parent, place / "picostep", ignore=shutil.ignore_patterns("_ring.*.so")
    )
    ring = source / "ext/picostep/_ring.pyx"
    code = ring.read_text()
    commit = "    store(&frame.commit, ring.nonce + ring.head)\n"
    first = "    frame = <Frame *>(ring.data + ring.offset)\n"
    assert code.count(commit) == 1
    assert code.count(first) == 1
    ring.write_text(code.replace(commit, "").replace(first, first + commit))
    build = (
        "from setuptools import Extension, setup; from Cython.Build import cythonize; "
        "e = Extension('picostep._ring', ['ext/picostep/_ring.pyx'], include_dirs=['ext/picostep'], "
        "extra_compile_args=['-O3', '-g0']); "
        "setup(name='mutant', packages=[], ext_modules=cythonize([e], include_path=['ext'], force=True, "
        "compiler_directives={'language_level': '3', 'freethreading_compatible': True}), "
        f"script_args=['build_ext', '--build-lib', {str(place)!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_killed_exporters(stage: Stage) -> None:
    """
    An exporter killed while 2,000 steps a second flow is replaced; only what was in flight comes twice.

    Hosts come and go meanwhile: a keeper whose exporters die young makes pauses, and others must step in.
    """
    random = Random(os.urandom(8).hex())
    scenario = stage(PICOSTEP_RING_BYTES=str(64 << 20))  # for the seconds that a start may take
    hosts = deque(scenario.host("paced", seed, "small", RATE / 3, 3000, 60) for seed in range(3))
    leaving: deque[Host] = deque()
    for host in hosts:
        host.wait_for_promise()
    kills, pid, steps = times(3, 500), 0, 0
    for number in range(kills):
        pid = wait_for_exporter(scenario.ring_base, but=pid)
        time.sleep(random.uniform(0.0, 1.0))
        os.kill(pid, signal.SIGKILL)
        if number % 2:
            hosts[0].process.terminate()
            leaving.append(hosts.popleft())
            hosts.append(scenario.host("paced", 3 + number, "small", RATE / 3, 3000, 60))
            hosts[-1].wait_for_promise()
        if len(leaving) > 3:
            steps += leave(scenario, leaving.popleft())
    for host in hosts:
        host.process.terminate()
    steps += sum(leave(scenario, host) for host in [*leaving, *hosts])
    scenario.check(60.0)
    print(
        f"\n{kills} exporters killed: {steps} steps, 0 lost, "
        f"{scenario.oracle.repeated()} came twice, all of batches in flight"
    )


def leave(scenario: Scenario, host: Host) -> int:
    """Wait for a host that was told to end; return how many steps it has recorded."""
    report = scenario.expect(host.finish(90.0)).report
    scenario.hosts.remove(host)
    assert report["flushed"], report
    return int(report["accepted"])
