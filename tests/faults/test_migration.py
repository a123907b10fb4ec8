"""
Newer code takes over a store of layout 1.0 while older code still writes to it; both are killed at any time.

The older code is that of `old_store`. If PICOSTEP_OLD_PYTHON names the interpreter of an environment that has
a picostep from before layout 1.1, that one writes instead, and its exporters are tested, too.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from oracle import Host, Ledger, times
from store_writer import step
from support import clean_environment, exporters, ring_directory, wait_until
from test_disk import in_store

OLD_PYTHON = os.environ.get("PICOSTEP_OLD_PYTHON")
OLD = (OLD_PYTHON, "picostep.sinks.store") if OLD_PYTHON else (sys.executable, "old_store")
NEW = (sys.executable, "picostep.sinks.store")
PROGRAM = Path(__file__).with_name("store_writer.py")

EARLIER = times(1000, 100_000)  # steps in the store of layout 1.0
MORE = times(500, 2000)  # that each writer adds
CYCLES = times(2, 30)
KILLS = 2  # of each writer in a cycle
BATCH = 5
RATE = 200
EXPORTERS_KILLED = times(6, 60)

Start = Callable[..., Host]


class Writer:
    """
    A process of `store_writer`, and those that go on where it was killed.

    Args:
        code: Interpreter and module to write with.

        path: Of the store.

        name: Of the steps.

        last: How many there are to be.

        batch: How many are stored at once.
    """

    def __init__(self, code: tuple[str, str], path: Path, name: str, last: int, batch: int = BATCH) -> None:
        self._python, self._module = code
        self._path, self._name, self._last, self._batch = path, name, last, batch
        self.stored = 0
        self.start()

    def start(self) -> None:
        """Go on behind the last batch that is known to be stored."""
        self.opens = False
        arguments = [self._module, self._path, self._name, self.stored, self._last, self._batch]
        self._process = subprocess.Popen(
            [self._python, str(PROGRAM), *map(str, arguments)],
            env=clean_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if line == "open\n":
                self.opens = True
            else:
                self.stored = int(line)

    def wait_until_it_opens(self) -> None:
        wait_until(
            lambda: self.opens or self._process.poll() is not None, 30.0, "a writer that opens its store"
        )

    def wait_until_it_writes(self) -> None:
        wait_until(lambda: self.stored or self._process.poll() is not None, 30.0, "a writer at work")

    def kill(self) -> None:
        self._process.kill()
        self._end()

    def finish(self, timeout: float) -> None:
        """Wait until all its steps are stored."""
        try:
            self._process.wait(timeout)
        finally:
            self.kill()
        assert (self._process.returncode, self.stored) == (0, self._last)

    def _end(self) -> None:
        self._process.wait()
        self._reader.join(10.0)
        assert self._process.stdout
        self._process.stdout.close()


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A store of layout 1.0 with steps."""
    path = tmp_path / "original.db"
    Writer(OLD, path, "earlier", EARLIER, batch=1000).finish(times(60.0, 600.0))
    assert "traceparent" not in columns(path)
    return path


@pytest.mark.slow
@pytest.mark.timeout(times(120, 7200))
def test_taken_over_beside_an_old_writer(original: Path, tmp_path: Path) -> None:
    """The first kills are aimed at the moment when the newer code opens the file."""
    random = Random(os.urandom(8).hex())
    kept = unfilled = caught = 0
    for cycle in range(CYCLES):
        path = tmp_path / f"{cycle}.db"
        shutil.copy(original, path)
        old = Writer(OLD, path, "old", MORE)
        old.wait_until_it_writes()
        new = Writer(NEW, path, "new", MORE)
        for kill in range(KILLS):
            new.wait_until_it_opens()
            time.sleep(random.uniform(0.0, 0.1 if kill else 0.02))
            new.kill()
            caught += "traceparent" not in columns(path)
            if random.random() < 0.7:
                old.kill()
                old.start()
            new.start()
        new.finish(120.0)
        old.finish(120.0)
        unfilled += check(path)
        kept += EARLIER + 2 * MORE
        path.unlink()
    print(
        f"\n{CYCLES} stores of {EARLIER} steps taken over; {KILLS * CYCLES} kills of the newer writer, "
        f"{caught} of them before there were columns: {kept} steps, 0 lost, 0 twice; {unfilled} of "
        f"{CYCLES * MORE} of older writers have no traceparent"
    )


def check(path: Path) -> int:
    """Check that every step is there once, as it was written; return how many lack their traceparent."""
    expected = {
        found["step_id"]: found
        for name, count in (("earlier", EARLIER), ("old", MORE), ("new", MORE))
        for found in (step(name, number) for number in range(count))
    }
    unfilled = 0
    with closing(sqlite3.connect(path)) as store:
        assert store.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert store.execute("PRAGMA user_version").fetchall() == [(1,)]
        assert store.execute("SELECT minor FROM picostep_layout").fetchall() == [(1,)]
        rows = store.execute(
            "SELECT step_id, run_id, start_ns, end_ns, completion_tokens, prompt, traceparent FROM steps"
        )
        for step_id, *values, traceparent in rows:
            known = expected.pop(step_id)  # once only
            assert values == [
                known[key] for key in ("run_id", "start_ns", "end_ns", "completion_tokens", "prompt")
            ]
            if traceparent is None:
                assert known["run_id"] != "new", step_id
                unfilled += known["run_id"] == "old"
            else:
                assert traceparent == known["traceparent"]
                assert known["run_id"] != "earlier", step_id
    assert not expected, f"{len(expected)} steps lost"
    return unfilled


def columns(path: Path) -> set[str]:
    """Names of the columns of table steps."""
    with closing(sqlite3.connect(path, timeout=10.0)) as store:
        return {name for (name,) in store.execute("SELECT name FROM pragma_table_info('steps')")}


def count(path: Path) -> int:
    """How many steps there are, by a look so short that no writer waits for it."""
    with closing(sqlite3.connect(path, timeout=10.0)) as store:
        (steps,) = store.execute("SELECT count(*) FROM steps").fetchone()
    return int(steps)


class Side:
    """Hosts of one version, one after the other, and their exporters, in a ring directory of their own."""

    def __init__(self, start: Start, base: Path, path: Path, inside: tuple[str, ...]) -> None:
        self._start, self._base, self._inside = start, base, inside
        self._env = {"PICOSTEP_DIR": str(base), "PICOSTEP_TO": f"store:{path}"}
        self._seed = 0
        self.ledgers: list[Ledger] = []
        self.begin()

    def begin(self) -> None:
        self._seed += 1
        self._host = self._start(self._env, "paced", self._seed, "small", RATE, 3000, 60, inside=self._inside)
        self._host.wait_for_promise(RATE // 4)

    def kill_host(self) -> None:
        self.ledgers.append(self._host.kill())
        self.begin()

    def kill_exporter(self) -> None:
        def found() -> set[int]:
            return set(exporters(self._base)) - {self._host.process.pid}

        os.kill(wait_until(found, 90.0, "an exporter").pop(), signal.SIGKILL)

    def finish(self) -> None:
        self._host.process.terminate()
        ledger = self._host.finish(120.0)
        assert ledger.report["flushed"], ledger.report
        self.ledgers.append(ledger)


@pytest.fixture
def directories() -> Iterator[tuple[Path, Path]]:
    with ring_directory() as one, ring_directory() as other:
        yield one, other


@pytest.mark.skipif(
    not OLD_PYTHON, reason="PICOSTEP_OLD_PYTHON names a Python with a picostep before layout 1.1"
)
@pytest.mark.timeout(times(240, 3600))
def test_taken_over_beside_an_old_exporter(
    directories: tuple[Path, Path], original: Path, start_host: Start
) -> None:
    assert OLD_PYTHON
    random = Random(os.urandom(8).hex())
    inside = ("sh", "-c", f'exec {shlex.quote(OLD_PYTHON)} "$@"')
    old = Side(start_host, directories[0], original, inside)
    wait_until(lambda: count(original) > EARLIER, 30.0, "the older exporter at work")
    new = Side(start_host, directories[1], original, ())
    wait_until(lambda: "traceparent" in columns(original), 30.0, "the newer exporter at work")
    for kill in range(EXPORTERS_KILLED):
        side = (old, new)[kill % 2]
        time.sleep(random.uniform(0.0, 1.0))
        side.kill_exporter()
        if random.random() < 0.5:  # a host whose exporters die young makes pauses that grow
            side.kill_host()
    new.finish()
    old.finish()
    ledgers = old.ledgers + new.ledgers
    promised = {step_id for ledger in ledgers for step_id in ledger.promised}
    intended = {step_id: digest for ledger in ledgers for step_id, digest in ledger.intended.items()}

    def all_there() -> bool:
        return count(original) >= EARLIER + len(promised) and promised <= in_store(original).keys()

    wait_until(all_there, times(60.0, 300.0), "all that was promised")
    found = {step_id: digest for step_id, digest in in_store(original).items() if step_id in intended}
    assert found == {step_id: intended[step_id] for step_id in found}
    assert count(original) == EARLIER + len(found)
    print(
        f"\n{EXPORTERS_KILLED} exporters and {len(ledgers) - 2} hosts killed: {len(promised)} steps promised "
        f"beside {EARLIER}, 0 lost, 0 twice"
    )
