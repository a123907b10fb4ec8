"""Prices of the user's own, from code or from a file: they win over the price table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from picostep._cost import Cost, check_tokens
from picostep.amounts import usd
from picostep.errors import ArgumentTypeError
from picostep.settings.prices import KEYS, MILLION, Plain, prices_in, prices_of

__all__ = ["Override", "Overrides", "describe"]


class Override:
    """
    The price of one model, whatever its service tier, the length of its prompt and the time.

    Attributes:
        provider: Lower case; "" for any.

        model: Lower case.

        rates: Pico-dollars a token (the last one: a request), in the order of `KEYS`.

        table: The id of the overrides it belongs to.
    """

    __slots__ = ("model", "provider", "rates", "table")

    def __init__(self, provider: str, model: str, rates: tuple[int, ...], table: str) -> None:
        self.provider = provider
        self.model = model
        self.rates = rates
        self.table = table

    def __repr__(self) -> str:
        return f"<Override {self.name}: {self.rates}>"

    @property
    def name(self) -> str:
        return f"{self.provider}/{self.model}" if self.provider else self.model

    def cost(
        self,
        uncached: int = 0,
        cached: int = 0,
        cache_write: int = 0,
        cache_write_1h: int = 0,
        completion: int = 0,
        reasoning: int = 0,
    ) -> Cost:
        """Return what a step cost by this price; arguments and errors as for `PriceTable.cost()`."""
        row = f"override of {self.name}"
        if not check_tokens(uncached, cached, cache_write, cache_write_1h, completion, reasoning):
            return Cost(None, "invalid_usage", self.table, row)
        counts = (
            uncached,
            cached,
            cache_write - cache_write_1h,
            cache_write_1h,
            completion - reasoning,
            reasoning,
            1,
        )
        pico = sum(count * rate for count, rate in zip(counts, self.rates, strict=True))
        return Cost(pico, "override", self.table, row)


class Overrides:
    """
    Prices of the user's own.

    Args:
        prices: From a model, or a tuple `(provider, model)`, to a mapping with the keys `input` and `output`
            and, if need be, `cached_input`, `cache_write`, `cache_write_1h`, `reasoning` (US dollars for a
            million tokens) and `request` (US dollars for each request). Amounts are text, Decimal or int. If
            left out, cached input and cache writes cost as input, writes for an hour as cache writes,
            reasoning as output, and a request nothing.

    Raises:
        ConfigError: A key or an amount cannot be used; the message says which.

    Attributes:
        id: 12 hex digits that name the content; stored with each cost.

    Names are compared without case, and otherwise as they are. Immutable and picklable.
    """

    __slots__ = ("_prices", "id")

    def __init__(self, prices: Mapping[str | tuple[str, str], Mapping[str, Any]]) -> None:
        self._fill(prices_of(prices))

    @classmethod
    def from_file(cls, path: str) -> Overrides:
        """
        Read prices from a TOML file (Python 3.11 and later) or a JSON file.

        Amounts may be written as numbers there: they are read as the decimals they are. The file has tables
        `[model."NAME"]` and `[provider."PROVIDER"."NAME"]` with the keys of `Overrides`.

        Raises:
            ConfigError: The file cannot be read, or something in it cannot be used. It names the file.
        """
        return cls.from_plain(prices_in(path))

    @classmethod
    def from_plain(cls, rows: Iterable[Iterable[Any]]) -> Overrides:
        """Make the overrides of which `plain()` was taken."""
        overrides = cls.__new__(cls)
        overrides._fill(rows)
        return overrides

    def plain(self) -> Plain:
        """Return the content as tuples of str and int, which every serializer can write."""
        return tuple((entry.provider, entry.model, *entry.rates) for entry in self._prices.values())

    def _fill(self, rows: Iterable[Iterable[Any]]) -> None:
        settled = [tuple(row) for row in rows]
        self.id = blake2b(repr(settled).encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
        self._prices = {
            (provider, model): Override(provider, model, tuple(rates), self.id)
            for provider, model, *rates in settled
        }

    def find(self, model: str, provider: str | None = None) -> Override | None:
        """
        Find the price of a model.

        Args:
            model: The name as it was recorded.

            provider: As it was recorded; if None, `"provider/model"` finds the price of `(provider, model)`.

        Returns:
            The price for this provider, else the one for any provider, else None.
        """
        if not isinstance(model, str):
            raise ArgumentTypeError(f"model must be str, not {type(model).__name__}")
        if provider is not None and not isinstance(provider, str):
            raise ArgumentTypeError(f"provider must be str or None, not {type(provider).__name__}")
        model = model.lower()
        if provider is not None:
            return self._prices.get((provider.lower().strip(), model)) or self._prices.get(("", model))
        found = self._prices.get(("", model))
        if found is None:
            head, _, rest = model.partition("/")
            found = self._prices.get((head, rest))
        return found

    def __len__(self) -> int:
        return len(self._prices)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Overrides):
            return NotImplemented
        return self.plain() == other.plain()

    def __hash__(self) -> int:
        return hash(self.plain())

    def __repr__(self) -> str:
        return f"<Overrides {self.id}: {len(self)} prices>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Overrides.from_plain, (self.plain(),)


def describe(entry: Override) -> dict[str, str]:
    """Return the rates as `picostep price` shows them: US dollars for a million tokens, and for a request."""
    return {
        key: usd(rate * (1 if key == "request" else MILLION))
        for key, rate in zip(KEYS, entry.rates, strict=True)
    }
