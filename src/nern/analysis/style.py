"""How figures look: sizes in CSS pixels, one typographic scale, calm colours, axes without clutter."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from nern.files import atomic_path

WIDE, NARROW = 1080, 372  # widths of a figure, in CSS pixels: on a screen, on a phone
PIXELS_PER_INCH, DENSITY = 100, 2  # CSS pixels; pixels of the file to each of them
TEXT, SMALL = 9.0, 8.1  # points: 12.5 and 11.25 CSS pixels
BELOW = 36  # points from axes to the legend below: ticks and the name of the axis are between
INK, SOFT, MUTED, FAINT, RULE = "#222222", "#4a5057", "#8a8a8a", "#b8bec5", "#e3e6ea"
BLUE, ORANGE, GREEN, YELLOW = "#0072b2", "#d55e00", "#009e73", "#e69f00"  # Okabe and Ito, told apart by all
SERIES = (BLUE, YELLOW, GREEN, ORANGE, "#cc79a7", "#56b4e9", "#7f3c8d")
BEFORE, AFTER = "#9aa3ad", BLUE  # the original, or what was before; the reconstruction
DASHED, DOTTED = (0, (5, 3)), (0, (1, 2))

SEQUENTIAL = LinearSegmentedColormap.from_list("report", ["#f4f8fb", "#a9cfe6", "#3d8fc0", "#0b5a8f", "#06263f"])
DIVERGING = LinearSegmentedColormap.from_list(
    "report_signed", ["#0b4f82", "#6fb0d8", "#ffffff", "#f0a875", "#b04a00"]
).with_extremes(bad="#aab2ba")


def canvas(width: float, height: float) -> Figure:
    """An empty figure of so many CSS pixels."""
    figure = Figure(figsize=(width / PIXELS_PER_INCH, height / PIXELS_PER_INCH), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, without the version of what made it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=PIXELS_PER_INCH * DENSITY, metadata={"Software": None})
    return file.getvalue()


def write_png(path: str | Path, figure: Figure, title: str) -> None:
    """Write the figure with a title, as a file of its own."""
    figure.suptitle(title, color=INK, fontsize=12, parse_math=False)
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(figure))


def tidy(axes: Any, grid: str = "y") -> None:
    """Thin rules along `grid` ('x', 'y', 'both'), no frame, muted ticks."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(which="both", labelsize=SMALL, colors=SOFT, length=0, pad=5)
    axes.set_axisbelow(True)
    axes.grid(True, axis=grid, color=RULE, lw=0.8)


def label(axes: Any, x: str = "", y: str = "") -> None:
    """Names of the axes, with their units."""
    axes.set_xlabel(x, fontsize=TEXT, color=INK, labelpad=6)
    axes.set_ylabel(y, fontsize=TEXT, color=INK, labelpad=6)


def heading(axes: Any, text: str, small: bool = False, pad: float = 9) -> None:
    """A title at the left. Names in it are not formulas, whatever they hold."""
    size, pad = (SMALL, 6.0) if small else (TEXT, pad)
    axes.set_title(text, fontsize=size, color=INK, loc="left", pad=pad, parse_math=False)


def say(axes: Any, x: float, y: float, text: str, colour: str = INK, **style: Any) -> Any:
    """A few words in the figure."""
    return axes.text(x, y, text, **{"fontsize": SMALL, "color": colour, "parse_math": False, "va": "center"} | style)


def legend(axes: Any, columns: int, below: bool = False, first: Sequence[str] = ()) -> None:
    """What lines and bars mean: above the axes, or `below` them and their name.

    Args:
        columns: side by side.
        first: texts to begin with, in this order.
    """
    handles, texts = axes.get_legend_handles_labels()
    pairs = sorted(zip(handles, texts, strict=True), key=lambda pair: [*first, pair[1]].index(pair[1]))
    if not pairs:
        return
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.0)}
    if below:
        down = ScaledTranslation(0, -BELOW / 72, axes.figure.dpi_scale_trans)
        place = {"loc": "upper left", "bbox_to_anchor": (0, 0), "bbox_transform": axes.transAxes + down}
    made = axes.legend(
        *zip(*pairs, strict=True), **place, ncols=columns, frameon=False, fontsize=SMALL, borderaxespad=0.3,
        handlelength=1.6, handletextpad=0.6, columnspacing=1.6, labelspacing=0.4,
    )  # fmt: skip
    for text in made.get_texts():
        text.set_parse_math(False)


def rows_of(axes: Any, names: Sequence[str], narrow: bool) -> None:
    """One row for each name, the first on top; long names are cut in the middle."""
    shown = [shortened(name, 20 if narrow else 44) for name in names]
    axes.set_yticks(range(len(names)), shown, fontsize=SMALL, color=INK, parse_math=False)
    axes.set_ylim(len(names) - 0.4, -0.6)


def shortened(name: str, limit: int) -> str:
    """At most `limit` characters; what is left out of the middle becomes an ellipsis."""
    if len(name) <= limit:
        return name
    end = (limit - 1) * 2 // 3
    return f"{name[: limit - 1 - end]}…{name[-end:]}"


def plain_names(layers: Sequence[str]) -> list[str]:
    """Layers' names without the 'weight' that most end with."""
    return [name.removesuffix(".weight") or name for name in layers]
