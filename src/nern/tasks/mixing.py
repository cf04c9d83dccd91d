"""Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) over the batches of any training stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nern.compat import import_torchvision
from nern.processes import Processes
from nern.randomness import forked_rng, generator
from nern.tasks.images import Batch
from nern.tasks.streams import TrainStream


class MixedStream:
    """Batches of another stream, each mixed by one of both, with labels as shares of the classes (n, classes).

    Args:
        stream: gives images and integer labels; kept as `unmixed`.
        mixup: alpha of the Beta distribution of shares when whole images are blended; 0: never.
        cutmix: the same when a rectangle is pasted in; 0: never. With both, each is as likely.
        num_classes: of the labels.
        seed: of the draws.
    """

    def __init__(self, stream: TrainStream, mixup: float, cutmix: float, num_classes: int, seed: int) -> None:
        import_torchvision()
        from torchvision.transforms import v2

        self.unmixed, self.seed, self.steps_per_epoch = stream, seed, stream.steps_per_epoch
        kinds: list[tuple[Any, float]] = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
        self.mixers = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha > 0]

    @property
    def skipped(self) -> Iterable[str]:
        """Names of images that could not be read so far."""
        return getattr(self.unmixed, "skipped", ())

    def batch(self, step: int) -> Batch:
        """See `TrainStream`."""
        return self._mixed(step, *self.unmixed.batch(step))

    def share(self, step: int, processes: Processes) -> tuple[Batch, float]:
        """See `TrainStream`. An image is mixed with the one before it in the batch (the first with the last), which
        processes hand to each other."""
        (images, labels), fraction = self.unmixed.share(step, processes)
        assert labels is not None
        own = (images[-1:].cpu(), labels[-1:].cpu()) if len(images) else None
        lasts = processes.collect(own)
        if own is None:
            return (images, labels), fraction
        before = next(last for last in [*lasts[: processes.rank][::-1], *lasts[::-1]] if last is not None)
        pairs = zip(before, (images, labels), strict=True)
        images, labels = self._mixed(step, *(torch.cat([first.to(rest), rest]) for first, rest in pairs))
        return (images[1:], None if labels is None else labels[1:]), fraction

    def _mixed(self, step: int, images: Tensor, labels: Tensor | None) -> Batch:
        with forked_rng(self.seed, "mixing", step):
            index = generator(self.seed, "mixer", step).initial_seed() % len(self.mixers)
            mixed, shares = self.mixers[index](images, labels)
        return mixed, shares
