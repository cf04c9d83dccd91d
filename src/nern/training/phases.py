"""The phases of a run: consecutive steps with losses, errors, an optimizer, a schedule and weight batches of their own.

A config without phases is one phase, whose first steps may go without images, as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nern.config import Config, OptimConfig
from nern.config.phases import CURVATURE_IMAGES, ROUNDING_IMAGES
from nern.config.schema import phase_batches, phase_optim
from nern.errors import NernError
from nern.registry import Choice


@dataclass(frozen=True)
class Phase:
    """A phase, with the steps that it has in a run."""

    name: str  # as in the config; 'training' where it is the only one of a config without phases
    begins: int  # its first step in the run
    steps: int
    optim: OptimConfig
    images_from: int  # first step of the run that uses images; `ends` or above: none does
    weights_batch_method: Choice
    weights_batch_size: int | None
    losses: Sequence[str] | None = None  # terms of the objective that take part; None: all
    curvature_images: int = 0  # on which is measured how errors of weights move the outputs; 0: all errors count alike
    bits: float | None = None  # of a number of the predictor, on average, if each step rounds it; None: none does
    rounding_images: int = ROUNDING_IMAGES  # on which what rounding does is measured

    @property
    def ends(self) -> int:
        """The step after its last."""
        return self.begins + self.steps


def phases_of(config: Config, steps_per_epoch: int) -> list[Phase]:
    """The phases of a run; those without steps are left out, but for the last that would remain."""
    if not config.by_phases:
        steps = (config.epochs or 0) * steps_per_epoch if config.num_iterations is None else config.num_iterations
        n, warmup = config.nern, config.loss_warmup_iterations
        return [Phase("training", 0, steps, config.optim, warmup, n.weights_batch_method, n.weights_batch_size)]
    phases: list[Phase] = []
    curvature_images = begins = 0
    for keys in [phase for phase in config.phases if phase.runs]:
        steps = keys.length * (1 if keys.epochs is None else steps_per_epoch)
        if keys.errors is not None:
            images = CURVATURE_IMAGES if keys.images is None else keys.images
            curvature_images = images if keys.errors == "curvature" else 0
        phase = Phase(
            keys.name,
            begins,
            steps,
            phase_optim(config, keys),
            begins if keys.needs_images else begins + steps,
            *phase_batches(config, keys),
            keys.losses,
            curvature_images,
            keys.bits,
            ROUNDING_IMAGES if keys.images is None else keys.images,
        )
        phases.append(phase)
        begins += steps
    return [phase for phase in phases if phase.steps] or phases[-1:]


def check_extension(before: Sequence[Phase], after: Sequence[Phase], step: int) -> None:
    """Raise NernError if a run that has done `step` steps by the phases `before` cannot go on by those `after`: the phase
    that it is in, or ended with, may have another end, and there may be others after it."""
    begun = [phase for phase in before if phase.begins < max(step, 1)]
    for old, new in zip(begun, [*after, *[None] * len(begun)], strict=False):
        in_progress = old is begun[-1] and new is not None and new.ends >= step
        if new is None or (old.name, old.begins) != (new.name, new.begins) or not (in_progress or old.ends == new.ends):
            raise NernError(
                f"the run is at step {step}: phase {old.name} (steps {old.begins} to {old.ends}) cannot have "
                f"{'no' if new is None else new.steps} steps now. Give another length to the phase that the run is in, or "
                "to those after it"
            )
