"""What is measured of kernels and of predictions: errors of kernels, smoothness of their order, changes of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nern.ordering import NoOrdering, path_cost
from nern.representation.kernels import KernelTable

PerKernel = Float[Tensor, "filters channels"]
UNRELATED = math.sqrt(2)  # mean step between vectors at right angles, of one length


def kernel_norms(weights: Sequence[Tensor]) -> list[PerKernel]:
    """Euclidean norm of every kernel of each layer."""
    table = KernelTable.of(weights)
    norms = table.norms([w.double() for w in weights])
    return [norms[table.layer(index)].reshape(shape[:2]) for index, shape in enumerate(table.shapes)]


def kernel_errors(original: Sequence[Tensor], weights: Sequence[Tensor]) -> list[PerKernel]:
    """Relative error of every kernel of each layer: norm of its error over its norm. Of a kernel of zeros it is infinite,
    or 0 where that is reconstructed exactly."""
    differences = kernel_norms([w.double() - o.double() for w, o in zip(weights, original, strict=True)])
    return [
        torch.where(error > 0, error / norm, torch.zeros_like(error))
        for error, norm in zip(differences, kernel_norms(original), strict=True)
    ]


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
