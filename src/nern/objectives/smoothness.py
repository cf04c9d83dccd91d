"""Smoothness of weights: how alike neighbouring kernels are (larger is smoother; NeRN, section 3.2).

Neighbours lie next to each other along the channels of a filter, or along the filters of a channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nern.registry import SMOOTHNESS


def _normalized(kernels: Float[Tensor, "f c k"]) -> Float[Tensor, "f c k"]:
    """Each kernel divided by its norm; 1 x 1 kernels by the norm of the whole layer. Zero stays zero."""
    single = kernels.shape[2] == 1
    norm = torch.linalg.vector_norm(kernels) if single else torch.linalg.vector_norm(kernels, dim=2, keepdim=True)
    return kernels / torch.where(norm > 0, norm, torch.ones_like(norm))


BOTH = ("filters", "channels")


def _neighbours(kernels: Tensor, along: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
    """Pairs (kernels, the next ones) along each direction."""
    pairs = {"channels": (kernels[:, :-1], kernels[:, 1:]), "filters": (kernels[:-1], kernels[1:])}
    return [pairs[direction] for direction in along]


def _l2_layer(kernels: Float[Tensor, "f c k"], along: Sequence[str], published: bool) -> Tensor:
    unit = _normalized(kernels)
    following = kernels if published else unit
    pairs = zip(_neighbours(unit, along), _neighbours(following, along), strict=True)
    return -sum((torch.linalg.vector_norm(a - b, dim=2).sum() for (a, _), (_, b) in pairs), kernels.new_zeros(()))


@SMOOTHNESS.register("L2Smoothness")
def l2_smoothness(weights: Sequence[Tensor], *, along: Sequence[str] = BOTH, published: bool = False) -> Tensor:
    """Minus the summed distances of normalised neighbours.

    Args:
        weights: (filters, channels, ...) each.
        along: directions in which kernels are neighbours.
        published: compare a normalised kernel with an unnormalised neighbour, as the published code does.
    """
    return torch.stack([_l2_layer(kernel_rows(w), along, published) for w in weights]).sum()


@SMOOTHNESS.register("CosineSmoothness")
def cosine_smoothness(
    weights: Sequence[Tensor], *, along: Sequence[str] = BOTH, published: bool = False
) -> tuple[Tensor, Tensor]:
    """Summed cosine similarities of neighbours in layers with kernels above 1 x 1, and `l2_smoothness` of the others
    (whose cosine is only a sign): (cosine, l2)."""
    cosine, l2 = weights[0].new_zeros(()), weights[0].new_zeros(())
    for weight in weights:
        kernels = kernel_rows(weight)
        if kernels.shape[2] == 1:
            l2 = l2 + _l2_layer(kernels, along, published)
        else:
            for one, following in _neighbours(_normalized(kernels), along):
                cosine = cosine + (one * following).sum()
    return cosine, l2


def mean_neighbour_cosine(weights: Sequence[Tensor]) -> float:
    """Mean cosine similarity of neighbouring kernels, along both directions, over layers with kernels above 1 x 1; 0
    where there are none."""
    kernels = [k for k in map(kernel_rows, weights) if k.shape[2] > 1]
    pairs = [pair for k in kernels for pair in _neighbours(_normalized(k), BOTH)]
    count = sum(one.shape[0] * one.shape[1] for one, _ in pairs)
    return float(sum((one * following).sum() for one, following in pairs)) / count if count else 0.0


def kernel_rows(weight: Tensor) -> Float[Tensor, "f c k"]:
    """Kernels flattened; a matrix's entries are kernels of one."""
    return weight.unsqueeze(2) if weight.dim() == 2 else weight.flatten(2)
