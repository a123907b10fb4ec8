"""What some options take: points in time, and counts of tokens."""

from __future__ import annotations

import re
import time

import click

from picostep.errors import PicostepError
from picostep.times import to_ns

__all__ = ["counts", "moment"]

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_AGO = re.compile(r"([0-9]{1,6})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def moment(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """
    Turn an option's text into Unix nanoseconds.

    It is ISO 8601 with an offset, a day (which begins in UTC), or how long ago: `90m`, `24h`, `7d`.
    """
    if text is None:
        return None
    ago = _AGO.fullmatch(text)
    if ago:
        return max(0, time.time_ns() - int(ago[1]) * _SECONDS[ago[2]] * 1_000_000_000)
    try:
        return to_ns(f"{text}T00:00Z" if _DAY.fullmatch(text) else text, "the time")
    except PicostepError as error:
        raise click.BadParameter(f"{error}; or a day such as 2026-11-23, or 90m, 24h, 7d") from error


def counts(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[int, int, int] | None:
    """Turn an option's text into counts of tokens: uncached, cached, completion."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(re.fullmatch("[0-9]{1,18}", part) for part in parts):
        raise click.BadParameter(
            "it takes three counts, uncached,cached,completion: for example 1200,800,350"
        )
    uncached, cached, completion = map(int, parts)
    return uncached, cached, completion
