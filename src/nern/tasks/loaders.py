"""Images from a `DataLoader`, in batches and an order of ours. What cannot be read is left out, remembered and reported."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from nern.errors import NernError, NernWarning
from nern.files import some_names
from nern.processes import Processes
from nern.randomness import derived_seed, forked_rng, generator
from nern.tasks.images import Batch, Share, on_device, shared
from nern.tasks.streams import EpochOrder, TrainStream


@dataclass(frozen=True)
class Unreadable:
    """What a dataset gives in place of an item that it cannot read."""

    name: str  # of the image, its path say
    reason: str  # what was wrong, in words


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
    """Items whose random transforms depend on seed, epoch and item alone, whatever worker makes them; each with those that
    could not be read: with `fill` the next readable one takes their place, else `None`."""

    def __init__(self, dataset: Any, seed: int, fill: bool) -> None:
        self.dataset, self.seed, self.fill = dataset, seed, fill

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, list[Unreadable]]:
        epoch, index = key
        unreadable = list[Unreadable]()
        for place in range(len(self.dataset) if self.fill else 1):
            item = self._item(epoch, (index + place) % len(self.dataset))
            if not isinstance(item, Unreadable):
                return item, unreadable
            unreadable.append(item)
        return None, unreadable

    def _item(self, epoch: int, index: int) -> Any:
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
    unreadable = [image for _, images in items for image in images]
    readable = [item for item, _ in items if item is not None]
    failed = next((item for item in readable if isinstance(item, NernError)), None)
    return failed or (collate(readable) if readable else None), unreadable


def image_and_label(batch: Any) -> Batch:
    """A batch of a task's dataset. Raises NernError for anything but two tensors."""
    if isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, torch.Tensor) for part in batch):
        images, labels = batch
        return images, labels
    raise NernError(f"a task's dataset must give (image, label); its batches are {type(batch).__name__}")


@dataclass(eq=False)
class LoaderSet:
    """Images of a `DataLoader`, read with its collation and workers, in order; unreadable items are left out."""

    loader: DataLoader[Any]  # the user's
    dataset: Any  # its own, or a part of it
    device: torch.device  # where batches are delivered
    skipped: SkippedImages  # what cannot be read is added here
    as_batch: Callable[[Any], Batch] = image_and_label  # what a collated batch is

    def __len__(self) -> int:
        return len(self.dataset)

    def subset(self, indices: Tensor) -> LoaderSet:
        """These images only."""
        return replace(self, dataset=Subset(self.dataset, indices.tolist()))

    def plain(self) -> LoaderSet:
        """The same without augmentation, where the dataset has that as its attribute `evaluation`."""
        return replace(self, dataset=getattr(self.dataset, "evaluation", None) or self.dataset)

    def batches(self, batch_size: int, share: Share | None = None) -> Iterator[Batch]:
        """All images in order, or a share of the batches. Raises NernError if none (of all) can be read."""
        starts = shared(range(0, len(self), batch_size), share)
        keys = ([(0, index) for index in range(start, min(start + batch_size, len(self)))] for start in starts)
        found = False
        for batch in self.read(keys):
            if batch is not None:
                found = True
                yield batch
        if not found and share is None:
            raise self.nothing_readable()

    def read(self, batches: Iterable[Keys], seed: int = 0, fill: bool = False) -> Iterator[Batch | None]:
        """The batches of these keys; None: nothing of one can be read. `seed`: of random transforms; `fill`: the next item
        that can be read takes the place of one that cannot."""
        ours = DataLoader(
            _SeededItems(self.dataset, seed, fill),
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=self.loader.num_workers,
            collate_fn=partial(_collated, self.loader.collate_fn),
            pin_memory=self.device.type == "cuda",
            generator=generator(seed, "workers"),
        )
        for batch, unreadable in ours:
            self.skipped.add(unreadable)
            if isinstance(batch, NernError):
                raise batch
            yield None if batch is None else on_device(self.as_batch(batch), self.device)

    def nothing_readable(self) -> NernError:
        """The error where nothing could be read."""
        return NernError(f"none of the {len(self):,} images can be read, among them: {some_names(self.skipped, 3)}")


class LoaderStream(TrainStream):
    """Batches of a `LoaderSet`. Where an item cannot be read, the next one that can be is taken in its place."""

    def __init__(self, data: LoaderSet, batch_size: int, seed: int) -> None:
        self.data, self.seed, self.skipped = data, seed, data.skipped
        self.order = EpochOrder(len(data), batch_size, seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self._next = -1
        self._iterator: Iterator[Batch | None] = iter(())

    def share(self, step: int, processes: Processes) -> tuple[Batch, float]:
        """See `TrainStream`. A process reads its own items only; all calls must be of the same processes.

        Raises:
            NernError: no item can be read.
        """
        if step != self._next:
            self._iterator = self.data.read(self._keys(step, processes), self.seed, fill=True)
        self._next = step + 1
        batch, count = next(self._iterator), len(self.order.indices(step))
        mine = len(range(count)[processes.share(count)])
        if batch is None and mine:
            raise self.data.nothing_readable()
        empty = torch.empty(0, device=self.data.device)
        return (empty, empty) if batch is None else batch, mine / count

    def _keys(self, start: int, processes: Processes) -> Iterator[Keys]:
        for step in itertools.count(start):
            epoch, items = step // self.steps_per_epoch, self.order.indices(step)
            yield [(epoch, index) for index in items[processes.share(len(items))].tolist()]
