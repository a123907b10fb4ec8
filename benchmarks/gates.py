"""What must not become slower unnoticed: `nox -s gates [-- --update]`.

Instructions of a step, of a price and of a drained record, counted by callgrind on the interpreter itself,
without an exporter and with two numbers of turns, so that what happens once cancels. What picostep's modules
execute counts, and that with what the interpreter does for them; not the C library, which has other code for
other processors, nor orjson, which has other code each month. gates.json has a baseline for each build of
Python that was recorded. Any other only has to stay within wide ratios to the plain-Python step of
workloads.py, by instructions and by time. Then what `import picostep` costs. A count that is better fails as
well, so that it becomes the baseline.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import import_time
import picostep
import ratios
from baselines import Dataclass
from compiled import cost_loop
from counted import AT_ONCE, MANY, PLAIN, WORKS, only_directory
from picostep import _ring
from texts import Texts
from workloads import Picostep, exporter

HERE = Path(__file__).parent
BASELINES = HERE / "gates.json"
MARGIN = 0.03
FEW = 300
"""Turns, as against MANY: the difference counts. By then the interpreter has specialised its code."""

DEADLINE = 120.0
"""Seconds for one count."""

MOST_INSTRUCTIONS = 0.75
"""Of a 3 KB step, in those of PLAIN. It has half of them; builds of Python differ."""

MOST_TIME = 2.5
"""The same by time, where the copy counts, too: they take about as long."""

MODULES = 15
"""That `import picostep` loads: each one is a file to find and read in every worker."""

IMPORT_INSTRUCTIONS = 24_000_000
"""Of `import picostep` beyond a bare interpreter: a fifth more than it takes, for builds of Python differ."""

PARTS = ("of picostep's own code", "of that and the interpreter")
"""What a baseline has of a count."""


class Count(NamedTuple):
    """Instructions: of picostep's compiled modules, of these and the interpreter, of everything."""

    core: float
    python: float
    everything: float


def costs(report: str) -> Iterator[tuple[str, str, int]]:
    """Yield file of the code, function and instructions of each line of a report, callees left out."""
    names: dict[tuple[str, str], str] = {}
    current = {"ob": "", "fn": ""}
    of_callee = False
    for line in report.splitlines():
        if found := re.fullmatch(r"(c?)(ob|fn)=(\(\d+\))(?: (.+))?", line):
            callee, kind, number, name = found.groups()
            if name:
                names[kind, number] = name
            if not callee:
                current[kind] = names[kind, number]
        elif line.startswith("calls="):
            of_callee = True
        elif re.match(r"[\d+*-]", line):
            if not of_callee:
                yield current["ob"], current["fn"], int(line.split()[-1])
            of_callee = False


def parse(report: str) -> Count:
    """Sum the instructions of a report of callgrind by the file of the code."""
    sums: Counter[str] = Counter()
    for name, _, count in costs(report):
        sums[name] += count
    core = sum(count for name, count in sums.items() if "/picostep/_" in name)
    python = sum(
        count
        for name, count in sums.items()
        if re.search(r"/(lib)?python3?[\d.]*(\.so[\d.]*)?$|/lib-dynload/", name)
    )
    return Count(core, core + python, sums.total())


def callgrind(arguments: list[str], directory: str) -> str:
    """Run the interpreter itself, not a script that starts it, under callgrind; return the report."""
    report = Path(directory) / "callgrind"
    interpreter = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    paths = [HERE, Path(picostep.__file__).parent.parent, sysconfig.get_path("purelib")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PICOSTEP_", "TCC_"))}
    done = subprocess.run(
        [
            *("valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={report}"),
            *("--compress-pos=no", "--dump-line=no", interpreter, "-S", "-s", *arguments),
        ],
        env={
            **kept,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "XDG_STATE_HOME": directory,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE,
    )
    if done.returncode or not report.exists():
        raise SystemExit(f"{arguments}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return report.read_text()


def check(name: str, turns: int, directory: Path) -> None:
    """Every step is in the ring, or in the file that it was drained to, with its texts."""
    if "prices" in name or name == PLAIN:  # they have checked themselves
        return
    texts = Texts.of("0.3KB" if "0.3 KB" in name else "3KB", "ascii")
    if name.startswith("drained"):
        found = [json.loads(line) for line in (directory / "out.jsonl").read_text().splitlines()]
    else:
        rings = only_directory(str(directory))
        ring = rings.open_ring(*rings.ring_names())
        found = []
        while records := ring.read(AT_ONCE, 1 << 30):
            found += [entry for entry in records if entry["kind"] == "step"]
        ring.close()
        rings.close()
    assert len(found) == turns, f"{name}: {len(found)} of {turns} steps"
    for entry in found:
        assert (entry["prompt"], entry["response"]) == (texts.prompt, texts.response)
        assert (entry["prompt_uncached_tokens"], entry["completion_tokens"]) == (1200, 250)


def in_new_process(name: str, turns: int) -> str:
    with tempfile.TemporaryDirectory(prefix="picostep-gates-") as directory:
        report = callgrind([str(HERE / "counted.py"), name, str(turns), directory], directory)
        check(name, turns, Path(directory))
    return report


def per_turn() -> dict[str, Count]:
    """Count each work at both numbers of turns; two at a time, as counts do not depend on the load."""
    cost_loop()  # compiled here, so that none of them has to
    with ThreadPoolExecutor(2) as pool:
        pairs = {
            name: (pool.submit(in_new_process, name, FEW), pool.submit(in_new_process, name, MANY))
            for name in reversed(WORKS)
        }
        return {
            name: Count(
                *(
                    (many - few) / (MANY - FEW)
                    for few, many in zip(*(parse(half.result()) for half in pairs[name]), strict=True)
                )
            )
            for name in WORKS
        }


def of_import() -> float:
    """Return the instructions of `import picostep`."""
    with tempfile.TemporaryDirectory(prefix="picostep-gates-") as directory:
        bare, whole = (parse(callgrind(["-c", code], directory)) for code in ("pass", "import picostep"))
    return whole.everything - bare.everything


def by_time() -> float:
    """Return the median ratio of 3 KB steps to plain-Python ones in interleaved rounds, with an exporter."""
    with exporter():
        taken = ratios.measure("3KB", "ascii", 15)
    pairs = zip(taken[Picostep.name], taken[Dataclass.name], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def build() -> str:
    """Return what the counts depend on: the build of Python, and what has made the core."""
    core = Path(_ring.__file__).read_bytes()
    makers = [
        b" ".join(part for part in found.groups() if part).decode().replace("_", ".")
        for pattern in (rb"_(cython)_(\d+_\d+_\d+)", rb"(GCC): \([^)]*\) (\d+)|(clang) version (\d+)")
        if (found := re.search(pattern, core))
    ]
    flags = hashlib.blake2b(str(sysconfig.get_config_var("CFLAGS")).encode(), digest_size=3).hexdigest()
    return (
        f"{platform.python_implementation()} {platform.python_version()} {platform.machine()}, "
        f"{platform.python_compiler()}, flags {flags}, core by {' and '.join(makers)}"
    )


def compare(found: dict[str, Count], baseline: dict[str, list[int]]) -> list[str]:
    """Return what is not within MARGIN of its baseline, in words."""
    wrong = []
    for name, count in found.items():
        if name != PLAIN and name not in baseline:
            wrong.append(f"{name}: there is no baseline")
        for of, now, before in zip(PARTS, count[:2], baseline.get(name, []), strict=False):
            if abs(now / before - 1) > MARGIN:
                wrong.append(
                    f"{name}: {before:,} instructions {of} became {now:,.0f} ({now / before - 1:+.1%})"
                )
    return wrong


def as_baseline(found: dict[str, Count]) -> dict[str, list[int]]:
    """Return what is kept of counts: not those of the plain-Python step, which is none of ours."""
    return {name: [*map(round, count[:2])] for name, count in found.items() if name != PLAIN}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--update", action="store_true", help="make what is counted the baseline of this build"
    )
    options = parser.parse_args()
    if not shutil.which("valgrind"):
        print("skipped: there is no valgrind")
        return 0

    baselines: dict[str, dict[str, list[int]]] = json.loads(BASELINES.read_text())
    here = build()
    found = per_turn()
    wrong = compare(found, baselines[here]) if here in baselines and not options.update else []
    print(f"{here}\n{'instructions':26}{'core':>10}{'+ python':>10}{'all':>10}   baseline")
    for name, count in found.items():
        known = " ".join(f"{value:>9,}" for value in baselines.get(here, {}).get(name, []))
        print(f"{name:26}" + "".join(f"{value:>10,.0f}" for value in count) + f"   {known}")

    instructions = found["step, 3 KB"].python / found[PLAIN].python
    limits = [
        ("instructions of a 3 KB step / of a plain-Python one", instructions, MOST_INSTRUCTIONS),
        ("time of a 3 KB step / of a plain-Python one", by_time(), MOST_TIME),
        ("instructions of import picostep", of_import(), IMPORT_INSTRUCTIONS),
        ("modules that import picostep loads", import_time.once("import picostep")[1], MODULES),
    ]
    for what, value, most in limits:
        print(f"{what:52}{value:>13,.2f}   at most {most:,}")
        if value > most:
            wrong.append(f"{what}: {value:,.2f}, at most {most:,}")

    if options.update:
        baselines[here] = as_baseline(found)
        BASELINES.write_text(json.dumps(baselines, indent=1, sort_keys=True) + "\n")
        print(f"{BASELINES.name}: these counts are the baseline of this build now")
    elif here not in baselines:
        print(
            f"no baseline for this build, so only the limits hold; {BASELINES.name} has:",
            *baselines,
            sep="\n  ",
        )
    if wrong:
        print(
            "\nnot as before:",
            *wrong,
            "If that is meant, also if it is better: nox -s gates -- --update, and say why in the commit.",
            sep="\n  ",
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
