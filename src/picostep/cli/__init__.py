"""
The command line, `picostep …`.

Needs the extra `cli`; this module alone does not, so that it can say so.
"""

from __future__ import annotations

import sys

__all__ = ["main"]

_EXTRA = ("click", "ddsketch", "rich")


def main() -> None:
    """Run the command that the process was started with, and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that is not UTF-8 gets escapes, not an exception
            stream.reconfigure(errors="backslashreplace")
    try:
        from picostep.cli.commands import picostep

        picostep(prog_name="picostep")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        sys.exit(_without_extra())


def _without_extra() -> int:
    print("picostep's command line needs the extra: pip install 'picostep[cli]'", file=sys.stderr)
    return 2
