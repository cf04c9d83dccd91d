"""The phases of a run: consecutive steps with an optimizer, a schedule and weight batches of their own.

A run is one phase (whose first steps may go without images, as published), or reconstruction followed by refinement,
distillation and quantisation.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from nern.config import (
    Config,
    DistillationConfig,
    OptimConfig,
    QuantisationConfig,
    ReconstructionConfig,
    RefinementConfig,
    by_phases,
    phase_batches,
    phase_optim,
)


@dataclass(frozen=True)
class Phase:
    """A phase.

    Attributes:
        name: 'training' where it is the only one, else 'reconstruction', 'refinement', 'distillation' or 'quantisation'.
        begins, steps: its first step in the run, and how many there are.
        optim: of its optimizer and schedule.
        images_from: first step of the run that uses images; `ends` or above: none does.
        weights_batch_method, weights_batch_size: its weight batches.
        by_curvature: errors of weights count as they move the outputs: in refinement and after it.
        quantises: the predictor's numbers are rounded in every step.
    """

    name: str
    begins: int
    steps: int
    optim: OptimConfig
    images_from: int
    weights_batch_method: str
    weights_batch_size: int | None
    by_curvature: bool = False
    quantises: bool = False

    @property
    def ends(self) -> int:
        """The step after its last."""
        return self.begins + self.steps


def phases_of(config: Config, steps_per_epoch: int) -> list[Phase]:
    """The phases of a run; those without steps are left out, but for the last that would remain."""
    if not by_phases(config):
        iterations = config.num_iterations
        steps = (config.epochs or 0) * steps_per_epoch if iterations is None else iterations
        n = config.nern
        return [
            Phase(
                "training",
                0,
                steps,
                config.optim,
                config.loss_warmup_iterations,
                n.weights_batch_method,
                n.weights_batch_size,
            )
        ]
    phases: list[Phase] = []
    for name in ("reconstruction", "refinement"):
        keys = getattr(config, name)
        if keys.iterations:
            phases.append(_phase(config, keys, name, phases, keys.iterations, False))
    for name in ("distillation", "quantisation"):
        keys = getattr(config, name)
        steps = (keys.epochs or 0) * steps_per_epoch if keys.iterations is None else keys.iterations
        if steps:
            phases.append(_phase(config, keys, name, phases, steps, True))
    return phases or [_phase(config, config.distillation, "distillation", phases, 0, True)]


def _phase(
    config: Config,
    keys: ReconstructionConfig | RefinementConfig | DistillationConfig | QuantisationConfig,
    name: str,
    before: list[Phase],
    steps: int,
    images: bool,
) -> Phase:
    begins = before[-1].ends if before else 0
    return Phase(
        name,
        begins,
        steps,
        phase_optim(config.optim, keys.optim),
        begins if images else begins + steps,
        *phase_batches(config.nern, keys),
        config.refinement.iterations is not None and name in ("refinement", "distillation", "quantisation"),
        name == "quantisation",
    )


def one_phase(config: Config, steps: int, images: bool) -> Config:
    """A copy that trains for `steps` in one phase: as in distillation (`images`) or reconstruction, where `config` has
    such phases."""
    config, divided = copy.deepcopy(config), by_phases(config)
    keys = config.distillation if images else config.reconstruction
    if divided:
        config.optim = phase_optim(config.optim, keys.optim)
        config.nern.weights_batch_method, config.nern.weights_batch_size = phase_batches(config.nern, keys)
    config.reconstruction, config.distillation = ReconstructionConfig(), DistillationConfig()
    config.refinement, config.quantisation = RefinementConfig(), QuantisationConfig()
    config.epochs, config.num_iterations = None, steps
    config.loss_warmup_iterations = 0 if images else steps
    return config
