"""Wheels as a user gets them, for every Python here: `nox -s wheels [-- --quick]`.

Builds the sdist, a wheel from it for each CPython that is found (pyenv's and those on PATH), and tags it
by what it asks of the C library. Each wheel is installed with `--only-binary :all:` into a new environment,
and the tests run on it where there is neither a source tree nor a compiler. Also: a Python that is not
supported must refuse the sdist, and the wheels that cibuildwheel would build are those that pyproject.toml
means. Writes benchmarks/results/wheels.json. `--check WHEEL` only looks at a wheel: its size and contents.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from elftools.elf.elffile import ELFFile

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "wheels.json"
SUPPORTED = [(3, minor) for minor in range(10, 15)]
TOO_OLD = (3, 9)
QUICK = ["tests/system/test_import.py", "tests/unit/test_records.py", "tests/system/test_sinks.py"]

CEILING = 1024 * 1024
"""
Bytes of a wheel: one ceiling for all that is planned, so that no change argues about its own. Who adds to it
names the addition here:

    628 KiB  before: 363 of them five compiled modules, 51 the price table, 24 what came with metrics
    +   8 KiB  docstrings that say units, results and exceptions, in the modules and in their stubs

What is free is room for features: not for a second copy of anything, nor for debug data, with which a wheel
has 2,140 KiB.
"""

OLDEST_GLIBC = (2, 17)
"""Of manylinux2014; what is older is asked of every Linux that anybody has."""

COMPILER = re.compile(r"(.*-)?(c?cc|c\+\+|gcc|g\+\+|clang|clang\+\+|cpp|tcc|c[89]9)(-[\d.]+)?")

# What cibuildwheel must make of pyproject.toml: these Pythons for each of these platforms.
TAGS = [*(f"cp3{minor}" for _, minor in SUPPORTED), "cp314t"]
PLATFORMS = {
    "linux": ["manylinux_x86_64", "manylinux_aarch64", "musllinux_x86_64", "musllinux_aarch64"],
    "macos": ["macosx_x86_64", "macosx_arm64"],
    "windows": ["win_amd64"],
}


def run(*command: str | Path, **options: Any) -> str:
    """Run a command and return its output; show all of it if the command fails."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def interpreters() -> dict[tuple[int, int], Path]:
    """Return the real interpreter of each minor version that is found; not a script that starts one."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found: dict[tuple[int, int], Path] = {}
    for version in [TOO_OLD, *SUPPORTED]:
        name = f"python{version[0]}.{version[1]}"
        for candidate in [*sorted(pyenv.glob(f"*/bin/{name}")), shutil.which(name)]:
            if candidate is None:
                continue
            code = "import os, sys; print(*sys.version_info[:2], os.path.realpath(sys._base_executable))"
            done = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
            if done.returncode == 0 and tuple(map(int, done.stdout.split()[:2])) == version:
                found[version] = Path(done.stdout.split(maxsplit=2)[2].strip())
                break
    return found


def contents(wheel: Path) -> dict[str, Any]:
    """
    Return what is in a wheel: bytes by kind as they are packed, and symbols of newer C libraries.

    Raises:
        SystemExit: There is what should not be in a wheel, or it is larger than CEILING.
    """
    if wheel.stat().st_size > CEILING:
        raise SystemExit(
            f"{wheel.name} has {wheel.stat().st_size / 1024:.0f} KiB, more than {CEILING / 1024:.0f}. "
            "If it must, change CEILING in tools/wheels.py and say why there."
        )
    sizes: dict[str, int] = {}
    newer: dict[str, set[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            kind = Path(info.filename).suffix or "other"
            if kind not in {".so", ".pyd", ".py", ".pyi", ".bin"}:
                kind = "other"
            sizes[kind] = sizes.get(kind, 0) + info.compress_size
            if info.filename.endswith((".pyx", ".pxd", ".c", ".h", ".o")):
                raise SystemExit(f"{wheel.name} has {info.filename}, which nobody needs at run time")
            if info.filename.endswith(".so"):
                library: Any = ELFFile(BytesIO(archive.read(info)))
                unwanted = [
                    section.name
                    for section in library.iter_sections()
                    if section.name == ".symtab" or section.name.startswith(".debug")
                ]
                if unwanted:
                    raise SystemExit(f"{info.filename} in {wheel.name} is not stripped: {unwanted}")
                for version, symbol in versioned(library):
                    newer.setdefault(version, set()).add(symbol)
    return {
        "packed": dict(sorted(sizes.items())),
        "glibc_symbols": {version: sorted(newer[version]) for version in sorted(newer)},
    }


def versioned(library: Any) -> list[tuple[str, str]]:
    """Return the symbols that a library wants of a glibc newer than OLDEST_GLIBC, with its version."""
    names = {
        auxiliary["vna_other"]: auxiliary.name
        for _, auxiliaries in library.get_section_by_name(".gnu.version_r").iter_versions()
        for auxiliary in auxiliaries
    }
    wanted = []
    indexes = library.get_section_by_name(".gnu.version").iter_symbols()
    symbols = library.get_section_by_name(".dynsym").iter_symbols()
    for index, symbol in zip(indexes, symbols, strict=True):
        version = str(names.get(index["ndx"], ""))
        if version.startswith("GLIBC_") and tuple(map(int, version[6:].split("."))) > OLDEST_GLIBC:
            wanted.append((version, str(symbol.name)))
    return wanted


def without_compilers(place: Path) -> Path:
    """Make a directory of links to every program on PATH but compilers and other Pythons."""
    place.mkdir()
    for directory in os.environ["PATH"].split(os.pathsep):
        if "pyenv" in directory or not os.path.isdir(directory):
            continue
        for program in Path(directory).iterdir():
            name, link = program.name, place / program.name
            if not COMPILER.fullmatch(name) and "python" not in name and not link.is_symlink():
                link.symlink_to(program)
    return place


def build(python: Path, sdist: Path, place: Path) -> Path:
    """Build a wheel from the sdist alone and give it the oldest tag that its symbols allow."""
    place.mkdir()
    run(python, "-m", "venv", place / "venv")
    run(place / "venv/bin/pip", "wheel", "-q", "--no-deps", "--wheel-dir", place / "raw", sdist)
    (raw,) = (place / "raw").glob("*.whl")
    if sys.platform != "linux":
        return raw
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", place / "repaired", raw)
    (wheel,) = (place / "repaired").glob("*.whl")
    return wheel


def test(python: Path, wheel: Path, place: Path, programs: Path, arguments: list[str]) -> dict[str, Any]:
    """Run the tests on an installed wheel; return how many passed, failed and were skipped."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "PICOSTEP_", "TCC_", "PYENV_", "CC", "VIRTUAL_ENV"))
    }
    bin_ = place / "clean" / "bin"
    environment["PATH"] = os.pathsep.join([str(bin_), str(programs)])
    assert not any(shutil.which(name, path=environment["PATH"]) for name in ("cc", "gcc", "clang", "g++"))
    run(python, "-m", "venv", place / "clean")
    run(bin_ / "pip", "install", "-q", "--only-binary", ":all:", f"{wheel}[test]", env=environment)
    for name in ("tests", "docs"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", place)
    report, log, start = place / "report.xml", place / "pytest.log", time.monotonic()
    options = ["-q", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    with log.open("w") as output:
        subprocess.run(
            [bin_ / "python", "-m", "pytest", *options, *arguments],
            cwd=place,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=2400,
        )
    if not report.exists():
        raise SystemExit(log.read_text())
    suite = ElementTree.parse(report).find("testsuite")
    assert suite is not None
    failures = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iterfind("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    if failures:
        print(log.read_text())
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    return {
        "passed": total - skipped - len(failures),
        "skipped": skipped,
        "failed": failures,
        "seconds": round(time.monotonic() - start),
    }


def refuses(python: Path, sdist: Path) -> bool:
    """Whether a Python that is too old is told so by pip."""
    command = [python, "-m", "pip", "install", "--no-deps", "--dry-run", sdist]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return done.returncode != 0 and "requires a different Python" in done.stderr


def identifiers() -> dict[str, list[str]]:
    """Return what cibuildwheel would build for each platform; fail if that is not what was meant."""
    found = {}
    for name, platforms in PLATFORMS.items():
        command = ["-m", "cibuildwheel", "--print-build-identifiers", "--platform", name, "--archs"]
        archs = sorted({re.sub(r"^[a-z]+_", "", one).replace("amd64", "AMD64") for one in platforms})
        found[name] = run(sys.executable, *command, ",".join(archs), ROOT).split()
        meant = {f"{tag}-{platform}" for tag in TAGS for platform in platforms}
        assert set(found[name]) == meant, f"{name}: not meant or missing: {set(found[name]) ^ meant}"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short set of tests")
    parser.add_argument("--python", action="append", help="only this minor version, such as 3.12")
    parser.add_argument("--check", type=Path, metavar="WHEEL", help="only look at a wheel")
    options = parser.parse_args()
    if options.check:
        print(options.check.name, f"{options.check.stat().st_size / 1024:.0f} KiB", contents(options.check))
        return 0
    arguments = QUICK if options.quick else ["@tests/artifact.txt"]
    here = interpreters()
    chosen = {
        version: python
        for version, python in here.items()
        if version in SUPPORTED and (not options.python or "{}.{}".format(*version) in options.python)
    }
    commit = run("git", "-C", ROOT, "describe", "--always", "--dirty").strip()  # as it is when they are built
    rows = []
    with tempfile.TemporaryDirectory(prefix="picostep-wheels-") as away:
        place = Path(away)
        run(sys.executable, "-m", "build", "--sdist", "--outdir", place, ROOT)
        (sdist,) = place.glob("*.tar.gz")
        programs = without_compilers(place / "programs")
        old = refuses(here[TOO_OLD], sdist) if TOO_OLD in here else None
        assert old is not False, f"Python {TOO_OLD} takes the sdist"
        for version, python in chosen.items():
            name = "{}.{}".format(*version)
            wheel = build(python, sdist, place / name)
            row = {
                "python": run(python, "-c", "import platform; print(platform.python_version())").strip(),
                "wheel": wheel.name,
                "bytes": wheel.stat().st_size,
                **contents(wheel),
                "tests": test(python, wheel, place / name, programs, arguments),
            }
            rows.append(row)
            tests = row["tests"]
            counts = f"{tests['passed']} passed, {tests['skipped']} skipped, {len(tests['failed'])} failed"
            size = wheel.stat().st_size / 1024
            print(f"{wheel.name:70}{size:>5.0f} KiB  {counts} in {tests['seconds']} s", flush=True)
        result = {
            "kind": "wheels",
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
            + " ".join(platform.libc_ver()),
            "compiler": run("cc", "--version").splitlines()[0],
            "commit": commit,
            "quick": options.quick,
            "sdist_bytes": sdist.stat().st_size,
            "refused_by_3.9": old,
            "wheels": rows,
            "cibuildwheel": identifiers(),
        }
    for version, symbols in rows[0]["glibc_symbols"].items():
        print(f"{version}: {', '.join(symbols)}")
    print(f"packed bytes: {rows[0]['packed']}; sdist: {sdist.name} {result['sdist_bytes'] / 1024:.0f} KiB")
    print(", ".join(f"{name}: {len(found)} wheels" for name, found in result["cibuildwheel"].items()))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if any(row["tests"]["failed"] for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
