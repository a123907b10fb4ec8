"""
Compiles genai-prices into a price table: `python tools/build_prices.py`, or `picostep prices refresh`.

Everything that can be decided ahead is decided here: which price holds when and for which variant (as
`ModelInfo.get_prices` of genai-prices says), what a missing price falls back to, which tier follows which.
What remains at run time is integer arithmetic on a row.

Needs genai-prices >= 0.2.3 and Python >= 3.11; nothing else in picostep imports this module.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from hashlib import blake2b
from tempfile import mkstemp
from typing import Any

from picostep._cost import PriceTable, PriceTableError

__all__ = ["build", "compile_installed", "context_of", "refresh"]

MINIMUM = (0, 2, 3)

# Prices for which a step has counts, and how many units a price is for.
TOKEN_KEYS = {
    "input_mtok": 1_000_000,
    "cache_read_mtok": 1_000_000,
    "cache_write_mtok": 1_000_000,
    "cache_write_1h_mtok": 1_000_000,
    "output_mtok": 1_000_000,
    "output_reasoning_mtok": 1_000_000,
}
REQUEST_KEY = "requests_kcount"
KEYS = {**TOKEN_KEYS, REQUEST_KEY: 1000}

# What a service tier is called in the three places where providers name it; other conditions keep their key.
TIER_KEYS = ("service_tier", "processing", "speed")

FREE, UNSUPPORTED, NO_OUTPUT, STANDARD, QUANTISED, MORE_UNITS = 1, 2, 4, 8, 16, 32
FOREVER = -(2**31)
EPOCH = date(1970, 1, 1)
HEADER = struct.Struct("<8s6I16s16x")
ROW = struct.Struct("<7q2i")
SLOT = struct.Struct("<3iI")
TRACK = struct.Struct("<i2H")
MODEL = struct.Struct("<2i")
VERSION = 1


def compile_installed() -> bytes:
    """
    Compile the installed genai-prices.

    Returns:
        The bytes of a price table, for `PriceTable()` or a file.

    Raises:
        PriceTableError: genai-prices is not installed, too old, or holds something that this version of
            picostep cannot express.
    """
    return build()[0]


def build() -> tuple[bytes, dict[str, Any]]:
    """
    Compile the installed genai-prices; see `compile_installed()`.

    Returns:
        The table, and its manifest: source, id, counts, every value that was rounded, every unit left out.
    """
    try:
        from importlib.metadata import version

        from genai_prices.data_snapshot import get_snapshot
    except ImportError as error:
        raise PriceTableError(
            f"price table: genai-prices is needed to compile one ({error}): pip install 'picostep[prices]', "
            f"on Python 3.11 or later"
        ) from error
    installed = version("genai-prices")
    numbers = tuple(int(part) if part.isdigit() else 0 for part in installed.split(".")[:3])
    if numbers < MINIMUM:
        raise PriceTableError(f"price table: genai-prices {installed} is too old: 0.2.3 or later is needed")
    compiler = _Compiler(get_snapshot().providers, f"genai-prices {installed}")
    data = compiler.run()
    manifest = {
        "source": "genai-prices",
        "version": installed,
        "id": data[32:38].hex(),
        "counts": compiler.counts(),
        "quantised": compiler.quantised,
        "skipped": {unit: sorted(models) for unit, models in sorted(compiler.skipped.items())},
        "invalid": compiler.invalid,
    }
    return data, manifest


def refresh(path: str) -> PriceTable:
    """
    Compile the installed genai-prices into a file; whoever reads it finds the old table or the new one.

    Args:
        path: The file. Its directory must exist.

    Returns:
        The new table, read back and checked.

    Raises:
        PriceTableError: See `compile_installed()`.

        OSError: The file cannot be written.
    """
    data = compile_installed()
    table = PriceTable(data)
    table.check()
    descriptor, temporary = mkstemp(prefix=".prices-", dir=os.path.dirname(os.path.abspath(path)))
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return table


class _Compiler:
    def __init__(self, providers: Sequence[Any], source: str) -> None:
        self.providers = providers
        self.source = source
        self.quantised: list[dict[str, str]] = []
        self.skipped: dict[str, set[str]] = {}
        self.invalid: list[dict[str, str]] = []
        self._rows: dict[tuple[int, ...], int] = {}
        self._slots: list[tuple[int, int, int, int]] = []
        self._slot_of: dict[tuple[tuple[int, int, int, int], ...], int] = {}
        self._tracks: list[tuple[int, int, int]] = []
        self._models: list[tuple[int, int]] = []
        self._names: list[str] = []
        self._variants = ["standard", "default"]

    def run(self) -> bytes:
        """Compile all models, then those that one provider resells for another, and pack the result."""
        self._find_variants()
        first: dict[str, int] = {}
        tracks: dict[str, list[list[tuple[int, int, int]]]] = {}
        for provider in self.providers:
            first[provider.id] = len(self._models)
            tracks[provider.id] = []
            for model in provider.models:
                tracks[provider.id].append(self._model_tracks(provider, model))
                self._add_model(tracks[provider.id][-1])
        for provider in self.providers:
            fallbacks = []
            for name in provider.fallback_model_providers or ():
                if name not in first:
                    continue  # as the source does
                fallbacks.append(f"{name}:{len(self._models)}")
                for model in tracks[name]:
                    self._add_model(model[:1])  # no variants: a reseller's are not the maker's
            self._names.append(self._block(provider, first[provider.id], fallbacks))
        return self._pack()

    def counts(self) -> dict[str, int]:
        return {
            "providers": len(self.providers),
            "models": sum(len(provider.models) for provider in self.providers),
            "models resold": len(self._models) - sum(len(provider.models) for provider in self.providers),
            "rows": len(self._rows),
            "slots": len(self._slots),
            "tracks": len(self._tracks),
            "variants": len(self._variants),
            "values quantised": len(self.quantised),
            "units skipped": len(self.skipped),
        }

    # -- variants

    def _find_variants(self) -> None:
        for provider in self.providers:
            for model in provider.models:
                for variant in model.price_variants or ():
                    name = _variant_name(variant.when)
                    if name not in self._variants:
                        self._variants.append(name)
        self._variants[2:] = sorted(self._variants[2:])

    def _add_model(self, tracks: list[tuple[int, int, int]]) -> None:
        self._models.append((len(self._tracks), len(tracks)))
        self._tracks.extend(tracks)

    def _model_tracks(self, provider: Any, model: Any) -> list[tuple[int, int, int]]:
        tracks = [(*self._slots_of(provider, model, None), 0)]
        for number, name in enumerate(self._variants):
            context = context_of(name)
            if any(_selected(variant, context) for variant in model.price_variants or ()):
                tracks.append((*self._slots_of(provider, model, context), number))
        return tracks

    # -- time

    def _slots_of(self, provider: Any, model: Any, context: Mapping[str, str] | None) -> tuple[int, int]:
        """Ask the source for the price at the beginning of each period in which it cannot change."""
        slots: list[tuple[int, int, int, int]] = []
        days, seconds = _boundaries(model, context)
        before = (days[0] if days else date(2000, 1, 2)) - timedelta(days=1)
        for day in (None, *days):
            today: list[tuple[int, int, int, int]] = []
            for second in seconds:
                moment = datetime.combine(day or before, time(), timezone.utc) + timedelta(seconds=second)
                row, flags = self._row(provider, model, model.get_prices(moment, context))
                if context is not None and not any(
                    _selected(variant, context)
                    and (variant.constraint is None or variant.constraint.active(moment))
                    for variant in model.price_variants
                ):
                    flags |= STANDARD
                if not today or today[-1][2:] != (row, flags):
                    today.append(((day - EPOCH).days if day else FOREVER, second, row, flags))
            if len(today) > 1 or not slots or slots[-1][1] != 0 or slots[-1][2:] != today[0][2:]:
                slots.extend(today)
        return self._place(tuple(slots)), len(slots)

    def _place(self, slots: tuple[tuple[int, int, int, int], ...]) -> int:
        if slots not in self._slot_of:
            self._slot_of[slots] = len(self._slots)
            self._slots.extend(slots)
        return self._slot_of[slots]

    # -- rates

    def _row(self, provider: Any, model: Any, price: Any) -> tuple[int, int]:
        """Return the number of the row for a price, and its flags."""
        present = {key: value for key, value in vars(price).items() if value is not None and key[0] != "_"}
        ours = {key: value for key, value in present.items() if key in KEYS}
        for key in present.keys() - ours.keys():
            self.skipped.setdefault(key, set()).add(f"{provider.id}/{model.id}")
        problem = _problem(ours)
        flags = MORE_UNITS if len(present) > len(ours) else 0
        if not present or (ours and not any(_values(value) for value in present.values())):
            flags |= FREE
        elif problem:
            entry = {"provider": provider.id, "model": model.id, "problem": problem}
            if entry not in self.invalid:
                self.invalid.append(entry)
            ours, flags = {}, flags | UNSUPPORTED
        elif not ours:
            flags |= UNSUPPORTED
        elif "output_mtok" not in ours and ours.keys() & TOKEN_KEYS.keys():
            flags |= NO_OUTPUT
        starts = sorted({tier.start for value in ours.values() for tier in getattr(value, "tiers", ())})
        if starts and starts[-1] >= 2**31:
            raise PriceTableError(f"price table: {model.id}: a tier from {starts[-1]} tokens is not expected")
        row = -1
        for above in (*reversed(starts), -1):
            rates = {}
            for key, value in ours.items():
                rates[key], rounded = self._rate(provider, model, key, _at(value, above))
                if rounded:
                    flags |= QUANTISED
            entry_row = (*_filled(rates), above, row)
            row = self._rows.setdefault(entry_row, len(self._rows))
        return row, flags

    def _rate(self, provider: Any, model: Any, key: str, value: Decimal) -> tuple[int, bool]:
        exact = Fraction(value) * 10**12 / KEYS[key]
        pico = round(exact)  # half to even
        if pico > 2**63 - 1:
            raise PriceTableError(f"price table: {model.id}: {key} = {value} is not expected")
        if pico == exact:
            return pico, False
        entry = {
            "provider": provider.id,
            "model": model.id,
            "price": key,
            "given": str(value),
            "used": f"{Decimal(pico * KEYS[key]).scaleb(-12).normalize():f}",
        }
        if entry not in self.quantised:
            self.quantised.append(entry)
        return pico, True

    # -- names

    def _block(self, provider: Any, base: int, fallbacks: list[str]) -> str:
        """Write the names of a provider as `picostep.prices.resolve` reads them."""
        head = [
            provider.id,
            str(base),
            _rule(provider.provider_match) if provider.provider_match else "",
            _rule(provider.model_match) if provider.model_match else "",
            " ".join(fallbacks),
        ]
        return "\n".join(
            ["\t".join(head), *(f"{_plain(model.id)}\t{_rule(model.match)}" for model in provider.models)]
        )

    # -- the file

    def _pack(self) -> bytes:
        head = f"{self.source}\n" + "\t".join(self._variants)
        body = b"".join(
            [
                *(ROW.pack(*row) for row in self._rows),
                *(SLOT.pack(*slot) for slot in self._slots),
                *(TRACK.pack(*track) for track in self._tracks),
                *(MODEL.pack(*model) for model in self._models),
                "\x1e".join([head, *self._names]).encode(),
            ]
        )
        sizes = (len(self._rows), len(self._slots), len(self._tracks), len(self._models))
        fields = (b"PICOCOST", VERSION, *sizes, HEADER.size + len(body))
        start = HEADER.pack(*fields, b"")[:32]
        digest = blake2b(start + bytes(16) + body, digest_size=16).digest()
        return HEADER.pack(*fields, digest) + body


# --- what a price holds -----------------------------------------------------------------------------------


def _problem(ours: Mapping[str, Any]) -> str:
    """Say why nothing can be calculated with these prices; "" if something can."""
    for key, needed in (
        ("cache_read_mtok", "input_mtok"),
        ("cache_write_mtok", "input_mtok"),
        ("cache_write_1h_mtok", "cache_write_mtok"),
        ("output_reasoning_mtok", "output_mtok"),
        ("output_mtok", "input_mtok"),  # the source would charge nothing for the input
    ):
        if key in ours and needed not in ours:
            return f"{key} without {needed}"
    for key, value in ours.items():
        if any(not price.is_finite() or price < 0 for price in _values(value, zeros=True)):
            return f"{key} is not a price"
    return ""


def _values(value: Any, zeros: bool = False) -> list[Decimal]:
    """Return the prices in a plain or tiered price that are not 0, or all of them."""
    found = [value] if isinstance(value, Decimal) else [value.base, *(tier.price for tier in value.tiers)]
    return [price for price in found if zeros or price]


def _at(value: Any, above: int) -> Decimal:
    """Return the price that holds just above this many tokens of input; -1 for none."""
    if isinstance(value, Decimal):
        return value
    price: Decimal = value.base
    for tier in value.tiers:  # ascending; the last one that applies wins
        if tier.start <= above:
            price = tier.price
    return price


def _filled(rates: Mapping[str, int]) -> tuple[int, ...]:
    """Fill in what is missing: a part without a price of its own costs what the whole costs."""
    uncached = rates.get("input_mtok", 0)
    write = rates.get("cache_write_mtok", uncached)
    output = rates.get("output_mtok", 0)
    return (
        uncached,
        rates.get("cache_read_mtok", uncached),
        write,
        rates.get("cache_write_1h_mtok", write),
        output,
        rates.get("output_reasoning_mtok", output),
        rates.get(REQUEST_KEY, 0),
    )


# --- when a price holds -----------------------------------------------------------------------------------


def _variant_name(when: Mapping[str, str]) -> str:
    (key, value), *more = when.items()
    if not more and key in TIER_KEYS:
        return _plain(value)
    return _plain(",".join(f"{key}={value}" for key, value in when.items()))


def context_of(name: str) -> dict[str, str]:
    """Return the price context of genai-prices that selects a variant of the table."""
    if "=" in name:
        return dict(part.split("=", 1) for part in name.split(","))
    return dict.fromkeys(TIER_KEYS, name)


def _selected(variant: Any, context: Mapping[str, str]) -> bool:
    return all(context.get(key) == value for key, value in variant.when.items())


def _boundaries(model: Any, context: Mapping[str, str] | None) -> tuple[list[date], list[int]]:
    """Return the days from which, and the seconds of a day at which, a price of the model may change."""
    constraints = []
    if isinstance(model.prices, list):
        constraints += [conditional.constraint for conditional in model.prices]
    if context is not None:
        constraints += [variant.constraint for variant in model.price_variants if _selected(variant, context)]
    days: set[date] = set()
    seconds = {0}
    for constraint in constraints:
        if constraint is None:
            continue
        if hasattr(constraint, "start_date"):
            days.add(constraint.start_date)
        else:
            seconds.update(_second(value) for value in (constraint.start_time, constraint.end_time))
    return sorted(days), sorted(seconds)


def _second(value: time) -> int:
    if value.microsecond:
        raise PriceTableError(f"price table: a price that changes at {value} is not expected")
    moment = datetime.combine(EPOCH, value)
    moment = moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)
    return moment.hour * 3600 + moment.minute * 60 + moment.second


# --- rules of names ---------------------------------------------------------------------------------------

_KINDS = {"equals": "=", "starts_with": "^", "ends_with": "$", "contains": "*", "regex": "~"}


def _rule(clause: Any) -> str:
    return "\x1f".join(_parts(clause))


def _parts(clause: Any) -> Iterator[str]:
    for attribute, kind in (("or_", "|"), ("and_", "&")):
        joined = getattr(clause, attribute, None)
        if joined is not None:
            yield f"{kind}{len(joined)}"
            for part in joined:
                yield from _parts(part)
            return
    for attribute, kind in _KINDS.items():
        text = getattr(clause, attribute, None)
        if text is not None:
            yield kind + _plain(text if kind == "~" else text.lower())
            return
    raise PriceTableError(f"price table: a rule of the form {type(clause).__name__} is not expected")


def _plain(text: str) -> str:
    """Refuse a name that would break the format."""
    if any(char < " " for char in text):
        raise PriceTableError(f"price table: a name with a control character is not expected: {text!r}")
    return text
