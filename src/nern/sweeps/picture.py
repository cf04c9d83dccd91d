"""The picture of a sweep: gap to the original's accuracy over the size of the predictor."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.ticker import EngFormatter

from nern.analysis import style
from nern.sweeps.table import Row, groups_of

MARKERS, LINES, HOLLOW = "os^DvPX", ("-", "--", ":", "-."), "D^s*vph8"
LINEAR_DOWN_TO = -6.0  # points; a wider range is drawn linear near the original and logarithmic below
ABOUT = "means over seeds, bars: standard deviations, dots: single runs; hollow: published"

Mark = tuple[str, int, float]  # label, parameters, gap


@style.styled
def draw(
    path: str | Path, rows: Sequence[Row], published: Mapping[tuple[str, str], Sequence[Mark]] | None = None
) -> None:
    """Write the picture (PNG), a panel for each network and task: means over seeds joined by lines, with their standard
    deviations and each single run. `published`: results to compare with, by network and task, drawn as hollow marks."""
    panels = groups_of(rows)
    marks = {panel: (published or {}).get(panel, ()) for panel in panels}
    labels = list(dict.fromkeys(group.label for groups in panels.values() for group in groups))
    others = list(dict.fromkeys(label for own in marks.values() for label, _, _ in own))
    columns = min(len(panels), 2)
    lines = -(-len(panels) // columns)
    figure = style.canvas(540 * columns + 120 * (columns == 1), 380 * lines + 22 * (len(labels + others) // 2 + 3))
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (panel, groups) in zip(grid, panels.items(), strict=False):
        axes.axhline(0, color=style.INK, lw=1, ls="--", label="the original network")
        for label, parameters, gap in marks[panel]:
            marker = HOLLOW[others.index(label) % len(HOLLOW)]
            axes.scatter([parameters], [gap], s=62, c="none", ec=style.INK, marker=marker, zorder=6, label=label)
        for number, label in enumerate(labels):
            known = [(of.parameters, [row["gap"] for row in of.rows]) for of in groups if of.label == label]
            points = [(size, [gap for gap in gaps if gap is not None]) for size, gaps in known]
            points = [(size, gaps) for size, gaps in points if gaps]
            if not points:
                continue
            colour = style.SERIES[number % len(style.SERIES)]
            single = [(size, gap) for size, gaps in points for gap in gaps]
            axes.scatter([size for size, _ in single], [gap for _, gap in single], s=9, color=colour, alpha=0.4)
            axes.errorbar(
                [size for size, _ in points],
                [statistics.fmean(gaps) for _, gaps in points],
                yerr=[statistics.stdev(gaps) if len(gaps) > 1 else 0.0 for _, gaps in points],
                color=colour,
                marker=MARKERS[number % len(MARKERS)],
                ls=LINES[number // len(style.SERIES) % len(LINES)],
                capsize=3,
                label=label,
            )
        axes.set(
            title=" on ".join(panel), xlabel="parameters of the predictor", ylabel="accuracy - original's (points)"
        )
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if axes.dataLim.y0 < LINEAR_DOWN_TO:
            axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
    for axes in grid[len(panels) :]:
        axes.remove()
    style.legend(figure, 2, ABOUT)
    style.write_png(path, figure)
