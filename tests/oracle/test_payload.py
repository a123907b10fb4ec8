"""The JSON of records: compared with what the reference builds, and with exact arithmetic."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import contextcompany
import pytest
from hypothesis import given
from hypothesis import strategies as st

from picostep._ring import JSONText
from picostep.exporter.stages import preparation
from picostep.payload import (
    encode,
    encode_each,
    encode_local,
    local,
    merged_metadata,
    wire,
)
from picostep.record import Record
from picostep.settings.destination import Destination

START, END = 1795405904593123456, 1795405905000000000
TIMES = {"start_time": "2026-11-23T03:51:44.593Z", "end_time": "2026-11-23T03:51:45.000Z"}
BASE: Record = {"run_id": "r", "start_ns": START, "end_ns": END, "status_code": 0, "seq": 0}

texts = st.text(st.characters(exclude_categories=()), max_size=20)  # also lone surrogates
counts = st.integers(0, 2**53)
costs = st.floats(0, allow_nan=False, allow_infinity=False) | st.integers(0, 2**80)
metadata = st.dictionaries(texts, texts | st.integers() | st.none() | st.lists(texts, max_size=2), max_size=3)


def step(**fields: Any) -> Record:
    return {**BASE, "kind": "step", "step_id": "s", **fields}


def run(**fields: Any) -> Record:
    return {**BASE, "kind": "run", **fields}


def tool_call(**fields: Any) -> Record:
    return {**BASE, "kind": "tool_call", "tool_call_id": "t", **fields}


def sent_by_reference(built: Any) -> Any:
    """What arrives when the reference sends this object, with our times."""
    return {**json.loads(json.dumps(built._build_payload())), **TIMES}


def some(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=strategies)


@given(
    some(
        prompt=texts,
        response=texts,
        model_requested=texts,
        model_used=texts,
        finish_reason=texts,
        status_message=texts,
        prompt_uncached_tokens=counts,
        prompt_cached_tokens=counts,
        completion_tokens=counts,
        real_total_cost=costs,
        tool_definitions=texts,
    )
)
def test_step_like_reference(fields: dict[str, Any]) -> None:
    theirs = contextcompany.step("r", "s")
    for name in fields.keys() & {"prompt", "response", "finish_reason", "tool_definitions"}:
        getattr(theirs, name)(fields[name])
    theirs.model(fields.get("model_requested"), fields.get("model_used"))
    theirs.tokens(
        *(fields.get(f"{name}_tokens") for name in ("prompt_uncached", "prompt_cached", "completion"))
    )
    if "real_total_cost" in fields:
        theirs.cost(fields["real_total_cost"])
    theirs.status(2, fields.get("status_message"))
    assert json.loads(encode(step(**fields, status_code=2))) == sent_by_reference(theirs)


@given(
    some(
        user_prompt=texts,
        system_prompt=texts,
        session_id=texts,
        conversational=st.booleans(),
        response=texts,
        status_message=texts,
        metadata=st.lists(metadata, min_size=1, max_size=3),
    )
)
def test_run_like_reference(fields: dict[str, Any]) -> None:
    theirs = contextcompany.run("r", fields.get("session_id"), fields.get("conversational"))
    record = run(**fields)
    if "user_prompt" in fields:
        theirs.prompt(fields["user_prompt"], fields.get("system_prompt"))
    else:
        record.pop("system_prompt", None)
    if "response" in fields:
        theirs.response(fields["response"])
    theirs.status(0, fields.get("status_message"))
    if "metadata" in fields:
        for data in fields["metadata"]:
            theirs.metadata(data)
        record["metadata"] = "\n".join(map(json.dumps, fields["metadata"]))
    assert json.loads(encode(record)) == sent_by_reference(theirs)


@given(some(tool_name=texts, args=texts, result=texts, status_message=texts))
def test_tool_call_like_reference(fields: dict[str, Any]) -> None:
    theirs = contextcompany.tool_call("r", "t", fields.get("tool_name"))
    for name in fields.keys() & {"args", "result"}:
        getattr(theirs, name)(fields[name])
    theirs.status(0, fields.get("status_message"))
    assert json.loads(encode(tool_call(**fields))) == sent_by_reference(theirs)


def test_key_order_is_that_of_the_contract() -> None:
    optional = [
        "prompt",
        "response",
        "model_requested",
        "model_used",
        "finish_reason",
        "status_message",
        "prompt_uncached_tokens",
        "prompt_cached_tokens",
        "completion_tokens",
        "real_total_cost",
        "tool_definitions",
    ]
    record = step(**dict.fromkeys(reversed(optional), ""))
    assert list(wire(record)) == [
        *["type", "run_id", "step_id", "start_time", "end_time", "status_code"],
        *optional,
    ]


def test_feedback() -> None:
    record = {**BASE, "kind": "feedback", "feedback_id": "f", "score": "thumbs_up"}
    assert wire(record) == {"runId": "r", "score": "thumbs_up"}
    assert local({**record, "text": "good"}) == {
        "type": "feedback",
        "run_id": "r",
        "feedback_id": "f",
        "time": TIMES["end_time"],
        "score": "thumbs_up",
        "text": "good",
    }


def test_full_input_and_output() -> None:
    fields = wire(run(user_prompt="u", full_input="i", full_output="o"))
    assert (fields["prompt"], fields["full_output"]) == ({"user_prompt": "u", "full_input": "i"}, "o")


@given(st.integers(-(2**63), 2**63 - 1))
def test_times_are_cut_to_milliseconds(ns: int) -> None:
    moment = datetime(1970, 1, 1) + timedelta(milliseconds=ns // 1_000_000)
    expected = moment.isoformat(timespec="milliseconds") + "Z"
    assert wire(step(start_ns=ns, end_ns=ns))["start_time"] == expected


@pytest.mark.parametrize(
    "cost", [0, 2**64, 10**40, 0.1, 5e-324, 1.7976931348623157e308, Decimal("0.1"), Decimal("1E-30")]
)
@pytest.mark.parametrize("prompt", ["plain", "\ud800"])  # the second takes the slow way
def test_cost_is_exact(cost: float | Decimal, prompt: str) -> None:
    body = encode(step(real_total_cost=cost, prompt=prompt))
    assert json.loads(body, parse_float=type(cost))["real_total_cost"] == cost


@pytest.mark.parametrize("other", ["plain", "\ud800"])
def test_json_is_embedded(other: str) -> None:
    messages = [{"role": "user", "content": "é\n"}]
    record = step(prompt=JSONText(json.dumps(messages)), response=other)
    assert json.loads(encode(record))["prompt"] == messages


def test_tool_arguments_stay_text() -> None:
    assert json.loads(encode(tool_call(tool_name="t", args=JSONText('{"a":1}'))))["args"] == '{"a":1}'


def test_lone_surrogates_are_escaped() -> None:
    assert b'"prompt":"a\\ud800"' in encode(step(prompt="a\ud800"))


def test_status_message_is_redacted() -> None:
    """Before the payload is made of it: whoever makes another payload cannot forget it."""
    record = step(status_message="password=hunter2")
    preparation(Destination(("stdout",)))([record])
    assert wire(record)["status_message"] == local(record)["status_message"] == "password=[REDACTED]"


def test_metadata_that_was_cut() -> None:
    record = run(metadata='{"a":1}\n{"b":"xx…', shortened=True)
    assert merged_metadata(record) == {"a": 1}
    del record["shortened"]
    with pytest.raises(ValueError, match="Unterminated"):
        merged_metadata(record)


def test_local_tells_more() -> None:
    record = step(first_token_ns=END, shed=True, shortened=True, withheld=True, prompt="p")
    more = {"first_token_time": TIMES["end_time"], "shed": True, "shortened": True, "withheld": True}
    assert local(record) == {**wire(record), **more}
    assert json.loads(encode_local(record)) == local(record)


def test_a_bad_record_harms_no_other() -> None:
    good, unencodable = step(), {}
    bad: list[Record] = [
        {},
        {**good, "kind": "?"},
        run(metadata="["),
        step(prompt=object()),
        step(start_ns="x"),
    ]
    encoded = encode_each([good, *bad, good], encode, unencodable)
    assert encoded == {0: encode(good), 6: encode(good)}
    assert unencodable == {
        1: "KeyError",
        2: "KeyError",
        3: "JSONDecodeError",
        4: "TypeError",
        5: "TypeError",
    }
