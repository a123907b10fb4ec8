"""Tells how a price comes about, for `picostep price` and for `Cost.row`."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from typing import Any

from picostep._cost import Cost, PriceTable
from picostep.amounts import usd
from picostep.prices import builtin, price
from picostep.prices.overrides import Overrides, describe
from picostep.settings.prices import KEYS, MILLION

__all__ = ["explain", "row_text"]

_EPOCH = date(1970, 1, 1)
_FOREVER = -(2**31)
_STANDARD, _QUANTISED, _MORE_UNITS = 8, 16, 32

_WHY = {
    "unknown_model": "no price: the table does not know this name",
    "unknown_provider": "no price: the table does not know this provider",
    "unsupported": "no price: this model is not priced by tokens (but by audio hours, pages …)",
    "invalid_usage": "no price: reasoning is more than completion, or cache_write_1h more than cache_write",
    "free": "the source lists this model without a price: it is free",
    "variant_fallback": "the source has no price for this service tier then: this is the standard price",
    "no_output_price": "the source has no output price (embeddings have none): only the input is counted",
}


def explain(
    model: str,
    *,
    start_ns: int,
    provider: str | None = None,
    service_tier: str | None = None,
    overrides: Overrides | None = None,
    table: PriceTable | None = None,
    **tokens: int,
) -> dict[str, Any]:
    """Tell how a price comes about; see `picostep.prices.explain()`."""
    if table is None:
        table = builtin()
    cost = price(
        model,
        start_ns=start_ns,
        provider=provider,
        service_tier=service_tier,
        overrides=overrides,
        table=table,
        **tokens,
    )
    result: dict[str, Any] = {
        "model": model,
        "provider": provider,
        "service_tier": service_tier,
        "at": _moment(start_ns),
        "status": cost.status,
        "pico": cost.pico,
        "usd": None if cost.pico is None else usd(cost.pico),
        "table": cost.table,
        "source": table.source,
        "row": cost.row,
        "notes": [_WHY[cost.status]] if cost.status in _WHY else [],
    }
    found = overrides.find(model, provider) if overrides is not None else None
    if found is not None:
        result["source"] = "override"
        result["rates"] = describe(found)
    elif cost.place is not None:
        result |= _from_table(table, cost)
        result["notes"] += _notes(table, cost)
    return result


def _from_table(table: PriceTable, cost: Cost) -> dict[str, Any]:
    assert cost.place is not None
    model, _, slot_number, row_number = cost.place
    found, name, via = table.name(model)
    row = table.row(row_number)
    slot = table.slot(slot_number)
    variant, slots = _track(table, cost)
    return {
        "found": {"provider": found, "model": name, "via": via},
        "variant": variant,
        "rates": {
            key: usd(rate * (1 if key == "request" else MILLION))
            for key, rate in zip(KEYS, row[:7], strict=True)
        },
        "tier": {
            "above": row[7] if row[7] >= 0 else None,
            "next": table.row(row[8])[7] if row[8] >= 0 else None,
        },
        "tiers": _tiers(table, slot[2]),
        **_interval(slot, slots),
    }


def _track(table: PriceTable, cost: Cost) -> tuple[str, list[tuple[int, int, int, int]]]:
    """Return the name of the variant whose prices were used, and its prices over time."""
    assert cost.place is not None
    model, variant, _, _ = cost.place
    tracks = table.tracks(model)
    name = table.variants[variant] if 0 <= variant < len(table.variants) else ""
    if name not in tracks:
        name = "standard"
    return name, tracks[name]


def _interval(
    slot: tuple[int, int, int, int], slots: list[tuple[int, int, int, int]]
) -> dict[str, str | None]:
    """Return from when until when a price holds, and between which times of each day."""
    day, second, _, _ = slot
    later = [other[0] for other in slots if other[0] > day]
    today = sorted(other[1] for other in slots if other[0] == day)
    following = [other for other in today if other > second]
    end = _clock(following[0] if following else 86400)
    return {
        "from": None if day == _FOREVER else (_EPOCH + timedelta(days=day)).isoformat(),
        "until": (_EPOCH + timedelta(days=later[0])).isoformat() if later else None,
        "daily": f"{_clock(second)} to {end} UTC" if len(today) > 1 else None,
    }


def _tiers(table: PriceTable, number: int) -> list[int]:
    """Return the numbers of input tokens above which other rates hold."""
    row = table.row(number)
    found = []
    while row[8] >= 0:
        row = table.row(row[8])
        found.append(row[7])
    return found


def _notes(table: PriceTable, cost: Cost) -> list[str]:
    assert cost.place is not None
    flags = table.slot(cost.place[2])[3]
    notes = []
    if flags & _QUANTISED:
        notes.append("a rate of this model was rounded to a whole pico-dollar a token (see the manifest)")
    if flags & _MORE_UNITS:
        notes.append("this model also has prices for audio, images or searches, which a step does not count")
    return notes


def row_text(table: PriceTable, place: tuple[int, int, int, int]) -> str:
    """Describe a price in one line: `openai/gpt-5.4, batch, from 2026-10-14, above 272000 input tokens`."""
    model, variant, slot_number, row_number = place
    provider, name, via = table.name(model)
    day, second, _, flags = table.slot(slot_number)
    above = table.row(row_number)[7]
    parts = [f"{provider}/{name}" if via == provider else f"{provider}/{name} by the price of {via}"]
    known = table.variants[variant] if 0 <= variant < len(table.variants) else ""
    if known != "standard" and known in table.tracks(model) and not flags & _STANDARD:
        parts.append(known)
    if day != _FOREVER:
        parts.append(f"from {(_EPOCH + timedelta(days=day)).isoformat()}")
    if second:
        parts.append(f"daily from {_clock(second)} UTC")
    if above >= 0:
        parts.append(f"above {above} input tokens")
    return ", ".join(parts)


def _clock(second: int) -> str:
    hours, rest = divmod(second, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours:02d}:{minutes:02d}" + (f":{seconds:02d}" if seconds else "")


def _moment(start_ns: int) -> str:
    seconds, _ = divmod(start_ns, 10**9)
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)
    return moment.isoformat().replace("+00:00", "Z")
