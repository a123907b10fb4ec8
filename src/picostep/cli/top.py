"""What all exporters of this user count, over the last seconds, for `picostep top`."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from picostep.cli import spools
from picostep.cli.rings import Directory, look
from picostep.exporter.top_socket import NoAnswer, ask
from picostep.metrics.aggregate import Steps
from picostep.ringdir import RingDirError, open_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from picostep.metrics.aggregate import Snapshot

__all__ = ["Load", "Tally", "Watch"]


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
        self.look()
        time.sleep(seconds)
        return self.look()

    def every(self, seconds: float) -> Iterator[Load]:
        """Look again and again, for ever."""
        while True:
            yield self.look()
            time.sleep(seconds)

    def look(self) -> Load:
        """Ask everybody, and return what has come since as many earlier calls as there are intervals."""
        new: dict[str, Tally] = {}
        problems: dict[str, str] = {}
        exporters = 0
        directories = look(self._base, "", 0)
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
