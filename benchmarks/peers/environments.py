"""A virtual environment for each peer, made once, in the folder for builds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.catalogue import HERE, ROOT

BUILD = ROOT / "benchmarks" / "build" / "peers"
DEADLINE = 900.0  # seconds for one installation


class NotInstalled(Exception):
    """What pip said."""


def python(name: str) -> Path:
    return BUILD / name / "bin" / "python"


def made(name: str, requirements: Sequence[str]) -> dict[str, Any]:
    """
    Make an environment, unless it is there with the same requirements, Python, and sources of a checkout.

    Returns:
        packages: Name and version of each that was installed.

        bytes: Size of all files that the installation put into site-packages, compiled Python included.

    Raises:
        NotInstalled: pip could not; its last lines.
    """
    place = BUILD / name
    wanted = _fingerprint(requirements)
    marker = place / "made.json"
    if marker.exists():
        found: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
        if found["fingerprint"] == wanted:
            return found
    shutil.rmtree(place, ignore_errors=True)
    _run([sys.executable, "-m", "venv", "--without-pip", str(place)])
    # Without pip in it the environment's site-packages begins empty.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place)}))
    if requirements:
        sources = [
            f"{ROOT}{requirement.removeprefix(HERE)}" if requirement.startswith(HERE) else requirement
            for requirement in requirements
        ]
        pip = [sys.executable, "-m", "pip", "--python", str(python(name))]
        _run([*pip, "install", "--quiet", "--disable-pip-version-check", *sources])
    found = {
        "fingerprint": wanted,
        "packages": _packages(site),
        "bytes": sum(path.lstat().st_size for path in site.rglob("*") if not path.is_dir()),
    }
    marker.write_text(json.dumps(found), encoding="utf-8")
    return found


def _fingerprint(requirements: Sequence[str]) -> str:
    digest = hashlib.sha256(repr((sys.version, tuple(requirements))).encode())
    if any(requirement.startswith(HERE) for requirement in requirements):
        for path in sorted([*ROOT.glob("src/**/*"), *ROOT.glob("ext/**/*"), ROOT / "setup.py"]):
            # Generated C and a compiled module beside the sources are no part of what pip builds from.
            if path.is_file() and path.suffix in {".py", ".pyx", ".pxd", ".pxi", ".h", ".bin", ".json"}:
                digest.update(path.read_bytes())
        digest.update((ROOT / "ext/picostep/keeper.c").read_bytes())
        digest.update((ROOT / "pyproject.toml").read_bytes())
    return digest.hexdigest()


def _packages(site: Path) -> dict[str, str]:
    names = (path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info"))
    return dict(sorted(name.rsplit("-", 1) for name in names))


def _run(command: Sequence[str]) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"not within {DEADLINE:.0f} s: {' '.join(command)}") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr]
        raise NotInstalled(said[-1][-300:])
