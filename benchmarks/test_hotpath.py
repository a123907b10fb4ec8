"""What a step costs its caller: `pytest benchmarks/test_hotpath.py`. For ratios run ratios.py."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from texts import SCRIPTS, SIZES, Texts
from workloads import ALL


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("workload", ALL, ids=lambda workload: workload.name)
def test_step(benchmark: BenchmarkFixture, workload: type, size: str, script: str) -> None:
    benchmark.group = f"{size} {script}"
    work = workload(Texts.of(size, script))
    n = work.texts.steps_per_round()
    benchmark.pedantic(work.steps, args=(n,), setup=work.settle, rounds=15, warmup_rounds=2)
    benchmark.extra_info["steps per round"] = n
    work.check()
