"""What a report tells of, whatever it was read from: networks, and what stands in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nern.devices import computing_in
from nern.evaluation import Evaluator
from nern.originals.base import Original
from nern.tasks.streams import EvalSet
from nern.training.loop import History

Kernels = Float[Tensor, "filters channels height width"]
NO_ORIGINAL = "the original's weights were not given (--original_model_path)"  # why something is left out
Figures = Mapping[str, Mapping[str, Mapping[str, float]]]  # within, what `Metrics.to_dict` gives


@dataclass(frozen=True, eq=False)
class Evaluation:
    """An original network's architecture on labelled images, with its own and with other weights. These may have any shape
    with as many elements, and be on any device."""

    original: Original
    images: EvalSet  # labelled ones, on its device
    classes: int
    batch_size: int
    extra: dict[str, Tensor] = field(default_factory=dict)  # parameters besides, that go with other weights
    reconstructed: Original | None = None  # in which other weights are run, with its own buffers; None: the original

    def metrics(self, weights: Sequence[Tensor]) -> dict[str, dict[str, float]]:
        """Of 'original' and 'reconstructed', what `Metrics.to_dict` gives."""
        evaluator = Evaluator(self.original, self.batch_size, reconstructed=self.reconstructed)
        return evaluator.both(self.images, self._fitted(weights), self.extra)

    @torch.no_grad()
    def predicted(self, weights: Sequence[Tensor] | None = None) -> Int[Tensor, " images"]:
        """The class that is predicted for each image, on the CPU; None: by the original."""
        own, found = None if weights is None else self._fitted(weights), []
        network = self.reconstructed or self.original
        for images, _ in self.images.batches(self.batch_size):
            with computing_in("float32", images.device):
                scores = self.original(images) if own is None else network.run(own, images, self.extra)[0]
            found.append(scores.argmax(1).cpu())
        return torch.cat(found)

    def accuracy(self, weights: Sequence[Tensor] | None = None) -> float:
        """In percent; None: of the original."""
        return 100 * int((self.predicted(weights) == self.labels).sum()) / len(self.labels)

    @cached_property
    def labels(self) -> Int[Tensor, " images"]:
        """The right class of each image, on the CPU."""
        return torch.cat([labels.cpu() for _, labels in self.images.batches(self.batch_size) if labels is not None])

    def _fitted(self, weights: Sequence[Tensor]) -> list[Tensor]:
        return [w.reshape(o.shape).to(o.device) for w, o in zip(weights, self.original.weights, strict=True)]


@dataclass(frozen=True, eq=False, kw_only=True)
class NetworkContent:
    """One network and its reconstruction. All tensors are on the CPU.

    `ordered`: of each layer, the numbers (filter * channels + channel) of the kernels in the order in which the coordinates
    walk through them; None: there is no ordering.
    """

    name: str
    layers: Sequence[str]  # names of the represented weights
    weights: Sequence[Kernels] = ()  # the reconstructed ones
    original: Sequence[Kernels] | None = None  # None: not at hand, and whatever compares with them is left out
    ordered: Sequence[Int[Tensor, " kernels"]] | None = None
    figures: Figures = field(default_factory=dict)  # by set ('test', 'held_out'), then 'original' or 'reconstructed'
    evaluation: Evaluation | str = "there are no test images"  # or why there is none: the end of a sentence
    class_names: Sequence[str] | None = None  # None: classes have numbers only


@dataclass(frozen=True)
class Part:
    """Bytes of a part of what a report is about: its name, bytes of the original's tensors in whose place it is (None: the
    original has no such part), and its own."""

    name: str
    before: float | None
    after: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Content:
    """What a report tells. None: unknown."""

    title: str
    networks: Sequence[NetworkContent]  # that one NeRN represents
    represented: int  # number of the weights that it represents
    predictor: int  # number of the predictor's parameters
    sizes: Sequence[Part] | None = None  # where the bytes are; they add up to all there are
    sizes_about: str = ""  # what these bytes are; a sentence or two
    ordering: str = ""  # in a few words; empty: there is none
    history: History | None = None  # losses and evaluations over the steps
    phases: Sequence[tuple[str, int]] = ()  # name and last step of each
    best_step: int | None = None  # whose weights are shown
    notes: Sequence[str] = ()  # sentences to begin with
    seed: int = 0  # of what is drawn
