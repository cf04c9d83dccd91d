"""Coordinates of rows, made when asked for: what each index can be, and which of these values a row has.

Nothing is held for each row but its position in the ordering (4 bytes; nothing without an ordering).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from jaxtyping import Int
from torch import Tensor

from nern.representation.kernels import WEIGHT_IDXS, KernelTable

Rows = Int[Tensor, " r"] | slice


class TableCoordinates:
    """Coordinates of a kernel table's rows.

    Args:
        table: the rows.
        positions: of each layer, the kernel whose (filter, channel) each kernel takes: an ordering
            (`Ordering.positions`). None: its own.
        mode: what indices are divided by (`nern.embeddings.normalization_mode`). 'none': nothing. 'local': the number of
            networks (where it is an index), of layers, and the sizes of the row's own layer. 'global': the largest entry
            of all weight shapes, kernel sizes included.
        device: where rows are asked for.

    Attributes:
        values: of each index, the float64 values that it takes.
    """

    def __init__(
        self,
        table: KernelTable,
        positions: Sequence[Int[Tensor, " kernels"]] | None = None,
        mode: str = "none",
        device: torch.device | str = "cpu",
    ) -> None:
        self.table, self.device = table, torch.device(device)
        self.positions = None if positions is None else torch.cat([p.int() for p in positions]).to(device)
        self.values: list[Tensor] = []
        self._offsets: list[Tensor] = []  # of each index and layer: where the layer's number 0 is among the values
        divisor = {"none": 1, "global": max(max(shape) for shape in table.shapes)}.get(mode)  # None: sizes of its own
        for numbers in zip(*table.layer_coordinates, strict=True):
            count = max(numbers) + 1
            self._add(torch.arange(count).double() / (divisor or count), numbers)
        for sizes in zip(*(shape[: table.num_idxs - 1] for shape in table.shapes), strict=True):
            if divisor is not None:
                self._add(torch.arange(max(sizes)).double() / divisor, [0] * len(sizes))
            else:
                self._add(torch.cat([torch.arange(n).double() / n for n in sizes]), [0, *accumulate(sizes[:-1])])
        kernels = [co * ci for co, ci, _, _ in table.shapes]
        self._ends = torch.tensor(table.starts[1:], device=device)
        self._starts = torch.tensor(table.starts[:-1], device=device)
        self._kernel_starts = torch.tensor([0, *accumulate(kernels[:-1])], device=device)
        self._shapes = torch.tensor(table.shapes, device=device)

    def _add(self, values: Tensor, offsets: Sequence[int]) -> None:
        self.values.append(values.to(self.device))
        self._offsets.append(torch.tensor(offsets, device=self.device))

    def numbers(self, which: Rows) -> Int[Tensor, " r"]:
        """The rows' numbers in the table."""
        if not isinstance(which, slice):
            return which
        begin, end, step = which.indices(self.table.rows)
        return torch.arange(begin, max(begin, end) if step > 0 else min(begin, end), step, device=self.device)

    def layers(self, which: Rows) -> Int[Tensor, " r"]:
        """The rows' layers."""
        return torch.bucketize(self.numbers(which), self._ends, right=True)

    def places(self, which: Rows) -> tuple[Int[Tensor, " r"], Int[Tensor, " r"], Int[Tensor, " r"]]:
        """The rows' layers, their places along the orders of these, and how many places there are. Rows are kernels."""
        rows, layer = self.numbers(which), self.layers(which)
        place = rows - self._starts[layer]
        if self.positions is not None:
            place = self.positions[self._kernel_starts[layer] + place].long()
        return layer, place, self._shapes[layer, 0] * self._shapes[layer, 1]

    def lookups(self, which: Rows) -> list[Int[Tensor, " r"]]:
        """Of each index, which of its values every row of `which` has."""
        rows, layer = self.numbers(which), self.layers(which)
        kernel, (_, channels, height, width) = rows - self._starts[layer], self._shapes[layer].unbind(1)
        numbers: list[Tensor] = []
        if self.table.num_idxs == WEIGHT_IDXS:
            within = kernel % (height * width)
            kernel, numbers = kernel // (height * width), [within // width, within % width]
        if self.positions is not None:
            kernel = self.positions[self._kernel_starts[layer] + kernel]
        numbers = [kernel // channels, kernel % channels, *numbers]
        offsets = [offset[layer] for offset in self._offsets]
        constant = len(offsets) - len(numbers)
        return offsets[:constant] + [o + n for o, n in zip(offsets[constant:], numbers, strict=True)]
