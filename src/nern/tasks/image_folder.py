"""imagefolder: any images of one's own, from `task.data_dir` with a folder for each split and in it one for each class."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset, default_collate

from nern.compat import import_torchvision
from nern.config import TaskConfig
from nern.errors import NernError
from nern.originals.input_format import InputFormat
from nern.tasks.base import register_task
from nern.tasks.images import ImageTensors
from nern.tasks.unreadable import ReadableOnly, SkippedImages, Unreadable, nothing_readable

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp", ".gif")
MEMORY_BYTES = 512_000_000  # of pixels: a split that needs no more is held in memory
LONGEST = 16  # times the shorter side; a longer strip is cut before resizing, or it would fill the memory
MANY = 2000  # images from which on loading shows its progress

Split = ImageTensors | DataLoader[Any]


# --- folders -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitFolders:
    """The folder of a dataset, with its splits.

    Args:
        root: holds 'train' and one of `tests`; only the splits that are used need be there.
        tests: names of the test split, the preferred one first.
        key: the config's key that says where `root` is.
    """

    root: Path
    tests: Sequence[str]
    key: str

    @classmethod
    def at(cls, path: str | None, tests: Sequence[str], key: str) -> SplitFolders:
        """Those in the folder `path`. Raises NernError where there is none."""
        names = f"{tests[0]}/ (or {', '.join(f'{name}/' for name in tests[1:])})"
        if path is None:
            raise NernError(
                f"{key} is not set: it must name a folder that holds train/ and {names}, each with a folder of images for "
                "each class"
            )
        root = Path(path).expanduser()
        if not root.is_dir():
            raise NernError(f"{key} {path!r} is {'no folder' if root.exists() else 'not there'}")
        return cls(root, tests, key)

    def find(self, split: str) -> Path | None:
        """The folder of split 'train' or 'test'; None where it is missing."""
        names = ["train"] if split == "train" else self.tests
        return next((self.root / name for name in names if (self.root / name).is_dir()), None)

    def split(self, split: str) -> Path:
        """As `find`, but NernError where it is missing."""
        folder = self.find(split)
        if folder is None:
            wanted = "train/" if split == "train" else " or ".join(f"{name}/" for name in self.tests)
            raise NernError(f"{self.key} {str(self.root)!r} has no folder {wanted}; it holds: {content(self.root)}")
        return folder

    def classes(self) -> list[str]:
        """Names of the classes, sorted; the number of a class is its place.

        Raises:
            NernError: no split is there, one is without class folders, or the splits have different classes.
        """
        train, test = self.find("train"), self.find("test")
        if train is None or test is None:
            return class_folders(train or self.split("test"))
        names, of_test = class_folders(train), class_folders(test)
        if names != of_test:
            parts = []
            for folder, lacks in ((train, set(of_test) - set(names)), (test, set(names) - set(of_test))):
                parts += [f"{folder.name}/ lacks {_few(sorted(lacks))}"] if lacks else []
            raise NernError(f"the splits of {self.key} {str(self.root)!r} have different classes: {'; '.join(parts)}")
        return names


def _few(names: Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def content(folder: Path) -> str:
    """What a folder holds, in words."""
    return _few(sorted(f"{p.name}/" if p.is_dir() else p.name for p in folder.iterdir()), 8) or "nothing"


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in a split's folder, hidden ones left out, sorted. Raises NernError where there are none."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise NernError(f"{folder} cannot be read: {error}") from error
    if not names:
        raise NernError(
            f"{folder} has no class folders; it must hold a folder of images for each class and holds: {content(folder)}"
        )
    return names


def list_images(folder: Path, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Image files of a split, those in folders within a class's folder, too: (paths as bytes, class numbers).

    Classes take turns, so that the first n are of all classes.

    Raises:
        NernError: a class without images.
    """
    by_class = [_image_files(folder / name) for name in classes]
    empty = [name for name, files in zip(classes, by_class, strict=True) if not files]
    if empty:
        raise NernError(
            f"class folders without images in {folder}: {_few(empty)}. Images are files that end in "
            f"{', '.join(SUFFIXES)}; remove what is no class from all splits"
        )
    labels = np.repeat(np.arange(len(classes)), [len(files) for files in by_class])
    turns = np.concatenate([np.arange(len(files)) for files in by_class])
    order = np.lexsort((labels, turns))
    return np.array([file for files in by_class for file in files])[order], labels[order]


def _image_files(folder: Path) -> list[bytes]:
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        found += [os.fsencode(os.path.join(parent, name)) for name in files]  # bytes: a fraction of the memory
    return sorted(found)


# --- images ------------------------------------------------------------------------------------------------------


def read_image(path: str, channels: int, upright: bool = True) -> Image.Image:
    """An image file with 8 bits a channel: grey (1 channel) or RGB (3).

    Args:
        upright: turn it as its EXIF data say.

    Raises:
        Exception: whatever Pillow raises for a file that is no image, is damaged, or is too large to be honest.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata and palettes
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as file:
            file.load()
            if 0 in file.size:
                raise ValueError("it has no pixels")
            return _with_channels(_upright(file) if upright else file, channels)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata of a sound image
        return image


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip these, not scale them
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError("its pixels are not finite")
        factor = 1 / 257 if image.mode != "F" else 255.0 if values.max() <= 1 else 1.0
        image = Image.fromarray((values * factor).round().clip(0, 255).astype(np.uint8))
    if channels == 1 and image.mode in ("L", "LA", "1"):
        return image.convert("L")
    rgb = image.convert("RGB")
    return rgb if channels == 3 else rgb.convert("L")


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
    classes, skipped, (channels, height, width) = folders.classes(), SkippedImages(), input_format.shape
    found: dict[str, Split] = {}
    for split, loader_kwargs in (("train", train_kwargs), ("test", test_kwargs)):
        if split not in splits:
            continue
        files, labels = list_images(folders.split(split), classes)
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
    console = Console(stderr=True)
    if count < MANY or not console.is_terminal:
        return loader
    return track(loader, f"reading {count:,} images", len(loader), console=console, transient=True)


TESTS, KEY = ("val", "test", "validation"), "task.data_dir"


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
    """Images of `data_dir`/train and /val (or test, validation); classes are numbered in the order of their folders' names.

    A split in memory is mirrored and cropped at random from a padded copy, one that is streamed augmented as timm does.
    Null `in_memory` means: in memory up to 512 MB of pixels, training images only if there is no `auto_augment`.
    """
    return load_splits(SplitFolders.at(data_dir, TESTS, KEY), train_kwargs, test_kwargs, **kwargs)
