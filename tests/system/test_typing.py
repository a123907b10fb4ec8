"""The stubs say what the compiled modules are, and a program that uses picostep type-checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

TESTS = Path(__file__).parents[1]


def run(*args: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *args], cwd=cwd, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_program_type_checks(tmp_path: Path) -> None:
    """Away from the sources, so that what is installed is checked: `py.typed` and stubs included."""
    run(
        "mypy",
        "--strict",
        "--config-file=",
        f"--cache-dir={tmp_path}",
        str(TESTS / "typing" / "api.py"),
        cwd=tmp_path,
    )


@pytest.mark.slow
def test_stubs_say_what_is_there(tmp_path: Path) -> None:
    config = tmp_path / "mypy.ini"
    config.write_text(f"[mypy]\ncache_dir = {tmp_path}\n")
    modules = ("picostep._cost", "picostep._api", "picostep._ring", "picostep._keeper")
    allowed = str(TESTS / "stubtest-allowlist")

    out = run(
        "mypy.stubtest", *modules, "--allowlist", allowed, "--mypy-config-file", str(config), cwd=tmp_path
    )

    assert "Success" in out
