"""How a command fails: a line for people, an object for programs, an exit code; never a traceback."""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any, NoReturn

import click

from picostep.cli.text import clean
from picostep.errors import ConfigError, PicostepError
from picostep.store.read import AmbiguousRun, NoStore

__all__ = ["IO_FAILED", "NOT_FOUND", "READER_GONE", "USAGE", "Commands", "Failure"]

NOT_FOUND = 1
USAGE = 2
IO_FAILED = 3
INTERRUPTED = 130
READER_GONE = 141  # what a shell reports for a program that died of SIGPIPE

_KINDS = {NOT_FOUND: "not_found", USAGE: "usage", IO_FAILED: "io"}


class Failure(click.ClickException):
    """
    What a command could not do.

    Args:
        message: One sentence without a full stop.

        exit_code: `NOT_FOUND`, `USAGE` or `IO_FAILED`.

        hint: What to try; printed on lines of its own.
    """

    def __init__(self, message: str, exit_code: int, hint: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # what click's manual tells to do
        self.hint = hint
        self.as_json = False

    def show(self, file: IO[Any] | None = None) -> None:
        """Print to standard error."""
        colors = False if os.environ.get("NO_COLOR") else None  # None: if it is a terminal
        click.echo(self._json() if self.as_json else self._text(), file=file, err=True, color=colors)

    def _text(self) -> str:
        hint = "".join(f"\n  {clean(line)}" for line in self.hint.splitlines())
        return f"{click.style('error', fg='red', bold=True)}: {clean(self.message)}{hint}"

    def _json(self) -> str:
        error = {"kind": _KINDS[self.exit_code], "exit_code": self.exit_code, "message": self.message}
        return json.dumps({"error": {**error, "hint": self.hint} if self.hint else error})


class Commands(click.Group):
    """A group whose commands end by a `Failure` where they meet an expected exception."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = "--json" in args  # usage errors come before the option is read
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if not ctx.obj:
                raise
            failure = Failure(error.format_message(), USAGE)
        except Failure as error:
            failure = error
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            _leave_quietly(ctx)
        except (PicostepError, OSError) as error:
            _give_up_output()
            failure = _expected(error)
        failure.as_json = ctx.obj
        raise failure


def _expected(error: PicostepError | OSError) -> Failure:
    if isinstance(error, NoStore):
        return Failure(str(error), NOT_FOUND, "Record something first: picostep demo")
    if isinstance(error, AmbiguousRun):
        return Failure(str(error), NOT_FOUND, "\n".join(["It may be:", *error.candidates]))
    if isinstance(error, ConfigError):
        return Failure(str(error), USAGE)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return Failure(f"{where}{error.strerror}", IO_FAILED)
    return Failure(str(error), IO_FAILED)


def _give_up_output() -> None:
    """If output cannot be written, throw away what waits for it: the last flush would complain again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave_quietly(ctx: click.Context) -> NoReturn:
    """End without a word when the reader of our output has gone, as in `picostep runs | head -1`."""
    _give_up_output()
    ctx.exit(READER_GONE)
