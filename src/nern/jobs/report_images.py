"""The images that a report looks at: drawn from a test set, and what their classes are called."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import Subset

from nern.randomness import generator
from nern.tasks.images import ImageTensors
from nern.tasks.streams import EvalSet, LoaderSet

IMAGES = 2000
NO_IMAGES_ASKED_FOR = "no test images were asked for (--images 0)"
CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def class_names(task: str) -> Sequence[str] | None:
    """Of the task of this name; None: its classes have numbers only."""
    return CLASS_NAMES.get(task)


def drawn(images: EvalSet, count: int, seed: int) -> EvalSet:
    """So many of a test set's images, drawn without repetition, in their order; all, if there are no more."""
    if count >= len(images) or not isinstance(images, ImageTensors | LoaderSet):
        return images
    chosen = torch.randperm(len(images), generator=generator(seed, "images of a report"))[:count].sort().values
    if isinstance(images, ImageTensors):
        return images.subset(chosen)
    return LoaderSet(images.loader, Subset(images.items.dataset, chosen.tolist()), images.device, images.skipped)
