"""The keys of training by phases: reconstruction, refinement, distillation, quantisation; and of the teacher."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

Optim = TypeVar("Optim", bound=Any)  # OptimConfig, of a module that imports this one


@dataclass(kw_only=True)
class PhaseOptimConfig:
    """What a phase sets apart from `optim`: each key as there; null: as it is there."""

    optimizer_type: str | None = None
    """As optim.optimizer_type, for this phase."""
    lr: float | None = None
    """As optim.lr, for this phase."""
    betas: tuple[float, float] | None = None
    """As optim.betas, for this phase."""
    momentum: float | None = None
    """As optim.momentum, for this phase."""
    weight_decay: float | None = None
    """As optim.weight_decay, for this phase."""
    ranger_use_gc: bool | None = None
    """As optim.ranger_use_gc, for this phase."""
    max_gradient_norm: float | None = None
    """As optim.max_gradient_norm, for this phase; 0: no clipping, whatever optim says."""
    max_gradient: float | None = None
    """As optim.max_gradient, for this phase; 0: no clipping, whatever optim says."""
    lr_scheduler_type: str | None = None
    """As optim.lr_scheduler_type, for this phase; a schedule begins and ends with its phase."""
    warmup: float | None = None
    """As optim.warmup, for this phase."""
    min_lr: float | None = None
    """As optim.min_lr, for this phase."""
    step_interval: int | None = None
    """As optim.step_interval, for this phase."""
    gamma: float | None = None
    """As optim.gamma, for this phase."""


@dataclass(kw_only=True)
class ReconstructionConfig:
    """First of two phases: the reconstruction loss alone, no images."""

    iterations: int | None = None
    """Steps of this phase. Set here or under distillation, training goes by phases, each with its own
    optimizer and schedule, in place of epochs, num_iterations and loss_warmup_iterations."""
    weights_batch_method: str | None = None
    """As nern.weights_batch_method, for this phase; null: as there."""
    weights_batch_size: int | None = None
    """As nern.weights_batch_size, for this phase; null: as there; 0: no limit, whatever it is there."""
    optim: PhaseOptimConfig = field(default_factory=PhaseOptimConfig)


@dataclass(kw_only=True)
class RefinementConfig:
    """After reconstruction: its loss again, of errors as they move the outputs. Images are needed for measuring that, not in
    the steps."""

    iterations: int | None = None
    """Steps of this phase. Errors of weights are weighted by the curvature of the outputs in them, Kronecker-factored
    (K-FAC), here and in the phases after it; 0: in those alone. null: neither."""
    images: int = 1024
    """Training images on which the curvature is measured, once; where there are none, normal noise."""
    weights_batch_method: str | None = None
    """As nern.weights_batch_method, for this phase; null: as there. With nern.reconstruction_rows 'drawn' one that draws
    whole filters: 'all', 'random_filters', 'random_layer', 'sequential_layer'."""
    weights_batch_size: int | None = None
    """As nern.weights_batch_size, for this phase; null: as there; 0: no limit, whatever it is there."""
    optim: PhaseOptimConfig = field(default_factory=PhaseOptimConfig)


@dataclass(kw_only=True)
class DistillationConfig:
    """Second of two phases: all losses, on images."""

    iterations: int | None = None
    """Steps of this phase; this or `epochs`."""
    epochs: int | None = None
    """Epochs of this phase; this or `iterations`."""
    weights_batch_method: str | None = None
    """As nern.weights_batch_method, for this phase; null: as there."""
    weights_batch_size: int | None = None
    """As nern.weights_batch_size, for this phase; null: as there; 0: no limit, whatever it is there."""
    optim: PhaseOptimConfig = field(default_factory=PhaseOptimConfig)


@dataclass(kw_only=True)
class QuantisationConfig:
    """After these: all losses, on images, with the predictor's numbers rounded in every step as in a packed file."""

    iterations: int | None = None
    """Steps of this phase; this or `epochs`. `nern pack` keeps the steps of rounding that it was trained with."""
    epochs: int | None = None
    """Epochs of this phase; this or `iterations`."""
    bits: float = 6.0
    """Bits of a number of the predictor, on average, entropy-coded. Each tensor has a step of its own, such that no bit is
    better spent on another, by what rounding does to the outputs."""
    images: int = 128
    """Training images on which that is measured; where there are none, on the weights."""
    weights_batch_method: str | None = None
    """As nern.weights_batch_method, for this phase; null: as there."""
    weights_batch_size: int | None = None
    """As nern.weights_batch_size, for this phase; null: as there; 0: no limit, whatever it is there."""
    optim: PhaseOptimConfig = field(default_factory=PhaseOptimConfig)


@dataclass(kw_only=True)
class TeacherConfig:
    """Whose outputs are distilled, if not the original's as they are."""

    original_model_name: str | None = None
    """Architecture, as task.original_model_name; null: the original network is the teacher."""
    original_model_path: str | None = None
    """Its weights, as original_model_path."""
    original_model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Its arguments, as task.original_model_kwargs."""
    mirrored: bool | None = False
    """The outputs, also the original's own, are means over each image and its mirror image: better ones, where images keep
    their class when left and right change places. null: where the task says that they do."""

    @property
    def asked_for(self) -> bool:
        """Whether outputs other than those that the task implies are to be distilled."""
        return self.original_model_name is not None or bool(self.mirrored)


PHASES = ("reconstruction", "refinement", "distillation", "quantisation")


def by_phases(config: Any) -> bool:
    """Whether a config trains by phases: one of them has a length."""
    return any(length is not None for phase in phase_sections(config).values() for length in lengths(phase))


def phase_sections(config: Any) -> dict[str, Any]:
    """The sections of phases, by name, in the order of training."""
    return {name: getattr(config, name) for name in PHASES}


def lengths(phase: Any) -> list[int | None]:
    """What sets the length of a phase: its iterations, and its epochs if it may have some."""
    return [phase.iterations, *([phase.epochs] if hasattr(phase, "epochs") else [])]


def phase_optim(optim: Optim, own: PhaseOptimConfig) -> Optim:
    """The section `optim` with what a phase sets apart."""
    values = {f.name: getattr(own, f.name) for f in fields(own)}
    merged: Optim = replace(optim, **{name: value for name, value in values.items() if value is not None})
    return merged


def phase_batches(nern: Any, own: Any) -> tuple[str, int | None]:
    """Method and size of a phase's weight batches (null: no limit): those of the section `nern` with what the phase `own`
    sets apart."""
    size = nern.weights_batch_size if own.weights_batch_size is None else own.weights_batch_size
    return own.weights_batch_method or nern.weights_batch_method, size or None
