"""
The price table in memory, the cost of a step, and sums that are exact.

A table is one block of bytes, compiled by `picostep.prices.compile`. It is trusted only after every index and
length in it was checked: `PriceTable()` raises for anything else, and no look-up can leave its memory.
Names are resolved in Python (`picostep.prices.resolve`), once a name; here is the cache of the answers.
"""

from decimal import Decimal
from typing import Any, final

from picostep.errors import PicostepError

MAGIC: bytes
STATUSES: tuple[str, ...]

class PriceTableError(PicostepError, ValueError):
    """
    Raised when bytes are not a price table that can be used.

    The message says what is wrong: not a table, of another version, damaged, or inconsistent.
    """

def check_tokens(
    uncached: int, cached: int, cache_write: int, cache_write_1h: int, completion: int, reasoning: int
) -> bool:
    """Return whether no part is larger than its whole; see `PriceTable.cost()` for arguments and errors."""

@final
class PriceTable:
    """
    A price table out of its bytes.

    Args:
        data: What `picostep.prices.compile` made. It is copied.

    Raises:
        PriceTableError: The bytes are not a table, are of another version, damaged, or inconsistent.

    Attributes:
        id: 12 hex digits that name the content; stored with each cost.

        source: Where the prices come from, for example `"genai-prices 0.2.3"`.

        size: Bytes in memory, without the cache of names.

        variants: Names of the price variants, "standard" first.

    Thread-safety: any number of threads may use one table.
    """

    def __init__(self, data: bytes) -> None: ...
    def __len__(self) -> int: ...
    @property
    def id(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def variants(self) -> tuple[str, ...]: ...
    def find(self, model: str, provider: str | None = None) -> int:
        """
        Find a model by name.

        Args:
            model: The model as it was called, or as the response named it. str.

            provider: Who served it, in a spelling of docs/reference/prices.md; None: the name says it.

        Returns:
            The index of the model, at least 0. -1: the model is not known. -2: the provider is not known.

        Raises:
            ArgumentTypeError: One of them is not str.
        """
    def variant(self, service_tier: str | None = None) -> int:
        """Return the number of a service tier for `cost()`: 0 is the standard, -1 one that is not known."""
    def name(self, index: int) -> tuple[str, str, str]:
        """Return `(provider, model, via)` of a model; `via` is the provider whose price is used."""
    def check(self) -> None:
        """
        Read all the names.

        A table is usable without: names are read as they are needed.

        Raises:
            PriceTableError: A rule cannot be read, or the names do not belong to the models.
        """
    def cost(
        self,
        index: int,
        start_ns: int,
        variant: int = 0,
        uncached: int = 0,
        cached: int = 0,
        cache_write: int = 0,
        cache_write_1h: int = 0,
        completion: int = 0,
        reasoning: int = 0,
    ) -> Cost:
        """
        Return what a step cost.

        Args:
            index: Of `find()`, at least 0.

            start_ns: When the step began, Unix nanoseconds UTC.

            variant: Of `variant()`.

            uncached: Prompt tokens neither read from nor written to a cache.

            cached: Prompt tokens read from a cache.

            cache_write: Prompt tokens written to a cache, and in neither of the two above.

            cache_write_1h: Those of `cache_write` that live for an hour.

            completion: Tokens generated, reasoning included.

            reasoning: Those of `completion` that are reasoning.

        Raises:
            ArgumentTypeError: A number is not an int.

            ArgumentError: A count is negative, a number does not fit 64 bits, or there is no such model.
        """
    def price(
        self,
        model: str | None,
        start_ns: int,
        provider: str | None,
        service_tier: str | None,
        uncached: int,
        cached: int,
        cache_write: int,
        cache_write_1h: int,
        completion: int,
        reasoning: int,
    ) -> Cost:
        """
        Return what a step cost by the names of its model, provider and service tier.

        Args:
            model, provider: As for `find()`; None is not known.

            service_tier: As for `variant()`.

            others: As for `cost()`.

        Raises:
            ArgumentTypeError, ArgumentError: As for `cost()` and `find()`.
        """
    def row(self, number: int) -> tuple[int, int, int, int, int, int, int, int, int]:
        """Return a row: six rates in pico-dollars a token, a request's fee, `above`, the next tier's row."""
    def slot(self, number: int) -> tuple[int, int, int, int]:
        """Return a slot: `(day, second of day, row, flags)`; see `tracks()`."""
    def tracks(self, index: int) -> dict[str, list[tuple[int, int, int, int]]]:
        """
        Return the prices of a model: `{variant: [(day, second of day, row, flags), …]}`, in order of time.

        `day` counts from 1970-01-01 UTC; the first one is -2**31.
        """
    def counts(self) -> dict[str, int]:
        """Return how much there is of everything: rows, slots, tracks, models."""

@final
class Cost:
    """
    What a step cost, exactly, and how sure that is.

    Attributes:
        pico: The cost in pico-dollars (1e-12 USD); None if it is not known. Never 0 for want of a price.

        status: One of `picostep.prices.STATUSES`.

        table: The id of the price table, or of the overrides, that was used; "" for none.

        row: A line for people: which price it was.

        usd: The cost in US dollars as an exact Decimal, or None.

        place: `(model, variant, slot, row)`, numbers in the table; None if it was not the table that priced.

    Immutable; two are equal if all four are.
    """

    def __init__(self, pico: int | None, status: str, table: str = "", row: str = "") -> None: ...
    @property
    def pico(self) -> int | None: ...
    @property
    def usd(self) -> Decimal | None: ...
    @property
    def status(self) -> str: ...
    @property
    def table(self) -> str: ...
    @property
    def row(self) -> str: ...
    @property
    def place(self) -> tuple[int, int, int, int] | None: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __reduce__(self) -> tuple[Any, ...]: ...

def usd(pico: int) -> Decimal:
    """Return pico-dollars in US dollars, as an exact Decimal."""

@final
class CostSum:
    """
    A sum of costs that neither drifts nor overflows.

    Attributes:
        pico: The sum in pico-dollars, int.

        usd: The sum in US dollars as an exact Decimal.

        priced: Costs that were added.

        unpriced: Steps without a price that were added; as long as there are any, the sum is a lower bound.

    Thread-safety: `add()` may be called from any number of threads.
    """

    def __init__(self) -> None: ...
    def add(self, pico: int | None) -> CostSum:
        """
        Add a cost in pico-dollars; None counts as a step without a price. Returns the sum itself.

        Raises:
            ArgumentTypeError: It is neither an int nor None.
        """
    @property
    def pico(self) -> int: ...
    @property
    def usd(self) -> Decimal: ...
    @property
    def priced(self) -> int: ...
    @property
    def unpriced(self) -> int: ...
