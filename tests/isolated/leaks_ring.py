"""Rings and prices: made, read, damaged and refused, nothing is left of them but what was asked to stay."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from leakcheck import TURNS, check, refused

import picostep
from picostep import runtime
from picostep._keeper import Keeper
from picostep._ring import HostRing, RingError, RingReader
from picostep.prices import Cost, CostSum, PriceTable, PriceTableError, builtin

KIB = 1024
DIRECTORY = Path(tempfile.mkdtemp(dir=os.environ["PICOSTEP_DIR"]))
PATH = DIRECTORY / "ring"
TABLE = (Path(picostep.__file__).parent / "prices" / "table.bin").read_bytes()


def open_file(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def a_ring() -> bytes:
    """The file of a dead host, with records of all kinds in the ring."""
    number = runtime.default_destination()
    picostep.shutdown(0)
    ring = HostRing(open_file(PATH), 64 * KIB)
    assert ring.install(number)
    runtime._rings[number] = ring
    for turn in range(8):
        picostep.send_step("run", prompt="p" * 50, response="\U0001f600", cost=turn, tool_definitions=["x"])
        picostep.send_step("run", prompt="é", response="r", cost=0.5, model_used="m")
        picostep.send_run(prompt="深", metadata={"a": turn}, steps=[{"prompt": "p", "response": "r"}])
        picostep.send_tool_call("run", name="n", args={"a": 1}, result="r")
        picostep.submit_feedback("run", "thumbs_up", "text")
    assert ring.counters()["accepted"] == 40 + 8
    picostep.shutdown(0)
    return PATH.read_bytes()


RAW = a_ring()
END = len(RAW.rstrip(b"\0"))
RANDOM = Random(1)


def make_and_close() -> None:
    path = DIRECTORY / "made"
    ring = HostRing(open_file(path), 64 * KIB)
    ring.reserve()
    ring.counters()
    ring.close()
    ring.close()
    path.unlink()


def make_and_close_private() -> None:
    ring = HostRing(-1, 64 * KIB)
    assert ring.install(60)
    reader = RingReader.of_private(ring)
    reader.read(1, 1)
    reader.counters()
    reader.close()
    ring.close()


def make_wrongly() -> None:
    with refused(ValueError):
        HostRing(-1, 1)
    with refused(OSError):
        HostRing(9999, 64 * KIB)
    ring = HostRing(-1, 64 * KIB)
    with refused(ValueError):
        ring.install(64)
    ring.close()
    with refused(OverflowError):
        HostRing(-1, -1)


def read_all() -> None:
    PATH.write_bytes(RAW)
    reader = RingReader(str(PATH))
    reader.alive()
    reader.read(3, 1 << 20)
    reader.close()
    reader = RingReader(str(PATH))
    reader.alive()
    while records := reader.read(7, 1 << 20):
        reader.release(reader.position, len(records) - 1, {"rejected": 1})
    reader.set_last_error("noted")
    reader.counters()
    reader.close()


def read_without_closing() -> None:
    PATH.write_bytes(RAW)
    RingReader(str(PATH)).read(5, 1 << 20)


def read_damaged() -> None:
    """Anything may be wrong: errors of every step of decoding are met sooner or later."""
    raw = bytearray(RAW)
    for _ in range(RANDOM.choice((1, 5, 50))):
        raw[RANDOM.randrange(4096, END)] = RANDOM.choice((0, 1, 2, 4, 0x7F, 0xFF, RANDOM.randrange(256)))
    PATH.write_bytes(raw)
    reader = RingReader(str(PATH))
    reader.alive()
    while records := reader.read(9, 1 << 20):
        reader.release(reader.position, len(records))
    reader.release(reader.position, 0)
    reader.close()


def read_wrongly() -> None:
    PATH.write_bytes(RAW)
    reader = RingReader(str(PATH))
    for call, error in (
        (partial(reader.release, 1 << 60, 0), ValueError),
        (partial(reader.release, 0, 0, {"unknown": 1}), ValueError),
        (partial(reader.release, -1, 0), OverflowError),
        (partial(reader.read, "x", 1), TypeError),
        (partial(reader.set_last_error, None), TypeError),
    ):
        with refused(error):
            call()
    reader.close()
    with refused(ValueError):
        reader.read(1, 1)
    with refused(TypeError):
        RingReader(1)  # type: ignore[arg-type]
    with refused(OSError):
        RingReader(str(DIRECTORY / "missing"))
    for at, wrong in ((0, b"x"), (8, b"\xff"), (12, b"\xff")):
        PATH.write_bytes(RAW[:at] + wrong + RAW[at + 1 :])
        with refused(RingError):
            RingReader(str(PATH))
    PATH.write_bytes(RAW[:5000])
    with refused(RingError):
        RingReader(str(PATH))


def keepers() -> None:
    """One that is started lives for ever; one that was never made leaves nothing."""
    with refused(TypeError):
        Keeper(b"/lock", ["text"], [], b"", None)  # type: ignore[list-item]
    with refused(TypeError):
        Keeper(b"/lock", [b"a"], [b"b", 1], b"", None)  # type: ignore[list-item]
    with refused(TypeError):
        Keeper(None, [], [], b"", None)  # type: ignore[arg-type]


def tables() -> None:
    table = PriceTable(TABLE)
    cost = table.cost(table.find("gpt-4o"), 0, table.variant("batch"), 2**62, 2**62, 0, 0, 2**62)
    assert cost.pico is None or cost.usd
    str(cost.row), repr(cost), hash(cost)
    CostSum().add(1).add(None).add(10**40).usd  # noqa: B018
    with refused(TypeError, ValueError):
        table.cost(0, 0, 0, -1)
    with refused(TypeError, ValueError):
        table.cost(10**9, 0)
    with refused(TypeError, ValueError):
        table.find(b"model")  # type: ignore[arg-type]
    with refused(TypeError, ValueError):
        Cost(1, "unknown status")
    with refused(TypeError, ValueError):
        CostSum().add("1")  # type: ignore[arg-type]


def damaged_tables() -> None:
    at = RANDOM.randrange(len(TABLE))
    with refused(PriceTableError):
        PriceTable(TABLE[:at] + bytes([TABLE[at] ^ 1]) + TABLE[at + 1 :])
    with refused(PriceTableError):
        PriceTable(TABLE[:at])


SCENARIOS: list[Callable[[], None]] = [
    make_and_close,
    make_and_close_private,
    make_wrongly,
    read_all,
    read_without_closing,
    read_damaged,
    read_wrongly,
    keepers,
    damaged_tables,
]


def main() -> int:
    builtin()
    named = ((scenario.__name__, scenario) for scenario in SCENARIOS)
    bad = check(named, lambda: None, turns=max(20, TURNS // 5))
    return bad + check([("tables", tables)], lambda: None, turns=max(1, TURNS // 20))


if __name__ == "__main__":
    raise SystemExit(main())
