"""
The pages docs/reference/api.md and cli.md: `python tools/reference.py --write`, or `--check`.

The first is made of the signatures and docstrings of the public modules, as an editor reads them; the second
of the commands themselves. Needs the extra `cli`.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import click

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
SOURCES = ROOT / "src"
PUBLIC = ["picostep", "picostep.asgi", "picostep.prices", "picostep.sinks"]
"""The modules whose `__all__` is described."""

WIDTH = 120  # of a line
PRIVATE = re.compile(r"\b_([A-Z]\w+)")  # names of types that only stubs have

Node: TypeAlias = ast.ClassDef | ast.FunctionDef


# --- functions and classes --------------------------------------------------------------------------------


def api() -> str:
    """Return the page of functions and classes."""
    parts = [
        "# Functions and classes",
        "This page is made by `python tools/reference.py --write`; do not edit it. `help()` and your editor "
        "say the same. [Versions](versions.md) says which names are public.",
        "A *Time* is an aware `datetime`, or ISO 8601 text with an offset. A *Body* is a text, or a list or "
        "dict that has a JSON form. A *Cost* is an int, a float or a `Decimal`.",
    ]
    for name in PUBLIC:
        module = Module(name)
        parts.append(f"## {name}")
        for member in sorted(module.names("__all__"), key=module.rank):
            parts += module.described(member)
    return "\n\n".join(map(wrapped, parts)) + "\n"


def wrapped(part: str) -> str:
    """Return a paragraph or list in lines that are not long; code and tables as they are."""
    if part[0] in "`|":
        return part
    lines = [
        textwrap.fill(line, WIDTH, subsequent_indent="  " if line[:2] == "- " else "", break_on_hyphens=False)
        for line in part.splitlines()
    ]
    return "\n".join(lines)


class Module:
    """The source of a module, or its stub where it is compiled."""

    def __init__(self, name: str) -> None:
        path = SOURCES / name.replace(".", "/")
        places = [path / "__init__.py", path.with_suffix(".pyi"), path.with_suffix(".py")]
        self.tree = ast.parse(next(place for place in places if place.exists()).read_text(encoding="utf-8"))
        self.nodes = {
            node.name: node for node in self.tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        }
        self.imported = {
            alias.name: node.module
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("picostep")
            for alias in node.names
        }

    def names(self, variable: str) -> list[str]:
        """Return the texts of a list that is assigned to a variable."""
        (value,) = [
            node.value
            for node in self.tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == variable
        ]
        return list(ast.literal_eval(value))

    def rank(self, name: str) -> int:
        """Return 0 for functions, 1 for classes, 2 for exceptions: the order on the page."""
        if name not in self.nodes:
            return Module(self.imported[name]).rank(name) if name in self.imported else 0
        node = self.nodes[name]
        if isinstance(node, ast.FunctionDef):
            return 0
        return 2 if name.endswith("Error") or "Error" in ast.unparse(node).partition(":")[0] else 1

    def described(self, name: str) -> list[str]:
        """Return a heading, the signature and the docstring of a name, and of what is in it."""
        if name not in self.nodes:
            return Module(self.imported[name]).described(name) if name in self.imported else []
        node = self.nodes[name]
        if isinstance(node, ast.FunctionDef):
            return [f"### {name}()", fenced(signature(node)), *readable(node)]
        return [f"### {name}", *constructor(node), *readable(node), *self.members(node)]

    def members(self, node: ast.ClassDef) -> Iterator[str]:
        """Yield the methods and properties of a class that have a docstring, those of its bases first."""
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id.startswith("_") and base.id in self.nodes:
                found = self.nodes[base.id]
                assert isinstance(found, ast.ClassDef)
                yield from self.members(found)
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and ast.get_docstring(member) and member.name[0] != "_":
                is_property = any(ast.unparse(one) == "property" for one in member.decorator_list)
                yield f"#### {member.name}{'' if is_property else '()'}"
                if not is_property:
                    yield fenced(signature(member))
                yield from readable(member)


def constructor(node: ast.ClassDef) -> list[str]:
    """Return how an object is made, where it takes arguments."""
    for member in node.body:
        if (
            isinstance(member, ast.FunctionDef)
            and member.name == "__init__"
            and "made_by" not in ast.unparse(member)
        ):
            member.name, member.returns = node.name, None
            return [fenced(signature(member))]
    return []


def signature(node: ast.FunctionDef) -> str:
    """Return the signature without `self`, on several lines where it is long."""
    names = [one.arg for one in [*node.args.posonlyargs, *node.args.args]]
    arguments = split(PRIVATE.sub(r"\1", ast.unparse(node.args)))
    if names and names[0] in ("self", "cls"):
        arguments = [one for one in arguments[1:] if one != "/"]
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({', '.join(arguments)}){returns}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{node.name}(", *(f"    {one}," for one in arguments), f"){returns}"])


def split(arguments: str) -> list[str]:
    """Return the arguments of a signature, which commas in brackets do not separate."""
    found, depth = [""], 0
    for char in arguments:
        depth += (char in "[(") - (char in "])")
        if char == "," and depth == 0:
            found.append("")
        else:
            found[-1] += char
    return [one.strip() for one in found]


def fenced(code: str) -> str:
    return f"```\n{code}\n```"


def readable(node: Node) -> list[str]:
    """Return a docstring as Markdown: sections become lists."""
    parts: list[str] = []
    for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
        first, _, rest = paragraph.partition("\n")
        if re.fullmatch(r"(Args|Returns|Raises|Attributes|Examples):", first):
            listed = items(rest)
            parts += [f"**{first}**", listed] if listed.startswith("- ") else [f"**{first}** {listed}"]
        elif paragraph.startswith("    ") and parts:  # goes on with the section
            parts[-1] += "\n" + items(paragraph)
        else:
            parts.append(" ".join(paragraph.split()))
    return [part for part in parts if part]


def items(text: str) -> str:
    """Return the entries of a section as a list; a text without entries as it is."""
    found: list[str] = []
    for line in text.splitlines():
        entry = re.fullmatch(r"    ([\w*]+(?:, [\w*]+)*): (.*)", line)
        if entry:
            found.append(f"- `{entry[1]}`: {entry[2]}")
        elif found:
            found[-1] += f" {line.strip()}"
        else:
            found.append(line.strip())
    return "\n".join(found) if found[0].startswith("- ") else " ".join(found)


# --- commands ---------------------------------------------------------------------------------------------


def cli() -> str:
    """Return the page of commands."""
    from picostep.cli.commands import picostep

    parts = [
        "# Command line",
        "This page is made by `python tools/reference.py --write`; do not edit it. The commands need the "
        "extra `cli`: `pip install '.[cli]'`. Each of them says the same with `--help`.",
        plain(picostep.epilog or ""),
    ]
    for path, command in commands(picostep, "picostep"):
        parts += [f"## {path}", fenced(" ".join([path, *usage(command)])), plain(command.help or "")]
        options = [line for parameter in command.params if (line := option(parameter))]
        if options:
            parts.append("\n".join(["| option | |", "|---|---|", *options]))
    return "\n\n".join(wrapped(part) for part in parts if part) + "\n"


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield all commands that do something, in the order in which help lists them."""
    context = click.Context(group, info_name=path)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def usage(command: click.Command) -> list[str]:
    return command.collect_usage_pieces(click.Context(command))


def option(parameter: click.Parameter) -> str:
    """Return a row of a table, or "" for an argument, which the usage shows."""
    if not isinstance(parameter, click.Option):
        return ""
    value = parameter.metavar or parameter.type.name.partition(" ")[0].upper()
    if isinstance(parameter.type, click.Choice):
        value = "|".join(map(str, parameter.type.choices))
    names = f"{', '.join(parameter.opts)}{'' if parameter.is_flag else f' {value}'}"
    words = " ".join((parameter.help or "").split())
    if parameter.show_default:
        default = parameter.default if parameter.show_default is True else parameter.show_default
        words += f" [default: {default}]"
    return "| `{}` | {} |".format(*(text.replace("|", r"\|") for text in (names, words)))


def plain(text: str) -> str:
    """Return a help text as Markdown: what click is not to wrap becomes code."""
    parts = []
    for paragraph in re.sub(r"\n[ \t]+\n", "\n\n", text).split("\n\n"):
        lines = paragraph.strip("\n").splitlines()
        if lines and lines[0].strip() == "\b":
            parts.append(fenced("\n".join(lines[1:])))
        else:
            parts.append(" ".join(paragraph.split()))
    return "\n\n".join(part for part in parts if part)


WRITTEN: dict[str, Callable[[], str]] = {"api.md": api, "cli.md": cli}


def differences() -> list[str]:
    """Return the names of the pages that are not as they would be written."""
    return [name for name, made in WRITTEN.items() if (PAGES / name).read_text(encoding="utf-8") != made()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write the pages")
    what.add_argument("--check", action="store_true", help="only say which are out of date")
    if parser.parse_args().check:
        different = differences()
        print(*different, sep="\n", end="\n" if different else "")
        return bool(different)
    for name, made in WRITTEN.items():
        (PAGES / name).write_text(made(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
