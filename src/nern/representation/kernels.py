"""Kernel table: the kernels of all learnable weights as rows, their coordinates, and the way back to tensors.

A row is one kernel, `weight[filter, channel]`, numbered `filter * c_in + channel` within its layer; layers follow each
other in the order of the network's list. With five indices a row is one single weight, the kernel's entries in
row-major order. This module is the only place that knows this numbering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nern.errors import NernError
from nern.representation.sampling import sample_kernels

KERNEL_IDXS, WEIGHT_IDXS = 3, 5


@dataclass(frozen=True)
class KernelTable:
    """Geometry of the learnable weights.

    Args:
        shapes: of each layer's weight: (filters, channels, height, width).
        num_idxs: 3, a row is a kernel (layer, filter, channel); 5, a row is a weight (..., row, column).

    Raises:
        NernError: no layers, or one that is not four-dimensional.
    """

    shapes: tuple[tuple[int, int, int, int], ...]
    num_idxs: int = KERNEL_IDXS

    def __post_init__(self) -> None:
        if not self.shapes:
            raise NernError("the network has no learnable weights: a NeRN represents convolutions, and it has none")
        for index, shape in enumerate(self.shapes):
            if len(shape) != 4 or min(shape) < 1:
                raise NernError(
                    f"learnable weight {index} has shape {tuple(shape)}; (filters, channels, height, width) is expected"
                )
        if self.num_idxs not in (KERNEL_IDXS, WEIGHT_IDXS):
            raise NernError(f"num_idxs (={self.num_idxs}) must be {KERNEL_IDXS} or {WEIGHT_IDXS}")

    @staticmethod
    def of(weights: Sequence[Tensor], num_idxs: int = KERNEL_IDXS) -> KernelTable:
        """The table of these weights."""
        return KernelTable(tuple(tuple(w.shape) for w in weights), num_idxs)  # type: ignore[misc]

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

    def coordinates(self, positions: Sequence[Int[Tensor, " kernels"]] | None = None) -> Int[Tensor, "rows idxs"]:
        """Integer coordinates of every row.

        Args:
            positions: of each layer, the kernel whose (filter, channel) each kernel takes: an ordering
                (`Ordering.positions`). None: its own.
        """
        parts = []
        for index, (co, ci, kh, kw) in enumerate(self.shapes):
            kernel = torch.arange(co * ci) if positions is None else positions[index]
            columns = [torch.full_like(kernel, index), kernel // ci, kernel % ci]
            if self.num_idxs == WEIGHT_IDXS:
                entry = torch.arange(kh * kw).repeat(co * ci)
                columns = [c.repeat_interleave(kh * kw) for c in columns] + [entry // kw, entry % kw]
            parts.append(torch.stack(columns, dim=1))
        return torch.cat(parts)

    def normalize(self, coordinates: Int[Tensor, "rows idxs"], mode: str) -> Float[Tensor, "rows idxs"]:
        """Coordinates in float64, divided as `nern.embeddings.normalization_mode` says.

        'none': as they are. 'local': by the number of layers and the sizes of the row's own layer. 'global': by the
        largest entry of all weight shapes, kernel sizes included.
        """
        values = coordinates.double()
        if mode == "none":
            return values
        if mode == "global":
            return values / max(max(shape) for shape in self.shapes)
        sizes = torch.tensor([(len(self.shapes), *shape) for shape in self.shapes], dtype=torch.float64)
        return values / sizes[coordinates[:, 0], : self.num_idxs]

    def to_rows(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The rows of each layer: (rows, height, width) kernels, or (rows, 1, 1) with five indices."""
        if self.num_idxs == WEIGHT_IDXS:
            return [w.reshape(-1, 1, 1) for w in weights]
        return [w.reshape(-1, *w.shape[2:]) for w in weights]

    def to_weights(self, predictions: Float[Tensor, "rows k k"], sampling_mode: str) -> list[Tensor]:
        """The weight tensors that these predictions of all rows stand for, each sampled down to its layer's kernel.

        Differentiable. With five indices a prediction is the weight itself.
        """
        weights = []
        for index, shape in enumerate(self.shapes):
            rows = predictions[self.layer(index)]
            if self.num_idxs == KERNEL_IDXS:
                rows = sample_kernels(rows, shape[2:], sampling_mode)
            weights.append(rows.reshape(shape))
        return weights

    def norms(self, weights: Sequence[Tensor]) -> Float[Tensor, " rows"]:
        """Euclidean norm of every row of these weights."""
        return torch.cat([rows.flatten(1).norm(dim=1) for rows in self.to_rows(weights)])

    def check_output_size(self, output_size: int) -> None:
        """Raise NernError if a kernel is larger than what is predicted."""
        largest = max(max(shape[2:]) for shape in self.shapes)
        if self.num_idxs == KERNEL_IDXS and largest > output_size:
            index = next(i for i, shape in enumerate(self.shapes) if max(shape[2:]) == largest)
            raise NernError(
                f"learnable weight {index} has {self.shapes[index][2]} x {self.shapes[index][3]} kernels, larger than the "
                f"predicted {output_size} x {output_size}; set nern.output_size to at least {largest}"
            )
