"""Names of models by example; test_prices_names_oracle.py compares all of them with genai-prices."""

from __future__ import annotations

import sys

import pytest

from picostep.prices import builtin

UNKNOWN_MODEL, UNKNOWN_PROVIDER = -1, -2


def found(model: str, provider: str | None = None) -> tuple[str, str, str] | int:
    """Return what the built-in table finds: (provider, model, via), or the number that says why nothing."""
    index = builtin().find(model, provider)
    return builtin().name(index) if index >= 0 else index


# --- by example -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "provider", "expected"),
    [
        # upstream's own
        ("gpt-4o", None, ("openai", "gpt-4o")),
        ("GPT-4o", None, ("openai", "gpt-4o")),
        ("gpt-4o-2024-08-06", None, ("openai", "gpt-4o")),
        ("gpt-4o-20240806", None, ("openai", "gpt-4o")),
        ("claude-sonnet-4-5-20250929", None, ("anthropic", "claude-sonnet-4-5")),
        ("gemini-2.5-pro", None, ("google", "gemini-2.5-pro")),
        ("grok-4", "xai", ("x-ai", "grok-4-0709")),
        ("gpt-4o", "azure", ("azure", "gpt-4o")),
        ("o1", "azure", ("azure", "o1")),
        ("claude-sonnet-4@20250514", "vertex_ai", ("google", "claude-4-sonnet")),
        ("gpt-4o", "github_copilot", ("github-copilot", "gpt-4o")),
        ("openai/gpt-4o", "litellm", ("openai", "gpt-4o")),
        ("gpt-4o-mini-2024-07-18.ft-0123456789", "azure", ("azure", "gpt-4o-mini-2024-07-18.ft-")),
        # provider/model
        ("openai/gpt-4o", None, ("openai", "gpt-4o")),
        ("openai/gpt-4o", "openai", ("openai", "gpt-4o")),
        ("azure/gpt-4o", None, ("azure", "gpt-4o")),
        ("azure/global/gpt-4o", None, ("azure", "gpt-4o")),
        ("azure_ai/gpt-4o", None, ("azure", "gpt-4o")),
        ("gpt-4o", "azure_ai", ("azure", "gpt-4o")),
        ("anthropic/claude-sonnet-4-5", None, ("anthropic", "claude-sonnet-4-5")),
        ("gemini/gemini-2.5-pro", None, ("google", "gemini-2.5-pro")),
        ("vertex_ai/gemini-2.5-pro", None, ("google", "gemini-2.5-pro")),
        ("vertex_ai/claude-sonnet-4@20250514", None, ("google", "claude-4-sonnet")),
        ("xai/grok-4", None, ("x-ai", "grok-4-0709")),
        ("deepseek/deepseek-chat", None, ("deepseek", "deepseek-chat")),
        ("openrouter/google/gemini-2.5-pro", None, ("openrouter", "google/gemini-2.5-pro")),
        ("google/gemini-2.5-pro", "openrouter", ("openrouter", "google/gemini-2.5-pro")),
        ("groq/openai/gpt-oss-120b", None, ("groq", "openai/gpt-oss-120b")),
        ("openai/gpt-oss-120b", "groq", ("groq", "openai/gpt-oss-120b")),
        ("fireworks_ai/accounts/fireworks/models/kimi-k2p5", None, ("fireworks", "kimi-k2p5")),
        # Bedrock
        (
            "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            None,
            ("aws", "regional.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ),
        (
            "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
            None,
            ("aws", "global.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ),
        (
            "bedrock/us.anthropic.claude-sonnet-4-5-20250929-v1:0",
            None,
            ("aws", "regional.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ),
        (
            "bedrock/converse/eu-west-1/anthropic.claude-sonnet-4-5-20250929-v1:0",
            None,
            ("aws", "regional.anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ),
        (
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/global.anthropic.claude-opus-4-6-v1:0",
            None,
            ("aws", "global.anthropic.claude-opus-4-6-v1:0"),
        ),
        (
            "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-opus-4-6-v1",
            "bedrock",
            ("aws", "regional.anthropic.claude-opus-4-6-v1:0"),
        ),
        ("eu.amazon.nova-lite-v1:0", None, ("aws", "amazon.nova-lite-v1:0")),
        ("deepseek.r1-v1:0", None, ("aws", "deepseek.r1-v1:0")),
        # Gemini API and Vertex AI
        ("models/gemini-2.5-pro", None, ("google", "gemini-2.5-pro")),
        ("publishers/google/models/gemini-2.5-pro", "google", ("google", "gemini-2.5-pro")),
        (
            "projects/p/locations/us-east5/publishers/anthropic/models/claude-opus-4-6@20260205",
            None,
            ("google", "claude-opus-4-6"),
        ),
        ("claude-fable-5@20260901", None, ("anthropic", "claude-fable-5")),
        # fine-tunes have prices of their own
        ("ft:gpt-4o-2024-08-06:org::abc", None, ("openai", "ft:gpt-4o")),
        ("ft:gpt-4o-mini-2024-07-18:org::abc", "openai", ("openai", "ft:gpt-4o-mini")),
        ("openai/ft:gpt-3.5-turbo-0125:org::abc", None, ("openai", "ft:gpt-3.5-turbo-")),
        # unknown is unknown
        ("gpt-9", None, UNKNOWN_MODEL),
        ("gpt-4o-mini-foo", None, UNKNOWN_MODEL),
        ("gpt-4o ", None, UNKNOWN_MODEL),
        ("", None, UNKNOWN_MODEL),
        ("/", None, UNKNOWN_MODEL),
        ("llama3.2", None, UNKNOWN_MODEL),
        ("azure/my-deployment", None, UNKNOWN_MODEL),
        ("azure/eu/gpt-4o", None, UNKNOWN_MODEL),
        ("bedrock/us-gov-west-1/anthropic.claude-opus-4-6-v1", None, UNKNOWN_MODEL),
        ("bedrock/us-east-1/1-month-commitment/amazon.titan-text", None, UNKNOWN_MODEL),
        ("arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc", None, UNKNOWN_MODEL),
        ("mistralai/Mistral-7B-Instruct-v0.2", None, UNKNOWN_MODEL),
        ("gpt-4o", "ollama", UNKNOWN_PROVIDER),
        ("gpt-4o", "vllm", UNKNOWN_PROVIDER),
        ("gpt-4o", "", UNKNOWN_PROVIDER),
        # a name alone is never free because somebody serves it for nothing
        ("github-copilot/gpt-4o", None, UNKNOWN_MODEL),
        ("google/gemma-3-27b-it", None, UNKNOWN_MODEL),
        ("models/gemma-3-27b-it", None, UNKNOWN_MODEL),
    ],
)
def test_examples(model: str, provider: str | None, expected: tuple[str, str] | int) -> None:
    actual = found(model, provider)
    assert (actual if isinstance(actual, int) else actual[:2]) == expected


def test_a_reseller_says_whose_price_it_is() -> None:
    assert found("gpt-4o", "azure") == ("azure", "gpt-4o", "openai")
    assert found("claude-2.1", "google") == ("google", "claude-2", "anthropic")
    assert found("gpt-4o", "openai") == ("openai", "gpt-4o", "openai")


@pytest.mark.parametrize("name", ["\x00", "\ud800", "gpt-4o\n", "İ", "claude" * 100_000, "gpt-4o-20241399"])
def test_odd_names_are_unknown(name: str) -> None:
    assert found(name) == UNKNOWN_MODEL
    assert found("gpt-4o", name) == UNKNOWN_PROVIDER


def test_answers_are_cached_and_the_cache_is_bounded() -> None:
    table = builtin()
    for i in range(20_000):
        assert table.find(f"no-such-model-{i}") == UNKNOWN_MODEL
    before = sys.getallocatedblocks()
    for i in range(20_000):
        table.find(f"no-such-model-{i}", "openai")
    assert sys.getallocatedblocks() - before < 15_000  # 4,096 names, not 20,000
    assert found("gpt-4o") == found("gpt-4o") == ("openai", "gpt-4o", "openai")


def test_a_subclass_of_str_is_its_text() -> None:
    class Name(str):
        def __hash__(self) -> int:
            raise AssertionError("not to be asked")

        def __eq__(self, other: object) -> bool:
            raise AssertionError("not to be asked")

    assert found(Name("gpt-4o"), Name("openai")) == ("openai", "gpt-4o", "openai")
