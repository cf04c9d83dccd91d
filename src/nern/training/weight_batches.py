"""Weight batches: which rows carry gradient in a step.

All rows are predicted in every step, so that losses see a complete network; these methods choose the rows whose
predictions are differentiated. Each is a function of the step number and the seed: nothing to save for resuming. A row
drawn twice counts twice; gradients are not rescaled for the share of rows drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nern.randomness import generator
from nern.registry import WEIGHT_BATCHES, Choice
from nern.representation.kernels import KernelTable

MANY_TIMES = 16  # as many rows as are drawn, from which on they are drawn one by one
MULTIPLY_ADDS = 10**11  # of the predictor in a step of random_filters for which no size is set
WEIGHTED_SHARE = 0.2  # of the steps of random_weighted_batch draw by kernel norm

Rows = Int[Tensor, " r"]
Method = Callable[["WeightBatches", int], "Rows | None"]


class WeightBatches:
    """The rows of each step.

    Args:
        method: registered name.
        table: the rows.
        norms: of every row's original kernel.
        size: rows in a batch; None: all, and of random_filters as many as a step can take (`MULTIPLY_ADDS`).
        seed: of the draws.
        parameters: of the predictor, which are its multiply-adds for a row.
    """

    def __init__(
        self,
        method: Choice,
        table: KernelTable,
        norms: Float[Tensor, " rows"],
        size: int | None,
        seed: int,
        parameters: int = 1,
    ) -> None:
        self.method: Method = WEIGHT_BATCHES[method]
        self.table = table
        self.norms = norms.cpu()
        self.size = table.rows if size is None else min(size, table.rows)
        self.affordable = max(1, MULTIPLY_ADDS // parameters) if size is None else self.size
        self.seed = seed

    def rows(self, step: int) -> Rows | None:
        """Rows that carry gradient in step `step`; None: all of them."""
        return self.method(self, step)

    def layer_rows(self, layer: int) -> Rows:
        """All rows of a layer."""
        return torch.arange(self.table.starts[layer], self.table.starts[layer + 1])

    @cached_property
    def cumulative_norms(self) -> Float[Tensor, " rows"]:
        """Sums of the norms up to each row."""
        return self.norms.double().cumsum(0)

    def rng(self, *purpose: object) -> torch.Generator:
        """The generator for a draw."""
        return generator(self.seed, "weight batch", *purpose)


def different_rows(count: int, size: int, rng: torch.Generator) -> Rows:
    """`size` different numbers below `count`, all choices equally likely."""
    if count < MANY_TIMES * size:
        return torch.randperm(count, generator=rng)[:size]
    drawn = torch.empty(0, dtype=torch.int64)  # of very many rows a whole permutation takes longer than the step
    while len(drawn) < size:
        drawn = torch.cat([drawn, torch.randint(count, (size,), generator=rng)])
        values, inverse = drawn.unique(return_inverse=True)
        first = torch.full((len(values),), len(drawn)).scatter_reduce_(0, inverse, torch.arange(len(drawn)), "amin")
        drawn = drawn[first.sort().values]  # without repeats, in the order in which they were drawn
    return drawn[:size]


@WEIGHT_BATCHES.register("all", needs_size=False, whole_filters=True)
def all_rows(batches: WeightBatches, step: int) -> Rows | None:
    """Every row."""
    return None


@WEIGHT_BATCHES.register("sequential_layer", needs_size=False, whole_filters=True)
def sequential_layer(batches: WeightBatches, step: int) -> Rows | None:
    """The rows of one layer after the other; the first step takes layer 1, layer 0 ends the cycle (as published)."""
    return batches.layer_rows((step + 1) % len(batches.table.shapes))


@WEIGHT_BATCHES.register("random_layer", needs_size=False, whole_filters=True)
def random_layer(batches: WeightBatches, step: int) -> Rows | None:
    """The rows of a layer drawn uniformly, each step on its own."""
    return batches.layer_rows(int(torch.randint(len(batches.table.shapes), (), generator=batches.rng(step))))


@WEIGHT_BATCHES.register("random_batch", needs_size=False)
def random_batch(batches: WeightBatches, step: int) -> Rows | None:
    """`size` different rows, drawn uniformly, each step on its own."""
    return different_rows(batches.table.rows, batches.size, batches.rng(step))


@WEIGHT_BATCHES.register("random_weighted_batch", needs_size=True)
def random_weighted_batch(batches: WeightBatches, step: int) -> Rows | None:
    """In 80 % of the steps as `random_batch`; else `size` rows drawn with replacement, with probability proportional to
    the norm of the original kernel (NeRN, section 3.3)."""
    rng = batches.rng(step)
    if float(torch.rand((), generator=rng)) >= WEIGHTED_SHARE:
        return different_rows(batches.table.rows, batches.size, rng)
    cumulative = batches.cumulative_norms
    draws = torch.rand(batches.size, generator=rng, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, draws, right=True).clamp_(max=batches.table.rows - 1)


@WEIGHT_BATCHES.register("random_batch_without_replacement", needs_size=True)
def random_batch_without_replacement(batches: WeightBatches, step: int) -> Rows | None:
    """Consecutive slices of a permutation of all rows, a new permutation each cycle; the last slice may be short."""
    slices = -(-batches.table.rows // batches.size)
    cycle, index = divmod(step, slices)
    permutation = torch.randperm(batches.table.rows, generator=batches.rng(cycle))
    return permutation[index * batches.size : (index + 1) * batches.size]


@WEIGHT_BATCHES.register("random_filters", needs_size=False, whole_filters=True)
def random_filters(batches: WeightBatches, step: int) -> Rows | None:
    """All rows of filters: of each layer's filters the share that makes up `size` rows on average, drawn without repeats,
    each step on its own; at least one filter of all. Where that is all rows, every row."""
    rng, table = batches.rng(step), batches.table
    share = batches.affordable / table.rows
    if share >= 1:
        return None
    drawn = []
    for index, (filters, *_) in enumerate(table.shapes):
        wanted = share * filters + float(torch.rand((), generator=rng, dtype=torch.float64))  # its fraction by chance
        drawn.append(_rows_of(table, index, torch.randperm(filters, generator=rng)[: int(wanted)]))
    rows = torch.cat(drawn)
    if len(rows):
        return rows
    index = int(torch.randint(len(table.shapes), (), generator=rng))
    return _rows_of(table, index, torch.randint(table.shapes[index][0], (1,), generator=rng))


def _rows_of(table: KernelTable, layer: int, filters: Int[Tensor, " f"]) -> Rows:
    """All rows of some filters of a layer."""
    of_each = table.layer_rows[layer] // table.shapes[layer][0]
    rows = table.starts[layer] + filters[:, None] * of_each + torch.arange(of_each)
    return rows.flatten()
