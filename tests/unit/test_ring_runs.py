"""The table of open runs in a ring: what a host keeps there, and what a reader makes of it afterwards."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from random import Random
from typing import Any

import pytest

import picostep
from picostep import runtime
from picostep._ring import HostRing, RingReader
from picostep.exporter.ended_runs import EndedRuns
from picostep.settings.destination import resolve_destination
from ringfile import (
    FRAME,
    HEADER_SIZE,
    IMAGE_SIZE,
    IMAGES,
    MASK,
    RECORD,
    SLOT_SIZE,
    SMALLEST,
    WORD,
    Rig,
    drain,
    frames,
    header,
    images,
    put,
    record_some,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rings in files need POSIX")

DEAD = "the process ended before the run did"
# Text slots of a run, as `_ring.pxd` has them.
RUN_ID, SESSION, PROMPT, RESPONSE, SYSTEM, INPUT, OUTPUT, METADATA, MESSAGE = range(9)


class Dead:
    """The rings of hosts that died a moment ago: copies, which nobody has locked."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, raw: bytes, ended: Any = None) -> RingReader:
        self.path.write_bytes(raw)
        self.path.chmod(0o600)
        return self.reopen(ended)

    def reopen(self, ended: Any = None) -> RingReader:
        reader = RingReader(str(self.path))
        reader.ended = set() if ended is None else ended
        assert not reader.alive()
        return reader

    def all(self, reader: RingReader) -> list[dict[str, Any]]:
        """Everything there is, with the open runs, in as many rounds as it takes."""
        records = list(drain(reader))
        for _ in range(100):
            recorded = reader.fail_open_runs()
            reader.release(reader.position, 0)
            read = list(drain(reader))
            assert len(read) == recorded
            if not recorded:
                return records
            records += read
        raise AssertionError("it does not end")

    def check(self, reader: RingReader) -> dict[str, Any]:
        """Counters of a ring that is done with; fails unless they add up, and no image is left."""
        counters = reader.counters()
        dropped = counters["dropped"]["corrupt"] + counters["dropped"]["encode_error"]
        assert counters["accepted"] == counters["delivered"] + dropped
        assert counters["in_ring"] == 0
        return counters


@pytest.fixture
def dead(tmp_path: Path) -> Dead:
    return Dead(tmp_path / "dead.ring")


# --- what a host keeps ------------------------------------------------------------------------------------


def test_an_image_has_all_that_is_known(rig: Rig) -> None:
    """From `run()` on; after each setter there is one image, of a version of its own, with what was set."""
    before = time.time_ns()
    run = picostep.run(session_id="深", conversational=True)
    (image,) = images(rig.raw())
    assert image.texts == {SESSION: ("深", 1, False)}
    start, end, _, status, *_ = image.record
    assert before - 10**6 <= start <= end <= time.time_ns() + 10**6
    assert status == 0

    places, versions = {image.at}, [image.version]
    expected = dict(image.texts)
    for change, more in [
        (lambda: run.prompt("p", "s", ["x"]), {PROMPT: "p", SYSTEM: "s", INPUT: '["x"]'}),
        (lambda: run.response({"a": 1}, "out"), {RESPONSE: '{"a": 1}', OUTPUT: "out"}),
        (lambda: run.metadata(k="v"), {METADATA: '{"k": "v"}'}),
        (lambda: run.status(7, "slow"), {MESSAGE: "slow"}),
    ]:
        change()
        expected |= {slot: (text, len(text), slot in (INPUT, RESPONSE)) for slot, text in more.items()}
        (image,) = images(rig.raw())
        assert image.texts == expected
        assert image.record[0] == start
        places.add(image.at)
        versions.append(image.version)
    assert image.record[3] == 7
    assert len(places) == 2
    assert versions == sorted(set(versions))
    run.end()
    assert images(rig.raw()) == []
    assert [frame.kind for frame in frames(rig.raw())] == ["run"]


def test_a_refused_call_changes_nothing(rig: Rig) -> None:
    run = picostep.run("r").prompt("p")
    before = images(rig.raw())
    for wrong in (lambda: run.prompt(1), lambda: run.metadata({1: 2}), lambda: run.status("x")):  # type: ignore[arg-type]
        with pytest.raises(picostep.ArgumentTypeError):
            wrong()
    assert images(rig.raw()) == before


@pytest.mark.parametrize("unit", ["x", "é", "深", "\U0001f600"])
def test_large_texts_are_cut(rig: Rig, dead: Dead, unit: str) -> None:
    """The small ones stay whole, and the large share the rest of the image in whole characters."""
    long = unit * 1_000_000
    run = picostep.run("r", "session").prompt(long, long[:5000])
    (image,) = images(rig.raw())
    assert image.texts[RUN_ID] == ("r", 1, False)
    assert image.texts[SESSION] == ("session", 7, False)
    for slot, chars in ((PROMPT, 1_000_000), (SYSTEM, 5000)):
        kept, whole, _ = image.texts[slot]
        assert long.startswith(kept)
        assert whole == chars
    width = {1: 1, 2: 2, 4: 4}[1 if ord(unit) < 256 else 2 if ord(unit) < 65536 else 4]
    used = sum(len(kept) for kept, _, _ in image.texts.values()) * width
    assert used > IMAGE_SIZE - FRAME.size - RECORD.size - 4 * 16 - 200

    (record,) = dead.all(dead.open(rig.raw()))
    assert record["shortened"] is True
    kept = image.texts[PROMPT][0]
    assert record["user_prompt"] == f"{kept}… [picostep kept {len(kept)} of 1000000 characters]"
    del run


def test_ids_are_never_cut(rig: Rig, dead: Dead) -> None:
    """Bodies go first; a run whose id alone is too long is counted, and delivered when it ends, as ever."""
    long = picostep.run("i" * 350).prompt("p" * 5000, "s" * 5000).response("r" * 5000)
    (image,) = images(rig.raw())
    assert image.texts == {RUN_ID: ("i" * 350, 350, False)}
    (record,) = dead.all(dead.open(rig.raw()))
    assert record["run_id"] == "i" * 350
    assert record["shed"] is True

    long.metadata({str(number): "m" * 400 for number in range(3)}).status(0, "s" * 400)
    (same,) = images(rig.raw())
    assert same.texts[RUN_ID] == ("i" * 350, 350, False)
    assert rig.ring.counters()["untracked_runs"] == 0
    too_long = picostep.run("i" * 2000).prompt("p")
    assert len(images(rig.raw())) == 1
    assert rig.ring.counters()["untracked_runs"] == 1
    too_long.end()
    assert len(frames(rig.raw())) == 1


def test_low_slots_are_used_first(rig: Rig) -> None:
    """By `end()`, by `error()` and when it is let go, a run gives its slot back; a fifth finds none."""
    before = picostep.stats()["untracked_runs"]
    runs = {number: picostep.run(str(number)).prompt("p") for number in range(4)}
    assert [image.slot for image in images(rig.raw())] == [0, 1, 2, 3]
    extra = picostep.run("extra").prompt("p")
    assert rig.ring.counters()["untracked_runs"] == picostep.stats()["untracked_runs"] - before == 1

    runs.pop(2).end()
    runs.pop(1).error()
    del runs[3]
    assert [image.slot for image in images(rig.raw())] == [0]
    again = [picostep.run(f"again {number}") for number in range(3)]
    assert [image.texts[RUN_ID][0] for image in images(rig.raw())] == ["0", "again 0", "again 1", "again 2"]
    extra.response("r")
    assert len(images(rig.raw())) == 4
    assert rig.ring.counters()["untracked_runs"] == 1
    assert header(rig.raw())["slots"] == 4
    del again
    extra.end()
    assert rig.ring.counters()["in_ring"] == 3


def test_slots_get_their_space_on_demand(module_rig: Rig) -> None:
    """A sixteenth of this table's slots, and then as many as are in use."""
    rig = module_rig
    rig.renew(8 << 20)
    at = HEADER_SIZE + (8 << 20)
    assert os.stat(rig.path).st_size == at + 512 * SLOT_SIZE

    def held() -> int:
        """Bytes of the table that have their space."""
        with rig.path.open("rb") as file:
            return os.lseek(file.fileno(), at, os.SEEK_HOLE) - at

    assert held() == 0
    runs = [picostep.run()]
    assert 0 < held() <= 32 * SLOT_SIZE
    runs += [picostep.run() for _ in range(600)]
    assert held() == 512 * SLOT_SIZE
    assert len(images(rig.raw())) == 512
    assert rig.ring.counters()["untracked_runs"] == 601 - 512
    assert len({image.slot for image in images(rig.raw())}) == 512


def test_steps_and_whole_runs_need_no_slot(rig: Rig) -> None:
    picostep.step("r").prompt("p").response("r").end()
    picostep.send_run(prompt="p", steps=[{"prompt": "p", "response": "r"}])
    picostep.tool_call("r", tool_name="n").status(0).end()
    assert header(rig.raw())["slots"] == 0
    assert len(frames(rig.raw())) == 4


def test_a_ring_that_is_closed(rig: Rig, dead: Dead) -> None:
    """Its runs are none of a dead process; they are entered again where their next setter finds a ring."""
    run = picostep.run("r").prompt("p")
    untouched = picostep.run("untouched").prompt("p")
    old, path = rig.raw(), rig.path
    assert header(old)["slots"] == 2
    rig.ring.close()
    assert header(path.read_bytes())["slots"] == 0
    assert dead.all(dead.open(path.read_bytes())) == []
    run.response("without a ring")

    rig.renew(SMALLEST)
    assert images(rig.raw()) == []
    run.metadata(a="b")
    (image,) = images(rig.raw())
    assert {image.texts[slot][0] for slot in (RUN_ID, PROMPT, RESPONSE)} == {"r", "p", "without a ring"}
    del untouched  # its slot was in the other ring
    assert images(rig.raw()) == [image]
    run.end()
    assert images(rig.raw()) == []


def test_abandoned_at_exit(rig: Rig, dead: Dead) -> None:
    run = picostep.run("r").prompt("p")
    rig.ring.abandon_runs()
    run.response("later")
    late = picostep.run("late").prompt("p")
    assert dead.all(dead.open(rig.raw())) == []
    run.end()
    late.end()
    assert len(frames(rig.raw())) == 2


@pytest.mark.usefixtures("rig")
def test_a_private_ring_tracks_nothing() -> None:
    number = runtime._number(resolve_destination(runtime.settings(), "dev_private", None, None))
    ring = HostRing(-1, SMALLEST)
    assert ring.install(number)
    try:
        run = picostep.run(api_key="dev_private").prompt("p")
        assert ring.counters()["untracked_runs"] == 1
        run.end()
        assert ring.counters()["accepted"] == 1
    finally:
        ring.close()


# --- what a reader makes of it ----------------------------------------------------------------------------


def test_runs_of_a_dead_host(rig: Rig, dead: Dead) -> None:
    record_some(3)
    before = time.time_ns()
    runs = [
        picostep.run("plain"),
        picostep.run("full", "s", False).prompt(["p"], "sys").response("r").metadata(a=1).metadata(b="2"),
        picostep.run("failing").prompt("p").status(5, "slow"),
    ]
    reader = dead.open(rig.raw())
    assert reader.fail_open_runs() == 0, "only when the rest is out"
    assert len(reader.read(2, 1 << 20)) == 2
    assert reader.fail_open_runs() == 0
    reader.close()
    reader = dead.reopen()
    records = dead.all(reader)
    counters = dead.check(reader)
    reader.close()

    assert [record["kind"] for record in records] == ["step"] * 3 + ["run"] * 3
    assert [record["seq"] for record in records] == list(range(6))
    plain, full, failing = records[3:]
    assert plain.keys() == {"kind", "seq", "run_id", "start_ns", "end_ns", "status_code", "status_message"}
    assert (plain["status_code"], plain["status_message"]) == (2, DEAD)
    assert full["user_prompt"] == '["p"]'
    assert type(full["user_prompt"]).__name__ == "JSONText"
    assert [json.loads(line) for line in full["metadata"].split("\n")] == [{"a": 1}, {"b": "2"}]
    assert (full["system_prompt"], full["response"], full["session_id"]) == ("sys", "r", "s")
    assert full["conversational"] is False
    assert (failing["status_code"], failing["status_message"]) == (2, f"slow; {DEAD}")
    for record in records[3:]:
        assert before - 10**6 <= record["start_ns"] <= record["end_ns"] <= time.time_ns()
    assert counters["accepted"] == counters["delivered"] == 6
    assert not any(counters["dropped"].values())
    assert images(dead.path.read_bytes()) == []
    del runs


def test_only_the_dead_are_spoken_for(rig: Rig) -> None:
    run = picostep.run("r").prompt("p")
    reader = rig.reader()
    assert reader.alive()
    assert list(drain(reader)) == []
    assert reader.fail_open_runs() == 0
    reader.close()
    assert len(images(rig.raw())) == 1
    del run


def test_a_start_in_the_future(rig: Rig, dead: Dead) -> None:
    run = picostep.run("r", start_time="2200-01-01T00:00:00Z")
    (record,) = dead.all(dead.open(rig.raw()))
    assert (
        record["start_ns"]
        == record["end_ns"]
        == datetime(2200, 1, 1, tzinfo=timezone.utc).timestamp() * 10**9
    )
    del run


def test_what_has_ended_elsewhere(rig: Rig, dead: Dead) -> None:
    """A run that was read from any ring is left out: also from this one, of a host that had not freed it."""
    runs = [picostep.run(name).prompt("p") for name in ("open", "by a child", "just ended")]
    before = rig.raw()
    runs[2].end()
    after = bytearray(rig.raw())
    table = slice(HEADER_SIZE + SMALLEST, None)
    after[table] = before[table]
    reader = dead.open(bytes(after), {"by a child"})
    assert [record["run_id"] for record in dead.all(reader)] == ["just ended", "open"]
    assert images(dead.path.read_bytes()) == []
    assert dead.check(reader)["accepted"] == 2
    reader.close()


def test_ended_runs_are_bounded() -> None:
    ended = EndedRuns(3)
    for run_id in "abcabd":
        ended.add(run_id)
    assert [run_id in ended for run_id in "abcd"] == [True, True, False, True]
    assert len(ended._ids) == 3


def test_killed_between_the_images(rig: Rig, dead: Dead) -> None:
    """At every step of a change one image is whole: the old one, both, or the new one."""
    run = picostep.run("r").prompt("old")
    old = rig.raw()
    (first,) = images(old)
    run.prompt("new")
    new = rig.raw()
    (second,) = images(new)

    def prompt(raw: bytes | bytearray) -> str:
        (record,) = dead.all(dead.open(bytes(raw)))
        return str(record["user_prompt"])

    half = bytearray(old)
    for at in range(second.at + 8, second.at + IMAGE_SIZE, 8):
        half[at : at + 8] = new[at : at + 8]
        assert prompt(half) == "old"
    both = bytearray(half)
    both[second.at : second.at + 8] = new[second.at : second.at + 8]
    assert len(images(bytes(both))) == 2
    assert prompt(both) == "new"
    both[first.at : first.at + 8] = bytes(8)
    assert prompt(both) == "new"
    # And where the newer of two is damaged, the older is still there.
    both[first.at : first.at + 8] = old[first.at : first.at + 8]
    both[second.at + 8] ^= 1
    assert prompt(both) == "old"


def test_a_reader_killed_while_it_writes(rig: Rig, dead: Dead) -> None:
    """After each of its steps: the next one reports each run once."""
    runs = [picostep.run(name).prompt("p") for name in ("a", "b")]
    record_some(1)
    start = rig.raw()
    reader = dead.open(start)
    list(drain(reader))
    begun = dead.path.read_bytes()
    assert reader.fail_open_runs() == 2
    reader.close()
    done = dead.path.read_bytes()
    one, two = frames(done)

    table = HEADER_SIZE + SMALLEST
    states = []
    state = bytearray(begun)
    state[one.at + 8 : one.at + one.size] = done[one.at + 8 : one.at + one.size]
    states.append(bytes(state))  # not committed
    state[one.at : one.at + 8] = done[one.at : one.at + 8]
    states.append(bytes(state))  # not counted
    state = bytearray(put(state, "accepted", 2))
    states.append(bytes(state))  # the head is old
    state = bytearray(put(state, "head", two.position))
    states.append(bytes(state))  # its slot is not free
    state[table : table + SLOT_SIZE] = bytes(SLOT_SIZE)
    states.append(bytes(state))
    state[two.at : two.at + two.size] = done[two.at : two.at + two.size]
    states.append(bytes(state))
    states.append(done)
    for raw in states:
        reader = dead.open(raw)
        assert sorted(record["run_id"] for record in dead.all(reader)) == ["a", "b"]
        counters = dead.check(reader)
        assert (counters["accepted"], counters["torn"]) == (3, 0)
        assert counters["dropped"]["corrupt"] == 0
        reader.close()
    del runs


@pytest.mark.parametrize("filled", [0, SMALLEST // 2, SMALLEST - 400, SMALLEST - 8])
def test_wherever_the_ring_ends(rig: Rig, dead: Dead, filled: int) -> None:
    """The frames begin a new lap where the rest of one is too short."""
    runs = [picostep.run(f"r{number}").prompt("p" * 500) for number in range(4)]
    reader = rig.reader()
    while rig.ring.head < filled:
        rest = filled - rig.ring.head
        size = FRAME.size + RECORD.size + 2 * 16 + 8
        before = rig.ring.head
        picostep.send_step("r", prompt="p" * (rest - size if size <= rest < 900 else 400), response="")
        sum(1 for _ in drain(reader))
        assert rig.ring.head > before
    reader.close()
    again = dead.open(rig.raw())
    records = dead.all(again)
    assert [record["run_id"] for record in records] == ["r0", "r1", "r2", "r3"]
    dead.check(again)
    again.close()
    del runs


def test_more_runs_than_the_ring_has_room_for(module_rig: Rig, dead: Dead) -> None:
    """A ring that could not get all of its space: they go out in several rounds."""
    rig = module_rig
    rig.renew(8 << 20, reserve=False)
    runs = [picostep.run(f"{number}").prompt("p" * 900) for number in range(512)]
    raw = put(rig.raw(), "limit", SMALLEST)
    reader = dead.open(raw)
    assert 0 < reader.fail_open_runs() < 100
    reader.close()
    reader = dead.open(raw)
    records = dead.all(reader)
    assert [int(record["run_id"]) for record in records] == list(range(512))
    assert dead.check(reader)["accepted"] == 512
    reader.close()
    del runs


# --- damage -----------------------------------------------------------------------------------------------


class Table:
    """A dead ring with three steps and four open runs, to be damaged."""

    def __init__(self, rig: Rig) -> None:
        rig.renew(SMALLEST)
        record_some(3)
        self.runs = [
            picostep.run("a", "s").prompt("深" * 20, ["x"]),
            picostep.run().prompt("\U0001f600" * 10).metadata(a=1),
            picostep.run("c").prompt("p" * 2000),
            picostep.run("d", conversational=True).status(3, "message"),
        ]
        self.ids = [run.run_id for run in self.runs]
        self.raw = rig.raw()
        self.images = images(self.raw)


@pytest.fixture(scope="module")
def table(module_rig: Rig) -> Table:
    return Table(module_rig)


def check_damaged(dead: Dead, table: Table, raw: bytes, hit: set[int]) -> None:
    """No crash; the slots that were not hit are reported as ever; all is counted."""
    reader = dead.open(raw)
    records = dead.all(reader)[3:]
    counters = dead.check(reader)
    reader.close()
    found = [record["run_id"] for record in records]
    assert [table.ids[number] for number in range(4) if number not in hit] == [
        run_id for run_id in found if run_id in [table.ids[n] for n in range(4) if n not in hit]
    ]
    assert len(found) + counters["dropped"]["corrupt"] <= 4
    assert images(dead.path.read_bytes()) == []
    for record in records:
        assert record["status_code"] == 2
        assert record["status_message"].endswith(DEAD)


@pytest.mark.slow
def test_every_byte_of_an_image(table: Table, dead: Dead) -> None:
    for image in table.images[:2]:
        (size,) = (FRAME.unpack_from(table.raw, image.at)[1],)
        for at in range(image.at, image.at + size):
            for new in {table.raw[at] ^ 1, table.raw[at] ^ 0x80}:
                raw = table.raw[:at] + bytes([new]) + table.raw[at + 1 :]
                check_damaged(dead, table, raw, {image.slot})


def test_random_damage_of_the_table(table: Table, dead: Dead) -> None:
    random = Random(4)
    start = HEADER_SIZE + SMALLEST
    for _ in range(300):
        at = start + random.randrange(4 * SLOT_SIZE)
        stop = min(start + 4 * SLOT_SIZE, at + random.choice([1, 8, 100, 3000]))
        filling = random.choice([bytes(stop - at), random.randbytes(stop - at)])
        hit = set(range((at - start) // SLOT_SIZE, (stop - 1 - start) // SLOT_SIZE + 1))
        check_damaged(dead, table, table.raw[:at] + filling + table.raw[stop:], hit)


def test_an_image_that_cannot_be_read_is_counted(table: Table, dead: Dead) -> None:
    """Also one in the place of another, or with a length that leads out of it."""
    image, other = table.images[0], table.images[2]
    for at, value in [
        (image.at + 8, 0),
        (image.at + 8, IMAGE_SIZE + 8),
        (image.at + 8, 2**32 - 8),
        (image.at, 0xDEADBEEF),
    ]:
        raw = bytearray(table.raw)
        raw[at : at + (8 if at == image.at else 4)] = value.to_bytes(
            8 if at == image.at else 4, sys.byteorder
        )
        reader = dead.open(bytes(raw))
        assert [record["run_id"] for record in dead.all(reader)[3:]] == table.ids[1:]
        counters = dead.check(reader)
        assert counters["dropped"]["corrupt"] == 1
        assert counters["accepted"] == 7
        reader.close()
    raw = bytearray(table.raw)
    raw[image.at : image.at + IMAGE_SIZE] = raw[other.at : other.at + IMAGE_SIZE]
    check_damaged(dead, table, bytes(raw), {0})


def test_a_frame_is_no_image_and_an_image_no_frame(table: Table, dead: Dead) -> None:
    """Their words differ, so neither is found in the place of the other."""
    words = header(table.raw)
    image = table.images[0]
    raw = bytearray(table.raw)
    at = HEADER_SIZE + words["head"]
    raw[at : at + IMAGE_SIZE] = raw[image.at : image.at + IMAGE_SIZE]
    reader = dead.open(bytes(raw))
    assert len(list(drain(reader))) == 3
    reader.close()
    WORD.pack_into(raw, image.at, (words["nonce"] + words["head"]) & MASK)
    check_damaged(dead, table, bytes(raw), {0})
    assert IMAGES > 1 << 62


@pytest.mark.parametrize(
    "name", ["slots", "capacity", "limit", "head", "accepted", "tail", "nonce", "delivered"]
)
def test_a_hostile_header(table: Table, dead: Dead, name: str) -> None:
    """Whatever it says, no run is invented, and the reader comes to an end."""
    value = header(table.raw)[name]
    for new in (
        0,
        1,
        7,
        4096,
        65536,
        65544,
        2**30,
        2**32,
        2**62,
        2**63,
        2**64 - 8,
        2**64 - 1,
        value + 8,
        value ^ 1,
    ):
        reader = dead.open(put(table.raw, name, new))
        records = dead.all(reader)
        reader.close()
        runs = [record["run_id"] for record in records if record["kind"] == "run"]
        assert set(runs) <= set(table.ids)
        assert len(runs) == len(set(runs))
        if name in ("head", "accepted", "limit"):
            assert runs == table.ids


def test_a_file_without_its_table(table: Table, dead: Dead) -> None:
    for length in (HEADER_SIZE + SMALLEST, HEADER_SIZE + SMALLEST + 100, len(table.raw) - SLOT_SIZE):
        reader = dead.open(table.raw[:length])
        records = dead.all(reader)
        assert [record["run_id"] for record in records[3:]] == table.ids[
            : (length - HEADER_SIZE - SMALLEST) // SLOT_SIZE
        ]
        reader.close()
