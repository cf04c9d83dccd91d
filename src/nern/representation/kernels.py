"""Kernel table: the kernels of all learnable weights as rows, their coordinates, and the way back to tensors.

A row is one kernel, `weight[filter, channel]`, numbered `filter * c_in + channel` within its layer; layers follow each
other in the order of the networks' lists. With five indices a row is one single weight, the kernel's entries in row-major
order. This module is the only place that knows this numbering.

Every weight is seen as (filters, channels, height, width): a matrix has 1 x 1 kernels, a 1-d convolution 1 x k ones, and
of a kernel with three axes the first two are joined. The channels of a grouped convolution are those of one group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from nern.errors import NernError

KERNEL_IDXS, WEIGHT_IDXS = 3, 5
Shape4 = tuple[int, int, int, int]


def kernel_shape(shape: Sequence[int]) -> Shape4:
    """A weight's shape as (filters, channels, height, width). Raises NernError for a vector, or an empty axis."""
    if len(shape) < 2 or min(shape) < 1:
        raise NernError(f"a weight of shape {tuple(shape)} has no kernels; (filters, channels, ...) is expected")
    kernel = shape[2:]
    return shape[0], shape[1], math.prod(kernel[:-1]), kernel[-1] if kernel else 1


@dataclass(frozen=True)
class KernelTable:
    """Geometry of the learnable weights. Raises NernError for no layers, or one that is not four-dimensional."""

    shapes: tuple[Shape4, ...]  # of each layer's weight: (filters, channels, height, width)
    num_idxs: int = KERNEL_IDXS  # 3, a row is a kernel (layer, filter, channel); 5, a weight (..., row, column)
    tensor_shapes: tuple[tuple[int, ...], ...] = ()  # of the weights themselves; empty: `shapes`
    networks: tuple[int, ...] = ()  # of each layer its network's number, rising; empty: coordinates do not tell

    def __post_init__(self) -> None:
        if not self.shapes:
            raise NernError("the network has no learnable weights: there is nothing for a NeRN to represent")
        for index, shape in enumerate(self.shapes):
            if len(shape) != 4 or min(shape) < 1:
                raise NernError(
                    f"learnable weight {index} has shape {tuple(shape)}; (filters, channels, height, width) is expected"
                )
        if self.num_idxs not in (KERNEL_IDXS, WEIGHT_IDXS):
            raise NernError(f"num_idxs (={self.num_idxs}) must be {KERNEL_IDXS} or {WEIGHT_IDXS}")

    @staticmethod
    def of(weights: Sequence[Tensor], num_idxs: int = KERNEL_IDXS) -> KernelTable:
        """The table of one network's weights."""
        return KernelTable.of_networks([weights], num_idxs)

    @staticmethod
    def of_networks(networks: Sequence[Sequence[Tensor]], num_idxs: int = KERNEL_IDXS) -> KernelTable:
        """The table of the weights of several networks, one after the other."""
        tensor_shapes = tuple(tuple(w.shape) for weights in networks for w in weights)
        numbers = tuple(number for number, weights in enumerate(networks) for _ in weights)
        several = numbers if len(networks) > 1 else ()
        return KernelTable(tuple(kernel_shape(s) for s in tensor_shapes), num_idxs, tensor_shapes, several)

    @cached_property
    def layer_rows(self) -> tuple[int, ...]:
        """Rows of each layer."""
        return tuple(
            co * ci * (kh * kw if self.num_idxs == WEIGHT_IDXS else 1) for co, ci, kh, kw in self.shapes
        )  # fmt: skip

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First row of each layer, and the number of all rows at the end."""
        starts = [0]
        for rows in self.layer_rows:
            starts.append(starts[-1] + rows)
        return tuple(starts)

    @property
    def rows(self) -> int:
        """Rows of all layers."""
        return self.starts[-1]

    @cached_property
    def num_weights(self) -> int:
        """Single weights in all layers."""
        return sum(co * ci * kh * kw for co, ci, kh, kw in self.shapes)

    def layer(self, index: int) -> slice:
        """Rows of layer `index`."""
        return slice(self.starts[index], self.starts[index + 1])

    @cached_property
    def layer_coordinates(self) -> tuple[tuple[int, ...], ...]:
        """What all coordinates of a layer begin with: its number, or (network, number). Numbers run on from network to
        network: a layer of one is not taken for that of another."""
        if not self.networks:
            return tuple((index,) for index in range(len(self.shapes)))
        return tuple((network, index) for index, network in enumerate(self.networks))

    def to_rows(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The rows of each layer: (rows, height, width) kernels, or (rows, 1, 1) with five indices."""
        if self.num_idxs == WEIGHT_IDXS:
            return [w.reshape(-1, 1, 1) for w in weights]
        return [w.reshape(-1, *shape[2:]) for w, shape in zip(weights, self.shapes, strict=True)]

    def to_weight(self, rows: Float[Tensor, "rows h w"], index: int) -> Tensor:
        """The weight tensor of layer `index` from its rows. Differentiable."""
        return rows.reshape(self.tensor_shapes[index] if self.tensor_shapes else self.shapes[index])

    def views(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The weights as (filters, channels, height, width)."""
        return [w.reshape(shape) for w, shape in zip(weights, self.shapes, strict=True)]

    def norms(self, weights: Sequence[Tensor]) -> Float[Tensor, " rows"]:
        """Euclidean norm of every row of these weights."""
        return torch.cat([rows.flatten(1).norm(dim=1) for rows in self.to_rows(weights)])
