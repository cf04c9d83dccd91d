"""How pictures look: settings of matplotlib, sizes in CSS pixels, calm colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cycler import cycler
from matplotlib import rc_context
from matplotlib.figure import Figure

from nern.files import atomic_path

WIDE, TALLEST = 960, 30_000  # width of a figure of a page, and the most height
PIXELS_PER_INCH, DENSITY = 100, 2  # CSS pixels; pixels of the file to each of them
SMALL = 8.1  # points
INK, SOFT, MUTED, RULE = "#222222", "#4a5057", "#8a8a8a", "#e3e6ea"
BLUE, ORANGE, GREEN, YELLOW = "#0072b2", "#d55e00", "#009e73", "#e69f00"  # Okabe and Ito, told apart by all
SERIES = (BLUE, YELLOW, GREEN, ORANGE, "#cc79a7", "#56b4e9", "#7f3c8d")
BEFORE, AFTER = "#9aa3ad", BLUE  # the original, or what was before; the reconstruction
SETTINGS: Any = {
    "text.parse_math": False,  # names hold what they hold
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": RULE,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), SMALL),
    **dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), SOFT),
    **dict.fromkeys(("xtick.color", "ytick.color"), RULE),
    "figure.dpi": PIXELS_PER_INCH,
    "figure.constrained_layout.use": True,
    "savefig.dpi": PIXELS_PER_INCH * DENSITY,
}
styled = rc_context(SETTINGS)  # decorates what draws


def canvas(width: float, height: float) -> Figure:
    """An empty figure of so many CSS pixels."""
    return Figure(figsize=(width / PIXELS_PER_INCH, min(height, TALLEST) / PIXELS_PER_INCH))


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, without the version of what made it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def write_png(path: str | Path, figure: Figure) -> None:
    """Write the figure as a file of its own."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(figure))


def legend(figure: Figure, columns: int = 3, title: str = "") -> None:
    """What lines and bars of all axes mean, below them; each once."""
    named = {
        text: handle for axes in figure.axes for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if named:
        figure.legend(list(named.values()), list(named), loc="outside lower left", ncols=columns, title=title)


def rows_of(axes: Any, names: Sequence[str]) -> None:
    """One row for each name, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")


def plain_names(layers: Sequence[str]) -> list[str]:
    """Layers' names without the 'weight' that most end with."""
    return [name.removesuffix(".weight") or name for name in layers]
