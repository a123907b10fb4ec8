"""What all exporters of this user count, over the last seconds, and what `picostep top` prints of it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.text import Text

from picostep.cli import spools
from picostep.cli.rings import Directory, scan
from picostep.cli.screen import HEADING, PREVIEW, cropped, table
from picostep.cli.text import UNKNOWN, clean, cost, count, duration, one_line, rate, size
from picostep.exporter.top_socket import NoAnswer, ask
from picostep.metrics.aggregate import Steps
from picostep.ringdir import RingDirError, open_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from picostep.metrics.aggregate import Snapshot
    from picostep.metrics.histogram import Histogram

__all__ = ["Load", "Tally", "Watch", "top_view"]


@dataclass
class Tally:
    """Sums over steps, and how many of these have failed."""

    steps: Steps = field(default_factory=Steps)
    errors: int = 0

    def merge(self, other: Tally, sign: int = 1) -> None:
        """Add another one, or with `sign=-1` take it away."""
        self.steps.merge(other.steps, sign)
        self.errors += sign * other.errors


@dataclass(frozen=True)
class Load:
    """
    What there was to do in the last seconds.

    Attributes:
        seconds: How many.

        models: By the model that was used, else requested; "" for steps that name none. Those with the most
            steps come first.

        exporters: How many have answered.

        problems: Why others have not, by the names of their directories.

        in_ring, in_spool: Records that wait, now.

        fullest: How much of a ring is in use, of the one that is filled most: 0 to 1.

        dropped: Records that were given up, by all that is known of living and dead processes.

        spool_bytes: On disk, in the spools of this shell's settings.
    """

    seconds: float
    models: dict[str, Tally]
    exporters: int
    problems: dict[str, str]
    hosts: int
    in_ring: int
    in_spool: int
    fullest: float
    dropped: int
    spool_bytes: int

    def total(self) -> Tally:
        total = Tally()
        for tally in self.models.values():
            total.merge(tally)
        return total


class Watch:
    """
    Asks again and again.

    What an exporter has counted before it was asked first, for somebody else, is left out, and one that was
    started anew begins at nothing: no rate is negative.

    Args:
        base: From `ringdir.base()`.

        spool: Directory of spools, if there is one.

        intervals: How many of them sums are kept over.
    """

    def __init__(self, base: str, spool: str | None, intervals: int) -> None:
        self._base = base
        self._spool = spool
        self._known: dict[str, Snapshot] = {}
        self._last: deque[tuple[float, dict[str, Tally]]] = deque()
        self._intervals = intervals
        self._models: dict[str, Tally] = {}
        self._asked = time.monotonic()

    def over(self, seconds: float) -> Load:
        """Return what comes from now on until some seconds have passed."""
        self.scan()
        time.sleep(seconds)
        return self.scan()

    def every(self, seconds: float) -> Iterator[Load]:
        """Look again and again, for ever."""
        while True:
            yield self.scan()
            time.sleep(seconds)

    def scan(self) -> Load:
        """Ask everybody, and return what has come since as many earlier calls as there are intervals."""
        new: dict[str, Tally] = {}
        problems: dict[str, str] = {}
        exporters = 0
        directories = scan(self._base, "", 0)
        for directory in directories:
            try:
                found = self._ask(directory.name)
            except (NoAnswer, RingDirError) as error:
                problems[directory.name] = str(error)
                continue
            if found is not None:
                exporters += 1
                _add_news(new, self._known.get(directory.name), found)
                self._known[directory.name] = found
        now = time.monotonic()
        self._keep(now - self._asked, new)
        self._asked = now
        return self._load(directories, exporters, problems)

    def _ask(self, name: str) -> Snapshot | None:
        directory = open_dir(self._base, name, create=False)
        try:
            return ask(directory)
        finally:
            directory.close()

    def _keep(self, seconds: float, new: dict[str, Tally]) -> None:
        """Add what an interval has brought to the sums, and take the oldest away."""
        self._last.append((seconds, new))
        for model, tally in new.items():
            self._models.setdefault(model, Tally()).merge(tally)
        if len(self._last) > self._intervals:
            for model, tally in self._last.popleft()[1].items():
                self._models[model].merge(tally, -1)
                if not self._models[model].steps.count:
                    del self._models[model]

    def _load(self, directories: list[Directory], exporters: int, problems: dict[str, str]) -> Load:
        rings = [ring for each in directories for ring in each.rings if ring.counters is not None]
        counters = [ring.counters or {} for ring in rings]
        gone = [each.totals or {} for each in directories]
        return Load(
            seconds=sum(seconds for seconds, _ in self._last),
            models=dict(sorted(self._models.items(), key=lambda item: (-item[1].steps.count, item[0]))),
            exporters=exporters,
            problems=problems,
            hosts=sum(ring.state == "recording" for ring in rings),
            in_ring=sum(each["in_ring"] for each in counters),
            in_spool=sum(each["in_spool"] for each in counters),
            fullest=max((ring.backlog_bytes / ring.size_bytes for ring in rings), default=0.0),
            dropped=sum(sum(each.get("dropped", {}).values()) for each in (*counters, *gone)),
            spool_bytes=sum(each.bytes for each in spools.waiting(self._spool)) if self._spool else 0,
        )


def _add_news(new: dict[str, Tally], before: Snapshot | None, now: Snapshot) -> None:
    """Add, by model, what was counted between two answers of an exporter."""
    if before is None:
        return
    same = before.start_ns == now.start_ns  # else it counts anew, since some time after that answer
    for labels, steps in now.steps.items():
        earlier = before.steps.get(labels) if same else None
        steps = steps.copy()
        if earlier is not None:
            steps.merge(earlier, -1)
        if steps.count:
            errors = steps.count if labels.status == "error" else 0
            new.setdefault(labels.model_used or labels.model_requested, Tally()).merge(Tally(steps, errors))


# --- for people --------------------------------------------------------------------------------------------

_HOUR = 3600


def top_view(load: Load, width: int, height: int | None) -> Iterator[RenderableType]:
    """Lay out what there is to do now: sums, then as many models as there are lines for."""
    yield _top_title(load)
    for name, problem in sorted(load.problems.items()):
        yield cropped(f"  the exporter of {clean(name)} {one_line(problem, PREVIEW)}", "red")
    yield _top_waiting(load)
    if not load.exporters and not load.problems:
        yield cropped("No exporter is at work: waiting for one …", "yellow")
        return
    if not load.models:
        yield cropped(f"No step in {load.seconds:.3g} s.", "dim")
        return
    lines = list(load.models.items())
    room = len(lines) if height is None else max(1, height - _TOP_LINES - len(load.problems))
    yield Text()
    yield _top_table(load, lines[:room], width)
    if lines[room:]:
        yield cropped(f"{len(lines[room:])} more models are in the total", "dim")


_TOP_LINES = 7  # of all but models and problems: title, what waits, empty, header (2), total, more


def _top_title(load: Load) -> Text:
    exporters = f"{load.exporters} exporter{'s' if load.exporters != 1 else ''}"
    hosts = f"{load.hosts} process{'es' if load.hosts != 1 else ''}"
    title = Text.assemble(("picostep top", HEADING), f"   {exporters}, {hosts}   last {load.seconds:.3g} s")
    title.no_wrap, title.overflow = True, "ellipsis"
    return title


def _top_waiting(load: Load) -> Text:
    """Say what waits in rings and spools, and what is lost."""
    spooled = f" ({size(load.spool_bytes)})" if load.spool_bytes else ""
    made = Text(no_wrap=True, overflow="ellipsis")
    made.append(f"ring {load.fullest:.0%}", style="bold red" if load.fullest > 0.5 else "")
    made.append(f", {count(load.in_ring)} records   ")
    made.append(f"spool {count(load.in_spool)} records{spooled}", style="yellow" if load.in_spool else "")
    made.append("   ")
    made.append(f"dropped {count(load.dropped)}", style="bold red" if load.dropped else "")
    return made


@dataclass(frozen=True)
class _TopColumn:
    header: str
    cell: Callable[[Tally, float], str]
    style: Callable[[Tally], str] = lambda tally: ""


def _error_share(tally: Tally) -> str:
    return f"{tally.errors / tally.steps.count:.1%}" if tally.errors else "0"


def _hourly(tally: Tally, seconds: float) -> str:
    steps = tally.steps
    known = None if steps.unpriced == steps.count else round(steps.cost_pico * _HOUR / seconds)
    return cost(known, steps.count, steps.unpriced)


def _cached_share(tally: Tally) -> str:
    steps = tally.steps
    read = steps.prompt_uncached + steps.prompt_cached + steps.cache_write
    return f"{steps.prompt_cached / read:.0%}" if read else UNKNOWN


def _percentile(histogram: Histogram, share: float) -> str:
    found = histogram.quantile(share)
    return UNKNOWN if found is None else duration(round(found))


_TOP_COLUMNS = (
    _TopColumn("STEPS\n/s", lambda tally, seconds: rate(tally.steps.count, seconds)),
    _TopColumn(
        "\nERR", lambda tally, _: _error_share(tally), lambda tally: "bold red" if tally.errors else ""
    ),
    _TopColumn("DURATION\np50", lambda tally, _: _percentile(tally.steps.duration, 0.5)),
    _TopColumn("\np99", lambda tally, _: _percentile(tally.steps.duration, 0.99)),
    _TopColumn("FIRST TOKEN\np50", lambda tally, _: _percentile(tally.steps.first_token, 0.5)),
    _TopColumn("\np99", lambda tally, _: _percentile(tally.steps.first_token, 0.99)),
    _TopColumn("TOKENS/s\nin", lambda tally, seconds: rate(tally.steps.input_tokens.sum, seconds)),
    _TopColumn("\ncached", lambda tally, _: _cached_share(tally)),
    _TopColumn("\nout", lambda tally, seconds: rate(tally.steps.completion, seconds)),
    _TopColumn("COST\n/h", _hourly),
)
# What matters least, by its place, goes first where there is no room.
_TOP_EXPENDABLE = (7, 4, 5, 6, 2, 8, 9, 3, 1)
_SHORTEST_MODEL = 12  # columns
_LONGEST_MODEL = 40


def _top_table(load: Load, lines: Sequence[tuple[str, Tally]], width: int) -> Table:
    total = load.total()
    kept = list(range(len(_TOP_COLUMNS)))
    tallies = [*(tally for _, tally in lines), total]
    widths = [
        2
        + max(*map(len, each.header.split("\n")), *(len(each.cell(tally, load.seconds)) for tally in tallies))
        for each in _TOP_COLUMNS
    ]
    for place in _TOP_EXPENDABLE:
        if sum(widths[each] for each in kept) + _SHORTEST_MODEL <= width:
            break
        kept.remove(place)
    columns = [_TOP_COLUMNS[place] for place in kept]
    made = table()
    room = max(width - sum(widths[place] for place in kept), _SHORTEST_MODEL)
    made.add_column("MODEL", vertical="bottom", no_wrap=True, overflow="ellipsis", max_width=room - 2)
    for column in columns:
        made.add_column(column.header, justify="right", vertical="bottom", no_wrap=True)
    for name, tally in [*lines, ("total", total)]:
        shown = one_line(name, _LONGEST_MODEL) or "(no model)"
        cells = (Text(each.cell(tally, load.seconds), style=each.style(tally)) for each in columns)
        made.add_row(Text(shown), *cells, style="bold" if tally is total else "")
    return made
