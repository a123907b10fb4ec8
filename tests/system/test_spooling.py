"""Rings, spools and sinks together: what cannot be delivered leaves the ring, and is counted all the way."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from picostep.exporter import attempts, loop, sink_worker
from picostep.exporter.dead_letters import NAME
from picostep.exporter.loop import Exporter
from picostep.exporter.spool import Spool
from picostep.record import Record
from picostep.ringdir import RingDir
from picostep.sinks import Refused, Rejected, RetryLater
from ringfile import Rig, ids, record_some
from spoolfile import FRAME_BYTES, HEADER_BYTES, segments
from support import Ingest, Reply, ring_directory, run_python, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rings are private there")

SINKS = ("00000000000000aa", "00000000000000bb")


class Taker:
    """A sink that takes records, or does what `trouble` does before."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.trouble: Callable[[Sequence[Record]], Any] = lambda records: None

    def deliver(self, records: Sequence[Record]) -> dict[int, str]:
        unencodable: dict[int, str] = self.trouble(records) or {}
        self.taken += ids(records)
        return unencodable

    def close(self) -> None:
        pass


def refuse(records: Sequence[Record]) -> None:
    raise RetryLater("http 503")


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(attempts, "_LONGEST_DELAY", 0.05)
    monkeypatch.setattr(sink_worker, "PATIENCE", 0.03)
    monkeypatch.setattr(loop, "_SPOOL_EVERY", 0.01)


@pytest.fixture
def rig(clean_env: pytest.MonkeyPatch) -> Iterator[Rig]:
    with ring_directory() as path:
        made = Rig(path)
        yield made
        made.close()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@contextmanager
def exporting(rig: Rig, base: Path | None, *sinks: Taker, **options: Any) -> Iterator[threading.Event]:
    """An exporter of the rig's directory, with a spool for each sink."""
    spools = None
    if base is not None:
        spools = [Spool(str(base), name, options.pop("most", 1 << 30), 1e6) for name in SINKS[: len(sinks)]]
    stop = threading.Event()
    directory = RingDir(str(rig.path.parent), _descriptor(rig.path.parent))
    exporter = Exporter(
        [directory],
        sinks,
        spools=spools,
        **{"stop": stop, "prepare": lambda records: None, "batch_records": 10, **options},
    )
    thread = threading.Thread(target=exporter.run)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(100)
        directory.close()
        assert not thread.is_alive()


def _descriptor(path: Path) -> int:
    import os

    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def counted(rig: Rig, **expected: int) -> bool:
    """Whether the ring counts so many; its sums must be right at any moment."""
    counters = rig.ring.counters()
    lost = sum(count for reason, count in counters["dropped"].items() if reason != "ring_full")
    assert counters["accepted"] == counters["delivered"] + counters["in_ring"] + counters["in_spool"] + lost
    return all(counters[name] == value for name, value in expected.items())


def settle(rig: Rig, **expected: int) -> None:
    wait_until(lambda: counted(rig, **expected), 10.0, str((expected, rig.ring.counters())))


def test_ring_is_emptied_while_the_sink_fails(rig: Rig, base: Path) -> None:
    sink = Taker()
    sink.trouble = refuse
    with exporting(rig, base, sink):
        record_some(25)
        settle(rig, in_spool=25, in_ring=0, delivered=0)
        assert rig.ring.tail == rig.ring.head
        assert rig.ring.settled == 0
        assert rig.ring.counters()["last_error"] == "http 503"
        record_some(5, first=25)
        settle(rig, in_spool=30)
        sink.trouble = lambda records: None
        settle(rig, in_spool=0, delivered=30)
        assert rig.ring.settled == rig.ring.head
        wait_until(lambda: not segments(base), 5.0)
        record_some(5, first=30)
        settle(rig, in_spool=0, delivered=35)
    assert sink.taken == [*range(35)]


def test_without_a_spool_records_wait_in_the_ring(rig: Rig) -> None:
    sink = Taker()
    sink.trouble = refuse
    with exporting(rig, None, sink):
        record_some(25)
        wait_until(lambda: rig.ring.counters()["last_error"], 5.0)
        settle(rig, in_ring=25, in_spool=0)
        sink.trouble = lambda records: None
        settle(rig, delivered=25)
    assert sink.taken == [*range(25)]


def test_slow_sink_holds_up_no_other(rig: Rig, base: Path) -> None:
    """One hangs inside a request; the other gets everything, and the ring is emptied."""
    good, hung, release = Taker(), Taker(), threading.Event()
    hung.trouble = lambda records: release.wait(100) and None
    with exporting(rig, base, hung, good):
        record_some(100)
        wait_until(lambda: good.taken == [*range(100)], 10.0)
        settle(rig, in_ring=0, in_spool=100)
        assert hung.taken == []
        release.set()
        settle(rig, in_spool=0, delivered=100)
    assert hung.taken == [*range(100)]
    assert good.taken == [*range(100)]


def test_slower_sink_does_not_set_the_pace(rig: Rig, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is never so late that it is spooled, and takes less than comes: the other is ahead of it."""
    monkeypatch.setattr(sink_worker, "PATIENCE", 60.0)
    monkeypatch.setattr(sink_worker, "LITTLE_PATIENCE", 0.01)
    quick, slow = Taker(), Taker()
    slow.trouble = lambda records: time.sleep(0.03)
    with exporting(rig, base, slow, quick, batch_bytes=4096):
        record_some(600)
        wait_until(lambda: len(quick.taken) == 600, 10.0)
        behind = len(slow.taken)
        settle(rig, in_ring=0, in_spool=0, delivered=600)
    assert behind < 300
    assert quick.taken == slow.taken == [*range(600)]


def test_taken_after_it_was_spooled(rig: Rig, base: Path) -> None:
    """A request that was merely slow: what it brought over leaves the spool, and is not sent again."""
    sink, release = Taker(), threading.Event()
    sink.trouble = lambda records: release.wait(100) and None
    with exporting(rig, base, sink):
        record_some(30)
        settle(rig, in_spool=30)
        release.set()
        settle(rig, delivered=30, in_spool=0)
        wait_until(lambda: not segments(base), 5.0)
    assert sink.taken == [*range(30)]


def test_part_of_it_taken_after_it_was_spooled(rig: Rig, base: Path) -> None:
    sink, release, calls = Taker(), threading.Event(), iter(range(100))

    def first_slow_then_partial(records: Sequence[Record]) -> None:
        if next(calls) == 0:
            release.wait(100)
            sink.taken += ids(records)[:4]
            refused = Refused("why", known=False)
            raise RetryLater("http 503", delivered=4, unencodable={1: "why", 2: refused})

    sink.trouble = first_slow_then_partial
    with exporting(rig, base, sink):
        record_some(30)
        settle(rig, in_spool=30)
        release.set()
        settle(rig, in_spool=0, delivered=28)
    assert sink.taken == [*range(30)]
    dropped = rig.ring.counters()["dropped"]
    assert (dropped["encode_error"], dropped["rejected"]) == (1, 1)


def test_next_exporter_goes_on(rig: Rig, base: Path) -> None:
    sink = Taker()
    sink.trouble = refuse
    with exporting(rig, base, sink):
        record_some(25)
        settle(rig, in_spool=25)
    record_some(5, first=25)
    assert counted(rig, in_spool=25, in_ring=5)
    sink = Taker()
    with exporting(rig, base, sink):
        settle(rig, in_spool=0, delivered=30)
        assert rig.ring.settled == rig.ring.head
    assert sink.taken == [*range(30)]


def test_exporter_killed_before_it_could_say_so(rig: Rig, base: Path) -> None:
    """It delivered what was spooled; the ring's counters still say it is. The next one finds out."""
    sink = Taker()
    sink.trouble = refuse
    with exporting(rig, base, sink):
        record_some(25)
        settle(rig, in_spool=25)
    spool = Spool(str(base), SINKS[0], 1 << 30, 1e6)
    spool.mark_settled(len(spool.read(10, 1 << 20)))
    spool.mark_settled(5)
    spool.close()
    sink = Taker()
    with exporting(rig, base, sink):
        settle(rig, in_spool=0, delivered=25)
    assert sink.taken == [*range(15, 25)]


def test_exporter_killed_before_it_released(rig: Rig, base: Path) -> None:
    """It had spooled what is still in the ring: then that is delivered twice, and counted once."""
    record_some(10)
    spool = Spool(str(base), SINKS[0], 1 << 30, 1e6)
    reader = rig.reader()
    from picostep.exporter.batch import spool_name
    from picostep.exporter.spool import Part

    records = reader.read(4, 1 << 20)
    assert spool.append(Part(spool_name(reader), 0, reader.position, records))
    reader.close()
    spool.close()
    sink = Taker()
    with exporting(rig, base, sink):
        settle(rig, delivered=10, in_spool=0)
        wait_until(lambda: not segments(base), 5.0)
    assert sorted(sink.taken) == sorted([*range(4), *range(10)])


def test_damage_is_counted_by_the_next_exporter(rig: Rig, base: Path) -> None:
    sink = Taker()
    sink.trouble = refuse
    with exporting(rig, base, sink):
        record_some(30)
        settle(rig, in_spool=30)
    (path,) = segments(base)
    with path.open("rb+") as file:
        file.seek(HEADER_BYTES + FRAME_BYTES // 2)
        file.write(b"\xff\xff\xff\xff")
    sink = Taker()
    with exporting(rig, base, sink):
        settle(rig, in_spool=0)
    lost = rig.ring.counters()["dropped"]["corrupt"]
    assert lost > 0
    assert sink.taken == [*range(lost, 30)]
    assert counted(rig, delivered=30 - lost)


def test_limit_of_the_spool(rig: Rig, base: Path) -> None:
    """What finds no room in it waits in the ring: nothing that was accepted is given up."""
    rig.renew(1 << 20)
    sink = Taker()
    sink.trouble = refuse
    with exporting(rig, base, sink, most=2000):
        for first in range(0, 400, 10):
            record_some(10, first=first, size=1000)
        wait_until(lambda: rig.ring.counters()["in_spool"] > 0, 10.0)
        wait_until(lambda: sum(path.stat().st_size for path in segments(base)) > 1500, 10.0)
        assert counted(rig)
        assert rig.ring.counters()["in_ring"] > 0
        sink.trouble = lambda records: None
        settle(rig, in_ring=0, in_spool=0)
    accepted = rig.ring.counters()["accepted"]
    assert sorted(sink.taken) == [*range(accepted)]
    assert counted(rig, delivered=accepted)


def test_refused_from_the_spool(rig: Rig, base: Path) -> None:
    """It is found among the others, kept as a dead letter, and counted."""
    sink = Taker()
    sink.trouble = refuse

    def picky(records: Sequence[Record]) -> None:
        if 7 in ids(records):
            raise Rejected("http 422")

    with exporting(rig, base, sink):
        record_some(25)
        settle(rig, in_spool=25)
        sink.trouble = picky
        settle(rig, in_spool=0, delivered=24)
    assert rig.ring.counters()["dropped"]["rejected"] == 1
    assert sink.taken == [n for n in range(25) if n != 7]
    (line,) = (base / SINKS[0] / NAME).read_text().splitlines()
    letter = json.loads(line)
    assert (letter["record"]["step_id"], letter["record"]["prompt"]) == ("7", "p" * 100)
    assert "http 422" in letter["reason"]


def test_dead_host(rig: Rig, base: Path) -> None:
    """Its ring gives its space back at once, and goes when its records are delivered."""
    sink = Taker()
    sink.trouble = refuse
    with exporting(rig, base, sink):
        record_some(25)
        settle(rig, in_spool=25)
        path, before = rig.path, rig.path.stat().st_size
        rig.ring.close()
        wait_until(lambda: path.stat().st_size < before, 10.0)
    assert path.exists()
    sink = Taker()
    with exporting(rig, base, sink):
        wait_until(lambda: not path.exists(), 10.0)
        totals = json.loads((path.parent / "totals.json").read_text())
    assert sink.taken == [*range(25)]
    assert (totals["accepted"], totals["delivered"]) == (25, 25)
    assert totals.get("in_spool", 0) == 0


def test_rings_that_are_gone(rig: Rig, base: Path) -> None:
    """After a restart of the machine only the spool is left."""
    sink = Taker()
    sink.trouble = refuse
    with exporting(rig, base, sink):
        record_some(25)
        settle(rig, in_spool=25)
    rig.renew(None)
    record_some(3, first=25)
    sink = Taker()
    with exporting(rig, base, sink):
        settle(rig, delivered=3)
        wait_until(lambda: len(sink.taken) == 28, 5.0)
        totals = rig.path.parent / "totals.json"

        def gone() -> Any:
            return json.loads(totals.read_text())["gone"] if totals.exists() else {}

        wait_until(lambda: gone().get("delivered", 0) >= 25, 5.0)
        assert gone() == {"delivered": 25}


SPOOLED = """
import time
import picostep
picostep.send_step("r", prompt="first", response="r")
deadline = time.monotonic() + 20
while not picostep.stats()["in_spool"] or picostep.stats()["unsynced"]:
    assert time.monotonic() < deadline, picostep.stats()
    time.sleep(0.005)
assert picostep.stats()["in_ring"] == 0
assert not picostep.flush(0.2)
print(time.monotonic())
"""
DELIVERED = """
import picostep
picostep.send_step("r", prompt="second", response="r")
assert picostep.flush(20.0)
assert picostep.stats()["delivered"] == 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["process", pytest.param("thread", marks=pytest.mark.slow)])
def test_flush_waits_for_delivery_and_exit_for_the_spool(
    ring_base: Path, ingest: Ingest, exporter: str
) -> None:
    env = {
        "PICOSTEP_DIR": str(ring_base),
        "TCC_API_KEY": "dev_key",
        "TCC_URL": ingest.url,
        "PICOSTEP_EXPORTER": exporter,
    }
    ingest.default = Reply(503)
    done = run_python(SPOOLED, {**env, "PICOSTEP_EXIT_TIMEOUT": "100"}, timeout=60.0)
    assert time.monotonic() - float(done.stdout) < 50.0, "it waited for a backend that is away"
    assert "not delivered" not in done.stderr
    ingest.take()
    ingest.default = Reply()
    run_python(DELIVERED, env)
    items = wait_until(lambda: len(ingest.items()) >= 2 and ingest.items(), 20.0)
    assert sorted(item["prompt"] for item in items) == ["first", "second"]
