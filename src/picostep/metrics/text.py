"""Metrics in the text format of Prometheus, with exact numbers."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from picostep.metrics.families import Family
    from picostep.metrics.histogram import Buckets

__all__ = ["CONTENT_TYPE", "decimal", "text"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def text(families: Iterable[Family]) -> bytes:
    """
    Return the text.

    Not by prometheus_client, which makes a float of every number first. Whoever scrapes may do the same; but
    then it is one rounding of an exact sum.
    """
    return "".join(line for family in families for line in _lines(family)).encode(errors="replace")


def decimal(value: int, decimals: int) -> str:
    """Write a whole number with its last digits behind the point: 2500 with 3 decimals is "2.5"."""
    whole, rest = divmod(abs(value), 10**decimals)
    digits = f"{rest:0{decimals}d}".rstrip("0") if rest else ""
    return f"{'-' if value < 0 else ''}{whole}{'.' if digits else ''}{digits}"


def _lines(family: Family) -> Iterator[str]:
    yield f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n"
    for labels, value in family.points:
        named = ",".join(f'{name}="{label.translate(_ESCAPES)}"' for name, label in labels.items() if label)
        if isinstance(value, int):
            braces = f"{{{named}}}" if named else ""
            yield f"{family.name}{braces} {decimal(value, family.decimals)}\n"
        else:
            yield from _histogram(family, named, value)


def _histogram(family: Family, named: str, value: Buckets) -> Iterator[str]:
    before = f"{family.name}_bucket{{{named}{',' if named else ''}le="
    for bound, count in zip(value.bounds, accumulate(value.counts), strict=False):  # the last has none
        yield f'{before}"{decimal(bound, family.decimals)}"}} {count}\n'
    yield f'{before}"+Inf"}} {value.count}\n'
    braces = f"{{{named}}}" if named else ""
    yield f"{family.name}_sum{braces} {decimal(value.sum, family.decimals)}\n"
    yield f"{family.name}_count{braces} {value.count}\n"
