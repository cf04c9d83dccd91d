"""Feature-map losses ("attention" in the published config): normalised feature maps compared (NeRN, equation 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nern.registry import FEATURE_MAP_LOSSES

EPSILON = 1e-3  # added to norms, as published
Maps = Sequence[Tensor]


def _rows_normalized(maps: Tensor) -> Tensor:
    """(rows, entries), each row divided by its norm + epsilon."""
    return maps / (torch.linalg.vector_norm(maps, dim=1, keepdim=True) + EPSILON)


@FEATURE_MAP_LOSSES.register("L2BatchedAttentionLoss")
def l2_batched_attention_loss(original: Maps, reconstructed: Maps) -> Tensor:
    """Each sample of each map divided by its norm; squared differences summed, divided by the batch size."""
    total = torch.stack(
        [
            (_rows_normalized(o.flatten(1)) - _rows_normalized(r.flatten(1))).square().sum()
            for o, r in zip(original, reconstructed, strict=True)
        ]
    )
    return total.sum() / len(original[0])


@FEATURE_MAP_LOSSES.register("L2AttentionLoss")
def l2_attention_loss(original: Maps, reconstructed: Maps) -> Tensor:
    """Each map divided by its norm over the whole batch (the original's without epsilon; a zero map stays zero); squared
    differences summed, not divided by the batch size."""
    terms = [
        (
            o / torch.linalg.vector_norm(o).clamp_min(torch.finfo(o.dtype).tiny)
            - r / (torch.linalg.vector_norm(r) + EPSILON)
        )
        .square()
        .sum()
        for o, r in zip(original, reconstructed, strict=True)
    ]
    return torch.stack(terms).sum()


@FEATURE_MAP_LOSSES.register("SPAttentionLoss")
def sp_attention_loss(original: Maps, reconstructed: Maps) -> Tensor:
    """Similarity-preserving (Tung and Mori 2019): batch similarity matrices with normalised rows; squared differences
    summed, divided by the square of the batch size."""
    terms = []
    for o, r in zip(original, reconstructed, strict=True):
        similarities = [_rows_normalized(m.flatten(1) @ m.flatten(1).T) for m in (o, r)]
        terms.append((similarities[0] - similarities[1]).square().sum())
    return torch.stack(terms).sum() / len(original[0]) ** 2
