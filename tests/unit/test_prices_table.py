"""The table and its file, single costs and sums. Needs no genai-prices."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import threading
from decimal import Decimal, localcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import picostep.prices
from picostep.errors import ArgumentError, ArgumentTypeError, PicostepError
from picostep.prices import (
    STATUSES,
    Cost,
    CostSum,
    PriceTable,
    PriceTableError,
    builtin,
    explain,
    load,
    price,
    user_cost_pico,
)
from pricefile import NAMES, Parts, seal

CAMPAIGN = os.environ.get("PICOSTEP_CAMPAIGN") == "1"
SEED = int(os.environ.get("PICOSTEP_SEED") or random.SystemRandom().getrandbits(32))
FILES = Path(picostep.prices.__file__).parent
DATA = (FILES / "table.bin").read_bytes()
NOON = 1_795_262_400 * 10**9  # 2026-11-21T12:00:00Z
DAY = 86400 * 10**9


# --- a table of our own -----------------------------------------------------------------------------------


def small() -> PriceTable:
    return PriceTable(Parts.good().pack())


def test_a_small_table_by_hand() -> None:
    table = small()
    table.check()
    assert (table.source, table.variants, len(table)) == ("a test", ("standard", "default", "batch"), 7)
    assert table.counts() == {"rows": 4, "slots": 6, "tracks": 5, "models": 7}
    assert [table.find(name) for name in ("acme-one", "ACME-2", "acme-two", "acme-three")] == [0, 1, 1, -1]
    assert [table.find("acme-one", by) for by in ("acme", "the acme inc", "shop", "nobody")] == [0, 0, 4, -2]
    assert table.find("very-odd", "shop") == 3
    assert table.find("shop/very-odd") == 3
    assert table.name(4) == ("shop", "acme-one", "acme")
    # row 1: 10 uncached, 1 cached, 12 written, 20 written for an hour, 50 output, 60 reasoning, 7 a request
    assert table.cost(0, 0, 0, 3, 5, 11, 4, 13, 6).pico == 7 + 30 + 5 + 7 * 12 + 4 * 20 + 7 * 50 + 6 * 60
    assert table.cost(0, 0).pico == 7
    assert [table.cost(0, 0, 0, total).pico for total in (1000, 1001)] == [10_007, 20_020]
    assert [table.cost(0, 0, 0, 1, 500, 499 + over).place[3] for over in (0, 1)] == [1, 0]  # type: ignore[index]
    assert [
        table.cost(0, 20_000 * DAY + at, 0, 1).pico for at in (-1, 0, 3600 * 10**9 - 1, 3600 * 10**9)
    ] == [
        17,
        5,
        5,
        17,
    ]
    assert [table.cost(0, 20_001 * DAY + at, 0, 1).pico for at in (-1, 0)] == [17, 5]
    assert table.cost(0, -(2**63), 0, 1).pico == 17
    assert table.cost(0, 2**63 - 1, 0, 1).pico in (5, 17)
    batch = table.variant("Batch")
    assert [table.cost(0, at, batch, 1).status for at in (0, 20_000 * DAY)] == ["variant_fallback", "priced"]
    assert [table.cost(1, 0, tier, 1).status for tier in (0, 1, batch, -1)] == [
        "priced",
        "priced",
        "variant_fallback",
        "variant_fallback",
    ]
    assert (table.cost(2, 0, 0, 10**6).pico, table.cost(2, 0, 0, 10**6).status) == (0, "free")
    assert table.cost(0, 0, 0, 0, 0, 5, 6).status == "invalid_usage"
    assert table.cost(0, 0, 0, 0, 0, 0, 0, 5, 6).pico is None


def damaged_parts() -> dict[str, Parts]:
    """Tables with the right checksum in which one thing is wrong."""

    def changed(where: str, at: int, field: int, value: int) -> Parts:
        parts = Parts.good()
        entry = list(getattr(parts, where)[at])
        entry[field] = value
        getattr(parts, where)[at] = tuple(entry)
        return parts

    def named(names: bytes) -> Parts:
        parts = Parts.good()
        parts.names = names
        return parts

    version = Parts.good()
    version.version = 2
    return {
        "version 2": version,
        "row 1 has a negative rate": changed("rows", 1, 2, -1),
        "row 1 has a bad tier": changed("rows", 1, 8, 1),
        "row 1 has a bad tier ": changed("rows", 1, 8, 1000),
        "row 0 has a bad tier": changed("rows", 0, 7, -2),
        "row 1 has tiers out of order": changed("rows", 0, 7, -1),
        "slot 0 points outside": changed("slots", 0, 2, 4),
        "slot 0 points outside ": changed("slots", 0, 2, -1),
        "slot 2 points outside": changed("slots", 2, 1, 86400),
        "slot 2 points outside ": changed("slots", 2, 1, -1),
        "track 0 points outside": changed("tracks", 0, 0, 4),
        "track 0 points outside ": changed("tracks", 0, 0, -1),
        "track 0 points outside  ": changed("tracks", 0, 0, 2**31 - 1),
        "track 3 points outside": changed("tracks", 3, 1, 65535),
        "track 2 points outside": changed("tracks", 2, 1, 0),
        "track 0 has no beginning": changed("slots", 0, 0, 0),
        "track 0 has times out of order": changed("slots", 2, 1, 0),
        "track 0 has days out of order": changed("slots", 2, 0, 19_999),
        "track 0 has days out of order ": changed("slots", 1, 1, 60),
        "track 1 is of a variant without a name": changed("tracks", 1, 2, 3),
        "model 0 points outside": changed("models", 0, 1, 6),
        "model 0 points outside ": changed("models", 0, 0, -1),
        "model 0 points outside  ": changed("models", 0, 1, 0),
        "model 0 has no standard price": changed("tracks", 0, 2, 1),
        "model 0 has variants out of order": changed("tracks", 1, 2, 0),
        "not UTF-8": named(b"\xff"),
        "its variants have no names": named(b"a test\nbatch"),
    }


@pytest.mark.parametrize("message", damaged_parts())
def test_an_inconsistent_table_is_refused(message: str) -> None:
    with pytest.raises(PriceTableError, match=message.strip()):
        PriceTable(damaged_parts()[message].pack())


def bad_names() -> dict[str, str]:
    """Names that can be read in part; they are found out by `check()`, or when they are needed."""
    return {
        "a provider begins with": NAMES.replace("acme\t0\t", "acme\tzero\t"),
        "begin at": NAMES.replace("shop\t3\t", "shop\t2\t"),
        "8 names for 7 models": NAMES + "\x1eextra\t7\t\t\t\nx\t=x",
        "falls back to nobody": NAMES.replace("acme:4", "nobody:4"),
        "a rule of kind": NAMES.replace("=acme-one", "!acme-one"),
        "a rule that does not end": NAMES.replace("|2", "|3"),
        "the rule": NAMES.replace("&2", "&1"),
        "a rule with .* parts": NAMES.replace("&2", "&two"),
        "without a rule": NAMES.replace("acme-free\t=", "acme-free ="),
        "the regular expression": NAMES.replace("\\w+$", "(((("),
    }


@pytest.mark.parametrize("message", bad_names())
def test_bad_names_are_refused(message: str, tmp_path: Path) -> None:
    parts = Parts.good()
    parts.names = bad_names()[message].encode()
    path = tmp_path / "table.bin"
    path.write_bytes(parts.pack())
    with pytest.raises(PriceTableError, match=message) as raised:
        load(str(path))
    assert str(path) in str(raised.value)


def test_what_is_no_table_is_refused() -> None:
    for data in (b"", b"PICOCOST", bytes(64), b"x" * 1000, DATA[:-1], DATA + b"\0", DATA[:200]):
        with pytest.raises(PriceTableError):
            PriceTable(data)
    with pytest.raises(PriceTableError, match="checksum"):
        PriceTable(DATA[:1000] + bytes([DATA[1000] ^ 1]) + DATA[1001:])
    with pytest.raises(PriceTableError, match="empty"):
        PriceTable(seal(DATA[:12] + bytes(4) + DATA[16:]))
    with pytest.raises(PriceTableError, match="shorter"):
        PriceTable(seal(DATA[:12] + b"\xff\xff\xff\x7f" + DATA[16:]))
    for bad in (None, "text", bytearray(DATA), 3):
        with pytest.raises(TypeError):
            PriceTable(bad)  # type: ignore[arg-type]
    assert issubclass(PriceTableError, PicostepError)
    assert issubclass(PriceTableError, ValueError)


def test_no_bytes_crash_the_reader() -> None:
    """Bytes changed at random, under a right checksum: an error, or a table that answers every question."""
    rng = random.Random(SEED)
    good = Parts.good().pack()
    for _ in range(20_000 if CAMPAIGN else 2_000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(8, len(data))
            data[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
        if rng.random() < 0.8:
            data[28:32] = len(data).to_bytes(4, "little")
        try:
            table = PriceTable(seal(bytes(data)))
            for i in range(len(table)):
                for tier in (0, 1, 2, -1):
                    table.cost(i, rng.choice((0, NOON, -(2**63), 2**63 - 1)), tier, *[2**62] * 3, 1, 2**62, 1)
                table.tracks(i)
            for name in ("acme-one", "acme-2", "shop/very-odd", "\x00"):
                index = table.find(name)
                assert index < len(table)
            table.check()
            for i in range(len(table)):
                table.name(i)
        except (PriceTableError, UnicodeDecodeError):
            pass
        except Exception as error:
            raise AssertionError(f"PICOSTEP_SEED={SEED}: {bytes(data)!r}") from error


# --- the built-in table -----------------------------------------------------------------------------------


def test_the_manifest_describes_the_table() -> None:
    manifest = json.loads((FILES / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["sha256"] == sha256(DATA).hexdigest()
    assert (manifest["id"], manifest["bytes"]) == (builtin().id, len(DATA))
    assert builtin().source == f"{manifest['source']} {manifest['version']}"
    counts = manifest["counts"]
    assert counts["models"] + counts["models resold"] == len(builtin())
    assert counts["values quantised"] == len(manifest["quantised"])
    assert builtin().counts() == {key: counts[key] for key in ("rows", "slots", "tracks", "models")} | {
        "models": len(builtin())
    }
    for entry in manifest["quantised"]:
        change = abs(Decimal(entry["given"]) - Decimal(entry["used"]))
        assert change <= Decimal("0.0000005"), entry  # half a pico-dollar a token
    assert "Pydantic Services" in (FILES / "LICENSE.genai-prices").read_text(encoding="utf-8")


def test_the_built_in_table_is_loaded_once_and_is_whole() -> None:
    assert builtin() is builtin()
    builtin().check()
    assert builtin().size < 400_000
    assert load(str(FILES / "table.bin")).id == builtin().id
    assert "2543" in repr(builtin()) or str(len(builtin())) in repr(builtin())


def test_importing_prices_loads_neither_the_table_nor_anything_heavy() -> None:
    program = """
import sys
before = set(sys.modules)
import picostep.prices
loaded = set(sys.modules) - before
heavy = {"genai_prices", "decimal", "_decimal", "fractions", "json", "datetime", "re", "hashlib", "zlib",
         "typing", "dataclasses", "picostep.prices.compile", "picostep.prices.resolve",
         "picostep.prices.overrides"}
assert not heavy & loaded, heavy & loaded
assert picostep.prices._builtin is None
picostep.prices.price("gpt-4o", start_ns=0, prompt_uncached=1)
assert not {"genai_prices", "picostep.prices.compile", "decimal", "hashlib"} & set(sys.modules) - before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=100)


# --- price() ----------------------------------------------------------------------------------------------


def test_price_by_example() -> None:
    """gpt-4o: 2.50 / 1.25 / 10 for a million tokens; claude-sonnet-4-5: 3 / 0.30 / 3.75 / 6 / 15."""
    cost = price("gpt-4o", start_ns=NOON, prompt_uncached=1000, prompt_cached=200, completion=300)
    assert (cost.pico, cost.status) == (1000 * 2_500_000 + 200 * 1_250_000 + 300 * 10_000_000, "priced")
    assert cost.usd == Decimal("0.00575")
    assert cost.table == builtin().id
    assert cost.row == "openai/gpt-4o"
    sonnet = price(
        "claude-sonnet-4-5",
        start_ns=NOON,
        provider="anthropic",
        prompt_uncached=10,
        prompt_cached=1000,
        cache_write=300,
        cache_write_1h=100,
        completion=50,
    )
    assert sonnet.usd == Decimal("0.00003") + Decimal("0.0003") + Decimal("0.00075") + Decimal(
        "0.0006"
    ) + Decimal("0.00075")
    assert price("sonar-pro", provider="perplexity", start_ns=NOON).usd == Decimal("0.014")


@pytest.mark.parametrize(
    ("model", "provider", "status"),
    [
        ("gpt-9", None, "unknown_model"),
        (None, None, "unknown_model"),
        (None, "openai", "unknown_model"),
        ("gpt-4o", "my-gateway", "unknown_provider"),
        ("whisper-1", "openai", "unsupported"),
    ],
)
def test_an_unknown_price_is_none_and_never_zero(
    model: str | None, provider: str | None, status: str
) -> None:
    cost = price(model, provider=provider, start_ns=NOON, prompt_uncached=10**6)
    assert (cost.pico, cost.usd, cost.status) == (None, None, status)


def test_what_a_status_says() -> None:
    assert price("gpt-4o", provider="github-copilot", start_ns=NOON, completion=5).status == "free"
    assert (
        price("text-embedding-3-small", start_ns=NOON, provider="openai", prompt_uncached=5).status
        == "priced"
    )
    embedding = price(
        "text-embedding-3-small", start_ns=NOON, provider="openai", prompt_uncached=5, completion=1
    )
    assert (embedding.status, embedding.pico) == ("no_output_price", 5 * 20_000)
    assert price("gpt-4o", start_ns=NOON, completion=1, reasoning=2).status == "invalid_usage"
    assert price("gpt-4o", start_ns=NOON, cache_write=1, cache_write_1h=2).pico is None
    standard = price("o3", start_ns=NOON, completion=1)
    assert price("o3", start_ns=NOON, completion=1, service_tier="flex").pico != standard.pico
    fallback = price("o3", start_ns=NOON, completion=1, service_tier="made-up")
    assert (fallback.pico, fallback.status) == (standard.pico, "variant_fallback")
    for tier in (None, "standard", "default", "on_demand", "Default"):
        assert price("gpt-4.1-nano", start_ns=NOON, completion=1, service_tier=tier).status == "priced"


def test_dated_prices_follow_the_start_of_the_step() -> None:
    """o3 became cheaper at midnight UTC, 2025-06-10."""
    midnight = 1_749_513_600 * 10**9
    assert [price("o3", start_ns=midnight + at, completion=10**6).usd for at in (-1, 0)] == [40, 8]


@pytest.mark.parametrize(
    "argument",
    ["prompt_uncached", "prompt_cached", "cache_write", "cache_write_1h", "completion", "reasoning"],
)
@pytest.mark.parametrize("model", ["gpt-4o", "gpt-9"])
def test_bad_counts(argument: str, model: str) -> None:
    wrong: Any
    for wrong in (1.0, float("nan"), float("inf"), True, "1", None, Decimal(1)):
        with pytest.raises(ArgumentTypeError, match="tokens must be int"):
            price(model, start_ns=NOON, **{argument: wrong})
    for wrong in (-1, 2**63, -(2**63), 10**30):
        with pytest.raises(ArgumentError, match=r"must not be negative|64 bits"):
            price(model, start_ns=NOON, **{argument: wrong})


def test_other_bad_arguments() -> None:
    bad: Any
    for bad in (b"gpt-4o", 3, ["gpt-4o"]):
        with pytest.raises(ArgumentTypeError, match="must be str"):
            price(bad, start_ns=NOON)
        with pytest.raises(ArgumentTypeError, match="must be str"):
            price("gpt-4o", start_ns=NOON, provider=bad)
        with pytest.raises(ArgumentTypeError, match="must be str"):
            price("gpt-4o", start_ns=NOON, service_tier=bad)
    with pytest.raises(ArgumentTypeError):
        price("gpt-4o", start_ns=1.5)  # type: ignore[arg-type]
    table = builtin()
    for bad in (-1, len(table), 2**70):
        with pytest.raises(ArgumentError):
            table.cost(bad, NOON)
        with pytest.raises(ArgumentError):
            table.name(bad)
        with pytest.raises(ArgumentError):
            table.tracks(bad)
        with pytest.raises(ArgumentError):
            table.row(bad if bad < 0 else 10**6)
        with pytest.raises(ArgumentError):
            table.slot(bad if bad < 0 else 10**6)
    with pytest.raises(ArgumentTypeError):
        table.cost(True, NOON)


def test_uninitialised_objects_do_not_crash() -> None:
    table = PriceTable.__new__(PriceTable)
    for call in (
        lambda: table.find("gpt-4o"),
        lambda: table.cost(0, 0),
        lambda: table.name(0),
        lambda: table.row(0),
        lambda: table.tracks(0),
        lambda: table.variant("batch"),
        table.check,
    ):
        with pytest.raises((AttributeError, TypeError, ValueError)):
            call()
    with pytest.raises(TypeError, match="twice"):
        builtin().__init__(DATA)  # type: ignore[misc]
    repr(Cost.__new__(Cost))


# --- Cost and CostSum -------------------------------------------------------------------------------------


def test_cost_is_a_value() -> None:
    one = price("gpt-4o", start_ns=NOON, completion=1)
    assert one == price("gpt-4o", start_ns=NOON, completion=1)
    assert one != price("gpt-4o", start_ns=NOON, completion=2)
    assert one != 10_000_000
    assert hash(one) == hash(price("gpt-4o", start_ns=NOON, completion=1))
    assert pickle.loads(pickle.dumps(one)) == one
    assert one.place is not None
    assert repr(one) == f"Cost(pico=10000000, status='priced', table='{builtin().id}', row='openai/gpt-4o')"
    with pytest.raises(AttributeError):
        one.pico = 5  # type: ignore[misc]
    with pytest.raises(TypeError):
        one.__init__(5, "priced")  # type: ignore[misc]
    user = Cost(5, "user")
    assert (user.pico, user.table, user.row, user.place) == (5, "", "", None)
    for status in STATUSES:
        assert Cost(None, status).status == status
    with pytest.raises(ArgumentError):
        Cost(5, "cheap")
    for wrong in (1.5, True, "5"):
        with pytest.raises(ArgumentTypeError):
            Cost(wrong, "user")  # type: ignore[arg-type]


def test_usd_is_exact_whatever_the_context() -> None:
    pico = 123_456_789_012_345_678_901_234_567_890
    with localcontext() as context:
        context.prec = 3
        assert str(Cost(pico, "user").usd) == "123456789012345678.901234567890"


@pytest.mark.timeout(900)
def test_sums_neither_drift_nor_overflow() -> None:
    """10 million steps in a campaign: equal to the sum of Python's ints."""
    rng = random.Random(SEED)
    table = builtin()
    models = [
        table.find(*name) for name in (("gpt-4o",), ("claude-opus-4-6",), ("o1-pro", "openai"), ("o3",))
    ]
    total, expected, unpriced = CostSum(), 0, 0
    for _ in range(10_000_000 if CAMPAIGN else 200_000):
        number = rng.getrandbits(64)
        if number % 64 == 0:
            total.add(None)
            unpriced += 1
            continue
        pico = table.cost(
            models[number & 3], NOON, 0, number >> 50, number >> 8 & 4095, 0, 0, number >> 20 & 2047
        ).pico
        total.add(pico)
        expected += pico  # type: ignore[operator]
    assert total.pico == expected, SEED
    assert total.unpriced == unpriced
    assert total.usd == Decimal(expected) / 10**12


def test_sums_of_any_size() -> None:
    rng = random.Random(SEED)
    total, expected = CostSum(), 0
    for _ in range(5000):
        pico = rng.choice((1, -1)) * rng.getrandbits(rng.choice((1, 32, 62, 63, 64, 80, 200)))
        assert total.add(pico) is total
        expected += pico
        assert total.pico == expected, SEED
    for edge in (2**63 - 1, -(2**63), 2**63, -(2**63) - 1):
        for _ in range(3):
            total.add(edge)
            expected += edge
    assert (total.pico, total.priced, total.unpriced) == (expected, 5012, 0)
    wrong: Any
    for wrong in (1.5, True, "1", Decimal(1)):
        with pytest.raises(ArgumentTypeError):
            total.add(wrong)
    with pytest.raises(TypeError):
        pickle.dumps(total)


def test_many_threads_use_one_table_and_one_sum() -> None:
    table, total, errors = small(), CostSum(), []
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        try:
            barrier.wait(100)
            for i in range(3000):
                assert table.find("acme-one") == 0
                assert table.find(f"acme-none-{number}-{i}") == -1
                total.add(table.cost(0, 0, 0, 1).pico)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not errors
    assert (total.pico, total.priced) == (4 * 3000 * 17, 4 * 3000)


# --- user costs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "pico"),
    [
        (0, 0),
        (3, 3 * 10**12),
        (0.1, 10**11),
        (0.1 + 0.2, 300000000000),  # 0.30000000000000004
        (1e-12, 1),
        (5e-13, 0),
        (1.5e-12, 2),
        (2.5e-12, 2),
        ("0.0000000000025", 2),
        ("0.00000000000250000000000001", 3),
        ("0.0000000000035", 4),
        ("1E-400", 0),
        (5e-324, 0),
        (Decimal("0.00161500"), 1615000000),
        (Decimal("-0"), 0),
        ("123456789.123456789012", 123456789123456789012),
        ("0." + "0" * 12 + "5", 0),
        ("0." + "0" * 11 + "15", 2),
        ("1" + "0" * 14, 10**26),
    ],
)
def test_user_costs_are_rounded_half_even(amount: Any, pico: int) -> None:
    with localcontext() as context:
        context.prec = 2
        assert user_cost_pico(amount) == pico


def test_bad_user_costs() -> None:
    bad: Any
    for bad in (
        "nan",
        "inf",
        "-1",
        "",
        "free",
        float("nan"),
        float("inf"),
        -1,
        -0.5,
        Decimal("sNaN"),
        10**15,
        "1e15",
        "1e999999",
        Decimal("1E+999999"),
    ):
        with pytest.raises(ArgumentError):
            user_cost_pico(bad)
    for bad in (None, True, b"1", 1j, [1]):
        with pytest.raises(ArgumentTypeError):
            user_cost_pico(bad)


# --- explain() --------------------------------------------------------------------------------------------


def test_explain() -> None:
    told = explain("gpt-5.4", provider="openai", start_ns=NOON, prompt_uncached=272_001, completion=10)
    assert json.loads(json.dumps(told)) == told
    assert told["found"] == {"provider": "openai", "model": "gpt-5.4", "via": "openai"}
    assert told["tier"] == {"above": 272_000, "next": None}
    assert told["tiers"] == [272_000]
    assert (told["source"], told["table"]) == (builtin().source, builtin().id)
    assert told["rates"]["input"] == "5"
    assert (told["usd"], told["pico"]) == ("1.36023", 1_360_230_000_000)
    assert told["at"] == "2026-11-21T12:00:00Z"
    future = explain("gemini-4-argon", start_ns=NOON, completion=1)
    assert (future["from"], future["until"]) == (None, "2026-12-01")
    assert future["rates"]["output"] == "10"
    daily = explain("deepseek-chat", provider="deepseek", start_ns=NOON, completion=1)
    assert daily["daily"] == "00:30 to 16:30 UTC"
    batch = explain("gpt-4o", start_ns=NOON, service_tier="batch", completion=1)
    assert batch["variant"] == "batch"
    assert "batch" in batch["row"]
    resold = explain("gpt-4o", provider="azure", start_ns=NOON, service_tier="batch", completion=1)
    assert resold["status"] == "variant_fallback"
    assert resold["row"] == "azure/gpt-4o by the price of openai"
    unknown = explain("gpt-9", start_ns=NOON)
    assert (unknown["status"], unknown["usd"]) == ("unknown_model", None)
    assert "does not know" in unknown["notes"][0]
    sonar = explain("sonar-pro", provider="perplexity", start_ns=NOON)
    assert (sonar["rates"]["request"], sonar["usd"]) == ("0.014", "0.014")


@pytest.mark.slow
def test_every_price_can_be_explained() -> None:
    table = builtin()
    for index in range(len(table)):
        provider, model, via = table.name(index)
        for number, name in enumerate(table.variants):
            cost = table.cost(index, NOON, number, 10**6, completion=10)
            assert cost.row.startswith(f"{provider}/{model}"), name
            assert ("by the price of" in cost.row) == (via != provider)
