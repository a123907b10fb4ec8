"""
Docstrings of the stubs, from the compiled modules: `python tools/stubs.py --write`, or `--check`.

A docstring is written once, in the `.pyx`, where `help()` finds it at run time. An editor reads the `.pyi`
instead, so this copies it there. What can have none at run time (constants) is left as it is. Build the core
first.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import WrapperDescriptorType
from typing import TypeAlias

SOURCES = Path(__file__).resolve().parent.parent / "src" / "picostep"

Documented: TypeAlias = ast.Module | ast.ClassDef | ast.FunctionDef


Found: TypeAlias = tuple[str, Documented, str]
"""What a stub and its module both have: its name, its place in the stub, its docstring or ""."""


def documented(node: ast.Module | ast.ClassDef, thing: object, name: str) -> Iterator[Found]:
    """Yield a module or class and all that is in it."""
    yield name, node, docstring(thing)
    for child in node.body:
        if not isinstance(child, (ast.ClassDef, ast.FunctionDef)) or child.name not in vars(thing):
            continue  # only type checkers know it
        inner = getattr(thing, child.name)
        if isinstance(child, ast.ClassDef):
            yield from documented(child, inner, f"{name}.{child.name}")
        elif child.name != "__new__" and not isinstance(inner, WrapperDescriptorType):
            # Those have a docstring that Python gives to all of their name.
            yield f"{name}.{child.name}", child, docstring(inner)


def docstring(thing: object) -> str:
    return inspect.cleandoc(getattr(thing, "__doc__", None) or "")


def compared(path: Path) -> list[Found]:
    """Return what a stub shares with the module that was compiled for it, in the order of the stub."""
    module = importlib.import_module(f"picostep.{path.stem}")
    return list(documented(ast.parse(path.read_text(encoding="utf-8")), module, module.__name__))


def differences() -> list[str]:
    """Return the names of all that has another docstring in its stub than at run time."""
    return [
        name
        for path in sorted(SOURCES.glob("*.pyi"))
        for name, node, text in compared(path)
        if (ast.get_docstring(node) or "") != text
    ]


def rewritten(path: Path) -> str:
    """Return a stub with the docstrings of its module."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for _, node, text in reversed(compared(path)):
        indent = "" if isinstance(node, ast.Module) else " " * (node.col_offset + 4)
        quoted = [f'{indent}"""{text}"""'] if text and "\n" not in text else []
        if "\n" in text:
            quoted = [f"{indent}{line}".rstrip() for line in ['"""', *text.splitlines(), '"""']]
        first = node.body[0]
        begin = min([first.lineno, *(one.lineno for one in getattr(first, "decorator_list", []))]) - 1
        end = begin
        if ast.get_docstring(node) is not None or is_ellipsis(first):  # in its place, else before it
            end = first.end_lineno or begin
        head = lines[begin][: first.col_offset].strip()  # the body of `def f(): ...` is on its line
        if head and end > begin:
            quoted.insert(0, lines[begin][: first.col_offset].rstrip())
        if len(node.body) == 1 and not text and end > begin:
            quoted = [f"{quoted[0]} ..."] if quoted else [f"{indent}..."]
        lines[begin:end] = quoted
    return "\n".join(lines) + "\n"


def is_ellipsis(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and statement.value.value is Ellipsis
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="put the docstrings into the stubs")
    what.add_argument("--check", action="store_true", help="only say which differ")
    if parser.parse_args().check:
        different = differences()
        print(*different, sep="\n", end="\n" if different else "")
        return bool(different)
    for path in sorted(SOURCES.glob("*.pyi")):
        path.write_text(rewritten(path), encoding="utf-8")
    formatted = subprocess.run([sys.executable, "-m", "ruff", "format", *SOURCES.glob("*.pyi")], check=False)
    return formatted.returncode


if __name__ == "__main__":
    sys.exit(main())
