"""Spool files as `export/segment.py` documents them, read with nothing but the standard library."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADER_BYTES = 32
FRAME_BYTES = 48


@dataclass(frozen=True)
class Frame:
    """One frame, all of it checked."""

    at: int
    size: int
    seq: int
    ring: bytes
    end: int
    records: list[dict[str, Any]]


def frames(raw: bytes, sink: bytes) -> list[Frame]:
    """All frames of a whole segment; fails if anything in it is not as documented."""
    magic, of, _created, version, crc = struct.unpack_from("<8s8sQII", raw)
    assert (magic, of, version) == (b"PICSPOOL", sink, 1)
    assert crc == zlib.crc32(sink + raw[:28])
    at, found, seq = HEADER_BYTES, [], 0
    while at < len(raw):
        sync, crc, length, raw_length, payload_crc, count, _flags, first, ring, end = struct.unpack_from(
            "<4sIIIIHHQ8sQ", raw, at
        )
        assert sync == b"\xf5PSf"
        assert crc == zlib.crc32(sink + raw[at + 8 : at + FRAME_BYTES])
        payload = raw[at + FRAME_BYTES : at + FRAME_BYTES + length]
        assert zlib.crc32(payload) == payload_crc
        text = zlib.decompress(payload)
        assert len(text) == raw_length
        records = json.loads(text)
        assert len(records) == count
        assert first == seq
        found.append(Frame(at, FRAME_BYTES + length, first, ring, end, records))
        at += FRAME_BYTES + length
        seq += count
    return found


def acknowledged(path: Path) -> int:
    """How many records of a segment are settled, by its `.ack`; 0 if there is none."""
    ack = path.with_suffix(".ack")
    if not ack.exists():
        return 0
    settled, _attempts, crc = struct.unpack("<QII", ack.read_bytes())
    assert crc == zlib.crc32(ack.read_bytes()[:12])
    return int(settled)


def segments(base: Path) -> list[Path]:
    """All segments in lanes, oldest first."""
    return sorted(base.glob("*/[0-9]*/*.seg"), key=lambda path: path.name)
