"""
What a busy host feels of its recorder: `nox -s tail`, or `python -m tail` in benchmarks.

The driver: in each run every recorder has a turn at every shape of host, in a new order, in a process of its
own; what arrived is checked; the results go to benchmarks/results/tail.json, of which report.py makes a
section of RESULTS.md.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import report
from peers import environments
from peers.__main__ import Driver, Measured, choose, say
from peers.catalogue import PEERS, Peer
from peers.lines import Failed
from provenance import provenance
from tail.host import FLAT_OUT, SHAPES

RUNS = 5
SECONDS = 6.0
RATE = 400.0
SIZES = ("3KB", "30KB")
NOTHING = Peer("nothing", "nothing", "nothing", "plain", (), "", delivers=False, checked=False)
BESIDE = ("picostep", "picostep-thread", "opentelemetry", "langsmith", "contextcompany")


@dataclass
class Contender:
    key: str
    title: str
    measured: Measured
    cores: list[int]
    error: str = ""
    sizes: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    """Of each size, of each cell, what each run came to."""


def contenders(driver: Driver) -> list[Contender]:
    """Each recorder on all cores, and some on one."""
    known = {one.peer.key: one for one in driver.measured}
    cores = sorted({driver.core, *driver.others})
    one_core = [driver.core]
    return [
        *(Contender(key, one.peer.title, one, cores) for key, one in known.items()),
        Contender("nothing-again", "nothing, a second time", known["nothing"], cores),
        Contender("nothing-one-core", "nothing, on one core", known["nothing"], one_core),
        Contender(
            "picostep-one-core", "picostep, host and exporter on one core", known["picostep"], one_core
        ),
    ]


def turn(driver: Driver, one: Contender, url: str, size: str, cells: dict[str, dict[str, Any]]) -> None:
    """Let one host serve all cells, one after the other."""
    peer = one.measured.peer
    host = driver.process([str(environments.python(peer.environment)), "-m", "tail.host", peer.adapter, url])
    try:
        driver.check(one.measured, size, host("open", cores=one.cores, size=size))
        for name, cell in cells.items():
            done = host("run" if "shape" in cell else "probe", size=size, **cell)
            dropped = driver.check(one.measured, size, done)
            kept = {key: done[key] for key in ("us", "rate", "recorded") if key in done}
            one.sizes[size][name].append({**kept, "dropped": dropped})
        host("close", timeout=60)
    finally:
        host.end()


def main() -> None:
    parser = argparse.ArgumentParser(description="What a busy host feels of its recorder.")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each cell")
    parser.add_argument("--sizes", default="", help=f"of {','.join(SIZES)}")
    parser.add_argument("--only", default="", help="keys of contenders")
    parser.add_argument("--trial", action="store_true", help="print the section, write nothing")
    options = parser.parse_args()
    sizes = choose(options.sizes, SIZES)
    where = provenance()
    cells: dict[str, dict[str, Any]] = {}
    for shape in SHAPES:
        cells[f"{shape}, {RATE:.0f}/s"] = {"shape": shape, "rate": RATE, "seconds": options.seconds}
    for shape in FLAT_OUT:
        cells[f"{shape}, flat out"] = {"shape": shape, "rate": 0.0, "seconds": options.seconds / 2}
    cells["probe"] = {"seconds": options.seconds}
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        environments.BUILD.mkdir(parents=True, exist_ok=True)
        log = stack.enter_context((environments.BUILD / "log").open("w", encoding="utf-8"))
        driver = Driver([NOTHING, *(peer for peer in PEERS if peer.key in BESIDE)], log, place)
        driver.install()
        known = contenders(driver)
        chosen = [one for one in known if one.key in choose(options.only, [one.key for one in known])]
        url = stack.enter_context(driver.open_ingest())
        for one in chosen:
            one.sizes = {size: {name: [] for name in cells} for size in sizes}
        order = random.Random(1)
        for run in range(options.runs):
            for size in sizes:
                turns = [one for one in chosen if not one.error]
                order.shuffle(turns)  # so that none always comes after the same other
                for one in turns:
                    say(f"run {run + 1} of {options.runs}, {size}, {one.key}")
                    try:
                        seeded = {name: {**cell, "seed": run} for name, cell in cells.items()}
                        turn(driver, one, url, size, seeded)
                    except Failed as error:
                        one.error = str(error)
                        driver.ingest("take", size=size, steps=0)  # what it had sent is no other's
                        say(f"{one.key} is left out: {error}")
        packages = {one.peer.key: one.environment.get("packages", {}) for one in driver.measured}
    result = {
        "kind": "tail",
        **where,
        "runs": options.runs,
        "seconds": options.seconds,
        "rate": RATE,
        "sizes": sizes,
        "cells": list(cells),
        "packages": packages,
        "contenders": {
            one.key: {"title": one.title, "error": one.error, "sizes": one.sizes} for one in chosen
        },
    }
    report.publish(result, options.trial)


if __name__ == "__main__":
    main()
