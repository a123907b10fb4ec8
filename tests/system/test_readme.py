"""The README does what it says."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import runpy
from pathlib import Path

import pytest

import models
from support import Ingest, run_python

HERE = Path(models.__file__).parent
ROOT = next(path for path in HERE.parents if (path / "pyproject.toml").exists())
README = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not README.exists(), reason="needs a checkout: the README is not installed")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_example_runs(ring_base: Path, tmp_path: Path) -> None:
    """By OpenAI's client where it is installed; what it asked and got then stands in the store."""
    (code,) = blocks("python")
    store = tmp_path / "store.db"
    path = [] if importlib.util.find_spec("openai") else [str(HERE / "data" / "stand_in")]
    with Ingest() as server:
        server.default = models.answer
        run_python(
            code + "assert tcc.flush(20)",
            {
                **models.settings(server.url),
                "PYTHONPATH": os.pathsep.join(path),
                "PICOSTEP_TO": f"store:{store}",
                "PICOSTEP_DIR": str(ring_base),
            },
        )
        (asked,) = server.requests

    def shown(*arguments: str) -> dict[str, object]:
        command = run_python(
            "from picostep.cli import main; main()", args=(*arguments, "--json", "--store", str(store))
        )
        found: dict[str, object] = json.loads(command.stdout)
        return found

    (run,) = shown("runs")["runs"]  # type: ignore[misc]
    assert run["session_id"] == "chat-42"
    (step,) = shown("show", run["run_id"])["steps"]  # type: ignore[misc]
    assert step["prompt"] == json.dumps(asked.json()["messages"])
    assert step["response"] == models.ANSWER
    assert step["model_used"] == "gpt-4o-2024-08-06"
    # 8 of the 19 prompt tokens were read from the cache.
    counts = [step[f"{name}_tokens"] for name in ("prompt_uncached", "prompt_cached", "completion")]
    assert counts == [11, 8, 10]
    assert step["cost_status"] == "priced"


def test_ci_runs_the_second_line() -> None:
    _, second = blocks("sh")
    assert second in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_figures_are_those_that_were_measured() -> None:
    """The README's table and RESULTS.md are what the committed results give."""
    report = runpy.run_path(str(ROOT / "benchmarks" / "report.py"))
    found = report["results"]()
    assert report["readme"](found) in README.read_text(encoding="utf-8")
    assert report["render"](found) == (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
