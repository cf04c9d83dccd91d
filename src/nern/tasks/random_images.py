"""Made-up images for training without data: each kind is a function (count, generator) -> images on the device.

Registered as `kind(shape, seed, device, original)`; images are on the scale of a network's inputs, that is normalised.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nern.originals.base import Original
from nern.registry import RANDOM_IMAGES

Draw = Callable[[int, torch.Generator], Tensor]
Shape = tuple[int, int, int]
RANGE = 2.0  # of uniform noise, as published


@RANDOM_IMAGES.register("uniform")
def uniform(shape: Shape, seed: int, device: torch.device, original: Original | None) -> Draw:
    """Every value uniform in [-2, 2], as published."""

    def draw(count: int, rng: torch.Generator) -> Tensor:
        return torch.rand(count, *shape, generator=rng).mul_(2 * RANGE).sub_(RANGE).to(device)

    return draw
