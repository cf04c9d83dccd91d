"""Reconstruction losses: original weights against predicted ones (NeRN, equation 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nern.registry import RECONSTRUCTION_LOSSES

Weights = Sequence[Tensor]


@RECONSTRUCTION_LOSSES.register("L2Loss", pooled=True)
def l2_loss(original: Weights, reconstructed: Weights) -> Tensor:
    """Root of the mean squared error over all weights of all layers. Its gradient at an exact match is taken as zero."""
    difference = torch.cat([(r - o).flatten() for o, r in zip(original, reconstructed, strict=True)])
    return torch.linalg.vector_norm(difference) / difference.numel() ** 0.5


@RECONSTRUCTION_LOSSES.register("MSELoss")
def mse_loss(original: Weights, reconstructed: Weights) -> Tensor:
    """Mean over layers of each layer's mean squared error: layers weigh equally whatever their size."""
    errors = [(r - o).square().mean() for o, r in zip(original, reconstructed, strict=True)]
    return torch.stack(errors).mean()
