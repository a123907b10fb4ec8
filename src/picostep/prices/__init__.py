"""
What a step cost: the built-in price table, prices of the user's own, and exact amounts.

A cost is a whole number of pico-dollars (1e-12 USD). docs/reference/prices.md has the rules; nothing here
uses the network, and importing this package loads neither the table nor genai-prices.
"""

from __future__ import annotations

from picostep._cost import STATUSES, Cost, CostSum, PriceTable, PriceTableError

TYPE_CHECKING = False  # what type checkers take for typing.TYPE_CHECKING; the host need not load typing
if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal
    from typing import Any

    from picostep.prices.overrides import Overrides

__all__ = [
    "STATUSES",
    "Cost",
    "CostSum",
    "Overrides",
    "PriceTable",
    "PriceTableError",
    "builtin",
    "explain",
    "load",
    "price",
    "user_cost_pico",
]

_builtin: PriceTable | None = None


def builtin() -> PriceTable:
    """
    Return the table that came with this version of picostep, read from its file at the first call.

    Raises:
        PriceTableError: The file was damaged after it was installed.

        OSError: The file cannot be read.
    """
    global _builtin
    if _builtin is None:
        from os import path

        _builtin = _read(path.join(path.dirname(__file__), "table.bin"))
    return _builtin


def load(path: str) -> PriceTable:
    """
    Read a table from a file and check all of it.

    Args:
        path: A file made by `picostep prices refresh`.

    Raises:
        PriceTableError: It is not a table that can be used. The message names the file.

        OSError: The file cannot be read.
    """
    table = _read(path)
    try:
        table.check()
    except PriceTableError as error:
        raise PriceTableError(f"{path}: {error}") from None
    return table


def _read(path: str) -> PriceTable:
    with open(path, "rb", opener=_without_waiting) as file:
        data = file.read(64 * 1024 * 1024 + 1) or b""
    try:
        return PriceTable(data)
    except PriceTableError as error:
        raise PriceTableError(f"{path}: {error}") from None


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a FIFO without waiting for whoever writes to it."""
    import os

    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def price(
    model: str | None,
    *,
    start_ns: int,
    provider: str | None = None,
    service_tier: str | None = None,
    prompt_uncached: int = 0,
    prompt_cached: int = 0,
    cache_write: int = 0,
    cache_write_1h: int = 0,
    completion: int = 0,
    reasoning: int = 0,
    overrides: Overrides | None = None,
    table: PriceTable | None = None,
) -> Cost:
    """
    Calculate what a step cost.

    Args:
        model: The model that answered, else the one that was asked for; None if neither is known.

        start_ns: When the step began, Unix nanoseconds UTC: it chooses among dated and daily prices.

        provider: Who served it; None if only the name of the model can say so.

        service_tier: `"batch"`, `"flex"`, `"priority"`, `"fast"` …; None for the standard.

        prompt_uncached: Prompt tokens neither read from nor written to a cache.

        prompt_cached: Prompt tokens read from a cache. They are not part of `prompt_uncached`.

        cache_write: Prompt tokens written to a cache. They are not part of the two above.

        cache_write_1h: Those of `cache_write` that live for an hour.

        completion: Tokens generated, reasoning included.

        reasoning: Those of `completion` that are reasoning.

        overrides: Prices of the user's own, which win over the table.

        table: The price table; None for the built-in one.

    Returns:
        The cost. Its `pico` is None if the price is not known.

    Raises:
        ArgumentTypeError: A name is not str, or a number not an int (bool and float are not).

        ArgumentError: A number is negative or does not fit 64 bits.
    """
    counts = (prompt_uncached, prompt_cached, cache_write, cache_write_1h, completion, reasoning)
    if table is None:
        table = builtin()
    return price_counts(model, start_ns, provider, service_tier, counts, overrides, table)


def price_counts(
    model: str | None,
    start_ns: int,
    provider: str | None,
    service_tier: str | None,
    counts: Sequence[int],
    overrides: Overrides | None,
    table: PriceTable,
) -> Cost:
    """Do what `price()` does, with the six counts of tokens in its order: it takes half the time."""
    if overrides is not None and model is not None:
        found = overrides.find(model, provider)
        if found is not None:
            return found.cost(*counts)
    return table.price(model, start_ns, provider, service_tier, *counts)


def explain(model: str, **arguments: Any) -> dict[str, Any]:
    """
    Tell how a price comes about; arguments and errors as for `price()`.

    Returns:
        A dict of plain values (str, int, None, lists and dicts of these), for JSON or for people;
        docs/reference/prices.md lists its keys.
    """
    from picostep.prices.explanation import explain as explained

    return explained(model, **arguments)


def user_cost_pico(amount: int | float | Decimal | str) -> int:
    """
    Convert a cost that the user gave to whole pico-dollars, for sums.

    Args:
        amount: US dollars. A float counts as the shortest decimal that denotes it: what its user typed.

    Returns:
        Pico-dollars; the exact decimal rounded half to even.

    Raises:
        ArgumentTypeError: It is none of these types (bool is not).

        ArgumentError: It is not a number, not finite, negative, or 1e15 or more.
    """
    from picostep.amounts import pico_rounded

    return pico_rounded(amount)


def __getattr__(name: str) -> Any:
    if name == "Overrides":
        from picostep.prices.overrides import Overrides

        return Overrides
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
