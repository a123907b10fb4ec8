"""
What a step costs: by `Step.total_cost`, and by exporters as they really run.

Amounts are worked out by hand, follow from prices of the test's own, or come from genai-prices.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import struct
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

import picostep
from picostep import prices
from picostep.errors import ArgumentError, ArgumentTypeError, ConfigError
from picostep.exporter.pricer import Pricer
from picostep.prices import steps
from picostep.settings.destination import Destination
from support import Ingest, run_python, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rings are private there")

OWN = {
    "ours": {"input": 1, "output": 2},  # US dollars for a million tokens
    ("acme", "ours"): {"input": "3", "cached_input": "0.5", "output": Decimal("4.25"), "request": "0.01"},
    "gpt-4o": {"input": 100, "cache_write": 200, "cache_write_1h": 300, "output": 400, "reasoning": 500},
    "nothing": {"input": 0, "output": 0},
}


@pytest.fixture(autouse=True)
def own_table(clean_env: pytest.MonkeyPatch) -> None:
    """No price table that another test left behind."""
    clean_env.setattr(steps, "_current", None)
    clean_env.setattr(steps, "_errors", 0)


@pytest.fixture
def configure(ring_base: Path) -> Iterator[Callable[..., None]]:
    """`configure()` for this test; by default nothing is exported."""

    def set_up(**settings: Any) -> None:
        picostep.shutdown(0)
        picostep.configure(**{"to": "stdout", "exporter": "off", **settings})

    set_up()
    yield set_up
    picostep.shutdown(0)
    picostep.configure()


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file, numbers as exact decimals."""
    if not path.exists():
        return []
    return [json.loads(line, parse_float=Decimal) for line in path.read_text().splitlines()]


def refreshed() -> Path:
    path = Path(os.environ["XDG_STATE_HOME"], "picostep", "prices.bin")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def swap(data: bytes) -> None:
    """Replace the refreshed table as `picostep prices refresh` does."""
    new = refreshed().with_suffix(".new")
    new.write_bytes(data)
    new.rename(refreshed())


def table_with(model: str, uncached: int) -> bytes:
    """The built-in table with another input price, in pico-dollars a token, for one model."""
    builtin = prices.builtin()
    _, _, _, row = prices.price(model, start_ns=time.time_ns(), prompt_uncached=1).place or (0, 0, 0, 0)
    data = bytearray(Path(prices.__file__).with_name("table.bin").read_bytes())
    struct.pack_into("<q", data, 64 + 64 * row, uncached)
    data[32:48] = blake2b(data[:32] + data[48:], digest_size=16).digest()
    assert prices.PriceTable(bytes(data)).id != builtin.id
    return bytes(data)


def step(**start: Any) -> picostep.Step:
    return picostep.step("run", **start).prompt("p").response("r")


# --- Step.total_cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "counts", "status", "expected"),
    [
        # OpenAI's list: $2.50 input, $1.25 cached input, $10.00 output for a million tokens.
        ({"used": "gpt-4o"}, {"prompt_uncached": 1000, "prompt_cached": 10, "completion": 100}, "priced",
         "0.0035125"),
        ({"requested": "gpt-4o"}, {"prompt_cached": 10}, "priced", "0.0000125"),
        ({"requested": "no-such-model", "used": "openai/gpt-4o"}, {"completion": 3}, "priced", "0.00003"),
        ({"requested": "gpt-4o", "used": ""}, {"completion": 3}, "priced", "0.00003"),
        ({"used": "gpt-4o", "provider": "", "service_tier": ""}, {"completion": 3}, "priced", "0.00003"),
        # Anthropic's list: $3 input, $0.30 cache reads, $3.75 and $6 cache writes, $15 output.
        ({"used": "claude-sonnet-4-5"}, {"prompt_uncached": 7, "prompt_cached": 1000, "cache_write": 100,
         "cache_write_1h": 40, "completion": 9, "reasoning": 4}, "priced", "0.000921"),
        ({"used": "gpt-4o", "service_tier": "no-such-tier"}, {"prompt_uncached": 1000, "completion": 100},
         "variant_fallback", "0.0035"),
        ({"used": "gpt-3.5-turbo", "provider": "github-copilot"}, {"prompt_uncached": 5}, "free", "0"),
        ({"used": "amazon.titan-embed-text-v2:0", "provider": "aws"},
         {"prompt_uncached": 1000, "completion": 1}, "no_output_price", "0.00002"),
        ({"used": "whisper-1"}, {"completion": 5}, "unsupported", None),
        ({"used": "no-such-model"}, {"prompt_uncached": 5}, "unknown_model", None),
        ({}, {"prompt_uncached": 5}, "unknown_model", None),
        ({"used": "gpt-4o", "provider": "no-such-provider"}, {"completion": 5}, "unknown_provider", None),
        ({"used": "gpt-4o"}, {"cache_write_1h": 5}, "invalid_usage", None),
        ({"used": "gpt-4o"}, {"reasoning": 5}, "invalid_usage", None),
        ({"used": "gpt-4o"}, {}, "no_usage", None),
    ],
)  # fmt: skip
def test_every_status_open_and_ended(
    configure: object, model: dict[str, str], counts: dict[str, int], status: str, expected: str | None
) -> None:
    made = step().model(**model).tokens(**counts)

    for _ in ("open", "ended"):
        cost = None if expected is None else Decimal(expected)
        assert (made.total_cost, made.cost_status) == (cost, status)
        assert status in prices.STATUSES
        if not repr(made).endswith("ended>"):
            made.end()


def test_a_failed_step_has_its_cost(configure: object) -> None:
    made = picostep.step("run").model("gpt-4o").tokens(1000)
    made.error("broken")

    assert made.total_cost == Decimal("0.0025")


def test_usage_gives_the_cost(configure: object) -> None:
    usage = {
        "input_tokens": 7,
        "cache_read_input_tokens": 1000,
        "cache_creation_input_tokens": 100,
        "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
        "output_tokens": 9,
    }

    assert step().model("claude-sonnet-4-5").usage(usage).total_cost == Decimal("0.000921")


def test_the_cost_follows_what_is_set(configure: object) -> None:
    made = step()
    assert (made.total_cost, made.cost_status) == (None, "no_usage")
    made.tokens(1000)
    assert (made.total_cost, made.cost_status) == (None, "unknown_model")
    made.model("gpt-4o")
    assert made.total_cost == Decimal("0.0025")
    made.tokens(completion=100)
    assert made.total_cost == Decimal("0.0035")
    made.cost(7)
    assert (made.total_cost, made.cost_status) == (Decimal(7), "user")
    made.cost(None)
    assert (made.total_cost, made.cost_status) == (Decimal("0.0035"), "priced")


ABOVE_THE_HALF = "0.00000000000250000000000000000000000000000001"
OF_THE_USERS: list[tuple[float | Decimal, str, int]] = [
    (0, "0", 0),
    (0.1, "0.1", 10**11),
    (3, "3", 3 * 10**12),
    (1e-300, "1e-300", 0),
    (Decimal("0.1234567890123456789"), "0.1234567890123456789", 123456789012),
    (Decimal("0.0000000000005"), "5e-13", 0),
    (Decimal("0.0000000000015"), "1.5e-12", 2),
    (Decimal("0.0000000000025"), "2.5e-12", 2),
    (Decimal(ABOVE_THE_HALF), ABOVE_THE_HALF, 3),
    (1e15, "1e15", 10**27),  # more than a price may be
    (10**20 + 1, "100000000000000000001", (10**20 + 1) * 10**12),
    (Decimal("1e299"), "1e299", 10**311),
]


def test_a_cost_of_the_users_is_exact_and_beats_everything(
    configure: Callable[..., None], tmp_path: Path
) -> None:
    """`total_cost` is the decimal itself; only the whole pico-dollars for sums are rounded."""
    configure(to=f"store:{tmp_path / 'store.db'}", exporter="process", prices=OWN)
    for given, exact, _ in OF_THE_USERS:
        made = step().model("gpt-4o").tokens(1000).cost(given)
        assert (made.total_cost, made.cost_status) == (Decimal(exact), "user")
        made.end()
        assert (made.total_cost, made.cost_status) == (Decimal(exact), "user")

    assert picostep.flush(20)
    with sqlite3.connect(tmp_path / "store.db") as store:
        found = store.execute(
            "SELECT real_total_cost, cost_pico, cost_status, price_table FROM steps ORDER BY rowid"
        ).fetchall()
    store.close()
    assert [(Decimal(real), int(in_sums), status, table) for real, in_sums, status, table in found] == [
        (Decimal(exact), pico, "user", None) for _, exact, pico in OF_THE_USERS
    ]


def test_a_step_that_nobody_made(configure: object) -> None:
    assert picostep.Step.__new__(picostep.Step).total_cost is None


def test_cost_without_recording(configure: Callable[..., None]) -> None:
    configure(disabled=True, prices=OWN)
    made = step().model("ours").tokens(5, None, 7)
    made.end()

    assert (made.total_cost, made.cost_status) == (Decimal("0.000019"), "override")
    configure()
    assert step().model("ours").tokens(5).total_cost is None


def test_a_step_begun_while_nothing_is_recorded_stays_so(configure: Callable[..., None]) -> None:
    configure(disabled=True)
    made = step()
    configure()
    before = picostep.stats()
    made.end()

    after = picostep.stats()
    assert after["accepted"] == before["accepted"]
    assert after["dropped"]["no_ring"] == before["dropped"]["no_ring"] + 1


# --- prices of the user's own -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "counts", "expected"),
    [
        ({"used": "ours"}, {"prompt_uncached": 5, "completion": 7}, "0.000019"),
        ({"used": "OURS", "provider": "other"}, {"prompt_cached": 5, "cache_write": 1}, "0.000006"),
        ({"used": "ours", "provider": "Acme"}, {"prompt_uncached": 5, "prompt_cached": 1}, "0.0100155"),
        ({"used": "acme/ours"}, {"completion": 4}, "0.010017"),
        ({"used": "gpt-4o"}, {"prompt_uncached": 1, "cache_write": 10, "cache_write_1h": 4, "completion": 9,
         "reasoning": 5}, "0.0066"),
        ({"used": "nothing"}, {"prompt_uncached": 5}, "0"),
    ],
)  # fmt: skip
def test_overrides(
    configure: Callable[..., None], model: dict[str, str], counts: dict[str, int], expected: str
) -> None:
    configure(prices=OWN)
    made = step().model(**model).tokens(**counts)

    assert (made.total_cost, made.cost_status) == (Decimal(expected), "override")
    assert step().model("gpt-4o-mini").tokens(completion=1).cost_status == "priced"


TOML = """
[model.ours]
input = 0.123456
output = "2"

[provider.acme.ours]
input = 3
output = 4
"""
JSON = """
{
    "model": {"ours": {"input": 0.123456, "output": "2"}},
    "provider": {"acme": {"ours": {"input": 3, "output": 4}}}
}
"""


@pytest.mark.parametrize("by", ["argument", "path", "variable"])
@pytest.mark.parametrize(
    ("name", "text"), [("prices.toml", TOML), ("prices.json", JSON)], ids=["toml", "json"]
)
def test_overrides_from_a_file(
    configure: Callable[..., None],
    clean_env: pytest.MonkeyPatch,
    tmp_path: Path,
    by: str,
    name: str,
    text: str,
) -> None:
    if name.endswith(".toml") and sys.version_info < (3, 11):
        pytest.skip("tomllib")
    file = tmp_path / name
    file.write_text(text)
    if by == "variable":
        clean_env.setenv("PICOSTEP_PRICES", str(file))
        configure()
    else:
        configure(prices=file if by == "path" else str(file))

    assert step().model("ours").tokens(1).total_cost == Decimal("0.000000123456")
    assert step().model("ours", provider="acme").tokens(1, 0, 1).total_cost == Decimal("0.000007")


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"input": "0.0000001", "output": 1}, "more than 12 decimals"),
        ({"input": 0.5, "output": 1}, "not float: write '0.5'"),
        ({"input": True, "output": 1}, "not bool"),
        ({"input": "NaN", "output": 1}, "finite"),
        ({"input": "Infinity", "output": 1}, "finite"),
        ({"input": "-1", "output": 1}, "negative"),
        ({"input": "x", "output": 1}, "a number"),
        ({"input": 1}, "'output' is missing"),
        ({"input": 1, "output": 1, "outptu": 1}, "'outptu' is not known"),
        (5, "must be a mapping"),
    ],
)
def test_bad_prices_change_nothing(configure: Callable[..., None], rates: object, message: str) -> None:
    configure(prices=OWN)

    with pytest.raises(ConfigError, match=f"^prices.*{message}"):
        picostep.configure(to="stdout", exporter="off", prices={"m": rates})  # type: ignore[dict-item]

    assert step().model("ours").tokens(1).cost_status == "override"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", '{"model": {"m": {"input": 0.0000001, "output": 1}}}', "more than 12 decimals"),
        ("p.json", '{"model": {"m": {"input": NaN, "output": 1}}}', "finite"),
        ("p.json", '{"models": {}}', "'models' is not known"),
        ("p.json", "{", "line 1"),
        ("p.yaml", "", "a .toml or a .json file"),
        ("missing.json", None, "No such file"),
    ],
)
def test_a_bad_file_names_variable_and_file(
    clean_env: pytest.MonkeyPatch,
    ring_base: Path,
    tmp_path: Path,
    name: str,
    content: str | None,
    message: str,
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_text(content)

    with pytest.raises(ConfigError, match=f"^prices: .*{name}: .*{message}"):
        picostep.configure(prices=str(file))

    code = (
        "import picostep\ntry:\n    picostep.run()\nexcept picostep.ConfigError as error:\n"
        "    print(error)\nelse:\n    print('nothing')"
    )
    shown = run_python(code, {"PICOSTEP_PRICES": str(file), "PICOSTEP_TO": "stdout"}).stdout
    assert shown.startswith("PICOSTEP_PRICES: ")
    assert str(file) in shown
    assert message in shown


def test_a_step_keeps_the_prices_it_was_begun_with(configure: Callable[..., None], tmp_path: Path) -> None:
    """As its destination; so the exporter's cost is the same, whatever is configured later."""
    out = tmp_path / "steps.jsonl"
    made = []
    for price in (1, 2):
        picostep.configure(to=f"jsonl:{out}", prices={"ours": {"input": price, "output": 0}})
        made.append(step().model("ours").tokens(10**6))
    for one in made:
        one.end()

    assert [one.total_cost for one in made] == [1, 2]
    assert picostep.flush(20)
    assert {line["step_id"]: line["total_cost"] for line in lines(out)} == {
        one.step_id: one.total_cost for one in made
    }


def test_hosts_with_different_prices_do_not_mix(ring_base: Path, tmp_path: Path) -> None:
    """They share directory and sink, but neither destination nor exporter."""
    out = tmp_path / "steps.jsonl"
    code = """
import json, sys, picostep
picostep.configure(prices=json.loads(sys.argv[1]))
for number in range(100):
    picostep.send_step(sys.argv[2], prompt="p", response="r", model_used="ours", prompt_uncached=number)
print(picostep.flush(20), picostep.stats()["rings"][0]["destination"])
"""
    seen = set()
    for price in (1, 2, 3):
        own = json.dumps({"ours": {"input": price, "output": 0}})
        env = {"PICOSTEP_DIR": str(ring_base), "PICOSTEP_TO": f"jsonl:{out}"}
        done, fingerprint = run_python(code, env, args=(own, f"run-{price}")).stdout.split()
        assert done == "True"
        seen.add(fingerprint)

    assert len(seen) == 3
    found = lines(out)
    assert len(found) == 300
    for line in found:
        each = int(line["run_id"].partition("-")[2])
        assert line["total_cost"] == line["prompt_uncached_tokens"] * each * Decimal("1e-6")
    assert len({line["price_table"] for line in found}) == 3


# --- the exporter says the same -----------------------------------------------------------------------------


def random_step(draw: random.Random, names: list[tuple[str, str]]) -> picostep.Step:
    start = {}
    if draw.random() < 0.5:
        start["start_time"] = datetime.fromtimestamp(draw.uniform(1.6e9, 1.9e9), timezone.utc)
    made = step(**start)
    provider, model = draw.choice(names)
    form = draw.randrange(6)
    if form == 0:
        made.model(requested=model)
    elif form == 1:
        made.model(requested="x", used=f"{provider}/{model}")
    elif form == 2:
        made.model(used=draw.choice(["ours", "no-such-model"]))
    elif form < 5:
        made.model(used=model, provider=provider)
    if draw.random() < 0.3:
        made.model(service_tier=draw.choice(["batch", "flex", "priority", "standard", "odd"]))
    if draw.random() < 0.95:
        written, completion = (draw.choice([0, 1, 999, 200_001, 2**53]) for _ in range(2))
        made.tokens(draw.choice([0, 1, 12_345, 200_000, 2**53]), draw.randrange(300_000), completion)
        if draw.random() < 0.5:
            made.tokens(cache_write=written, reasoning=draw.randint(0, completion))
            made.tokens(cache_write_1h=draw.randint(0, written))
    if draw.random() < 0.1:
        made.cost(draw.choice([0.1, 3, Decimal("0.12345678901234567"), draw.random() / 1000, 10**18]))
    return made


def test_the_exporter_and_the_step_agree(configure: Callable[..., None], tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    table = prices.builtin()
    names = [table.name(index)[:2] for index in range(len(table))]
    out = tmp_path / "steps.jsonl"
    configure(to=f"jsonl:{out}", exporter="process", prices={"ours": OWN["ours"], "gpt-4o": OWN["gpt-4o"]})
    expected = {}
    for _ in range(4000):
        made = random_step(draw, names)
        made.end()
        expected[made.step_id] = (made.total_cost, made.cost_status)

    assert picostep.flush(30)
    found = {line["step_id"]: (line.get("total_cost"), line["cost_status"]) for line in lines(out)}
    assert found == expected
    statuses = {status for _, status in expected.values()}
    assert {"priced", "user", "override", "variant_fallback", "no_usage", "unknown_model"} <= statuses
    assert sum(cost is not None for cost, _ in expected.values()) > 2000


def test_dated_prices_go_by_the_start_of_the_step(configure: Callable[..., None], tmp_path: Path) -> None:
    """DeepSeek was cheaper at night; both sides of both changes, and a step that ends in the other period."""
    genai_prices = pytest.importorskip("genai_prices")
    out = tmp_path / "steps.jsonl"
    configure(to=f"jsonl:{out}", exporter="process")
    expected = {}
    for clock in ("00:29:59.999999", "00:30:00", "16:29:59.999999", "16:30:00"):
        start = datetime.fromisoformat(f"2025-05-05T{clock}+00:00")
        made = step(start_time=start).model("deepseek-chat", provider="deepseek").tokens(1000, 2000, 3000)
        usage = genai_prices.Usage(input_tokens=3000, cache_read_tokens=2000, output_tokens=3000)
        known = genai_prices.calc_price(
            usage, "deepseek-chat", provider_id="deepseek", genai_request_timestamp=start
        )
        assert made.total_cost == known.total_price
        made.end("2025-05-05T23:00:00Z")
        assert made.total_cost == known.total_price
        expected[made.step_id] = known.total_price

    assert len(set(expected.values())) == 2
    assert picostep.flush(20)
    assert {line["step_id"]: line["total_cost"] for line in lines(out)} == expected


def exporter_logs(base: Path) -> str:
    return "".join(path.read_text() for path in base.rglob("exporter.log"))


def test_unknown_models_are_logged_once(
    configure: Callable[..., None], ring_base: Path, tmp_path: Path
) -> None:
    configure(to=f"jsonl:{tmp_path / 'steps.jsonl'}", exporter="process", batch_records=3)
    for model in ["odd-1", "odd-2", "gpt-4o"] * 20:
        step().model("gpt-4o", model).tokens(1).end()
    step().model("gpt-4o", provider="odd-3").tokens(1).end()
    assert picostep.flush(20)

    log = exporter_logs(ring_base)
    assert [log.count(name) for name in ("'odd-1'", "'odd-2'", "'odd-3/gpt-4o'")] == [1, 1, 1]
    assert log.count("no price") == 3
    found = lines(tmp_path / "steps.jsonl")
    assert all(("total_cost" in line) == (line["cost_status"] == "priced") for line in found)


# --- The Context Company's ingest ---------------------------------------------------------------------------

REFERENCE = {
    *("type", "run_id", "step_id", "prompt", "response", "start_time", "end_time", "status_code"),
    *("model_requested", "model_used", "prompt_uncached_tokens", "prompt_cached_tokens", "completion_tokens"),
}


def send_all_kinds() -> dict[str, Decimal | None]:
    """Steps with every extension, one of them with a cost of the user's; their costs by id."""
    expected: dict[str, Decimal | None] = {}
    for model, given in [("ours", None), ("gpt-4o-mini", None), ("odd", None), ("ours", Decimal("0.5"))]:
        made = step().model(model, model, provider="openai", service_tier="priority")
        made.tokens(3, 5, 7, cache_write=11, cache_write_1h=4, reasoning=2)
        if given is not None:
            made.cost(given)
        made.end()
        expected[made.step_id] = made.total_cost
    sent = picostep.send_step(
        "run", prompt="p", response="r", model_requested="m", model_used="ours", provider="acme",
        service_tier="batch", prompt_uncached=1, prompt_cached=1, completion=1, cache_write=1,
        cache_write_1h=1, reasoning=1,
    )  # fmt: skip
    return {**expected, sent: Decimal("0.01") + Decimal("0.00001075")}


@pytest.mark.parametrize("send", [False, True])
def test_the_ingest_gets_no_extension(
    configure: Callable[..., None], ingest: Ingest, tmp_path: Path, send: bool
) -> None:
    """Beside the reference's fields there is only a cost: the user's, or the computed one if asked for."""
    configure(
        to=["tcc", f"jsonl:{tmp_path / 'local'}"],
        api_key="k",
        tcc_url=f"{ingest.url}/v1/custom",
        exporter="process",
        prices=OWN,
        send_computed_cost=send,
    )
    expected = send_all_kinds()
    assert picostep.flush(20)

    items = {}
    for request in ingest.requests:
        body = json.loads(request.body, parse_float=Decimal)
        items.update({item["step_id"]: item for item in body.get("items", [body])})
    assert items.keys() == expected.keys()
    user = next(id for id, cost in expected.items() if cost == Decimal("0.5"))
    for id, item in items.items():
        has_cost = id == user or (send and expected[id] is not None)
        assert item.keys() == REFERENCE | ({"real_total_cost"} if has_cost else set())
        if has_cost:
            assert item["real_total_cost"] == expected[id]
    assert {line["step_id"]: line.get("total_cost") for line in lines(tmp_path / "local")} == expected


# --- a refreshed table --------------------------------------------------------------------------------------


@pytest.mark.parametrize("exporter", ["thread", pytest.param("process", marks=pytest.mark.slow)])
def test_a_running_exporter_takes_a_refreshed_table_up(
    configure: Callable[..., None],
    ring_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    exporter: str,
) -> None:
    """Within five seconds, like the host; old records stay as they are; a damaged table changes nothing."""
    out = tmp_path / "steps.jsonl"
    if exporter == "thread":
        monkeypatch.setattr(steps, "_CHECK_EVERY", 0.05)
    configure(to=f"jsonl:{out}", exporter=exporter)

    def logs() -> str:
        return caplog.text if exporter == "thread" else exporter_logs(ring_base)

    def last() -> dict[str, Any]:
        made = step().model("gpt-4o").tokens(1)
        made.end()
        assert picostep.flush(20)
        return next(line for line in lines(out) if line["step_id"] == made.step_id)

    builtin = prices.builtin().id
    assert (last()["price_table"], last()["total_cost"]) == (builtin, Decimal("0.0000025"))
    data = table_with("gpt-4o", 7_000_000)
    new = prices.PriceTable(data).id
    swap(data)
    wait_until(lambda: last()["price_table"] == new, 10)
    assert last()["total_cost"] == Decimal("0.000007")
    wait_until(lambda: step().model("gpt-4o").tokens(1).total_cost == Decimal("0.000007"), 10)

    swap(data[:-1])
    wait_until(lambda: last() and "price table not used" in logs(), 10)
    assert last()["price_table"] == new
    assert logs().count("price table not used") == 1
    tables = [line["price_table"] for line in lines(out)]
    assert tables == sorted(tables, key=[builtin, new].index)


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "other", "directory"])
def test_a_damaged_refreshed_table_is_not_used(
    configure: object, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """Logged and counted once, however often prices are looked up."""
    monkeypatch.setattr(steps, "_CHECK_EVERY", 0)
    data = table_with("gpt-4o", 7_000_000)
    if damage == "directory":
        refreshed().mkdir()
    else:
        flipped = data[:2000] + bytes([data[2000] ^ 1]) + data[2001:]
        swap({"flipped": flipped, "short": data[:-8], "empty": b"", "other": b"x" * 100_000}[damage])

    for _ in range(3):
        assert step().model("gpt-4o").tokens(1).total_cost == Decimal("0.0000025")
        assert steps.current() is prices.builtin()
        assert picostep.stats()["price_table_errors"] == 1
    messages = [entry.getMessage() for entry in caplog.records if "price table" in entry.getMessage()]
    assert len(messages) == 1
    assert str(refreshed()) in messages[0]

    if damage != "directory":
        swap(data)
        assert step().model("gpt-4o").tokens(1).total_cost == Decimal("0.000007")
        refreshed().unlink()
        assert step().model("gpt-4o").tokens(1).total_cost == Decimal("0.0000025")
        assert picostep.stats()["price_table_errors"] == 1


def test_a_host_that_reads_no_cost_counts_a_damaged_table(ring_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "steps.jsonl"
    swap(b"PICOCOST, but not really")
    code = """
import sys, picostep
picostep.send_step("r", prompt="p", response="r", model_used="gpt-4o", prompt_uncached=1)
assert picostep.flush(20)
assert "picostep.prices" not in sys.modules
print(picostep.stats()["price_table_errors"])
"""
    env = {"PICOSTEP_DIR": str(ring_base), "PICOSTEP_TO": f"jsonl:{out}"}

    assert run_python(code, env).stdout.split() == ["1"]
    assert [line["total_cost"] for line in lines(out)] == [Decimal("0.0000025")]
    assert exporter_logs(ring_base).count("price table not used") == 1


def test_records_leave_without_any_table(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, configure: object
) -> None:
    """The built-in table was damaged after it was installed: reading a cost says so, exporting goes on."""

    def damaged() -> None:
        raise prices.PriceTableError("table.bin: damaged")

    monkeypatch.setattr(steps, "builtin", damaged)
    pricer = Pricer(Destination(("stdout",)))
    record = {"kind": "step", "start_ns": 0, "model_used": "gpt-4o", "completion_tokens": 1}
    for _ in range(3):
        copy = dict(record)
        pricer.price([copy])
        assert copy == record

    with pytest.raises(prices.PriceTableError, match=r"table\.bin: damaged"):
        _ = step().model("gpt-4o").tokens(1).total_cost
    assert step().cost(1).total_cost == 1
    assert [entry.getMessage() for entry in caplog.records] == [
        "no price table, so steps have no cost: table.bin: damaged"
    ]
    assert picostep.stats()["price_table_errors"] == 0


def test_numbers_of_a_damaged_ring() -> None:
    bad = [
        {"completion_tokens": -1},
        {"completion_tokens": 1, "reasoning_tokens": 2},
        {"real_total_cost": Decimal("1e400")},
        {"real_total_cost": Decimal("1e999999")},
    ]
    records = [{"kind": "step", "start_ns": 0, "model_used": "gpt-4o", **fields} for fields in bad]
    Pricer(Destination(("stdout",))).price(records)

    assert [(record["cost_status"], "cost_pico" in record) for record in records] == [
        ("invalid_usage", False)
    ] * 4


# --- wrong arguments ----------------------------------------------------------------------------------------

COUNTS = ("prompt_uncached", "prompt_cached", "completion", "cache_write", "cache_write_1h", "reasoning")


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (-1, ArgumentError),
        (2**53 + 1, ArgumentError),
        (10**30, ArgumentError),
        (True, ArgumentTypeError),
        (1.0, ArgumentTypeError),
        (float("nan"), ArgumentTypeError),
        (float("inf"), ArgumentTypeError),
        (Decimal(1), ArgumentTypeError),
        ("1", ArgumentTypeError),
    ],
)
def test_a_wrong_count_leaves_the_counts_as_they_were(
    configure: object, name: str, bad: object, error: type[Exception]
) -> None:
    made = step().model("claude-sonnet-4-5")
    made.tokens(7, 1000, 9, cache_write=100, cache_write_1h=40, reasoning=4)

    with pytest.raises(error, match=rf"^Step\.tokens\(\): {name} must be"):
        made.tokens(**{**dict.fromkeys(COUNTS, 50), name: bad})

    assert made.total_cost == Decimal("0.000921")


@pytest.mark.parametrize(
    ("whole", "part"), [("completion", "reasoning"), ("cache_write", "cache_write_1h")]
)  # fmt: skip
def test_a_part_larger_than_its_whole(configure: Callable[..., None], whole: str, part: str) -> None:
    """Whichever comes first, and in one call."""
    configure(prices={"m": {"input": 1, "cache_write_1h": 10, "output": 1, "reasoning": 10}})
    message = rf"^Step\.tokens\(\): {part} \(6\) is a part of {whole} \(5\), not more$"
    orders: list[list[dict[str, int]]] = [
        [{}, {whole: 5, part: 6}],
        [{whole: 5, part: 1}, {part: 6}],
        [{part: 6, whole: 20}, {whole: 5}],
        [{part: 6}, {whole: 5}],
        [{whole: 5}, {part: 6}],
    ]
    for before, wrong in orders:
        made = step().model("m").tokens(prompt_uncached=1, **before)
        cost, status = made.total_cost, made.cost_status
        with pytest.raises(ArgumentError, match=message):
            made.tokens(prompt_uncached=1000, **wrong)
        assert (made.total_cost, made.cost_status) == (cost, status)

    made = step().model("m").tokens(**{part: 6}).tokens(**{whole: 6})
    assert made.total_cost == Decimal("0.00006")


def test_a_part_larger_than_its_whole_is_logged(configure: Callable[..., None]) -> None:
    configure(misuse="log", prices=OWN)
    made = step().model("ours").tokens(5, 0, 7).tokens(1000, reasoning=8)

    assert made.total_cost == Decimal("0.000019")
    assert picostep.stats()["misuse"]["ArgumentError"] >= 1


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (-1, ArgumentError),
        (-0.5, ArgumentError),
        (float("nan"), ArgumentError),
        (float("inf"), ArgumentError),
        (Decimal("NaN"), ArgumentError),
        (Decimal("-1"), ArgumentError),
        (Decimal("Infinity"), ArgumentError),
        (10**300, ArgumentError),
        (True, ArgumentTypeError),
        ("1", ArgumentTypeError),
    ],
)
def test_a_wrong_cost_leaves_the_cost_as_it_was(configure: object, bad: Any, error: type[Exception]) -> None:
    made = step().cost(Decimal("0.25"))

    with pytest.raises(error, match=r"^Step\.cost\(\): real_total must be"):
        made.cost(bad)

    assert (made.total_cost, made.cost_status) == (Decimal("0.25"), "user")


@pytest.mark.parametrize("name", ["provider", "service_tier"])
def test_a_wrong_name_leaves_all_as_it_was(configure: object, name: str) -> None:
    made = step().model("gpt-4o").tokens(1000)

    with pytest.raises(ArgumentTypeError, match=rf"^Step\.model\(\): {name} must be str"):
        made.model("gpt-4o-mini", **{name: 5})  # type: ignore[arg-type]

    assert made.total_cost == Decimal("0.0025")
