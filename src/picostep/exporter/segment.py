"""
The format of spool files, version 1: segments of checksummed frames, and how far each has been taken.

A segment is a header of 32 bytes and frames of any number, appended. All numbers are little-endian.

    header    magic "PICSPOOL" | sink (8 bytes) | created (Unix ns, u64) | version (u32) | CRC (u32)
    frame     sync (4 bytes) | CRC of the next 40 bytes (u32)
              length (u32) | raw length (u32) | CRC of the payload (u32) | records (u16) | flags (u16)
              seq of the first record (u64) | ring (8 bytes) | end in the ring (u64)
              payload: `length` bytes of zlib, which hold `raw length` bytes of a JSON array of records

CRCs are CRC-32 as zlib has it; those of header and frames begin with the CRC of `sink`, so that what was
written for another sink is damage. Records are numbered from 0 in each segment: a hole is what damage cost.
Beside `NAME.seg` lies `NAME.ack`: settled records (u64), attempts to read on (u32), CRC of both. It is
overwritten in place, and where it is missing or torn nothing counts as settled.

Nothing in a file is trusted: every length is checked against what is there, before anything is allocated.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import orjson

from picostep._ring import JSONText
from picostep.payload import ascii_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from picostep.record import Record

__all__ = [
    "DamagedFrame",
    "SpoolFrame",
    "created_ns",
    "decode",
    "encode",
    "frames",
    "is_torn",
    "pack",
    "pack_ack",
    "pack_header",
    "unpack_ack",
]

ACK_BYTES = 16
HEADER_BYTES = 32
MOST_RECORDS = 1024  # in a frame
_LONGEST = 1 << 29  # bytes of a frame's JSON

_HEADER = struct.Struct("<8s8sQI")
_FRAME = struct.Struct("<IIIHHQ8sQ")
_CRC = struct.Struct("<I")
_ACK = struct.Struct("<QI")
_MAGIC = b"PICSPOOL"
_VERSION = 1
_SYNC = b"\xf5PSf"  # not UTF-8, so no text that is stored plainly has it
FRAME_BYTES = len(_SYNC) + _CRC.size + _FRAME.size
_BY_JSON = 1  # flag: written by json, not orjson, as it holds what that does not know
_CHUNK = 1 << 16

# Records hold texts of JSON and exact decimals, which JSON itself has no types for.
_JSON_KEYS = "~json"
_NUMBER_KEYS = "~number"


class DamagedFrame(Exception):
    """A frame whose payload is not what was written."""


class SpoolFrame(NamedTuple):
    """
    Where a frame lies, and what its header says.

    Attributes:
        offset: Of the frame in its file.

        size: Bytes of frame and payload.

        raw_size: Bytes of JSON in it.

        records: How many.

        seq: Number of the first record within the segment.

        ring: Which ring the records come from.

        end: Position in that ring up to which they, and all before them, reach.
    """

    offset: int
    size: int
    raw_size: int
    records: int
    seq: int
    ring: bytes
    end: int


def pack_header(sink: bytes, created_ns: int) -> bytes:
    """Return the header of a segment."""
    head = _HEADER.pack(_MAGIC, sink, created_ns, _VERSION)
    return head + _CRC.pack(zlib.crc32(head, zlib.crc32(sink)))


def created_ns(header: bytes, sink: bytes) -> int | None:
    """Return when a segment was made, or None if its header is damaged or another sink's."""
    if len(header) < HEADER_BYTES or header != pack_header(sink, _HEADER.unpack_from(header)[2]):
        return None
    return int(_HEADER.unpack_from(header)[2])


def encode(record: Record) -> tuple[bytes, int]:
    """
    Return a record's JSON, and the flags that a frame with it must have.

    It is not the JSON that sinks send: a record must come back as it was, so what is JSON or an exact number
    in there is marked and not embedded.
    """
    try:
        return orjson.dumps(record, option=orjson.OPT_PASSTHROUGH_SUBCLASS), 0
    except TypeError:  # there is more in it than JSON has types for
        marked = _marked(record)
    try:
        return orjson.dumps(marked), 0
    except TypeError:  # lone surrogates, or an integer beyond 64 bits
        return ascii_json(marked), _BY_JSON


def pack(sink: bytes, records: Sequence[bytes], flags: int, seq: int, ring: bytes, end: int) -> bytes:
    """
    Return a frame.

    Args:
        records: What `encode()` returned, at most `MOST_RECORDS`, and …

        flags: … all flags of these.

        seq, ring, end: As in `SpoolFrame`.

    Raises:
        ValueError: They are together too large.
    """
    raw = b"[" + b",".join(records) + b"]"
    if len(raw) > _LONGEST:
        raise ValueError(f"a record of {len(raw)} bytes is too large")
    payload = zlib.compress(raw, 1)
    head = _FRAME.pack(len(payload), len(raw), zlib.crc32(payload), len(records), flags, seq, ring, end)
    return b"".join((_SYNC, _CRC.pack(_crc(sink, head)), head, payload))


def frames(fd: int, sink: bytes) -> Iterator[SpoolFrame]:
    """
    Find the frames of a segment by their headers; payloads are not looked at.

    What is damaged is skipped to the next header that is whole.

    Raises:
        OSError: The file cannot be read.
    """
    size = os.fstat(fd).st_size
    offset, floor = HEADER_BYTES, 0
    while offset + FRAME_BYTES <= size:
        frame = _frame_at(fd, sink, offset, size)
        # Numbers only rise: a frame that was written over from elsewhere in the file is no frame.
        if frame is None or frame.seq < floor:
            offset = _next_sync(fd, offset + 1, size)
        else:
            yield frame
            offset, floor = offset + frame.size, frame.seq + frame.records


def is_torn(fd: int, sink: bytes, offset: int) -> bool:
    """Return whether what begins at an offset is a frame that its writer did not bring to its end."""
    data = os.pread(fd, FRAME_BYTES, offset)
    return len(data) < FRAME_BYTES or _parse(data, sink) is not None


def decode(fd: int, sink: bytes, frame: SpoolFrame) -> list[Record]:
    """
    Return the records of a frame.

    Raises:
        DamagedFrame: They are not what was written.

        OSError: The file cannot be read.
    """
    data = os.pread(fd, frame.size, frame.offset)
    head = _parse(data, sink)
    if head is None or len(data) < frame.size:
        raise DamagedFrame
    length, raw_length, crc, count, flags, *_ = head
    payload = memoryview(data)[FRAME_BYTES:]
    if length != len(payload) or zlib.crc32(payload) != crc:
        raise DamagedFrame
    try:
        raw = zlib.decompressobj().decompress(payload, raw_length)
        if len(raw) != raw_length:
            raise DamagedFrame
        found = json.loads(raw) if flags & _BY_JSON else orjson.loads(raw)
        if not isinstance(found, list) or len(found) != count:
            raise DamagedFrame
        return [_unmarked(record) for record in found]
    # The checksum is right, so somebody made this up.
    except (zlib.error, ValueError, TypeError, AttributeError, KeyError, ArithmeticError, RecursionError):
        raise DamagedFrame from None


def pack_ack(settled: int, attempts: int) -> bytes:
    """Return the content of an `.ack` file."""
    body = _ACK.pack(settled, attempts)
    return body + _CRC.pack(zlib.crc32(body))


def unpack_ack(raw: bytes) -> tuple[int, int]:
    """Return settled records and attempts; both 0 if the file is not whole."""
    if len(raw) != ACK_BYTES or _CRC.unpack_from(raw, _ACK.size)[0] != zlib.crc32(raw[: _ACK.size]):
        return 0, 0
    settled, attempts = _ACK.unpack_from(raw)
    return settled, attempts


def _crc(sink: bytes, head: bytes) -> int:
    return zlib.crc32(head, zlib.crc32(sink))


def _parse(data: bytes, sink: bytes) -> tuple[Any, ...] | None:
    """Return the fields of a frame's header, or None where there is no whole one."""
    if len(data) < FRAME_BYTES or data[:4] != _SYNC:
        return None
    head = data[8:FRAME_BYTES]
    if _CRC.unpack_from(data, 4)[0] != _crc(sink, head):
        return None
    return _FRAME.unpack(head)


def _frame_at(fd: int, sink: bytes, offset: int, size: int) -> SpoolFrame | None:
    head = _parse(os.pread(fd, FRAME_BYTES, offset), sink)
    if head is None:
        return None
    length, raw_length, _, count, _, seq, ring, end = head
    if offset + FRAME_BYTES + length > size or raw_length > _LONGEST or not 0 < count <= MOST_RECORDS:
        return None
    return SpoolFrame(offset, FRAME_BYTES + length, raw_length, count, seq, ring, end)


def _next_sync(fd: int, offset: int, size: int) -> int:
    """Return the offset of the next sync mark, or the end of the file."""
    while offset < size:
        data = os.pread(fd, _CHUNK, offset)
        found = data.find(_SYNC)
        if found >= 0:
            return offset + found
        if len(data) < len(_SYNC):
            break
        offset += len(data) - len(_SYNC) + 1
    return size


def _marked(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of plain JSON types, in which the others are named."""
    plain = dict(record)
    texts = [key for key, value in record.items() if type(value) is JSONText]
    if texts:
        plain.update((key, str(record[key])) for key in texts)
        plain[_JSON_KEYS] = texts
    numbers = [key for key, value in record.items() if type(value) is Decimal]
    if numbers:
        plain.update((key, str(record[key])) for key in numbers)
        plain[_NUMBER_KEYS] = numbers
    return plain


def _unmarked(plain: dict[str, Any]) -> Record:
    for key in plain.pop(_JSON_KEYS, ()):
        plain[key] = JSONText(plain[key])
    for key in plain.pop(_NUMBER_KEYS, ()):
        plain[key] = Decimal(plain[key])
    if not isinstance(plain["kind"], str) or not isinstance(plain["run_id"], str):
        raise TypeError
    return cast("Record", plain)
