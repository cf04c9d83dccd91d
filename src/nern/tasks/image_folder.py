"""imagefolder: any images of one's own, in `task.data_dir`; imagenet: ILSVRC 2012, in `task.imagenet_path`. Each holds a
folder for each split, and in it one for each class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from nern.compat import import_torchvision
from nern.config import TaskConfig
from nern.console import CleanConsole
from nern.errors import NernError
from nern.originals.input_format import InputFormat
from nern.tasks.base import register_task
from nern.tasks.class_folders import SplitFolders
from nern.tasks.images import ImageTensors
from nern.tasks.loaders import LoaderSet, SkippedImages, Unreadable

if TYPE_CHECKING:
    from PIL import Image

MEMORY_BYTES = 512_000_000  # of pixels: a split that needs no more is held in memory
LONGEST = 16  # times the shorter side; a longer strip is cut before resizing, or it would fill the memory
MANY = 2000  # images from which on loading shows its progress

CLASSES = 1000  # of ImageNet

Kwargs = dict[str, Any]
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


@dataclass(eq=False)
class FolderImages(Dataset[Any]):
    """Items (image, label), or `Unreadable`, of image files.

    Args:
        files: paths as bytes.
        labels: class numbers.
        transform: of a Pillow image.
        channels, upright: see `read_image`.
        evaluation: the same items without augmentation, see `register_task`.
    """

    files: np.ndarray
    labels: np.ndarray
    transform: Any
    channels: int
    upright: bool
    evaluation: FolderImages | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from nern.tasks.image_files import read_image  # Pillow need not be installed

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
    train_kwargs: Kwargs,
    test_kwargs: Kwargs,
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
    found, skipped = dict[str, Split](), SkippedImages()
    for split, (files, labels) in folders.images(splits).items():
        loader_kwargs = train_kwargs if split == "train" else test_kwargs
        data = FolderImages(files, labels, of_test, input_format.shape[0], upright)
        small = len(files) * np.prod(input_format.shape) <= MEMORY_BYTES and (split == "test" or policy is None)
        if small if in_memory is None else in_memory:
            whole = replace(data, transform=evaluation_transform(input_format, normalize=False))
            found[split] = _in_memory(whole, input_format, loader_kwargs["num_workers"], skipped)
        elif split == "test":
            found[split] = DataLoader(data, **loader_kwargs)
        else:
            found[split] = DataLoader(replace(data, transform=of_train, evaluation=data), **loader_kwargs)
    return found.get("train"), found.get("test")


def _in_memory(data: FolderImages, images: InputFormat, num_workers: int, skipped: SkippedImages) -> ImageTensors:
    """All images, shown as they are read if it takes long and a person is watching."""
    pixels = torch.empty((len(data), *images.shape), dtype=torch.uint8)
    labels, count = torch.empty(len(data), dtype=torch.int64), 0
    at_once, console = 64, CleanConsole(stderr=True)
    readable = LoaderSet(DataLoader(data, num_workers=num_workers), data, torch.device("cpu"), skipped).batches(at_once)
    shown: Iterable[Any] = track(
        readable,
        f"reading {len(data):,} images",
        -(-len(data) // at_once),
        console=console,
        transient=True,
        disable=len(data) < MANY or not console.is_terminal,
    )
    for batch, numbers in shown:
        part = slice(count, count + len(numbers))
        pixels[part], labels[part], count = batch, numbers, part.stop
    pixels, labels = pixels[:count], labels[:count]
    pad = min(images.shape[1:]) // 8
    return ImageTensors(pixels, labels, images.mean, images.std, pad=pad, flip=True, skipped=tuple(skipped))


# --- tasks -------------------------------------------------------------------------------------------------------


def own_folders(path: str | None) -> SplitFolders:
    """Those of imagefolder, in `task.data_dir`."""
    return SplitFolders(path, ("val", "test", "validation", "valid"), "task.data_dir")


def imagenet_folders(path: str | None) -> SplitFolders:
    """Those of imagenet, in `task.imagenet_path`."""
    return SplitFolders(path, ("val", "validation", "valid"), "task.imagenet_path")


def _count_classes(task: TaskConfig) -> int:
    return len(own_folders(task.data_dir).classes())


@register_task("imagefolder", num_classes=_count_classes, mirrors=True)
def imagefolder(
    train_kwargs: Kwargs, test_kwargs: Kwargs, use_workers: bool = True, data_dir: str | None = None, **kwargs: Any
) -> tuple[Split | None, Split | None]:
    """Images of `data_dir`/train and /val (or test, validation, valid); classes are numbered in the order of their names.

    A split in memory is mirrored and cropped at random from a padded copy, one that is streamed augmented as timm does.
    Null `in_memory` means: in memory up to 512 MB of pixels, training images only if there is no `auto_augment`.
    """
    return load_splits(own_folders(data_dir), train_kwargs, test_kwargs, **kwargs)


@register_task(
    "imagenet",
    num_classes=CLASSES,
    train_images=1_281_167,
    mirrors=True,
    mixup=0.8,
    cutmix=1.0,
    auto_augment="rand-m9-mstd0.5-inc1",
)
def imagenet(
    train_kwargs: Kwargs,
    test_kwargs: Kwargs,
    use_workers: bool = True,
    imagenet_path: str | None = None,
    in_memory: bool | None = None,
    **kwargs: Any,
) -> tuple[Split | None, Split | None]:
    """Images of `imagenet_path`/train and /val (or validation, valid), streamed, augmented as timm does."""
    if in_memory:
        raise NernError("task.in_memory is for imagefolder; imagenet is always streamed")
    folders = imagenet_folders(imagenet_path)
    flat = next((file for folder in folders.there("test")[:1] for file in folder.glob("ILSVRC2012_val_*")), None)
    if flat is not None and not any(p.is_dir() for p in flat.parent.iterdir()):  # as they are distributed
        raise NernError(
            f"{flat.parent} holds the images themselves ({flat.name}, ...). Sort them into a folder for each class "
            "(n01440764, ...): torchvision.datasets.ImageNet(FOLDER, 'val') does so from the archives "
            "ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, the widely used script valprep.sh from the images."
        )
    found = len(folders.classes())
    if found != CLASSES:
        raise NernError(
            f"{folders.key} {str(folders.root)!r} has {found} class folders in a split; ImageNet has {CLASSES}. Other "
            "folders of images are task 'imagefolder', with task.data_dir."
        )
    # Published figures of networks are of images as they are stored, whatever their EXIF data say.
    return load_splits(folders, train_kwargs, test_kwargs, in_memory=False, upright=False, **kwargs)
