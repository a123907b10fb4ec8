"""The table of fields, against what else names them: the core's numbers, the type `Record`, the documents."""

from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from picostep import record
from picostep.record import FIELDS, KINDS, Field, content, counts, local, on_wire, spans_of, texts

ROOT = Path(__file__).parents[2]
CORE = ROOT / "ext/picostep/_ring.pxd"
DOCS = ROOT / "docs/reference/record.md"

VALUES = {
    "id": "text",
    "text": "text",
    "count": "int, tokens",
    "time": "int, Unix time in ns",
    "number": "int",
    "flag": "bool",
    "cost": "number",
}
"""What the documents say of the form of a field."""


def constants() -> tuple[dict[str, int], set[str]]:
    """Numbers of the core by name, and the names among them that it only reserves."""
    numbers: dict[str, int] = {}
    reserved: set[str] = set()
    is_reserved = False
    for line in CORE.read_text().splitlines():
        is_reserved = line.strip() == "# Reserved." or (is_reserved and line.startswith("    "))
        if found := re.match(r"    ([A-Z][A-Z0-9_]+) = (\d+)\b", line):
            numbers[found[1]] = int(found[2])
            if is_reserved:
                reserved.add(found[1])
    return numbers, reserved


def names_in_core(field: Field) -> list[str]:
    """What the core calls a field, for each kind that has it."""
    if field.form == "count" or field.name in ("run_id", "status_message", "traceparent"):
        return [field.name.upper()]
    if field.name in ("step_id", "tool_call_id", "feedback_id"):
        return ["OWN_ID"]
    return [f"{kind}_{field.name}".upper() for kind in field.kinds]


@pytest.mark.skipif(not CORE.exists(), reason="the sources of the core are not here")
def test_numbers_are_those_of_the_core() -> None:
    numbers, reserved = constants()
    named: set[str] = set()
    for field in FIELDS:
        if field.slot is not None:
            for name in names_in_core(field):
                assert (name, numbers[name]) == (name, field.slot)
                named.add(name)
    assert not named & reserved
    prefixes = tuple(f"{kind.upper()}_" for kind in KINDS)
    of_texts = {name for name in numbers if name.startswith(prefixes) and not name.endswith("_UUID")}
    of_counts = {name for name in numbers if name.endswith("_TOKENS")}
    shared = {"OWN_ID", "STATUS_MESSAGE", "TRACEPARENT"}
    assert (of_texts | of_counts | shared) - reserved == named
    assert record.SLOTS == numbers["MAX_TEXTS"] == numbers["MAX_COUNTS"]
    assert numbers["TEXTS"] == 1 + max(field.slot for field in FIELDS if field.slot and field.form != "count")
    assert numbers["COUNTS"] == sum(field.form == "count" for field in FIELDS)


@pytest.mark.skipif(not CORE.exists(), reason="the sources of the core are not here")
def test_what_is_reserved_is_free() -> None:
    """No two names of one kind of record have the same number."""
    numbers, _ = constants()
    shared = {numbers[name] for name in ("RUN_ID", "STATUS_MESSAGE", "TRACEPARENT", "PARENT_ID")}
    for kind in KINDS:
        prefix = f"{kind.upper()}_"
        own = [
            number
            for name, number in numbers.items()
            if name.startswith(prefix) and name not in ("RUN_ID", "RUN_UUID")
        ]
        taken = own + sorted(shared if kind != "feedback" else {0}) + ([1] if kind != "run" else [])
        assert len(taken) == len(set(taken)), kind
        assert max(taken) < numbers["MAX_TEXTS"]


def test_the_type_has_the_keys_of_the_table() -> None:
    tree = ast.parse(inspect.getsource(record))
    (declared,) = (
        node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "Record"
    )
    keys = [
        node.target.id
        for node in declared.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
    assert Counter(keys) == Counter({"kind", "seq", *(field.name for field in FIELDS)})


def test_the_documents_have_the_table() -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    assert rows == [
        f"| `{field.name}` | {', '.join(field.kinds)} | {VALUES[field.form]} | {field.means} |"
        for field in FIELDS
    ]


def test_a_name_is_one_field_of_a_kind() -> None:
    for kind in KINDS:
        names = [field.name for field in FIELDS if kind in field.kinds]
        assert len(names) == len(set(names))
        for place in ("wire", "span"):
            places = [
                (field.within, getattr(field, place))
                for field in FIELDS
                if kind in field.kinds and getattr(field, place)
            ]
            assert len(places) == len(set(places)), (kind, place)
    places = sorted(field.local for field in FIELDS if field.local)
    assert all(a < b for a, b in pairwise(places))


def test_what_follows_from_the_table() -> None:
    """As the exporter had it written down in five places before there was a table."""
    assert on_wire("step") == (
        *("prompt", "response", "model_requested", "model_used", "finish_reason", "status_message"),
        *("prompt_uncached_tokens", "prompt_cached_tokens", "completion_tokens", "real_total_cost"),
        "tool_definitions",
    )
    assert on_wire("run", "prompt") == ("user_prompt", "system_prompt", "full_input")
    assert on_wire("run") == ("session_id", "conversational", "response", "full_output", "status_message")
    assert on_wire("tool_call") == ("status_message",)
    assert on_wire("feedback") == ("score", "text")
    assert local() == (
        *("provider", "service_tier", "cache_write_tokens", "cache_write_1h_tokens", "reasoning_tokens"),
        *("cost_status", "price_table", "traceparent", "shed", "shortened", "withheld"),
    )
    assert set(content()) == {
        *("prompt", "response", "tool_definitions", "user_prompt", "system_prompt", "full_input"),
        *("full_output", "args", "result", "text", "status_message", "metadata"),
    }
    assert counts()[:7] == (
        *("prompt_uncached_tokens", "prompt_cached_tokens", "completion_tokens", "cache_write_tokens"),
        *("cache_write_1h_tokens", "reasoning_tokens", None),
    )
    assert texts("tool_call")[:13] == (
        *("run_id", "tool_call_id", "args", "result", "tool_name", None, None, None, "status_message"),
        *(None, None, None, "traceparent"),
    )
    assert list(spans_of("run")) == ["session_id", "full_input", "full_output"]
