"""The price of a recorded step, and the table that is in force."""

from __future__ import annotations

from time import monotonic

from picostep._cost import Cost, PriceTable, PriceTableError
from picostep.errors import ArgumentError, ConfigError
from picostep.prices import builtin, load, price_counts, user_cost_pico
from picostep.settings.urls import refreshed_prices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal
    from typing import Any

    from picostep.prices.overrides import Overrides

__all__ = ["current", "errors", "price_step"]

_MOST_DOLLARS = 10**300  # that Step.cost() takes
_CHECK_EVERY = 5.0  # seconds between looks at the refreshed table's file

_COUNTS = (
    "prompt_uncached_tokens",
    "prompt_cached_tokens",
    "cache_write_tokens",
    "cache_write_1h_tokens",
    "completion_tokens",
    "reasoning_tokens",
)


class _Table:
    """The table in force and what it was read from; one object, so that a swap is one store."""

    __slots__ = ("checked", "identity", "table")

    def __init__(self, table: PriceTable, identity: tuple[int, int, int] | None, checked: float) -> None:
        self.table = table
        self.identity = identity
        self.checked = checked


_current: _Table | None = None
_errors = 0


def errors() -> int:
    """Return how often this process found a refreshed table that it could not use."""
    return _errors


def current() -> PriceTable:
    """
    Return the table in force: the one that `picostep prices refresh` made, else the built-in one.

    A new file is taken up within five seconds. One that cannot be used is logged and counted, and what was in
    force stays so.

    Raises:
        PriceTableError: The built-in table was damaged after it was installed.

        OSError: It cannot be read.
    """
    global _current
    now = monotonic()
    known = _current
    if known is not None and now - known.checked < _CHECK_EVERY:
        return known.table
    identity = _identity()
    if known is None or identity != known.identity:
        known = _Table(_read(identity, known), identity, now)
    else:
        known.checked = now
    _current = known
    return known.table


def _identity() -> tuple[int, int, int] | None:
    from os import stat

    try:
        found = stat(refreshed_prices())
    except (OSError, ConfigError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read(identity: tuple[int, int, int] | None, known: _Table | None) -> PriceTable:
    global _errors
    if identity is None:
        return builtin()
    try:
        return load(refreshed_prices())
    except (PriceTableError, OSError) as error:
        from logging import getLogger

        _errors += 1
        table = known.table if known is not None else builtin()
        getLogger("picostep").error("price table not used: %s; prices come from table %s", error, table.id)
        return table


def price_step(step: Mapping[str, Any], overrides: Overrides | None, table: PriceTable) -> Cost:
    """
    Calculate what a step cost.

    Args:
        step: Its record, or as much of it as is known: `start_ns`, `real_total_cost`, `model_used`,
            `model_requested`, `provider`, `service_tier` (an empty text counts as not given) and the counts
            of tokens.

        overrides: Prices of the user's own.

        table: All others.

    Returns:
        The cost. What the user set counts before everything, rounded half to even to a pico-dollar. A count
        that was not set is 0; if none was, there is no cost.

    Raises:
        ArgumentError: A number is negative or too large.
    """
    get = step.get
    given = get("real_total_cost")
    if given is not None:
        return Cost(_user_pico(given), "user")
    if step.keys().isdisjoint(_COUNTS):
        return Cost(None, "no_usage")
    return price_counts(
        get("model_used") or get("model_requested") or None,
        step["start_ns"],
        get("provider") or None,
        get("service_tier") or None,
        [get(name, 0) for name in _COUNTS],
        overrides,
        table,
    )


def _user_pico(given: float | Decimal) -> int:
    try:
        return user_cost_pico(given)
    except ArgumentError:
        from fractions import Fraction

        if not 0 <= given < _MOST_DOLLARS:  # from a damaged ring
            raise
        # More than a price may be: what the user says goes.
        return round(Fraction(repr(given) if isinstance(given, float) else given) * 10**12)
