"""The objective: reconstruction + feature maps + output distillation (+ task), each with its weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nern.config import NernConfig
from nern.config.checks import further_terms, loss_weights
from nern.errors import NernError, NonFiniteLossError
from nern.inputs import Images
from nern.originals.base import Mirrored, Original
from nern.originals.taps import FeatureMaps
from nern.registry import DISTILLATION_LOSSES, FEATURE_MAP_LOSSES, LOSS_TERMS, RECONSTRUCTION_LOSSES, TASK_LOSSES


@dataclass(frozen=True)
class Losses:
    """Unweighted terms by name, and their weighted sum."""

    terms: dict[str, Tensor]
    total: Tensor

    def __add__(self, other: Losses) -> Losses:
        """All terms of both; those of the same name added."""
        both = {name: self.terms[name] + other.terms[name] for name in self.terms.keys() & other.terms.keys()}
        return Losses(self.terms | other.terms | both, self.total + other.total)

    def __mul__(self, factor: float) -> Losses:
        """All of them times a number."""
        if factor == 1.0:
            return self
        return Losses({name: value * factor for name, value in self.terms.items()}, self.total * factor)

    def detach(self) -> Losses:
        """The values alone."""
        return Losses({name: value.detach() for name, value in self.terms.items()}, self.total.detach())

    def figures(self) -> Tensor:
        """The total and all terms in one tensor, without gradient."""
        return torch.stack([self.total.detach(), *(value.detach() for value in self.terms.values())])

    @staticmethod
    def of_figures(figures: Tensor, names: Sequence[str]) -> Losses:
        """From `figures()` of terms of these names."""
        total, *terms = figures.unbind()
        return Losses(dict(zip(names, terms, strict=True)), total)

    def check_finite(self, step: int) -> None:
        """Raise NonFiniteLossError naming `step` and the terms that are NaN or infinite."""
        if not torch.isfinite(self.total):
            bad = {name: float(value.detach()) for name, value in self.terms.items() if not torch.isfinite(value)}
            listing = ", ".join(f"{name} loss is {value}" for name, value in bad.items())
            listing = listing or f"the weighted sum of the losses is {float(self.total.detach())}"
            help = "A lower optim.lr or optim.max_gradient_norm may help."
            if step == 0:  # nothing was learnt yet
                what = "weights" if "reconstruction" in bad else "outputs or feature maps"
                help = f"The original's {what} are too large: their squares must be finite in float32 (below 3e38)."
            raise NonFiniteLossError(f"step {step}: {listing}. {help}")


@dataclass(frozen=True)
class Outputs:
    """What a registered loss term may look at, of one network and a batch.

    Attributes:
        images, labels: the batch (nested tensors as `Inputs`); labels are None where there are none.
        outputs, target: of the reconstructed network, and of the network whose outputs are distilled; (images, ...) in
            float32.
        maps, target_maps: their feature maps, where the term was registered with `maps=True`; else empty.
        weights, originals: of all represented layers, predicted and as they are.
    """

    images: Images
    labels: Tensor | None
    outputs: Tensor
    target: Tensor
    maps: FeatureMaps
    target_maps: FeatureMaps
    weights: Sequence[Tensor]
    originals: Sequence[Tensor]


class Objective:
    """The losses that a config selects.

    Args:
        config: names and weights of the terms.
        original: the network to be represented.
        teacher: the network whose outputs are distilled; None: the original.
    """

    def __init__(self, config: NernConfig, original: Original, teacher: Original | Mirrored | None = None) -> None:
        self.config, self.original, self.teacher = config, original, teacher or original
        self.all_weights = loss_weights(config)
        self.weights = dict(self.all_weights)
        self._further = {name: LOSS_TERMS[choice] for name, (_, choice) in further_terms(config).items()}
        self._reconstruction = RECONSTRUCTION_LOSSES[config.reconstruction_loss_type]
        self._feature_maps = FEATURE_MAP_LOSSES[config.attention_loss_type]
        self._maps_in_any_precision = FEATURE_MAP_LOSSES.info(config.attention_loss_type)["any_precision"]
        self._distillation = DISTILLATION_LOSSES[config.distillation_loss_type]
        self._task = TASK_LOSSES[config.task_loss_type]

    def take_part(self, names: Sequence[str] | None) -> None:
        """From now on these terms alone take part; None: all whose weight is above zero."""
        self.weights = {
            name: weight if names is None or name in names else 0.0 for name, weight in self.all_weights.items()
        }

    def active(self, name: str) -> bool:
        """Whether a term takes part: its weight is above zero. Reconstruction is always computed."""
        return self.weights[name] > 0

    @property
    def needs_images(self) -> bool:
        """Whether any term that takes part runs the network."""
        return bool(self._of_images)

    @property
    def _of_images(self) -> list[str]:
        """The active terms that run the network."""
        return [name for name in self.weights if name != "reconstruction" and self.active(name)]

    def reconstruction(self, original: Sequence[Tensor], predicted: Sequence[Tensor]) -> Losses:
        """The reconstruction loss alone, of any share of the weights, layer by layer."""
        return self.weighted({"reconstruction": self._reconstruction(original, predicted)})

    def of_images(
        self, weights: Sequence[Tensor], images: Images, labels: Tensor | None, extra: dict[str, Tensor] | None = None
    ) -> Losses:
        """The terms that run the networks; zero without images (a batch may be smaller than the number of processes)."""
        active = self._of_images
        with_maps = any(
            name == "feature_maps" or (name in self._further and LOSS_TERMS.info(name)["maps"]) for name in active
        )
        if not len(images):
            return self.weighted({name: torch.zeros((), device=images.device) for name in active})
        terms = {}
        outputs, maps = self.original.run(weights, images, extra, with_maps)
        target, target_maps = self._target(images, with_maps)
        with torch.autocast(images.device.type, enabled=False):
            if self.active("feature_maps"):
                terms["feature_maps"] = self._compare_maps(target_maps, maps)
            if self.active("distillation"):
                terms["distillation"] = self._distillation(target.float(), outputs.float())
            if self.active("task"):
                assert labels is not None  # the config's check
                terms["task"] = self._task(outputs.float(), labels)
            for name in [name for name in active if name in self._further]:
                seen = Outputs(
                    images, labels, outputs.float(), target.float(), maps, target_maps, weights, self.original.weights
                )
                terms[name] = self._further[name](seen)
        return self.weighted(terms)

    def weighted(self, terms: dict[str, Tensor]) -> Losses:
        """These terms, and their weighted sum."""
        return Losses(terms, torch.stack([self.weights[name] * value for name, value in terms.items()]).sum())

    @property
    def by_image(self) -> bool:
        """Whether all terms are means over images, each on its own: a batch may be taken in parts."""
        kinds = {
            "feature_maps": FEATURE_MAP_LOSSES.info(self.config.attention_loss_type),
            "distillation": DISTILLATION_LOSSES.info(self.config.distillation_loss_type),
            "task": TASK_LOSSES.info(self.config.task_loss_type),
        }
        kinds |= {name: LOSS_TERMS.info(name) for name in self._further}
        return all(info["by_image"] for name, info in kinds.items() if self.active(name))

    def __call__(
        self,
        weights: Sequence[Tensor],
        images: Images | None,
        labels: Tensor | None = None,
        extra: dict[str, Tensor] | None = None,
    ) -> Losses:
        """Losses of predicted weights.

        Args:
            weights: of all layers; gradients flow to them.
            images: a batch; None: only the reconstruction loss.
            labels: for the task loss.
            extra: further parameters of the reconstructed network that are trained.
        """
        losses = self.reconstruction(self.original.weights, weights)
        if images is not None and self.needs_images:
            losses += self.of_images(weights, images, labels, extra)
        return losses

    def _target(self, images: Images, with_maps: bool) -> tuple[Tensor, FeatureMaps]:
        """The teacher's outputs, if a term asks for them, and the original's feature maps."""
        if with_maps and self.teacher is self.original:
            return self.original.features(images)
        maps = self.original.features(images)[1] if with_maps else []
        wanted = self.active("distillation") or any(map(self.active, self._further))
        return (self.teacher(images) if wanted else torch.zeros(0)), maps

    def _compare_maps(self, target: FeatureMaps, maps: FeatureMaps) -> Tensor:
        if not maps:
            raise NernError(f"{self.original.name} gives no feature maps; see nern.feature_maps")
        if not self._maps_in_any_precision:
            target, maps = [m.float() for m in target], [m.float() for m in maps]
        return self._feature_maps(target, maps)
