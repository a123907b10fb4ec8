"""Hosts killed at random moments: what `end()` has returned for is delivered exactly as it was recorded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

import picostep
from oracle import (
    Host,
    Oracle,
    campaign,
    check_totals,
    environment,
    rings,
    times,
    wait_for_exporter,
    wait_for_no_rings,
)
from support import Ingest

Start = Callable[..., Host]

CYCLES = times(25, 200)
MUTANT_CYCLES = 60


def crash(host: Host, oracle: Oracle, random: Random, within: float) -> None:
    """Kill a host some time after its first step, or at any time at all."""
    if random.random() < 0.9:
        host.wait_for_promise()
    time.sleep(random.uniform(0.0, within))
    oracle.expect(host.kill())


@pytest.mark.timeout(900)
def test_killed_hosts(ring_base: Path, ingest: Ingest, start_host: Start) -> None:
    """Every third host has no exporter; what it leaves is adopted when the next one brings one."""
    random = Random(os.urandom(8).hex())
    oracle = Oracle(ingest)
    env = environment(ring_base, ingest.url)
    for cycle in range(CYCLES):
        exporter = "off" if cycle % 3 == 2 else "process"
        host = start_host({**env, "PICOSTEP_EXPORTER": exporter}, "endless", cycle, "mixed", 1 + cycle % 2)
        crash(host, oracle, random, 0.06)
        if exporter != "off":
            oracle.check_nothing_lost()
    oracle.expect(start_host(env, "adopt").finish(20.0))
    oracle.check_nothing_lost()
    wait_for_no_rings(ring_base)
    oracle.check_nothing_altered()
    assert oracle.repeated() == 0
    counted = check_totals(ring_base)
    assert counted["accepted"] == len(oracle.digests)
    beyond = len(oracle.digests) - len(oracle.promised)
    print(
        f"\n{CYCLES} kills: {len(oracle.promised)} steps promised, 0 lost; "
        f"{beyond} more were delivered whole, {counted.get('torn', 0)} were torn"
    )


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


@pytest.mark.timeout(600)
def test_killed_inside_the_copy(ring_base: Path, ingest: Ingest, start_host: Start) -> None:
    """The test that the mutant below must fail."""
    random, oracle = Random(os.urandom(8).hex()), Oracle(ingest)
    for _ in range(times(5, MUTANT_CYCLES)):
        large_text_cycle(start_host, large_text_environment(ring_base, ingest), oracle, random)


@campaign
@pytest.mark.campaign
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


@pytest.mark.timeout(300)
def test_killed_exporters(ring_base: Path, ingest: Ingest, start_host: Start) -> None:
    """An exporter killed while steps flow is replaced; only what was in flight arrives twice."""
    batch = 64
    oracle = Oracle(ingest)
    random = Random(os.urandom(8).hex())
    host = start_host(
        environment(ring_base, ingest.url, PICOSTEP_BATCH_RECORDS=str(batch)), "endless", 1, "small", 1
    )
    killed = 0
    for _ in range(times(2, 5)):
        host.wait_for_promise(host.lines // 2 + 1)
        pid = wait_for_exporter(ring_base)
        time.sleep(random.uniform(0.05, 0.3))
        os.kill(pid, 9)
        killed += 1
        wait_for_exporter(ring_base, but=pid)
    time.sleep(0.2)
    oracle.expect(host.kill())
    oracle.check_nothing_lost()
    wait_for_no_rings(ring_base)
    assert oracle.repeated() <= killed * batch
    assert not rings(ring_base)
