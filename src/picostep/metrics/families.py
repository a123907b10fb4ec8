"""What is published: the families of metrics, their names, and how they follow from what was counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from picostep.metrics.aggregate import Snapshot
    from picostep.metrics.histogram import Buckets

__all__ = ["Family", "Point", "families"]

_NANO, _PICO = 9, 12

Point = tuple[dict[str, str], "int | Buckets"]
"""Labels and value; a label that is "" is not set."""


class Family(NamedTuple):
    """
    One metric with all of its points.

    Attributes:
        name: For Prometheus; a counter's ends in `_total`.

        otlp: The same for OpenTelemetry.

        unit: By UCUM.

        decimals: How many of a value's digits come after the point: values are whole numbers.
    """

    name: str
    otlp: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    points: Sequence[Point] = ()
    decimals: int = 0


# One for each combination of a step's labels: more labels, and the attribute of `Steps` that is the value.
_OF_STEPS: tuple[tuple[Family, list[tuple[dict[str, str], str]]], ...] = (
    (
        Family("picostep_steps_total", "picostep.steps", "counter", "{step}", "Requests to models."),
        [({}, "count")],
    ),
    (
        Family(
            *("picostep_tokens_total", "picostep.tokens", "counter", "{token}"),
            "Tokens; the kinds do not overlap.",
        ),
        [
            ({"kind": kind}, kind)
            for kind in ("prompt_uncached", "prompt_cached", "cache_write", "completion")
        ],
    ),
    (
        Family(
            *("picostep_reasoning_tokens_total", "picostep.reasoning_tokens", "counter", "{token}"),
            "Those of the completion tokens that are reasoning.",
        ),
        [({}, "reasoning")],
    ),
    (
        Family(
            *("picostep_cache_write_1h_tokens_total", "picostep.cache_write_1h_tokens", "counter", "{token}"),
            "Those of the cache_write tokens that are kept for an hour.",
        ),
        [({}, "cache_write_1h")],
    ),
    (
        Family(
            *("picostep_cost_usd_total", "picostep.cost", "counter", "{USD}"),
            "US dollars for the steps whose cost is known.",
            decimals=_PICO,
        ),
        [({}, "cost_pico")],
    ),
    (
        Family(
            *("picostep_unpriced_steps_total", "picostep.unpriced_steps", "counter", "{step}"),
            "Steps whose cost is not known.",
        ),
        [({}, "unpriced")],
    ),
    (
        Family(
            *("picostep_step_duration_seconds", "gen_ai.client.operation.duration", "histogram", "s"),
            "From the start of a step to its end.",
            decimals=_NANO,
        ),
        [({}, "duration")],
    ),
    (
        Family(
            *("picostep_time_to_first_token_seconds", "gen_ai.server.time_to_first_token", "histogram", "s"),
            "From the start of a step that does not fail to its first token.",
            decimals=_NANO,
        ),
        [({}, "first_token")],
    ),
    (
        Family(
            *("picostep_time_per_output_token_seconds", "gen_ai.server.time_per_output_token"),
            *("histogram", "s"),
            "For each token after the first, in a step that does not fail.",
            decimals=_NANO,
        ),
        [({}, "output_token")],
    ),
    (
        Family(
            *("picostep_step_tokens", "gen_ai.client.token.usage", "histogram", "{token}"),
            "Tokens of a whole prompt (input) and of a completion (output).",
        ),
        [({"type": "input"}, "input_tokens"), ({"type": "output"}, "output_tokens")],
    ),
)

# Of all rings, as `picostep.stats()` has them.
_OF_RINGS = {
    "recorded": "Records that were to be recorded.",
    "accepted": "Of these, in a ring: they survive the death of their process.",
    "delivered": "Of these, taken by every sink.",
    "shed": "Accepted without texts, as a ring was filling up.",
    "shortened": "Accepted with a text cut, as they were too large.",
    "withheld": "Exported without a text whose redaction failed.",
    "torn": "Not finished when their process was killed.",
}
_GAUGES = {
    "in_ring": "Records in shared memory.",
    "in_spool": "Records that wait on disk for at least one sink.",
    "unsynced": "Those of them that are written and not yet synced.",
}


def families(snapshot: Snapshot, rings: Mapping[str, Any]) -> Iterator[Family]:
    """
    Yield all families.

    Args:
        rings: Sums of the counters of rings, by their names in `picostep.stats()`.
    """
    for family, values in _OF_STEPS:
        points = [
            ({**labels._asdict(), **more}, getattr(steps, name))
            for labels, steps in snapshot.steps.items()
            for more, name in values
        ]
        yield family._replace(points=[point for point in points if _says_something(point[1])])
    yield _counter("runs", "run", "Runs of agents.", _by("status", snapshot.runs))
    yield _counter("tool_calls", "call", "Calls of tools.", _by("status", snapshot.tool_calls))
    yield _counter("feedback", "feedback", "Feedback on runs.", _alone(snapshot.feedback))
    text = 'Steps that are counted under "other", as there were too many labels.'
    yield _counter("overflowed_steps", "step", text, _alone(snapshot.overflowed))
    text = "Records that are in no other metric, as their ring was damaged."
    yield _counter("unreadable_records", "record", text, _alone(snapshot.unreadable))
    for name, text in _OF_RINGS.items():
        yield _counter(f"{name}_records", "record", text, _alone(rings.get(name, 0)))
    text = "Records that were given up, by reason."
    yield _counter("dropped_records", "record", text, _by("reason", rings.get("dropped", {})))
    text = "Runs that are not reported if their process dies before they end."
    yield _counter("untracked_runs", "run", text, _alone(rings.get("untracked_runs", 0)))
    for name, text in _GAUGES.items():
        yield _gauge(f"{name}_records", "record", text, rings.get(name, 0))
    yield _gauge("rings", "ring", "Rings, of which each process has one.", rings.get("rings", 0))


def _says_something(value: int | Buckets) -> bool:
    """Return whether a value is a number, or a histogram of something."""
    return isinstance(value, int) or value.count > 0


def _counter(name: str, unit: str, text: str, points: Sequence[Point]) -> Family:
    return Family(f"picostep_{name}_total", f"picostep.{name}", "counter", f"{{{unit}}}", text, points)


def _gauge(name: str, unit: str, text: str, value: int) -> Family:
    return Family(f"picostep_{name}", f"picostep.{name}", "gauge", f"{{{unit}}}", text, _alone(value))


def _alone(value: int) -> list[Point]:
    return [({}, value)]


def _by(label: str, counts: Mapping[str, int]) -> list[Point]:
    return [({label: name}, count) for name, count in counts.items()]
