"""Orderings: which kernel takes which place in its layer.

The weights stay where they are and the coordinates move: the kernel that the path visits at position p gets the
(filter, channel) of row p, so that walking the coordinates walks the kernels along the path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from nern.errors import NernError
from nern.ordering.greedy import greedy_filter_path, greedy_path
from nern.registry import ORDERINGS

Shapes = Sequence[tuple[int, int, int, int]]


class Ordering(Protocol):
    """Contract of an ordering of all layers. `mode` is its registered name."""

    mode: str

    def positions(self, shapes: Shapes) -> list[Int[Tensor, " kernels"]]:
        """Of each layer, the kernel number (filter * c_in + channel) whose coordinates each kernel takes."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        ...

    def bits(self) -> float:
        """Least bits that any code needs for one of all such orderings: log2 of their number."""
        ...


def _check_permutation(order: Tensor, size: int, what: str) -> Int[Tensor, " size"]:
    if order.dim() != 1 or len(order) != size or not torch.equal(order.long().sort().values, torch.arange(size)):
        raise NernError(f"{what} is not a permutation of 0..{size - 1} (it has shape {tuple(order.shape)})")
    return order.long()


def _log2_factorial(n: int) -> float:
    return math.lgamma(n + 1) / math.log(2)


@ORDERINGS.register("crossfilter")
class CrossFilterOrdering:
    """One path through all kernels of a layer. `orders[l][p]` is the kernel visited at position p."""

    mode = "crossfilter"

    def __init__(self, orders: Sequence[Tensor]) -> None:
        self.orders = list(orders)

    @staticmethod
    def solve_layer(weight: np.ndarray) -> dict[str, Tensor]:
        """Order one weight (filters, channels, height, width)."""
        filters, channels = weight.shape[:2]
        return {"order": torch.from_numpy(greedy_path(weight.reshape(filters * channels, -1)))}

    @staticmethod
    def from_layers(layers: Sequence[Mapping[str, Tensor]], shapes: Shapes) -> CrossFilterOrdering:
        """From each layer's tensors, checked against the shapes."""
        return CrossFilterOrdering(
            [
                _check_permutation(layer["order"], co * ci, f"the cross-filter order of layer {index}")
                for index, (layer, (co, ci, _, _)) in enumerate(zip(layers, shapes, strict=True))
            ]
        )

    def positions(self, shapes: Shapes) -> list[Int[Tensor, " kernels"]]:
        """See `Ordering.positions`."""
        return [order.argsort() for order in self.orders]

    def tensors(self) -> dict[str, Tensor]:
        """See `Ordering.tensors`."""
        return {f"order.{index}": order for index, order in enumerate(self.orders)}

    def bits(self) -> float:
        """log2(n!) a layer of n kernels."""
        return sum(_log2_factorial(len(order)) for order in self.orders)


@ORDERINGS.register("infilter")
class InFilterOrdering:
    """A path through the channels of each filter, then one through the filters so arranged.

    `channel_orders[l][f, p]`: channel of filter f visited at position p; `filter_orders[l][p]`: filter at position p.
    """

    mode = "infilter"

    def __init__(self, filter_orders: Sequence[Tensor], channel_orders: Sequence[Tensor]) -> None:
        self.filter_orders = list(filter_orders)
        self.channel_orders = list(channel_orders)

    @staticmethod
    def solve_layer(weight: np.ndarray) -> dict[str, Tensor]:
        """Order one weight (filters, channels, height, width)."""
        kernels = weight.reshape(*weight.shape[:2], -1)
        channel_order = np.stack([greedy_path(kernels_of_filter) for kernels_of_filter in kernels])
        arranged = np.take_along_axis(kernels, channel_order[:, :, None], axis=1)
        return {
            "filter_order": torch.from_numpy(greedy_filter_path(arranged)),
            "channel_order": torch.from_numpy(channel_order),
        }

    @staticmethod
    def from_layers(layers: Sequence[Mapping[str, Tensor]], shapes: Shapes) -> InFilterOrdering:
        """From each layer's tensors, checked against the shapes."""
        filter_orders, channel_orders = [], []
        for index, (layer, (co, ci, _, _)) in enumerate(zip(layers, shapes, strict=True)):
            channels = layer["channel_order"]
            if tuple(channels.shape) != (co, ci):
                raise NernError(
                    f"the channel orders of layer {index} have shape {tuple(channels.shape)}, not {(co, ci)}"
                )
            filter_orders.append(_check_permutation(layer["filter_order"], co, f"the filter order of layer {index}"))
            rows = [_check_permutation(r, ci, f"channel order {f} of layer {index}") for f, r in enumerate(channels)]
            channel_orders.append(torch.stack(rows))
        return InFilterOrdering(filter_orders, channel_orders)

    def positions(self, shapes: Shapes) -> list[Int[Tensor, " kernels"]]:
        """See `Ordering.positions`."""
        result = []
        for filters, channels, (_, ci, _, _) in zip(self.filter_orders, self.channel_orders, shapes, strict=True):
            result.append((filters.argsort()[:, None] * ci + channels.argsort(dim=1)).flatten())
        return result

    def tensors(self) -> dict[str, Tensor]:
        """See `Ordering.tensors`."""
        named = {f"filter_order.{index}": order for index, order in enumerate(self.filter_orders)}
        return named | {f"channel_order.{index}": order for index, order in enumerate(self.channel_orders)}

    def bits(self) -> float:
        """log2(filters!) + filters * log2(channels!) a layer."""
        return sum(
            _log2_factorial(len(channels)) + len(channels) * _log2_factorial(channels.shape[1])
            for channels in self.channel_orders
        )


@ORDERINGS.register("none")
class NoOrdering:
    """Every kernel keeps its own coordinates; nothing is stored."""

    mode = "none"

    @staticmethod
    def solve_layer(weight: np.ndarray) -> dict[str, Tensor]:
        """Nothing to solve."""
        return {}

    @staticmethod
    def from_layers(layers: Sequence[Mapping[str, Tensor]], shapes: Shapes) -> NoOrdering:
        """Nothing to read."""
        return NoOrdering()

    def positions(self, shapes: Shapes) -> list[Int[Tensor, " kernels"]]:
        """See `Ordering.positions`."""
        return [torch.arange(co * ci) for co, ci, _, _ in shapes]

    def tensors(self) -> dict[str, Tensor]:
        """See `Ordering.tensors`."""
        return {}

    def bits(self) -> float:
        """Nothing is stored."""
        return 0.0


def solve_ordering(weights: Sequence[Tensor], mode: str, num_workers: int = 1) -> Ordering:
    """Order the kernels of these weights, `num_workers` layers side by side.

    Raises:
        NernError: unknown mode; a weight with values that are not finite.
    """
    cls = ORDERINGS[mode]
    arrays = [w.detach().cpu().double().numpy() for w in weights]
    for index, array in enumerate(arrays):
        if not np.isfinite(array).all():
            raise NernError(f"learnable weight {index} holds values that are not finite; its kernels cannot be ordered")
    with ThreadPoolExecutor(max_workers=num_workers) as pool:
        layers = list(pool.map(cls.solve_layer, arrays))
    ordering: Ordering = cls.from_layers(layers, [tuple(w.shape) for w in weights])
    return ordering
