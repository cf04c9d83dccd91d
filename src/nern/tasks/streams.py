"""Training batches by step number, of images in memory and made-up ones; mixed with each other where asked for.

Every stream is a function of the step number and the seed, so a resumed run sees what an uninterrupted one would. Several
processes share a batch: each gets consecutive images of it, which are the very images that one process would get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from nern.compat import import_torchvision
from nern.inputs import Inputs, Seen, first_of
from nern.processes import ALONE, Processes
from nern.randomness import forked_rng, generator
from nern.tasks.images import Batch, ImageTensors, Share, shared

SEEN_NUMBERS = 2**26  # of all images on which something is measured; of large images fewer tell enough


class EvalSet(Protocol):
    """Images to evaluate on."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, share: Share | None = None) -> Iterator[Batch]:
        """All batches, in order; or a share of them."""
        ...


class TrainStream:
    """Training batches by step number.

    Attributes:
        steps_per_epoch: batches of an epoch.
        skipped: names of images that could not be read so far.
    """

    steps_per_epoch: int
    skipped: Any = ()

    def share(self, step: int, processes: Processes) -> tuple[Batch, float]:
        """This process's images of the batch of a step, perhaps none, and which fraction of all these are."""
        raise NotImplementedError

    def batch(self, step: int) -> Batch:
        """Images on the device, and labels if there are any."""
        return self.share(step, ALONE)[0]


def first_images(stream: TrainStream, count: int) -> Seen:
    """So many images from the first batches of a stream, fewer large ones, in as many steps at the most: augmented as it
    augments them, but not mixed with each other. Tensors are joined; other batches may differ in their shapes, and stay
    apart."""
    stream = getattr(stream, "unmixed", stream)
    batches = (stream.batch(step)[0] for step in range(count))  # a batch has an image at least
    parts = first_of(batches, count, SEEN_NUMBERS)
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return torch.cat(tensors) if tensors else [part for part in parts if isinstance(part, Inputs)]


class EpochOrder:
    """Which images form step `step`: a new permutation each epoch, derived from the seed; nothing to save for resuming.

    The last batch of an epoch may be short.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.steps_per_epoch = -(-count // batch_size)
        self._epoch, self._permutation = -1, torch.empty(0)

    def indices(self, step: int) -> Int[Tensor, " b"]:
        """Image numbers of this step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._permutation = torch.randperm(self.count, generator=generator(self.seed, "images", epoch))
            self._epoch = epoch
        return self._permutation[index * self.batch_size : (index + 1) * self.batch_size]


class TensorStream(TrainStream):
    """Batches of an `ImageTensors`."""

    def __init__(self, data: ImageTensors, batch_size: int, seed: int) -> None:
        self.data, self.seed, self.skipped = data, seed, data.skipped
        self.order = EpochOrder(len(data), batch_size, seed)
        self.steps_per_epoch = self.order.steps_per_epoch

    def share(self, step: int, processes: Processes) -> tuple[Batch, float]:
        indices = self.order.indices(step)
        part = processes.share(len(indices))
        batch = self.data.batch(indices, generator(self.seed, "augment", step), part)
        return batch, len(batch[0]) / len(indices)


class MadeUpStream(TrainStream):
    """Made-up images, without labels; also a set of them to evaluate on. `draw` gives images on the device."""

    def __init__(
        self, draw: Callable[[int, torch.Generator], Tensor], count: int, batch_size: int, seed: int, purpose: str
    ) -> None:
        self.draw, self.count, self.batch_size, self.seed, self.purpose = draw, count, batch_size, seed, purpose
        self.steps_per_epoch = -(-count // batch_size)

    def __len__(self) -> int:
        return self.count

    def share(self, step: int, processes: Processes) -> tuple[Batch, float]:
        """Every process draws all images."""
        images = self._images(step % self.steps_per_epoch, self.batch_size, step)
        mine = images[processes.share(len(images))]
        return (mine, None), len(mine) / len(images)

    def batches(self, batch_size: int, share: Share | None = None) -> Iterator[Batch]:
        for number in shared(range(-(-self.count // batch_size)), share):
            yield self._images(number, batch_size, number), None

    def _images(self, number: int, batch_size: int, drawn_for: int) -> Tensor:
        count = min(batch_size, self.count - number * batch_size)
        return self.draw(count, generator(self.seed, self.purpose, drawn_for))


class MixedStream(TrainStream):
    """Batches of another stream, each mixed by mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019), with labels as shares
    of the classes (n, classes).

    Args:
        stream: gives images and integer labels; kept as `unmixed`.
        mixup: alpha of the Beta distribution of shares when whole images are blended; 0: never.
        cutmix: the same when a rectangle is pasted in; 0: never. With both, each is as likely.
    """

    def __init__(self, stream: TrainStream, mixup: float, cutmix: float, num_classes: int, seed: int) -> None:
        import_torchvision()
        from torchvision.transforms import v2

        self.unmixed, self.seed, self.steps_per_epoch = stream, seed, stream.steps_per_epoch
        self.skipped = stream.skipped
        kinds: list[tuple[Any, float]] = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
        self.mixers = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha > 0]

    def share(self, step: int, processes: Processes) -> tuple[Batch, float]:
        """An image is mixed with the one before it (the first with the last) of the same process."""
        (images, labels), fraction = self.unmixed.share(step, processes)
        if not len(images):
            return (images, labels), fraction
        with forked_rng(self.seed, "mixing", step):
            index = generator(self.seed, "mixer", step).initial_seed() % len(self.mixers)
            return self.mixers[index](images, labels), fraction
