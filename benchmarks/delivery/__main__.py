"""
What an exporter can take: `nox -s delivery`, or `python -m delivery` in benchmarks.

Rings are filled while nobody reads them; then one exporter, on one core, empties them into a sink. And
recorders record and deliver on one core, each with all its threads and processes. What arrived is checked.
The results go to benchmarks/results/delivery.json, of which report.py makes a section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import report
from peers import environments, wire
from peers.__main__ import Driver, say
from peers.catalogue import HERE, PEERS, ROOT
from peers.lines import Failed
from peers.records import Record, audit
from provenance import provenance
from texts import CACHED, COMPLETION, UNCACHED, USED, Texts

RUNS = 5
SIZE = "1KB"
SINKS = ("jsonl", "store", "ingest")
DEADLINE = 600.0  # seconds for one exporter, or producer
COMMAND_LINE = ("picostep-cli", (f"{HERE}[cli]",))
SUSTAINED = ("picostep", "picostep-thread", "opentelemetry", "langsmith")
SUSTAINED_STEPS = 20_000


@dataclass(frozen=True)
class Load:
    """What waits in the rings."""

    rings: int = 1
    steps: int = 100_000
    """In all rings together."""
    models: int = 1
    """Names of models, in turn."""


LOADS = {
    "producing processes": [Load(rings=rings) for rings in (1, 2, 4, 8)],
    "backlog": [Load(steps=steps) for steps in (25_000, 100_000, 400_000)],
    "rings": [Load(rings=rings, steps=102_400) for rings in (16, 256, 1024)],
    "models": [Load(models=models) for models in (100, 10_000)],
}
"""What grows in each series. The first goes to all sinks, the others to a file."""


class Exporters:
    """Times one exporter after the other; see `drained()`."""

    def __init__(self, driver: Driver, url: str) -> None:
        self.driver, self.url = driver, url
        environments.made(*COMMAND_LINE)
        self.python = str(environments.python(COMMAND_LINE[0]))
        with self._fresh() as directory:
            idle = [self._export("jsonl", directory) for _ in range(5)]
        self.start_up = {name: statistics.median(run[name] for run in idle) for name in ("wall", "cpu")}

    def drained(self, sink: str, load: Load) -> dict[str, float]:
        """
        Fill rings and have them emptied.

        Returns:
            wall, cpu: Seconds that the exporter took, without what it takes when there is nothing to do.

            rss: Its peak, in bytes.

            bytes: That the sink got.
        """
        with self._fresh() as directory:
            counts = [load.rings, load.steps // load.rings, load.models]
            command = [self.python, "-m", "delivery.producer", str(directory), self._to(sink, directory)]
            done = subprocess.run(
                [*command, *map(str, counts), SIZE],
                env=self._environment(directory),
                capture_output=True,
                timeout=DEADLINE,
            )
            if done.returncode:
                raise Failed(done.stderr.decode()[-2000:])
            found = self._export(sink, directory)
            for name, idle in self.start_up.items():
                found[name] -= idle
            found["bytes"] = self._check(sink, directory, load)
            return found

    @contextlib.contextmanager
    def _fresh(self) -> Iterator[Path]:
        shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
        with tempfile.TemporaryDirectory(prefix="picostep-delivery-", dir=shm) as name:
            yield Path(name)

    def _to(self, sink: str, directory: Path) -> str:
        return "tcc" if sink == "ingest" else f"{sink}:{directory}/out"

    def _environment(self, directory: Path) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.driver.place),
            "PYTHONPATH": str(ROOT / "benchmarks"),
            "TCC_API_KEY": "key",
            "TCC_URL": f"{self.url}/v1/custom",
            "PICOSTEP_DIR": str(directory),
            "PICOSTEP_SPOOL": "off",
        }

    def _export(self, sink: str, directory: Path) -> dict[str, float]:
        env = {**self._environment(directory), "PICOSTEP_TO": self._to(sink, directory)}
        command = ["taskset", "-c", str(self.driver.core), self.python, "-m", "picostep", "export", "--once"]
        start = time.perf_counter()
        with subprocess.Popen(command, env=env, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            said = process.stderr.read()
            _, status, used = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise Failed(said.decode()[-500:])
        return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "rss": used.ru_maxrss << 10}

    def _check(self, sink: str, directory: Path, load: Load) -> int:
        """Compare what arrived with what was recorded; return how many bytes there were."""
        texts, out = Texts.of(SIZE, "ascii"), directory / "out"
        if sink == "store":
            with contextlib.closing(sqlite3.connect(out)) as store:
                sums = store.execute(
                    "SELECT count(DISTINCT step_id), sum(prompt_uncached_tokens), sum(prompt_cached_tokens), "
                    "sum(completion_tokens), sum(prompt = ? AND response = ? AND tool_definitions = ?) "
                    "FROM steps",
                    (texts.prompt, texts.response, texts.tools),
                ).fetchone()
            expected = tuple(load.steps * each for each in (1, UNCACHED, CACHED, COMPLETION, 1))
            if sums != expected:
                raise Failed(f"store: {sums}, not {expected}")
            return out.stat().st_size
        if sink == "jsonl":
            with out.open("rb") as lines:
                found: dict[str, Any] = dict(audit(_records(lines, load), texts))
            found["bytes"] = out.stat().st_size
        else:
            found = self.driver.ingest("take", size=SIZE, steps=load.steps)
        if (found["steps"], found["repeated"], found["wrong"]) != (load.steps, 0, 0):
            raise Failed(f"{sink}: of {load.steps} steps this arrived: {found}")
        return int(found["bytes"])


def _records(lines: Any, load: Load) -> Iterator[Record]:
    """Read a file of JSON lines; names of models that were made up count as the usual one."""
    names = {f"model-{number}" for number in range(load.models)}
    for line in lines:
        for record in wire.tcc(line):
            yield record._replace(used=USED) if record.used in names else record


def sustained(driver: Driver, url: str, key: str) -> dict[str, float]:
    """
    Have a recorder record and deliver in turns, in bursts that it takes, on one core.

    Returns:
        wall, cpu: Seconds, of all its threads and processes.
    """
    (one,) = [measured for measured in driver.measured if measured.peer.key == key]
    python = str(environments.python(one.peer.environment))
    process = driver.process([python, "-m", "peers.runner", one.peer.adapter, url])
    try:
        driver.check(one, SIZE, process("open", core=driver.core, size=SIZE, with_helpers=True))
        done = process("sustained", size=SIZE, steps=SUSTAINED_STEPS)
        driver.check(one, SIZE, done, counts=True)
        process("close", timeout=60)
    finally:
        process.end()
    return {"wall": done["wall"], "cpu": done["cpu"]}


def main() -> None:
    parser = argparse.ArgumentParser(description="What an exporter can take.")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps of each load")
    parser.add_argument("--trial", action="store_true", help="print the section, write nothing")
    options = parser.parse_args()
    where = provenance()
    series: dict[str, list[dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        environments.BUILD.mkdir(parents=True, exist_ok=True)
        log = stack.enter_context((environments.BUILD / "log").open("w", encoding="utf-8"))
        driver = Driver([peer for peer in PEERS if peer.key in SUSTAINED], log, place)
        driver.install()
        url = stack.enter_context(driver.open_ingest())
        exporters = Exporters(driver, url)
        cells = [
            (name, sink, load)
            for name, loads in LOADS.items()
            for load in loads
            for sink in (SINKS if name == "producing processes" else ("jsonl",))
        ]
        found: dict[tuple[str, str, Load], list[dict[str, float]]] = {cell: [] for cell in cells}
        rates: dict[str, list[dict[str, float]]] = {key: [] for key in SUSTAINED}
        for run in range(options.runs):
            for cell in cells:
                name, sink, load = cell
                say(f"run {run + 1} of {options.runs}: {name}, {sink}, {load}")
                per_ring = max(1, int(load.steps * options.share) // load.rings)
                done = exporters.drained(sink, replace(load, steps=per_ring * load.rings))
                found[cell].append({**done, "steps": per_ring * load.rings})
            for key in SUSTAINED:
                say(f"run {run + 1} of {options.runs}: {key}, sustained")
                rates[key].append(sustained(driver, url, key))
        for (name, sink, load), runs in found.items():
            series.setdefault(name, []).append(
                {
                    "sink": sink,
                    "rings": load.rings,
                    "models": load.models,
                    "steps": runs[0]["steps"],
                    "runs": runs,
                }
            )
        packages = {one.peer.key: one.environment["packages"] for one in driver.measured}
    result = {
        "kind": "delivery",
        **where,
        "runs": options.runs,
        "size": SIZE,
        "core": driver.core,
        "start_up": exporters.start_up,
        "packages": packages,
        "series": series,
        "sustained": {
            one.peer.key: {
                "title": one.peer.title,
                "steps": SUSTAINED_STEPS,
                "runs": rates[one.peer.key],
                "dropped": one.delivered[SIZE]["dropped"],
            }
            for one in driver.measured
        },
    }
    report.publish(result, options.trial)


if __name__ == "__main__":
    main()
