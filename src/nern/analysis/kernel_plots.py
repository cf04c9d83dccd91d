"""Figures of a report that show single kernels: heat maps of their errors, and the kernels themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from nern.analysis.canvas import (
    DIVERGING,
    NARROW,
    SEQUENTIAL,
    SMALL,
    TEXT,
    canvas,
    heading,
    label,
    plain_names,
    shortened,
)
from nern.analysis.gallery import PLACES, UNIT, Shelf, corners, entry_height, shelf_picture, spread_over
from nern.analysis.plots import INK

MOST_MAPS = 20
TOP_SHARE = 0.98  # of the kernels that lie within the colour scale, unless it ends at 1
HEAD, TITLE, TALLEST, FOOT = 32, 26, 170, 66  # CSS pixels: of a layer's name, of a title, of two tiles, of the scale


def maps_shown(errors: Sequence[Tensor]) -> list[int]:
    """Numbers of the layers whose maps are shown: all of a few, else spread over the depth."""
    return spread_over(range(len(errors)), MOST_MAPS)


def scale_top(errors: Sequence[Tensor]) -> float:
    """Upper end of the colour scale: no more than 1, where zeros would do as well, unless most kernels are worse."""
    values = torch.cat([e.flatten() for e in errors])
    values = values[torch.isfinite(values)].double()
    if not len(values):
        return 1.0
    middle, high = (float(np.quantile(values.numpy(), share)) for share in (0.5, TOP_SHARE))
    return min(high, max(1.0, 2 * middle)) or 1.0


def draw_maps(width: int, names: Sequence[str], errors: Sequence[Tensor]) -> Figure:
    """Relative error of each kernel, a map of filters and channels for each layer.

    Args:
        width: of the figure, in CSS pixels.
        names: of the layers to show.
        errors: of each, (filters, channels).
    """
    narrow, names = width == NARROW, plain_names(names)
    columns = _columns(len(names), (2 if len(names) < 9 else 3) if narrow else 5)
    lines = -(-len(names) // columns)
    height = lines * (150 if narrow and columns > 2 else 190 if narrow or columns > 3 else 260)
    figure = canvas(width, height + FOOT)
    maps, foot = figure.subfigures(2, 1, height_ratios=[height, FOOT], squeeze=False).ravel()
    grid, top = maps.subplots(lines, columns, squeeze=False), scale_top(errors)
    for axes in grid.ravel()[len(names) :]:
        axes.set_axis_off()
    for number, (axes, name, of_layer) in enumerate(zip(grid.ravel(), names, errors, strict=False)):
        shown = np.minimum(of_layer.numpy(), 1.001 * top)  # what is beyond the scale must not blur into its neighbours
        axes.imshow(shown, cmap=SEQUENTIAL, vmin=0, vmax=top, aspect="auto")
        heading(axes, shortened(name, 18 if narrow and columns > 2 else 22), small=True)
        _map_axes(axes, of_layer.shape, first=number % columns == 0, bottom=number + columns >= len(names))
    _scale(foot, narrow, ScalarMappable(Normalize(0, top), SEQUENTIAL), "relative error of a kernel", extend="max")
    return figure


def _columns(count: int, most: int) -> int:
    """How many maps stand side by side: those that leave the fewest places empty."""
    if count <= most:
        return max(count, 1)
    return min(range(most, max(most - 2, 1), -1), key=lambda columns: -count % columns)


def _map_axes(axes: Any, shape: Sequence[int], first: bool, bottom: bool) -> None:
    """Ends of both axes as ticks; names at the left and at the bottom only."""
    filters, channels = shape
    axes.set_yticks(sorted({0, filters - 1}), [str(n + 1) for n in sorted({0, filters - 1})], fontsize=SMALL)
    axes.set_xticks(sorted({0, channels - 1}), [str(n + 1) for n in sorted({0, channels - 1})], fontsize=SMALL)
    axes.tick_params(length=0, pad=3, colors="#4a5057")
    axes.spines[:].set_color("#b8bec5")
    label(axes, "channel" if bottom else "", "filter" if first else "")
    # Beside the ticks.
    axes.xaxis.labelpad, axes.yaxis.labelpad = (-6 if size > 1 else 1 for size in (channels, filters))


def draw_gallery(
    width: int,
    names: Sequence[str],
    original: Sequence[Tensor],
    weights: Sequence[Tensor],
    shelves: Sequence[Shelf],
    of_each: int = 8,
) -> Figure:
    """Kernels and their reconstructions as tiles.

    Args:
        width: of the figure, in CSS pixels.
        names: of all layers.
        original, weights: of all layers, (filters, channels, height, width) each.
        shelves: the kernels to show.
        of_each: room for so many at each place.
    """
    narrow, names = width == NARROW, plain_names(names)
    columns = 1 if narrow else len(PLACES)
    lines = len(PLACES) // columns
    sizes = [tuple(original[shelf.layer].shape[2:]) for shelf in shelves]
    full = [corners(high, wide, of_each + 1)[0][-1][1] for high, wide in sizes]  # pixels of a whole row
    room, heights = (width - 80) / columns, []
    for (high, wide), across in zip(sizes, full, strict=True):
        down = 2 * corners(high, wide, 1)[1][0][0]
        heights.append(HEAD + lines * (TITLE + min(down * room / across, TALLEST)))
    figure = canvas(width, sum(heights) + FOOT)
    parts = figure.subfigures(len(shelves) + 1, 1, height_ratios=[*heights, FOOT], squeeze=False).ravel()
    for part, shelf, across in zip(parts, shelves, full, strict=False):
        own, made = original[shelf.layer], weights[shelf.layer]
        filters, channels, high, wide = own.shape
        name = shortened(names[shelf.layer], 24 if narrow else 60)
        text = f"{name}: {filters * channels:,} kernels of {high} by {wide}"
        part.suptitle(text, fontsize=TEXT, fontweight="bold", color=INK, x=0.01, ha="left", parse_math=False)
        grid = part.subplots(lines, columns, squeeze=False).ravel()
        for number, (axes, place) in enumerate(zip(grid, PLACES, strict=True)):
            _shelf(axes, own, made, shelf.numbers[place], across, labelled=narrow or number == 0)
            first, last = (f"{float(shelf.errors[place][end]):.2f}" for end in (0, -1))
            heading(axes, f"{place}: relative error {first if first == last else f'{first} to {last}'}", small=True)
    signed = ScalarMappable(Normalize(-1, 1), DIVERGING)
    _scale(parts[-1], narrow, signed, "weight / largest magnitude in the original kernel")
    return figure


def _shelf(axes: Any, original: Tensor, weights: Tensor, numbers: Tensor, across: int, labelled: bool) -> None:
    height, width = original.shape[2:]
    picture, tall = shelf_picture(original, weights, numbers).numpy(), height * entry_height(height, width)
    axes.imshow(picture, cmap=DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
    for row, column in (corner for of_row in corners(height, width, len(numbers)) for corner in of_row):
        frame = Rectangle((column - 0.5, row - 0.5), width * UNIT, tall, fill=False, ec="#aab2ba", lw=0.5)
        axes.add_patch(frame)
    axes.set_xlim(-1.5, across)
    axes.set_ylim(len(picture) + 0.5, -1.5)
    axes.set_anchor("NW")
    axes.set_xticks([])
    places = [len(picture) * share - 0.5 for share in (0.25, 0.75)]
    axes.set_yticks(places if labelled else [], ["original", "NeRN"] if labelled else [], fontsize=SMALL, color=INK)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _scale(part: Any, narrow: bool, colours: ScalarMappable, text: str, extend: str = "neither") -> None:
    """A colour scale, at the same place of the foot of every figure."""
    axes = part.add_axes((0.14 if narrow else 0.3, 0.66, 0.72 if narrow else 0.4, 0.16))
    bar = part.colorbar(colours, cax=axes, orientation="horizontal", extend=extend)
    bar.set_label(text, fontsize=TEXT, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=SMALL, length=0, colors="#4a5057")
