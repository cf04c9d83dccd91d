"""How alike consecutive kernels are, in one order or another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from nern.analysis.kernel_errors import kernel_norms
from nern.ordering import NoOrdering, path_cost

UNRELATED = math.sqrt(2)  # mean step between vectors at right angles, of one length


def mean_step(weight: Tensor, walk: Int[Tensor, " kernels"] | None = None) -> float | None:
    """Mean Euclidean distance of consecutive kernels of a layer, in units of the root mean square of the kernels' norms.

    Args:
        weight: (filters, channels, height, width).
        walk: numbers (filter * channels + channel) of the kernels in their order; None: as they lie.

    Returns:
        None of a single kernel, or of zeros only.
    """
    kernels = weight.double().reshape(weight.shape[0] * weight.shape[1], 1, *weight.shape[2:])
    scale = kernel_norms([kernels])[0].square().mean().sqrt().item()
    if len(kernels) < 2 or not scale:
        return None
    along = kernels if walk is None else kernels[walk]
    return path_cost([along], NoOrdering(), "distance") / (len(kernels) - 1) / scale


def walk_of(positions: Int[Tensor, " kernels"]) -> Int[Tensor, " kernels"]:
    """The kernels in the order in which coordinates walk through them, from `Ordering.positions` of their layer."""
    return torch.argsort(positions)


def mean_steps(weights: Sequence[Tensor], walks: Sequence[Tensor] | None = None) -> list[float | None]:
    """`mean_step` of every layer; no walks: as kernels lie."""
    return [mean_step(w, None if walks is None else walks[index]) for index, w in enumerate(weights)]
