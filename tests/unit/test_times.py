"""Times: what `to_ns` takes and refuses, and that `iso_ms` is right for every 64-bit value."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta, timezone, tzinfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picostep.errors import ArgumentError, ArgumentTypeError
from picostep.times import MAX_NS, iso_ms, iso_ns, to_ns

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
LAST = datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=timezone.utc)

offsets = st.timedeltas(timedelta(hours=-23, minutes=-59), timedelta(hours=23, minutes=59))


def exact_ns(when: datetime) -> int:
    """The oracle: timedelta arithmetic, which is exact integer arithmetic."""
    return (when - EPOCH) // timedelta(microseconds=1) * 1000


class TestDatetime:
    @given(
        when=st.datetimes(EPOCH.replace(tzinfo=None), LAST.replace(tzinfo=None)),
        offset=offsets,
    )
    def test_any_aware_datetime_is_exact(self, when: datetime, offset: timedelta) -> None:
        aware = when.replace(tzinfo=timezone.utc).astimezone(timezone(offset))

        assert exact_ns(aware) == to_ns(aware, "t")

    def test_offset_of_microseconds(self) -> None:
        odd = timezone(timedelta(seconds=1, microseconds=7))
        when = datetime(2026, 11, 23, 3, 51, 44, 593000, tzinfo=odd)

        assert exact_ns(when) == to_ns(when, "t")

    def test_naive_names_the_argument(self) -> None:
        with pytest.raises(ArgumentError, match=r"^Run\.end\(\): end_time must be an aware datetime"):
            to_ns(datetime(2026, 11, 23), "Run.end(): end_time")

    def test_tzinfo_without_offset_is_naive(self) -> None:
        class Nowhere(tzinfo):
            def utcoffset(self, when: datetime | None) -> None:
                return None

        with pytest.raises(ArgumentError, match="aware"):
            to_ns(datetime(2026, 11, 23, tzinfo=Nowhere()), "t")

    def test_limits(self) -> None:
        assert to_ns(EPOCH, "t") == 0
        assert to_ns(LAST, "t") == MAX_NS // 1000 * 1000

    @pytest.mark.parametrize(
        "when", [EPOCH - timedelta(microseconds=1), LAST + timedelta(microseconds=1), datetime.max]
    )
    def test_outside_the_limits(self, when: datetime) -> None:
        with pytest.raises(ArgumentError, match="1970-01-01 and 2262-04-11"):
            to_ns(when.replace(tzinfo=timezone.utc), "t")


class TestText:
    @pytest.mark.parametrize(
        ("text", "ns"),
        [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01T00:00Z", 0),
            ("1970-01-01t00:00:00z", 0),
            ("1970-01-01 00:00:01+00:00", 10**9),
            ("1970-01-01T00:00:00.000000001Z", 1),
            ("1970-01-01T00:00:00,5Z", 500_000_000),
            ("1970-01-01T01:00:00+01:00", 0),
            ("1970-01-01T01:00:00+0100", 0),
            ("1970-01-01T01:00:00+01", 0),
            ("1969-12-31T18:30:00-05:30", 0),
            ("1969-12-31T19:00:00.000-05:00", 0),
            ("2026-11-23T03:51:44.593Z", 1_795_405_904_593_000_000),
            ("2026-11-23T03:51:44.593123456Z", 1_795_405_904_593_123_456),
            ("2024-02-29T23:59:59.999999999Z", 1_709_251_199_999_999_999),
            ("2262-04-11T23:47:16.854775807Z", MAX_NS),
        ],
    )
    def test_forms(self, text: str, ns: int) -> None:
        assert ns == to_ns(text, "t")

    @given(
        when=st.datetimes(EPOCH.replace(tzinfo=None), LAST.replace(tzinfo=None)),
        minutes=st.integers(-839, 839),
    )
    def test_what_isoformat_writes(self, when: datetime, minutes: int) -> None:
        aware = when.replace(tzinfo=timezone.utc).astimezone(timezone(timedelta(minutes=minutes)))

        assert exact_ns(aware) == to_ns(aware.isoformat(), "t")

    @given(ns=st.integers(0, MAX_NS))
    def test_nanoseconds_survive(self, ns: int) -> None:
        second, fraction = divmod(ns, 10**9)
        text = (EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S") + f".{fraction:09d}Z"

        assert ns == to_ns(text, "t")

    @pytest.mark.parametrize(
        "text",
        [
            "2026-11-23T03:51:44",
            "2026-11-23T03:51:44.593",
            "2026-11-23 03:51",
        ],
    )
    def test_without_offset(self, text: str) -> None:
        with pytest.raises(ArgumentError, match=r"^Step\.end\(\): end_time must have an offset"):
            to_ns(text, "Step.end(): end_time")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "now",
            "2026-11-23",
            "2026-11-23Z",
            "20261123T035144Z",
            "2026-11-23T03Z",
            "2026-11-23T03:51:44.Z",
            "2026-11-23T03:51:44.1234567890Z",
            "2026-11-23T03:51.5:44Z",
            "2026-11-23T24:00:00Z",
            "2026-11-23T03:60:00Z",
            "2026-11-23T03:51:60Z",
            "2026-02-30T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "0000-01-01T00:00:00Z",
            "2026-11-23T03:51:44Z ",
            " 2026-11-23T03:51:44Z",
            "2026-11-23T03:51:44Zulu",
            "2026-11-23T03:51:44+1:00",
            "2026-11-23T03:51:44+01:0",
            "2026-11-23T03:51:44+24:00",
            "2026-11-23T03:51:44+01:60",
            "2026-11-23T03:51:44+01:00:00",
            "+026-11-23T03:51:44Z",
            "2026-11-23T-3:51:44Z",
            "\uff12026-11-23T03:51:44Z",
            "2026-11-23T03:51:44.\u0663Z",
            "2026-11-23T03:51:44\N{MINUS SIGN}01:00",
            "2026-11-23T03:51:44Z\n",
            "\ud800",
        ],
    )
    def test_not_a_time(self, text: str) -> None:
        with pytest.raises(ArgumentError, match=r"^t must be ISO-8601 text") as caught:
            to_ns(text, "t")

        assert repr(text) in str(caught.value)

    @pytest.mark.parametrize(
        "text", ["1969-12-31T23:59:59.999Z", "1970-01-01T00:59:59+01:00", "2262-04-11T23:47:16.854775808Z"]
    )
    def test_outside_the_limits(self, text: str) -> None:
        with pytest.raises(ArgumentError, match="1970-01-01 and 2262-04-11"):
            to_ns(text, "t")

    @given(st.text(max_size=40))
    def test_any_text_gives_a_time_or_our_error(self, text: str) -> None:
        with suppress(ArgumentError):
            assert 0 <= to_ns(text, "t") <= MAX_NS

    def test_long_text_is_cut_in_the_message(self) -> None:
        with pytest.raises(ArgumentError) as caught:
            to_ns("x" * 10_000, "t")

        assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [None, 0, 1.5, True, b"2026-11-23T03:51:44Z", object(), EPOCH.date()])
def test_other_types(value: object) -> None:
    with pytest.raises(ArgumentTypeError, match=rf"^t must be .* not {type(value).__name__}$"):
        to_ns(value, "t")


class TestIsoMs:
    @pytest.mark.parametrize(
        ("ns", "text"),
        [
            (0, "1970-01-01T00:00:00.000Z"),
            (999_999, "1970-01-01T00:00:00.000Z"),
            (1_000_000, "1970-01-01T00:00:00.001Z"),
            (1_795_405_904_593_999_999, "2026-11-23T03:51:44.593Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (2**63 - 1, "2262-04-11T23:47:16.854Z"),
            (-(2**63), "1677-09-21T00:12:43.145Z"),
        ],
    )
    def test_examples(self, ns: int, text: str) -> None:
        assert text == iso_ms(ns)

    @given(ns=st.integers(-(2**63), 2**63 - 1))
    def test_every_int64_against_datetime(self, ns: int) -> None:
        when = EPOCH + timedelta(microseconds=ns // 1000)
        expected = when.strftime("%Y-%m-%dT%H:%M:%S.").rjust(20, "0") + f"{when.microsecond // 1000:03d}Z"

        assert expected == iso_ms(ns)

    @pytest.mark.slow
    def test_every_day_of_400_years(self) -> None:
        day = datetime(1700, 1, 1, tzinfo=timezone.utc)
        for number in range(146_097):
            when = day + timedelta(days=number)
            ns = (when - EPOCH) // timedelta(microseconds=1) * 1000

            assert when.strftime("%Y-%m-%dT00:00:00.000Z") == iso_ms(ns)

    def test_neighbours_of_a_second_do_not_share_its_text(self) -> None:
        second = 1_795_405_904_000_000_000

        assert [iso_ms(second - 1), iso_ms(second), iso_ms(second + 10**9)] == [
            "2026-11-23T03:51:43.999Z",
            "2026-11-23T03:51:44.000Z",
            "2026-11-23T03:51:45.000Z",
        ]


@pytest.mark.parametrize(
    ("ns", "expected"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (1795405904593123456, "2026-11-23T03:51:44.593123456Z"),
        (MAX_NS, "2262-04-11T23:47:16.854775807Z"),
    ],
)
def test_iso_ns_has_all_digits(ns: int, expected: str) -> None:
    assert iso_ns(ns) == expected
