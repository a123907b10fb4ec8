"""
Two references for costs, and random calls to hold picostep against.

The first is genai-prices itself, with enough digits that it does not round. The second uses the data of
genai-prices and none of its code: which price holds, which tier and which fallback is decided here a second
time, in fractions. Both need genai-prices, so this module is imported only where it is installed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Context, localcontext
from fractions import Fraction
from typing import Any

from genai_prices import Usage, types
from genai_prices.data_snapshot import get_snapshot

from picostep.prices import Overrides, PriceTable, builtin, price

CAMPAIGN = os.environ.get("PICOSTEP_CAMPAIGN") == "1"
SEED = int(os.environ.get("PICOSTEP_SEED") or random.SystemRandom().getrandbits(32))

SNAPSHOT = get_snapshot()
PROVIDERS = {provider.id: provider for provider in SNAPSHOT.providers}
TIERS = (
    "default",
    "batch",
    "fast",
    "flex",
    "priority",
    "route=mistral/eu",
    "search_type=fast",
    "no-such-tier",
)
STANDARD = (None, "standard", "default", "on_demand")
TOKEN_KEYS = (
    "input_mtok",
    "cache_read_mtok",
    "cache_write_mtok",
    "cache_write_1h_mtok",
    "output_mtok",
    "output_reasoning_mtok",
)

# What others get wrong: tiers, dates, times of day, caches, fees, variants, free models, names.
TRICKY = [
    ("openai", "gpt-5.4"),
    ("openai", "gpt-5.6-sol"),
    ("openai", "gpt-5.6-luna"),
    ("openai", "gpt-6-sol"),
    ("openai", "gpt-6-astra"),
    ("openai", "gpt-4o"),
    ("openai", "gpt-5"),
    ("openai", "o3"),
    ("openai", "o1-pro"),
    ("openai", "gpt-4o-20240806"),
    ("openai", "ft:gpt-4o-2024-08-06:org::abc"),
    ("openai", "text-embedding-3-small"),
    ("openai", "whisper-1"),
    ("aws", "global.openai.gpt-5.6-luna"),
    ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ("aws", "global.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ("google", "gemini-2.5-pro"),
    ("google", "gemini-1.5-pro"),
    ("google", "gemini-1.5-flash"),
    ("google", "gemini-4-argon"),
    ("google", "gemini-3.8-flash"),
    ("google", "claude-sonnet-4@20250514"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-opus-4-6"),
    ("anthropic", "claude-haiku-5-5"),
    ("anthropic", "claude-fable-5-2"),
    ("x-ai", "grok-4.3"),
    ("x-ai", "grok-4.5"),
    ("x-ai", "grok-4.7"),
    ("cursor", "grok-4.7"),
    ("minimax", "minimax-m3"),
    ("novita", "minimax/minimax-m3"),
    ("openrouter", "qwen/qwen3-coder-flash"),
    ("openrouter", "qwen/qwen3.7-flash"),
    ("openrouter", "google/gemini-2.5-pro"),
    ("openrouter", "google/gemini-2.5-flash"),
    ("openrouter", "x-ai/grok-4-fast"),
    ("openrouter", "deepseek/deepseek-v4-pro"),
    ("openrouter", "~deepseek/deepseek-pro-latest"),
    ("openrouter", "mistralai/mistral-large-4-0"),
    ("quicksilverpro", "claude-haiku-5-5"),
    ("huggingface_together", "meta-llama/Llama-3.3-70B-Instruct"),
    ("deepseek", "deepseek-chat"),
    ("deepseek", "deepseek-reasoner"),
    ("deepseek", "deepseek-flash"),
    ("deepseek", "deepseek-v4-flash"),
    ("deepseek", "deepseek-v4-pro"),
    ("mistral", "mistral-large-4"),
    ("mistral", "mistral-ocr-latest"),
    ("moonshotai", "kimi-k2"),
    ("groq", "openai/gpt-oss-120b"),
    ("together", "openai/gpt-oss-120b"),
    ("perplexity", "sonar"),
    ("perplexity", "sonar-pro"),
    ("perplexity", "sonar-deep-research"),
    ("github-copilot", "gpt-4o"),
    ("cerebras", "qwen-3-coder-480b"),
    ("azure", "gpt-4o"),
    ("azure", "ada"),
    ("azure", "claude-opus-4-6"),
]


@dataclass(frozen=True)
class Call:
    """One call, with the arguments of `picostep.prices.price()`."""

    provider: str
    model: str
    moment: datetime
    service_tier: str | None
    uncached: int
    cached: int
    write: int
    write_1h: int
    completion: int
    reasoning: int

    @property
    def start_ns(self) -> int:
        since = self.moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
        return ((since.days * 86400 + since.seconds) * 10**6 + since.microseconds) * 1000

    @property
    def total_input(self) -> int:
        return self.uncached + self.cached + self.write


@dataclass
class Report:
    """What a comparison found."""

    calls: int = 0
    quantised: int = 0
    unsupported: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.calls} calls, {self.quantised} on rounded rates, {self.statuses}"


# --- random calls -----------------------------------------------------------------------------------------


def literals(clause: Any) -> Iterator[str]:
    """Yield the texts in a rule, except regular expressions."""
    for joined in ("or_", "and_"):
        for part in getattr(clause, joined, ()):
            yield from literals(part)
    for kind in ("equals", "starts_with", "ends_with", "contains"):
        if hasattr(clause, kind):
            yield getattr(clause, kind)


def find(model: str, provider: str | None) -> tuple[Any, Any] | None:
    """Return the provider and the model that genai-prices finds."""
    try:
        return SNAPSHOT.find_provider_model(model, None, provider, None)
    except LookupError:
        return None


def price_sets(model: Any) -> list[Any]:
    """Return all prices a model ever has, its variants' included."""
    sets = [model.prices] if isinstance(model.prices, types.ModelPrice) else [c.prices for c in model.prices]
    return sets + [variant.prices for variant in model.price_variants or ()]


def starts(model: Any) -> list[int]:
    """Return the thresholds of a model's tiers."""
    return sorted(
        {
            tier.start
            for prices in price_sets(model)
            for value in vars(prices).values()
            for tier in getattr(value, "tiers", ())
        }
    )


def moments(model: Any) -> list[datetime]:
    """Return the moments at which a price of the model may change: dates, and times of one day."""
    constraints = [c.constraint for c in model.prices] if isinstance(model.prices, list) else []
    constraints += [variant.constraint for variant in model.price_variants or ()]
    found = set()
    for constraint in constraints:
        if isinstance(constraint, types.StartDateConstraint):
            day = constraint.start_date
            found.add(datetime(day.year, day.month, day.day, tzinfo=timezone.utc))
        elif constraint is not None:
            for clock in (constraint.start_time, constraint.end_time):
                found.add(datetime(2026, 11, 5, clock.hour, clock.minute, tzinfo=timezone.utc))
    return sorted(found)


def split(rng: random.Random, total: int) -> tuple[int, int, int]:
    """Split a prompt into uncached, cached and written tokens."""
    kind = rng.randrange(5)
    if kind == 0:
        return total, 0, 0
    if kind == 1:
        return 0, total, 0
    cached = rng.randint(0, total)
    write = rng.randint(0, total - cached) if kind > 2 else 0
    return total - cached - write, cached, write


def amount(rng: random.Random, thresholds: list[int]) -> int:
    """Return a number of tokens: small, usual, large, or at a threshold."""
    kind = rng.randrange(8 if thresholds else 6)
    if kind >= 6:
        return max(0, rng.choice(thresholds) + rng.choice((-1, 0, 1)))
    if kind == 0:
        return rng.choice((0, 1, 2))
    return rng.randint(0, (5_000, 400_000, 2_000_000, 2**31 - 1, 2**53)[kind - 1])


def call(rng: random.Random, provider: str, name: str, model: Any) -> Call:
    """Make a call of a model."""
    total = amount(rng, starts(model))
    uncached, cached, write = split(rng, total)
    completion = amount(rng, [])
    changes = moments(model)
    if changes and rng.random() < 0.5:
        moment = rng.choice(changes) + timedelta(microseconds=rng.choice((-(10**6), -1, 0, 1, 10**6)))
    else:
        moment = datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(
            seconds=rng.randrange(1100 * 86400), microseconds=rng.randrange(10**6)
        )
    zone = timezone(timedelta(minutes=rng.choice((0, 0, -480, 330, 840))))
    known = [variant_name(variant.when) for variant in model.price_variants or ()]
    return Call(
        provider,
        name,
        moment.astimezone(zone),
        rng.choice((None, *(known or STANDARD), rng.choice(TIERS))),
        uncached,
        cached,
        write,
        rng.randint(0, write) if rng.random() < 0.5 else rng.choice((0, write)),
        completion,
        rng.randint(0, completion) if rng.random() < 0.5 else 0,
    )


def calls(rng: random.Random, count: int) -> Iterator[tuple[Call, Any, Any]]:
    """Yield random calls, half of them of the tricky models, with what genai-prices finds for them."""
    made = 0
    while made < count:
        if rng.random() < 0.5:
            provider, name = rng.choice(TRICKY)
        else:
            provider = rng.choice(list(PROVIDERS))  # first the provider: one has 40 % of all models
            listed = PROVIDERS[rng.choice([provider, *(PROVIDERS[provider].fallback_model_providers or ())])]
            model = rng.choice(listed.models)
            name = rng.choice([model.id, *literals(model.match)])
        found = find(name, provider)
        if found is None:
            continue  # an id that is only a label
        made += 1
        yield call(rng, provider, name, found[1]), *found


# --- the references ---------------------------------------------------------------------------------------


def variant_name(when: Mapping[str, str]) -> str:
    """Return the service tier by which picostep knows a variant."""
    ((key, value),) = when.items()
    return value if key in ("service_tier", "processing", "speed") else f"{key}={value}"


def context(service_tier: str | None) -> dict[str, str] | None:
    """Return what to tell genai-prices about a service tier."""
    if service_tier is None:
        return None
    if "=" in service_tier:
        return dict([service_tier.split("=", 1)])
    return dict.fromkeys(("service_tier", "processing", "speed"), service_tier)


def upstream(asked: Call) -> Fraction:
    """Return the cost in pico-dollars that genai-prices calculates, through its public function."""
    usage = Usage(
        input_tokens=asked.total_input,
        cache_read_tokens=asked.cached,
        cache_write_tokens=asked.write,
        cache_write_1h_tokens=asked.write_1h,
        output_tokens=asked.completion,
        output_reasoning_tokens=asked.reasoning,
    )
    with localcontext(Context(prec=60)):
        found = SNAPSHOT.calc(
            usage, asked.model, asked.provider, None, asked.moment, context(asked.service_tier)
        )
    return Fraction(found.total_price) * 10**12


def holds(constraint: Any, moment: datetime) -> bool:
    """Decide a condition in time."""
    if constraint is None:
        return True
    moment = moment.astimezone(timezone.utc)
    if hasattr(constraint, "start_date"):
        start = constraint.start_date
        return (moment.year, moment.month, moment.day) >= (start.year, start.month, start.day)

    def of_day(clock: Any) -> timedelta:
        return timedelta(
            hours=clock.hour, minutes=clock.minute, seconds=clock.second, microseconds=clock.microsecond
        ) - (clock.utcoffset() or timedelta())

    day = timedelta(days=1)
    now, start, end = (
        of_day(moment.timetz()) % day,
        of_day(constraint.start_time) % day,
        of_day(constraint.end_time) % day,
    )
    return start <= now < end if start <= end else not end <= now < start


def prices_at(
    model: Any, own: bool, moment: datetime, service_tier: str | None
) -> tuple[dict[str, Any], bool]:
    """Return the prices that hold, by key, and whether a variant was among them."""
    if isinstance(model.prices, list):
        chosen = model.prices[0].prices
        for conditional in model.prices:
            if holds(conditional.constraint, moment):
                chosen = conditional.prices
    else:
        chosen = model.prices
    prices = {key: value for key, value in vars(chosen).items() if value is not None}
    asked = context(service_tier)
    selected = []
    for variant in (model.price_variants or ()) if own and asked else ():
        if holds(variant.constraint, moment) and set(variant.when.items()) <= set(asked.items()):
            selected.append(variant)
    for variant in reversed(selected):
        prices |= {key: value for key, value in vars(variant.prices).items() if value is not None}
    return prices, bool(selected)


def by_hand(prices: Mapping[str, Any], asked: Call, rounded: bool) -> Fraction:
    """Calculate a cost in pico-dollars from prices in USD for a million tokens."""

    def rate(*keys: str) -> Fraction:
        value = next((prices[key] for key in keys if key in prices), None)
        if value is None:
            return Fraction(0)
        if hasattr(value, "tiers"):
            passed = [tier for tier in value.tiers if asked.total_input > tier.start]
            value = max(passed, key=lambda tier: tier.start).price if passed else value.base
        pico = Fraction(value) * 10**6
        return Fraction(round(pico)) if rounded else pico

    return (
        asked.uncached * rate("input_mtok")
        + asked.cached * rate("cache_read_mtok", "input_mtok")
        + (asked.write - asked.write_1h) * rate("cache_write_mtok", "input_mtok")
        + asked.write_1h * rate("cache_write_1h_mtok", "cache_write_mtok", "input_mtok")
        + (asked.completion - asked.reasoning) * rate("output_mtok")
        + asked.reasoning * rate("output_reasoning_mtok", "output_mtok")
        + Fraction(prices.get("requests_kcount", 0)) * 10**9
    )


def expected_status(prices: Mapping[str, Any], varied: bool, asked: Call) -> str:
    """Say what picostep should say about a price."""
    if not prices:
        return "free"
    if not any(key in prices for key in (*TOKEN_KEYS, "requests_kcount")):
        return "unsupported"
    if asked.completion and "output_mtok" not in prices:
        return "no_output_price"
    if not varied and asked.service_tier not in STANDARD:
        return "variant_fallback"
    return "priced"


# --- the comparison ---------------------------------------------------------------------------------------


def ours(asked: Call, table: PriceTable, overrides: Overrides | None = None) -> Any:
    return price(
        asked.model,
        provider=asked.provider,
        service_tier=asked.service_tier,
        start_ns=asked.start_ns,
        prompt_uncached=asked.uncached,
        prompt_cached=asked.cached,
        cache_write=asked.write,
        cache_write_1h=asked.write_1h,
        completion=asked.completion,
        reasoning=asked.reasoning,
        overrides=overrides,
        table=table,
    )


def check(asked: Call, provider: Any, model: Any, table: PriceTable, report: Report) -> None:
    """Compare one call with both references."""
    own = any(model is listed for listed in provider.models)
    prices, varied = prices_at(model, own, asked.moment, asked.service_tier)
    cost = ours(asked, table)
    theirs = upstream(asked)
    report.calls += 1
    report.statuses[cost.status] = report.statuses.get(cost.status, 0) + 1
    problems = []
    if cost.status != expected_status(prices, varied, asked):
        problems.append(f"status {expected_status(prices, varied, asked)} expected")
    if cost.status == "unsupported":
        report.unsupported += 1
        if cost.pico is not None or theirs != 0:
            problems.append("unsupported, but it has a price")
    elif by_hand(prices, asked, rounded=False) == by_hand(prices, asked, rounded=True):
        if cost.pico != theirs:
            problems.append(f"genai-prices: {theirs}")
        if cost.pico != by_hand(prices, asked, rounded=False):
            problems.append(f"by hand: {by_hand(prices, asked, rounded=False)}")
    else:
        report.quantised += 1
        tokens = asked.total_input + asked.completion
        if abs(cost.pico - theirs) * 2 > tokens:
            problems.append(f"more than half a pico-dollar a token from genai-prices: {theirs}")
        if cost.pico != by_hand(prices, asked, rounded=True):
            problems.append(f"by hand, rates rounded: {by_hand(prices, asked, rounded=True)}")
    if problems:
        report.failures.append(f"{asked}: {cost.pico} {cost.status}; {'; '.join(problems)}")


def compare(seed: int, count: int, table: PriceTable | None = None) -> Report:
    """Compare random calls; the report names those that differ."""
    report = Report()
    for asked, provider, model in calls(random.Random(seed), count):
        check(asked, provider, model, table or builtin(), report)
    return report
