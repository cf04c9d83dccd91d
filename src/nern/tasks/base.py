"""Tasks: a dataset as a training stream, a held-out set and a test set.

Every stream is a function of the step number and the seed, so a resumed run sees what an uninterrupted one would.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from nern.config import Config
from nern.errors import NernError
from nern.randomness import derived_seed, forked_rng, generator
from nern.registry import TASKS
from nern.tasks.images import Batch, EpochOrder, ImageTensors

RANDOM_RANGE = 2.0  # random images are uniform in [-2, 2], as published


def register_task(
    name: str, *, input_shape: tuple[int, int, int], num_classes: int, train_images: int = 50_000
) -> Callable[[Any], Any]:
    """Decorator for a function that returns the data of a task: `(train, test)`.

    Args:
        name: what `task.task_name` says.
        input_shape: (channels, height, width) of an image.
        num_classes: outputs that a network of this task has.
        train_images: images of an epoch when random data stand in for the training set.

    The function is called as `f(train_kwargs, test_kwargs, use_workers=..., data_dir=..., imagenet_path=...,
    splits=...)`; both kwargs hold `batch_size` and `num_workers`. Each split is an `ImageTensors` or a `DataLoader`
    over a map-style dataset of (image, label); a split not among `splits` is not used and may be None. Held-out images are
    items of the training split: those of a `DataLoader` come through its transforms, those of an `ImageTensors` are not
    augmented.
    """
    return TASKS.register(name, input_shape=input_shape, num_classes=num_classes, train_images=train_images)


class TrainStream(Protocol):
    """Training batches by step number."""

    steps_per_epoch: int

    def batch(self, step: int) -> Batch:
        """Images on the device, and labels if there are any."""
        ...


class EvalSet(Protocol):
    """Images to evaluate on."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All batches, in order."""
        ...


@dataclass(frozen=True)
class Task:
    """What a run needs of a task. `test` is None if no test images were asked for."""

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    train: TrainStream | None
    held_out: EvalSet | None
    test: EvalSet | None


class TensorStream:
    """Batches of an `ImageTensors`."""

    def __init__(self, data: ImageTensors, batch_size: int, seed: int) -> None:
        self.data, self.seed = data, seed
        self.order = EpochOrder(len(data), batch_size, seed)
        self.steps_per_epoch = self.order.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """See `TrainStream`."""
        return self.data.batch(self.order.indices(step), generator(self.seed, "augment", step))


class RandomStream:
    """Images uniform in [-2, 2], without labels; also a set of them to evaluate on."""

    def __init__(
        self, shape: tuple[int, int, int], count: int, batch_size: int, seed: int, purpose: str, device: torch.device
    ) -> None:
        self.shape, self.count, self.batch_size, self.seed = shape, count, batch_size, seed
        self.purpose, self.device = purpose, device
        self.steps_per_epoch = -(-count // batch_size)

    def __len__(self) -> int:
        return self.count

    def _draw(self, count: int, number: int) -> Tensor:
        uniform = torch.rand(count, *self.shape, generator=generator(self.seed, self.purpose, number))
        return uniform.mul_(2 * RANDOM_RANGE).sub_(RANDOM_RANGE).to(self.device)

    def batch(self, step: int) -> Batch:
        """See `TrainStream`."""
        rest = self.count - (step % self.steps_per_epoch) * self.batch_size
        return self._draw(min(rest, self.batch_size), step), None

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """See `EvalSet`."""
        for number, start in enumerate(range(0, self.count, batch_size)):
            yield self._draw(min(batch_size, self.count - start), number), None


class _SeededItems(Dataset[Any]):
    """Items whose random transforms depend on seed, epoch and item alone, whatever worker makes them."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  (transforms use it)
        try:
            random.seed(derived_seed(self.seed, "python", epoch, index))
            np.random.seed(derived_seed(self.seed, "numpy", epoch, index) % 2**32)  # noqa: NPY002
            with forked_rng(self.seed, "item", epoch, index):
                return self.dataset[index]
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


class _FromStep:
    """Batch sampler of one epoch, from a given step on: batches of (epoch, item) keys."""

    def __init__(self, order: EpochOrder, step: int) -> None:
        self.order, self.step = order, step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.step // self.order.steps_per_epoch
        for step in range(self.step, (epoch + 1) * self.order.steps_per_epoch):
            yield [(epoch, index) for index in self.order.indices(step).tolist()]


class LoaderStream:
    """Batches of a user's `DataLoader`: its dataset, collation and workers, in an order of ours."""

    def __init__(self, loader: DataLoader[Any], dataset: Any, batch_size: int, seed: int, device: torch.device) -> None:
        self.loader, self.seed, self.device = loader, seed, device
        self.items = _SeededItems(dataset, seed)
        self.order = EpochOrder(len(dataset), batch_size, seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self._next = -1
        self._iterator: Iterator[Batch] = iter(())

    def batch(self, step: int) -> Batch:
        """See `TrainStream`."""
        if step != self._next or step % self.steps_per_epoch == 0:
            self._iterator = _loaded(self.loader, self.items, _FromStep(self.order, step), self.device, self.seed)
        self._next = step + 1
        return next(self._iterator)


class LoaderSet:
    """Evaluation images from a user's `DataLoader`, at most `limit` of them: its dataset, in order, the same each time."""

    def __init__(self, loader: DataLoader[Any], dataset: Any, device: torch.device, limit: int | None = None) -> None:
        self.loader, self.device = loader, device
        self.items = _SeededItems(dataset, seed=0)
        self.count = len(dataset) if limit is None else min(limit, len(dataset))

    def __len__(self) -> int:
        return self.count

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All images in order."""
        keys = [(0, index) for index in range(self.count)]
        starts = range(0, self.count, batch_size)
        yield from _loaded(self.loader, self.items, [keys[s : s + batch_size] for s in starts], self.device, 0)


def _loaded(
    loader: DataLoader[Any], items: _SeededItems, keys: Any, device: torch.device, seed: int
) -> Iterator[Batch]:
    """Batches of `items`, with the collation and workers of `loader`."""
    ours = DataLoader(
        items,
        batch_sampler=keys,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=device.type == "cuda",
        generator=generator(seed, "workers"),
    )
    for batch in ours:
        if not (
            isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(b, torch.Tensor) for b in batch)
        ):
            raise NernError(f"a task's dataset must give (image, label); its batches are {type(batch).__name__}")
        images, labels = batch
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def build_task(config: Config, device: torch.device, train: bool = True) -> Task:
    """The task that `config` names.

    Args:
        config: a checked config.
        device: where batches are delivered.
        train: False: the test set only.

    Raises:
        NernError: the dataset is missing, damaged or empty.
    """
    name, info = config.task.task_name, TASKS.info(config.task.task_name)
    shape, seed, batch_size = info["input_shape"], config.seed, config.batch_size
    random_data = config.task.use_random_data
    splits = ["train"] if train and not random_data else []
    splits += ["test"] if config.evaluation.test_images != 0 else []
    train_data, test_data = _load_splits(config, tuple(splits))
    hold_out = config.evaluation.best_on == "held_out"
    stream: TrainStream | None = None
    held_out: EvalSet | None = None
    if train and random_data:
        stream = RandomStream(shape, info["train_images"], batch_size, seed, "random images", device)
        held_out = RandomStream(shape, config.evaluation.held_out_images, batch_size, seed, "held-out images", device)
    elif train:
        count = len(train_data) if isinstance(train_data, ImageTensors) else len(train_data.dataset)
        aside = min(config.evaluation.held_out_images, count // 10) if hold_out else 0
        order = torch.randperm(count, generator=generator(seed, "held-out"))
        kept, apart = order[aside:].sort().values, order[:aside].sort().values
        if isinstance(train_data, ImageTensors):
            stream = TensorStream(train_data.subset(kept).to(device), batch_size, seed)
            held_out = train_data.subset(apart).to(device) if aside else None
        else:
            stream = LoaderStream(train_data, Subset(train_data.dataset, kept.tolist()), batch_size, seed, device)
            held_out = LoaderSet(train_data, Subset(train_data.dataset, apart.tolist()), device) if aside else None
    return Task(
        name,
        shape,
        info["num_classes"],
        stream,
        held_out if hold_out else None,
        _eval_set(test_data, config.evaluation.test_images, device) if "test" in splits else None,
    )


def _load_splits(config: Config, splits: tuple[str, ...]) -> tuple[Any, Any]:
    if not splits:
        return None, None
    kwargs = {"batch_size": config.batch_size, "num_workers": config.num_workers}
    test_kwargs = kwargs | {"batch_size": config.evaluation.batch_size}
    with forked_rng(config.seed, "loading data"):
        data = TASKS[config.task.task_name](
            kwargs,
            test_kwargs,
            use_workers=config.num_workers > 0,
            data_dir=config.task.data_dir,
            imagenet_path=config.task.imagenet_path,
            splits=splits,
        )
    if not (isinstance(data, list | tuple) and len(data) == 2):
        raise NernError(f"task {config.task.task_name!r} gave {type(data).__name__}, not the pair (train, test)")
    train, test = data
    for split, part in (("train", train), ("test", test)):
        if split not in splits:
            continue
        if not isinstance(part, ImageTensors | DataLoader):
            raise NernError(f"task {config.task.task_name!r} gave {type(part).__name__} as its {split} split; "
                            "an ImageTensors or a DataLoader is expected")  # fmt: skip
        info = TASKS.info(config.task.task_name)
        if isinstance(part, ImageTensors) and len(part):
            if tuple(part.images.shape[1:]) != tuple(info["input_shape"]):
                raise NernError(f"the {split} images of task {config.task.task_name!r} have shape "
                                f"{tuple(part.images.shape[1:])}, not {tuple(info['input_shape'])}")  # fmt: skip
            if not 0 <= int(part.labels.min()) <= int(part.labels.max()) < info["num_classes"]:
                raise NernError(f"the {split} labels of task {config.task.task_name!r} are not all within "
                                f"0..{info['num_classes'] - 1}")  # fmt: skip
        count = len(part) if isinstance(part, ImageTensors) else _dataset_length(part, config.task.task_name)
        if count == 0:
            raise NernError(f"the {split} split of task {config.task.task_name!r} is empty")
    return train, test


def _dataset_length(loader: DataLoader[Any], task: str) -> int:
    try:
        return len(loader.dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise NernError(f"task {task!r} needs map-style datasets, with a length and items by number") from error


def _eval_set(data: ImageTensors | DataLoader[Any], limit: int | None, device: torch.device) -> EvalSet:
    if isinstance(data, DataLoader):
        return LoaderSet(data, data.dataset, device, limit)
    return (data if limit is None or limit >= len(data) else data.subset(torch.arange(limit))).to(device)
