"""How well each kernel is reconstructed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nern.representation.kernels import KernelTable

PerKernel = Float[Tensor, "filters channels"]


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
