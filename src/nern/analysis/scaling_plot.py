"""The picture of `nern bench scaling`: time and memory over the size of the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from nern.analysis.plots import INK, MUTED
from nern.files import atomic_path

PARTS = {
    "order": ("ordering", "#0072b2", "o"),
    "build": ("building the NeRN", "#d55e00", "s"),
    "step": ("one step, drawn rows", "#009e73", "^"),
}


def plot_scaling(path: str | Path, measured: Sequence[dict[str, Any]], title: str) -> None:
    """Write the picture (PNG).

    Args:
        path: the file.
        measured: of each size, rising: `weights`, `weight_bytes`, by part `seconds` (median), `peak_memory_bytes` of `all`.
        title: over the picture.
    """
    figure = Figure(figsize=(10.5, 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, color=INK, fontsize=12, parse_math=False)
    left, right = figure.subplots(1, 2)
    sizes = [of["weights"] for of in measured]
    for part, (label, colour, marker) in PARTS.items():
        style: dict[str, Any] = {"color": colour, "marker": marker, "ms": 5, "lw": 1.6, "label": label}
        left.plot(sizes, [max(of["seconds"][part]["median"], 1e-5) for of in measured], **style)
    peak = [max(of["peak_memory_bytes"]["all"], 2**12) for of in measured]
    right.plot(sizes, peak, color="#cc79a7", marker="o", ms=5, lw=1.6, label="all of that, beyond the weights")
    own = [of["weight_bytes"] for of in measured]
    right.plot(sizes, own, color=MUTED, ls="--", lw=1.2, label="the weights themselves")
    for axes, heading, unit in ((left, "Time", _seconds), (right, "Memory at its highest", _bytes)):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(heading, color=INK, fontsize=10)
        axes.set_xlabel("represented weights")
        axes.yaxis.set_major_formatter(FuncFormatter(unit))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, which="major", alpha=0.25)
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _seconds(value: float, _: Any) -> str:
    return next(
        (f"{value * scale:g} {unit}" for least, scale, unit in ((1, 1, "s"), (1e-3, 1e3, "ms")) if value >= least * 0.99),
        f"{value * 1e6:g} µs",
    )  # fmt: skip


def _bytes(value: float, _: Any) -> str:
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    return next((f"{value / least:g} {unit}" for least, unit in units if value >= least * 0.99), f"{value:g} B")
