"""
Token counts out of a provider's usage object, in disjoint buckets.

Providers follow two conventions, and mixing them up bills cached tokens twice (or never):

* **inclusive**: the prompt count contains the cached tokens (OpenAI, Gemini, LiteLLM, LangChain);
* **disjoint**: the prompt count is what was neither read from nor written to a cache (Anthropic).

Every reader below names the convention it follows and the page that documents it. The result is always
disjoint: `prompt_uncached + prompt_cached + cache_write` is the whole prompt, and no token is in two buckets.
"""

from __future__ import annotations

from picostep.errors import ArgumentError, ArgumentTypeError

TYPE_CHECKING = False  # what type checkers take for typing.TYPE_CHECKING; the host need not load typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    Counts: TypeAlias = tuple[int | None, int | None, int | None, int | None, int | None, int | None]

__all__ = ["disjoint"]

_MAX_COUNT = 2**53
_INPUT_DETAILS = (
    *("cached_tokens", "cache_read", "cache_creation", "cache_write_tokens"),
    *("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"),
)


def disjoint(obj: object) -> Counts:
    """
    Read a provider's usage object or mapping.

    Args:
        obj: The `usage` (Gemini: `usage_metadata`) of a response: an object with attributes or a mapping
            with keys.

    Returns:
        `(prompt_uncached, prompt_cached, completion, cache_write, cache_write_1h, reasoning)`, in the order
        of `Step.tokens()`; None for what the provider did not report. The prompt is the sum of
        `prompt_uncached`, `prompt_cached` and `cache_write`; `cache_write_1h` is a part of `cache_write`,
        `reasoning` of `completion`.

    Raises:
        ArgumentTypeError: `obj` is None, text, a number or a sequence.

        ArgumentError: The shape is not known, a count is not an integer from 0 to 2**53, or the cached part
            is larger than the whole it should be contained in.
    """
    if obj is None or isinstance(obj, (str, bytes, bytearray, int, float, list, tuple)):
        raise ArgumentTypeError(f"a provider's usage object or mapping is needed, not {type(obj).__name__}")
    usage = _Fields(obj)
    for _, names, read in _SHAPES:
        if usage.any_set(names):
            return read(usage)
    if any(usage.has(name) for _, names, _ in _SHAPES for name in names):
        return (None,) * 6  # a shape we know in which the provider reported nothing
    raise ArgumentError(_unknown(usage, obj))


class _Fields:
    """One view of an object with attributes, or a mapping with keys, as optional counts."""

    __slots__ = ("_is_mapping", "_obj")

    def __init__(self, obj: object) -> None:
        from collections.abc import Mapping

        self._obj = obj
        self._is_mapping = isinstance(obj, Mapping)

    def get(self, name: str) -> object:
        if self._is_mapping:
            return self._obj.get(name)  # type: ignore[attr-defined]
        return getattr(self._obj, name, None)

    def has(self, name: str) -> bool:
        return name in self._obj if self._is_mapping else hasattr(self._obj, name)  # type: ignore[operator]

    def any_set(self, names: tuple[str, ...]) -> bool:
        return any(self.get(name) is not None for name in names)

    def count(self, *names: str) -> int | None:
        """Return the first of these counts that is set."""
        for name in names:
            value = self.get(name)
            if value is not None:
                return _checked(value, name)
        return None

    def nested(self, *names: str) -> _Fields:
        """Return the first of these nested objects that is set; an empty one if none is."""
        for name in names:
            value = self.get(name)
            if value is not None:
                return _Fields(value)
        return _Fields({})


def _openai_chat(usage: _Fields) -> Counts:
    """
    Read the Chat Completions shape, which most compatible servers share. Inclusive.

    OpenAI API reference, "The chat completion object": `prompt_tokens` is the whole prompt, of which
    `prompt_tokens_details.cached_tokens` were cached; `completion_tokens` contains the reasoning tokens.

    LiteLLM docs, "Prompt Caching": the same, and for Anthropic models too its `prompt_tokens` contains what
    it repeats in `cache_read_input_tokens` and `cache_creation_input_tokens`. DeepSeek API docs, "Context
    Caching": `prompt_tokens` is the sum of `prompt_cache_hit_tokens` and `prompt_cache_miss_tokens`. These
    are other names for the same cached tokens, so the largest is taken and nothing is added up.

    xAI API reference: the same shape, but `completion_tokens` leaves the reasoning tokens out. `total_tokens`
    tells the two apart.
    """
    details = usage.nested("prompt_tokens_details")
    cached = _largest(
        details.count("cached_tokens"),
        usage.count("cache_read_input_tokens"),
        usage.count("prompt_cache_hit_tokens"),
    )
    written = _largest(
        details.count("cache_creation_tokens", "cache_write_tokens"),
        usage.count("cache_creation_input_tokens"),
    )
    prompt, completion = usage.count("prompt_tokens"), usage.count("completion_tokens")
    reasoning = usage.nested("completion_tokens_details").count("reasoning_tokens")
    if (
        reasoning
        and completion is not None
        and prompt is not None
        and usage.count("total_tokens") == prompt + completion + reasoning
    ):
        completion += reasoning
    uncached = _without(_without(prompt, cached, "prompt_tokens"), written, "prompt_tokens")
    return uncached, cached, completion, written, None, reasoning


def _input_output(usage: _Fields) -> Counts:
    """
    Read the shapes that count `input_tokens` and `output_tokens`; what stands beside them tells the
    convention.

    Inclusive with details: OpenAI API reference, "The response object"
    (`input_tokens_details.cached_tokens`), and LangChain reference, `UsageMetadata`
    (`input_token_details.cache_read`). Its Anthropic integration tells writes by lifetime, and then sets
    `cache_creation`, which is the same tokens, to 0.

    Disjoint without: Anthropic docs, "Prompt caching", "Tracking cache performance": the whole prompt is
    `cache_read_input_tokens + cache_creation_input_tokens + input_tokens`; `cache_creation` splits the writes
    by lifetime.
    """
    total, completion = usage.count("input_tokens"), usage.count("output_tokens")
    reasoning = usage.nested("output_tokens_details", "output_token_details").count(
        "reasoning_tokens", "reasoning"
    )
    details = usage.nested("input_tokens_details", "input_token_details")
    if details.any_set(_INPUT_DETAILS):
        cached = _largest(
            details.count("cached_tokens", "cache_read"), usage.count("cache_read_input_tokens")
        )
        for_an_hour = details.count("ephemeral_1h_input_tokens")
        written = _largest(
            details.count("cache_creation", "cache_write_tokens"),
            _sum(details.count("ephemeral_5m_input_tokens"), for_an_hour),
        )
        uncached = _without(_without(total, cached, "input_tokens"), written, "input_tokens")
        return uncached, cached, completion, written, for_an_hour, reasoning

    by_lifetime = usage.nested("cache_creation")
    for_an_hour = by_lifetime.count("ephemeral_1h_input_tokens")
    written = usage.count("cache_creation_input_tokens")
    if written is None:
        written = _sum(by_lifetime.count("ephemeral_5m_input_tokens"), for_an_hour)
    if for_an_hour is not None and written is not None and for_an_hour > written:
        raise ArgumentError(f"{for_an_hour} tokens cached for an hour, of {written} cached in all")
    return total, usage.count("cache_read_input_tokens"), completion, written, for_an_hour, reasoning


def _gemini(usage: _Fields) -> Counts:
    """
    Read Gemini's `usage_metadata`. Inclusive for the cache, disjoint for everything else.

    Gemini API reference, "UsageMetadata": `prompt_token_count` contains `cached_content_token_count`, but
    not `tool_use_prompt_token_count` (results of tools fed back, billed as prompt);
    `candidates_token_count` does not contain `thoughts_token_count` (billed as output). REST spells the
    same names in camelCase.
    """
    prompt = usage.count("prompt_token_count", "promptTokenCount")
    cached = usage.count("cached_content_token_count", "cachedContentTokenCount")
    uncached = _without(prompt, cached, "prompt_token_count")
    if uncached is not None:
        uncached = _sum(uncached, usage.count("tool_use_prompt_token_count", "toolUsePromptTokenCount"))
    reasoning = usage.count("thoughts_token_count", "thoughtsTokenCount")
    completion = _sum(usage.count("candidates_token_count", "candidatesTokenCount"), reasoning)
    return uncached, cached, completion, None, None, reasoning


# In order of preference: some servers send two shapes at once with the same tokens, and only the first is
# read.
_SHAPES: tuple[tuple[str, tuple[str, ...], Callable[[_Fields], Counts]], ...] = (
    ("OpenAI chat or LiteLLM", ("prompt_tokens", "completion_tokens"), _openai_chat),
    ("OpenAI responses or Anthropic", ("input_tokens", "output_tokens"), _input_output),
    (
        "Gemini",
        (
            "prompt_token_count",
            "candidates_token_count",
            "thoughts_token_count",
            "promptTokenCount",
            "candidatesTokenCount",
            "thoughtsTokenCount",
        ),
        _gemini,
    ),
)


def _checked(value: object, name: str) -> int:
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        number = int(value.__index__())
        if 0 <= number <= _MAX_COUNT:
            return number
    shown = repr(value)
    if len(shown) > 80:
        shown = f"{shown[:77]}..."
    raise ArgumentError(f"{name} must be an integer from 0 to 2**53, got {shown}")


def _without(total: int | None, cached: int | None, name: str) -> int | None:
    """Take the cached tokens out of a total that contains them."""
    if total is None or cached is None:
        return total
    if cached > total:
        raise ArgumentError(f"{cached} cached tokens, but {name}, which should contain them, is {total}")
    return total - cached


def _sum(*parts: int | None) -> int | None:
    given = [part for part in parts if part is not None]
    return sum(given) if given else None


def _largest(*parts: int | None) -> int | None:
    return max((part for part in parts if part is not None), default=None)


def _unknown(usage: _Fields, obj: object) -> str:
    looked_for = "; ".join(f"{', '.join(names)} ({label})" for label, names, _ in _SHAPES)
    hint = ""
    for name in ("usage", "usage_metadata", "usageMetadata"):
        if usage.get(name) is not None:
            hint = f"; it has {name!r}: pass that"
            break
    return f"{type(obj).__name__} is no usage that is known{hint}. Looked for: {looked_for}"
