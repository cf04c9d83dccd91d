"""Focal frequency loss along the order of each layer's kernels (Jiang et al. 2021, arXiv:2012.12821)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

POWER = 1.0  # of an error's magnitude, in the weight of its frequency ("alpha" of the paper)


def focal_frequency_loss(
    original: Sequence[Tensor], predicted: Sequence[Tensor], orders: Sequence[Int[Tensor, " kernels"]]
) -> Tensor:
    """Root of the mean squared error, of all weights of all layers, where each frequency counts by its own current error.

    The error of each entry of the kernels is a sequence along the layer's order. Its spectrum is weighted by its own
    magnitudes, divided by the largest of the sequence; no gradient flows through these weights. Were they all 1, this would
    be 'L2Loss' (Parseval). Its gradient at an exact match is taken as zero.

    Args:
        original, predicted: weights of whole layers, (filters, channels, ...) each.
        orders: of each layer, its kernels (filter * channels + channel) as they follow each other.
    """
    parts = []
    for o, r, order in zip(original, predicted, orders, strict=True):
        difference = (r - o).float().reshape(len(order), -1)[order]
        spectrum = torch.view_as_real(torch.fft.fft(difference, dim=0, norm="ortho"))  # (kernels, entries, 2)
        magnitudes = torch.linalg.vector_norm(spectrum.detach(), dim=2)
        share = magnitudes / magnitudes.amax(0).clamp_min(torch.finfo(torch.float32).tiny)
        parts.append((spectrum * share.pow(POWER / 2).unsqueeze(2)).flatten())  # squared below
    return torch.linalg.vector_norm(torch.cat(parts)) / sum(o.numel() for o in original) ** 0.5
