"""Training of a NeRN: predict, losses, backward, step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from nern.config import Config
from nern.errors import NernError
from nern.evaluation import Evaluator, mean_metrics
from nern.objectives.objective import Losses
from nern.representation.nern import NeRN
from nern.tasks.images import Batch
from nern.training.loop import Loop
from nern.training.members import Member, split_by_network
from nern.training.optimizers import build_optimizer, check_gradients, clip_gradients
from nern.training.schedules import Schedule
from nern.training.step import Step
from nern.training.weight_batches import WeightBatches


class Trainer(Loop):
    """Trains a NeRN. The state of a run is `state()`; all else follows from config, seed and step.

    Args:
        config: a checked config.
        members: the networks it represents, in the order of the NeRN's kernel table.
        nern: the representation.
        extra: start of the final fully connected layer, with `learn_fc_layer` (one network only); None: the original's.
    """

    def __init__(
        self, config: Config, members: Sequence[Member], nern: NeRN, extra: dict[str, Tensor] | None = None
    ) -> None:
        streams = [m.task.train for m in members if m.task is not None and m.task.train is not None]
        self.steps_per_epoch = max((stream.steps_per_epoch for stream in streams), default=1)
        iterations = config.num_iterations
        total_steps = (config.epochs or 0) * self.steps_per_epoch if iterations is None else iterations
        super().__init__(config.logging, config.save_minutes, total_steps)
        self.config, self.members, self.nern = config, list(members), nern
        self.evaluators = [Evaluator(member.original, config.evaluation.batch_size) for member in members]
        weights = [weight for member in members for weight in member.original.weights]
        self.device = weights[0].device
        norms, size = nern.table.norms(weights), config.nern.weights_batch_size
        self.batches = WeightBatches(config.nern.weights_batch_method, nern.table, norms, size, config.seed)
        start = (extra or members[0].original.classifier()) if config.learn_fc_layer else {}
        self.extra = {name: nn.Parameter(p.detach().clone().to(self.device)) for name, p in start.items()}
        self.differentiate = Step(config.nern, nern, members, self.extra, config.precision)
        self.parameters = [*nern.predictor.parameters(), *self.extra.values()]
        self.optimizer = build_optimizer(config.optim, self.parameters)
        self.schedule = Schedule(config.optim, self.total_steps)
        self.best: dict[str, Any] | None = None
        self._window: deque[float] = deque(maxlen=config.eval_loss_window_size)

    @property
    def needs_images(self) -> bool:
        """Whether any term runs the networks."""
        return self.differentiate.objectives[0].needs_images

    def named_parameters(self) -> dict[str, Tensor]:
        """The predictor's, and what is trained beside it."""
        return {**dict(self.nern.predictor.named_parameters()), **self.extra}

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.lr

    # --- one step -----------------------------------------------------------------------------------------------

    def do_step(self) -> Losses:
        """The next step, with its images and rows."""
        return self.train_step(self._images(self.step), self.batches.rows(self.step))

    def train_step(self, batches: Sequence[Batch] | None, rows: Int[Tensor, " r"] | None) -> Losses:
        """Predict, compute the losses, differentiate, update.

        Args:
            batches: images and labels for each network; None: the reconstruction loss only.
            rows: rows that carry gradient; None: all.

        Raises:
            NonFiniteLossError: before the update, naming step and term.
        """
        self.optimizer.lr = self.schedule.lr
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.differentiate(batches, rows)
        losses.check_finite(self.step)
        check_gradients(self.named_parameters(), self.step)
        clip_gradients(self.parameters, self.config.optim)
        self.optimizer.step()
        self.schedule.after_step(self.step)
        self.step += 1
        return losses

    def _images(self, step: int) -> list[Batch] | None:
        """A batch for each network; None in steps of reconstruction only."""
        if step < self.config.loss_warmup_iterations or not self.needs_images:
            return None
        streams = [m.task.train for m in self.members if m.task is not None and m.task.train is not None]
        return [stream.batch(step) for stream in streams] if len(streams) == len(self.members) else None

    def rehearse(self) -> None:
        """Run two training and two evaluation images through everything once, without an update.

        Raises:
            NernError: whatever fails there, before any work.
        """
        try:
            with torch.no_grad(), self.nern.evaluating():
                weights = self.nern.weights()
                batches = self._images(max(self.step, self.config.loss_warmup_iterations))
                few = [(i[:2], None if y is None else y[:2]) for i, y in batches] if batches else None
                self.differentiate.losses(weights, few).check_finite(self.step)
                for member, own in zip(self.members, split_by_network(self.members, weights), strict=True):
                    for data in member.sets.values():
                        images, labels = next(data.batches(2))
                        outputs, _ = member.original.run(own, images)
                        if labels is not None:
                            torch.nn.functional.cross_entropy(outputs, labels)
        except NernError:
            raise
        except Exception as error:
            raise NernError(f"the first batch cannot be processed: {type(error).__name__}: {error}") from error

    # --- evaluating and saving ----------------------------------------------------------------------------------

    def checkpoint_due(self) -> bool:
        """Whether the step just done ends an interval of saving."""
        return self._every(self.config.save_iterations_interval, self.config.save_epochs_interval)

    def _every(self, iterations: int | None, epochs: int | None) -> bool:
        """Whether the step just done ends an interval."""
        has_epochs = any(member.task for member in self.members)
        steps = self.steps_per_epoch * epochs if epochs and has_epochs else None
        return any(n is not None and self.step % n == 0 for n in (iterations, steps))

    def evaluation_due(self, step: int, losses: Losses) -> bool:
        """Whether the step just done ends an interval of evaluation, or its loss is the least of a full window."""
        due = self._every(self.config.eval_iterations_interval, self.config.eval_epochs_interval)
        if step % self.config.eval_loss_window_interval == 0 and len(losses.terms) > 1:
            watched = [losses.terms[n] for n in ("feature_maps", "distillation") if n in losses.terms]
            current = sum(float(term.detach()) for term in watched)
            self._window.append(current)
            full = len(self._window) == self._window.maxlen
            due = due or bool(watched and full and current <= min(self._window))
        return due

    def metrics(self) -> dict[str, Any]:
        """Metrics of the current predictor on the held-out and test sets; keeps it as 'best' if it is."""
        weights = split_by_network(self.members, self.nern.reconstruct())
        extra = {name: p.detach() for name, p in self.extra.items()}
        found: dict[str, dict[str, Any]] = {"held_out": {}, "test": {}}
        for member, evaluator, own in zip(self.members, self.evaluators, weights, strict=True):
            for name, data in member.sets.items():
                found[name][member.name] = evaluator(data, own, extra)
        means = {name: mean_metrics(list(of_networks.values())) for name, of_networks in found.items() if of_networks}
        record: dict[str, Any] = {name: m.to_dict() for name, m in means.items()}
        if len(self.members) > 1:
            record["networks"] = {
                m.name: {name: found[name][m.name].to_dict() for name in m.sets} for m in self.members
            }
        chosen = means.get(self.config.evaluation.best_on)
        score = 0.0 if chosen is None else chosen.score  # nothing to choose by: the latest is the best
        if self.best is None or score >= self.best["score"] or chosen is None:
            self.best = {"step": self.step} | record | {"score": score}
            self.save_checkpoint("best")
        return record

    def original_metrics(self) -> list[dict[str, dict[str, float]]]:
        """Metrics of each original network on its held-out and test sets."""
        return [
            {name: evaluator(data).to_dict() for name, data in member.sets.items()}
            for member, evaluator in zip(self.members, self.evaluators, strict=True)
        ]

    def save_checkpoint(self, name: str) -> None:
        """Write the current predictor as checkpoint `name`."""
        if self.folder is not None:
            self.folder.save_checkpoint(name, self.nern.predictor.state_dict(), self.extra)

    def own_state(self) -> dict[str, Any]:
        """Predictor, optimizer, schedule, window, best."""
        return {
            "predictor": self.nern.predictor.state_dict(),
            "extra": {name: p.detach() for name, p in self.extra.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule_advances": self.schedule.advances,
            "window": list(self._window),
            "best": self.best,
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take over `own_state()`."""
        self.nern.predictor.load_state_dict(state["predictor"])
        with torch.no_grad():
            for name, p in self.extra.items():
                p.copy_(state["extra"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.advances = state["schedule_advances"]
        self.best = state["best"]
        self._window.extend(state["window"])
