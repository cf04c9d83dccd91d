"""The picture of `nern bench scaling`: time and memory over the size of the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import EngFormatter

from nern.analysis.style import BLUE, GREEN, MUTED, ORANGE, SERIES, canvas, heading, label, legend, tidy, write_png

PARTS = {
    "order": ("ordering", BLUE, "o"),
    "build": ("building the NeRN", ORANGE, "s"),
    "step": ("one step, drawn rows", GREEN, "^"),
}


def plot_scaling(path: str | Path, measured: Sequence[dict[str, Any]], title: str) -> None:
    """Write the picture (PNG).

    Args:
        path: the file.
        measured: of each size, rising: `weights`, `weight_bytes`, by part `seconds` (median), `peak_memory_bytes` of `all`.
        title: over the picture.
    """
    figure = canvas(1050, 430)
    times, memory = figure.subplots(1, 2)
    sizes = [of["weights"] for of in measured]
    for part, (text, colour, marker) in PARTS.items():
        seconds = [max(of["seconds"][part]["median"], 1e-5) for of in measured]
        times.plot(sizes, seconds, color=colour, marker=marker, ms=5, lw=1.6, label=text)
    peak = [max(of["peak_memory_bytes"]["all"], 2**12) for of in measured]
    memory.plot(sizes, peak, color=SERIES[4], marker="o", ms=5, lw=1.6, label="all of that, beyond the weights")
    own = [of["weight_bytes"] for of in measured]
    memory.plot(sizes, own, color=MUTED, ls="--", lw=1.2, label="the weights themselves")
    for axes, text, unit in ((times, "Time", "s"), (memory, "Memory at its highest", "B")):
        axes.set_xscale("log")
        axes.set_yscale("log")
        heading(axes, text)
        label(axes, "represented weights")
        axes.yaxis.set_major_formatter(EngFormatter(unit))
        tidy(axes, "both")
        axes.minorticks_off()
        legend(axes, 2, below=True)
    write_png(path, figure, title)
