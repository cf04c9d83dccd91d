"""Heads: which output layer of the predictor gives which layer's kernels.

'per_size': one head for each kernel size of the network. 'per_layer': one for each layer. 'shared': one head of K x K
kernels, from which smaller ones are sampled (as published). A head has rows of its own: those of its layers, in the order of
the kernel table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nern.errors import NernError
from nern.registry import SAMPLING_MODES
from nern.representation.kernels import WEIGHT_IDXS, KernelTable

Size = tuple[int, int]


@dataclass(frozen=True)
class Heads:
    """The heads of one kernel table."""

    table: KernelTable
    sizes: tuple[Size, ...]  # (height, width) of what each head predicts
    of_layer: tuple[int, ...]  # the head of each layer
    sampling_mode: str = "center"  # how a prediction is reduced to a smaller kernel
    names: tuple[str, ...] = ()  # of the heads; empty: their sizes tell them apart

    @staticmethod
    def build(table: KernelTable, kind: str, output_size: int = 3, sampling_mode: str = "center") -> Heads:
        """'per_size', 'per_layer' or 'shared' heads; with five indices a row is a weight, and there is one head of 1 x 1.
        Raises NernError for 'shared', and a kernel larger than `output_size`."""
        sizes = [shape[2:] for shape in table.shapes]
        if table.num_idxs == WEIGHT_IDXS:
            return Heads(table, ((1, 1),), (0,) * len(sizes), sampling_mode)
        if kind == "per_size":
            distinct = tuple(dict.fromkeys(sizes))
            return Heads(table, distinct, tuple(distinct.index(size) for size in sizes), sampling_mode)
        if kind == "per_layer":
            numbers = tuple(range(len(sizes)))
            return Heads(table, tuple(sizes), numbers, sampling_mode, tuple(f"layer{number}" for number in numbers))
        largest = max(max(size) for size in sizes)
        if largest > output_size:
            index = next(i for i, size in enumerate(sizes) if max(size) == largest)
            raise NernError(
                f"learnable weight {index} has {sizes[index][0]} x {sizes[index][1]} kernels, larger than the predicted "
                f"{output_size} x {output_size}; set nern.output_size to at least {largest}, or nern.heads: per_size"
            )
        return Heads(table, ((output_size, output_size),), (0,) * len(sizes), sampling_mode)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First row of each layer among the rows of its head."""
        used, starts = [0] * len(self.sizes), []
        for head, rows in zip(self.of_layer, self.table.layer_rows, strict=True):
            starts.append(used[head])
            used[head] += rows
        return tuple(starts)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Rows of each head."""
        pairs = list(zip(self.of_layer, self.table.layer_rows, strict=True))
        return tuple(sum(rows for h, rows in pairs if h == head) for head in range(len(self.sizes)))

    @cached_property
    def _lookups(self) -> tuple[Tensor, Tensor, Tensor]:
        ends = torch.tensor(self.table.starts[1:])
        return ends, torch.tensor(self.of_layer), torch.tensor(self.starts) - torch.tensor(self.table.starts[:-1])

    @property
    def samples(self) -> bool:
        """Whether a layer's kernels are smaller than what its head predicts."""
        sizes = [shape[2:] for shape in self.table.shapes]
        pairs = zip(self.of_layer, sizes, strict=True)
        return self.table.num_idxs != WEIGHT_IDXS and any(self.sizes[head] != size for head, size in pairs)

    def layers(self, head: int) -> list[int]:
        """The layers that a head predicts."""
        return [index for index, of_layer in enumerate(self.of_layer) if of_layer == head]

    def rows(self, head: int) -> Int[Tensor, " r"]:
        """The table's rows that a head predicts."""
        starts = self.table.starts
        return torch.cat([torch.arange(starts[index], starts[index + 1]) for index in self.layers(head)])

    def split(self, rows: Int[Tensor, " r"]) -> list[tuple[Tensor, Tensor]]:
        """For each head, those of `rows` that it predicts, and their numbers among the rows of the head."""
        if len(self.sizes) == 1:
            return [(rows, rows)]
        ends, of_layer, shift = (t.to(rows.device) for t in self._lookups)
        layer = torch.searchsorted(ends, rows, right=True)
        head, local = of_layer[layer], rows + shift[layer]
        return [(rows[head == h], local[head == h]) for h in range(len(self.sizes))]

    def part(self, predictions: Sequence[Float[Tensor, "r h w"]], index: int) -> Float[Tensor, "rows h w"]:
        """Of predictions of all rows, one tensor a head, those of layer `index`."""
        start = self.starts[index]
        return predictions[self.of_layer[index]][start : start + self.table.layer_rows[index]]

    def sampled(self, kernels: Float[Tensor, "r h w"], index: int) -> Float[Tensor, "r h w"]:
        """Predictions of rows of layer `index`, reduced to its kernel size."""
        if self.table.num_idxs == WEIGHT_IDXS:
            return kernels
        return sample_kernels(kernels, self.table.shapes[index][2:], self.sampling_mode)

    def by_layer(
        self, rows: Int[Tensor, " r"], predictions: Sequence[Float[Tensor, "r h w"]]
    ) -> list[tuple[int, Tensor, Tensor]]:
        """Predictions of `rows`, as `NeRN.forward` gives them, sorted by layer: (layer, row numbers within it, kernels) of
        each that occurs. Rows rise; repeats are kept."""
        starts = torch.tensor(self.table.starts, device=rows.device)
        counts = torch.searchsorted(rows, starts).diff().tolist()
        used, parts, done = [0] * len(self.sizes), [], 0
        for index, count in enumerate(counts):
            head = self.of_layer[index]
            if count:
                kernels = predictions[head][used[head] : used[head] + count]
                local = rows[done : done + count] - self.table.starts[index]
                parts.append((index, local, self.sampled(kernels, index)))
            used[head] += count
            done += count
        return parts


@SAMPLING_MODES.register("center")
def center(kernels: Float[Tensor, "n k k"], size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """The central window, which starts at `int(K / 2 - size / 2)`."""
    top, left = (int(kernels.shape[axis + 1] / 2 - size[axis] / 2) for axis in (0, 1))
    return kernels[:, top : top + size[0], left : left + size[1]]


@SAMPLING_MODES.register("average")
def average(kernels: Float[Tensor, "n k k"], size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """Mean over sliding windows of `K - size + 1`, stride 1."""
    return F.avg_pool2d(kernels.unsqueeze(1), _window(kernels, size), stride=1).squeeze(1)


@SAMPLING_MODES.register("max")
def maximum(kernels: Float[Tensor, "n k k"], size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """Maximum over sliding windows of `K - size + 1`, stride 1."""
    return F.max_pool2d(kernels.unsqueeze(1), _window(kernels, size), stride=1).squeeze(1)


def sample_kernels(kernels: Float[Tensor, "n k k"], size: tuple[int, int], mode: str) -> Float[Tensor, "n h w"]:
    """Kernels of `size` (height, width) from predicted ones; unchanged where they have it already. Raises NernError where
    `size` exceeds the predicted size."""
    height, width = kernels.shape[1:]
    if size[0] > height or size[1] > width:
        raise NernError(
            f"a {size[0]} x {size[1]} kernel cannot be sampled from a predicted {height} x {width} one; "
            f"set nern.output_size to at least {max(size)}"
        )
    return kernels if size == (height, width) else SAMPLING_MODES[mode](kernels, size)


def _window(kernels: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    return kernels.shape[1] - size[0] + 1, kernels.shape[2] - size[1] + 1
