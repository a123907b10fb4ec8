"""A price table's file, packed with nothing but the standard library: whole, or with one thing wrong."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b


def pack(*numbers: int, sizes: str) -> bytes:
    """Pack little-endian numbers: q 8, i 4, H 2 bytes."""
    return b"".join(
        (number % 2 ** (8 * size)).to_bytes(size, "little")
        for number, size in zip(numbers, [{"q": 8, "i": 4, "H": 2}[letter] for letter in sizes], strict=True)
    )


ALWAYS = -(2**31)
NAMES = "\x1e".join(
    [
        "a test\nstandard\tdefault\tbatch",
        "acme\t0\t*acme\t^acme-\t\n"
        "acme-one\t=acme-one\n"
        "acme-two\t|2\x1f^acme-2\x1f&2\x1f*two\x1f~^acme-\\w+$\n"
        "acme-free\t=acme-free",
        "shop\t3\t\t\tacme:4\nodd\t$-odd",
    ]
)


@dataclass
class Parts:
    """What a small table is made of; the tests damage one part at a time."""

    rows: list[tuple[int, ...]]
    slots: list[tuple[int, ...]]
    tracks: list[tuple[int, ...]]
    models: list[tuple[int, ...]]
    names: bytes = NAMES.encode()
    version: int = 1

    @staticmethod
    def good() -> Parts:
        return Parts(
            rows=[
                (20, 2, 25, 40, 100, 100, 0, 1000, -1),
                (10, 1, 12, 20, 50, 60, 7, -1, 0),
                (5, 5, 5, 5, 25, 25, 0, -1, -1),
                (0, 0, 0, 0, 0, 0, 0, -1, -1),
            ],
            slots=[
                (ALWAYS, 0, 1, 0),
                (20_000, 0, 2, 0),
                (20_000, 3600, 1, 0),
                (ALWAYS, 0, 2, 8),
                (20_000, 0, 2, 0),
                (ALWAYS, 0, 3, 1),
            ],
            tracks=[(0, 3, 0), (3, 2, 2), (0, 1, 0), (5, 1, 0), (3, 1, 0)],
            models=[(0, 2), (2, 1), (3, 1), (4, 1), (0, 1), (2, 1), (3, 1)],
        )

    def pack(self) -> bytes:
        body = b"".join(
            [
                *(pack(*row, sizes="qqqqqqqii") for row in self.rows),
                *(pack(*slot, sizes="iiii") for slot in self.slots),
                *(pack(*track, sizes="iHH") for track in self.tracks),
                *(pack(*model, sizes="ii") for model in self.models),
                self.names,
            ]
        )
        counts = (len(self.rows), len(self.slots), len(self.tracks), len(self.models))
        return seal(
            b"PICOCOST" + pack(self.version, *counts, 64 + len(body), sizes="iiiiii") + bytes(32) + body
        )


def seal(data: bytes) -> bytes:
    """Put the right checksum into a file."""
    digest = blake2b(data[:32] + data[48:], digest_size=16).digest()
    return data[:32] + digest + data[48:]
