"""The targets of the fuzzer, each with whole inputs and some others; `nox -s fuzz` runs millions."""

from __future__ import annotations

import os
import sys
from random import Random, SystemRandom

import pytest

from support import ring_directory
from targets import TARGETS, Rings

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rings in files need POSIX")

CAMPAIGN = os.environ.get("PICOSTEP_CAMPAIGN") == "1"
SEED = int(os.environ.get("PICOSTEP_SEED") or SystemRandom().getrandbits(32))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_no_bytes_do_harm(name: str) -> None:
    random = Random(SEED)
    with ring_directory() as directory:
        target = TARGETS[name](directory)
        seeds = target.seeds()
        for seed in seeds:
            target.run(seed)
        for _ in range(200_000 if CAMPAIGN else 1000):
            data = target.mutate(random.choice(seeds), random)
            try:
                target.run(data)
            except Exception as problem:
                raise AssertionError(f"PICOSTEP_SEED={SEED}: {data!r}") from problem


def test_seeds_are_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seed gets as far as a record: else the fuzzer would only ever knock at the door."""
    found: list[str] = []
    monkeypatch.setattr("targets.check_record", lambda record: found.append(record["kind"]))
    with ring_directory() as directory:
        target = Rings(directory)
        for seed in target.seeds():
            before = len(found)
            target.run(seed)
            assert len(found) - before in (3, 5)
    assert set(found) == {"step", "run", "tool_call", "feedback"}
