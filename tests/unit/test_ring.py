"""The ring by itself: what goes in comes out, and is counted; an independent reader agrees."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from datetime import datetime, timezone
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import picostep
from picostep._ring import HostRing, JSONText, RingReader
from ringfile import (
    FRAME,
    HEADER_SIZE,
    KIB,
    OUTCOME_SIZE,
    OUTCOMES,
    RECORD,
    SMALLEST,
    TEXT,
    Rig,
    drain,
    frames,
    header,
    ids,
    record_some,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rings in files need POSIX")


# --- round trip -------------------------------------------------------------------------------------------

TEXTS = st.builds(
    lambda unit, times: unit * times,
    st.one_of(
        st.text(st.characters(max_codepoint=0x7F), max_size=9),
        st.text(st.characters(max_codepoint=0xFF), max_size=9),
        st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=()), max_size=9),
        st.text(st.characters(exclude_categories=()), max_size=9),
        st.sampled_from(["", "\0", "\ud800", "\udfff\ud800", "€", "\U0010ffff", "\U0001f600\ud83d"]),
    ),
    st.sampled_from([1, 1, 1, 2, 7, 50]),
)
IDS = TEXTS.filter(bool)
COUNTS = st.none() | st.integers(0, 2**53)
TIMES = st.integers(0, 4_000_000_000)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
)
BODIES = TEXTS | st.lists(JSON, max_size=3) | st.dictionaries(st.text(max_size=4), JSON, max_size=3)
COSTS = st.one_of(
    st.none(),
    st.floats(0, 1e300, allow_subnormal=True),
    st.integers(0, 10**40),
    st.decimals(0, 10**20, allow_nan=False, allow_infinity=False),
)


def iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def optional(**texts: Any) -> dict[str, Any]:
    return {name: value for name, value in texts.items() if value is not None}


@st.composite
def steps(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The call, its arguments, and the record that must come out."""
    start, last = sorted((draw(TIMES), draw(TIMES)))
    given = optional(
        run_id=draw(IDS),
        step_id=draw(IDS),
        prompt=draw(BODIES),
        response=draw(BODIES),
        model_requested=draw(st.none() | TEXTS),
        model_used=draw(st.none() | TEXTS),
        prompt_uncached=draw(COUNTS),
        prompt_cached=draw(COUNTS),
        completion=draw(COUNTS),
        cost=draw(COSTS),
        finish_reason=draw(st.none() | TEXTS),
        tool_definitions=draw(st.none() | BODIES),
        status_code=draw(st.integers(-(2**53), 2**53)),
        status_message=draw(st.none() | TEXTS),
    )
    renamed = {
        "prompt_uncached": "prompt_uncached_tokens",
        "prompt_cached": "prompt_cached_tokens",
        "completion": "completion_tokens",
        "cost": "real_total_cost",
    }
    expected = {renamed.get(name, name): value for name, value in given.items()}
    times = {"start_ns": start * 10**9, "end_ns": last * 10**9}
    return "send_step", given | {"start_time": iso(start), "end_time": iso(last)}, expected | times


@st.composite
def runs(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Any]]:
    given = optional(
        run_id=draw(IDS),
        session_id=draw(st.none() | TEXTS),
        conversational=draw(st.none() | st.booleans()),
        prompt=draw(BODIES),
        system_prompt=draw(st.none() | TEXTS),
        full_input=draw(st.none() | BODIES),
        response=draw(st.none() | BODIES),
        full_output=draw(st.none() | TEXTS),
        status_message=draw(st.none() | TEXTS),
    )
    expected = {{"prompt": "user_prompt"}.get(name, name): value for name, value in given.items()}
    return "send_run", given, expected | {"status_code": 0}


@st.composite
def tool_calls(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Any]]:
    given = optional(
        run_id=draw(IDS),
        tool_call_id=draw(IDS),
        name=draw(TEXTS),
        args=draw(st.none() | TEXTS),
        result=draw(st.none() | TEXTS),
        status_code=draw(st.integers(0, 2)),
    )
    return "send_tool_call", given, {{"name": "tool_name"}.get(k, k): v for k, v in given.items()}


@st.composite
def feedback(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Any]]:
    given = {"run_id": draw(IDS), "score": draw(st.sampled_from(["thumbs_up", "thumbs_down"]))}
    text = draw(TEXTS)
    return (
        "submit_feedback",
        given | {"text": text},
        given | ({"text": text} if text else {}) | {"status_code": 0},
    )


KIND_OF = {
    "send_step": "step",
    "send_run": "run",
    "send_tool_call": "tool_call",
    "submit_feedback": "feedback",
}
FREE = {"start_ns", "end_ns", "feedback_id", "seq"}
"""What a record has without being given it."""


def check_record(record: dict[str, Any], call: str, expected: dict[str, Any], seq: int) -> None:
    """The very objects that were handed over, in type, sign and exponent."""
    assert record["kind"] == KIND_OF[call]
    assert record["seq"] == seq
    assert record.keys() - FREE - {"kind"} == expected.keys() - FREE
    for name, value in expected.items():
        found = record[name]
        if isinstance(value, (list, dict)):
            assert type(found) is JSONText
            assert json.loads(found) == value
            assert found.isascii()
        else:
            assert found == value
            # A Decimal without an exponent comes back as an int: the same digits.
            assert type(found) is type(value) or str(found) == str(value)
        if isinstance(value, float):
            assert math.copysign(1, found) == math.copysign(1, value)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    calls=st.lists(
        st.tuples(steps() | runs() | tool_calls() | feedback(), st.integers(1, 25)), min_size=1, max_size=8
    ),
    batch=st.integers(1, 7),
)
def test_round_trip(module_rig: Rig, calls: list[tuple[Any, int]], batch: int) -> None:
    """Any record, over as many laps as all examples together make: the ring is not renewed in between."""
    rig = module_rig
    if rig.capacity != SMALLEST or rig.ring.counters()["in_ring"]:
        rig.renew(SMALLEST)
    reader = rig.reader()
    pending: list[tuple[str, dict[str, Any]]] = []
    done = rig.ring.counters()["accepted"]

    def check_all() -> int:
        count = 0
        for record in drain(reader, batch):
            check_record(record, *pending[count], seq=done + count)
            count += 1
        assert count == len(pending)
        return count

    for (call, arguments, expected), times in calls:
        for _ in range(times):
            getattr(picostep, call)(**arguments)
            pending.append((call, expected))
            if rig.ring.head - rig.ring.tail > SMALLEST // 3:
                rig.check()
                done += check_all()
                pending.clear()
    done += check_all()
    assert set(rig.check()["dropped"].values()) == {0}
    assert reader.drained
    reader.close()


@pytest.mark.parametrize(
    "unit",
    ["x", "深", *(pytest.param(unit, marks=pytest.mark.slow) for unit in ("é", "\U0001f600", "\ud800\0"))],
)
def test_a_megabyte(module_rig: Rig, unit: str) -> None:
    module_rig.renew(64 << 20)
    text = unit * (10**6 // len(unit))
    for _ in range(3):
        picostep.send_step("run", prompt=text, response="", tool_definitions=[text])
    reader = module_rig.reader()
    for record in drain(reader):
        assert (record["prompt"], record["response"]) == (text, "")
        assert json.loads(record["tool_definitions"]) == [text]
        assert "shortened" not in record
    assert reader.position == module_rig.ring.head > 0
    reader.close()


def test_what_an_object_keeps(rig: Rig) -> None:
    """All setters of all classes, through to the reader; ids nobody gave are those that the object shows."""
    run = picostep.run(session_id="s", conversational=False).prompt("p", ["system"], {"full": "input"})
    run.response("r", "full output").metadata({"a": 1}, b="2").metadata(c=None).status(7, "message")
    step = run.step().prompt("p").response("r").model("m").model(used="n").tokens(1, completion=3)
    step.tokens(None, 2).cost(Decimal("0.10")).finish_reason("stop").tool_definitions("[]").first_token()
    call = step.tool_call("name").args({"a": 1}).result(("b",))
    call.end()
    step.error("failed")
    run.end()
    reader = rig.reader()
    got_call, got_step, got_run = drain(reader)
    reader.close()

    for record in (got_call, got_step, got_run):
        assert 0 < record["start_ns"] <= record["end_ns"]
    assert got_run["start_ns"] <= got_step["start_ns"]
    assert got_step["start_ns"] <= got_step["first_token_ns"] <= got_call["start_ns"]
    assert {name: value for name, value in got_call.items() if name not in FREE} == {
        "kind": "tool_call",
        "run_id": run.run_id,
        "tool_call_id": call.tool_call_id,
        "tool_name": "name",
        "args": '{"a": 1}',
        "result": '["b"]',
        "status_code": 0,
    }
    assert {name: value for name, value in got_step.items() if name not in {*FREE, "first_token_ns"}} == {
        "kind": "step",
        "run_id": run.run_id,
        "step_id": step.step_id,
        "prompt": "p",
        "response": "r",
        "model_requested": "m",
        "model_used": "n",
        "prompt_uncached_tokens": 1,
        "prompt_cached_tokens": 2,
        "completion_tokens": 3,
        "real_total_cost": Decimal("0.10"),
        "finish_reason": "stop",
        "tool_definitions": "[]",
        "status_code": 2,
        "status_message": "failed",
    }
    assert {name: value for name, value in got_run.items() if name not in FREE} == {
        "kind": "run",
        "run_id": run.run_id,
        "session_id": "s",
        "conversational": False,
        "user_prompt": "p",
        "system_prompt": '["system"]',
        "full_input": '{"full": "input"}',
        "response": "r",
        "full_output": "full output",
        "metadata": '{"a": 1, "b": "2"}\n{"c": null}',
        "status_code": 7,
        "status_message": "message",
    }


# --- a ring that fills up ---------------------------------------------------------------------------------


def test_bodies_are_shed_then_records_dropped(rig: Rig) -> None:
    """At every record the counters agree with the frames in the file."""
    body = "b" * 1000
    for number in range(400):
        picostep.send_step(f"run {number}", prompt=body, response=body, model_used="m", prompt_cached=number)
        rig.check()
    counters = rig.check()
    reader = rig.reader()
    records = reader.read(1000, 1 << 30)

    whole = [record for record in records if "shed" not in record]
    size = FRAME.size + RECORD.size + 4 * TEXT.size + 2 * 1000 + 2 * 8
    assert SMALLEST * 3 // 4 - size < len(whole) * size <= SMALLEST * 3 // 4
    assert [record["seq"] for record in records] == list(range(len(records)))
    for record in records:
        assert record["run_id"] == f"run {record['seq']}"
        assert record["prompt_cached_tokens"] == record["seq"]
        assert record["model_used"] == "m"
        assert record.get("prompt") == (body if record in whole else None)
    assert counters["shed"] == len(records) - len(whole) > 50
    assert counters["dropped"]["ring_full"] == 400 - len(records) > 0
    assert counters["shortened"] == 0

    # Room again: bodies are kept again.
    reader.release(reader.position, len(records))
    picostep.send_step("run", prompt=body, response=body)
    (record,) = reader.read(10, 1 << 20)
    assert record["prompt"] == body
    assert record["seq"] == len(records)
    reader.close()
    assert rig.check()["delivered"] == len(records)


@pytest.mark.slow
def test_order_and_counters_at_every_sample(rig: Rig) -> None:
    """A random host against a random exporter, some thousand times; some batches are read again."""
    random = Random(1)
    reader = rig.reader()
    expected: list[str] = []
    delivered: list[str] = []
    rejected = 0
    for number in range(4000):
        before = rig.ring.counters()["accepted"]
        text = random.choice(["a", "é", "深", "\U0001f600"]) * random.choice([0, 1, 30, 500, 2000])
        picostep.send_step("run", step_id=str(number), prompt=text, response=text)
        if rig.ring.counters()["accepted"] > before:
            expected.append(str(number))
        if random.random() < 0.05:
            batch = reader.read(random.randrange(1, 20), random.choice([1, 5000, 10**6]))
            if random.random() < 0.3:
                reader.close()  # its exporter dies before it has delivered them
                reader = rig.reader()
            else:
                refused = random.randrange(2) if batch else 0
                rejected += refused
                reader.release(reader.position, len(batch) - refused, {"rejected": refused})
                delivered += [record["step_id"] for record in batch]
        if number % 10 == 0:
            rig.check()
    delivered += [record["step_id"] for record in drain(reader)]
    counters = rig.check()
    reader.close()

    assert delivered == expected
    assert counters["dropped"]["rejected"] == rejected > 0
    assert counters["dropped"]["ring_full"] == 4000 - len(expected) > 0
    assert counters["in_ring"] == 0


@pytest.mark.parametrize("unit", ["a", "é", "深", "\U0001f600"])
def test_too_large_a_record_is_shortened(rig: Rig, unit: str) -> None:
    """Small texts stay whole, the large share what there is in whole characters, and a marker says so."""
    long = "".join(chr(ord(unit) + number % 7) for number in range(50_000))
    picostep.send_step(
        "run", prompt=long, response=long[:40_000], tool_definitions=[long], model_used="small"
    )
    (frame,) = frames(rig.raw())
    counters = rig.check()
    reader = rig.reader()
    (record,) = drain(reader)
    reader.close()

    assert SMALLEST // 4 - 512 < frame.size <= SMALLEST // 4
    assert counters["shortened"] == 1
    assert record["shortened"] is True
    assert record["model_used"] == "small"
    assert record["run_id"] == "run"
    assert type(record["tool_definitions"]) is str
    width = max(width for _, width, _, _ in frame.texts)
    for name, whole in [("prompt", 50_000), ("response", 40_000)]:
        kept, _, marker = record[name].partition("… [picostep kept ")
        assert long.startswith(kept)
        assert marker == f"{len(kept)} of {whole} characters]"
        assert 0 <= SMALLEST // 4 // 3 - len(kept) * width < 300


def test_shed_is_not_shortened(rig: Rig) -> None:
    """A body that would have been cut is gone, and what is left is whole."""
    for _ in range(40):
        picostep.send_step("run", prompt="p" * 1200, response="")
    picostep.send_step("run", prompt="p" * 50_000, response="", model_used="m")
    reader = rig.reader()
    *_, record = drain(reader)
    reader.close()

    assert record["shed"] is True
    assert "shortened" not in record
    assert rig.check()["shortened"] == 0


def test_a_long_cost_is_never_cut(rig: Rig) -> None:
    cost = Decimal(f"0.{'1' * 900}")
    picostep.send_step("run", prompt="p" * 50_000, response="r" * 50_000, cost=cost)
    reader = rig.reader()
    (record,) = drain(reader)
    reader.close()

    assert record["real_total_cost"] == cost
    with pytest.raises(picostep.ArgumentError, match="digits"):
        picostep.send_step("run", prompt="", response="", cost=Decimal(f"0.{'1' * 2000}"))


# --- reading, releasing -----------------------------------------------------------------------------------


def test_unreleased_records_are_seen_again(rig: Rig) -> None:
    """An exporter is killed: the next one begins where it had counted, to the record."""
    record_some(10)
    first = rig.reader()
    assert ids(first.read(4, 1 << 20)) == [0, 1, 2, 3]
    first.release(first.position, 3, {"encode_error": 1})
    assert ids(first.read(4, 1 << 20)) == [4, 5, 6, 7]
    first.close()

    second = rig.reader()
    assert ids(second.read(100, 1 << 20)) == [4, 5, 6, 7, 8, 9]
    second.close()

    second = rig.reader()
    assert ids(second.read(100, 1 << 20)) == [4, 5, 6, 7, 8, 9]
    assert second.read(100, 1 << 20) == []
    assert second.drained
    assert second.backlog > 0
    second.release(second.position, 6)
    assert second.backlog == 0
    second.close()
    assert rig.check()["delivered"] == 9


def test_an_exporter_killed_while_it_counts(rig: Rig) -> None:
    """What it was writing does not count until it is whole; the outcome before does."""
    record_some(10)
    reader = rig.reader()
    assert ids(reader.read(4, 1 << 30)) == [0, 1, 2, 3]
    reader.release(reader.position, 4)
    reader.close()
    rig.ring.close()
    raw = bytearray(rig.raw())
    start = OUTCOMES + OUTCOME_SIZE * (1 - header(raw)["turn"] & 1)
    raw[start : start + OUTCOME_SIZE] = os.urandom(OUTCOME_SIZE)
    rig.path.write_bytes(raw)

    reader = rig.reader()
    assert not reader.alive()
    assert ids(drain(reader)) == [4, 5, 6, 7, 8, 9]
    counters = reader.counters()
    reader.close()
    assert (counters["delivered"], counters["dropped"]["corrupt"], counters["in_ring"]) == (10, 0, 0)


def test_spooled_records(rig: Rig) -> None:
    """They are out of the ring, and counted apart until it is known what became of them."""
    record_some(10)
    reader = rig.reader()
    reader.read(3, 1 << 30)
    third = reader.position
    reader.release(third, 2, {"rejected": 1})
    reader.read(5, 1 << 30)
    eighth = reader.position
    reader.release(eighth, 0, {"encode_error": 1}, spooled=4, withheld=2)
    assert (rig.ring.tail, rig.ring.settled) == (eighth, third)
    counters = rig.check()
    assert (counters["in_spool"], counters["unsynced"], counters["withheld"]) == (4, 4, 2)

    reader.synced()
    assert (rig.check()["in_spool"], rig.check()["unsynced"]) == (4, 0)
    reader.settle(third + 8, 1)
    assert (rig.ring.settled, rig.check()["in_spool"]) == (third + 8, 3)
    with pytest.raises(ValueError, match="spooled"):
        reader.settle(eighth, 4)
    reader.settle(eighth, 1, {"expired": 1, "corrupt": 1})
    assert (rig.ring.settled, rig.check()["in_spool"]) == (eighth, 0)
    reader.close()

    reader = rig.reader()  # the next exporter goes on where this one was
    assert ids(drain(reader)) == [8, 9]
    counters = rig.check()
    assert rig.ring.settled == rig.ring.tail == rig.ring.head
    assert counters["dropped"] == {
        "ring_full": 0,
        "encode_error": 1,
        "rejected": 1,
        "corrupt": 1,
        "expired": 1,
    }
    assert counters["delivered"] == 6
    reader.close()


def test_read_is_bounded(rig: Rig) -> None:
    record_some(10, size=1000)
    reader = rig.reader()

    assert ids(reader.read(3, 1 << 30)) == [0, 1, 2]
    assert ids(reader.read(100, 1)) == [3]
    assert 2 <= len(reader.read(100, 2500)) <= 3
    assert reader.read(0, 1 << 30) == []
    reader.close()


def test_release_takes_only_what_was_read(rig: Rig) -> None:
    record_some(10)
    reader = rig.reader()
    start = reader.position
    reader.read(5, 1 << 20)
    middle = reader.position
    reader.release(middle, 5)
    before = rig.raw()[:HEADER_SIZE]

    for position, counts in [(start, {}), (middle + 8, {}), (middle, {"lost": 1})]:
        with pytest.raises(ValueError, match=r"not read|unknown reasons"):
            reader.release(position, 0, counts)
    with pytest.raises(OverflowError):
        reader.release(middle, 0, {"rejected": -1})
    with pytest.raises(OverflowError):
        reader.release(-1, 0)
    assert rig.raw()[:HEADER_SIZE] == before
    reader.close()
    reader = rig.reader()
    assert reader.position == middle
    reader.close()


def test_a_closed_reader(rig: Rig) -> None:
    reader = rig.reader()
    reader.close()
    reader.close()
    for use in (
        reader.alive,
        reader.counters,
        lambda: reader.read(1, 1),
        lambda: reader.set_last_error(""),
    ):
        with pytest.raises(ValueError, match="closed"):
            use()  # type: ignore[operator]
    with pytest.raises(ValueError, match="closed"):
        RingReader.__new__(RingReader).read(1, 1)


def test_the_last_error_for_the_host(rig: Rig) -> None:
    reader = rig.reader()
    for text, shown in [("http 503", "http 503"), ("é" * 600, "?" * 511), ("", "")]:
        reader.set_last_error(text)
        assert rig.ring.counters()["last_error"] == shown
    reader.close()


def test_a_private_ring() -> None:
    """The same format in memory of the process, read in place."""
    ring = HostRing(-1, SMALLEST)
    assert ring.private
    assert ring.install(63)
    assert not HostRing(-1, SMALLEST).install(63)
    reader = RingReader.of_private(ring)
    assert reader.alive()
    assert reader.read(1, 1) == []
    assert ring.counters() == reader.counters()
    ring.close()
    assert not ring.open
    assert ring.counters() == {}
    with pytest.raises(ValueError, match="closed"):
        reader.read(1, 1)
    for wrong in (0, SMALLEST - 1, (1 << 30) + 1):
        with pytest.raises(ValueError, match="a ring has"):
            HostRing(-1, wrong)
    with pytest.raises(ValueError, match="out of range"):
        HostRing(-1, SMALLEST).install(64)


def test_a_reader_beside_a_host(module_rig: Rig) -> None:
    """One thread drains while another records: all there, in order."""
    rig = module_rig
    rig.renew(256 * KIB)
    got: list[int] = []
    stop = threading.Event()

    def export() -> None:
        reader = rig.reader()
        while not stop.is_set() or not reader.drained:
            records = reader.read(50, 1 << 20)
            got.extend(ids(records))
            reader.release(reader.position, len(records))
        reader.close()

    thread = threading.Thread(target=export)
    thread.start()
    record_some(20_000)
    stop.set()
    thread.join(100)
    counters = rig.check()
    assert len(got) == counters["accepted"] == 20_000 - counters["dropped"]["ring_full"]
    assert got == sorted(set(got))
