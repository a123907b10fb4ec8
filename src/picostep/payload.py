"""
What goes over the network: the JSON of a record.

`wire()` and `encode()` give the form of The Context Company's ingest; `local()` and `encode_local()` give the
same and whatever else is known of the record, for files and streams of one's own. Which fields there are says
the compiled `_payload`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from picostep._payload import local, merged_metadata, total_cost, wire
from picostep._ring import JSONText

if TYPE_CHECKING:
    from picostep.record import Record

__all__ = [
    "ascii_json",
    "encode",
    "encode_each",
    "encode_local",
    "encode_priced",
    "local",
    "merged_metadata",
    "total_cost",
    "well_formed",
    "wire",
]

_SURROGATE = re.compile("[\ud800-\udfff]")

T = TypeVar("T")


def encode(record: Record) -> bytes:
    """
    Return the JSON of `wire(record)`.

    Numbers are exact. Lone surrogates, which UTF-8 cannot hold, become `\\udXXX` escapes.

    Raises:
        Exception: Of any type, for a damaged record.
    """
    return _dumps(wire(record))


def encode_priced(record: Record) -> bytes:
    """Return the JSON of `wire(record)` in which a step's `real_total_cost` may also be a computed one."""
    fields = wire(record)
    if "cost_pico" in record:
        fields["real_total_cost"] = total_cost(record)
    return _dumps(fields)


def encode_local(record: Record) -> bytes:
    """Return the JSON of `local(record)`, on one line, as `encode()` does it."""
    return _dumps(local(record))


def encode_each(
    records: Iterable[Record], encoder: Callable[[Record], T], unencodable: dict[int, str]
) -> dict[int, T]:
    """
    Encode records one by one, so that a bad one harms no other.

    Args:
        records: To be iterated once.

        encoder: `encode`, `encode_local`, or another form of a record.

        unencodable: Gets the index of every record that could not be encoded, and the name of the exception.

    Returns:
        Index and form of the others, in order.
    """
    encoded = {}
    for index, record in enumerate(records):
        try:
            encoded[index] = encoder(record)
        except Exception as error:  # its text may quote the record
            unencodable[index] = type(error).__name__
    return encoded


def well_formed(text: str) -> str:
    """Return the text as UTF-8 can hold it: a surrogate pair as its character, a lone surrogate as U+FFFD."""
    if text.isascii() or not _SURROGATE.search(text):
        return str(text)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _dumps(fields: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(fields, default=_embedded, option=orjson.OPT_PASSTHROUGH_SUBCLASS)
    except TypeError:  # lone surrogates, or an integer beyond 64 bits
        return ascii_json(fields)


def ascii_json(value: Any) -> bytes:
    """
    Return the JSON of anything that a record may hold, slowly, with everything beyond ASCII escaped.

    It is for what orjson refuses: lone surrogates, and integers beyond 64 bits.
    """
    return _ascii(value).encode("ascii")


def _embedded(value: object) -> orjson.Fragment:
    """Return the JSON of a value that orjson does not know."""
    if isinstance(value, JSONText | Decimal):
        return orjson.Fragment(str(value))
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _ascii(value: Any) -> str:
    if isinstance(value, JSONText | Decimal):
        return str(value)
    if type(value) is dict:
        return "{" + ",".join(f"{json.dumps(key)}:{_ascii(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)
