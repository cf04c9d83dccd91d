"""What reports of runs and of files take from elsewhere: drawn test images, names of classes, the order of kernels."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from nern.compat import import_torchvision
from nern.config import TaskConfig
from nern.ordering.order import Ordering
from nern.randomness import generator
from nern.representation.kernels import kernel_shape
from nern.tasks.image_folder import SplitFolders
from nern.tasks.images import ImageTensors
from nern.tasks.loaders import LoaderSet
from nern.tasks.streams import EvalSet

IMAGES = 2000
NO_IMAGES_ASKED_FOR = "no test images were asked for (--images 0)"
CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def class_names(task: TaskConfig) -> Sequence[str] | None:
    """Of the classes of a task whose test images are there, by their numbers; None: they have numbers only. Folders named
    as ImageNet's are (n01440764) give the words that these stand for."""
    if task.task_name == "imagefolder":
        names = SplitFolders(task.data_dir, "task.data_dir").classes()
    elif task.task_name == "imagenet":
        names = SplitFolders(task.imagenet_path, "task.imagenet_path").classes()
    else:
        return CLASS_NAMES.get(task.task_name)
    if not any(re.fullmatch(r"n\d{8}", name) for name in names):
        return names
    import_torchvision()  # which timm imports
    from timm.data.imagenet_info import ImageNetInfo

    known = ImageNetInfo()
    words = {name: known.label_name_to_description(name).partition(",")[0] for name in known.label_names()}
    return [words.get(name, name) for name in names]


def drawn(images: EvalSet, count: int | None, seed: int) -> EvalSet:
    """So many of a test set's images, drawn without repetition, in their order; all, if there are no more, or for None."""
    if count is None or count >= len(images) or not isinstance(images, ImageTensors | LoaderSet):
        return images
    chosen = torch.randperm(len(images), generator=generator(seed, "images of a report"))[:count].sort().values
    return images.subset(chosen)


def walks(ordering: Ordering, shapes: Sequence[tuple[int, int, int, int]]) -> list[Int[Tensor, " kernels"] | None]:
    """Of each layer, the numbers of its kernels in the order in which coordinates visit them; None: of no ordering."""
    if ordering.mode == "none":
        return [None] * len(shapes)
    return [torch.argsort(positions) for positions in ordering.positions(shapes)]


def as_kernels(weights: Sequence[Tensor]) -> list[Tensor]:
    """Weights as (filters, channels, height, width), on the CPU."""
    return [weight.detach().cpu().float().reshape(kernel_shape(weight.shape)) for weight in weights]
