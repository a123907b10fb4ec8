"""Imports point one way, modules stay short, names say what a thing is: read from the sources, not loaded."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES, CORE = ROOT / "src" / "picostep", ROOT / "ext" / "picostep"

pytestmark = pytest.mark.skipif(not CORE.is_dir(), reason="the sources are not here")

# The rooms of docs/architecture.md from bottom to top: each imports only what stands before it, at its top
# and in its functions alike. `package` is `picostep` itself, which has the names that users see.
ORDER = (
    *("errors", "amounts", "times", "usage", "record", "settings"),
    *("_clock", "_context", "_ids", "_ring", "_keeper", "_api", "ringdir"),
    *("prices", "_payload", "payload", "store", "sinks", "metrics", "exporter"),
    *("launch", "runtime", "api", "asgi", "config", "redaction", "package", "demo", "cli", "__main__"),
)
PART_OF = {"_cost": "prices"}  # a compiled half calls its Python half back

MOST_LINES = 700

MODULES_THAT_LIE = {
    *(
        "recorder",
        "_records",
        "export",
        "prepare",
        "ended",
        "live",
        "inbox",
        "outlet",
        "channel",
        "settingsfile",
    ),
    *("otelenv", "store_reader"),
}
NAMES_THAT_LIE = {
    *("tend", "help", "heed", "stumble", "announce", "note", "look"),
    *("Live", "Inbox", "DirectoryInbox", "Outlet", "Channel"),
}


def modules() -> list[tuple[str, Path]]:
    """Return the names of all modules, without `picostep.`, and their files; a compiled one may have two."""
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        parts = path.relative_to(SOURCES).with_suffix("").parts
        found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    compiled = [path for kind in ("pyx", "pxd") for path in sorted(CORE.glob(f"*.{kind}"))]
    return found + [(path.stem, path) for path in compiled if path.stem != "__init__"]


def room(module: str) -> str:
    name = module.partition(".")[0] or "package"
    return PART_OF.get(name, name)


class Imports(ast.NodeVisitor):
    """Collects what is imported anywhere in a module, but for what only type checkers read."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def visit_If(self, node: ast.If) -> None:
        unread = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.orelse if unread else [node.test, *node.body, *node.orelse]:
            self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name, "") for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "imports are absolute"
        self.found += [(node.module or "", alias.name) for alias in node.names]


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield module and name, "" for a module as a whole."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        visitor = Imports()
        visitor.visit(ast.parse(text))
        yield from visitor.found
        return
    for module, listed in re.findall(
        r"^ *from +(picostep[\w.]*) +c?import +(\([^)]+\)|.+)$", text, re.MULTILINE
    ):
        yield from ((module, name.split(" as ")[0].strip()) for name in listed.strip("()").split(","))
    yield from ((module, "") for module in re.findall(r"^ *c?import +(picostep[\w.]*)", text, re.MULTILINE))


def edges() -> dict[str, dict[str, str]]:
    """Return for each room the rooms that it imports, and for each of these a module that does so."""
    known = {name for name, _ in modules()}
    found: dict[str, dict[str, str]] = {}
    for importer, path in modules():
        for module, name in imports(path):
            if module.partition(".")[0] != "picostep":
                continue
            target = module.partition(".")[2]
            if f"{target}.{name}".lstrip(".") in known:
                target = f"{target}.{name}".lstrip(".")
            assert target in known, f"{path.name} imports picostep.{target}, which is not there"
            if name == "__version__":  # Python loads the package before any module of it
                continue
            if room(target) != room(importer):
                found.setdefault(room(importer), {})[room(target)] = path.name
    return found


def test_every_room_has_its_place() -> None:
    rooms = {room(module) for module, _ in modules()}

    assert rooms - set(ORDER) == set()
    assert len(ORDER) == len(set(ORDER))


def test_imports_point_one_way() -> None:
    """So there is no cycle, either."""
    place = {name: index for index, name in enumerate(ORDER)}

    assert [
        f"{importer} ({where}) imports {target}"
        for importer, targets in edges().items()
        for target, where in targets.items()
        if place[target] >= place[importer]
    ] == []


def test_the_graph_is_seen() -> None:
    """Imports of all kinds: at the top, in functions, of compiled modules and by them."""
    found = edges()

    assert {"settings", "launch", "_api", "_ring", "prices"} <= found["runtime"].keys()
    assert {"exporter", "_keeper"} == found["launch"].keys()
    assert {"_ring", "errors"} <= found["_api"].keys()
    assert "_cost" not in found["prices"]
    assert found["amounts"].keys() == {"errors"}


def test_no_module_is_long() -> None:
    """Stubs apart: most of these are docstrings, which a tool copies."""
    lengths = {
        str(path.relative_to(SOURCES)): len(path.read_text(encoding="utf-8").splitlines())
        for path in SOURCES.rglob("*.py")
    }

    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def names(path: Path) -> Iterator[str]:
    """Yield the names of functions and classes that a file defines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".py", ".pyi"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield node.name
    else:
        yield from re.findall(r"^ *(?:cp?def class|class|def|cpdef [\w ]+?) +(\w+)", text, re.MULTILINE)


def test_no_name_lies() -> None:
    """Names that meant several things, or said nothing of what they do."""
    files = [*(path for _, path in modules()), *SOURCES.rglob("*.pyi"), *CORE.glob("*.pxi")]
    assert sum(1 for path in files for _ in names(path)) > 500

    assert {each for module, _ in modules() for each in module.split(".")} & MODULES_THAT_LIE == set()
    assert (
        sorted(f"{path.name}: {name}" for path in files for name in names(path) if name in NAMES_THAT_LIE)
        == []
    )
