"""
What a price costs: `pytest benchmarks/test_cost.py -s`, from a checkout.

Loops in C show what a step pays inside `end()`; beside them the same calculation from Python, in Decimal, and
by genai-prices. Each benchmark checks its result. The last one interleaves them and applies the limits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import picostep.prices
from compiled import cost_loop
from picostep.prices import CostSum, PriceTable, builtin, price

NOON = 1_795_262_400 * 10**9  # 2026-11-21T12:00:00Z
MOMENT = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
MODELS = ["gpt-4o", "gpt-4o-mini", "gpt-5.4", "gpt-4.1", "gpt-6-sol", "o3", "gpt-5", "gpt-4.1-mini"]
N = 100_000
PICO = 1000 * 2_500_000 + 200 * 1_250_000 + 30 * 2_500_000 + 400 * 10_000_000  # gpt-4o, no price for writes


@pytest.fixture(scope="module")
def loop() -> Any:
    return cost_loop()


@pytest.fixture(scope="module")
def table() -> PriceTable:
    for model in MODELS:
        assert builtin().find(model, "openai") >= 0
    return builtin()


def expected(table: PriceTable, n: int) -> int:
    """The sum of n steps over the models, by `PriceTable.cost()`."""
    one = [
        table.cost(table.find(model, "openai"), NOON, 0, 1000, 200, 30, 10, 400, 50).pico for model in MODELS
    ]
    assert one[0] == PICO
    return sum(one[i % len(one)] or 0 for i in range(n))


def per_call(benchmark: BenchmarkFixture, n: int) -> None:
    benchmark.extra_info["ns per call (min)"] = round(benchmark.stats.stats.min / n * 1e9, 2)


def test_arithmetic_in_c(benchmark: BenchmarkFixture, loop: Any, table: PriceTable) -> None:
    index = table.find("gpt-4o", "openai")
    found = benchmark(loop.arithmetic, table, index, NOON, N)
    assert found == sum(PICO + (i & 1023) * 2_500_000 for i in range(N))
    per_call(benchmark, N)


def test_cached_look_up_in_c(benchmark: BenchmarkFixture, loop: Any, table: PriceTable) -> None:
    found = benchmark(loop.look_up, table, MODELS, "openai", N)
    assert found == sum(table.find(MODELS[i % len(MODELS)], "openai") for i in range(N))
    per_call(benchmark, N)


def test_look_up_and_arithmetic_in_c(benchmark: BenchmarkFixture, loop: Any, table: PriceTable) -> None:
    assert benchmark(loop.both, table, MODELS, "openai", NOON, N) == expected(table, N)
    per_call(benchmark, N)


def test_find_and_cost_from_python(benchmark: BenchmarkFixture, table: PriceTable) -> None:
    def work() -> int | None:
        return table.cost(table.find("gpt-4o", "openai"), NOON, 0, 1000, 200, 30, 10, 400, 50).pico

    assert benchmark(work) == PICO


def test_price_from_python(benchmark: BenchmarkFixture) -> None:
    assert benchmark(priced) == PICO


def priced() -> int | None:
    return price(
        "gpt-4o",
        provider="openai",
        start_ns=NOON,
        prompt_uncached=1000,
        prompt_cached=200,
        cache_write=30,
        cache_write_1h=10,
        completion=400,
        reasoning=50,
    ).pico


RATES = {"gpt-4o": (Decimal("2.5"), Decimal("1.25"), Decimal("2.5"), Decimal("10"))}
MILLION = Decimal(1_000_000)


def by_decimal() -> Decimal:
    """The same calculation as anybody would write it, the price in a dict."""
    inp, cached, write, output = RATES["gpt-4o"]
    return (1000 * inp + 200 * cached + 30 * write + 400 * output) / MILLION


def test_decimal(benchmark: BenchmarkFixture) -> None:
    assert benchmark(by_decimal) * 10**12 == PICO


def by_genai_prices() -> Callable[[], Decimal]:
    genai_prices = pytest.importorskip("genai_prices")
    usage = genai_prices.Usage(
        input_tokens=1230,
        cache_read_tokens=200,
        cache_write_tokens=30,
        cache_write_1h_tokens=10,
        output_tokens=400,
        output_reasoning_tokens=50,
    )

    def work() -> Decimal:
        found: Decimal = genai_prices.calc_price(
            usage, "gpt-4o", provider_id="openai", genai_request_timestamp=MOMENT
        ).total_price
        return found

    return work


def test_genai_prices(benchmark: BenchmarkFixture) -> None:
    assert benchmark(by_genai_prices()) * 10**12 == PICO


def test_load_of_the_table(benchmark: BenchmarkFixture) -> None:
    data = (Path(picostep.prices.__file__).parent / "table.bin").read_bytes()
    loaded = benchmark(PriceTable, data)
    assert loaded.id == builtin().id
    benchmark.extra_info["bytes in memory"] = loaded.size
    benchmark.extra_info["bytes in the file"] = len(data)


def test_first_look_up(benchmark: BenchmarkFixture) -> None:
    """A name nobody asked for before, in a table nobody has used before: what is read lazily is read here."""
    data = (Path(picostep.prices.__file__).parent / "table.bin").read_bytes()
    expected = builtin().find("gpt-4o")
    assert (
        benchmark.pedantic(PriceTable.find, setup=lambda: ((PriceTable(data), "gpt-4o"), {}), rounds=50)
        == expected
    )


def test_new_names(benchmark: BenchmarkFixture) -> None:
    """Further names: found at once, or by rules; and unknown ones."""
    table = builtin()
    names = iter(range(10**9))

    def work() -> int:
        return table.find(f"gpt-unknown-{next(names)}")

    assert benchmark(work) == -1


def test_sum(benchmark: BenchmarkFixture) -> None:
    def work() -> int:
        total = CostSum()
        for _ in range(1000):
            total.add(PICO)
        return total.pico

    assert benchmark(work) == 1000 * PICO
    per_call(benchmark, 1000)


def test_limits(loop: Any, table: PriceTable) -> None:
    """At most 50 ns for look-up and arithmetic, 1,000 times as fast as genai-prices; medians of 15 turns."""
    theirs = by_genai_prices()
    works: dict[str, tuple[Callable[[], Any], int]] = {
        "arithmetic in C": (lambda: loop.arithmetic(table, table.find("gpt-4o", "openai"), NOON, N), N),
        "look-up and arithmetic in C": (lambda: loop.both(table, MODELS, "openai", NOON, N), N),
        "price() from Python": (lambda: [priced() for _ in range(2000)], 2000),
        "Decimal": (lambda: [by_decimal() for _ in range(2000)], 2000),
        "genai-prices": (lambda: [theirs() for _ in range(200)], 200),
    }
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(15):
        for name, (work, n) in works.items():
            start = time.perf_counter()
            work()
            taken[name].append((time.perf_counter() - start) / n * 1e9)
    median = {name: sorted(values)[len(values) // 2] for name, values in taken.items()}
    for name, value in median.items():
        print(f"{name:30}{value:>12,.1f} ns")
    assert median["look-up and arithmetic in C"] <= 50
    assert median["genai-prices"] / median["look-up and arithmetic in C"] >= 1000
