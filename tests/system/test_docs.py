"""The documents: links lead somewhere, examples run, and what is made from code is as it would be made."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import re
import runpy
from pathlib import Path
from typing import NamedTuple

import pytest

import models
import picostep
from support import Ingest, run_python

ROOT = next(path for path in Path(__file__).parents if (path / "pyproject.toml").exists())
if not (ROOT / "README.md").exists():
    pytest.skip("needs a checkout: the README is not installed", allow_module_level=True)

PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks" / "RESULTS.md",
]
PROGRAMS = [ROOT / "docs" / "start.md", *sorted((ROOT / "docs" / "guides").glob("*.md"))]
LONGEST = 150  # characters of a line that is no table and no code


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number = 0
        while (numbered := f"{anchor}-{number}" if number else anchor) in found:
            number += 1
        found.add(numbered)
    return found


class Example(NamedTuple):
    """A fence of Python on a page."""

    code: str
    line: int


def examples(page: Path) -> list[Example]:
    text = page.read_text(encoding="utf-8")
    fences = re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [Example(match[1], text.count("\n", 0, match.start()) + 2) for match in fences]


def needed(code: str) -> set[str]:
    """Return the packages that an example imports and that are not here."""
    names = re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE)
    return {one for one in names if importlib.util.find_spec(one) is None}


# --- text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name(page)}: nothing at {target}"
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), (
                f"{name(page)}: no heading for {target}"
            )


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "RESULTS.md"], ids=name)
def test_lines_can_be_read(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    assert [line for line in text.splitlines() if len(line) > LONGEST and line[0] != "|"] == []


def test_every_page_is_in_the_index() -> None:
    """What nobody can find from docs/index.md, by one link or two, need not be written."""
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / target.partition("#")[0]).resolve()
        for target in re.findall(r"\]\(([^)\s]+)\)", index.read_text(encoding="utf-8"))
    }
    assert [
        name(page) for page in PAGES if page.is_relative_to(index.parent) and page not in {*linked, index}
    ] == []


def test_readme_fits_on_a_screen() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    words = re.findall(
        r"[^\W_][\w'-]*", re.sub(r"^\|.*$|<!--.*?-->|\]\([^)]*\)", "", text, flags=re.MULTILINE)
    )
    assert len(text.splitlines()) <= 120
    assert len(words) < 700


# --- examples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [ROOT / "README.md", *PROGRAMS], ids=name)
def test_examples_compile(page: Path) -> None:
    for example in examples(page):
        compile("\n" * (example.line - 1) + example.code, str(page), "exec")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PROGRAMS if examples(page)], ids=name)
def test_examples_run(page: Path, ring_base: Path, tmp_path: Path) -> None:
    """All of a page in one program, in their order; what it records is delivered."""
    code = "".join(example.code for example in examples(page))
    if missing := needed(code):
        pytest.skip(f"needs {', '.join(sorted(missing))}: nox -s guides has them")
    with Ingest() as server:
        server.default = models.answer
        run_python(
            code.replace("http://localhost:4318", server.url) + "import picostep; assert picostep.flush(20)",
            {
                **models.settings(server.url),
                "PICOSTEP_DIR": str(ring_base),
                "PICOSTEP_TO": f"store:{tmp_path}/db",
            },
            timeout=100,  # importing a client takes seconds
        )


def test_own_sink(ring_base: Path, tmp_path: Path) -> None:
    """The guide's sink, installed by the guide's entry point, gets what is recorded."""
    page = ROOT / "docs" / "guides" / "own-sink.md"
    (tmp_path / "queue_sink.py").write_text(examples(page)[0].code, encoding="utf-8")
    (entry,) = re.findall(r"^queue = \"(.*)\"$", page.read_text(encoding="utf-8"), re.MULTILINE)
    installed = tmp_path / "queue_sink-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: queue-sink\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(f"[picostep.sinks]\nqueue = {entry}\n")
    written = tmp_path / "queue.jsonl"

    run_python(
        "import picostep; picostep.send_step('r', prompt='', response='', model_used='m'); picostep.flush()",
        {"PYTHONPATH": str(tmp_path), "PICOSTEP_DIR": str(ring_base), "PICOSTEP_TO": f"queue:{written}"},
    )

    assert [json.loads(line) for line in written.read_text().splitlines()] == [
        {"kind": "step", "run": "r", "model": "m"}
    ]


def test_redaction_guide_says_what_is_stored(ring_base: Path, tmp_path: Path) -> None:
    page = ROOT / "docs" / "guides" / "redaction.md"
    (said,) = re.findall(r"^The store then holds `(.*)`$", page.read_text(encoding="utf-8"), re.MULTILINE)
    written = tmp_path / "lines"
    code = "".join(example.code for example in examples(page))

    run_python(
        code + "assert tcc.flush(20)", {"PICOSTEP_DIR": str(ring_base), "PICOSTEP_TO": f"jsonl:{written}"}
    )

    assert said in written.read_text(encoding="utf-8")


# --- what is made from code -------------------------------------------------------------------------------


def test_reference_says_what_the_code_says() -> None:
    """`python tools/reference.py --write` makes these pages."""
    pytest.importorskip("click")
    assert runpy.run_path(str(ROOT / "tools" / "reference.py"))["differences"]() == []


def test_editors_show_what_help_shows() -> None:
    """The docstrings of a stub are those of its module: `python tools/stubs.py --write` copies them."""
    assert runpy.run_path(str(ROOT / "tools" / "stubs.py"))["differences"]() == []


def test_each_module_is_public_or_not() -> None:
    """docs/reference/versions.md names every module without an underscore, and the public ones are there."""
    page = (ROOT / "docs" / "reference" / "versions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`picostep[^|]*) \|", page, re.MULTILINE)
    public = {one for row in rows for one in re.findall(r"`(picostep[.\w]*)`", row)}
    named = set(re.findall(r"`(picostep[.\w]*)`", page))

    modules = {
        f"picostep.{one.name}" for one in pkgutil.iter_modules(picostep.__path__) if one.name[0] != "_"
    }

    assert modules - named == set()
    assert public >= {"picostep", "picostep.prices", "picostep.sinks"}
    for one in public:
        importlib.import_module(one)
