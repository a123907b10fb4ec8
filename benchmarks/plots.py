"""The plots of RESULTS.md and of the README, as SVG, by matplotlib."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from texts import SIZES

PLOTS = Path(__file__).parent / "plots"
Result = dict[str, Any]

# The same input gives the same file; text stays text; readable on a dark page too.
matplotlib.use("svg")
matplotlib.rcParams.update(
    {
        "svg.hashsalt": "picostep",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "figure.facecolor": "white",
    }
)
OWN, BASELINE = "#c2410c", "#111827"
BASELINES = {"dataclass", "orjson", "floor"}


def draw(found: dict[str, Result]) -> None:
    """Draw all plots of what was measured."""
    PLOTS.mkdir(exist_ok=True)
    for kind, plots in DRAWN.items():
        if kind in found:
            for name, plot in plots.items():
                figure = plot(found[kind])
                path = PLOTS / f"{name}.svg"
                figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
                pyplot.close(figure)
                lines = path.read_text(encoding="utf-8").splitlines()
                path.write_text("".join(f"{line.rstrip()}\n" for line in lines), encoding="utf-8")


def _lines(axes: Axes, result: Result, points: Callable[[Result], tuple[list[float], list[float]]]) -> None:
    colours = iter(pyplot.get_cmap("tab10").colors)  # type: ignore[attr-defined]
    for one in result["peers"]:
        if one["error"]:
            continue
        own = one["key"].startswith("picostep")
        baseline = one["key"] in BASELINES
        style = {"picostep-thread": "--", "dataclass": "--", "orjson": "-.", "floor": ":"}.get(
            one["key"], "-"
        )
        axes.plot(
            *points(one),
            style,
            label=one["title"],
            color=OWN if own else BASELINE if baseline else next(colours),
            linewidth=2.2 if own else 1.2,
        )


def sizes(result: Result) -> Figure:
    """The median step against its payload, both logarithmic."""
    figure, axes = pyplot.subplots(figsize=(7.2, 4.4))
    _lines(
        axes,
        result,
        lambda one: (
            [SIZES[size] / 1000 for size in one["sizes"]],
            [found["median"] / 1000 for found in one["sizes"].values()],
        ),
    )
    axes.set(xscale="log", yscale="log", xlabel="KB of text in a step", ylabel="µs per step, median")
    ticks = [value / 1000 for value in SIZES.values()]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def tail(result: Result) -> Figure:
    """The quantiles of a step, towards the worst, for each size."""
    shown = result["sizes"]
    figure, panels = pyplot.subplots(
        1, len(shown), figsize=(1.5 + 2.6 * len(shown), 4), sharey=True, squeeze=False
    )
    shares = result["shares"]
    for axes, size in zip(panels[0], shown, strict=True):

        def points(one: Result, size: str = size) -> tuple[list[float], list[float]]:
            found = one["sizes"][size]
            inside = [i for i, share in enumerate(shares) if (1 - share) * found["samples"] >= 1]
            return (
                [1 / (1 - shares[i]) for i in inside],
                [found["quantiles"][i] / 1000 for i in inside],
            )

        _lines(axes, result, points)
        axes.set(xscale="log", yscale="log", title=size.replace("KB", " KB"), xlabel="worst step of")
    panels[0][0].set_ylabel("µs per step, of the caller")
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def requests(result: Result) -> Figure:
    """The p99.9 of requests, as a multiple of that without recording in the same run: median and range."""
    cells = [cell for cell in result["cells"] if cell != "probe"]
    known = {
        key: one
        for key, one in result["contenders"].items()
        if not one["error"] and key != "nothing" and not key.endswith("-one-core")
    }
    figure, panels = pyplot.subplots(
        1, len(result["sizes"]), figsize=(2.0 + 3.2 * len(result["sizes"]), 5.0), sharey=True, squeeze=False
    )
    for axes, size in zip(panels[0], result["sizes"], strict=True):
        colours = iter(pyplot.get_cmap("tab10").colors)  # type: ignore[attr-defined]
        bases = result["contenders"]["nothing"]["sizes"][size]
        for place, (key, one) in enumerate(known.items()):
            found = [
                [
                    a["us"]["p99.9"] / b["us"]["p99.9"]
                    for a, b in zip(one["sizes"][size][cell], bases[cell], strict=True)
                ]
                for cell in cells
            ]
            middles = [statistics.median(ratios) for ratios in found]
            below = [middle - min(ratios) for middle, ratios in zip(middles, found, strict=True)]
            above = [max(ratios) - middle for middle, ratios in zip(middles, found, strict=True)]
            own, baseline = key.startswith("picostep"), key == "nothing-again"
            axes.errorbar(
                middles,
                [row + 0.12 * (place - len(known) / 2) for row in range(len(cells))],
                xerr=[below, above],
                fmt="s" if key == "picostep" else "o",
                markersize=4,
                linewidth=1,
                label=one["title"],
                color=OWN if own else BASELINE if baseline else next(colours),
            )
        axes.axvline(1.0, color=BASELINE, linewidth=0.8)
        axes.set(xscale="log", title=size.replace("KB", " KB"), xlabel="p99.9, times that of no recording")
    panels[0][0].set_yticks(range(len(cells)), cells)
    panels[0][0].invert_yaxis()
    panels[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def sustained(result: Result) -> Figure:
    """The CPU that a step takes in all, of recording and delivering it: median and range."""
    known = list(result["sustained"].items())
    figure, axes = pyplot.subplots(figsize=(7.2, 0.5 + 0.4 * len(known)))
    for row, (key, one) in enumerate(known):
        taken = [run["cpu"] / one["steps"] * 1e6 for run in one["runs"]]
        middle = statistics.median(taken)
        axes.barh(
            row,
            middle,
            xerr=[[middle - min(taken)], [max(taken) - middle]],
            color=OWN if key.startswith("picostep") else "#9ca3af",
        )
    axes.set_yticks(range(len(known)), [one["title"] for _, one in known])
    axes.invert_yaxis()
    axes.set_xlabel("µs of CPU per step, recorded and delivered on one core")
    return figure


DRAWN: dict[str, dict[str, Callable[[Result], Figure]]] = {
    "peers": {"peers-sizes": sizes, "peers-tail": tail},
    "tail": {"tail": requests},
    "delivery": {"delivery": sustained},
}
