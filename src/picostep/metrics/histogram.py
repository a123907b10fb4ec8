"""Histograms of whole numbers: exact counts below given bounds, and percentiles of a stated error."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ddsketch.mapping import LogarithmicMapping

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

__all__ = ["RELATIVE_ERROR", "Buckets", "Histogram"]

RELATIVE_ERROR = 0.01
"""Of percentiles, between LOWEST and HIGHEST."""

LOWEST, HIGHEST = 1_000, 10_000_000_000_000
"""Nanoseconds: percentiles below and above are these, or within 1 % of them."""

_mapping = LogarithmicMapping(RELATIVE_ERROR)
_KEYS = range(_mapping.key(LOWEST), _mapping.key(HIGHEST) + 1)
# Between the bins; to look there for a value takes a third of the time of its logarithm.
_EDGES = [int(_mapping.value(key) * (1 + _mapping.gamma) / 2) for key in _KEYS[:-1]]
_NO_BINS = bytes(8 * len(_KEYS))


class Buckets:
    """
    Counts of values up to each of some bounds, as Prometheus and OpenTelemetry have them.

    Attributes:
        bounds: Upper bounds, inclusive, ascending.

        counts: Of each bucket alone; one more than there are bounds.

        sum: Of all values.

    Args:
        bounds: Shared, not copied.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[int]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def add(self, value: int) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def copy(self) -> Self:
        copied = type(self)(self.bounds)
        copied.counts = self.counts[:]
        copied.sum = self.sum
        return copied

    def as_plain(self) -> list[Any]:
        """Return what JSON can hold, for `fill()`."""
        return [self.counts, self.sum]

    def fill(self, plain: list[Any]) -> None:
        """Take the content of another one with the same bounds, by its `as_plain()`; raises if it is none."""
        counts, self.sum = plain[:2]
        self.counts = [mine + its for mine, its in zip(self.counts, counts, strict=True)]

    def merge(self, other: Self, sign: int = 1) -> None:
        """Add another one with the same bounds, or with `sign=-1` take an earlier state of this one away."""
        self.counts = [mine + sign * its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += sign * other.sum


class Histogram(Buckets):
    """
    Buckets of nanoseconds that know percentiles, too.

    The bins are those of DDSketch, whose library says where they are. They are kept here as whole numbers:
    the library has floats, and no way to take an earlier state away.
    """

    __slots__ = ("_bins",)

    def __init__(self, bounds: Sequence[int]) -> None:
        super().__init__(bounds)
        self._bins = array("Q", _NO_BINS)

    def add(self, value: int) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
        self._bins[bisect_left(_EDGES, value)] += 1

    def copy(self) -> Self:
        copied = super().copy()
        copied._bins = self._bins[:]
        return copied

    def as_plain(self) -> list[Any]:
        return [*super().as_plain(), [[index, count] for index, count in enumerate(self._bins) if count]]

    def fill(self, plain: list[Any]) -> None:
        super().fill(plain)
        for index, count in plain[2]:
            self._bins[index] = count

    def merge(self, other: Self, sign: int = 1) -> None:
        super().merge(other, sign)
        self._bins = array(
            "Q", [mine + sign * its for mine, its in zip(self._bins, other._bins, strict=True)]
        )

    def quantile(self, q: float) -> float | None:
        """
        Return the value that a share of all values does not exceed.

        Args:
            q: The share, 0 to 1: 0.99 for the 99th percentile.

        Returns:
            Nanoseconds, within RELATIVE_ERROR of the value at rank ⌊q · (count - 1)⌋; None without values.
        """
        if not any(self.counts):
            return None
        index = bisect_right(list(accumulate(self._bins)), q * (self.count - 1))
        return float(_mapping.value(_KEYS[index]))
