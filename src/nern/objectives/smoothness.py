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


def _l2_layer(kernels: Float[Tensor, "f c k"], published: bool) -> Tensor:
    unit = _normalized(kernels)
    following = kernels if published else unit
    along_channels = torch.linalg.vector_norm(unit[:, :-1] - following[:, 1:], dim=2).sum()
    along_filters = torch.linalg.vector_norm(unit[:-1] - following[1:], dim=2).sum()
    return -(along_channels + along_filters)


@SMOOTHNESS.register("L2Smoothness")
def l2_smoothness(weights: Sequence[Tensor], *, published: bool = False) -> Tensor:
    """Minus the summed distances of normalised neighbours.

    Args:
        weights: (filters, channels, height, width) each.
        published: compare a normalised kernel with an unnormalised neighbour, as the published code does.
    """
    return torch.stack([_l2_layer(w.flatten(2), published) for w in weights]).sum()


@SMOOTHNESS.register("CosineSmoothness")
def cosine_smoothness(weights: Sequence[Tensor], *, published: bool = False) -> tuple[Tensor, Tensor]:
    """Summed cosine similarities of neighbours in layers with kernels above 1 x 1, and `l2_smoothness` of the others
    (whose cosine is only a sign): (cosine, l2)."""
    cosine, l2 = weights[0].new_zeros(()), weights[0].new_zeros(())
    for weight in weights:
        kernels = weight.flatten(2)
        if kernels.shape[2] == 1:
            l2 = l2 + _l2_layer(kernels, published)
        else:
            unit = _normalized(kernels)
            cosine = cosine + (unit[:, :-1] * unit[:, 1:]).sum() + (unit[:-1] * unit[1:]).sum()
    return cosine, l2
