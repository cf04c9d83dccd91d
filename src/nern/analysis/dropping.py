"""Which kernels matter: accuracy of a network that some of its kernels are dropped from.

Kernels that a NeRN reconstructs badly turn out to be those that a network needs least: ranking by relative reconstruction
error is an application published with NeRN (Ashkenazi et al., ICLR 2023). It is compared with ranking by size and with
chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from nern.analysis.measures import kernel_errors, kernel_norms
from nern.randomness import generator
from nern.representation.kernels import KernelTable

SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
DRAWS = 3
WORST, SMALLEST, RANDOM = "worst", "smallest", "random"

Numbers = Int[Tensor, " kernels"]


@dataclass(frozen=True)
class DropCurve:
    """Accuracy (percent) after dropping each share of the kernels, of every draw: one, or several of a random ranking."""

    ranking: str
    shares: Sequence[float]
    accuracies: Sequence[Sequence[float]]

    def means(self) -> list[float]:
        """Over the draws, for each share."""
        return [math.fsum(values) / len(values) for values in zip(*self.accuracies, strict=True)]


def rankings(
    original: Sequence[Tensor], weights: Sequence[Tensor], seed: int, draws: int = DRAWS
) -> dict[str, list[Numbers]]:
    """All kernels of a network in the order in which they are dropped; numbers run on from layer to layer.

    Args:
        original: weights of the original.
        weights: the reconstructed ones.
        seed: of the random rankings.
        draws: number of the random rankings.

    Returns:
        'worst': the largest relative error first. 'smallest': the smallest reconstructed kernel first, by its norm over the
        square root of the number of its entries, so that kernels of several sizes compare. 'random': `draws` of them.
    """
    errors = torch.cat([e.flatten() for e in kernel_errors(original, weights)])
    entries = [math.prod(shape[2:]) for shape in KernelTable.of(weights).shapes]
    norms = kernel_norms(weights)
    sizes = torch.cat([(norm / count**0.5).flatten() for norm, count in zip(norms, entries, strict=True)])
    drawn = [torch.randperm(len(errors), generator=generator(seed, "dropped kernels", draw)) for draw in range(draws)]
    return {
        WORST: [errors.argsort(descending=True, stable=True)],
        SMALLEST: [sizes.argsort(stable=True)],
        RANDOM: drawn,
    }


def without(weights: Sequence[Tensor], dropped: Numbers) -> list[Tensor]:
    """Copies of the weights in which these kernels, numbered on from layer to layer, are zero."""
    table = KernelTable.of(weights)
    kept = torch.ones(table.rows, dtype=torch.bool).index_fill_(0, dropped, False)
    rows = table.to_rows(weights)
    return [
        table.to_weight(of_layer * kept[table.layer(index)].to(of_layer).view(-1, 1, 1), index)
        for index, of_layer in enumerate(rows)
    ]


def drop_curves(
    accuracy: Callable[[Sequence[Tensor]], float],
    original: Sequence[Tensor],
    weights: Sequence[Tensor],
    seed: int,
    shares: Sequence[float] = SHARES,
    draws: int = DRAWS,
) -> list[DropCurve]:
    """Accuracy of the reconstructed network without some of its kernels, for each ranking of `rankings`.

    Args:
        accuracy: in percent, of the network with these weights.
        shares: of all kernels that are dropped, from 0 to 1.
    """
    whole = accuracy(weights) if 0.0 in shares else math.nan
    curves = []
    for name, orders in rankings(original, weights, seed, draws).items():
        found = [
            [accuracy(without(weights, order[: round(share * len(order))])) if share else whole for share in shares]
            for order in orders
        ]
        curves.append(DropCurve(name, shares, found))
    return curves
