"""Tasks: a dataset as a training stream, a held-out set and a test set."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader

from nern.config import TaskConfig
from nern.errors import NernError
from nern.originals.base import Original
from nern.originals.input_format import InputFormat
from nern.randomness import forked_rng, generator
from nern.registry import RANDOM_IMAGES, TASKS
from nern.tasks.images import ImageTensors
from nern.tasks.loaders import LoaderSet, LoaderStream, SkippedImages
from nern.tasks.streams import EvalSet, MadeUpStream, MixedStream, TensorStream, TrainStream


def register_task(
    name: str,
    *,
    input_shape: tuple[int, int, int] | None = None,
    num_classes: int | Callable[[TaskConfig], int],
    train_images: int = 50_000,
    mirrors: bool = False,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    auto_augment: str | None = None,
) -> Callable[[Any], Any]:
    """Decorator for a function that returns the data of a task: `(train, test)`.

    Args:
        name: what `task.task_name` says.
        input_shape: (channels, height, width) of an image; None: what the network expects, or `task.input_size`.
        num_classes: outputs that a network of this task has; a function of the `task` section counts them.
        train_images: images of an epoch when made-up ones stand in for the training set.
        mean, std: of a task with `input_shape`: what its images are normalised with where neither `task.mean` and `task.std`
            nor the network say it. None: the task normalises them itself, and `task.mean` and `task.std` are refused.
        mirrors: an image and its mirror image are of one class: what `teacher.mirrored: null` asks for.
        mixup, cutmix, auto_augment: what null means for these keys of the `task` section.

    The function is called as `f(train_kwargs, test_kwargs, use_workers=..., data_dir=..., imagenet_path=...,
    splits=..., input_format=..., auto_augment=...)`; both kwargs hold `batch_size` and `num_workers`, and `input_format` is
    the `InputFormat` that images must have. Each split is an `ImageTensors` or a `DataLoader` over a map-style dataset of
    (image, label); a split not among `splits` is not used and may be None. An item that cannot be read may be an
    `Unreadable`: it is left out and reported. Held-out images are items of the training split, not
    augmented: those of a dataset come from its attribute `evaluation`, the same items without augmentation; where it has
    none, they come through its transforms.
    """
    images = None if input_shape is None or mean is None or std is None else InputFormat(input_shape, mean, std)
    return TASKS.register(
        name,
        input_shape=input_shape,
        num_classes=num_classes,
        train_images=train_images,
        mirrors=mirrors,
        images=images,
        defaults={"mixup": mixup, "cutmix": cutmix, "auto_augment": auto_augment},
    )


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """How a run uses its data."""

    batch_size: int
    eval_batch_size: int
    num_workers: int
    seed: int  # of the order of images, augmentation and held-out images
    held_out_images: int = 0  # training images set aside, at most a tenth
    test_images: int | None = None  # test images used; None: all; 0: none, the split is not read


def classes_of(task: TaskConfig) -> int:
    """Number of classes of the task that the section names. Raises NernError where its data do not tell."""
    classes = TASKS.info(task.task_name)["num_classes"]
    return classes(task) if callable(classes) else classes


def network_arguments(task: TaskConfig) -> dict[str, int]:
    """What the task tells a network that is built for it, as far as it takes such arguments."""
    shape = TASKS.info(task.task_name)["input_shape"] or InputFormat().shape
    return {"num_classes": classes_of(task), "in_channels": shape[0]}


def stated_format(task: TaskConfig, expected: InputFormat | None) -> InputFormat | None:
    """`expected`, where it tells of the task's images. Metadata of an architecture tell of the images that it was made for:
    of a task whose images have one size they tell nothing, unless it is theirs."""
    info = TASKS.info(task.task_name)
    shape = info["input_shape"]
    if shape is None or expected is None:
        return expected
    fits = expected.shape[0] == shape[0] if expected.own else expected.shape == shape
    return expected if info["images"] is not None and fits else None


def format_of(task: TaskConfig, expected: InputFormat | None) -> InputFormat:
    """The images that the task gives a network whose metadata say `expected` (None: nothing). Mean and std are those of the
    `task` section, else those of `expected`, else the task's own.

    Raises:
        NernError: `input_size` of a task whose images have one size, `mean` or `std` of one that normalises them itself.
    """
    info, stated = TASKS.info(task.task_name), stated_format(task, expected)
    shape, own = info["input_shape"], info["images"]
    if shape is None:
        return (stated or InputFormat()).having(task.input_size, task.mean, task.std)
    refused = ("input_size",) if own else ("input_size", "mean", "std")
    given = [key for key in refused if getattr(task, key) is not None]
    if given:
        raise NernError(f"task.{given[0]} has no part in task {task.task_name!r}, whose images are fixed; leave it out")
    if own is None:
        return InputFormat(shape, (0.0,) * shape[0], (1.0,) * shape[0])
    images = own if stated is None else replace(own, mean=stated.mean, std=stated.std)
    return images.having(mean=task.mean, std=task.std)


@dataclass(frozen=True)
class Task:
    """What a run needs of a task. `test` is None if no test images were asked for, shape and classes where data of a Python
    session do not tell."""

    name: str
    input_shape: tuple[int, int, int] | None
    num_classes: int | None
    train: TrainStream | None
    held_out: EvalSet | None
    test: EvalSet | None

    def skipped(self) -> list[str]:
        """Names of images that could not be read so far, in order."""
        sources = (self.train, self.held_out, self.test)
        return sorted({name for source in sources for name in getattr(source, "skipped", ())})


def build_task(
    task: TaskConfig,
    settings: DataSettings,
    device: torch.device,
    train: bool = True,
    original: Original | None = None,
    expected: InputFormat | None = None,
) -> Task:
    """The task that a config's section names, its batches on the device.

    Args:
        train: False: the test set only.
        original: the network it is for: some made-up images are made from it, and its metadata are `expected`.
        expected: the images that the network expects, where `original` does not tell.

    Raises:
        NernError: the dataset is missing, damaged or empty.
    """
    info = TASKS.info(task.task_name)
    images = format_of(task, expected if original is None else original.input_format)
    classes = classes_of(task)
    made_up = train and task.use_random_data
    splits = ["train"] if train and not made_up else []
    splits += ["test"] if settings.test_images != 0 else []
    data = _load_splits(task, settings, images, classes, tuple(splits), device)
    stream: TrainStream | None = None
    held_out: EvalSet | None = None
    test: EvalSet | None = None

    def make_up(count: int, purpose: str, held_out: bool) -> MadeUpStream:
        draw = RANDOM_IMAGES[task.random_data](images.shape, task, settings.seed, device, original, held_out=held_out)
        return MadeUpStream(draw, count, settings.batch_size, settings.seed, purpose)

    if made_up:
        stream = make_up(info["train_images"], "random images", False)
        if settings.held_out_images:
            held_out = make_up(settings.held_out_images, "held-out images", True)
    elif train:
        stream, held_out = _train_streams(data["train"], settings)
        mixup, cutmix = (default_of(task, key) for key in ("mixup", "cutmix"))
        if mixup or cutmix:
            stream = MixedStream(stream, mixup, cutmix, classes, settings.seed)
    if "test" in splits:
        test, most = data["test"], settings.test_images
        test = test if most is None or most >= len(test) else test.subset(torch.arange(most))
    return Task(task.task_name, images.shape, classes, stream, held_out, test)


def default_of(task: TaskConfig, key: str) -> Any:
    """The value of `mixup`, `cutmix` or `auto_augment`: the section's, or where that is null the task's own."""
    value = getattr(task, key)
    return TASKS.info(task.task_name)["defaults"][key] if value is None else value


def _train_streams(data: ImageTensors | LoaderSet, settings: DataSettings) -> tuple[TrainStream, EvalSet | None]:
    aside = min(settings.held_out_images, len(data) // 10)
    order = torch.randperm(len(data), generator=generator(settings.seed, "held-out"))
    kept, apart = order[aside:].sort().values, order[:aside].sort().values
    of = settings.batch_size, settings.seed
    if isinstance(data, ImageTensors):
        return TensorStream(data.subset(kept), *of), data.subset(apart) if aside else None
    return LoaderStream(data.subset(kept), *of), data.plain().subset(apart) if aside else None


def _load_splits(
    task: TaskConfig,
    settings: DataSettings,
    images: InputFormat,
    classes: int,
    splits: tuple[str, ...],
    device: torch.device,
) -> dict[str, ImageTensors | LoaderSet]:
    if not splits:
        return {}
    name, kwargs = task.task_name, {"batch_size": settings.batch_size, "num_workers": settings.num_workers}
    with forked_rng(settings.seed, "loading data"):
        train, test = TASKS[name](
            kwargs,
            kwargs | {"batch_size": settings.eval_batch_size},
            use_workers=settings.num_workers > 0,
            data_dir=task.data_dir,
            imagenet_path=task.imagenet_path,
            splits=splits,
            input_format=images,
            auto_augment=default_of(task, "auto_augment"),
        )
    if task.auto_augment not in (None, "none") and isinstance(train, ImageTensors):
        raise NernError(f"task.auto_augment works on images that are streamed; those of {name!r} are held in memory")
    found, skipped = {"train": train, "test": test}, SkippedImages()
    return {
        split: _as_set(found[split], f"the {split} split of task {name!r}", images, classes, device, skipped)
        for split in splits
    }


def _as_set(
    part: Any, what: str, images: InputFormat, classes: int, device: torch.device, skipped: SkippedImages
) -> ImageTensors | LoaderSet:
    """A split as a set on the device. Raises NernError if it is neither kind of data, or not of the task's images."""
    if isinstance(part, DataLoader) and isinstance(part.dataset, Sized):
        part = LoaderSet(part, part.dataset, device, skipped)
    if not isinstance(part, ImageTensors | LoaderSet):
        raise NernError(
            f"{what} must be an ImageTensors, or a DataLoader of a map-style dataset, not {type(part).__name__}"
        )
    if not len(part):
        raise NernError(f"{what} is empty")
    if isinstance(part, LoaderSet):
        return part
    if part.images.shape[1:] != images.shape:
        raise NernError(f"{what} has images of shape {tuple(part.images.shape[1:])}, not {tuple(images.shape)}")
    if not 0 <= int(part.labels.min()) <= int(part.labels.max()) < classes:
        raise NernError(f"{what} has labels that are not within 0..{classes - 1}")
    return part.to(device)
