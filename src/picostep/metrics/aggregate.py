"""Sums over the records of all processes, each counted once, when it leaves its ring."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from picostep.metrics.histogram import Buckets, Histogram
from picostep.payload import well_formed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from picostep.record import Record

__all__ = ["MOST_LABELS", "OTHER", "Aggregator", "Labels", "Snapshot", "Steps"]

MOST_LABELS = 200
"""Combinations of labels that have sums of their own."""

_RESERVE = 50  # more of them, in which the names of the models alone are OTHER
_LONGEST = 120  # bytes of a label

OTHER = "other"
_FAILED = 2
_STATUS = {0: "ok", _FAILED: "error"}

_PROMPT = ("prompt_uncached_tokens", "prompt_cached_tokens", "cache_write_tokens")

_MS = 1_000_000  # nanoseconds

# Bounds by the GenAI conventions: of gen_ai.client.operation.duration, …
_DURATION = [10 * 2**n * _MS for n in range(14)]
# … gen_ai.server.time_to_first_token, …
_FIRST_TOKEN = [
    ms * _MS for ms in (1, 5, 10, 20, 40, 60, 80, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10_000)
]
# … gen_ai.server.time_per_output_token, …
_OUTPUT_TOKEN = [ms * _MS for ms in (10, 25, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1000, 2500)]
# … and gen_ai.client.token.usage.
_TOKENS = [4**n for n in range(14)]

# Control characters, which some parsers of the Prometheus format take for the end, and line separators.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Labels(NamedTuple):
    """
    What steps are told apart by; "" where a step does not say.

    Attributes:
        status: `ok`, `error`, or `other` for a code of the program's own.
    """

    model_requested: str
    model_used: str
    provider: str
    finish_reason: str
    status: str


class Steps:
    """
    Sums over the steps with the same labels.

    Attributes:
        count: Steps.

        prompt_uncached, prompt_cached, cache_write, completion: Tokens; they do not overlap.

        cache_write_1h, reasoning: Parts of `cache_write` and of `completion`.

        cost_pico: Pico-dollars, of the steps whose cost is known; …

        unpriced: … and how many others there are.

        duration, first_token, output_token: Nanoseconds of whole steps; until the first token; for each
            token after that, rounded down. The last two only of steps that have not failed and say when their
            first token came.

        input_tokens, output_tokens: Tokens of whole prompts and of completions, where steps say them.
    """

    _COUNTERS = (
        *("count", "prompt_uncached", "prompt_cached", "cache_write", "completion"),
        *("cache_write_1h", "reasoning", "cost_pico", "unpriced"),
    )
    _HISTOGRAMS = ("duration", "first_token", "output_token", "input_tokens", "output_tokens")

    __slots__ = (*_COUNTERS, *_HISTOGRAMS)

    def __init__(self) -> None:
        self.count = self.prompt_uncached = self.prompt_cached = self.cache_write = self.completion = 0
        self.cache_write_1h = self.reasoning = self.cost_pico = self.unpriced = 0
        self.duration = Histogram(_DURATION)
        self.first_token = Histogram(_FIRST_TOKEN)
        self.output_token = Histogram(_OUTPUT_TOKEN)
        self.input_tokens = Buckets(_TOKENS)
        self.output_tokens = Buckets(_TOKENS)

    def add(self, record: Record) -> None:
        """Count a step; raises an exception of any type, and counts nothing, for one of a damaged ring."""
        get: Callable[..., Any] = record.get
        start_ns, end_ns, first_ns = record["start_ns"], record["end_ns"], get("first_token_ns")
        uncached, cached = get("prompt_uncached_tokens", 0), get("prompt_cached_tokens", 0)
        written, written_1h = get("cache_write_tokens", 0), get("cache_write_1h_tokens", 0)
        completion, reasoning = get("completion_tokens", 0), get("reasoning_tokens", 0)
        prompt = uncached + cached + written
        if uncached < 0 or cached < 0 or written < 0 or written_1h < 0 or completion < 0 or reasoning < 0:
            raise ValueError("a count that is negative")
        self.count += 1
        self.duration.add(end_ns - start_ns if end_ns > start_ns else 0)
        self.prompt_uncached += uncached
        self.prompt_cached += cached
        self.cache_write += written
        self.cache_write_1h += written_1h
        self.completion += completion
        self.reasoning += reasoning
        if prompt or not record.keys().isdisjoint(_PROMPT):
            self.input_tokens.add(prompt)
        if completion or "completion_tokens" in record:
            self.output_tokens.add(completion)
        cost = get("cost_pico")
        if cost is None:
            self.unpriced += 1
        else:
            self.cost_pico += cost
        if first_ns is not None and record["status_code"] != _FAILED:
            self.first_token.add(first_ns - start_ns if first_ns > start_ns else 0)
            if completion > 1:
                self.output_token.add((end_ns - first_ns) // (completion - 1) if end_ns > first_ns else 0)

    def merge(self, other: Steps, sign: int = 1) -> None:
        """Add the sums of other steps, or with `sign=-1` take an earlier state of these away."""
        for name in self._COUNTERS:
            setattr(self, name, getattr(self, name) + sign * getattr(other, name))
        for name in self._HISTOGRAMS:
            getattr(self, name).merge(getattr(other, name), sign)

    def as_plain(self) -> list[Any]:
        """Return what JSON can hold, for `from_plain()`."""
        return [
            [getattr(self, name) for name in self._COUNTERS],
            [getattr(self, name).as_plain() for name in self._HISTOGRAMS],
        ]

    @classmethod
    def from_plain(cls, plain: list[Any]) -> Steps:
        """Raises ValueError, TypeError, LookupError or OverflowError for what `as_plain()` cannot return."""
        made = cls()
        counters, histograms = plain
        for name, value in zip(cls._COUNTERS, counters, strict=True):
            setattr(made, name, int(value))
        for name, value in zip(cls._HISTOGRAMS, histograms, strict=True):
            getattr(made, name).fill(value)
        return made

    def copy(self) -> Steps:
        copied = Steps.__new__(Steps)
        for name in self._COUNTERS:
            setattr(copied, name, getattr(self, name))
        for name in self._HISTOGRAMS:
            setattr(copied, name, getattr(self, name).copy())
        return copied


class Snapshot(NamedTuple):
    """
    All sums at one moment.

    Attributes:
        start_ns: Since when, Unix time.

        at_ns: Until when, likewise.

        steps: By their labels.

        runs, tool_calls: How many, by status.

        feedback: How many.

        overflowed: Steps whose labels were, wholly or in part, replaced by OTHER as there were too many.

        unreadable: Records that could not be counted, which only damaged rings have.
    """

    start_ns: int
    at_ns: int
    steps: dict[Labels, Steps]
    runs: dict[str, int]
    tool_calls: dict[str, int]
    feedback: int
    overflowed: int
    unreadable: int

    def as_plain(self) -> dict[str, Any]:
        """Return what JSON can hold, for `from_plain()`."""
        steps = [[labels, steps.as_plain()] for labels, steps in self.steps.items()]
        return {**self._asdict(), "steps": steps}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Snapshot:
        """Raises ValueError, TypeError, LookupError or OverflowError for what `as_plain()` cannot return."""
        steps = {Labels(*map(str, labels)): Steps.from_plain(steps) for labels, steps in plain["steps"]}
        return cls(**{**plain, "steps": steps})

    def total(self) -> Steps:
        """Return the sums over all steps."""
        total = Steps()
        for steps in self.steps.values():
            total.merge(steps)
        return total


class Aggregator:
    """
    Keeps the sums.

    The first MOST_LABELS combinations of labels have sums of their own. Whatever comes later is counted
    with OTHER for both models, and if there are too many of these as well, with OTHER for everything but the
    status.

    Thread-safety: all methods, for any number of threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._start_ns = time.time_ns()
        self._steps: dict[Labels, Steps] = {}
        self._runs: Counter[str] = Counter()
        self._tool_calls: Counter[str] = Counter()
        self._feedback = 0
        self._overflowed = 0
        self._unreadable = 0

    def add(self, records: Sequence[Record]) -> None:
        """Count records, which must have been priced; raises nothing."""
        with self._lock:
            for record in records:
                try:
                    self._add(record)
                except Exception:  # a number or text that no program can have recorded
                    self._unreadable += 1

    def snapshot(self) -> Snapshot:
        """Return a copy of all sums, which later records do not change."""
        with self._lock:
            return Snapshot(
                self._start_ns,
                time.time_ns(),
                {labels: steps.copy() for labels, steps in self._steps.items()},
                dict(self._runs),
                dict(self._tool_calls),
                self._feedback,
                self._overflowed,
                self._unreadable,
            )

    def _add(self, record: Record) -> None:
        kind = record["kind"]
        if kind == "step":
            self._steps_like(record).add(record)
        elif kind == "feedback":
            self._feedback += 1
        else:
            status = _STATUS.get(record["status_code"], OTHER)
            (self._runs if kind == "run" else self._tool_calls)[status] += 1

    def _steps_like(self, record: Record) -> Steps:
        get: Callable[..., Any] = record.get
        key = (
            get("model_requested", ""),
            get("model_used", ""),
            get("provider", ""),
            get("finish_reason", ""),
            _STATUS.get(record["status_code"], OTHER),
        )
        return self._steps.get(key) or self._admit(key)  # type: ignore[call-overload]  # a tuple will do

    def _admit(self, key: tuple[str, str, str, str, str]) -> Steps:
        """Return the sums for labels that are new, or not fit to be shown as they are."""
        full = Labels(*map(_shown, key))
        without_models = full._replace(model_requested=OTHER, model_used=OTHER)
        for labels, most in ((full, MOST_LABELS), (without_models, MOST_LABELS + _RESERVE)):
            found = self._steps.get(labels)
            if found is None and len(self._steps) < most:
                found = self._steps[labels] = Steps()
            if found is not None:
                self._overflowed += labels is not full
                return found
        self._overflowed += 1
        return self._steps.setdefault(Labels(OTHER, OTHER, OTHER, OTHER, full.status), Steps())


def _shown(text: str) -> str:
    """Return a text as a label: short, and without what could be taken for anything but text."""
    shown = _UNPRINTABLE.sub("\ufffd", well_formed(text[: _LONGEST + 1]))
    encoded = shown.encode()
    return shown if len(encoded) <= _LONGEST else encoded[:_LONGEST].decode(errors="ignore") + "…"
