"""Damaged and hostile ring files: what is whole is recovered, the rest is counted, nothing is invented."""

from __future__ import annotations

import fcntl
import itertools
import os
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

import picostep
from picostep._ring import RingError, RingReader
from ringfile import (
    HEADER,
    HEADER_SIZE,
    KIB,
    OUTCOME,
    SLOT_SIZE,
    SMALLEST,
    Rig,
    drain,
    frames,
    header,
    ids,
    put,
    record_some,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rings in files need POSIX")


CAMPAIGN = os.environ.get("PICOSTEP_CAMPAIGN") == "1"


class Image:
    """
    A ring of a dead host in its second lap, with all kinds of records and texts, to be damaged.

    Args:
        capacity: Bytes of data.

        rounds: Of five records each.
    """

    def __init__(self, path: Path, rig: Rig, capacity: int = SMALLEST, rounds: int = 6) -> None:
        self.path = path
        rig.renew(capacity)
        reader = rig.reader()
        while rig.ring.head < capacity - 2000:
            picostep.send_step("run", prompt="p" * 850, response="")
            sum(1 for _ in drain(reader))
        for number in range(rounds):
            picostep.send_run(
                prompt=f"{number}é", response="深" * 9, metadata={"a": number}, conversational=True
            )
            picostep.send_step("run", prompt="p" * 200, response="\U0001f600" * 9, cost=number)
            picostep.send_tool_call("run", name="n", args={"a": number}, result="r" * number)
            picostep.submit_feedback("run", "thumbs_up", "text")
            picostep.send_step("r", prompt=["x"], response="r" * 700, cost=0.5, tool_definitions="t" * number)
        reader.close()
        rig.ring.close()
        self.raw = rig.raw()
        self.frames = frames(self.raw)
        assert any(a.at > b.at for a, b in itertools.pairwise(self.frames)), "it must wrap"
        reader = self.open(self.raw)
        self.records = reader.read(1000, 1 << 30)
        self.accepted = reader.counters()["accepted"]
        reader.close()
        assert [record["seq"] for record in self.records] == [frame.seq for frame in self.frames]
        assert len(self.records) == 5 * rounds

    def open(self, raw: bytes) -> RingReader:
        self.path.write_bytes(raw)
        self.path.chmod(0o600)
        return RingReader(str(self.path))

    def drain(self, raw: bytes) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The records that are left, and the counters then."""
        reader = self.open(raw)
        assert not reader.alive()
        records = list(drain(reader, 7))
        counters = reader.counters()
        assert reader.read(10, 1000) == []
        reader.close()
        return records, counters

    def check_data(self, raw: bytes, touched: range) -> None:
        """Damage of data: every record outside of it comes out as it was, and what is missing is counted."""
        records, counters = self.drain(raw)
        hit = {
            frame.seq
            for frame in self.frames
            if frame.at < touched.stop and touched.start < frame.at + frame.size
        }
        whole = [record for record in self.records if record["seq"] not in hit]
        assert [record for record in records if record["seq"] not in hit] == whole
        seqs = [record["seq"] for record in records]
        assert seqs == sorted(set(seqs))
        missing = len(self.records) - len(records)
        assert counters["dropped"]["corrupt"] == missing
        assert (counters["torn"], counters["in_ring"]) == (0, 0)
        assert counters["accepted"] == self.accepted == counters["delivered"] + missing


@pytest.fixture(scope="module")
def image(module_rig: Rig) -> Image:
    return Image(module_rig.directory / "image", module_rig)


@pytest.fixture(scope="module")
def small_image(module_rig: Rig) -> Image:
    """Few records, of which the first lie in the half of the file that it may lack."""
    return Image(module_rig.directory / "image", module_rig, 2 * SMALLEST, 2)


# --- damage of data ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_bit_flipped(small_image: Image) -> None:
    image = small_image
    for frame in image.frames:
        for at in range(frame.at, frame.at + frame.size):
            for bit in range(8) if CAMPAIGN else [at % 8]:
                new = bytes([image.raw[at] ^ 1 << bit])
                image.check_data(image.raw[:at] + new + image.raw[at + 1 :], range(at, at + 1))


@pytest.mark.slow
def test_truncated_at_every_byte(small_image: Image) -> None:
    """What lies before the cut and, in the next lap, at the beginning of the file is recovered."""
    image = small_image
    first = min(frame.at for frame in image.frames if frame.at > HEADER_SIZE + SMALLEST)
    for length in range(first, len(image.raw), 1 if CAMPAIGN else 13):
        image.check_data(image.raw[:length], range(length, len(image.raw)))


@pytest.mark.slow
def test_every_byte_of_frames_flipped(image: Image) -> None:
    """One of each kind, the last one of a lap, and what follows it: every byte, in several ways."""
    last = max(image.frames, key=lambda frame: frame.at)
    end = last.at + last.size
    places = itertools.chain(
        *(range(frame.at, frame.at + min(frame.size, 330)) for frame in (*image.frames[:5], last)),
        range(end, min(end + 16, len(image.raw))),
    )
    for at in places:
        old = image.raw[at]
        for new in {old ^ 1, old ^ 0x80, 0, 0xFF} - {old}:
            image.check_data(image.raw[:at] + bytes([new]) + image.raw[at + 1 :], range(at, at + 1))


def test_regions_overwritten(image: Image) -> None:
    """Anything from a byte to most of the ring, zeroed or random, at random places."""
    random = Random(2)
    for _ in range(40_000 if CAMPAIGN else 500):
        start = random.randrange(HEADER_SIZE, len(image.raw))
        stop = min(len(image.raw), start + random.choice([1, 8, 100, 1000, 30_000]))
        filling = random.choice([bytes(stop - start), random.randbytes(stop - start)])
        image.check_data(image.raw[:start] + filling + image.raw[stop:], range(start, stop))


def test_frames_in_other_places(image: Image) -> None:
    """A frame is only a frame in its own place: a copy of one elsewhere is no record."""
    random = Random(3)
    for _ in range(20_000 if CAMPAIGN else 300):
        source, target = random.sample(image.frames, 2)
        copied = image.raw[source.at : source.at + source.size][: len(image.raw) - target.at]
        raw = image.raw[: target.at] + copied + image.raw[target.at + len(copied) :]
        image.check_data(raw, range(target.at, target.at + len(copied)))


def test_code_points_that_do_not_exist(image: Image) -> None:
    frame, at = next((frame, at) for frame in image.frames for _, width, _, at in frame.texts if width == 4)
    for value in (0x110000, 0x7FFFFFFF, 0xFFFFFFFF):
        raw = image.raw[:at] + value.to_bytes(4, sys.byteorder) + image.raw[at + 4 :]
        image.check_data(raw, range(at, at + 4))
        records, _ = image.drain(raw)
        assert frame.seq not in [record["seq"] for record in records]


def test_truncated_to_less_than_a_ring(image: Image) -> None:
    for length in [*range(HEADER_SIZE + SMALLEST - 1, HEADER_SIZE, -997), HEADER_SIZE, 4095, 100, 1, 0]:
        with pytest.raises(RingError, match="too short"):
            image.open(image.raw[:length])


def test_truncated(module_rig: Rig) -> None:
    """A file that is shorter than its header says: what is left of it."""
    rig = module_rig
    rig.renew(1 << 20)
    reader = rig.reader()
    record_some(600, size=1000)
    assert len(list(drain(reader))) == 600
    record_some(600, first=600, size=1000)
    reader.close()
    rig.ring.close()
    raw = rig.raw()
    there = frames(raw)
    assert len(there) == 600
    for length in (len(raw) - 1, len(raw) * 3 // 4, 100 * KIB + 3, HEADER_SIZE + SMALLEST):
        rig.path.write_bytes(raw[:length])
        reader = rig.reader()
        assert not reader.alive()
        kept = [frame.seq for frame in there if frame.at + frame.size <= length]
        assert [record["seq"] for record in drain(reader)] == kept
        assert reader.counters()["dropped"]["corrupt"] == len(there) - len(kept)
        reader.close()


def test_losses_are_counted_where_they_lie(rig: Rig) -> None:
    """A release up to a record before the damage leaves the damage to whoever goes on."""
    record_some(10)
    rig.ring.close()
    raw = bytearray(rig.raw())
    raw[frames(bytes(raw))[7].at] ^= 1
    rig.path.write_bytes(raw)
    reader = rig.reader()
    assert not reader.alive()
    assert ids(reader.read(5, 1 << 20)) == [0, 1, 2, 3, 4]
    middle = reader.position
    assert ids(reader.read(100, 1 << 20)) == [5, 6, 8, 9]
    reader.release(middle, 5)
    assert reader.counters()["dropped"]["corrupt"] == 0
    reader.close()
    reader = rig.reader()
    assert not reader.alive()
    assert ids(drain(reader)) == [5, 6, 8, 9]
    assert reader.counters()["dropped"]["corrupt"] == 1
    assert reader.counters()["delivered"] == 9
    reader.close()


def test_damage_in_a_ring_that_is_in_use(rig: Rig) -> None:
    """The host goes on, and so does the reader."""
    record_some(10)
    with rig.path.open("r+b") as file:
        file.seek(frames(rig.raw())[3].at + 8)
        file.write(b"\xff" * 16)
    reader = rig.reader()
    assert ids(drain(reader)) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    record_some(5, first=10)
    assert ids(drain(reader)) == [10, 11, 12, 13, 14]
    reader.close()
    counters = rig.check()
    assert counters["dropped"]["corrupt"] == 1
    assert counters["delivered"] == 14


@pytest.mark.parametrize("committed", [False, True])
def test_a_host_that_died_inside_end(rig: Rig, committed: bool) -> None:
    """Counted and not committed: torn, never accepted. Committed with an old head: a record like others."""
    record_some(5)
    last = frames(rig.raw())[-1]
    rig.ring.close()
    raw = bytearray(put(rig.raw(), "head", last.position))
    if not committed:
        raw[last.at : last.at + 8] = bytes(8)
    rig.path.write_bytes(raw)
    with rig.path.open("rb+") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        reader = rig.reader()
        assert reader.alive()
        assert ids(drain(reader)) == [0, 1, 2, 3]
    assert not reader.alive()
    assert ids(drain(reader)) == ([4] if committed else [])
    counters = reader.counters()
    reader.close()
    whole = 5 if committed else 4
    assert counters["accepted"] == counters["delivered"] == whole
    assert counters["torn"] == 5 - whole
    assert counters["dropped"]["corrupt"] == 0


# --- a hostile header -------------------------------------------------------------------------------------

ODD = [0, 1, 7, 8, 128, 4095, 4096, 65535, 65536, 65540, 65544, 2**30, 2**31, 2**32 - 8, 2**62, 2**63]
HARMLESS = (
    *("ready", "created_ns", "pid", "shed", "shortened", "ring_full", "torn", "capacity"),
    *("settled", "in_spool", "unsynced", "withheld", "expired", "delivered", "rejected", "encode_error"),
)
LARGEST = [2**64 - 65536, 2**64 - 8, 2**64 - 1]


@pytest.mark.parametrize("name", sorted({**HEADER, **OUTCOME}))
@pytest.mark.parametrize("living", [False, True])
def test_hostile_header(image: Image, name: str, living: bool) -> None:
    """No value of any word makes the reader fail, hang, or invent a record."""
    true = {repr(sorted(record.items())) for record in image.records}
    value = header(image.raw)[name]
    near = [value + change for change in (-65536, -64, -8, -1, 1, 8, 64, 65536)]
    for new in {*ODD, *LARGEST, *near, value ^ 1 << 40, value ^ 1 << 63}:
        raw = put(image.raw, name, new)
        image.path.write_bytes(raw)
        with image.path.open("rb+") as host:
            if living:
                fcntl.flock(host, fcntl.LOCK_EX)
            try:
                reader = RingReader(str(image.path))
            except RingError:
                assert name in ("magic", "version")
                continue
            assert reader.alive() == living
            assert reader.size > 0
            assert reader.backlog >= 0
            records = list(drain(reader, 7))
            counters = reader.counters()
            reader.close()
            reader = RingReader(str(image.path))
            assert reader.read(10, 1000) == []
            reader.close()
        assert {repr(sorted(record.items())) for record in records} <= true
        assert counters["in_ring"] >= 0
        if name in HARMLESS:
            assert records == image.records
        if name in ("head", "accepted") and not living:
            assert records == image.records
        if name in ("limit", "head", "tail", "nonce") and not living:
            missing = len(image.records) - len(records)
            assert counters["dropped"]["corrupt"] + counters["torn"] == missing
            assert counters["accepted"] + counters["torn"] == image.accepted


# --- what is no ring --------------------------------------------------------------------------------------


def test_a_sparse_file(image: Image, tmp_path: Path) -> None:
    """However long a file is, it costs no memory and no time."""
    path = tmp_path / "sparse.ring"
    path.write_bytes(image.raw)
    path.chmod(0o600)
    longest = HEADER_SIZE + (1 << 30) + 4096 * SLOT_SIZE
    os.truncate(path, longest + 1)
    with pytest.raises(RingError, match="too long"):
        RingReader(str(path))
    os.truncate(path, longest)
    reader = RingReader(str(path))
    assert not reader.alive()
    assert list(drain(reader)) == image.records
    reader.close()

    os.truncate(path, 0)
    os.truncate(path, longest)
    with pytest.raises(RingError, match="not a ring"):
        RingReader(str(path))


def test_files_that_are_no_rings(image: Image, tmp_path: Path) -> None:
    real = tmp_path / "real.ring"
    real.write_bytes(image.raw)
    real.chmod(0o600)
    RingReader(str(real)).close()
    fifo, link, directory = tmp_path / "fifo", tmp_path / "link", tmp_path / "directory"
    os.mkfifo(fifo, 0o600)
    link.symlink_to(real)
    directory.mkdir(0o700)

    with pytest.raises(RingError, match="regular"):
        RingReader(str(fifo))
    for path in (link, directory, tmp_path / "missing"):
        with pytest.raises(OSError, match=path.name):
            RingReader(str(path))
    for mode in (0o640, 0o604, 0o666):
        real.chmod(mode)
        with pytest.raises(RingError, match="own"):
            RingReader(str(real))
    real.chmod(0o600)
    for name, new in [("magic", 0), ("version", 1 | 0x01020304 << 32), ("version", 2 | 0x04030201 << 32)]:
        real.write_bytes(put(image.raw, name, new))
        with pytest.raises(RingError, match="ring"):
            RingReader(str(real))
    with pytest.raises(TypeError):
        RingReader(b"bytes")  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_someone_else(image: Image, tmp_path: Path) -> None:
    path = tmp_path / "foreign.ring"
    path.write_bytes(image.raw)
    path.chmod(0o600)
    os.chown(path, 65534, 65534)
    with pytest.raises(RingError, match="own"):
        RingReader(str(path))
