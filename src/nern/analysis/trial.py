"""A network's architecture tried on labelled images, with its own and with other weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

from nern.devices import computing_in
from nern.evaluation import Evaluator, Metrics
from nern.originals.base import Original
from nern.tasks.streams import EvalSet


class Trial:
    """An original network's architecture on a set of images.

    Args:
        network: the original.
        images: labelled ones, on the network's device.
        batch_size: images in one forward pass.
        classes: number of classes.
        extra: parameters besides the represented weights that the reconstructed network has in place of the original's.
        reconstructed: the network in which other weights are tried; None: the original, with `extra`. Buffers, too, are its
            own.
    """

    def __init__(
        self,
        network: Original,
        images: EvalSet,
        batch_size: int,
        classes: int,
        extra: dict[str, Tensor] | None = None,
        reconstructed: Original | None = None,
    ) -> None:
        self.network, self.images, self.batch_size, self.classes = network, images, batch_size, classes
        self.extra = extra or {}
        self._reconstructed = reconstructed or network
        self._evaluator = Evaluator(network, batch_size, reconstructed=reconstructed)

    def on(self, images: EvalSet) -> Trial:
        """The same on other images."""
        return Trial(self.network, images, self.batch_size, self.classes, self.extra, self._reconstructed)

    def metrics(self, weights: Sequence[Tensor] | None = None) -> Metrics:
        """With these weights, of any shape with as many elements, on any device; None: of the original."""
        if weights is None:
            return self._evaluator(self.images)
        return self._evaluator(self.images, self._fitted(weights), self.extra)

    @torch.no_grad()
    def predicted(self, weights: Sequence[Tensor] | None = None) -> Int[Tensor, " images"]:
        """The class that is predicted for each image, on the CPU; `weights` as for `metrics`."""
        own, found = None if weights is None else self._fitted(weights), []
        for images, _ in self.images.batches(self.batch_size):
            with computing_in("float32", images.device):
                scores = self.network(images) if own is None else self._reconstructed.run(own, images, self.extra)[0]
            found.append(scores.argmax(1).cpu())
        return torch.cat(found)

    @cached_property
    def labels(self) -> Int[Tensor, " images"]:
        """The right class of each image, on the CPU."""
        labels = [labels for _, labels in self.images.batches(self.batch_size)]
        return torch.cat([of_batch.cpu() for of_batch in labels if of_batch is not None])

    def _fitted(self, weights: Sequence[Tensor]) -> list[Tensor]:
        return [w.reshape(o.shape).to(o.device) for w, o in zip(weights, self.network.weights, strict=True)]
