"""One step as it arrived, whatever it travelled in, and the count of those that are right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypedDict

from texts import CACHED, COMPLETION, FINISH, REQUESTED, UNCACHED, USED, Texts


class Record(NamedTuple):
    id: Any
    """What its recorder calls it; None where it gives none."""
    prompt: Any
    response: Any
    tools: Any
    requested: Any
    used: Any
    uncached: Any
    cached: Any
    completion: Any
    finish: Any


class Audit(TypedDict):
    steps: int
    """Different steps that arrived."""
    repeated: int
    """Arrivals of a step that had arrived before."""
    wrong: int
    """Steps that are not as they were recorded, in any field."""
    example: str
    """The fields in which the first of these differs, with lengths for texts; else empty."""


def expected(texts: Texts) -> Record:
    return Record(
        None,
        texts.prompt,
        texts.response,
        texts.tools,
        REQUESTED,
        USED,
        UNCACHED,
        CACHED,
        COMPLETION,
        FINISH,
    )


def audit(records: Iterable[Record], texts: Texts) -> Audit:
    right = expected(texts)
    found = Audit(steps=0, repeated=0, wrong=0, example="")
    ids = set()
    for record in records:
        if record.id is not None:
            if record.id in ids:
                found["repeated"] += 1
                continue
            ids.add(record.id)
        found["steps"] += 1
        if record[1:] != right[1:]:
            found["wrong"] += 1
            found["example"] = found["example"] or _difference(record, right)
    return found


def _difference(record: Record, right: Record) -> str:
    def shown(value: Any) -> str:
        return f"{len(value)} characters" if isinstance(value, str) and len(value) > 40 else repr(value)

    return "; ".join(
        f"{name}: {shown(got)}, not {shown(wanted)}"
        for name, got, wanted in zip(Record._fields[1:], record[1:], right[1:], strict=True)
        if got != wanted
    )
