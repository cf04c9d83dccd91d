"""The picture of a sweep: accuracy over the size of the predictor, published results beside it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from nern.analysis.plots import INK, MUTED
from nern.files import atomic_path

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
PUBLISHED_MARKERS = ("D", "^", "s", "*", "v", "p", "h", "8")
LINEAR_DOWN_TO = -6.0  # points; a wider range is drawn linear near the original and logarithmic below
COLUMNS = 3
TICKS = (
    (6, (1, 2, 5)),
    (2.5, (1, 1.5, 2, 3, 5, 7)),
    (0, (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)),
)  # by highest over lowest


@dataclass
class Curve:
    """Results of one kind: at each number of parameters the gaps (points of accuracy to the original) of all seeds."""

    label: str
    points: list[tuple[int, list[float]]]

    def means(self) -> list[float]:
        """Of each point."""
        return [statistics.fmean(gaps) for _, gaps in self.points]

    def spreads(self) -> list[float]:
        """Standard deviation of each point's gaps; 0 of a single one."""
        return [statistics.stdev(gaps) if len(gaps) > 1 else 0.0 for _, gaps in self.points]


@dataclass
class Panel:
    """Results of one network.

    Attributes:
        published: label, parameters and gap of each point.
        represented: number of weights that are represented; None: not told.
    """

    title: str
    curves: list[Curve]
    published: list[tuple[str, int, float]] = field(default_factory=list)
    represented: int | None = None


def plot_curves(path: str | Path, panels: Sequence[Panel]) -> None:
    """Write the picture (PNG): means over seeds joined by lines, with their standard deviations and each single run."""
    columns = 2 if len(panels) == 4 else max(min(len(panels), COLUMNS), 1)
    lines = max(-(-len(panels) // columns), 1)
    labels = list(dict.fromkeys(curve.label for panel in panels for curve in panel.curves))
    published = list(dict.fromkeys(point[0] for panel in panels for point in panel.published))
    entries = len(labels) + len(published) + 1
    per_line = columns + (columns == 1)
    legend_height = 0.22 * (1 + -(-entries // per_line))
    figure = Figure(figsize=(7.5 if columns == 1 else 5.2 * columns, 4.0 * lines + legend_height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    handles: dict[str, Any] = {}
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel, labels, published, handles)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    ordered = {label: handles[label] for label in [*labels, "the original network", *published] if label in handles}
    legend = figure.legend(
        list(ordered.values()), list(ordered), loc="outside lower center", ncols=per_line, frameon=False, fontsize=8,
        title="means over seeds, bars: standard deviations, dots: single runs; hollow: published", title_fontsize=8,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)  # labels come from files: a $ is a dollar
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def look(number: int) -> tuple[str, str, str]:
    """Colour, marker and line of the curve of this number: another for each of 28."""
    again, number = divmod(number, len(COLOURS))
    return COLOURS[number], MARKERS[(number + again) % len(MARKERS)], LINES[again % len(LINES)]


def _draw_panel(
    axes: Any, panel: Panel, labels: Sequence[str], published: Sequence[str], handles: dict[str, Any]
) -> None:
    axes.set_title(panel.title, color=INK, fontsize=11, parse_math=False)
    handles["the original network"] = axes.axhline(0, color=INK, lw=1, ls="--")
    for label, parameters, gap in panel.published:
        number = published.index(label)
        marker = PUBLISHED_MARKERS[number % len(PUBLISHED_MARKERS)]
        style = {"marker": marker, "s": 62, "facecolors": "none", "edgecolors": INK, "linewidths": 1.3, "zorder": 6}
        handles[label] = axes.scatter([parameters], [gap], **style)
    for curve in panel.curves:
        colour, marker, line = look(labels.index(curve.label))
        sizes = [size for size, _ in curve.points]
        means, spreads = curve.means(), curve.spreads()
        single = [(size, gap) for size, gaps in curve.points if len(gaps) > 1 for gap in gaps]
        if single:
            axes.scatter(*zip(*single, strict=True), s=9, color=colour, alpha=0.4, lw=0, zorder=3)
        handles[curve.label] = axes.errorbar(
            sizes, means, yerr=spreads if any(spreads) else None, color=colour, marker=marker, ls=line, ms=5.5, lw=1.6,
            capsize=3, elinewidth=1.2, zorder=4,
        )  # fmt: skip
    _scale(axes, panel)
    share = "" if panel.represented is None else f" (the network's weights: {panel.represented:,})"
    axes.set_xlabel(f"parameters of the predictor{share}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", alpha=0.25)


def _scale(axes: Any, panel: Panel) -> None:
    """Logarithmic in parameters; linear in the gap, or, over a wide range, logarithmic away from the original."""
    sizes = [size for curve in panel.curves for size, _ in curve.points] + [size for _, size, _ in panel.published]
    gaps = [gap for curve in panel.curves for _, of_size in curve.points for gap in of_size]
    gaps += [gap for _, _, gap in panel.published] + [0.0]
    for curve in panel.curves:
        gaps += [m + sign * s for m, s in zip(curve.means(), curve.spreads(), strict=True) for sign in (-1, 1)]
    axes.set_xscale("log")
    if sizes:
        low, high = min(sizes), max(sizes)
        room = max(high / low, 1.5) ** 0.08
        axes.set_xlim(low / room, high * room)
        steps = (
            (1, 2, 5)
            if high / low > 5
            else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
            if high / low < 2
            else (1, 1.5, 2, 3, 5, 7)
        )
        axes.xaxis.set_major_locator(LogLocator(subs=steps))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_count))
    worst, best = min(gaps), max(gaps)
    if worst >= LINEAR_DOWN_TO:
        room = 0.06 * max(best - worst, 0.5)
        axes.set_ylim(worst - room, best + room)
        axes.set_ylabel("accuracy minus the original's (points)")
        return
    axes.set_ylabel("accuracy minus the original's (points, logarithmic below -1)", fontsize=9)
    axes.set_yscale("symlog", linthresh=1, linscale=1)
    ticks = [-100, -50, -20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5]
    bottom, top = worst * 1.25, max(best * 1.25, 0.3)
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if bottom <= tick <= top]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.axhspan(-1, min(1, top), color=MUTED, alpha=0.08, lw=0)


def _count(value: float, _: Any) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"
