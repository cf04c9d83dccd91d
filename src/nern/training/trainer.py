"""Training of a NeRN: predict, losses, backward, step."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from nern.config import Config
from nern.devices import precision_of, send
from nern.errors import NernError, NernWarning
from nern.inputs import gives_scores
from nern.objectives.objective import Losses
from nern.processes import ALONE, Processes
from nern.representation.nern import NeRN
from nern.tasks.images import Batch
from nern.training.assessment import Assessment, all_curvatures, all_fitted_norms
from nern.training.loop import Loop, rehearsing
from nern.training.members import Member, biases_beside, split_by_network, trained_beside
from nern.training.optimizers import build_optimizer, set_rate
from nern.training.phases import Phase, phases_of
from nern.training.rounding import Rounding
from nern.training.schedules import Schedule
from nern.training.step import Step
from nern.training.weight_batches import WeightBatches


class Trainer(Loop):
    """Trains a NeRN. The state of a run is `state()`; all else follows from config, seed and step.

    Args:
        config: a checked config.
        members: the networks it represents, in the order of the NeRN's kernel table.
        nern: the representation.
        extra: start of what is trained beside the predictor (`learn_fc_layer`, `learn_norms`); None: the originals'.
        processes: that train it together. Each has a trainer of its own, and all take the same steps.

    Attributes:
        needs_images: whether any term of the config runs the networks, in whatever phase.

    Raises:
        NernError: several processes, and a batch norm in the predictor.
    """

    def __init__(
        self,
        config: Config,
        members: Sequence[Member],
        nern: NeRN,
        extra: dict[str, Tensor] | None = None,
        processes: Processes = ALONE,
    ) -> None:
        streams = [m.stream for m in members if m.stream is not None]
        self.steps_per_epoch = max((stream.steps_per_epoch for stream in streams), default=1)
        self.phases = phases_of(config, self.steps_per_epoch)
        super().__init__(config.logging, config.save_minutes, self.phases[-1].ends, processes)
        self.config, self.members, self.nern = config, list(members), nern
        self.assessment = Assessment(config, members, processes)
        self.rounding = Rounding(nern, members, config.seed)
        weights = [weight for member in members for weight in member.original.weights]
        self.device = weights[0].device
        self._norms_of_rows = processes.from_main(lambda: nern.table.norms(weights).cpu())  # the same to the last bit
        if extra is None:
            extra = trained_beside([m.original for m in members], config)
        self.extra = {name: nn.Parameter(p.detach().clone().to(self.device)) for name, p in extra.items()}
        self.precision = processes.from_main(lambda: precision_of(config.precision, self.device))
        self.differentiate = Step(config.nern, nern, members, self.extra, self.precision, processes)
        self.needs_images = self.differentiate.objectives[0].needs_images
        self.parameters = [*nern.predictor.parameters(), *self.extra.values()]
        if processes.several:
            self._check_several()
        self._begin(self.phases[0])

    def _check_several(self) -> None:
        """Raise NernError for what several processes cannot do, and warn of what they do otherwise than one."""
        if self.config.nern.norm_layer == "bn":
            raise NernError(
                "nern.norm_layer 'bn' needs statistics of all kernels, but each process has a part; use one process"
            )
        if self.needs_images and not self.differentiate.objectives[0].by_image and self.processes.main:
            warnings.warn(
                "a loss of this config compares the images of a batch as a whole: each process takes it of its own images, "
                "and the mean of these is not what one process would get",
                NernWarning,
                stacklevel=3,
            )

    # --- phases -------------------------------------------------------------------------------------------------

    def start_phase(self, phase: Phase) -> None:
        """Go to the first step of a phase, without what it measures before."""
        self.step = phase.begins
        self._begin(phase)
        self._measured = True

    def _begin(self, phase: Phase) -> None:
        """Make what belongs to a phase: losses, optimizer, schedule, weight batches. What needs images is measured at its
        first step."""
        self.phase, self._measured = phase, False
        self.differentiate.take_part(phase.losses)
        if not phase.curvature_images:
            self.differentiate.weigh(None)
        drawn = phase.weights_batch_method, self.nern.table, self._norms_of_rows, phase.weights_batch_size
        self.batches = WeightBatches(*drawn, self.config.seed, self.nern.num_parameters)
        self.optimizer = build_optimizer(phase.optim, self.parameters)
        self.schedule = Schedule(phase.optim, phase.steps)

    def _measure(self) -> None:
        """Measure what the phase asks for: the curvature of the outputs, what rounding does."""
        phase, self._measured = self.phase, True
        if phase.curvature_images and self.differentiate.curvatures is None:
            images = phase.curvature_images
            self.differentiate.weigh(
                self.processes.from_main(lambda: all_curvatures(self.config, self.members, images))
            )
        if phase.bits is None:
            self.rounding.quantised = self.rounding.rate = None
        elif self.rounding.quantised is None:
            self.rounding.choose(phase.bits, phase.rounding_images, self.extra, self.processes)
            self.assessment.best = None  # what was not rounded is not compared with what is

    def _fit_norms(self) -> None:
        """Fit the batch norms and biases of all networks that have images to the weights as they are now."""
        fitted = self.processes.from_main(
            lambda: all_fitted_norms(self.config, self.members, self.nern.reconstruct(), self._detached_extra())
        )
        with torch.no_grad():
            for name, value in fitted.items():
                self.extra[name].copy_(value)

    @property
    def phase_name(self) -> str:
        """Name of the phase of the last step, where there are several or it rounds; else empty."""
        return self.phase.name if len(self.phases) > 1 or self.phase.bits is not None else ""

    @property
    def without_images(self) -> int:
        """Steps of reconstruction only at the beginning of the run."""
        first = next((p.images_from for p in self.phases if p.images_from < p.ends), self.total_steps)
        return first if self.needs_images else self.total_steps

    def named_parameters(self) -> dict[str, Tensor]:
        """The predictor's, and what is trained beside it ('original.NAME')."""
        return {**dict(self.nern.predictor.named_parameters()), **{f"original.{n}": p for n, p in self.extra.items()}}

    def _detached_extra(self) -> dict[str, Tensor]:
        """What is trained beside the predictor, as it is now."""
        return {name: p.detach() for name, p in self.extra.items()}

    # --- one step -----------------------------------------------------------------------------------------------

    def do_step(self) -> Losses:
        """The next step, with its images and rows."""
        if self.step >= self.phase.ends and self.phase is not self.phases[-1]:
            self._begin(self.phases[self.phases.index(self.phase) + 1])
        if not self._measured:
            self._measure()
        batches, fractions = self._images(self.step)
        losses = self.train_step(batches, self.batches.rows(self.step - self.phase.begins), fractions)
        fits = self.config.norm_images and self.config.learn_norms
        if fits and self.step == self.phase.ends == self.phase.images_from:
            self._fit_norms()
        return losses

    def train_step(
        self,
        batches: Sequence[Batch] | None,
        rows: Int[Tensor, " r"] | None,
        fractions: Sequence[float] | None = None,
    ) -> Losses:
        """Predict, compute the losses, differentiate, update.

        Args:
            batches: images and labels for each network; None: the reconstruction loss only.
            rows: rows that carry gradient; None: all.
            fractions: of several processes, which part of all images each batch is; None: all.

        Raises:
            NonFiniteLossError: naming step and term, before the update.
        """
        rows = None if rows is None else send(rows, self.device)
        set_rate(self.optimizer, self.schedule.lr)
        self.optimizer.zero_grad()
        # the gradient at what is rounded moves what is not (Bengio et al. 2013: straight through)
        with self.rounding.applied():
            losses = self.differentiate(batches, rows, fractions)
        losses = losses if self.rounding.rate is None else self.rounding.rate(losses)
        losses.check_finite(self.step)
        self.update(self.phase.optim, self.phase.begins)
        return losses

    def _images(self, step: int) -> tuple[list[Batch], list[float]] | tuple[None, None]:
        """This process's batch for each network, and which fraction of all processes' it is; None in steps of
        reconstruction only."""
        streams = [m.stream for m in self.members if m.stream is not None]
        phase = next((p for p in self.phases if step < p.ends), self.phases[-1])
        if step < phase.images_from or not self.needs_images or len(streams) < len(self.members):
            return None, None
        step -= phase.begins
        if not self.processes.several:
            return [stream.batch(step) for stream in streams], [1.0] * len(streams)
        shares = [stream.share(step, self.processes) for stream in streams]
        return [batch for batch, _ in shares], [fraction for _, fraction in shares]

    def rehearse(self) -> None:
        """Run two training and two evaluation images through everything once, without an update.

        Raises:
            NernError: whatever fails there, before any work.
        """
        with rehearsing(), torch.no_grad(), self.nern.evaluating():
            weights = self.nern.weights()
            batches, _ = self._images(max(self.step, self.without_images))
            few = [(i[:2], None if y is None else y[:2]) for i, y in batches] if batches else None
            self.differentiate.take_part(None)
            self.differentiate.losses(weights, few).check_finite(self.step)
            self.differentiate.take_part(self.phase.losses)
            for member, own in zip(self.members, split_by_network(self.members, weights), strict=True):
                for data in member.sets.values():
                    images, labels = next(data.batches(2))
                    outputs, _ = member.original.run(own, images)
                    if labels is not None and gives_scores(images):
                        torch.nn.functional.cross_entropy(outputs, labels)

    def round_for_good(self) -> None:
        """Leave the predictor rounded, if it was trained to be."""
        with self.rounding.applied():
            rounded = {name: value.clone() for name, value in self.nern.predictor.state_dict().items()}
        self.nern.predictor.load_state_dict(rounded)

    # --- evaluating and saving ----------------------------------------------------------------------------------

    def checkpoints_due(self) -> list[str]:
        """Names of the checkpoints to keep after the step just done: it ends an interval of saving, or a phase."""
        due = self._every(self.config.save_iterations_interval, self.config.save_epochs_interval)
        ends = len(self.phases) > 1 and self.step == self.phase.ends
        return [f"step_{self.step}"] * due + [self.phase.name] * ends

    def _every(self, iterations: int | None, epochs: int | None) -> bool:
        """Whether the step just done ends an interval."""
        has_epochs = any(member.task for member in self.members)
        steps = self.steps_per_epoch * epochs if epochs and has_epochs else None
        return any(n is not None and self.step % n == 0 for n in (iterations, steps))

    def evaluation_due(self, step: int, losses: Losses) -> bool:
        """Whether the step just done ends an interval of evaluation, or its loss is the least of a full window."""
        due = self._every(self.config.eval_iterations_interval, self.config.eval_epochs_interval)
        due = due or (len(self.phases) > 1 and self.step == self.phase.ends)
        return self.assessment.least_loss(step, losses) or due

    def metrics(self) -> dict[str, Any]:
        """Metrics of the current predictor on the held-out and test sets; keeps it as 'best' if it is."""
        with self.rounding.applied():
            weights = self.nern.reconstruct()
        record, is_best = self.assessment(self.step, weights, self._detached_extra())
        if is_best:
            self.save_checkpoint("best")
        return record

    def skipped_images(self) -> dict[str, list[str]]:
        """Names of the images that could not be read, in any process, for each network that has some."""
        found = self.processes.collect({m.name: m.task.skipped() for m in self.members if m.task is not None})
        names = {name: sorted({image for own in found for image in own[name]}) for name in found[0]}
        return {name: images for name, images in names.items() if images}

    def save_checkpoint(self, name: str) -> None:
        """Write the current predictor as checkpoint `name`."""
        if self.folder is not None:
            with self.rounding.applied():
                best = self.assessment.best if name == "best" else None
                record = {"step": self.step} if best is None else best
                predictor, quantised = self.nern.predictor.state_dict(), self.rounding.quantised
                self.folder.save_checkpoint(name, predictor, self.extra, quantised, record)

    def state(self) -> dict[str, Any]:
        """See `Loop`; and predictor, window, best, rounding."""
        return super().state() | {
            "predictor": self.nern.predictor.state_dict(),
            "extra": self._detached_extra(),
            "window": list(self.assessment.window),
            "best": self.assessment.best,
            "quantised": self.rounding.state(),
            "precision": self.precision,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        step = state["step"]
        self.precision = state.get("precision", self.precision)  # whatever 'auto' means here
        self.differentiate.precision = self.precision
        self._begin(next(p for p in self.phases if step <= p.ends))  # the next begins with the next step
        self.nern.predictor.load_state_dict(state["predictor"])
        biases = biases_beside([member.original for member in self.members])
        with torch.no_grad():
            for name, p in self.extra.items():
                if name in state["extra"] or name not in biases:
                    p.copy_(state["extra"][name])
        self.rounding.load_state(state.get("quantised"))  # a run from before there was this phase has none
        self.assessment.best = state["best"]
        self.assessment.window.extend(state["window"])
        super().load_state(state)
