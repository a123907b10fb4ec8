"""
Run Python code under valgrind: `python memcheck.py PROGRAM [argument]…`, as for the interpreter itself.

Only errors count in which picostep's core has a part: the interpreter keeps and touches what it likes. The
exit code is 1 if there are any, or if the program fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

TURNS = "20"
"""Of each scenario of a leak script; under valgrind the interpreter counts no blocks."""


def ours(error: ElementTree.Element) -> bool:
    """Whether our code is at work, and not Python code that it has called."""
    for frame in error.iterfind("stack/frame"):
        if "/picostep/_" in (frame.findtext("obj") or ""):
            return True
        if frame.findtext("fn") == "_PyEval_EvalFrameDefault":
            return False
    return False


def show(error: ElementTree.Element) -> str:
    what = error.findtext("what") or error.findtext("xwhat/text")
    places = [
        f"    {frame.findtext('fn') or '?'} ({frame.findtext('file') or frame.findtext('obj')}:"
        f"{frame.findtext('line') or '?'})"
        for frame in error.iterfind("stack/frame")
    ]
    return "\n".join([f"{error.findtext('kind')}: {what}", *places[:20]])


def main() -> int:
    program = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        options = [
            *("--xml=yes", f"--xml-file={report}", "--num-callers=40", "--leak-check=full"),
            *(
                "--show-leak-kinds=definite",
                "--errors-for-leak-kinds=definite",
                "--child-silent-after-fork=yes",
                # Before 3.12 CPython reads a digit of 0, which has none, and goes by it.
                "--undef-value-errors=no",
            ),
        ]
        if program[0].endswith(".py"):
            program.append(TURNS)
        env = {
            **os.environ,
            "PYTHONMALLOC": "malloc",
            "PICOSTEP_EXPORTER": "off",
            "PICOSTEP_DIR": directory,
            "PICOSTEP_TO": "stdout",
        }
        # sys.executable is the interpreter itself, where `python` may be a script that starts it.
        done = subprocess.run(["valgrind", *options, sys.executable, *program], env=env, check=False)
        errors = list(ElementTree.parse(report).iterfind("error"))
    found = [show(error) for error in errors if ours(error)]
    print(*found, f"{len(errors)} errors, {len(found)} of them ours", sep="\n")
    return 1 if found or done.returncode else 0


if __name__ == "__main__":
    raise SystemExit(main())
