"""Which kernels to look at: of some layers the best, the middling and the worst reconstructed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nern.analysis.kernel_errors import kernel_errors

PLACES = ("best", "median", "worst")
UNIT, GAP = 8, 7  # pixels: of the width of an entry of a kernel; between tiles
LEAST_HEIGHT = 0.4  # of a tile, in widths of it


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


def spread_over(candidates: Sequence[int], count: int) -> list[int]:
    """At most `count` of the candidates, the first, the last and others evenly between."""
    if len(candidates) <= count:
        return list(candidates)
    if count == 1:
        return [candidates[0]]
    return [candidates[round(place * (len(candidates) - 1) / (count - 1))] for place in range(count)]


def layers_to_show(weights: Sequence[Tensor], count: int) -> list[int]:
    """Numbers of at most `count` layers, spread over the depth; of each kernel size there is one, as far as `count` allows.
    Kernels of one entry have nothing to show."""
    sizes = [tuple(weight.shape[2:]) for weight in weights]
    candidates = [index for index, size in enumerate(sizes) if size[0] * size[1] > 1]
    chosen = spread_over(candidates, count)
    for size in dict.fromkeys(sizes[index] for index in candidates):
        shown = [sizes[index] for index in chosen]
        if size not in shown:
            double = [place for place, of_place in enumerate(shown) if shown.count(of_place) > 1]
            if double:  # one of a size that is there more than once makes room
                chosen[double[-1]] = next(index for index in candidates if sizes[index] == size)
    return sorted(chosen)


def shelves(original: Sequence[Tensor], weights: Sequence[Tensor], layers: int = 4, of_each: int = 8) -> list[Shelf]:
    """The kernels to show.

    Args:
        original, weights: of each layer, (filters, channels, height, width).
        layers: how many at most.
        of_each: kernels at each place, at most; fewer of layers of few kernels, so that none is shown twice.
    """
    errors, found = kernel_errors(original, weights), []
    for layer in layers_to_show(original, layers):
        of_layer = errors[layer].flatten()
        order = of_layer.argsort(stable=True)
        count = max(min(of_each, len(order) // len(PLACES)), 1)
        middle = (len(order) - count) // 2
        parts = dict(zip(PLACES, (order[:count], order[middle : middle + count], order[-count:]), strict=True))
        found.append(Shelf(layer, parts, {place: of_layer[numbers] for place, numbers in parts.items()}))
    return found


def tile_pair(original: Tensor, weights: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """A kernel of a layer and its reconstruction, each (height, width), in units of the original kernel's largest
    magnitude (of a kernel of zeros, of the reconstruction's)."""
    before, after = (w.reshape(-1, *w.shape[2:])[number].double() for w in (original, weights))
    scale = next((float(largest) for largest in (before.abs().max(), after.abs().max()) if largest > 0), 1.0)
    return before / scale, after / scale


def entry_height(height: int, width: int) -> int:
    """Pixels that an entry of a kernel is high: as many as it is wide, or more in kernels so flat that nothing would be seen
    of them."""
    return max(UNIT, round(LEAST_HEIGHT * (width * UNIT + GAP) / height))


def corners(height: int, width: int, count: int) -> list[list[tuple[int, int]]]:
    """Of the upper and the lower row of `shelf_picture`, the top left pixel (row, column) of each tile."""
    down, across = height * entry_height(height, width) + GAP, width * UNIT + GAP
    return [[(row * down, place * across) for place in range(count)] for row in range(2)]


def shelf_picture(original: Tensor, weights: Tensor, numbers: Int[Tensor, " n"]) -> Float[Tensor, "rows columns"]:
    """Tiles of kernels side by side, originals above, reconstructions below, nan between."""
    height, width = original.shape[2:]
    tall, at = entry_height(height, width), corners(height, width, len(numbers))
    top, left = at[1][-1]
    picture = torch.full((top + height * tall, left + width * UNIT), torch.nan, dtype=torch.float64)
    for number, of_kernel in zip(numbers.tolist(), zip(*at, strict=True), strict=True):
        for (row, column), tile in zip(of_kernel, tile_pair(original, weights, number), strict=True):
            large = tile.repeat_interleave(tall, 0).repeat_interleave(UNIT, 1)
            picture[row : row + len(large), column : column + large.shape[1]] = large
    return picture
