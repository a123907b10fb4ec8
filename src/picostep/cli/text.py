"""How values read in the terminal. Texts come from models and their users: none of them reaches it raw."""

from __future__ import annotations

import json
import re
from datetime import date, datetime
from typing import Any

from picostep.amounts import usd
from picostep.times import iso_ms

__all__ = [
    "UNKNOWN",
    "clean",
    "clock",
    "cost",
    "count",
    "date_and_time",
    "duration",
    "exact",
    "gist",
    "lines",
    "metadata_line",
    "money",
    "of_step",
    "one_line",
    "rate",
    "short_id",
    "size",
    "tokens",
]

_UNITS = "kMGTPE"
_DOLLAR = 10**12
UNKNOWN = "-"
NO_PRICE = "?"

# Control characters (C0 with ESC, C1 with the one-byte CSI), line separators, what reorders a line to the
# eye, and surrogates, which cannot be written.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def clean(text: str) -> str:
    """Return the text on one line, with everything that a terminal would act on as a visible escape."""
    return _UNSAFE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def lines(text: str) -> list[str]:
    """Return the whole text, line by line, each one cleaned; tabs become spaces."""
    return [clean(line.expandtabs(4)) for line in re.split("\r\n|\n", text)]


def one_line(text: str, limit: int) -> str:
    """Return the beginning of a text on one line of at most `limit` characters."""
    shown = clean(" ".join(text[: 4 * limit].split()))
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def gist(text: str) -> str:
    """Return what to preview of a text: the last one of provider messages, other JSON in readable form."""
    if text[:1] not in ("[", "{"):
        return text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    last = value[-1] if isinstance(value, list) and value else value
    if isinstance(last, dict) and isinstance(last.get("content"), str):
        return f"{last.get('role', 'message')}: {last['content']}"
    return json.dumps(value, ensure_ascii=False)


def short_id(run_id: str, length: int = 8) -> str:
    """Return the beginning of a generated id; ids that people chose are shown whole up to 24 characters."""
    return clean(run_id[: length if _UUID.fullmatch(run_id) else max(length, 24)])


def clock(ns: int) -> str:
    """Return local time: the time of day, or date and time to the minute if it was not today."""
    moment = _local(ns)
    if moment is None:
        return iso_ms(ns)
    return f"{moment:%H:%M:%S}" if moment.date() == date.today() else f"{moment:%Y-%m-%d %H:%M}"


def date_and_time(ns: int) -> str:
    """Return local date and time with the offset from UTC."""
    moment = _local(ns)
    return iso_ms(ns) if moment is None else f"{moment:%Y-%m-%d %H:%M:%S %z}"


def _local(ns: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(ns // 1_000_000_000).astimezone()
    except (OverflowError, ValueError, OSError):  # a year that the platform does not know
        return None


def duration(ns: int) -> str:
    """Return a length of time in the unit that suits it."""
    if abs(ns) < 1_000_000_000:
        return f"{ns / 1e6:.2f} ms" if abs(ns) < 1_000_000 else f"{ns // 1_000_000} ms"
    seconds = ns / 1e9
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


def count(number: int | None) -> str:
    """Return a count in few characters: exact below 10,000."""
    if number is None:
        return UNKNOWN
    if number < 10_000:
        return str(number)
    power = min((len(str(number)) - 1) // 3, len(_UNITS))
    return f"{number / 1000**power:.4g}{_UNITS[power - 1]}"


def rate(number: int, seconds: float) -> str:
    """Return how many there were in a second: three digits at least where there are less than a hundred."""
    found = number / seconds if seconds else 0.0
    return f"{found:.3g}" if 0 < found < 100 else count(round(found))


def size(number: int) -> str:
    """Return a number of bytes."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} B"


def tokens(uncached: int | None, cached: int | None, written: int | None, completion: int | None) -> str:
    """
    Return `in(cached)/out`, where `in` includes what is read from a cache and written to it; "-" for what is
    not known.
    """
    if uncached is None and cached is None and written is None and completion is None:
        return UNKNOWN
    told = [number for number in (uncached, cached, written) if number is not None]
    read = count(sum(told) if told else None)
    return f"{read}{f'({count(cached)})' if cached else ''}/{count(completion)}"


def money(pico: int) -> str:
    """
    Return pico-dollars (1e-12 USD) as dollars.

    From one dollar on to the cent; below it three significant digits, and at least two decimals.
    """
    decimals = 2 if pico >= _DOLLAR else max(2, 15 - len(str(pico)))
    unit = 10 ** max(12 - decimals, 0)
    rounded, rest = divmod(pico, unit)
    rounded += 2 * rest > unit or (2 * rest == unit and rounded % 2 == 1)
    whole, fraction = divmod(rounded * unit, _DOLLAR)
    return f"${whole}.{f'{fraction:012d}'.rstrip('0').ljust(2, '0')}"


def exact(pico: int) -> str:
    """Return pico-dollars as dollars with all digits, and at least two decimals."""
    whole, _, fraction = usd(pico).partition(".")
    return f"${whole}.{fraction.ljust(2, '0')}"


def cost(pico: int | None, steps: int, unpriced: int) -> str:
    """
    Return what steps cost together.

    `≥` stands before a sum that leaves out steps, `?` instead of one that would leave out all; "-" if there
    are no steps.
    """
    if pico is None:
        return NO_PRICE if steps else UNKNOWN
    return f"{'≥' if unpriced else ''}{money(pico)}"


def of_step(pico: int | None, status: str | None, given: str | None) -> str:
    """Return what one step cost and, unless it simply has a price, how that is known or why it is not."""
    if pico is None and given is not None:  # too much to be believed in a sum
        shown = f"${clean(given)}"
    else:
        shown = NO_PRICE if pico is None else money(pico)
    return shown if status in (None, "priced") else f"{shown} ({one_line(status, 20)})"


def metadata_line(metadata: dict[str, Any]) -> str:
    """Return metadata as `key=value` pairs."""
    return "  ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for key, value in metadata.items()
    )
