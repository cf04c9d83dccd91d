"""Feature-map losses ("attention" in the published config): normalised feature maps compared (NeRN, equation 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nern.objectives.row_arithmetic import combinations, products
from nern.registry import FEATURE_MAP_LOSSES

EPSILON = 1e-3  # added to norms, as published
Maps = Sequence[Tensor]


def flat(maps: Tensor) -> Tensor:
    """(rows, entries) of each sample: a view, also where channels come last in memory (then entries are in that order)."""
    if maps.dim() == 4 and not maps.is_contiguous() and maps.is_contiguous(memory_format=torch.channels_last):
        maps = maps.permute(0, 2, 3, 1)
    return maps.flatten(1)


def flat_pairs(original: Maps, reconstructed: Maps) -> list[tuple[Tensor, Tensor]]:
    """Both maps of each tap as `flat`, their entries in the same order."""
    pairs = []
    for o, r in zip(original, reconstructed, strict=True):
        same = o.dim() < 4 or o.stride() == r.stride()
        pairs.append((flat(o), flat(r)) if same else (o.flatten(1), r.flatten(1)))
    return pairs


def rows_normalized(maps: Tensor) -> Tensor:
    """(rows, entries), each row divided by its norm + epsilon."""
    return maps / (torch.linalg.vector_norm(maps, dim=1, keepdim=True) + EPSILON)


class NormalizedDistance(torch.autograd.Function):
    """Sum of squared differences of two lists of maps, each row of a map divided by its norm + epsilon:
    `|a o - b r|^2` for a row, where `a = 1 / (|o| + eps)` and `b = 1 / (|r| + eps)`.

    Written out, this needs three inner products for each row, and its gradient in r is a multiple of r and one of o; no
    normalised map is ever made. Inner products are in float32 whatever the maps are in.
    """

    @staticmethod
    def forward(ctx: Any, *maps: Tensor) -> Tensor:
        """(o, r, o, r, ...), (rows, entries) each -> their distance in float32."""
        pairs = list(zip(maps[::2], maps[1::2], strict=True))
        factors = []
        total = maps[0].new_zeros((), dtype=torch.float32)
        for o_norm, r_norm, product in products(pairs):
            limits = torch.finfo(r_norm.dtype)
            r_norm = r_norm.clamp(limits.tiny, limits.max)  # an untrained predictor makes maps of any size
            a, b = 1 / (o_norm + EPSILON), 1 / (r_norm + EPSILON)
            cross = a * (product / r_norm)  # of a o, along r
            total += ((a * o_norm).square() + (b * r_norm).square() - 2 * cross * (b * r_norm)).clamp_min(0).sum()
            factors += [-2 * a * b, 2 * b * b * (1 - (b * r_norm - cross))]
        ctx.save_for_backward(*maps, *factors)
        return total

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor | None, ...]:
        """For each pair: nothing for o, the gradient in r."""
        saved = ctx.saved_tensors
        maps, factors = saved[: len(saved) // 2], [f * gradient[0] for f in saved[len(saved) // 2 :]]
        pairs, of_pairs = (list(zip(each[::2], each[1::2], strict=True)) for each in (maps, factors))
        return tuple(g for in_r in combinations(pairs, of_pairs) for g in (None, in_r))


@FEATURE_MAP_LOSSES.register("L2BatchedAttentionLoss", by_image=True, any_precision=True)
def l2_batched_attention_loss(original: Maps, reconstructed: Maps) -> Tensor:
    """Each sample of each map divided by its norm; squared differences summed, divided by the batch size."""
    pairs = flat_pairs(original, reconstructed)
    distance: Tensor = NormalizedDistance.apply(*(m for pair in pairs for m in pair))
    return distance / len(original[0])


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
        similarities = [rows_normalized(flat(m) @ flat(m).T) for m in (o, r)]
        terms.append((similarities[0] - similarities[1]).square().sum())
    return torch.stack(terms).sum() / len(original[0]) ** 2
