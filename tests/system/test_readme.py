"""The README does what it says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from support import run_python

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="needs a checkout: the README is not installed")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_examples_run(ring_base: Path, tmp_path: Path) -> None:
    """In the order of the page, in one program, whose steps then stand in the store."""
    store = tmp_path / "store.db"
    code = "".join(blocks("python")) + "import sys; sys.exit(not tcc.flush(20))"
    run_python(code, {"PICOSTEP_TO": f"store:{store}", "PICOSTEP_DIR": str(ring_base)})
    shown = run_python(
        "from picostep.cli import main; main()", args=("runs", "--json", "--store", str(store))
    )
    assert '"chat-42"' in shown.stdout


def test_ci_runs_the_second_line() -> None:
    _, second = blocks("sh")
    assert second in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_figures_are_those_that_were_measured() -> None:
    """The README's table and RESULTS.md are what the committed results give."""
    report = runpy.run_path(str(ROOT / "benchmarks" / "report.py"))
    found = report["results"]()
    assert report["readme"](found) in README.read_text(encoding="utf-8")
    assert report["render"](found) == (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
