"""The picture of a sweep: gap to the original's accuracy over the size of the predictor."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

from nern.analysis.style import INK
from nern.files import atomic_path
from nern.sweeps.table import Group, Row, groups_of

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f3c8d")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
MARKS = ("D", "^", "s", "*", "v", "p", "h", "8")
LINEAR_DOWN_TO = -6.0  # points; a wider range is drawn linear near the original and logarithmic below
COLUMNS = 3
ORIGINAL = "the original network"

Mark = tuple[str, int, float]  # label, parameters, gap


def draw(
    path: str | Path, rows: Sequence[Row], published: Mapping[tuple[str, str], Sequence[Mark]] | None = None
) -> None:
    """Write the picture (PNG), a panel for each network and task: means over seeds joined by lines, with their standard
    deviations and each single run.

    Args:
        rows: of tables.
        published: results to compare with, by network and task, drawn as hollow marks.
    """
    panels = groups_of(rows)
    marks = {panel: list((published or {}).get(panel, [])) for panel in panels}
    labels = list(dict.fromkeys(group.label for groups in panels.values() for group in groups))
    others = list(dict.fromkeys(label for own in marks.values() for label, _, _ in own))
    columns = 2 if len(panels) == 4 else max(min(len(panels), COLUMNS), 1)
    lines, per_line = max(-(-len(panels) // columns), 1), max(columns, 2)
    height = 4.0 * lines + 0.22 * (1 + -(-(len(labels) + len(others) + 1) // per_line))
    figure = Figure(figsize=(7.5 if columns == 1 else 5.2 * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    handles: dict[str, Any] = {}
    for axes, (panel, groups) in zip(grid, panels.items(), strict=False):
        axes.set_title(" on ".join(panel), color=INK, fontsize=11, parse_math=False)
        handles[ORIGINAL] = axes.axhline(0, color=INK, lw=1, ls="--")
        for label, parameters, gap in marks[panel]:
            marker = MARKS[others.index(label) % len(MARKS)]
            style = {"s": 62, "facecolors": "none", "edgecolors": INK, "linewidths": 1.3, "zorder": 6}
            handles[label] = axes.scatter([parameters], [gap], marker=marker, **style)
        for number, label in enumerate(labels):
            if curve := _draw_curve(axes, [group for group in groups if group.label == label], look(number)):
                handles[label] = curve
        represented = {row["represented"] for group in groups for row in group.rows}
        whole = represented.pop() if len(represented) == 1 else None
        axes.set_xlabel("parameters of the predictor" + (f" (the network's weights: {whole:,})" if whole else ""))
        _scale(axes, [group.parameters for group in groups] + [parameters for _, parameters, _ in marks[panel]])
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    shown = {label: handles[label] for label in [*labels, ORIGINAL, *others] if label in handles}
    legend = figure.legend(
        list(shown.values()), list(shown), loc="outside lower center", ncols=per_line, frameon=False, fontsize=8,
        title="means over seeds, bars: standard deviations, dots: single runs; hollow: published", title_fontsize=8,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)  # labels come from files: a $ is a dollar
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def look(number: int) -> dict[str, str]:
    """Colour, marker and line of the curve of this number: another for each of 28."""
    again, number = divmod(number, len(COLOURS))
    marker = MARKERS[(number + again) % len(MARKERS)]
    return {"color": COLOURS[number], "marker": marker, "ls": LINES[again % len(LINES)]}


def _draw_curve(axes: Any, groups: Sequence[Group], style: Mapping[str, str]) -> Any:
    """Draw the groups of one label; returns what the legend shows; None: they have no gaps."""
    known = [(group.parameters, [row["gap"] for row in group.rows if row["gap"] is not None]) for group in groups]
    points = [(size, gaps) for size, gaps in known if gaps]
    if not points:
        return None
    spreads = [statistics.stdev(gaps) if len(gaps) > 1 else 0.0 for _, gaps in points]
    single = [(size, gap) for size, gaps in points if len(gaps) > 1 for gap in gaps]
    if single:
        axes.scatter(*zip(*single, strict=True), s=9, color=style["color"], alpha=0.4, lw=0, zorder=3)
    sizes, means = [size for size, _ in points], [statistics.fmean(gaps) for _, gaps in points]
    bars = spreads if any(spreads) else None
    return axes.errorbar(sizes, means, yerr=bars, ms=5.5, lw=1.6, capsize=3, elinewidth=1.2, **style)


def _scale(axes: Any, sizes: Sequence[int]) -> None:
    """Logarithmic in parameters; linear in the gap, or, over a wide range, logarithmic away from the original."""
    low, high = min(sizes), max(sizes)
    room = max(high / low, 1.5) ** 0.08
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    ticks = (1, 2, 5) if high / low > 5 else (1, 1.5, 2, 3, 5, 7) if high / low > 2 else (1, *range(2, 10), 1.5)
    axes.xaxis.set_major_locator(LogLocator(subs=ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", alpha=0.25)
    worst, best = axes.dataLim.intervaly
    if worst >= LINEAR_DOWN_TO:
        margin = 0.06 * max(best - worst, 0.5)
        axes.set_ylim(worst - margin, best + margin)
        axes.set_ylabel("accuracy minus the original's (points)")
        return
    axes.set_ylabel("accuracy minus the original's (points, logarithmic below -1)", fontsize=9)
    axes.set_yscale("symlog", linthresh=1, linscale=1)
    bottom, top = worst * 1.25, max(best * 1.25, 0.3)
    shown = [-100, -50, -20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5]
    axes.set_yticks([tick for tick in shown if bottom <= tick <= top])
    axes.set_ylim(bottom, top)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
