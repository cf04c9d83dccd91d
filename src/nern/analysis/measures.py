"""What a report measures: errors of kernels, smoothness of their order, changes of classes, and which kernels matter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nern.randomness import generator

PerKernel = Float[Tensor, "filters channels"]
UNRELATED = math.sqrt(2)  # mean step between vectors at right angles, of one length
SHARES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)  # of the kernels that are dropped
DRAWS = 3  # random rankings
WORST, SMALLEST, RANDOM = "worst", "smallest", "random"


def kernel_errors(original: Sequence[Tensor], weights: Sequence[Tensor]) -> list[PerKernel]:
    """Relative error of every kernel of each layer: norm of its error over its norm. Of a kernel of zeros it is infinite,
    or 0 where that is reconstructed exactly."""
    pairs = [(w.double().flatten(2), o.double().flatten(2)) for w, o in zip(weights, original, strict=True)]
    return [((w - o).norm(dim=2) / o.norm(dim=2)).nan_to_num(0.0, math.inf) for w, o in pairs]


def mean_step(weight: Tensor, walk: Int[Tensor, " kernels"] | None = None) -> float | None:
    """Mean Euclidean distance of consecutive kernels of a layer, in units of the root mean square of the kernels' norms.

    Args:
        weight: (filters, channels, height, width).
        walk: numbers (filter * channels + channel) of the kernels in their order; None: as they lie.

    Returns:
        None of a single kernel, or of zeros only.
    """
    kernels = weight.double().flatten(0, 1).flatten(1)
    scale = kernels.norm(dim=1).square().mean().sqrt().item()
    if len(kernels) < 2 or not scale:
        return None
    along = kernels if walk is None else kernels[walk]
    return along.diff(dim=0).norm(dim=1).mean().item() / scale


@dataclass(frozen=True)
class ClassChange:
    """Images of one class: how many there are, and how many are right only after, or only before."""

    label: int
    images: int
    gained: int
    lost: int

    @property
    def change(self) -> float:
        """Of the accuracy, in points."""
        return 100 * (self.gained - self.lost) / self.images


def class_changes(
    labels: Int[Tensor, " images"], before: Int[Tensor, " images"], after: Int[Tensor, " images"], classes: int
) -> list[ClassChange]:
    """Of every class that has images, in the order of their numbers: from right labels and predictions."""
    was, is_ = before == labels, after == labels
    counts = [torch.bincount(labels[of], minlength=classes).tolist() for of in (labels >= 0, is_ & ~was, was & ~is_)]
    return [ClassChange(label, *found) for label, found in enumerate(zip(*counts, strict=True)) if found[0]]


def drop_curves(
    accuracy: Callable[[Sequence[Tensor]], float], original: Sequence[Tensor], weights: Sequence[Tensor], seed: int
) -> list[dict[str, Any]]:
    """Accuracy of the reconstructed network without some of its kernels.

    Kernels that a NeRN reconstructs badly turn out to be those that a network needs least: ranking by relative error is an
    application published with NeRN (Ashkenazi et al., ICLR 2023). It is compared with ranking by size and with chance.

    Args:
        accuracy: in percent, of the network with these weights.
        original, weights: of all layers, the reconstructed ones the second; (filters, channels, height, width).
        seed: of the random rankings.

    Returns:
        Of each 'ranking': 'shares' of all kernels that are dropped, and 'accuracies' at them, of each draw. 'worst' drops
        the largest relative error first; 'smallest' the smallest reconstructed kernel, by its norm over the square root of
        the number of its entries, so that kernels of several sizes compare; 'random' has several draws.
    """
    errors = torch.cat([of_layer.flatten() for of_layer in kernel_errors(original, weights)])
    sizes = torch.cat([w.double().flatten(2).square().mean(2).flatten() for w in weights])
    rankings = {WORST: [errors.argsort(descending=True, stable=True)], SMALLEST: [sizes.argsort(stable=True)]}
    random = [generator(seed, "dropped kernels", draw) for draw in range(DRAWS)]
    rankings[RANDOM] = [torch.randperm(len(errors), generator=of_draw) for of_draw in random]
    counts, whole = [weight.shape[0] * weight.shape[1] for weight in weights], accuracy(weights)

    def left(ranking: Tensor, share: float) -> float:
        kept = torch.ones(len(errors)).index_fill_(0, ranking[: round(share * len(errors))], 0.0).split(counts)
        return accuracy([w * of.to(w).view(*w.shape[:2], 1, 1) for w, of in zip(weights, kept, strict=True)])

    found = []
    for name, draws in rankings.items():
        accuracies = [[left(ranking, share) if share else whole for share in SHARES] for ranking in draws]
        found.append({"ranking": name, "shares": SHARES, "accuracies": accuracies})
    return found
