"""
Metrics: what the exporter counts, against sums made independently of the same records.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picostep.metrics.aggregate import MOST_LABELS, Aggregator, Labels, Snapshot, Steps
from picostep.metrics.histogram import HIGHEST, LOWEST, RELATIVE_ERROR, Histogram
from picostep.record import Record
from timed import SECOND, START, exact, step


def counted(*records: Record) -> Snapshot:
    aggregator = Aggregator()
    aggregator.add(records)
    return aggregator.snapshot()


def only(snapshot: Snapshot) -> tuple[Labels, Steps]:
    (found,) = snapshot.steps.items()
    return found


class TestHistogram:
    @given(st.lists(st.integers(LOWEST, HIGHEST), min_size=1, max_size=50), st.floats(0, 1))
    def test_percentiles_are_within_the_stated_error(self, values: list[int], q: float) -> None:
        histogram = Histogram([10**9])
        for value in values:
            histogram.add(value)

        found = histogram.quantile(q)

        assert found is not None
        assert abs(found - exact(values, q)) <= RELATIVE_ERROR * exact(values, q) * (1 + 1e-9)

    @given(st.lists(st.integers(0, 40)))
    def test_bounds_are_inclusive(self, values: list[int]) -> None:
        histogram = Histogram([5, 10, 20])
        for value in values:
            histogram.add(value)

        up_to = [sum(histogram.counts[: index + 1]) for index in range(4)]
        assert up_to == [sum(value <= bound for value in values) for bound in (5, 10, 20, 99)]
        assert (histogram.count, histogram.sum) == (len(values), sum(values))

    def test_values_beyond_what_percentiles_know(self) -> None:
        histogram = Histogram([10])
        for value in (0, 1, 2**63):
            histogram.add(value)

        found = [histogram.quantile(q) for q in (0.0, 0.5, 1.0)]
        assert found == [pytest.approx(LOWEST, 0.01)] * 2 + [pytest.approx(HIGHEST, 0.01)]
        assert histogram.sum == 2**63 + 1

    def test_without_values(self) -> None:
        assert Histogram([10]).quantile(0.5) is None


class TestSteps:
    def test_everything_that_a_step_can_say(self) -> None:
        labels, found = only(
            counted(
                step(
                    model_requested="gpt-x",
                    model_used="gpt-x-1",
                    provider="openai",
                    finish_reason="stop",
                    prompt_uncached_tokens=100,
                    prompt_cached_tokens=30,
                    cache_write_tokens=7,
                    cache_write_1h_tokens=2,
                    completion_tokens=11,
                    reasoning_tokens=4,
                    first_token_ns=START + SECOND // 4,
                    cost_pico=123,
                )
            )
        )

        assert labels == ("gpt-x", "gpt-x-1", "openai", "stop", "ok")
        assert (found.prompt_uncached, found.prompt_cached, found.completion) == (100, 30, 11)
        assert (found.cache_write, found.cache_write_1h, found.reasoning) == (7, 2, 4)
        assert (found.count, found.cost_pico, found.unpriced) == (1, 123, 0)
        assert (found.input_tokens.sum, found.output_tokens.sum) == (137, 11)
        assert (found.duration.sum, found.first_token.sum) == (SECOND, SECOND // 4)
        assert found.output_token.sum == 3 * SECOND // 4 // 10

    def test_what_a_step_does_not_say(self) -> None:
        labels, found = only(counted(step()))

        assert labels == ("", "", "", "", "ok")
        assert (found.count, found.unpriced, found.cost_pico) == (1, 1, 0)
        histograms = (found.first_token, found.output_token, found.input_tokens, found.output_tokens)
        assert [each.count for each in histograms] == [0, 0, 0, 0]

    def test_a_single_token_has_no_time_per_token(self) -> None:
        counts = counted(step(first_token_ns=START + 1, completion_tokens=1))
        _, found = only(counts)

        assert (found.first_token.count, found.output_token.count, counts.unreadable) == (1, 0, 0)

    def test_failed_steps_have_no_time_to_first_token(self) -> None:
        labels, found = only(counted(step(status_code=2, first_token_ns=START + 1, completion_tokens=5)))

        assert labels.status == "error"
        assert (found.duration.count, found.first_token.count, found.output_token.count) == (1, 0, 0)

    def test_damaged_records_harm_nothing(self) -> None:
        found = counted(
            {"kind": "step"},
            {},
            step(completion_tokens=-1),
            step(end_ns=START - 5, first_token_ns=START - 9, completion_tokens=2**62),
            step(),
        )

        assert (found.unreadable, found.total().count, found.total().duration.sum) == (3, 2, SECOND)

    def test_other_kinds(self) -> None:
        run = {"kind": "run", "run_id": "r", "status_code": 0}
        call = {"kind": "tool_call", "run_id": "r", "status_code": 2}
        found = counted(run, run, {**run, "status_code": 7}, call, {"kind": "feedback", "run_id": "r"})

        assert (found.runs, found.tool_calls, found.feedback) == ({"ok": 2, "other": 1}, {"error": 1}, 1)
        assert found.steps == {}

    def test_an_earlier_state_taken_away_leaves_what_came_since(self) -> None:
        aggregator = Aggregator()
        aggregator.add([step(completion_tokens=5, cost_pico=3)] * 10)
        before = aggregator.snapshot().total()
        late = [step(end_ns=START + n * SECOND, completion_tokens=n, cost_pico=n) for n in range(1, 101)]
        aggregator.add(late)

        since = aggregator.snapshot().total()
        since.merge(before, -1)

        assert (since.count, since.completion, since.cost_pico) == (100, 5050, 5050)
        assert since.duration.quantile(0.5) == pytest.approx(50 * SECOND, RELATIVE_ERROR)
        assert before.count == 10


class TestLabels:
    @pytest.mark.slow
    def test_ten_thousand_models(self) -> None:
        reasons = ("stop", "length")
        records = [
            step(model_requested=f"m{n}", model_used=f"m{n}", finish_reason=reasons[n % 2], cost_pico=n)
            for n in range(10_000)
        ]
        found = counted(*records, *records)

        assert len(found.steps) == MOST_LABELS + 2
        assert found.overflowed == 2 * (10_000 - MOST_LABELS)
        assert found.steps[Labels("m7", "m7", "", "length", "ok")].count == 2
        others = [found.steps[Labels("other", "other", "", reason, "ok")] for reason in reasons]
        assert [each.count for each in others] == [10_000 - MOST_LABELS] * 2
        assert found.total().count == 20_000
        assert found.total().cost_pico == 2 * sum(range(10_000))

    def test_too_many_of_everything(self) -> None:
        rnd = random.Random(7)
        records = [
            step(finish_reason=f"f{n}", provider=f"p{n % 700}", status_code=rnd.choice((0, 2, 9)))
            for n in range(5000)
        ]
        found = counted(*records)

        assert len(found.steps) <= MOST_LABELS + 50 + 3
        assert found.total().count == 5000
        by_status = Counter({"ok": 0, "error": 0, "other": 0})
        for labels, steps in found.steps.items():
            by_status[labels.status] += steps.count
        codes = Counter(record["status_code"] for record in records)
        assert by_status == {"ok": codes[0], "error": codes[2], "other": codes[9]}

    @pytest.mark.parametrize(
        ("text", "label"),
        [
            ('a"b\\c', 'a"b\\c'),
            ("a\nb\x00c\x9bd\u2028", "a\ufffdb\ufffdc\ufffdd\ufffd"),
            ("lone \ud800 pair \ud83d\ude00", "lone \ufffd pair 😀"),
            ("m" * 1_000_000, "m" * 120 + "…"),
            ("m" * 121, "m" * 120 + "…"),
            ("m" * 120, "m" * 120),
            ("😀" * 100, "😀" * 30 + "…"),
        ],
        ids=["quotes", "control", "surrogates", "a megabyte", "121 bytes", "120 bytes", "400 bytes"],
    )
    def test_hostile_texts(self, text: str, label: str) -> None:
        found = counted(*[step(model_used=text, provider=text)] * 3)

        assert (only(found)[0].model_used, only(found)[0].provider) == (label, label)
        assert (only(found)[1].count, found.overflowed) == (3, 0)
