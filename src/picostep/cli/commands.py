"""The commands: options in, text or JSON out. What they do is in the modules they call."""

from __future__ import annotations

import shlex
import time
from contextlib import suppress

import click

import picostep as package
from picostep.cli import shapes, views
from picostep.cli.failures import IO_FAILED, NOT_FOUND, Commands, Failure
from picostep.cli.rings import look
from picostep.cli.service import log_to_stderr, serve
from picostep.cli.text import clean
from picostep.config import Settings, default_store, destination
from picostep.demo import NotStored, record
from picostep.ringdir import EXTERNAL, base
from picostep.sinks.store import prepare
from picostep.sinks.store_reader import Cursor, NoStore, Row, StoreReader

__all__ = ["picostep"]

_POLL = 0.25  # seconds between looks of `tail -f`
_EPILOG = """\b
Exit codes:
  0    done
  1    not found, or nothing there yet
  2    wrong usage or configuration
  3    a file, directory or exporter failed
  130  interrupted
  141  the reader of the output went away
"""

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_store = click.option(
    "--store",
    metavar="PATH",
    help="The store to read.  [default: the store in PICOSTEP_TO, else the one used without settings]",
)
_dir = click.option(
    "--dir", "directory", metavar="PATH", help="Where rings are made.  [default: PICOSTEP_DIR, else /dev/shm]"
)


@click.group(
    cls=Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package.__version__, prog_name="picostep")
def picostep() -> None:
    """Look at recorded runs of LLM agents, and run the exporter.

    Without an account everything that a program records goes to a local store; `runs`, `show` and `tail`
    read it. Try `picostep demo` first.
    """


@picostep.command()
@click.option("--store", metavar="PATH", help="Where to record.  [default: the store used without settings]")
@_json
def demo(store: str | None, as_json: bool) -> None:
    """Record a small scripted agent, and show what came of it.

    Four runs through the public API and the real exporter; one fails. Everything stays on this machine, also
    when there is an API key.
    """
    reader = StoreReader(default_store() if store is None else store)
    prepare(reader.path)  # what is wrong with the file is better said now than as an exporter's error
    with suppress(NoStore):
        reader.runs(1)
    try:
        run_ids = record(str(reader.path))
    except NotStored as error:
        raise Failure(str(error), IO_FAILED, "What the exporter is doing: picostep status") from error
    details = [detail for detail in map(reader.run, run_ids) if detail]
    if as_json:
        click.echo(shapes.document(shapes.runs(reader.path, [detail.summary for detail in details])))
    else:
        option = "" if store is None else f" --store {shlex.quote(store)}"
        screen = views.Screen()
        screen.print(*views.demo(details, reader.path, option, screen.width))


@picostep.command()
@_store
@_json
@click.option(
    "-n", "--limit", type=click.IntRange(1), default=20, show_default=True, help="Show at most this many."
)
@click.option("--status", type=click.Choice(["ok", "error", "open"]), help="Only runs of this status.")
def runs(store: str | None, as_json: bool, limit: int, status: str | None) -> None:
    """List the latest runs.

    A run is `open` while its end is not recorded: it goes on, or its process died.
    """
    reader = StoreReader(_store_path(store))
    found = reader.runs(
        limit,
        status={"ok": 0, "error": 2}.get(status or ""),
        ended=status != "open",
        open=status in (None, "open"),
    )
    if as_json:
        click.echo(shapes.document(shapes.runs(reader.path, found)))
    elif found:
        screen = views.Screen()
        screen.print(views.runs_table(found, screen.width))
    else:
        click.echo(f"No such runs in {clean(str(reader.path))}.")


@picostep.command()
@click.argument("run")
@_store
@_json
@click.option("--full", is_flag=True, help="Print texts whole instead of their beginnings.")
def show(run: str, store: str | None, as_json: bool, full: bool) -> None:
    """Show one run with its timeline.

    RUN is a run id or the beginning of one.
    """
    reader = StoreReader(_store_path(store))
    detail = reader.run(run)
    if detail is None:
        raise Failure(f"no run {run!r} in {reader.path}", NOT_FOUND, "List them: picostep runs")
    if as_json:
        click.echo(shapes.document(shapes.detail(reader.path, detail)))
    else:
        views.Screen().print(*views.run_detail(detail, full))


@picostep.command()
@_store
@_json
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until interrupted.")
@click.option(
    "-n", "--lines", type=click.IntRange(0), default=10, show_default=True, help="Begin with this many."
)
def tail(store: str | None, as_json: bool, follow: bool, lines: int) -> None:
    """Print the records that came last, one on a line."""
    reader = StoreReader(_store_path(store))
    screen = views.Screen()
    try:
        records, cursor = reader.latest(lines)
    except NoStore:
        if not follow:
            raise
        click.echo(f"Waiting for {clean(str(reader.path))} …", err=True)
        records, cursor = [], Cursor()
    while True:
        _print_records(screen, records, as_json)
        if not follow:
            return
        time.sleep(_POLL)
        try:
            records, cursor = reader.since(cursor)
        except NoStore:  # not yet, or deleted; a new one begins at its first row
            records = []


@picostep.command()
@_dir
@_json
@click.option(
    "--log",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Lines of each log to show.",
)
def status(directory: str | None, as_json: bool, log: int) -> None:
    """Show rings, exporters and counters.

    There is one directory for each destination that programs of this user record for, and in it one ring
    for each process.

    A ring is `recording` while its process lives and `ended` after that. It is `in use` if somebody holds it
    and its process is not to be seen from here: an exporter drains what is left, or the process is in
    another container.
    """
    settings = Settings.resolve(dir=directory)
    where = base(settings.dir)
    target = destination(settings)
    own = EXTERNAL if settings.exporter == "external" else target.fingerprint
    found = look(where, own, log)
    if as_json:
        click.echo(shapes.document(shapes.status(where, target, found)))
    elif found:
        views.Screen().print(*views.status(found, ", ".join(target.to)))
    else:
        click.echo(f"No rings in {clean(where)}: nothing of this user is being recorded.")


@picostep.command()
@click.option("--to", multiple=True, metavar="SINK", help="Where to send records; may be repeated.")
@_dir
@_json
@click.option("--once", is_flag=True, help="Deliver what is there, and end.")
def export(to: tuple[str, ...], directory: str | None, as_json: bool, once: bool) -> None:
    """Run the exporter in the foreground, as a sidecar or service.

    Serves the rings of programs that were started with PICOSTEP_EXPORTER=external, and of those that have
    the same settings as this command. Logs to standard error (with --json one object on a line). SIGTERM
    and SIGINT end it after the request under way.

    SINK is tcc, stdout, store:PATH or jsonl:PATH.
    """
    settings = Settings.resolve(to=to or None, dir=directory)
    log_to_stderr(as_json, settings.debug)
    busy = serve(settings, once)
    if busy:
        where = ", ".join(busy)
        raise Failure(f"another exporter is at work in {where}", IO_FAILED, "It delivers what is there.")


def _print_records(screen: views.Screen, records: list[Row], as_json: bool) -> None:
    if as_json:
        for row in records:
            click.echo(shapes.line(shapes.record(row)))
    elif records:
        screen.print(*map(views.tail_line, records))


def _store_path(given: str | None) -> str:
    if given is not None:
        return given
    specs = [spec.partition(":") for spec in Settings.resolve().to]
    return next((path for scheme, _, path in specs if scheme == "store"), default_store())
