"""Random calls: the same integers as genai-prices, and as a calculation that shares no code with it."""

from __future__ import annotations

import random
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path

import pytest

pytest.importorskip("genai_prices", reason="genai-prices needs Python 3.11")

import prices_oracle as oracle
from picostep.prices import Cost, builtin

CALLS = 120_000 if oracle.CAMPAIGN else 4_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_random_calls() -> None:
    report = oracle.compare(oracle.SEED, CALLS)
    print(f"seed {oracle.SEED}: {report}")
    assert not report.failures, f"PICOSTEP_SEED={oracle.SEED}: {len(report.failures)}: {report.failures[:5]}"
    assert report.calls == CALLS
    assert {"priced", "variant_fallback", "free", "no_output_price", "unsupported"} <= report.statuses.keys()


def asked(provider: str, model: str, moment: datetime, **counts: int) -> oracle.Call:
    fields = {"uncached": 0, "cached": 0, "write": 0, "write_1h": 0, "completion": 0, "reasoning": 0} | counts
    return oracle.Call(provider, model, moment, None, **fields)


@pytest.mark.slow
@pytest.mark.parametrize(("provider", "name"), oracle.TRICKY)
def test_tricky_models_at_each_of_their_boundaries(provider: str, name: str) -> None:
    """At each threshold and each change of price, and one token or microsecond to either side."""
    found = oracle.find(name, provider)
    assert found is not None
    report = oracle.Report()
    tick = timedelta(microseconds=1)
    moments = [datetime(2026, 11, 20, tzinfo=timezone.utc)]
    moments += [change + shift for change in oracle.moments(found[1]) for shift in (-tick, timedelta(), tick)]
    totals = [0, 1, *(start + shift for start in oracle.starts(found[1]) for shift in (-1, 0, 1))]
    for moment in moments:
        for total in totals:
            for tier in (None, *oracle.TIERS):
                for counts in (
                    {"uncached": total, "completion": 7},
                    {"cached": total, "completion": 7, "reasoning": 7},
                    {"write": total, "write_1h": total // 2, "completion": 7, "reasoning": 3},
                    {"uncached": total - total // 2, "cached": total // 2 - total // 4, "write": total // 4},
                ):
                    call = oracle.Call(
                        **{**vars(asked(provider, name, moment, **counts)), "service_tier": tier}
                    )
                    oracle.check(call, *found, builtin(), report)
    assert not report.failures, report.failures[:3]


@pytest.mark.slow
def test_every_model_once() -> None:
    """Every model under its own id, in tokens of every kind."""
    report = oracle.Report()
    moment = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)
    counts = {
        "uncached": 1001,
        "cached": 503,
        "write": 307,
        "write_1h": 101,
        "completion": 211,
        "reasoning": 97,
    }
    for provider in oracle.SNAPSHOT.providers:
        for model in provider.models:
            found = oracle.find(model.id, provider.id)
            if found is not None:
                oracle.check(asked(provider.id, model.id, moment, **counts), *found, builtin(), report)
    assert not report.failures, report.failures[:5]
    assert report.calls > 2200


# --- properties that need no reference --------------------------------------------------------------------


def cost(provider: str, name: str, **counts: int) -> Cost:
    moment = datetime(2026, 11, 20, 12, tzinfo=timezone.utc)
    return oracle.ours(asked(provider, name, moment, **counts), builtin())


def test_a_tier_holds_for_all_tokens() -> None:
    """One token more than the threshold: the whole prompt and the answer at the higher rate."""
    for provider, name, start in (
        ("openai", "gpt-5.4", 272_000),
        ("google", "gemini-2.5-pro", 200_000),
        ("x-ai", "grok-4.3", 199_999),
        ("anthropic", "claude-haiku-5-5", 100_000),
    ):
        below, above = (cost(provider, name, uncached=start + extra, completion=1000) for extra in (0, 1))
        rates = builtin().row(builtin().row(below.place[3])[8])  # type: ignore[index]
        assert rates[7] == start
        assert above.pico == (start + 1) * rates[0] + 1000 * rates[4]
        assert above.pico - below.pico > 2 * rates[0]  # type: ignore[operator]
        for part in ("cached", "write"):  # the threshold counts the whole prompt
            over = cost(provider, name, **{"uncached": 1, part: start, "completion": 1000})
            assert over.place[3] == above.place[3]  # type: ignore[index]


def test_costs_add_up_within_a_tier_and_grow_with_each_count() -> None:
    rng = random.Random(oracle.SEED)
    parts = ("uncached", "cached", "write", "completion")
    for _ in range(300):
        provider, name = rng.choice(oracle.TRICKY)
        counts = {part: rng.randrange(2000) for part in parts}
        one = cost(provider, name, **counts)
        if one.pico is None:
            continue
        fee = builtin().row(one.place[3])[6]  # type: ignore[index]
        two = cost(provider, name, **{part: 2 * count for part, count in counts.items()})
        assert two.pico - fee == 2 * (one.pico - fee), (oracle.SEED, provider, name)  # type: ignore[operator]
        for part in parts:
            more = cost(provider, name, **{**counts, part: counts[part] + 1})
            assert more.pico >= one.pico, (oracle.SEED, provider, name, part)  # type: ignore[operator]


def test_what_does_not_fit_64_bits_is_exact() -> None:
    huge = 2**62
    for counts in (
        {"uncached": huge, "cached": huge, "completion": huge},
        {"completion": huge, "reasoning": 1},
    ):
        call = asked("openai", "o1-pro", datetime(2026, 11, 20, tzinfo=timezone.utc), **counts)
        assert Fraction(oracle.ours(call, builtin()).pico) == oracle.upstream(call)


# --- the compiler -----------------------------------------------------------------------------------------


def test_the_committed_table_is_what_the_compiler_makes() -> None:
    from importlib.metadata import version

    from picostep.prices.compile import build

    if builtin().source != f"genai-prices {version('genai-prices')}":
        pytest.skip(f"the committed table is of {builtin().source}")
    data, manifest = build()
    assert manifest["id"] == builtin().id
    table = Path(__import__("picostep.prices").prices.__file__).with_name("table.bin")
    assert table.read_bytes() == data


@pytest.mark.slow
def test_refresh_replaces_the_file_at_once(tmp_path: Path) -> None:
    from picostep.prices import load
    from picostep.prices.compile import refresh

    path = tmp_path / "prices.bin"
    path.write_bytes(b"old")
    table = refresh(str(path))
    assert load(str(path)).id == table.id
    assert [entry.name for entry in tmp_path.iterdir()] == ["prices.bin"]
    with pytest.raises(OSError, match="no-such-directory"):
        refresh(str(tmp_path / "no-such-directory" / "prices.bin"))


def test_a_genai_prices_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from picostep.prices import PriceTableError
    from picostep.prices.compile import compile_installed

    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1.13")
    with pytest.raises(PriceTableError, match=r"genai-prices 0\.1\.13 is too old"):
        compile_installed()
