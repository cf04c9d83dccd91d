"""Made-up images for networks of ImageNet: mosaics of CIFAR-100's training pictures, scaled up.

`imports: [experiments/mosaics.py]` in a config registers them as kind "mosaics" of `task.random_data`; `task.data_dir` is
the folder that holds CIFAR-100.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nern.config import TaskConfig
from nern.registry import RANDOM_IMAGES
from nern.tasks.base import format_of
from nern.tasks.cifar import cifar100

SIDES = (1, 2, 2, 2, 3, 4)  # pictures along a side of an image; one of these is drawn


@RANDOM_IMAGES.register("mosaics")
def mosaics(
    shape: tuple[int, int, int], settings: TaskConfig, seed: int, device: torch.device, original: Any, **_: Any
) -> Any:
    """Pictures beside and above each other, cut at a random place."""
    train, _test = cifar100({}, {}, data_dir=settings.data_dir, splits=("train",))
    known, (_channels, height, width) = format_of(settings, original.input_format), shape
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (known.mean, known.std))

    def draw(count: int, rng: torch.Generator) -> Tensor:
        found = torch.empty(count, *shape)
        for image in found:
            side = SIDES[int(torch.randint(len(SIDES), (1,), generator=rng))]
            size, number = -(-max(height, width) // side), side + (side > 1)
            chosen = train.images[torch.randint(len(train.images), (number**2,), generator=rng)].float() / 255
            tiles = torch.nn.functional.interpolate(chosen, size=(size, size), mode="bicubic").clamp(0, 1)
            whole = tiles.unflatten(0, (number, number)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
            top, left = (int(torch.randint(number * size - n + 1, (1,), generator=rng)) for n in (height, width))
            if torch.rand(1, generator=rng) < 0.5:
                whole = whole.flip(2)
            image.copy_((whole[:, top : top + height, left : left + width] - mean) / std)
        return found.to(device)

    return draw
