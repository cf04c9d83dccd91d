"""imagefolder: any images of one's own, in `task.data_dir`; imagenet: ILSVRC 2012, in `task.imagenet_path`. Each holds a
folder for each split, and in it one for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nern.compat import import_torchvision
from nern.errors import NernError
from nern.files import some_names
from nern.originals.input_format import InputFormat
from nern.tasks.base import register_task
from nern.tasks.images import ImageTensors, content
from nern.tasks.loaders import LoaderSet, SkippedImages, Unreadable

if TYPE_CHECKING:
    from PIL import Image

MEMORY_BYTES = 512_000_000  # of pixels: a split that needs no more is held in memory
SPLITS = {"train": ("train",), "test": ("val", "test", "validation", "valid")}  # names of their folders
CLASSES = 1000  # of ImageNet

Kwargs = dict[str, Any]
Split = ImageTensors | DataLoader[Any]


# --- folders -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitFolders:
    """The folder of a dataset, with its splits. Raises NernError where there is no such folder."""

    path: str | None  # it holds a folder for each of `SPLITS`; only those that are used need be there
    key: str  # of the config, that says `path`

    def __post_init__(self) -> None:
        if self.path is None:
            raise NernError(
                f"{self.key} is not set: it must name a folder that holds train/ and {_wanted('test')}, each with a folder "
                "of images for each class"
            )
        if not self.root.is_dir():
            raise NernError(f"{self.key} {self.path!r} is {'no folder' if self.root.exists() else 'not there'}")

    @property
    def root(self) -> Path:
        """The folder."""
        return Path(self.path or "").expanduser()

    def there(self, split: str) -> Path | None:
        """The folder of split 'train' or 'test', the first that is there of several; None: it is missing."""
        return next((self.root / name for name in SPLITS[split] if (self.root / name).is_dir()), None)

    def folder(self, split: str) -> Path:
        """The folder of a split. Raises NernError where it is missing."""
        if folder := self.there(split):
            return folder
        raise NernError(f"{self.key} {str(self.root)!r} has no folder {_wanted(split)}; it holds: {content(self.root)}")

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes: those of the training folder, sorted as text; the number of a class is its place. Where it
        has none or only some of the test folder's, as for an evaluation alone, the test folder names them.

        Raises:
            NernError: no split is there, none has class folders, or each has a class that the other lacks.
        """
        train, test = (_class_folders(folder) if (folder := self.there(s)) else set() for s in ("train", "test"))
        names = test if train <= test else train
        if not names:
            folder = self.folder("test")
            raise NernError(
                f"{folder} has no class folders; it must hold a folder of images for each class and holds: "
                f"{content(folder)}"
            )
        if unknown := sorted(test - names):
            raise NernError(
                f"{self.key} {str(self.root)!r}: {self.folder('test').name}/ has class folders that train/ lacks: "
                f"{some_names(unknown)}. Rename or remove them; a class needs training images"
            )
        return sorted(names)

    def images(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Image files of a split, those in folders within a class's folder, too: (paths as bytes, class numbers). Classes
        take turns, so that the first n are of all classes.

        Raises:
            NernError: the split is missing or has no images; a class has no training images.
        """
        datasets = import_torchvision().datasets.folder
        names, folder = self.classes, self.folder(split)
        numbers = {name: number for number, name in enumerate(names)}
        files = datasets.make_dataset(str(folder), numbers, datasets.IMG_EXTENSIONS, allow_empty=True)
        labels = np.array([label for _, label in files], dtype=np.int64)
        counts = np.bincount(labels, minlength=len(names))
        empty = [name for name, count in zip(names, counts, strict=True) if not count]
        if empty and (split == "train" or not files):
            raise NernError(
                f"class folders without images in {folder}: {some_names(empty)}. Images are files that end in "
                f"{', '.join(datasets.IMG_EXTENSIONS)}; remove what is no class from all splits"
            )
        turns = np.concatenate([np.arange(count) for count in counts])
        order = np.lexsort((labels, turns))
        paths = np.array([os.fsencode(file) for file, _ in files])  # bytes take a fraction of the room
        return paths[order], labels[order]


def _wanted(split: str) -> str:
    return " or ".join(f"{name}/" for name in SPLITS[split])


def _class_folders(folder: Path) -> set[str]:
    """Names of the folders in a folder, but for hidden ones."""
    return {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}


# --- images ------------------------------------------------------------------------------------------------------


def read_image(path: str, channels: int) -> Image.Image:
    """An image file with 8 bits a channel: grey (1 channel) or RGB (3), its pixels as they are stored, not turned. Raises
    whatever Pillow raises for a file that is no image or is damaged."""
    from PIL import Image  # Pillow need not be installed

    with Image.open(path) as image:
        if image.mode[0] in "IF":
            raise ValueError("it has more than 8 bits a channel")  # Pillow would clip them
        return image.convert("L" if channels == 1 else "RGB")


def evaluation_transform(images: InputFormat, normalize: bool = True) -> Any:
    """Image -> tensor of `images`: shorter side resized, central crop; without `normalize` as uint8. Raises NernError: see
    `_timm_transform`."""
    crop = images.crop * (1 - 1e-9)  # timm rounds size / crop down: 231.999999 is meant to be 232
    return _timm_transform(images, crop_pct=crop, normalize=normalize)


def training_transform(images: InputFormat, auto_augment: str | None) -> Any:
    """Image -> tensor of `images`, augmented as timm does: random resized crop, mirroring, policy or colour jitter. Raises
    NernError: see `_timm_transform`."""
    return _timm_transform(images, is_training=True, auto_augment=auto_augment)


def _timm_transform(images: InputFormat, auto_augment: str | None = None, **options: Any) -> Any:
    """What timm makes of these. Raises NernError for other than 1 or 3 channels, an unknown policy or interpolation."""
    if images.shape[0] not in (1, 3):
        raise NernError(
            f"the network expects images of {images.shape[0]} channels; image files give 1 (grey) or 3 (colour)"
        )
    import_torchvision()
    from timm.data.transforms_factory import create_transform

    options |= {"interpolation": images.interpolation, "mean": images.mean, "std": images.std}
    try:
        return create_transform(images.shape, auto_augment=auto_augment, **options)
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        raise NernError(
            f"timm has no task.auto_augment (={auto_augment!r}) or no interpolation (={images.interpolation!r}, of the "
            f"network's metadata) of this name: {error}. Policies are 'rand-m9-mstd0.5-inc1', 'original' and others"
        ) from error


@dataclass(eq=False)
class FolderImages(Dataset[Any]):
    """Items (image, label), or `Unreadable`, of image files."""

    files: np.ndarray  # paths as bytes
    labels: np.ndarray
    transform: Any  # of a Pillow image
    channels: int
    evaluation: FolderImages | None = None  # the same items without augmentation, see `register_task`

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        path = os.fsdecode(self.files[index])
        try:
            image = read_image(path, self.channels)
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
    memory: int,
    auto_augment: str | None = None,
    **kwargs: Any,
) -> tuple[Split | None, Split | None]:
    """The splits asked for, each in memory if its pixels take at most `memory` bytes, else as a `DataLoader`. Training
    images with an `auto_augment` are never held in memory.

    Raises:
        NernError: a folder that is missing or empty; classes that differ; an unknown `auto_augment`; images of other than
            1 or 3 channels; in memory: none can be read.
    """
    policy = None if auto_augment == "none" else auto_augment
    found, skipped = dict[str, Split](), SkippedImages()
    for split in splits:
        loader_kwargs = train_kwargs if split == "train" else test_kwargs
        data = FolderImages(*folders.images(split), evaluation_transform(input_format), input_format.shape[0])
        if len(data) * np.prod(input_format.shape) <= memory and (split == "test" or policy is None):
            whole = replace(data, transform=evaluation_transform(input_format, normalize=False))
            found[split] = _in_memory(whole, input_format, loader_kwargs["num_workers"], skipped)
        elif split == "test":
            found[split] = DataLoader(data, **loader_kwargs)
        else:
            augmented = replace(data, transform=training_transform(input_format, policy), evaluation=data)
            found[split] = DataLoader(augmented, **loader_kwargs)
    return found.get("train"), found.get("test")


def _in_memory(data: FolderImages, images: InputFormat, num_workers: int, skipped: SkippedImages) -> ImageTensors:
    """All images that can be read."""
    readable = LoaderSet(DataLoader(data, num_workers=num_workers), data, torch.device("cpu"), skipped).batches(64)
    pixels, labels = (torch.cat(parts) for parts in zip(*readable, strict=True))
    pad = min(images.shape[1:]) // 8
    return ImageTensors(pixels, labels, images.mean, images.std, pad=pad, flip=True, skipped=tuple(skipped))


# --- tasks -------------------------------------------------------------------------------------------------------


@register_task(
    "imagefolder", num_classes=lambda task: len(SplitFolders(task.data_dir, "task.data_dir").classes), mirrors=True
)
def imagefolder(
    train_kwargs: Kwargs, test_kwargs: Kwargs, data_dir: str | None = None, **kwargs: Any
) -> tuple[Split | None, Split | None]:
    """Images of `data_dir`/train and /val (or test, validation, valid); classes are numbered in the order of their names.

    A split in memory is mirrored and cropped at random from a padded copy, one that is streamed augmented as timm does. In
    memory are up to 512 MB of pixels, training images only if there is no `auto_augment`.
    """
    folders = SplitFolders(data_dir, "task.data_dir")
    return load_splits(folders, train_kwargs, test_kwargs, memory=MEMORY_BYTES, **kwargs)


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
    train_kwargs: Kwargs, test_kwargs: Kwargs, imagenet_path: str | None = None, **kwargs: Any
) -> tuple[Split | None, Split | None]:
    """Images of `imagenet_path`/train and /val (or validation, valid), streamed, augmented as timm does."""
    folders = SplitFolders(imagenet_path, "task.imagenet_path")
    found = len(folders.classes)
    if found != CLASSES:
        raise NernError(
            f"{folders.key} {str(folders.root)!r} has {found} class folders in a split; ImageNet has {CLASSES}. Other "
            "folders of images are task 'imagefolder', with task.data_dir"
        )
    return load_splits(folders, train_kwargs, test_kwargs, memory=0, **kwargs)
