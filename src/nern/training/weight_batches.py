"""Weight batches: which rows carry gradient in a step.

All rows are predicted in every step, so that losses see a complete network; these methods choose the rows whose
predictions are differentiated. Each is a function of the step number and the seed: nothing to save for resuming. A row
drawn twice counts twice; gradients are not rescaled for the share of rows drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nern.randomness import generator
from nern.registry import WEIGHT_BATCHES
from nern.representation.kernels import KernelTable

WEIGHTED_SHARE = 0.2  # of the steps of random_weighted_batch draw by kernel norm

Rows = Int[Tensor, " r"]
Method = Callable[["WeightBatches", int], "Rows | None"]


class WeightBatches:
    """The rows of each step.

    Args:
        method: registered name.
        table: the rows.
        norms: of every row's original kernel.
        size: rows in a batch; None: all.
        seed: of the draws.
    """

    def __init__(
        self, method: str, table: KernelTable, norms: Float[Tensor, " rows"], size: int | None, seed: int
    ) -> None:
        self.method: Method = WEIGHT_BATCHES[method]
        self.table = table
        self.norms = norms.double().cpu()
        self.size = table.rows if size is None else min(size, table.rows)
        self.seed = seed

    def rows(self, step: int) -> Rows | None:
        """Rows that carry gradient in step `step`; None: all of them."""
        return self.method(self, step)

    def layer_rows(self, layer: int) -> Rows:
        """All rows of a layer."""
        return torch.arange(self.table.starts[layer], self.table.starts[layer + 1])

    def rng(self, *purpose: object) -> torch.Generator:
        """The generator for a draw."""
        return generator(self.seed, "weight batch", *purpose)


@WEIGHT_BATCHES.register("all", needs_size=False)
def all_rows(batches: WeightBatches, step: int) -> Rows | None:
    """Every row."""
    return None


@WEIGHT_BATCHES.register("sequential_layer", needs_size=False)
def sequential_layer(batches: WeightBatches, step: int) -> Rows | None:
    """The rows of one layer after the other; the first step takes layer 1, layer 0 ends the cycle (as published)."""
    return batches.layer_rows((step + 1) % len(batches.table.shapes))


@WEIGHT_BATCHES.register("random_layer", needs_size=False)
def random_layer(batches: WeightBatches, step: int) -> Rows | None:
    """The rows of a layer drawn uniformly, each step on its own."""
    return batches.layer_rows(int(torch.randint(len(batches.table.shapes), (), generator=batches.rng(step))))


@WEIGHT_BATCHES.register("random_batch", needs_size=False)
def random_batch(batches: WeightBatches, step: int) -> Rows | None:
    """`size` different rows, drawn uniformly, each step on its own."""
    return torch.randperm(batches.table.rows, generator=batches.rng(step))[: batches.size]


@WEIGHT_BATCHES.register("random_weighted_batch", needs_size=True)
def random_weighted_batch(batches: WeightBatches, step: int) -> Rows | None:
    """In 80 % of the steps as `random_batch`; else `size` rows drawn with replacement, with probability proportional to
    the norm of the original kernel (NeRN, section 3.3)."""
    rng = batches.rng(step)
    if float(torch.rand((), generator=rng)) >= WEIGHTED_SHARE:
        return torch.randperm(batches.table.rows, generator=rng)[: batches.size]
    cumulative = batches.norms.cumsum(0)
    draws = torch.rand(batches.size, generator=rng, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, draws, right=True).clamp_(max=batches.table.rows - 1)


@WEIGHT_BATCHES.register("random_batch_without_replacement", needs_size=True)
def random_batch_without_replacement(batches: WeightBatches, step: int) -> Rows | None:
    """Consecutive slices of a permutation of all rows, a new permutation each cycle; the last slice may be short."""
    slices = -(-batches.table.rows // batches.size)
    cycle, index = divmod(step, slices)
    permutation = torch.randperm(batches.table.rows, generator=batches.rng(cycle))
    return permutation[index * batches.size : (index + 1) * batches.size]
