"""Images from a `DataLoader`, in batches and an order of ours. What cannot be read is left out, remembered and reported."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nern.errors import NernError, NernWarning
from nern.processes import Processes
from nern.randomness import derived_seed, forked_rng, generator
from nern.tasks.images import Batch, Share, on_device, shared
from nern.tasks.streams import EpochOrder, TrainStream


@dataclass(frozen=True)
class Unreadable:
    """What a dataset gives in place of an item that it cannot read.

    Attributes:
        name: of the image, its path say.
        reason: what was wrong, in words.
    """

    name: str
    reason: str


class SkippedImages(dict[str, str]):
    """Names of the images that could not be read, in the order they were met, with the reasons. Warns at the first."""

    def add(self, images: Iterable[Unreadable]) -> None:
        """Remember these."""
        for image in images:
            if not self:
                warnings.warn(
                    f"{image.name} cannot be read ({image.reason}). It is left out, and so are others like it: the metrics "
                    "list them as skipped_images.",
                    NernWarning,
                    stacklevel=3,
                )
            self[image.name] = image.reason


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
        except NernError as error:  # a worker would raise it as another one, with the worker's traceback for a message
            return error
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


Keys = list[tuple[int, int]]  # epoch and item, of each image of a batch


def _collated(collate: Callable[[list[Any]], Any], items: Sequence[Any]) -> tuple[Any, list[Unreadable]]:
    """A batch of the readable items (None: there are none; a NernError: one of them is it), and what could not be read."""
    failed = next((item for item in items if isinstance(item, NernError)), None)
    unreadable = [item for item in items if isinstance(item, Unreadable)]
    readable = [item for item in items if not isinstance(item, Unreadable)]
    return failed or (collate(readable) if readable else None), unreadable


def image_and_label(batch: Any) -> Batch:
    """A batch of a task's dataset. Raises NernError for anything but two tensors."""
    if isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, torch.Tensor) for part in batch):
        images, labels = batch
        return images, labels
    raise NernError(f"a task's dataset must give (image, label); its batches are {type(batch).__name__}")


@dataclass(eq=False)
class _Loader:
    """What stream and set have in common: images read with the collation and workers of a user's `DataLoader`.

    Args:
        loader: the user's.
        dataset: its own, or a part of it.
        device: where batches are delivered.
        skipped: what cannot be read is added here.
        seed: of random transforms.
        as_batch: what a collated batch is.
    """

    loader: DataLoader[Any]
    dataset: Any
    device: torch.device
    skipped: SkippedImages
    seed: int = 0
    as_batch: Callable[[Any], Batch] = image_and_label

    def read(self, batches: Iterable[Keys]) -> Iterator[Batch | None]:
        """The batches of these keys; None: nothing of one can be read."""
        ours = DataLoader(
            _SeededItems(self.dataset, self.seed),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=self.loader.num_workers,
            collate_fn=partial(_collated, self.loader.collate_fn),
            pin_memory=self.device.type == "cuda",
            generator=generator(self.seed, "workers"),
        )
        for batch, unreadable in ours:
            self.skipped.add(unreadable)
            if isinstance(batch, NernError):
                raise batch
            yield None if batch is None else on_device(self.as_batch(batch), self.device)

    def nothing_readable(self, count: int) -> NernError:
        """The error where none of `count` images could be read."""
        return NernError(f"none of the {count:,} images can be read, among them: {', '.join(list(self.skipped)[:3])}")


@dataclass(eq=False)
class LoaderStream(_Loader, TrainStream):
    """Training batches of a `DataLoader`, in an order of ours.

    Where unreadable items leave nothing of a batch, the next batch of the epoch that has something (after its last batch
    the first) takes its place.
    """

    batch_size: int = field(kw_only=True)

    def __post_init__(self) -> None:
        self.order = EpochOrder(len(self.dataset), self.batch_size, self.seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self._next = -1
        self._iterator: Iterator[Batch | None] = iter(())

    def share(self, step: int, processes: Processes) -> tuple[Batch, float]:
        """See `TrainStream`. A process reads its own items only; how many of them all could read, they tell each other.
        All calls must be of the same processes.

        Raises:
            NernError: nothing of the whole epoch can be read.
        """
        begin = step - step % self.steps_per_epoch
        end = begin + self.steps_per_epoch
        if step != self._next or step == begin:
            self._iterator = self.read(self._keys(range(step, end), processes))
        self._next = step + 1
        others = self._keys([*range(step + 1, end), *range(begin, step)], processes)
        for batch in itertools.chain([next(self._iterator)], self.read(others)):
            mine = self._mine(batch, processes)
            if mine is not None:
                return mine
        raise self.nothing_readable(self.order.count)

    def _keys(self, steps: Sequence[int], processes: Processes) -> Iterator[Keys]:
        for step in steps:
            epoch, items = step // self.steps_per_epoch, self.order.indices(step)
            yield [(epoch, index) for index in items[processes.share(len(items))].tolist()]

    def _mine(self, batch: Batch | None, processes: Processes) -> tuple[Batch, float] | None:
        """What this process has read, and which fraction of all; None: nobody has read anything."""
        count = 0 if batch is None else len(batch[0])
        total = processes.total(count) if processes.several else count
        if total == 0:
            return None
        empty = torch.empty(0, device=self.device)
        return (empty, empty) if batch is None else batch, count / total


@dataclass(eq=False)
class LoaderSet(_Loader):
    """Evaluation images of a `DataLoader`, at most `limit` of them, in order; unreadable items are left out."""

    limit: int | None = None

    def __post_init__(self) -> None:
        self.count = len(self.dataset) if self.limit is None else min(self.limit, len(self.dataset))

    def __len__(self) -> int:
        return self.count

    def batches(self, batch_size: int, share: Share | None = None) -> Iterator[Batch]:
        """All images in order, or a share of the batches. Raises NernError if none (of all) can be read."""
        starts = shared(range(0, self.count, batch_size), share)
        keys = ([(0, index) for index in range(start, min(start + batch_size, self.count))] for start in starts)
        found = False
        for batch in self.read(keys):
            if batch is not None:
                found = True
                yield batch
        if not found and share is None:
            raise self.nothing_readable(self.count)
