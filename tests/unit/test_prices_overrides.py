"""Prices of the user's own: what they win over, what they may say, and how mistakes in them are told."""

from __future__ import annotations

import json
import marshal
import pickle
import sys
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import pytest

from picostep.amounts import in_pico, usd
from picostep.errors import ArgumentTypeError, ConfigError
from picostep.prices import Cost, Overrides, explain, price

NOON = 1_795_262_400 * 10**9
FULL = {
    "input": "2.50",
    "cached_input": Decimal("0.25"),
    "cache_write": "3",
    "cache_write_1h": "5",
    "output": 10,
    "reasoning": "12.000001",
    "request": "0.001",
}


def cost(overrides: Overrides, model: str, provider: str | None = None, **tokens: int) -> Cost:
    return price(model, provider=provider, start_ns=NOON, overrides=overrides, **tokens)


def test_every_rate() -> None:
    found = cost(
        Overrides({"house": FULL}),
        "house",
        prompt_uncached=3,
        prompt_cached=5,
        cache_write=11,
        cache_write_1h=4,
        completion=13,
        reasoning=6,
    )
    pico = (
        3 * 2_500_000 + 5 * 250_000 + 7 * 3_000_000 + 4 * 5_000_000 + 7 * 10_000_000 + 6 * 12_000_001 + 10**9
    )
    assert (found.pico, found.status, found.row) == (pico, "override", "override of house")
    assert found.table == Overrides({"house": FULL}).id
    assert found.usd == Decimal(pico) / 10**12


def test_what_is_left_out_falls_back() -> None:
    overrides = Overrides({"house": {"input": 2, "output": 10}})
    tokens = {"prompt_cached": 1, "cache_write": 5, "cache_write_1h": 3, "completion": 7, "reasoning": 7}
    assert cost(overrides, "house", **tokens).pico == 6 * 2_000_000 + 7 * 10_000_000
    overrides = Overrides({"house": {"input": 2, "output": 10, "cache_write": 3}})
    assert cost(overrides, "house", **tokens).pico == 2_000_000 + 5 * 3_000_000 + 7 * 10_000_000


def test_overrides_win_and_the_provider_wins_over_the_model() -> None:
    overrides = Overrides(
        {
            "gpt-4o": {"input": 1, "output": 0},
            ("azure", "gpt-4o"): {"input": 3, "output": 0},
            ("Azure", "My-Deployment"): {"input": 4, "output": 0},
            "openai/gpt-oss-120b": {"input": 5, "output": 0},
        }
    )
    for model, provider, dollars in (
        ("gpt-4o", None, 1),
        ("GPT-4o", "openai", 1),
        ("gpt-4o", "azure", 3),
        ("gpt-4o", " AZURE ", 3),
        ("azure/gpt-4o", None, 3),
        ("my-deployment", "azure", 4),
        ("azure/my-deployment", None, 4),
        ("openai/gpt-oss-120b", None, 5),
        ("openai/gpt-oss-120b", "vllm", 5),
    ):
        found = cost(overrides, model, provider, prompt_uncached=10**6)
        assert (found.usd, found.status) == (dollars, "override"), model
    assert cost(overrides, "gpt-4o-2024-08-06", prompt_uncached=10**6).usd == Decimal("2.5")  # not guessed
    assert cost(overrides, "my-deployment", prompt_uncached=1).status == "unknown_model"
    assert price(None, start_ns=NOON, overrides=overrides).status == "unknown_model"
    batch = price("gpt-4o", start_ns=NOON, service_tier="batch", overrides=overrides, prompt_uncached=10**6)
    assert (batch.usd, batch.status) == (1, "override")


def test_a_free_model_of_ones_own_is_an_override() -> None:
    found = cost(Overrides({"llama3.2": {"input": 0, "output": "0.00"}}), "llama3.2", completion=10**9)
    assert (found.pico, found.status) == (0, "override")


def test_usage_is_checked_as_for_the_table() -> None:
    overrides = Overrides({"house": FULL})
    assert cost(overrides, "house", completion=1, reasoning=2).status == "invalid_usage"
    assert cost(overrides, "house", cache_write=1, cache_write_1h=2).pico is None
    with pytest.raises(ArgumentTypeError):
        cost(overrides, "house", completion=1.5)  # type: ignore[arg-type]
    wrong: Any
    for wrong in (3, b"house"):
        with pytest.raises(ArgumentTypeError):
            overrides.find(wrong)
        with pytest.raises(ArgumentTypeError):
            overrides.find("house", wrong)


def test_counts_and_rates_of_any_size_are_exact() -> None:
    found = cost(
        Overrides({"house": {"input": "999999999999999", "output": 1}}), "house", prompt_uncached=2**63 - 1
    )
    assert found.pico == 999999999999999 * 10**6 * (2**63 - 1)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"input": 1}, "'output' is missing"),
        ({"output": 1}, "'input' is missing"),
        ({"input": 1, "output": 1, "cached": 1}, "'cached' is not known; there are input, cached_input"),
        ({"input": 1, "output": "0.0000001"}, "more than 12 decimals of a dollar for a token"),
        ({"input": 1, "output": 1, "request": "1e-13"}, "more than 12 decimals of a dollar for a request"),
        ({"input": 1, "output": 2.5}, r"not float: write '2\.5'"),
        ({"input": 1, "output": True}, "must be a number, not bool"),
        ({"input": 1, "output": None}, "must be a number, not NoneType"),
        ({"input": 1, "output": "ten"}, "must be a number, got 'ten'"),
        ({"input": 1, "output": -1}, "must not be negative"),
        ({"input": 1, "output": "-0.5"}, "must not be negative"),
        ({"input": 1, "output": "nan"}, "must be finite"),
        ({"input": 1, "output": Decimal("inf")}, "must be finite"),
        ({"input": 1, "output": "1e15"}, "less than 1e15"),
        ({"input": 1, "output": 10**5000}, "less than 1e15"),
        ({"input": 1, "output": "1e999999999"}, "less than 1e15"),
        ({"input": 1, "output": "1." + "1" * 5000}, "digits"),
        ({1: 1, "input": 1, "output": 1}, "a key must be str"),
        ([("input", 1)], "must be a mapping, not list"),
        ("2.5", "must be a mapping, not str"),
    ],
)
def test_mistakes_in_rates(rates: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        Overrides({"house": rates})
    assert "house" in str(raised.value)


@pytest.mark.parametrize("key", [3, None, ("a",), ("a", "b", "c"), ("a", 3), b"house", ""])
def test_mistakes_in_keys(key: Any) -> None:
    with pytest.raises(ConfigError, match="prices"):
        Overrides({key: FULL})


def test_mistakes_in_the_mapping() -> None:
    wrong: Any
    for wrong in (None, "prices.toml", [("house", FULL)]):
        with pytest.raises(ConfigError, match="must be a mapping"):
            Overrides(wrong)
    with pytest.raises(ConfigError, match="twice"):
        Overrides({"house": FULL, "HOUSE": FULL})


def test_overrides_travel() -> None:
    overrides = Overrides({"house": FULL, ("azure", "x"): {"input": 1, "output": 10**14}})
    assert Overrides.from_plain(marshal.loads(marshal.dumps(overrides.plain()))) == overrides
    assert Overrides.from_plain(json.loads(json.dumps(overrides.plain()))).id == overrides.id
    assert pickle.loads(pickle.dumps(overrides)) == overrides
    assert hash(pickle.loads(pickle.dumps(overrides))) == hash(overrides)
    assert overrides.id != Overrides({"house": FULL}).id
    assert overrides != Overrides({"house": FULL})
    assert overrides != 3
    assert len(overrides) == 2
    assert "2 prices" in repr(overrides)
    assert "house" in repr(overrides.find("house"))
    assert Overrides({}).find("house") is None


TOML = """
[model."house/model.v1"]
input = 0.1
output = "0.30"
request = 1

[provider.azure."my-deployment"]
input = 2.5
output = 1e1
"""
AS_JSON = {
    "model": {"house/model.v1": {"input": 0.1, "output": "0.30", "request": 1}},
    "provider": {"azure": {"my-deployment": {"input": 2.5, "output": 10.0}}},
}
AS_MAPPING: dict[Any, Any] = {
    "house/model.v1": {"input": "0.1", "output": "0.3", "request": 1},
    ("azure", "my-deployment"): {"input": "2.5", "output": 10},
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no tomllib")
def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(TOML, encoding="utf-8")
    assert Overrides.from_file(str(path)) == Overrides(AS_MAPPING)
    path.write_text("[model.x]\ninput = nan\noutput = 1", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"prices\.toml.*'x'.*finite"):
        Overrides.from_file(str(path))
    path.write_text("[model", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"prices\.toml"):
        Overrides.from_file(str(path))


@pytest.mark.skipif(sys.version_info >= (3, 11), reason="there is tomllib")
def test_toml_needs_python_3_11(tmp_path: Path) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(TOML, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"Python 3\.11"):
        Overrides.from_file(str(path))


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "prices.JSON"
    path.write_text(json.dumps(AS_JSON), encoding="utf-8")
    assert Overrides.from_file(str(path)) == Overrides(AS_MAPPING)
    for text, message in (
        ('{"model": {"x": {"input": NaN, "output": 1}}}', "finite"),
        ('{"model": {"x": {"input": 1, "output": 1}, "x": {"input": 2, "output": 1}}}', "twice"),
        ('{"models": {}}', "'models' is not known"),
        ('{"model": []}', "must be a mapping"),
        ('{"provider": {"azure": {"x": 1}}}', "must be a mapping"),
        ("[]", "must be a mapping"),
        ("{", "Expecting"),
        ("[" * 100_000, "recursion"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message) as raised:
            Overrides.from_file(str(path))
        assert str(path) in str(raised.value)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="utf-8"):
        Overrides.from_file(str(path))
    with pytest.raises(ConfigError, match="No such file"):
        Overrides.from_file(str(tmp_path / "missing.json"))
    other = tmp_path / "prices.yaml"
    other.write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"\.toml or a \.json"):
        Overrides.from_file(str(other))


def test_explain_names_the_override() -> None:
    told = explain("house", start_ns=NOON, overrides=Overrides({"house": FULL}), completion=1)
    assert (told["source"], told["usd"], told["status"]) == ("override", "0.00101", "override")
    assert told["rates"]["reasoning"] == "12.000001"
    assert told["rates"]["request"] == "0.001"


@pytest.mark.parametrize(
    ("amount", "per", "pico"),
    [
        ("2.5", 10**6, 2_500_000),
        ("0.000001", 10**6, 1),
        ("1.50000000000000000", 10**6, 1_500_000),
        ("0.000000000001", 1, 1),
        (Decimal("1E+2"), 10**6, 100_000_000),
        ("0E-99", 10**6, 0),
        (0, 1, 0),
    ],
)
def test_prices_are_exact_whatever_the_context(amount: Any, per: int, pico: int) -> None:
    with localcontext() as context:
        context.prec = 1
        assert in_pico(amount, per, "it") == pico


@pytest.mark.parametrize(
    ("pico", "text"),
    [(0, "0"), (1, "0.000000000001"), (10**12, "1"), (2_500_000_000, "0.0025"), (-15 * 10**11, "-1.5")],
)
def test_dollars_are_written_exactly(pico: int, text: str) -> None:
    assert usd(pico) == text
