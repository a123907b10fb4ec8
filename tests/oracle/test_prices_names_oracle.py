"""Names of models: what genai-prices finds, the spellings of docs/reference/prices.md, and nothing else."""

from __future__ import annotations

import random
import string
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("genai_prices", reason="genai-prices needs Python 3.11")

from genai_prices.data_snapshot import find_provider_by_id

from picostep.prices import builtin
from picostep.prices.resolve import ALIASES
from prices_oracle import CAMPAIGN, PROVIDERS, SEED, SNAPSHOT, find, literals

UNKNOWN_PROVIDER = -2


def found(model: str, provider: str | None = None) -> tuple[str, str, str] | int:
    index = builtin().find(model, provider)
    return builtin().name(index) if index >= 0 else index


def mutations(rng: random.Random, name: str) -> Iterator[str]:
    """Yield a name with one letter left out, added, and changed."""
    if name:
        at = rng.randrange(len(name))
        letter = rng.choice(string.ascii_letters + string.digits + "-./:@_ ")
        yield name[:at] + name[at + 1 :]
        yield name[:at] + letter + name[at:]
        yield name[:at] + letter + name[at + 1 :]


def spellings(rng: random.Random, provider: Any, name: str) -> Iterator[tuple[str, str | None]]:
    """Yield a name of a provider's model in many forms, with and without the provider."""
    forms = [
        name,
        name.upper(),
        f"{name}-20250131",
        f"{name}-2025-01-31",
        f"{name}-20250132",
        f"{name}:free",
        f"{name}@20250131",
        f"us.{name}",
        f"models/{name}",
        *mutations(rng, name),
    ]
    for form in forms:
        yield form, provider.id
        yield form, None
        yield f"{provider.id}/{form}", None
        yield f"{provider.id}/{form}", provider.id
        yield f"{provider.id}/{form}", "litellm"
        yield form, rng.choice(list(ALIASES))
        yield f"{rng.choice(list(ALIASES))}/{form}", None


def upstream(model: str, provider: str | None) -> tuple[str, str] | None:
    result = find(model, provider)
    return None if result is None else (result[0].id, result[1].id)


def documented(model: str, provider: str | None) -> Iterator[tuple[str, str]]:
    """Yield each `(model, provider)` as which docs/reference/prices.md says a name may be read."""
    model = model.lower()
    if provider is not None and provider.lower() != "litellm":
        served_by = ALIASES.get(provider, provider)
        yield from at(model, served_by)
        return
    head, slash, rest = model.partition("/")
    named = head if head in PROVIDERS else ALIASES.get(head)
    if slash and named is not None:
        yield from at(rest, named)
    for shape, owner in (("ft:", "openai"), ("models/", "google"), ("publishers/", "google")):
        if model.startswith(shape):
            yield from at(model, owner)
    if "." in model:
        yield from at(model, "aws")
    yield from at(model, "anthropic")
    yield from at(model, "google")


def at(model: str, provider: str) -> Iterator[tuple[str, str]]:
    """Yield the spellings of a name at one provider."""
    names = [model]
    head, slash, rest = model.partition("/")
    if slash and (head if head in PROVIDERS else ALIASES.get(head)) == provider:
        names.append(rest)
    for name in list(names):
        names += [name.removeprefix("models/")] if provider == "google" else []
        names += [name.rpartition("/")[2]] if provider == "aws" else []
        names += [name.removeprefix("global/")] if provider == "azure" else []
    for name in list(names):
        base, sign, version = name.rpartition("@")
        if sign and version.isdigit() and provider in ("google", "anthropic"):
            names.append(f"{base}-{version}")
    for name in names:
        yield name, provider


def is_free(index: int) -> bool:
    return all(slot[3] & 1 for slot in builtin().tracks(index)["standard"])


def check_name(model: str, provider: str | None) -> str | None:
    """Say what is wrong with the resolution of a name; None if it is right."""
    index = builtin().find(model, provider)
    actual = builtin().name(index) if index >= 0 else None
    theirs = upstream(model, provider)
    head, slash, _ = model.lower().partition("/")
    prefixed = provider is None and bool(slash) and (head in ALIASES or head in PROVIDERS)
    if theirs is not None and not prefixed:
        ok = actual is not None and (actual[2], actual[1]) == (theirs_via(model, provider), theirs[1])
        return None if ok and actual is not None and actual[0] == theirs[0] else f"{theirs} expected"
    if actual is None:
        return None if theirs is None else f"{theirs} expected"
    if (actual[0], actual[1]) == theirs:
        return None
    if provider is None and is_free(index):
        return "a name alone must not be free"
    if any(upstream(*candidate) == actual[:2] for candidate in documented(model, provider)):
        return None
    return "not a documented spelling"


def theirs_via(model: str, provider: str | None) -> str:
    """Return the provider in whose list genai-prices found a model."""
    result = find(model, provider)
    assert result is not None
    if any(result[1] is listed for listed in result[0].models):
        return str(result[0].id)
    return next(
        str(entry.id) for entry in SNAPSHOT.providers if any(result[1] is listed for listed in entry.models)
    )


def check_providers(rng: random.Random, share: float) -> tuple[int, list[str]]:
    failures = []
    count = 0
    for provider in SNAPSHOT.providers:
        for model in provider.models:
            for name in dict.fromkeys([model.id, *literals(model.match)]):
                for form, served_by in spellings(rng, provider, name):
                    if rng.random() < share:
                        count += 1
                        problem = check_name(form, served_by)
                        if problem:
                            failures.append(f"{form!r} at {served_by!r}: {found(form, served_by)}: {problem}")
    return count, failures


@pytest.mark.slow
def test_names_resolve_as_in_genai_prices() -> None:
    rng = random.Random(SEED)
    count, failures = check_providers(rng, 1.0 if CAMPAIGN else 0.01)
    print(f"seed {SEED}: {count} names")
    assert not failures, f"PICOSTEP_SEED={SEED}: {len(failures)} of {count}; {failures[:10]}"


def test_providers_resolve_as_in_genai_prices() -> None:
    """By any text: ids, what their rules contain, aliases, and mutations of these."""
    rng = random.Random(SEED)
    names = [*ALIASES, *PROVIDERS, "azure.ai.openai", "gcp.vertex_ai", "aws.bedrock", "az.ai.openai"]
    names += [mutated for name in names for mutated in mutations(rng, name)]
    for name in names:
        for form in (name, name.upper(), f" {name} "):
            theirs = find_provider_by_id(SNAPSHOT.providers, form)
            expected = theirs.id if theirs is not None else ALIASES.get(form.lower().strip())
            if expected is None:
                assert builtin().find("gpt-4o", form) == UNKNOWN_PROVIDER, form
                continue
            model = PROVIDERS[expected].models[-1]
            if find(model.id, expected) is not None and form.lower() != "litellm":
                assert found(model.id, form) == found(model.id, expected), form


def test_bare_names_belong_to_their_maker() -> None:
    """No name without a provider leads to a provider that does not claim such names."""
    makers = {provider.id for provider in SNAPSHOT.providers if provider.model_match is not None}
    for provider in SNAPSHOT.providers:
        for model in provider.models:
            for name in [model.id, *literals(model.match)]:
                index = builtin().find(name)
                if index < 0:
                    continue
                owner = builtin().name(index)[0]
                head = name.lower().partition("/")[0]
                assert owner in makers or owner == "aws" or ALIASES.get(head, head) == owner, name
                if is_free(index):
                    assert upstream(name, None) is not None, name
