"""
Usage objects: each provider's documented example gives disjoint counts, and no token is ever counted twice.

The numbers are those of the providers' own documentation or of the double-counting bugs reported against
other tools.
"""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picostep.errors import ArgumentError, ArgumentTypeError
from picostep.usage import disjoint

tokens = st.integers(0, 2**40)


def as_object(value: Any) -> Any:
    """The same usage as nested objects with attributes, as SDKs give it."""
    if isinstance(value, dict):
        return SimpleNamespace(**{name: as_object(part) for name, part in value.items()})
    return value


def both_forms(usage: dict[str, Any]) -> tuple[int | None, ...]:
    """Read as mapping, as object and as read-only mapping; the three must agree."""
    found = disjoint(usage)
    assert found == disjoint(as_object(usage))
    assert found == disjoint(MappingProxyType(usage))
    return found


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(
            {
                "prompt_tokens": 2006,
                "completion_tokens": 300,
                "total_tokens": 2306,
                "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 200},
            },
            (86, 1920, 300, None, None, 200),
            id="openai chat, cached and reasoning tokens are parts",
        ),
        pytest.param(
            {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29},
            (19, None, 10, None, None, None),
            id="openai chat, old",
        ),
        pytest.param(
            {"prompt_tokens": 19, "completion_tokens": 10, "prompt_tokens_details": None},
            (19, None, 10, None, None, None),
            id="openai compatible server without details",
        ),
        pytest.param(
            {"prompt_tokens": 8, "total_tokens": 8},
            (8, None, None, None, None, None),
            id="openai embeddings",
        ),
        pytest.param(
            {
                "prompt_tokens": 100,
                "completion_tokens": 20,
                "total_tokens": 420,
                "prompt_tokens_details": {"cached_tokens": 40},
                "completion_tokens_details": {"reasoning_tokens": 300},
            },
            (60, 40, 320, None, None, 300),
            id="xai, reasoning tokens beside completion, as the total tells",
        ),
        pytest.param(
            {
                "prompt_tokens": 100,
                "completion_tokens": 320,
                "total_tokens": 420,
                "completion_tokens_details": {"reasoning_tokens": 300},
            },
            (100, None, 320, None, None, 300),
            id="the same, contained",
        ),
        pytest.param(
            {
                "prompt_tokens": 1200,
                "completion_tokens": 9,
                "prompt_tokens_details": {"cached_tokens": 200, "cache_write_tokens": 900},
            },
            (100, 200, 9, 900, None, None),
            id="openrouter, writes in the details",
        ),
        pytest.param(
            {
                "prompt_tokens": 1000,
                "completion_tokens": 5,
                "prompt_cache_hit_tokens": 900,
                "prompt_cache_miss_tokens": 100,
                "prompt_tokens_details": {"cached_tokens": 900},
            },
            (100, 900, 5, None, None, None),
            id="deepseek",
        ),
        pytest.param(
            {
                "input_tokens": 328,
                "input_tokens_details": {"cached_tokens": 128},
                "output_tokens": 52,
                "output_tokens_details": {"reasoning_tokens": 40},
                "total_tokens": 380,
            },
            (200, 128, 52, None, None, 40),
            id="openai responses",
        ),
        pytest.param(
            {
                "input_tokens": 50,
                "cache_creation_input_tokens": 248,
                "cache_read_input_tokens": 100_000,
                "output_tokens": 503,
            },
            (50, 100_000, 503, 248, None, None),
            id="anthropic, input is uncached already",
        ),
        pytest.param(
            {
                "input_tokens": 2048,
                "cache_read_input_tokens": 1800,
                "cache_creation_input_tokens": 248,
                "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
                "output_tokens": 503,
            },
            (2048, 1800, 503, 248, 100, None),
            id="anthropic, writes by lifetime are the same tokens",
        ),
        pytest.param(
            {
                "input_tokens": 10,
                "cache_creation": {"ephemeral_5m_input_tokens": 148, "ephemeral_1h_input_tokens": 100},
                "output_tokens": 1,
            },
            (10, None, 1, 248, 100, None),
            id="anthropic, writes by lifetime only",
        ),
        pytest.param(
            {
                "input_tokens": 10,
                "cache_read_input_tokens": None,
                "cache_creation_input_tokens": None,
                "cache_creation": None,
                "output_tokens": 1,
            },
            (10, None, 1, None, None, None),
            id="anthropic, no cache",
        ),
        pytest.param(
            {
                "input_tokens": None,
                "cache_read_input_tokens": 7,
                "cache_creation_input_tokens": 3,
                "output_tokens": 9,
            },
            (None, 7, 9, 3, None, None),
            id="anthropic, last event of a stream",
        ),
        pytest.param(
            {
                "input_tokens": 350,
                "output_tokens": 240,
                "total_tokens": 590,
                "input_token_details": {"audio": 10, "cache_creation": 200, "cache_read": 100},
                "output_token_details": {"audio": 10, "reasoning": 200},
            },
            (50, 100, 240, 200, None, 200),
            id="langchain",
        ),
        pytest.param(
            {
                "input_tokens": 2048 + 1800 + 248,
                "output_tokens": 503,
                "input_token_details": {
                    "cache_read": 1800,
                    "cache_creation": 0,
                    "ephemeral_5m_input_tokens": 148,
                    "ephemeral_1h_input_tokens": 100,
                },
            },
            (2048, 1800, 503, 248, 100, None),
            id="langchain for anthropic, writes by lifetime instead of their sum",
        ),
        pytest.param(
            {
                "input_tokens": 350,
                "output_tokens": 1,
                "input_token_details": {
                    "cache_creation": 248,
                    "ephemeral_5m_input_tokens": 148,
                    "ephemeral_1h_input_tokens": 100,
                },
            },
            (102, None, 1, 248, 100, None),
            id="langchain, writes by lifetime beside their sum",
        ),
        pytest.param(
            {
                "prompt_token_count": 1000,
                "cached_content_token_count": 800,
                "candidates_token_count": 50,
                "thoughts_token_count": 70,
                "tool_use_prompt_token_count": 30,
                "total_token_count": 1150,
            },
            (230, 800, 120, None, None, 70),
            id="gemini, thoughts are not candidates and tool use is not prompt",
        ),
        pytest.param(
            {
                "promptTokenCount": 1000,
                "cachedContentTokenCount": 800,
                "candidatesTokenCount": 50,
                "thoughtsTokenCount": 70,
                "toolUsePromptTokenCount": 30,
                "totalTokenCount": 1150,
            },
            (230, 800, 120, None, None, 70),
            id="gemini rest",
        ),
        pytest.param(
            {"prompt_token_count": 12, "thoughts_token_count": 5, "candidates_token_count": None},
            (12, None, 5, None, None, 5),
            id="gemini, stopped while thinking",
        ),
        pytest.param(
            {"prompt_token_count": None, "tool_use_prompt_token_count": 4, "candidates_token_count": 5},
            (None, None, 5, None, None, None),
            id="gemini, half a prompt is not a prompt",
        ),
        pytest.param(
            {
                "prompt_tokens": 2010,
                "completion_tokens": 40,
                "prompt_tokens_details": {"cached_tokens": 1800},
                "cache_read_input_tokens": 1800,
                "cache_creation_input_tokens": 200,
            },
            (10, 1800, 40, 200, None, None),
            id="litellm for anthropic, all included in prompt_tokens",
        ),
        pytest.param(
            {
                "prompt_tokens": 2010,
                "completion_tokens": 40,
                "prompt_tokens_details": {"cached_tokens": None},
                "cache_read_input_tokens": 1800,
            },
            (210, 1800, 40, None, None, None),
            id="litellm, cached tokens outside the details only",
        ),
        pytest.param(
            {"prompt_tokens": 5, "completion_tokens": 3, "input_tokens": 5, "output_tokens": 3},
            (5, None, 3, None, None, None),
            id="two shapes at once are one",
        ),
        pytest.param(
            {"prompt_tokens": None, "completion_tokens": None, "input_tokens": 5, "output_tokens": 3},
            (5, None, 3, None, None, None),
            id="the shape that is filled",
        ),
        pytest.param(
            {"prompt_tokens": 0, "completion_tokens": 0},
            (0, None, 0, None, None, None),
            id="zero is a count",
        ),
        pytest.param({"prompt_tokens": None, "completion_tokens": None}, (None,) * 6, id="nothing reported"),
    ],
)
def test_provider(usage: dict[str, Any], expected: tuple[int | None, ...]) -> None:
    assert expected == both_forms(usage)


@given(uncached=tokens, cached=tokens, written=tokens, thoughts=tokens, visible=tokens)
def test_every_shape_of_the_same_usage_gives_the_same_counts(
    uncached: int, cached: int, written: int, thoughts: int, visible: int
) -> None:
    whole, completion = uncached + written + cached, thoughts + visible
    shapes: list[dict[str, Any]] = [
        {
            "prompt_tokens": whole,
            "completion_tokens": completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": written,
            "completion_tokens_details": {"reasoning_tokens": thoughts},
            "total_tokens": whole + completion,
        },
        {
            "prompt_tokens": whole,
            "completion_tokens": visible,
            "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
            "completion_tokens_details": {"reasoning_tokens": thoughts},
            "total_tokens": whole + completion,
        },
        {
            "input_tokens": whole,
            "output_tokens": completion,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
            "output_tokens_details": {"reasoning_tokens": thoughts},
        },
        {
            "input_tokens": uncached,
            "output_tokens": completion,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": written,
            "output_tokens_details": {"reasoning_tokens": thoughts},
        },
        {
            "input_tokens": whole,
            "output_tokens": completion,
            "input_token_details": {"cache_read": cached, "cache_creation": written},
            "output_token_details": {"reasoning": thoughts},
        },
    ]
    for shape in shapes:
        assert (uncached, cached, completion, written, None, thoughts) == both_forms(shape)

    gemini = {  # whose cache is not written by requests
        "prompt_token_count": uncached + cached,
        "tool_use_prompt_token_count": written,
        "cached_content_token_count": cached,
        "candidates_token_count": visible,
        "thoughts_token_count": thoughts,
    }
    assert (uncached + written, cached, completion, None, None, thoughts) == both_forms(gemini)


def test_more_written_for_an_hour_than_at_all() -> None:
    usage = {"input_tokens": 1, "output_tokens": 1, "cache_creation_input_tokens": 5}

    with pytest.raises(ArgumentError, match=r"^6 tokens cached for an hour, of 5 cached in all$"):
        disjoint({**usage, "cache_creation": {"ephemeral_1h_input_tokens": 6}})


@pytest.mark.parametrize(
    ("usage", "whole"),
    [
        (
            {"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 11}},
            "prompt_tokens",
        ),
        ({"prompt_tokens": 10, "completion_tokens": 1, "cache_read_input_tokens": 11}, "prompt_tokens"),
        (
            {"input_tokens": 10, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 11}},
            "input_tokens",
        ),
        ({"prompt_token_count": 10, "cached_content_token_count": 11}, "prompt_token_count"),
    ],
)
def test_more_cached_than_the_whole(usage: dict[str, Any], whole: str) -> None:
    with pytest.raises(ArgumentError, match=rf"^11 cached tokens, but {whole}.* is 10$"):
        disjoint(usage)


@pytest.mark.parametrize("bad", [-1, 2**53 + 1, 1.0, "7", True, [], {}])
@pytest.mark.parametrize(
    "shape",
    [
        {"prompt_tokens": None, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": None},
        {"input_tokens": 1, "output_tokens": None},
        {"input_tokens": 1, "cache_creation_input_tokens": None, "output_tokens": 1},
        {"prompt_token_count": 1, "thoughts_token_count": None},
    ],
)
def test_bad_count_names_the_field(shape: dict[str, Any], bad: object) -> None:
    (field,) = [name for name, value in shape.items() if value is None]

    with pytest.raises(ArgumentError, match=rf"^{field} must be an integer .* got ") as caught:
        disjoint({**shape, field: bad})

    assert str(caught.value).endswith(repr(bad))


def test_numpy_counts() -> None:
    found = disjoint({"prompt_tokens": np.int64(7), "completion_tokens": np.uint32(3)})

    assert found == (7, None, 3, None, None, None)
    assert [int, int] == [type(found[0]), type(found[2])]


@pytest.mark.parametrize("obj", [None, "usage", b"", 7, 1.5, True, [], (1, 2)])
def test_no_usage_at_all(obj: object) -> None:
    with pytest.raises(ArgumentTypeError, match=rf"^a provider.* not {type(obj).__name__}$"):
        disjoint(obj)


@pytest.mark.parametrize("obj", [{}, {"tokens": 3}, SimpleNamespace(tokens=3), {"inputTokens": 5}])
def test_unknown_shape_lists_what_was_looked_for(obj: object) -> None:
    with pytest.raises(ArgumentError) as caught:
        disjoint(obj)

    for name in ("prompt_tokens", "input_tokens", "prompt_token_count", "promptTokenCount"):
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["usage", "usage_metadata"])
def test_a_whole_response_gets_a_hint(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"it has '{name}': pass that"):
        disjoint(SimpleNamespace(**{name: {"prompt_tokens": 1}}))
