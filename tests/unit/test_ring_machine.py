"""Any history of a ring, against a model of it in plain Python: contents, order, and every counter."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import picostep
from picostep._ring import RingReader
from ringfile import FRAME, HEADER, RECORD, SMALLEST, TEXT, WORD, Rig, frames

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="rings in files need POSIX")

QUARTER = SMALLEST // 4
LENGTHS = st.sampled_from([400, 0, 1, 7, 8, 9, 1000, 3000, QUARTER // 2, QUARTER - 300, SMALLEST])
UNITS = st.sampled_from(["a", "é", "深", "\U0001f600"])
BODIES = ("prompt", "response")


def stored(text: str) -> int:
    """Bytes that a text takes, with its entry: CPython holds 1, 2 or 4 for each character."""
    highest = max(map(ord, text), default=0)
    width = 1 if highest < 0x100 else 2 if highest < 0x10000 else 4
    return TEXT.size + -(-len(text) * width // 8) * 8


@dataclass
class Kept:
    """A record that was accepted."""

    texts: dict[str, str]
    size: int
    shed: bool = False
    shortened: bool = False

    def check(self, record: dict[str, Any]) -> None:
        for name, text in self.texts.items():
            found = record.get(name)
            if self.shed and name in BODIES:
                assert found is None
            elif found != text:
                assert self.shortened
                kept, _, marker = found.partition("… [picostep kept ")
                assert text.startswith(kept)
                assert marker == f"{len(kept)} of {len(text)} characters]"
        assert record.get("shed", False) == self.shed
        assert record.get("shortened", False) == self.shortened


@dataclass
class Model:
    """What a ring is meant to be: a queue of records, and a number of bytes that it may take."""

    head: int = 0
    tail: int = 0
    first: int = 0
    """Number of the oldest record that is not released."""
    queue: list[Kept] = field(default_factory=list)
    """From that one on."""
    ends: list[int] = field(default_factory=list)
    """Where each of them ends."""
    counted: Counter[str] = field(default_factory=Counter)
    owed: list[tuple[int, int]] = field(default_factory=list)
    """What was spooled: its end in the ring, and how many records."""
    settled: int = 0
    unsynced: int = 0

    def place(self, size: int, part: int) -> int | None:
        """Bytes that a frame takes with what it must skip; None when it does not fit."""
        rest = SMALLEST - self.head % SMALLEST
        total = size + (rest if size > rest else 0)
        return total if self.head - self.tail + total <= part else None

    def append(self, texts: dict[str, str], cut: int | None) -> None:
        """
        Work out what becomes of a record.

        Args:
            cut: The size that the ring gave it if it was shortened. How much is cut off follows from no rule
                that a model could have: it is a little less than a quarter of the ring.
        """
        empty = FRAME.size + RECORD.size
        kept = Kept(texts, empty + sum(map(stored, texts.values())))
        if cut is not None:
            assert kept.size > QUARTER >= cut > QUARTER - 512
            kept.size, kept.shortened = cut, True
        total = self.place(min(kept.size, QUARTER), SMALLEST - SMALLEST // 4)
        assert cut is not None or total is None or kept.size <= QUARTER
        if total is None:
            assert cut is None
            small = sum(stored(text) for name, text in texts.items() if name not in BODIES)
            kept = Kept(texts, empty + small, shed=True)
            total = self.place(kept.size, SMALLEST)
        if total is None:
            self.counted["ring_full"] += 1
            return
        self.head += total
        self.queue.append(kept)
        self.ends.append(self.head)
        self.counted["shed"] += kept.shed
        self.counted["shortened"] += kept.shortened
        self.counted["accepted"] += 1

    def release(self, count: int, spooled: int = 0, **lost: int) -> None:
        """Take out the oldest records: some were lost, some spooled, the others delivered."""
        if count:
            self.tail = self.ends[count - 1]
        del self.queue[:count], self.ends[:count]
        self.first += count
        self.counted.update(lost, delivered=count - spooled - sum(lost.values()))
        if spooled:
            self.owed.append((self.tail, spooled))
            self.unsynced += spooled
        elif not self.owed:
            self.settled = self.tail

    @property
    def in_spool(self) -> int:
        return sum(records for _, records in self.owed)

    def settle(self, **lost: int) -> tuple[int, int]:
        """The oldest that were spooled have left the spool; return their end and how many were delivered."""
        end, records = self.owed.pop(0)
        delivered = records - sum(lost.values())
        self.counted.update(lost, delivered=delivered)
        self.unsynced = min(self.unsynced, self.in_spool)
        self.settled = end if self.owed else self.tail
        return end, delivered


class RingMachine(RuleBasedStateMachine):
    """One host, and one exporter after the other."""

    rig: ClassVar[Rig]

    @initialize()
    def new_host(self) -> None:
        self.rig.renew(SMALLEST)
        self.model = Model()
        self.alive = True
        self.settled = True
        self.number = 0
        self.open_reader()

    def open_reader(self) -> None:
        self.reader = RingReader(str(self.rig.path))
        assert self.reader.alive() == self.alive
        self.read = 0

    def teardown(self) -> None:
        self.reader.close()

    # -- the host

    @precondition(lambda self: self.alive)
    @rule(unit=UNITS, prompt=LENGTHS, response=LENGTHS, times=st.sampled_from([40, 12, 3, 1]))
    def record(self, unit: str, prompt: int, response: int, times: int) -> None:
        for _ in range(times):
            self.number += 1
            texts = {
                "run_id": "run",
                "step_id": str(self.number),
                "prompt": unit * prompt,
                "response": unit * response,
            }
            shortened = self.rig.ring.counters()["shortened"]
            picostep.send_step(**texts)
            cut = self.rig.ring.counters()["shortened"] > shortened
            self.model.append(texts, frames(self.rig.raw())[-1].size if cut else None)

    @precondition(lambda self: self.alive)
    @rule()
    def host_dies(self) -> None:
        self.rig.ring.close()
        self.alive = self.settled = False
        assert not self.reader.alive()

    @precondition(lambda self: self.alive)
    @rule(committed=st.booleans())
    def host_dies_inside_a_record(self, committed: bool) -> None:
        """Of which no exporter has heard, as the head is stored last."""
        before = len(self.model.queue)
        self.record("é", 9, 9, 1)
        if len(self.model.queue) > before:
            last = frames(self.rig.raw())[-1]
            fd = os.open(self.rig.path, os.O_WRONLY)
            os.pwrite(fd, WORD.pack(last.position), HEADER["head"])
            if not committed:
                os.pwrite(fd, bytes(WORD.size), last.at)
                self.model.queue.pop()
                self.model.counted.update(torn=1, accepted=-1)
            os.close(fd)
        self.host_dies()

    @precondition(lambda self: not self.alive and self.settled and not self.model.queue)
    @rule()
    def another_host(self) -> None:
        self.reader.close()
        self.new_host()

    # -- the exporter

    @rule(most=st.sampled_from([1, 2, 7, 1000]), most_bytes=st.sampled_from([1, 5000, 1 << 30]))
    def read_some(self, most: int, most_bytes: int) -> None:
        start = self.reader.position
        records = self.reader.read(most, most_bytes)
        assert len(records) <= most
        for number, record in enumerate(records, self.read):
            assert record["seq"] == self.model.first + number
            self.model.queue[number].check(record)
        self.read += len(records)
        if not records or (len(records) < most and self.reader.position - start < most_bytes):
            assert self.read == len(self.model.queue)
            self.settled = not self.alive

    @precondition(lambda self: self.read)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """The sinks are through with all that was read; some of it may have been refused."""
        rejected = data.draw(st.integers(0, min(2, self.read)), "rejected")
        unencodable = data.draw(st.integers(0, min(1, self.read - rejected)), "unencodable")
        self.release(rejected=rejected, encode_error=unencodable)

    def release(self, **lost: int) -> None:
        self.reader.release(self.reader.position, self.read - sum(lost.values()), lost)
        self.model.release(self.read, **lost)
        self.read = 0

    @precondition(lambda self: self.read)
    @rule(data=st.data())
    def deliver_fails_for_good(self, data: st.DataObject) -> None:
        """What the sinks do not take is spooled."""
        spooled = data.draw(st.integers(1, self.read), "spooled")
        rejected = data.draw(st.integers(0, self.read - spooled), "rejected")
        delivered = self.read - spooled - rejected
        self.reader.release(self.reader.position, delivered, {"rejected": rejected}, spooled=spooled)
        self.model.release(self.read, spooled, rejected=rejected)
        self.read = 0

    @precondition(lambda self: self.model.owed)
    @rule(data=st.data())
    def spooled_records_are_settled(self, data: st.DataObject) -> None:
        records = self.model.owed[0][1]
        expired = data.draw(st.integers(0, records), "expired")
        corrupt = data.draw(st.integers(0, records - expired), "corrupt")
        lost = {"expired": expired, "corrupt": corrupt}
        self.reader.settle(*self.model.settle(**lost), lost)

    @rule()
    def spool_is_synced(self) -> None:
        self.reader.synced()
        self.model.unsynced = 0

    @precondition(lambda self: self.alive)
    @rule(unit=UNITS, prompt=LENGTHS, response=LENGTHS)
    def exporter_keeps_up(self, unit: str, prompt: int, response: int) -> None:
        """Some laps, if the records are large."""
        for _ in range(12):
            self.record(unit, prompt, response, 1)
            self.read_some(1000, 1 << 30)
            self.release()

    @rule()
    def exporter_restarts(self) -> None:
        self.reader.close()
        self.open_reader()
        if not self.alive:
            self.settled = False

    # -- what holds at any time

    @invariant()
    def conserved(self) -> None:
        if not hasattr(self, "model"):
            return
        counters = self.reader.counters()
        counted = self.model.counted
        assert counters["delivered"] == counted["delivered"]
        assert counters["shed"] == counted["shed"]
        assert counters["shortened"] == counted["shortened"]
        names = ("ring_full", "encode_error", "rejected", "corrupt", "expired")
        assert counters["dropped"] == {name: counted[name] for name in names}
        assert (counters["in_spool"], counters["unsynced"]) == (self.model.in_spool, self.model.unsynced)
        if self.alive or self.settled:
            assert counters["torn"] == counted["torn"]
            assert counters["in_ring"] == len(self.model.queue)
            assert (
                counters["accepted"]
                == counted["accepted"]
                == (
                    counted["delivered"]
                    + counted["rejected"]
                    + counted["encode_error"]
                    + counted["corrupt"]
                    + counted["expired"]
                    + self.model.in_spool
                    + len(self.model.queue)
                )
            )
        if self.alive:
            assert self.rig.ring.counters() == counters
            assert [frame.size for frame in frames(self.rig.raw())] == [
                kept.size for kept in self.model.queue
            ]
            assert self.rig.ring.head == self.model.head
            assert self.rig.ring.settled == self.model.settled
            assert self.model.head - self.rig.ring.tail <= SMALLEST


@pytest.mark.slow
def test_any_history(module_rig: Rig) -> None:
    machine = type("Machine", (RingMachine,), {"rig": module_rig})
    examples = settings.default.max_examples // 4  # each has many steps
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=30))
