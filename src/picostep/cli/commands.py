"""The commands: options in, text or JSON out. What they do is in the modules they call."""

from __future__ import annotations

import shlex
import time
from contextlib import suppress
from functools import partial
from typing import cast

import click

import picostep as package
from picostep.cli import shapes, spools
from picostep.cli.costs import costs_view
from picostep.cli.failures import IO_FAILED, NOT_FOUND, Commands, Failure
from picostep.cli.options import counts, moment
from picostep.cli.prices import explained, overrides, price_view, prices_view, refresh, tables
from picostep.cli.rings import scan, status_view
from picostep.cli.runs import demo_view, run_view, runs_view, tail_line
from picostep.cli.screen import Screen
from picostep.cli.service import log_to_stderr, serve
from picostep.cli.text import clean
from picostep.demo import NotStored, record
from picostep.payload import encode_local
from picostep.ringdir import EXTERNAL, base
from picostep.settings.destination import resolve_destination
from picostep.settings.table import Settings
from picostep.settings.urls import default_store
from picostep.store.file import prepare
from picostep.store.read import Cursor, GroupBy, NoStore, Row, StoreReader
from picostep.store.shapes import costs_object, row_object, run_object, runs_object

__all__ = ["picostep"]

_COST_LINES = 50  # of a report for people, unless they say
_POLL = 0.25  # seconds between looks of `tail -f`
_INTERVALS = 10  # that `top` sums up
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

_COUNT = click.IntRange(0)
_ARGUMENTS = {"prompt": "prompt_uncached", "cached": "prompt_cached"}


@click.group(
    cls=Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package.__version__, prog_name="picostep")
def picostep() -> None:
    """Look at recorded runs of LLM agents, and run the exporter.

    Without an account everything that a program records goes to a local store; `runs`, `show`, `tail`
    and `costs` read it. Try `picostep demo` first.
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
        click.echo(shapes.document(runs_object(reader.path, [detail.summary for detail in details])))
    else:
        option = "" if store is None else f" --store {shlex.quote(store)}"
        screen = Screen()
        screen.print(*demo_view(details, reader.path, option, screen.width))


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
        click.echo(shapes.document(runs_object(reader.path, found)))
    elif found:
        screen = Screen()
        screen.print(*runs_view(found, screen.width))
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
        click.echo(shapes.document(run_object(reader.path, detail)))
    else:
        Screen().print(*run_view(detail, full))


@picostep.command()
@_store
@_json
@click.option(
    "--by",
    type=click.Choice(["model", "day", "session", "run", "status"]),
    default="model",
    show_default=True,
    help="What a line is for. Days are UTC; status says how a cost is known, or why not.",
)
@click.option(
    "--since",
    metavar="TIME",
    callback=moment,
    help="Only steps that began then or later: 2026-11-23, an ISO time, 24h, 7d.",
)
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(1),
    help=f"Show at most this many lines.  [default: {_COST_LINES}; with --json all]",
)
def costs(store: str | None, as_json: bool, by: str, since: int | None, limit: int | None) -> None:
    """Sum up what steps cost.

    Costs were computed when the steps were recorded, or set by the program; sums are exact. Steps whose cost
    is not known are counted, and are not part of any sum.
    """
    reader = StoreReader(_store_path(store))
    grouped = cast("GroupBy", by)
    report = reader.costs(grouped, since or 0)
    if as_json:
        click.echo(shapes.document(costs_object(reader.path, report, grouped, since, limit)))
    elif report.lines:
        Screen().print(*costs_view(report, grouped, limit or _COST_LINES))
    else:
        click.echo(f"No such steps in {clean(str(reader.path))}.")


@picostep.command()
@click.argument("model")
@click.option("--provider", metavar="NAME", help="Who serves it; else the model's name must say so.")
@click.option("--tier", metavar="NAME", help="Service tier: batch, flex, priority …")
@click.option("--tokens", metavar="U,C,O", callback=counts, help="Tokens: uncached, cached, completion.")
@click.option("--prompt", type=_COUNT, help="Prompt tokens neither read from nor written to a cache.")
@click.option("--cached", type=_COUNT, help="Prompt tokens read from a cache.")
@click.option("--cache-write", type=_COUNT, help="Prompt tokens written to a cache.")
@click.option("--cache-write-1h", type=_COUNT, help="Those of them that live for an hour.")
@click.option("--completion", type=_COUNT, help="Generated tokens, reasoning included.")
@click.option("--reasoning", type=_COUNT, help="Those of them that are reasoning.")
@click.option("--at", metavar="TIME", callback=moment, help="When the step begins.  [default: now]")
@_json
def price(
    model: str,
    provider: str | None,
    tier: str | None,
    tokens: tuple[int, int, int] | None,
    at: int | None,
    as_json: bool,
    **given: int | None,
) -> None:
    """Explain the price of a model.

    Which rates hold and why, and what the given tokens cost. Prices of your own, in the file that
    PICOSTEP_PRICES names, come first.
    """
    numbers = {_ARGUMENTS.get(name, name): number for name, number in given.items() if number is not None}
    if tokens is not None:
        if any(given[name] is not None for name in ("prompt", "cached", "completion")):
            raise click.UsageError(
                "--tokens has the counts of --prompt, --cached and --completion: give either"
            )
        numbers |= dict(zip(("prompt_uncached", "prompt_cached", "completion"), tokens, strict=True))
    known = tables()
    found = explained(known, model, provider, tier, time.time_ns() if at is None else at, numbers)
    if as_json:
        click.echo(shapes.document(shapes.price(found, known.in_force)))
    else:
        Screen().print(*price_view(found, known.in_force))


@picostep.group()
def prices() -> None:
    """Look at the price table, or bring it up to date."""


@prices.command("show")
@_json
def show_prices(as_json: bool) -> None:
    """Show which price table is in force."""
    _show_prices(as_json)


@prices.command("refresh")
@_json
def refresh_prices(as_json: bool) -> None:
    """Make a price table from the installed genai-prices.

    Programs that record take it up within seconds. Costs that are already recorded stay as they are.
    Nothing is downloaded: `pip install --upgrade genai-prices` does that.
    """
    refresh()
    _show_prices(as_json)


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
    screen = Screen()
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
    target = resolve_destination(settings)
    own = EXTERNAL if settings.exporter == "external" else target.fingerprint
    found = scan(where, own, log)
    if as_json:
        click.echo(shapes.document(shapes.status(where, target, found)))
    elif found:
        Screen().print(*status_view(found, ", ".join(target.to)))
    else:
        click.echo(f"No rings in {clean(where)}: nothing of this user is being recorded.")


@picostep.command()
@_dir
@_json
@click.option("--once", is_flag=True, help="Print what one interval brings, and end; so without a terminal.")
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(0.1, 30),  # exporters count for 60 s after a look
    metavar="SECONDS",
    default=2.0,
    show_default=True,
    help="Between looks.",
)
def top(directory: str | None, as_json: bool, once: bool, interval: float) -> None:
    """Show what passes through all exporters of this user, until interrupted.

    Steps and tokens in a second, percentiles, errors and cost by model, over the last ten intervals; and what
    waits in rings and spools. Exporters count as long as somebody looks.
    """
    from picostep.cli.top import Watch, top_view  # loads what other commands need not have

    settings = Settings.resolve(dir=directory)
    where = base(settings.dir)
    watch = Watch(where, settings.spool, _INTERVALS)
    screen = Screen()
    if not once and not as_json and screen.takes_pages:
        with screen.pages() as show:
            for load in watch.every(interval):
                show(partial(top_view, load))
    load = watch.over(interval)
    if not load.exporters and not load.problems:
        raise Failure(f"no exporter is at work in {where}", NOT_FOUND, "One is started by what records.")
    if as_json:
        click.echo(shapes.document(shapes.top(where, load)))
    else:
        screen.print(*top_view(load, screen.width, None))


@picostep.command()
@click.argument("sink", required=False)
@click.option(
    "--dir",
    "directory",
    metavar="PATH",
    help="Where spools are.  [default: PICOSTEP_SPOOL, else the state directory]",
)
@_json
@click.option("--records", "what", flag_value="records", help="Print the records that wait, one JSON a line.")
@click.option("--dead", "what", flag_value="dead", help="Print what was refused for good, and why, likewise.")
def spool(sink: str | None, directory: str | None, as_json: bool, what: str | None) -> None:
    """Show what waits on disk for a sink that could not take it.

    SINK narrows it down to one spool; the beginning of its name will do. Nothing is changed: exporters
    deliver what is there as soon as the sink takes it.
    """
    settings = Settings.resolve(spool=directory)
    if not settings.spool:
        raise Failure("there are no spools: PICOSTEP_SPOOL is off, or no state directory is known", NOT_FOUND)
    found = [each for each in spools.waiting(settings.spool) if each.sink.startswith(sink or "")]
    if sink and not found:
        raise Failure(f"no spool {sink!r} in {settings.spool}", NOT_FOUND, "See them all: picostep spool")
    if what:
        for each in found:
            _print_spooled(settings.spool, each.sink, what)
        return
    target = resolve_destination(settings)
    names = {target.sink_fingerprint(spec): spec for spec in target.to}
    if as_json:
        click.echo(shapes.document(shapes.spool(settings.spool, names, found)))
    elif found:
        Screen().print(spools.spools_view(found, names))
    else:
        click.echo(f"Nothing was ever spooled in {clean(settings.spool)}.")


def _print_spooled(base: str, sink: str, what: str) -> None:
    if what == "dead":
        lines = spools.dead_letters(base, sink)
    else:
        lines = (encode_local(each) + b"\n" for each in spools.records(base, sink))
    for line in lines:
        click.echo(line, nl=False)


@picostep.command()
@click.option("--to", multiple=True, metavar="SINK", help="Where to send records; may be repeated.")
@_dir
@_json
@click.option("--once", is_flag=True, help="Deliver what is there, and end.")
@click.option(
    "--metrics",
    multiple=True,
    metavar="TARGET",
    help="Publish metrics; may be repeated: a port of 127.0.0.1 for Prometheus, or otlp:http://HOST:PORT.",
)
def export(
    to: tuple[str, ...], directory: str | None, as_json: bool, once: bool, metrics: tuple[str, ...]
) -> None:
    """Run the exporter in the foreground, as a sidecar or service.

    Serves the rings of programs that were started with PICOSTEP_EXPORTER=external, and of those that have
    the same settings as this command. Logs to standard error (with --json one object on a line). SIGTERM
    and SIGINT end it after the request under way.

    SINK is tcc, stdout, store:PATH, jsonl:PATH or otlp:URL. Metrics of what passes through are kept only if
    they are published; `pip install 'picostep[metrics]'` has what that needs.
    """
    settings = Settings.resolve(to=to or None, dir=directory)
    log_to_stderr(as_json, settings.debug)
    busy = serve(settings, once, metrics)
    if busy:
        where = ", ".join(busy)
        raise Failure(f"another exporter is at work in {where}", IO_FAILED, "It delivers what is there.")


def _print_records(screen: Screen, records: list[Row], as_json: bool) -> None:
    if as_json:
        for row in records:
            click.echo(shapes.line(row_object(row)))
    elif records:
        screen.print(*map(tail_line, records))


def _show_prices(as_json: bool) -> None:
    known = tables()
    if known.problem:
        raise Failure(
            f"the refreshed price table cannot be used: {known.problem}",
            IO_FAILED,
            f"The built-in table {known.built_in.table.id} is in force.\n"
            "Make it again: picostep prices refresh",
        )
    own = overrides()
    if as_json:
        click.echo(shapes.document(shapes.prices(known, own)))
    else:
        Screen().print(*prices_view(known, own))


def _store_path(given: str | None) -> str:
    if given is not None:
        return given
    specs = [spec.partition(":") for spec in Settings.resolve().to]
    return next((path for scheme, _, path in specs if scheme == "store"), default_store())
