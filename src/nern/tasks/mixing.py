"""Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) over the batches of any training stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nern.compat import import_torchvision
from nern.processes import Processes
from nern.randomness import forked_rng, generator
from nern.tasks.images import Batch
from nern.tasks.streams import TrainStream, part_of


class MixedStream:
    """Batches of another stream, each mixed by one of both, with labels as shares of the classes (n, classes).

    Args:
        stream: gives images and integer labels.
        mixup: alpha of the Beta distribution of shares when whole images are blended; 0: never.
        cutmix: the same when a rectangle is pasted in; 0: never. With both, each is as likely.
        num_classes: of the labels.
        seed: of the draws.
    """

    def __init__(self, stream: TrainStream, mixup: float, cutmix: float, num_classes: int, seed: int) -> None:
        import_torchvision()
        from torchvision.transforms import v2

        self.stream, self.seed, self.steps_per_epoch = stream, seed, stream.steps_per_epoch
        kinds: list[tuple[Any, float]] = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
        self.mixers = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha > 0]

    @property
    def skipped(self) -> Iterable[str]:
        """Names of images that could not be read so far."""
        return getattr(self.stream, "skipped", ())

    def batch(self, step: int) -> Batch:
        """See `TrainStream`."""
        images, labels = self.stream.batch(step)
        with forked_rng(self.seed, "mixing", step):
            index = generator(self.seed, "mixer", step).initial_seed() % len(self.mixers)
            mixed, shares = self.mixers[index](images, labels)
        return mixed, shares

    def share(self, step: int, processes: Processes) -> tuple[Batch, float]:
        """See `TrainStream`. Images are mixed in pairs across the batch, so every process makes all of it."""
        return part_of(self.batch(step), processes)
