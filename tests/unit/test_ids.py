"""Ids: random UUIDs of version 4, made of the block function that they are said to be made of."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from random import Random
from uuid import RFC_4122, UUID

import pytest

import picostep

HEADER = Path(__file__).parents[2] / "ext" / "picostep" / "chacha.h"
PROGRAM = """
#include <stdio.h>
#include "chacha.h"
int main(void) {
    uint32_t key[8], out[16];
    unsigned long long counter;
    while (fread(key, 4, 8, stdin) == 8 && fread(&counter, 8, 1, stdin) == 1) {
        ps_chacha8(key, counter, out);
        fwrite(out, 4, 16, stdout);
    }
    return 0;
}
"""
# draft-strombergson-chacha-test-vectors-01, TC1: 256 bits, 8 rounds, all zero.
FIRST_BLOCK = bytes.fromhex(
    "3e00ef2f895f40d67f5bb8e81f09a5a12c840ec3ce9a7f3b181be188ef711a1e"
    "984ce172b9216f419f445367456d5619314a42a3da86b001387bfdb80e0cfe42"
)


def chacha8(key: bytes, counter: int) -> bytes:
    """The same by whole numbers, from the description in RFC 8439, 2.1 to 2.3."""
    start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key)]
    start += [counter & 0xFFFFFFFF, counter >> 32, 0, 0]
    words = list(start)

    def quarter(*at: int) -> None:
        a, b, c, d = at
        for first, second, third, distance in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            words[first] = (words[first] + words[second]) % 2**32
            mixed = words[third] ^ words[first]
            words[third] = (mixed << distance | mixed >> (32 - distance)) % 2**32

    for _ in range(4):
        for column in range(4):
            quarter(column, column + 4, column + 8, column + 12)
        for column in range(4):
            quarter(column, (column + 1) % 4 + 4, (column + 2) % 4 + 8, (column + 3) % 4 + 12)
    return struct.pack("<16I", *((a + b) % 2**32 for a, b in zip(words, start, strict=True)))


@pytest.mark.skipif(not HEADER.exists() or not shutil.which("cc"), reason="needs the sources and a compiler")
def test_blocks(tmp_path: Path) -> None:
    (tmp_path / "blocks.c").write_text(PROGRAM)
    command = [
        "cc",
        "-O1",
        "-I",
        str(HEADER.parent),
        "-o",
        str(tmp_path / "blocks"),
        str(tmp_path / "blocks.c"),
    ]
    subprocess.run(command, check=True, timeout=100)
    random = Random(1)
    asked = [
        (bytes(32), 0),
        *((random.randbytes(32), random.choice([0, 63, 2**32, 2**64 - 1])) for _ in range(200)),
    ]
    given = b"".join(key + struct.pack("=Q", counter) for key, counter in asked)
    found = subprocess.run([tmp_path / "blocks"], input=given, capture_output=True, timeout=60).stdout
    blocks = [found[at : at + 64] for at in range(0, len(found), 64)]
    assert blocks[0] == FIRST_BLOCK
    assert blocks == [chacha8(key, counter) for key, counter in asked]


def test_ids_are_random_uuids() -> None:
    """Over several keys: all differ, and each bit that is not fixed is set in half of them."""
    count = 20_000
    ids = [UUID(picostep.run().run_id) for _ in range(count)]
    assert len(set(ids)) == count
    assert {(each.version, each.variant) for each in ids} == {(4, RFC_4122)}
    fixed = 0xF << 76 | 0x3 << 62
    for bit in range(128):
        share = sum(each.int >> bit & 1 for each in ids) / count
        if not fixed >> bit & 1:
            assert abs(share - 0.5) < 0.025, bit  # seven standard deviations
