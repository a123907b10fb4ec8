"""What the fault tests hold against the ledgers of their hosts: what arrived, and what the rings count."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from picostep import ringdir
from receiver import Arrival, arrivals
from support import BUSY, Request, clean_environment, exporters, wait_until
from workload import balanced

CAMPAIGN = os.environ.get("PICOSTEP_CAMPAIGN") == "1"
KEY = "dev_0123456789-secret"
MOST_READ = 1000  # records that a look at a ring decodes
T = TypeVar("T")
WORKLOAD = Path(__file__).with_name("workload.py")

campaign = pytest.mark.skipif(not CAMPAIGN, reason="long; PICOSTEP_CAMPAIGN=1 runs it")


def times(short: T, full: T) -> T:
    """How often, or for how long, a fault is provoked: in every run, and in a campaign."""
    return full if CAMPAIGN else short


@dataclass
class Ledger:
    """What a host has written down; another thread may add to it."""

    intended: dict[str, str] = field(default_factory=dict)
    """Digest of each step whose `end()` was called or about to be."""
    order: list[str] = field(default_factory=list)
    """Steps whose `end()` has returned: accepted, as the host sees it."""
    levels: dict[str, int] = field(default_factory=dict)
    """How many of the first accepted steps have reached each further level of safety, or were dropped."""
    report: dict[str, Any] = field(default_factory=dict)
    """What the program said at its end."""

    @classmethod
    def parse(cls, raw: bytes) -> Ledger:
        ledger = cls()
        for line in raw.splitlines():
            ledger.add(line.decode())
        return ledger

    @property
    def promised(self) -> set[str]:
        return set(self.order)

    def add(self, line: str) -> None:
        kind, rest = line.split(" ", 1)
        if kind == "p":
            self.order.append(rest)
        elif kind == "l":
            level, count = rest.split(" ")
            self.levels[level] = int(count)
        elif kind == "r":
            self.report = json.loads(rest)
        else:
            step_id, promised = rest.split(" ")
            assert step_id not in self.intended, f"step id {step_id} given twice"
            self.intended[step_id] = promised


def environment(ring_base: Path, url: str, **more: str) -> dict[str, str]:
    """The settings of a host that delivers to an ingest, and is given the time for it when it ends."""
    patient = {"PICOSTEP_EXIT_TIMEOUT": "60"}
    return {"PICOSTEP_DIR": str(ring_base), "TCC_API_KEY": KEY, "TCC_URL": url, **patient, **more}


def impatient(env: Mapping[str, str]) -> dict[str, str]:
    """The same without a word on how long its end may take, which is what picostep has to say then."""
    return {name: value for name, value in env.items() if name != "PICOSTEP_EXIT_TIMEOUT"}


class Host:
    """
    A program of `workload` in a process of its own.

    Args:
        env: Its settings.

        program: Its name, then its arguments.

        held: Begin with the program at `go()`: until then only what it imports is there.

        inside: Command that runs it, by the rest of its arguments.
    """

    def __init__(
        self, env: Mapping[str, str], *program: object, held: bool = False, inside: Sequence[str] = ()
    ) -> None:
        reading, writing = os.pipe()
        self.written = Ledger()
        self.lines = 0
        self.last_line_at = self.ended_at = 0.0
        self._faulty: AssertionError | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - until close()
        name, *args = map(str, program)
        self.process = subprocess.Popen(
            [*inside, sys.executable, str(WORKLOAD), name, str(writing), *args],
            env=clean_environment(**env),
            pass_fds=[writing],
            stdin=subprocess.PIPE if held else subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            start_new_session=True,
        )
        os.close(writing)
        self._reader = threading.Thread(target=self._read, args=(reading,))
        self._reader.start()

    def _read(self, fd: int) -> None:
        with open(fd) as pipe:
            for line in pipe:
                try:
                    self.written.add(line[:-1])
                except AssertionError as error:
                    self._faulty = self._faulty or error
                self.lines += 1
                self.last_line_at = time.monotonic()
        self.ended_at = time.monotonic()

    def wait_for_promise(self, count: int = 1, timeout: float = 20.0) -> None:
        def done() -> bool:
            return len(self.written.order) >= count or self.process.poll() is not None

        wait_until(done, timeout, f"{count} promises")
        assert self.process.poll() is None, self.output()

    def wait_for_level(self, level: str, count: int, timeout: float = 20.0) -> None:
        def done() -> bool:
            return self.written.levels.get(level, 0) >= count or self.process.poll() is not None

        wait_until(done, timeout, f"{count} steps {level}")
        assert self.process.poll() is None, self.output()

    def go(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def kill(self) -> Ledger:
        self.process.kill()
        self.process.wait()
        ledger = self.ledger()
        self.close()
        return ledger

    def close(self) -> None:
        """End it and its children, if need be."""
        if self._errors.closed:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(20.0)
        self.said = self.output()
        self._errors.close()

    def finish(self, timeout: float) -> Ledger:
        """Wait until it ends well, `timeout` quiet seconds at most."""
        try:
            code = self.process.wait(BUSY * timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s: {self.output()}") from None
        ledger = self.ledger()
        assert code == 0, self.output()
        self.close()
        return ledger

    def ledger(self, timeout: float = 20.0) -> Ledger:
        """What is in the ledger once all who could write to it are gone."""
        self._reader.join(BUSY * timeout)
        assert not self._reader.is_alive(), "somebody keeps the ledger open"
        if self._faulty:
            raise self._faulty
        return self.written

    def output(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")


class Source(Protocol):
    """Where steps arrive: `Ingest`, `Receiver`, Kafka."""

    def take(self) -> list[Request] | list[Arrival]: ...


class Oracle:
    """
    Compares what an ingest has taken with what hosts have promised.

    Args:
        ingest: Its arrivals, or requests, are taken out of it.

    Attributes:
        ages: Of all arrivals, in their order.
    """

    def __init__(self, ingest: Source) -> None:
        self._ingest = ingest
        self._lock = threading.RLock()
        self._requests = 0
        self.intended: dict[str, str] = {}
        self.promised: set[str] = set()
        self.digests: dict[str, str] = {}
        self.arrivals: Counter[str] = Counter()
        self.ages: list[float] = []
        self._altered: set[str] = set()
        self._latest: dict[str, Arrival] = {}
        self._last_requests: dict[int, int] = {}
        self._again: list[Arrival] = []

    def expect(self, ledger: Ledger) -> None:
        twice = self.intended.keys() & ledger.intended.keys()
        assert not twice, f"step ids given twice: {twice}"
        self.intended.update(ledger.intended)
        self.promised.update(ledger.order)

    def collect(self) -> None:
        """Take over what has arrived. Any thread may do so."""
        with self._lock:
            for arrival in self._take():
                step_id = arrival.step_id
                self.arrivals[step_id] += 1
                self.ages.append(arrival.age)
                if self.digests.setdefault(step_id, arrival.digest) != arrival.digest:
                    self._altered.add(step_id)
                if step_id in self._latest:
                    self._again.append(self._latest[step_id])
                self._latest[step_id] = arrival
                self._last_requests[arrival.connection] = arrival.request

    def _take(self) -> Iterator[Arrival]:
        for taken in self._ingest.take():
            if isinstance(taken, Arrival):
                yield taken
                continue
            self._requests += 1
            yield from arrivals(taken.items(), taken.connection, self._requests)

    def missing(self) -> set[str]:
        self.collect()
        with self._lock:
            return self.promised - self.digests.keys()

    def check_nothing_lost(self, timeout: float = 30.0) -> None:
        try:
            wait_until(lambda: not self.missing(), timeout, "all that was promised")
        except AssertionError:
            raise AssertionError(f"lost {len(self.missing())} of {len(self.promised)} steps") from None
        self.check_nothing_altered()

    def check_nothing_altered(self) -> None:
        self.collect()
        with self._lock:
            for step_id, found in self.digests.items():
                assert step_id in self.intended, f"{step_id} was never recorded"
                assert found == self.intended[step_id], f"{step_id} is not what was recorded"
                assert step_id not in self._altered, f"{step_id} is not what was recorded, the second time"

    def check_repeats(self) -> None:
        """
        Check that a record came again only if the exporter cannot know that it was taken.

        That is so for the last request of a connection alone: an exporter that was killed, or had no answer,
        goes on with another one.
        """
        self.collect()
        wrong = [past for past in self._again if self._last_requests[past.connection] != past.request]
        assert not wrong, f"{len(wrong)} records were sent again after their answer: {wrong[:3]}"

    def repeated(self) -> int:
        """Deliveries beyond the first one of each step."""
        self.collect()
        return self.arrivals.total() - len(self.arrivals)


def exporter_pids(ring_base: Path) -> set[int]:
    """Exporter processes below a directory, without the hosts that wait to start the next one."""
    found = set()
    for pid in exporters(ring_base):
        with suppress(OSError):
            if b"picostep.exporter.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def wait_for_exporter(ring_base: Path, but: int = 0) -> int:
    """Wait until an exporter works that is not the one given; return its pid."""
    (pid,) = wait_until(lambda: exporter_pids(ring_base) - {but}, 20.0, "an exporter")
    return pid


def rings(ring_base: Path) -> list[Path]:
    return list(ring_base.glob("*/*/*.ring"))


def wait_for_no_rings(ring_base: Path, timeout: float = 20.0) -> None:
    """Wait until an exporter has emptied and removed the rings of all dead hosts."""
    wait_until(lambda: not rings(ring_base), timeout, "all rings removed")


def totals(ring_base: Path) -> dict[str, Any]:
    """Sum of what the removed rings counted."""
    sums: Counter[str] = Counter()
    for path in ring_base.glob("*/*/totals.json"):
        found = json.loads(path.read_bytes())
        sums.update({**{k: v for k, v in found.items() if isinstance(v, int)}, **found["dropped"]})
    return dict(sums)


def check_totals(ring_base: Path) -> dict[str, Any]:
    """Check the conservation equation over all removed rings, which must have lost nothing."""
    found = totals(ring_base)
    lost = ("encode_error", "rejected", "corrupt", "ring_full", "damaged_rings", "shed", "shortened")
    assert found["accepted"] == found["delivered"], found
    assert not any(found.get(name, 0) for name in lost), found
    return found


def sample(ring_base: Path) -> list[dict[str, Any]]:
    """
    Counters of all rings, from this process, without disturbing their exporter.

    `readable` is what can be decoded beyond what was released: counted by looking, not by the counters; None
    when the ring changed meanwhile, or when there is too much.
    """
    found = []
    base = str(ring_base / f"picostep-{os.geteuid()}")
    for name in ringdir.list_directories(base):
        directory = ringdir.open_dir(base, name, create=False)
        try:
            for ring_name in directory.ring_names():
                try:
                    ring = directory.open_ring(ring_name)
                except FileNotFoundError:
                    continue
                counted = ring.counters()
                readable = _readable(directory, ring_name) if counted["in_ring"] <= MOST_READ else None
                if readable is not None and ring.counters() != counted:
                    counted, readable = ring.counters(), None
                found.append({**counted, "readable": readable, "name": f"{name}/{ring_name}"})
                ring.close()
        finally:
            directory.close()
    return found


def _readable(directory: ringdir.RingDir, name: str) -> int | None:
    try:
        ring = directory.open_ring(name)  # begins where its counters say that the ring begins
    except FileNotFoundError:
        return None
    count = 0
    while records := ring.read(100, 1 << 24):
        count += len(records)
    ring.close()
    return count


def check_equation(counted: Mapping[str, Any]) -> None:
    """Check that what was accepted is delivered, waits, or was dropped and counted."""
    assert balanced(counted), counted
    assert counted.get("readable") in (None, counted["in_ring"]), counted


def end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def exit_time(process: subprocess.Popen[bytes], since: float, timeout: float) -> float:
    """Wait without polling until a process ends; return the seconds since a `time.monotonic()`."""
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    try:
        process.wait()
        return time.monotonic() - since
    finally:
        timer.cancel()
        timer.join()
