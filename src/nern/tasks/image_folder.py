"""imagefolder: any images of one's own, from `task.data_dir` with a folder for each split and in it one for each class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch.utils.data import DataLoader, Dataset, default_collate

from nern.compat import import_torchvision
from nern.config import TaskConfig
from nern.console import CleanConsole
from nern.errors import NernError
from nern.originals.input_format import InputFormat
from nern.tasks.base import register_task
from nern.tasks.class_folders import SplitFolders
from nern.tasks.image_files import read_image
from nern.tasks.images import ImageTensors
from nern.tasks.unreadable import ReadableOnly, SkippedImages, Unreadable, nothing_readable

MEMORY_BYTES = 512_000_000  # of pixels: a split that needs no more is held in memory
LONGEST = 16  # times the shorter side; a longer strip is cut before resizing, or it would fill the memory
MANY = 2000  # images from which on loading shows its progress

Split = ImageTensors | DataLoader[Any]


# --- images ------------------------------------------------------------------------------------------------------


def not_too_long(image: Image.Image) -> Image.Image:
    """The middle of a very long image: as much as a central crop can show."""
    most = LONGEST * min(image.size)
    if max(image.size) <= most:
        return image
    width, height = (min(side, most) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def evaluation_transform(images: InputFormat, normalize: bool = True) -> Any:
    """Image -> tensor of `images`: shorter side resized, central crop; without `normalize` as uint8.

    Raises:
        NernError: images of other than 1 or 3 channels; an unknown interpolation.
    """
    if images.shape[0] not in (1, 3):
        raise NernError(
            f"the network expects images of {images.shape[0]} channels; image files give 1 (grey) or 3 (colour)"
        )
    crop = images.crop * (1 - 1e-9)  # timm rounds size / crop down: 231.999999 is meant to be 232
    try:
        resize = _timm_transform(images, crop_pct=crop, normalize=normalize)
    except KeyError as error:
        raise NernError(f"the network's metadata ask for an unknown interpolation {images.interpolation!r}") from error
    return import_torchvision().transforms.Compose([not_too_long, resize])


def training_transform(images: InputFormat, auto_augment: str | None) -> Any:
    """Image -> tensor of `images`, augmented as timm does: random resized crop, mirroring, policy or colour jitter.

    Raises:
        NernError: an unknown policy.
    """
    try:
        return _timm_transform(images, is_training=True, auto_augment=auto_augment)
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        raise NernError(
            f"task.auto_augment (={auto_augment!r}) is no policy of timm's: 'rand-m9-mstd0.5-inc1', 'augmix-m3-w3' and "
            f"'original' are some, 'none' is none. {error}"
        ) from error


def _timm_transform(images: InputFormat, **options: Any) -> Any:
    import_torchvision()
    from timm.data.transforms_factory import create_transform

    return create_transform(
        images.shape, interpolation=images.interpolation, mean=images.mean, std=images.std, **options
    )


class FolderImages(Dataset[Any]):
    """Items (image, label), or `Unreadable`, of image files.

    Args:
        files: paths as bytes.
        labels: class numbers.
        transform: of a Pillow image.
        channels: 1 or 3.
        upright: see `read_image`.
        evaluation: the same items without augmentation; None: these.
    """

    def __init__(
        self,
        files: np.ndarray,
        labels: np.ndarray,
        transform: Any,
        channels: int,
        upright: bool,
        evaluation: FolderImages | None = None,
    ) -> None:
        self.files, self.labels, self.transform, self.channels, self.upright = (
            files,
            labels,
            transform,
            channels,
            upright,
        )
        self.evaluation = self if evaluation is None else evaluation

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        path = os.fsdecode(self.files[index])
        try:
            image = read_image(path, self.channels, self.upright)
        except Exception as error:  # Pillow's decoders raise errors of many kinds
            return Unreadable(path, " ".join(str(error).split())[:200] or type(error).__name__)
        try:
            return self.transform(image), int(self.labels[index])
        except ValueError as error:  # of a sound image: some of timm's policies ask Pillow for what it refuses
            raise NernError(f"{path} cannot be transformed: {error}. Another task.auto_augment may help") from error


# --- splits ------------------------------------------------------------------------------------------------------


def load_splits(
    folders: SplitFolders,
    train_kwargs: dict[str, Any],
    test_kwargs: dict[str, Any],
    splits: Sequence[str],
    input_format: InputFormat,
    auto_augment: str | None = None,
    in_memory: bool | None = None,
    upright: bool = True,
    **kwargs: Any,
) -> tuple[Split | None, Split | None]:
    """The splits asked for, each in memory or as a `DataLoader`; `upright`: see `read_image`, all else: see the task.

    Raises:
        NernError: a folder that is missing or empty; classes that differ; an unknown `auto_augment`, or one with
            `in_memory`; images of other than 1 or 3 channels; in memory: none can be read.
    """
    policy = None if auto_augment == "none" else auto_augment
    if policy is not None and in_memory:
        raise NernError("task.auto_augment works on images that are streamed; set task.in_memory to false or null")
    of_test, of_train = evaluation_transform(input_format), training_transform(input_format, policy)
    skipped, (channels, height, width) = SkippedImages(), input_format.shape
    images = folders.images(splits)
    found: dict[str, Split] = {}
    for split, loader_kwargs in (("train", train_kwargs), ("test", test_kwargs)):
        if split not in splits:
            continue
        files, labels = images[split]
        small = len(files) * channels * height * width <= MEMORY_BYTES and (split == "test" or policy is None)
        if small if in_memory is None else in_memory:
            whole = FolderImages(files, labels, evaluation_transform(input_format, normalize=False), channels, upright)
            found[split] = _load(whole, input_format, loader_kwargs["num_workers"], skipped)
        else:
            data = FolderImages(files, labels, of_test, channels, upright)
            if split == "train":
                data = FolderImages(files, labels, of_train, channels, upright, evaluation=data)
            found[split] = DataLoader(data, **loader_kwargs)
    return found.get("train"), found.get("test")


def _load(data: FolderImages, images: InputFormat, num_workers: int, skipped: SkippedImages) -> ImageTensors:
    pixels = torch.empty((len(data), *images.shape), dtype=torch.uint8)
    labels, count = torch.empty(len(data), dtype=torch.int64), 0
    loader = DataLoader(data, batch_size=64, num_workers=num_workers, collate_fn=ReadableOnly(default_collate))
    for batch, unreadable in _shown(loader, len(data)):
        skipped.add(unreadable.values())
        if batch is not None:
            part = slice(count, count + len(batch[1]))
            pixels[part], labels[part] = batch
            count = part.stop
    if not count:
        raise nothing_readable(len(data), skipped)
    pad = min(images.shape[1:]) // 8
    return ImageTensors(
        pixels[:count], labels[:count], images.mean, images.std, pad=pad, flip=True, skipped=tuple(skipped)
    )


def _shown(loader: DataLoader[Any], count: int) -> Iterable[Any]:
    """The loader, with a progress bar on standard error if it takes long and a person is watching."""
    console = CleanConsole(stderr=True)
    if count < MANY or not console.is_terminal:
        return loader
    return track(loader, f"reading {count:,} images", len(loader), console=console, transient=True)


TESTS, KEY = ("val", "test", "validation", "valid"), "task.data_dir"


def _count_classes(task: TaskConfig) -> int:
    return len(SplitFolders.at(task.data_dir, TESTS, KEY).classes())


@register_task("imagefolder", num_classes=_count_classes, mirrors=True)
def imagefolder(
    train_kwargs: dict[str, Any],
    test_kwargs: dict[str, Any],
    use_workers: bool = True,
    data_dir: str | None = None,
    **kwargs: Any,
) -> tuple[Split | None, Split | None]:
    """Images of `data_dir`/train and /val (or test, validation, valid); classes are numbered in the order of their names.

    A split in memory is mirrored and cropped at random from a padded copy, one that is streamed augmented as timm does.
    Null `in_memory` means: in memory up to 512 MB of pixels, training images only if there is no `auto_augment`.
    """
    return load_splits(SplitFolders.at(data_dir, TESTS, KEY), train_kwargs, test_kwargs, **kwargs)
