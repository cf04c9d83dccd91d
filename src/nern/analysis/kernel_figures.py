"""Figures of a report that show single kernels: maps of their errors, and kernels beside their reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from nern.analysis import style
from nern.analysis.measures import kernel_errors

MOST_MAPS, MOST_LAYERS, OF_EACH = 20, 4, 8  # maps; layers whose kernels are shown, and kernels at each place
PLACES = ("best", "median", "worst")
UNIT, GAP = 8, 7  # pixels of a picture of kernels: of the width of an entry; between tiles
LEAST_HEIGHT = 0.4  # of a tile, in widths of it
TOP_SHARE = 0.98  # of the kernels that lie within the colour scale, unless it ends at 1
HEAD, TITLE, TALLEST, FOOT = 32, 26, 170, 66  # CSS pixels: of a layer's name, of a title, of two tiles, of the scale


def spread_over(candidates: Sequence[int], count: int) -> list[int]:
    """At most `count` (two or more) of the candidates, the first, the last and others evenly between."""
    if len(candidates) <= count:
        return list(candidates)
    return [candidates[round(place * (len(candidates) - 1) / (count - 1))] for place in range(count)]


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
    narrow, names = width == style.NARROW, style.plain_names(names)
    columns = _columns(len(names), (2 if len(names) < 9 else 3) if narrow else 5)
    lines = -(-len(names) // columns)
    height = lines * (150 if narrow and columns > 2 else 190 if narrow or columns > 3 else 260)
    figure = style.canvas(width, height + FOOT)
    maps, foot = figure.subfigures(2, 1, height_ratios=[height, FOOT], squeeze=False).ravel()
    grid, top = maps.subplots(lines, columns, squeeze=False).ravel(), scale_top(errors)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    for number, (axes, name, of_layer) in enumerate(zip(grid, names, errors, strict=False)):
        shown = np.minimum(of_layer.numpy(), 1.001 * top)  # what is beyond the scale must not blur into its neighbours
        axes.imshow(shown, cmap=style.SEQUENTIAL, vmin=0, vmax=top, aspect="auto")
        style.heading(axes, style.shortened(name, 18 if narrow and columns > 2 else 22), small=True)
        filters, channels = ([0, size - 1] if size > 1 else [0] for size in of_layer.shape)
        axes.set_yticks(filters, [str(n + 1) for n in filters], fontsize=style.SMALL)
        axes.set_xticks(channels, [str(n + 1) for n in channels], fontsize=style.SMALL)
        axes.tick_params(length=0, pad=3, colors=style.SOFT)
        axes.spines[:].set_color(style.FAINT)
        style.label(
            axes, "channel" if number + columns >= len(names) else "", "filter" if number % columns == 0 else ""
        )
        axes.xaxis.labelpad, axes.yaxis.labelpad = (-6 if len(ends) > 1 else 1 for ends in (channels, filters))
    _scale(
        foot, narrow, ScalarMappable(Normalize(0, top), style.SEQUENTIAL), "relative error of a kernel", extend="max"
    )
    return figure


def _columns(count: int, most: int) -> int:
    """How many maps stand side by side: those that leave the fewest places empty."""
    if count <= most:
        return max(count, 1)
    return min(range(most, max(most - 2, 1), -1), key=lambda columns: -count % columns)


@dataclass(frozen=True, eq=False)
class Shelf:
    """Some kernels of one layer.

    Attributes:
        layer: its number.
        numbers: of the kernels (filter * channels + channel), by 'best', 'median' and 'worst', errors rising.
        errors: their relative errors.
    """

    layer: int
    numbers: dict[str, Int[Tensor, " n"]]
    errors: dict[str, Float[Tensor, " n"]]


def layers_to_show(weights: Sequence[Tensor], count: int = MOST_LAYERS) -> list[int]:
    """Numbers of at most `count` layers, spread over the depth; of each kernel size there is one, as far as `count` allows.
    Kernels of one entry have nothing to show."""
    sizes = [tuple(weight.shape[2:]) for weight in weights]
    candidates = [index for index, (height, width) in enumerate(sizes) if height * width > 1]
    chosen = spread_over(candidates, count)
    for index in candidates:
        shown = [sizes[own] for own in chosen]
        double = [place for place, size in enumerate(shown) if shown.count(size) > 1]
        if sizes[index] not in shown and double:  # one of a size that is there more than once makes room
            chosen[double[-1]] = index
    return sorted(chosen)


def shelves(original: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Shelf]:
    """The kernels to show, of weights (filters, channels, height, width) of each layer. Of layers of few kernels there are
    fewer than `OF_EACH` at each place, so that none is shown twice."""
    errors, found = kernel_errors(original, weights), []
    for layer in layers_to_show(original):
        of_layer = errors[layer].flatten()
        order = of_layer.argsort(stable=True)
        count = max(min(OF_EACH, len(order) // len(PLACES)), 1)
        middle = (len(order) - count) // 2
        parts = dict(zip(PLACES, (order[:count], order[middle : middle + count], order[-count:]), strict=True))
        found.append(Shelf(layer, parts, {place: of_layer[numbers] for place, numbers in parts.items()}))
    return found


def tile_size(height: int, width: int) -> tuple[int, int]:
    """Pixels (rows, columns) of a kernel's tile, its frame and the gap after it included. Kernels that are very flat have
    taller entries, or nothing would be seen of them."""
    tall = max(UNIT, round(LEAST_HEIGHT * (width * UNIT + GAP) / height))
    return height * tall + 2 + GAP, width * UNIT + 2 + GAP


def shelf_picture(original: Tensor, weights: Tensor, numbers: Int[Tensor, " n"]) -> Float[Tensor, "rows columns"]:
    """Tiles of a layer's kernels side by side, originals above, reconstructions below, in units of the original kernel's
    largest magnitude (of a kernel of zeros, of the reconstruction's); nan: frames, 0: between them."""
    height, width = original.shape[2:]
    pair = torch.stack([w.flatten(0, 1)[numbers].double() for w in (original, weights)])
    largest = pair.abs().amax((2, 3), keepdim=True)
    scale = torch.where(largest[0] > 0, largest[0], largest[1])
    pair /= torch.where(scale > 0, scale, torch.ones_like(scale))
    rows, _ = tile_size(height, width)
    pair = pair.repeat_interleave((rows - 2 - GAP) // height, 2).repeat_interleave(UNIT, 3)
    pair = F.pad(F.pad(pair, (1, 1, 1, 1), value=torch.nan), (0, GAP, 0, GAP))
    return pair.transpose(1, 2).flatten(2).flatten(0, 1)


def draw_gallery(
    width: int, names: Sequence[str], original: Sequence[Tensor], weights: Sequence[Tensor], shown: Sequence[Shelf]
) -> Figure:
    """Kernels and their reconstructions as tiles.

    Args:
        width: of the figure, in CSS pixels.
        names, original, weights: of all layers; weights (filters, channels, height, width).
        shown: the kernels.
    """
    narrow, names = width == style.NARROW, style.plain_names(names)
    columns = 1 if narrow else len(PLACES)
    lines, heights, full = len(PLACES) // columns, [], []
    for shelf in shown:
        down, across = tile_size(*original[shelf.layer].shape[2:])
        full.append(OF_EACH * across)
        heights.append(HEAD + lines * (TITLE + min(2 * down * (width - 80) / columns / full[-1], TALLEST)))
    figure = style.canvas(width, sum(heights) + FOOT)
    parts = figure.subfigures(len(shown) + 1, 1, height_ratios=[*heights, FOOT], squeeze=False).ravel()
    for part, shelf, across in zip(parts, shown, full, strict=False):
        filters, channels, high, wide = original[shelf.layer].shape
        name = style.shortened(names[shelf.layer], 24 if narrow else 60)
        text = f"{name}: {filters * channels:,} kernels of {high} by {wide}"
        part.suptitle(
            text, fontsize=style.TEXT, fontweight="bold", color=style.INK, x=0.01, ha="left", parse_math=False
        )
        for number, (axes, place) in enumerate(
            zip(part.subplots(lines, columns, squeeze=False).ravel(), PLACES, strict=True)
        ):
            picture = shelf_picture(original[shelf.layer], weights[shelf.layer], shelf.numbers[place]).numpy()
            axes.imshow(picture, cmap=style.DIVERGING, vmin=-1, vmax=1, interpolation="nearest")
            axes.set_xlim(-1.5, across)
            axes.set_anchor("NW")
            labelled = narrow or number == 0
            places = [len(picture) * share - 0.5 for share in (0.25, 0.75)]
            axes.set_yticks(
                places if labelled else [],
                ["original", "NeRN"] if labelled else [],
                fontsize=style.SMALL,
                color=style.INK,
            )
            axes.set_xticks([])
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            first, last = (f"{float(shelf.errors[place][end]):.2f}" for end in (0, -1))
            style.heading(
                axes, f"{place}: relative error {first if first == last else f'{first} to {last}'}", small=True
            )
    signed = ScalarMappable(Normalize(-1, 1), style.DIVERGING)
    _scale(parts[-1], narrow, signed, "weight / largest magnitude in the original kernel")
    return figure


def _scale(part: Any, narrow: bool, colours: ScalarMappable, text: str, extend: str = "neither") -> None:
    """A colour scale, at the same place of the foot of every figure."""
    axes = part.add_axes((0.14 if narrow else 0.3, 0.66, 0.72 if narrow else 0.4, 0.16))
    bar = part.colorbar(colours, cax=axes, orientation="horizontal", extend=extend)
    bar.set_label(text, fontsize=style.TEXT, color=style.INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=style.SMALL, length=0, colors=style.SOFT)
