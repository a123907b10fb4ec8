"""
What is fuzzed: readers of files that a crash, a disk or another program of the same user may have damaged.

A target takes any bytes and fails only where the reader does what it must never do. `seeds()` and `mutate()`
know the format, so that most inputs get past its first check; expectations come from `ringfile`.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import zlib
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Protocol

import picostep
from picostep._ring import JSONText, RingError, RingReader
from picostep.exporter import segment
from picostep.exporter.ledger import Ledger
from picostep.exporter.pricer import Pricer
from picostep.exporter.rings import DirectoryRings
from picostep.payload import encode_each, encode_local, encode_priced
from picostep.prices import PriceTable, PriceTableError
from picostep.ringdir import RingDir
from picostep.settings.destination import Destination
from pricefile import Parts, seal
from ringfile import (
    FRAME,
    HEADER,
    HEADER_SIZE,
    HEADER_USED,
    KINDS,
    MASK,
    OUTCOME,
    RECORD,
    SMALLEST,
    TEXT,
    WORD,
    Rig,
    drain,
    header,
    offset,
)
from spoolfile import FRAME_BYTES

ODD = [0, 1, 7, 8, 127, 128, 255, 4096, 65535, 65536, 65544, 2**31 - 1, 2**31, 2**32 - 8, 2**62, 2**63, MASK]
"""Values at the edges of what fields can hold."""


class Target(Protocol):
    """One reader."""

    def seeds(self) -> list[bytes]:
        """Inputs that are whole, to begin with."""

    def mutate(self, data: bytes, random: Random) -> bytes:
        """Another input that is less whole, or more."""

    def run(self, data: bytes) -> None:
        """Read an input; raise what is not allowed to happen."""


# --- rings ------------------------------------------------------------------------------------------------

PLACE = 4
"""Bytes of an input before the header: where the frames begin, by 8 bytes, and how they are read."""


class Rings:
    """
    The reader of rings, from opening to closing.

    An input is 4 bytes, the part of a header that is in use, and what lies in the data from some place on;
    the rest of the file is zeros. The file is one byte more than a ring needs.
    """

    CAPACITY = SMALLEST + 4096 + 1

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = []
        for name in ("dead", "living"):
            fd = os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.truncate(fd, HEADER_SIZE + self.CAPACITY)
            self.files.append((str(directory / name), fd))
        fcntl.flock(self.files[1][1], fcntl.LOCK_EX)

    def seeds(self) -> list[bytes]:
        rig = Rig(self.directory)
        seeds = []
        for lap in (False, True):
            for number in range(5):
                rig.renew(SMALLEST)
                if lap:
                    self._nearly_a_lap(rig)
                for _ in range(3):
                    RECORDS[number]()
                seeds.append(self._input(rig, number + 1))
            rig.renew(SMALLEST)
            if lap:
                self._nearly_a_lap(rig)
            for record in RECORDS:
                record()
            seeds.append(self._input(rig, 0))
        rig.close()
        return seeds

    @staticmethod
    def _nearly_a_lap(rig: Rig) -> None:
        reader = rig.reader()
        while rig.ring.head < SMALLEST - 500:
            picostep.send_step("run", prompt="p" * min(850, SMALLEST - 500 - rig.ring.head), response="")
            for _ in drain(reader):
                pass
        reader.close()

    @staticmethod
    def _input(rig: Rig, flags: int) -> bytes:
        raw = rig.raw()
        words = header(raw)
        place, length = words["tail"] % SMALLEST, words["head"] - words["tail"]
        data = raw[HEADER_SIZE : HEADER_SIZE + SMALLEST]
        return (
            (place // 8 << 8 | flags).to_bytes(PLACE, "little")
            + raw[:HEADER_USED]
            + (data * 2)[place : place + length]
        )

    def run(self, data: bytes) -> None:
        if len(data) < PLACE + HEADER_USED:
            return
        how = int.from_bytes(data[:PLACE], "little")
        living = how & 7 != 0  # the few others are searched to their end, which takes long
        path, fd = self.files[living]
        place = (how >> 8) * 8 % SMALLEST
        found = data[PLACE + HEADER_USED :][:SMALLEST]
        parts = [(place, found[: SMALLEST - place]), (0, found[SMALLEST - place :])]
        os.pwrite(fd, data[PLACE : PLACE + HEADER_USED], 0)
        for at, part in parts:
            os.pwrite(fd, part, HEADER_SIZE + at)
        try:
            self.read(path, living, how)
        finally:
            for at, part in parts:
                os.pwrite(fd, bytes(len(part)), HEADER_SIZE + at)

    def read(self, path: str, living: bool, how: int) -> None:
        """Read all there is, as an exporter does that some records and some deliveries fail."""
        try:
            reader = RingReader(path)
        except RingError:
            return
        assert reader.alive() == living
        before = reader.counters()
        done = refused = 0
        most = 1 + (how & 7) * (how & 7) // 2
        while records := reader.read(most, 1 << (how >> 4 & 15)):
            for record in records:
                check_record(record)
            position = reader.position
            if how & 8:
                reader.close()
                reader = RingReader(path)
                assert reader.alive() == living
                assert reader.position <= position
                records = reader.read(most, 1 << (how >> 4 & 15))
            bad = len(records) & 1
            reader.release(reader.position, len(records) - bad, {"rejected": bad})
            done += len(records) - bad
            refused += bad
            assert done + refused <= 2 * self.CAPACITY // (FRAME.size + RECORD.size)
            assert reader.backlog >= 0
        reader.release(reader.position, 0)
        reader.set_last_error("noted")
        after = reader.counters()
        assert after["in_ring"] >= 0
        assert (after["delivered"] - before["delivered"]) & MASK == done
        assert (after["dropped"]["rejected"] - before["dropped"]["rejected"]) & MASK == refused
        assert after["last_error"] == "noted"
        if not living:
            assert reader.drained
        reader.close()

    def mutate(self, data: bytes, random: Random) -> bytes:
        raw = bytearray(data)
        if len(raw) < PLACE + HEADER_USED:
            return data
        for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
            random.choice(RING_MUTATIONS)(raw, random)
        return bytes(raw)


def check_record(record: dict[str, Any]) -> None:
    """Fail unless a record has the types that everything behind the reader relies on."""
    assert record["kind"] in KINDS.values()
    assert isinstance(record["run_id"], str)
    for name, value in record.items():
        if name.endswith(("_ns", "_tokens", "_code")) or name == "seq":
            assert type(value) is int
        elif name == "real_total_cost":
            assert value >= 0
        elif name in ("conversational", "shed", "shortened"):
            assert type(value) is bool
        else:
            assert type(value) in (str, JSONText)


RECORDS: list[Callable[[], Any]] = [
    lambda: picostep.send_step(
        "r",
        prompt="é" * 20,
        response=["x"],
        model_used="gpt-4o",
        prompt_uncached=5,
        completion=7,
        cost=0.5,
        finish_reason="stop",
        tool_definitions="\U0001f600",
    ),
    lambda: picostep.send_run(
        prompt="深", response="r", metadata={"a": 1}, conversational=True, status_message="Bearer abc"
    ),
    lambda: picostep.send_tool_call("run", name="n", args={"a": 1}, result="r" * 30),
    lambda: picostep.submit_feedback("run", "thumbs_up", "text"),
    lambda: picostep.send_step("r", prompt="", response="\ud800", cost=12345678901234567890),
]


def _places(raw: bytearray) -> list[int]:
    """Where frames begin in an input, as far as their sizes say so."""
    at, found = PLACE + HEADER_USED, []
    while at + FRAME.size + RECORD.size <= len(raw) and len(found) < 64:
        found.append(at)
        size = FRAME.unpack_from(raw, at)[1]
        at += size if 0 < size <= len(raw) and size % 8 == 0 else FRAME.size + RECORD.size
    return found


def _commit(raw: bytearray, at: int) -> int:
    """The word that makes a frame of what begins there."""
    words = header(bytes(raw[PLACE:]))
    nonce, tail = words["nonce"], words["tail"]
    return (nonce + tail + at - PLACE - HEADER_USED) & MASK


def _header_word(raw: bytearray, random: Random) -> None:
    at = PLACE + offset(raw[PLACE:], random.choice([*HEADER, *OUTCOME]))
    (old,) = WORD.unpack_from(raw, at)
    WORD.pack_into(
        raw, at, random.choice([*ODD, old + 8, old - 8, old + 1, old ^ 1 << random.randrange(64)]) & MASK
    )


def _how(raw: bytearray, random: Random) -> None:
    raw[random.choice((0, 0, 0, 0, 1, 2))] = random.randrange(256)


def _frame_field(raw: bytearray, random: Random) -> None:
    if places := _places(raw):
        at = random.choice(places)
        fields = list(FRAME.unpack_from(raw, at))
        number = random.choice((1, 1, 2, 3, 3, 4, 5))
        limit = (64, 32, 8, 8, 16, 64)[number]
        old = fields[number]
        fields[number] = (
            random.choice([*ODD, old + 8, old - 8, old + 1, old - 1, random.randrange(8)]) % 2**limit
        )
        FRAME.pack_into(raw, at, *fields)


def _text_field(raw: bytearray, random: Random) -> None:
    if places := _places(raw):
        at = random.choice(places)
        texts = FRAME.unpack_from(raw, at)[3]
        at += FRAME.size + RECORD.size + TEXT.size * random.randrange(max(1, min(texts, 13)))
        if at + TEXT.size <= len(raw):
            fields = list(TEXT.unpack_from(raw, at))
            number = random.randrange(5)
            limit = (8, 8, 8, 32, 64)[number]
            old = fields[number]
            near = [old + 8, old - 8, old + 1, old - 1, random.randrange(16)]
            fields[number] = random.choice([*ODD, *near]) % 2**limit
            TEXT.pack_into(raw, at, *fields)


def _stretch(raw: bytearray, random: Random) -> None:
    """A frame whose last text takes what follows it, or a part of it: all its lengths agree."""
    if places := _places(raw):
        at = random.choice(places)
        frame = list(FRAME.unpack_from(raw, at))
        entry = at + FRAME.size + RECORD.size + TEXT.size * (frame[3] - 1)
        if frame[3] and entry + TEXT.size <= len(raw):
            text = list(TEXT.unpack_from(raw, entry))
            more = random.randrange(-64, 2048, 8)
            frame[1], text[3], text[4] = ((number + more) % 2**32 for number in (frame[1], text[3], text[4]))
            FRAME.pack_into(raw, at, *frame)
            TEXT.pack_into(raw, entry, *text)


def _record_byte(raw: bytearray, random: Random) -> None:
    if places := _places(raw):
        at = random.choice(places) + FRAME.size + random.randrange(RECORD.size)
        raw[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _any_byte(raw: bytearray, random: Random) -> None:
    at = random.randrange(PLACE, len(raw))
    raw[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))


def _move_frame(raw: bytearray, random: Random) -> None:
    """Copy a frame over another or to the end, and make it valid there."""
    if places := _places(raw):
        at = random.choice(places)
        size = FRAME.unpack_from(raw, at)[1]
        frame = raw[at : at + min(size, 4096)]
        to = random.choice([*places, len(raw) // 8 * 8 + 4])
        if len(raw) < SMALLEST:
            raw[to : to + len(frame)] = frame
            if to + WORD.size <= len(raw):
                WORD.pack_into(raw, to, _commit(raw, to))


def _commit_anywhere(raw: bytearray, random: Random) -> None:
    """What looks like a frame, or like the end of a lap, in the midst of others."""
    if len(raw) > PLACE + HEADER_USED + 8:
        at = PLACE + HEADER_USED + random.randrange(0, len(raw) - PLACE - HEADER_USED - 7, 8)
        WORD.pack_into(raw, at, _commit(raw, at) ^ random.choice((0, 0, MASK)))


def _seal_all(raw: bytearray, random: Random) -> None:
    """All frames valid where they are, numbered from what the header says was taken out."""
    first = header(bytes(raw[PLACE:]))["released"]
    for number, at in enumerate(_places(raw)):
        fields = list(FRAME.unpack_from(raw, at))
        fields[0], fields[5] = _commit(raw, at), (first + number) & MASK
        FRAME.pack_into(raw, at, *fields)


def _cut(raw: bytearray, random: Random) -> None:
    if len(raw) > PLACE + HEADER_USED:
        del raw[random.randrange(PLACE + HEADER_USED, len(raw)) :]


RING_MUTATIONS = [
    _header_word,
    _how,
    _frame_field,
    _frame_field,
    _text_field,
    _text_field,
    _stretch,
    _record_byte,
    _any_byte,
    _move_frame,
    _commit_anywhere,
    _seal_all,
    _cut,
]


class Payloads(Rings):
    """What becomes of the records of a damaged ring: their prices and their JSON."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.pricer = Pricer(Destination(("stdout",)))

    def read(self, path: str, living: bool, how: int) -> None:
        try:
            reader = RingReader(path)
        except RingError:
            return
        records = reader.read(100, 1 << 20)
        reader.close()
        self.pricer.price(records)
        for encoder in (encode_priced, encode_local):
            for index, encoded in encode_each(records, encoder, {}).items():
                record = records[index]
                if JSONText not in map(type, record.values()) and "metadata" not in record:
                    assert type(json.loads(encoded)) is dict


# --- other files ------------------------------------------------------------------------------------------


def mutate_bytes(data: bytes, random: Random) -> bytes:
    """Change, remove, double or insert a few bytes."""
    raw = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randrange(len(raw) + 1)
        size = random.choice((1, 1, 2, 4, 8, 32))
        piece = raw[at : at + size]
        raw[at : at + size] = random.choice(
            (
                random.randbytes(len(piece)),
                bytes(piece) * 2,
                b"",
                bytes(piece) + random.choice((b"\0", b"9", b"[")),
            )
        )
    return bytes(raw)


class Totals:
    """The sums of a ring directory, read by the next exporter and written again."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "totals.json"
        self.directory = RingDir(str(directory), os.open(directory, os.O_RDONLY | os.O_DIRECTORY))

    def seeds(self) -> list[bytes]:
        counters = {
            "rings": 2,
            "accepted": 5,
            "damaged_rings": 0,
            "delivered": 5,
            "dropped": {"ring_full": 1},
        }
        return [
            b"{}",
            json.dumps({**counters, "last_ring": "1-made.ring"}).encode(),
            json.dumps({**counters, "dropped": {"a": {"b": {"c": [1, 2.5, None, True, "text"]}}}}).encode(),
            b'{"damaged_rings":%s}' % (b"9" * 4300),
            b'{"a":' * 900 + b"1" + b"}" * 900,
        ]

    def mutate(self, data: bytes, random: Random) -> bytes:
        if random.random() < 0.1:
            piece = random.choice((b'{"a":', b"[", b"9"))
            at = random.randrange(len(data) + 1)
            return data[:at] + piece * random.choice((10, 900, 4300, 20_000)) + data[at:]
        return mutate_bytes(data, random)

    def run(self, data: bytes) -> None:
        self.path.write_bytes(data)
        rings = DirectoryRings(self.directory, Ledger(()))
        rings._totals.count_damaged()
        rings.close()
        assert json.loads(self.path.read_bytes())["damaged_rings"] >= 1


class Tables:
    """The reader of price tables, behind its checksum."""

    def __init__(self, directory: Path) -> None:
        pass

    def seeds(self) -> list[bytes]:
        return [Parts.good().pack()]

    def mutate(self, data: bytes, random: Random) -> bytes:
        if len(data) < 64 or random.random() < 0.1:
            return mutate_bytes(data, random)
        raw = bytearray(data)
        for _ in range(random.choice((1, 1, 2, 4))):
            at = random.randrange(2, len(raw) // 4) * 4
            old = int.from_bytes(raw[at : at + 4], "little")
            new = random.choice([*ODD, old + 1, old - 1, old ^ 1 << random.randrange(32)]) % 2**32
            raw[at : at + 4] = new.to_bytes(4, "little")
        raw[28:32] = len(raw).to_bytes(4, "little")
        return bytes(raw)

    def run(self, data: bytes) -> None:
        if len(data) < 64:
            return
        try:
            table = PriceTable(seal(data))
            for i in range(min(len(table), 50)):
                for tier in (0, 1, 2, -1):
                    table.cost(i, -(2**63) if tier else 2**63 - 1, tier, *[2**62] * 3, 1, 2**62, 1)
                for slots in table.tracks(i).values():
                    assert slots
            for name in ("acme-one", "acme-2", "shop/very-odd", "\x00"):
                assert table.find(name) < len(table)
            table.check()
            for i in range(min(len(table), 50)):
                table.name(i)
        except (PriceTableError, UnicodeDecodeError):
            pass


class Segments:
    """The reader of spool files: what it makes of any bytes, whole frames and JSON of any kind among them."""

    SINK = bytes(range(8))
    KINDS = (b"[1]", b"[{}]", b'[{"kind":1}]', b"{}", b"null", b"[" * 900, b'[{"kind":"step","run_id":2}]')

    def __init__(self, directory: Path) -> None:
        self.fd = os.open(directory / "segment", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def seeds(self) -> list[bytes]:
        step = {"kind": "step", "run_id": "r", "step_id": "s", "prompt": "深", "response": JSONText("[1]")}
        odd = {**step, "prompt": "\ud800", "real_total_cost": Decimal("0.1")}
        return [
            segment.pack_header(self.SINK, 1) + b"".join(self.frame(records) for records in found)
            for found in ([[step]], [[step, odd], [step]], [[odd] * 20] * 3, [])
        ]

    def frame(self, records: list[dict[str, Any]]) -> bytes:
        encoded = [segment.encode(record) for record in records]
        flags = max(flag for _, flag in encoded)
        return segment.pack(self.SINK, [each for each, _ in encoded], flags, 0, b"ring-one", 100)

    def mutate(self, data: bytes, random: Random) -> bytes:
        if random.random() < 0.5:
            return mutate_bytes(data, random)
        raw = bytearray(data)
        places = [at for at in range(len(raw) - FRAME_BYTES) if raw[at : at + 4] == b"\xf5PSf"]
        if not places:
            return mutate_bytes(data, random)
        at = random.choice(places)
        fields = list(struct.unpack_from("<IIIHHQ8sQ", raw, at + 8))
        payload = bytes(raw[at + FRAME_BYTES : at + FRAME_BYTES + fields[0]])
        if random.random() < 0.5:  # content that somebody made up, behind checksums that are right
            text = (
                random.choice(self.KINDS) if random.random() < 0.3 else mutate_bytes(_text(payload), random)
            )
            payload = zlib.compress(text, 1) if random.random() < 0.9 else mutate_bytes(payload, random)
            fields[:3] = [len(payload), len(text), zlib.crc32(payload)]
        else:
            number = random.choice((0, 1, 2, 3, 4, 5, 7))
            bits = (32, 32, 32, 16, 16, 64, 0, 64)[number]
            fields[number] = random.choice([*ODD, fields[number] + 1, fields[number] - 1]) % 2**bits
        head = struct.pack("<IIIHHQ8sQ", *fields)
        seal = struct.pack("<I", zlib.crc32(self.SINK + head))
        return bytes(raw[: at + 4] + seal + head + payload + raw[at + FRAME_BYTES + fields[0] :])

    def run(self, data: bytes) -> None:
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, data, 0)
        segment.created_ns(data[: segment.HEADER_BYTES], self.SINK)
        last = 0
        for frame in segment.frames(self.fd, self.SINK):
            assert frame.offset >= segment.HEADER_BYTES
            assert frame.offset + frame.size <= len(data)
            assert frame.seq >= last
            last = frame.seq + frame.records
            try:
                records = segment.decode(self.fd, self.SINK, frame)
            except segment.DamagedFrame:
                continue
            assert len(records) == frame.records
            for record in records:
                assert type(record["kind"]) is type(record["run_id"]) is str
            encode_each(records, encode_local, {})
        segment.unpack_ack(data[: segment.ACK_BYTES])


def _text(payload: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(payload, 1 << 16)
    except zlib.error:
        return b"[]"


TARGETS: dict[str, Callable[[Path], Target]] = {
    "rings": Rings,
    "segments": Segments,
    "payloads": Payloads,
    "totals": Totals,
    "tables": Tables,
}
