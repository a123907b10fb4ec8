"""A ring file as `_ring.pxd` documents it, read with nothing but `struct`; and rings made to be read."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import picostep
from picostep import runtime
from picostep._ring import HostRing, RingReader
from picostep.ringdir import RingDir, base, list_directories, open_dir

KIB = 1024
SMALLEST = 64 * KIB
"""Bytes of data in the smallest ring."""

HEADER_SIZE = 4096
SLOT_SIZE = 2048
IMAGE_SIZE = SLOT_SIZE // 2
IMAGES = (1 << 62) + 1
"""The commit word of image 0 in slot 0, less the nonce."""
FRAME = struct.Struct("=QIBBHQ")
RECORD = struct.Struct("=4qd16s16s16sIIBBBxI3q")
HAS_COUNTS = 9
"""Where among the values of `RECORD` the bits of the counts are; all but three of them lie behind it."""

TEXT = struct.Struct("=BBBxIQ")
JSON = 1
"""The encoding of a text that is the JSON of a dict or list."""

BYTE = {"little": "le", "big": "be"}[sys.byteorder]
CODINGS = {1: "latin-1", 2: f"utf-16-{BYTE}", 4: f"utf-32-{BYTE}"}
"""By width, of the characters of a text."""

WORD = struct.Struct("=Q")

# Offsets of the header's words.
HEADER = {
    "magic": 0,
    "version": 8,
    "capacity": 16,
    "nonce": 24,
    "created_ns": 32,
    "pid": 40,
    "slots": 48,
    "limit": 64,
    "ready": 72,
    "head": 80,
    "accepted": 88,
    "shed": 96,
    "shortened": 104,
    "ring_full": 112,
    "untracked": 120,
    "turn": 128,
    "last_error": 448,
}
# Offsets of the words of an outcome; outcome[turn & 1] counts.
OUTCOMES, OUTCOME_SIZE = 192, 128
OUTCOME = {
    name: 8 * index
    for index, name in enumerate(
        (
            "tail",
            "settled",
            "released",
            "delivered",
            "in_spool",
            "encode_error",
            "rejected",
            "corrupt",
            "expired",
            "unsynced",
            "withheld",
            "torn",
        )
    )
}
HEADER_USED = HEADER["last_error"] + 512
"""Bytes of the header that mean something."""
MASK = 2**64 - 1
KINDS = {1: "step", 2: "run", 3: "tool_call", 4: "feedback"}


def offset(raw: bytes | bytearray, name: str) -> int:
    """Where a word of the header is: one of an outcome, in that which counts."""
    if name in HEADER:
        return HEADER[name]
    (turn,) = WORD.unpack_from(raw, HEADER["turn"])
    return OUTCOMES + OUTCOME_SIZE * (turn & 1) + OUTCOME[name]


def header(raw: bytes) -> dict[str, int]:
    """The header's words by name."""
    return {name: WORD.unpack_from(raw, offset(raw, name))[0] for name in (*HEADER, *OUTCOME)}


def put(raw: bytes | bytearray, name: str, value: int) -> bytes:
    """The file with another word in its header."""
    changed = bytearray(raw)
    WORD.pack_into(changed, offset(raw, name), value & MASK)
    return bytes(changed)


@dataclass(frozen=True)
class Frame:
    """One committed frame."""

    position: int
    at: int
    """Offset in the file."""
    size: int
    kind: str
    flags: int
    seq: int
    texts: tuple[tuple[int, int, int, int], ...]
    """Slot, width, bytes and offset in the file of each."""


def texts_at(raw: bytes, at: int) -> int:
    """Where in the file the entries of the texts of a frame begin."""
    has_counts = RECORD.unpack_from(raw, at + FRAME.size)[HAS_COUNTS]
    return at + FRAME.size + RECORD.size + 8 * (has_counts >> 3).bit_length()


def frames(raw: bytes) -> list[Frame]:
    """All frames between tail and head; fails if they do not join."""
    words = header(raw)
    position, found = words["tail"], []
    while position < words["head"]:
        at = HEADER_SIZE + position % words["limit"]
        (commit,) = WORD.unpack_from(raw, at)
        if commit == ~(words["nonce"] + position) & MASK:
            position += words["limit"] - position % words["limit"]
            continue
        assert commit == (words["nonce"] + position) & MASK
        _, size, kind, texts, flags, seq = FRAME.unpack_from(raw, at)
        assert size % 8 == 0
        entry = texts_at(raw, at)
        text_at, entries = entry + texts * TEXT.size, []
        for number in range(texts):
            slot, width, _, length, _ = TEXT.unpack_from(raw, entry + number * TEXT.size)
            entries.append((slot, width, length, text_at))
            text_at += -(-length // 8) * 8
        assert text_at == at + size
        found.append(Frame(position, at, size, KINDS[kind], flags, seq, tuple(entries)))
        position += size
    assert position == words["head"]
    return found


@dataclass(frozen=True)
class Image:
    """One committed image of an open run."""

    slot: int
    at: int
    """Offset in the file."""
    version: int
    flags: int
    record: tuple[Any, ...]
    """The fixed part, as `RECORD` has it."""
    texts: dict[int, tuple[str, int, bool]]
    """By slot of the record: what is kept, how many characters there were, whether it is JSON."""


def images(raw: bytes) -> list[Image]:
    """All committed images in the table of open runs; fails if one does not hold together."""
    words, found = header(raw), []
    table = HEADER_SIZE + words["capacity"]
    for number in range(2 * words["slots"]):
        at = table + number * IMAGE_SIZE
        commit, size, kind, count, flags, version = FRAME.unpack_from(raw, at)
        if commit == 0:
            continue
        assert commit == (words["nonce"] + IMAGES + number) & MASK
        assert KINDS[kind] == "run"
        assert size % 8 == 0
        assert size <= IMAGE_SIZE
        entry = texts_at(raw, at)
        text_at, texts = entry + count * TEXT.size, {}
        for index in range(count):
            slot, width, encoding, length, chars = TEXT.unpack_from(raw, entry + index * TEXT.size)
            kept = raw[text_at : text_at + length].decode(CODINGS[width], "surrogatepass")
            texts[slot] = (kept, chars, encoding == JSON)
            text_at += -(-length // 8) * 8
        assert text_at == at + size
        record = RECORD.unpack_from(raw, at + FRAME.size)
        found.append(Image(number // 2, at, version, flags, record, texts))
    return found


class Rig:
    """
    This process's recorder with a ring of a chosen size in a directory of the test's, and no exporter.

    Attributes:
        ring: The host's end.

        capacity: Its size, None for that of the settings.

        path: The file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        picostep.configure(to="stdout", dir=str(directory), exporter="off")
        self.number = runtime.default_destination()
        self.renew(None)

    def renew(self, capacity: int | None, *, reserve: bool = True) -> None:
        """Replace the ring; with a capacity that the settings would not allow, too."""
        picostep.shutdown(0)
        self.capacity = capacity
        for old in self.directory.rglob("*.ring"):
            old.unlink()
        if capacity is None:
            runtime.open_ring(self.number)
            self.ring = runtime._rings[self.number]
        else:
            directory = self.directory / "made"
            directory.mkdir(exist_ok=True, mode=0o700)
            fd = os.open(directory / "1-made.ring", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.ring = HostRing(fd, capacity)
            assert self.ring.install(self.number)
            runtime._rings[self.number] = self.ring
            if reserve:
                self.ring.reserve()
        (self.path,) = self.directory.rglob("*.ring")

    def raw(self) -> bytes:
        return self.path.read_bytes()

    def reader(self) -> RingReader:
        return RingReader(str(self.path))

    def check(self) -> dict[str, Any]:
        """Counters; fails unless accepted = delivered + what is in ring and spool + what was dropped."""
        counters = self.ring.counters()
        lost = sum(count for reason, count in counters["dropped"].items() if reason != "ring_full")
        assert counters["accepted"] == (
            counters["delivered"] + len(frames(self.raw())) + counters["in_spool"] + lost
        )
        assert counters["in_ring"] == len(frames(self.raw()))
        assert counters["recorded"] == counters["accepted"] + counters["dropped"]["ring_full"]
        return counters

    def close(self) -> None:
        picostep.shutdown(0)
        picostep.configure()


def drain(reader: RingReader, max_records: int = 1000, max_bytes: int = 1 << 30) -> Iterator[dict[str, Any]]:
    """Read all there is and release it as delivered."""
    while records := reader.read(max_records, max_bytes):
        yield from records
        reader.release(reader.position, len(records))
    reader.release(reader.position, 0)


def only_directory(parent: str | os.PathLike[str]) -> RingDir:
    """The one ring directory that a host has made below its `PICOSTEP_DIR`."""
    own = base(str(parent))
    (name,) = list_directories(own)
    return open_dir(own, name, create=False)


def record_some(count: int, first: int = 0, size: int = 100) -> None:
    """Record steps whose ids are numbers."""
    for number in range(first, first + count):
        picostep.send_step("run", step_id=str(number), prompt="p" * size, response="深" * 10)


def ids(records: Iterable[dict[str, Any]]) -> list[int]:
    """The numbers of such steps."""
    return [int(record["step_id"]) for record in records]
