"""Streams and sets of images: training batches by step number, evaluation images in order.

Every stream is a function of the step number and the seed, so a resumed run sees what an uninterrupted one would. Several
processes share a batch: each gets consecutive images of it, which are the very images that one process would get.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nern.errors import NernError
from nern.processes import ALONE, Processes
from nern.randomness import derived_seed, forked_rng, generator
from nern.tasks.images import ALL, Batch, EpochOrder, ImageTensors, Share, shared
from nern.tasks.unreadable import ReadableOnly, SkippedImages, Unreadable, nothing_readable


class TrainStream(Protocol):
    """Training batches by step number."""

    steps_per_epoch: int

    def batch(self, step: int) -> Batch:
        """Images on the device, and labels if there are any."""
        ...

    def share(self, step: int, processes: Processes) -> tuple[Batch, float]:
        """This process's images of `batch(step)`, perhaps none, and which fraction of all these are."""
        ...


class EvalSet(Protocol):
    """Images to evaluate on."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, share: Share | None = None) -> Iterator[Batch]:
        """All batches, in order; or a share of them."""
        ...


def first_images(stream: TrainStream, count: int) -> Tensor:
    """So many images from the first batches of a stream, in as many steps at the most: augmented as it augments them, but
    not mixed with each other."""
    stream, parts = getattr(stream, "unmixed", stream), list[Tensor]()
    for step in range(count):  # a batch has an image at least
        parts.append(stream.batch(step)[0])
        if sum(map(len, parts)) >= count:
            break
    return torch.cat(parts)[:count]


def part_of(batch: Batch, processes: Processes) -> tuple[Batch, float]:
    """This process's share of a batch that it has whole, and which fraction that is."""
    images, labels = batch
    part = processes.share(len(images))
    mine = images[part]
    return (mine, None if labels is None else labels[part]), len(mine) / len(images)


class TensorStream:
    """Batches of an `ImageTensors`."""

    def __init__(self, data: ImageTensors, batch_size: int, seed: int) -> None:
        self.data, self.seed = data, seed
        self.order = EpochOrder(len(data), batch_size, seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.skipped = data.skipped

    def batch(self, step: int) -> Batch:
        """See `TrainStream`."""
        return self._part(step, ALL)

    def share(self, step: int, processes: Processes) -> tuple[Batch, float]:
        """See `TrainStream`."""
        count = len(self.order.indices(step))
        batch = self._part(step, processes.share(count))
        return batch, len(batch[0]) / count

    def _part(self, step: int, part: slice) -> Batch:
        return self.data.batch(self.order.indices(step), generator(self.seed, "augment", step), part)


class MadeUpStream:
    """Made-up images, without labels; also a set of them to evaluate on.

    Args:
        draw: (number of images, generator) -> images on the device.
    """

    def __init__(
        self, draw: Callable[[int, torch.Generator], Tensor], count: int, batch_size: int, seed: int, purpose: str
    ) -> None:
        self.draw, self.count, self.batch_size, self.seed, self.purpose = draw, count, batch_size, seed, purpose
        self.steps_per_epoch = -(-count // batch_size)

    def __len__(self) -> int:
        return self.count

    def batch(self, step: int) -> Batch:
        """See `TrainStream`."""
        rest = self.count - (step % self.steps_per_epoch) * self.batch_size
        return self.draw(min(rest, self.batch_size), generator(self.seed, self.purpose, step)), None

    def share(self, step: int, processes: Processes) -> tuple[Batch, float]:
        """See `TrainStream`. Every process draws all images."""
        return part_of(self.batch(step), processes)

    def batches(self, batch_size: int, share: Share | None = None) -> Iterator[Batch]:
        """See `EvalSet`."""
        for number in shared(range(-(-self.count // batch_size)), share):
            count = min(batch_size, self.count - number * batch_size)
            yield self.draw(count, generator(self.seed, self.purpose, number)), None


_Loaded = tuple[Batch | None, dict[int, Unreadable]]  # what could not be read, by its place in the batch


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


class _Steps:
    """Batch sampler of some steps of one epoch: batches of (epoch, item) keys, or of a process's share of them."""

    def __init__(self, order: EpochOrder, steps: Sequence[int], processes: Processes) -> None:
        self.order, self.steps, self.processes = order, steps, processes

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            epoch, items = step // self.order.steps_per_epoch, self.order.indices(step)
            yield [(epoch, index) for index in items[self.processes.share(len(items))].tolist()]


class LoaderStream:
    """Batches of a user's `DataLoader`: its dataset, collation and workers, in an order of ours.

    Unreadable items are left out. Where that leaves nothing of a batch, the next batch of the epoch that has something
    (after its last batch the first) takes its place.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        dataset: Any,
        batch_size: int,
        seed: int,
        device: torch.device,
        skipped: SkippedImages,
    ) -> None:
        self.loader, self.seed, self.device, self.skipped = loader, seed, device, skipped
        self.items = _SeededItems(dataset, seed)
        self.order = EpochOrder(len(dataset), batch_size, seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self._next = -1
        self._iterator: Iterator[_Loaded] = iter(())

    def batch(self, step: int) -> Batch:
        """See `TrainStream`. Raises NernError where nothing of the whole epoch can be read."""
        return self.share(step, ALONE)[0]

    def share(self, step: int, processes: Processes) -> tuple[Batch, float]:
        """See `TrainStream`. A process reads its own items only; how many of them all could read, they tell each other.
        All calls must be of the same processes."""
        begin = step - step % self.steps_per_epoch
        if step != self._next or step == begin:
            self._iterator = self._load(range(step, begin + self.steps_per_epoch), processes)
        self._next = step + 1
        mine = self._mine(next(self._iterator), processes)
        return self._another(step, begin, processes) if mine is None else mine

    def _another(self, step: int, begin: int, processes: Processes) -> tuple[Batch, float]:
        steps = [*range(step + 1, begin + self.steps_per_epoch), *range(begin, step)]
        for loaded in self._load(steps, processes):
            mine = self._mine(loaded, processes)
            if mine is not None:
                return mine
        raise nothing_readable(self.order.count, self.skipped)

    def _mine(self, loaded: _Loaded, processes: Processes) -> tuple[Batch, float] | None:
        """What this process has read, and which fraction of all; None: nobody has read anything."""
        batch, unreadable = loaded
        self.skipped.add(unreadable.values())
        count = 0 if batch is None else len(batch[0])
        total = processes.total(count) if processes.several else count
        if total == 0:
            return None
        empty = torch.empty(0, device=self.device)
        return (empty, empty) if batch is None else batch, count / total

    def _load(self, steps: Sequence[int], processes: Processes) -> Iterator[_Loaded]:
        return _loaded(self.loader, self.items, _Steps(self.order, steps, processes), self.device, self.seed)


class LoaderSet:
    """Evaluation images from a user's `DataLoader`, at most `limit` of them: its dataset, in order, the same each time.

    Unreadable items are left out, each time the same ones.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        dataset: Any,
        device: torch.device,
        skipped: SkippedImages,
        limit: int | None = None,
    ) -> None:
        self.loader, self.device, self.skipped = loader, device, skipped
        self.items = _SeededItems(dataset, seed=0)
        self.count = len(dataset) if limit is None else min(limit, len(dataset))
        self._readable: dict[int, bool] = {}  # by item, as far as known

    def __len__(self) -> int:
        return self.count

    def batches(self, batch_size: int, share: Share | None = None) -> Iterator[Batch]:
        """All images in order, or a share of the batches.

        Raises:
            NernError: none (of all) can be read, or one cannot any more.
        """
        starts = shared(range(0, self.count, batch_size), share)
        chunks = [range(start, min(start + batch_size, self.count)) for start in starts]
        # Batches stay as they are when images known to be unreadable are not tried again: results are compared by batch.
        keys = [[(0, index) for index in chunk if self._readable.get(index, True)] for chunk in chunks]
        keys = [batch for batch in keys if batch]
        found = False
        loaded = _loaded(self.loader, self.items, keys, self.device, 0)
        for of_batch, (batch, unreadable) in zip(keys, loaded, strict=True):
            self.skipped.add(unreadable.values())
            for place, (_, index) in enumerate(of_batch):
                readable = place not in unreadable
                if self._readable.setdefault(index, readable) != readable:
                    name, reason = unreadable[place].name, unreadable[place].reason
                    raise NernError(f"{name} could be read before and cannot be read any more: {reason}")
            if batch is not None:
                found = True
                yield batch
        if not found and share is None:
            raise nothing_readable(self.count, self.skipped)


def _loaded(
    loader: DataLoader[Any], items: _SeededItems, keys: Any, device: torch.device, seed: int
) -> Iterator[_Loaded]:
    """Batches of `items` as `ReadableOnly` gives them, with the collation and workers of `loader`."""
    ours = DataLoader(
        items,
        batch_sampler=keys,
        num_workers=loader.num_workers,
        collate_fn=ReadableOnly(loader.collate_fn),
        pin_memory=device.type == "cuda",
        generator=generator(seed, "workers"),
    )
    for batch, unreadable in ours:
        if isinstance(batch, NernError):
            raise batch
        if batch is None:
            yield None, unreadable
            continue
        if not (
            isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(b, torch.Tensor) for b in batch)
        ):
            raise NernError(f"a task's dataset must give (image, label); its batches are {type(batch).__name__}")
        images, labels = batch
        yield (images.to(device, non_blocking=True), labels.to(device, non_blocking=True)), unreadable
