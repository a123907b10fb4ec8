"""
Times as picostep keeps them (integer nanoseconds since 1970-01-01T00:00:00Z) and as they are written.

`to_ns()` reads what a caller gives, `iso_ms()` writes what goes on the wire, `iso_ns()` what people read. All
are exact: no float is involved.
"""

from __future__ import annotations

from picostep.errors import ArgumentError, ArgumentTypeError

TYPE_CHECKING = False  # what type checkers take for typing.TYPE_CHECKING; the host need not load typing
if TYPE_CHECKING:
    from datetime import datetime

__all__ = ["MAX_NS", "iso_ms", "iso_ns", "to_ns"]

MAX_NS = 2**63 - 1
"""The latest time that can be kept: 2262-04-11T23:47:16.854775807Z."""

_SECOND = 1_000_000_000
_EPOCH_ORDINAL = 719_163  # date(1970, 1, 1).toordinal()
_FORMS = "2026-11-23T03:51:44.593Z or 2026-11-23T04:51:44+01:00"


def to_ns(value: object, name: str) -> int:
    """
    Turn a point in time into nanoseconds since the epoch.

    Args:
        value: An aware `datetime`, or ISO-8601 text in extended format with `Z` or a numeric offset: date,
            `T` or a space, hours and minutes, then optionally seconds and 1 to 9 digits of a fraction.

        name: The argument as the caller knows it, for example `"Run.end(): end_time"`; messages begin with
            it.

    Returns:
        Nanoseconds since 1970-01-01T00:00:00Z, from 0 to `MAX_NS`.

    Raises:
        ArgumentTypeError: `value` is neither a `datetime` nor a `str`.

        ArgumentError: The time has no offset, is not valid, or lies before 1970 or after 2262-04-11.
    """
    from datetime import datetime

    if isinstance(value, str):
        ns = _parse(value, name)
    elif isinstance(value, datetime):
        ns = _from_datetime(value, name)
    else:
        raise ArgumentTypeError(
            f"{name} must be an aware datetime or ISO-8601 text such as {_FORMS}, not {type(value).__name__}"
        )
    if not 0 <= ns <= MAX_NS:
        raise ArgumentError(f"{name} must lie between 1970-01-01 and 2262-04-11 UTC, got {_shown(value)}")
    return ns


def iso_ms(ns: int) -> str:
    """
    Write a time the way the wire wants it: UTC, milliseconds, as in `2026-11-23T03:51:44.593Z`.

    Digits below the millisecond are cut off, not rounded, so that no event seems later than it was.

    Args:
        ns: Nanoseconds since 1970-01-01T00:00:00Z; every signed 64-bit value is valid.
    """
    global _last_second
    second, milli = divmod(ns // 1_000_000, 1000)
    # Records of a batch share their seconds. One tuple, replaced whole: a thread sees the old pair or the
    # new one.
    known = _last_second
    if known[0] != second:
        known = _last_second = (second, _date_and_time(second))
    return f"{known[1]}.{milli:03d}Z"


def iso_ns(ns: int) -> str:
    """
    Write a time in UTC with all its digits, as in `2026-11-23T03:51:44.593123456Z`.

    Args:
        ns: Nanoseconds since 1970-01-01T00:00:00Z; every signed 64-bit value is valid.
    """
    return f"{iso_ms(ns)[:-5]}.{ns % 1_000_000_000:09d}Z"


_last_second: tuple[int, str] = (0, "1970-01-01T00:00:00")


def _date_and_time(second: int) -> str:
    days, rest = divmod(second, 86_400)
    # Gregorian calendar by integer arithmetic (years that begin in March, in eras of 400), because neither
    # gmtime() nor datetime covers negative values on every platform.
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted_month + 2) // 5 + 1
    month = shifted_month + 3 if shifted_month < 10 else shifted_month - 9
    year = era * 400 + year_of_era + (month <= 2)
    hours, rest = divmod(rest, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{year:04d}-{month:02d}-{day:02d}T{hours:02d}:{minutes:02d}:{seconds:02d}"


def _from_datetime(value: datetime, name: str) -> int:
    offset = value.utcoffset()
    if offset is None:
        raise ArgumentError(
            f"{name} must be an aware datetime (with tzinfo, for example timezone.utc), got {_shown(value)}"
        )
    seconds = (value.toordinal() - _EPOCH_ORDINAL) * 86_400
    seconds += value.hour * 3600 + value.minute * 60 + value.second
    seconds -= offset.days * 86_400 + offset.seconds
    return seconds * _SECOND + (value.microsecond - offset.microseconds) * 1000


def _parse(text: str, name: str) -> int:
    from datetime import date

    scan = _Scanner(text)
    try:
        year, month, day = scan.digits(4), scan.after("-", 2), scan.after("-", 2)
        ordinal = date(year, month, day).toordinal()  # ValueError for a day that does not exist
        scan.one_of("Tt ")
        hours, minutes = scan.digits(2), scan.after(":", 2)
        seconds = scan.after(":", 2) if scan.peek() == ":" else 0
        fraction = scan.fraction() if scan.peek() in (".", ",") else 0
        if hours > 23 or minutes > 59 or seconds > 59:
            raise ValueError
        if scan.at_end():
            raise ArgumentError(f"{name} must have an offset (Z or +01:00), got {_shown(text)}")
        offset = scan.offset()
        if not scan.at_end():
            raise ValueError
    except ArgumentError:
        raise
    except ValueError:
        raise ArgumentError(f"{name} must be ISO-8601 text such as {_FORMS}, got {_shown(text)}") from None
    clock = hours * 3600 + minutes * 60 + seconds - offset
    return ((ordinal - _EPOCH_ORDINAL) * 86_400 + clock) * _SECOND + fraction


class _Scanner:
    """Reads one ISO-8601 text from left to right; methods raise ValueError where the text does not fit."""

    __slots__ = ("_at", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def at_end(self) -> bool:
        return self._at == len(self._text)

    def peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def one_of(self, allowed: str) -> str:
        char = self.peek()
        if not char or char not in allowed:
            raise ValueError
        self._at += 1
        return char

    def digits(self, count: int) -> int:
        part = self._text[self._at : self._at + count]
        if len(part) != count or not (part.isascii() and part.isdigit()):
            raise ValueError
        self._at += count
        return int(part)

    def after(self, separator: str, count: int) -> int:
        self.one_of(separator)
        return self.digits(count)

    def fraction(self) -> int:
        """Read `.` or `,` and 1 to 9 digits; return them as nanoseconds."""
        self.one_of(".,")
        start = self._at
        while self.peek() and self.peek() in "0123456789":
            self._at += 1
        found = self._text[start : self._at]
        if not 1 <= len(found) <= 9:
            raise ValueError
        return int(found.ljust(9, "0"))

    def offset(self) -> int:
        """Read `Z`, `+hh`, `+hh:mm` or `+hhmm`; return seconds east of UTC."""
        sign = self.one_of("Zz+-")
        if sign in "Zz":
            return 0
        hours, minutes = self.digits(2), 0
        if not self.at_end():
            if self.peek() == ":":
                self.one_of(":")
            minutes = self.digits(2)
        if hours > 23 or minutes > 59:
            raise ValueError
        seconds = hours * 3600 + minutes * 60
        return -seconds if sign == "-" else seconds


def _shown(value: object) -> str:
    """Write a caller's value for a message: its repr, cut to a length that a log line bears."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
