"""The training loop: predict, losses, backward, step, log, evaluate, save."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from nern.config import Config
from nern.errors import NernError, NonFiniteLossError
from nern.evaluation import Evaluator
from nern.objectives.objective import Losses, Objective
from nern.originals.base import Original
from nern.registry import OPTIMIZERS
from nern.representation.nern import NeRN
from nern.tasks.base import Task
from nern.training.interrupt import Interrupted, StopRequest
from nern.training.optimizers import clip_gradients
from nern.training.run_folder import RunFolder
from nern.training.schedules import Schedule
from nern.training.tracking import Tracker
from nern.training.weight_batches import WeightBatches


@dataclass
class History:
    """What happened when. `losses`: unweighted terms every log interval; `evaluations`: metrics of each evaluation."""

    losses: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Trains a NeRN.

    Args:
        config: a checked config.
        original: the network to represent.
        nern: its representation.
        task: images to train and evaluate on; None: reconstruction only.
        folder: where checkpoints go; None: nothing is written.
        tracker: where scalars go.
        on_step: called with (steps done, losses) after each step, and with the metrics of an evaluation.

    The state of a run is `state()`; everything else is a function of the config, the seed and the step number.
    """

    def __init__(
        self,
        config: Config,
        original: Original,
        nern: NeRN,
        task: Task | None = None,
        folder: RunFolder | None = None,
        tracker: Tracker | None = None,
        on_step: Callable[[int, Losses], None] | None = None,
        on_evaluation: Callable[[dict[str, Any]], None] | None = None,
        extra: dict[str, Tensor] | None = None,
    ) -> None:
        self.config, self.original, self.nern, self.task = config, original, nern, task
        self.folder, self.tracker = folder, tracker
        self.on_step, self.on_evaluation = on_step, on_evaluation
        self.objective = Objective(config.nern, original)
        weights = original.weights
        self.device = weights[0].device
        self.batches = WeightBatches(
            config.nern.weights_batch_method,
            nern.table,
            nern.table.norms(weights),
            config.nern.weights_batch_size,
            config.seed,
        )
        start = (extra or original.classifier()) if config.learn_fc_layer else {}
        self.extra = {name: nn.Parameter(p.detach().clone().to(self.device)) for name, p in start.items()}
        self.parameters = [*nern.predictor.parameters(), *self.extra.values()]
        self.optimizer: torch.optim.Optimizer = OPTIMIZERS[config.optim.optimizer_type](self.parameters, config.optim)
        self.evaluator = Evaluator(original, config.evaluation.batch_size)
        stream = task.train if task else None
        self.steps_per_epoch = stream.steps_per_epoch if stream else 1
        self.total_steps = (
            config.num_iterations if config.num_iterations is not None else (config.epochs or 0) * self.steps_per_epoch
        )
        self.schedule = Schedule(config.optim, self.total_steps)
        self.step = 0
        self.seconds = 0.0  # of the whole run, evaluations included
        self.step_seconds = 0.0  # of training steps alone
        self.best: dict[str, Any] | None = None
        self.history = History()
        self._window: deque[float] = deque(maxlen=config.eval_loss_window_size)
        self._evaluated_at = -1

    # --- one step -----------------------------------------------------------------------------------------------

    def train_step(self, images: Tensor | None, labels: Tensor | None, rows: Int[Tensor, " r"] | None) -> Losses:
        """Predict, compute the losses, differentiate, update.

        Args:
            images: a batch; None: the reconstruction loss only.
            labels: of the batch, for a task loss.
            rows: rows that carry gradient; None: all.

        Raises:
            NonFiniteLossError: before the update, naming step and term.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.backward(images, labels, rows)
        self._check_gradients()
        clip_gradients(self.parameters, self.config.optim)
        self.optimizer.step()
        self.schedule.after_step(self.step)
        self.step += 1
        return losses

    def backward(self, images: Tensor | None, labels: Tensor | None, rows: Int[Tensor, " r"] | None) -> Losses:
        """Losses of the current predictor, and their gradients in its parameters.

        All rows are predicted; the losses are differentiated with respect to the predictions, and what arrives at
        `rows` is passed on to the predictor, a row drawn m times m times.
        """
        self.nern.train()
        if rows is None:
            losses = self.objective(self.nern.weights(), images, labels, dict(self.extra))
            losses.check_finite(self.step)
            losses.total.backward()
            return losses
        drawn, counts = rows.to(self.device).unique(return_counts=True)
        live = self.nern(drawn)
        predictions = live.new_empty(self.nern.table.rows, *live.shape[1:])
        others = torch.ones(len(predictions), dtype=torch.bool, device=self.device)
        others[drawn] = False
        with torch.no_grad(), self.nern.evaluating():
            rest = others.nonzero().squeeze(1)
            if len(rest):
                predictions[rest] = self.nern(rest)
            predictions[drawn] = live
        predictions.requires_grad_()
        losses = self.objective(self.nern.weights(predictions), images, labels, dict(self.extra))
        losses.check_finite(self.step)
        losses.total.backward()
        assert predictions.grad is not None
        live.backward(predictions.grad[drawn] * counts.view(-1, 1, 1))
        return losses

    def _check_gradients(self) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if gradients and not torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum()):
            named = {**dict(self.nern.predictor.named_parameters()), **self.extra}
            bad = [name for name, p in named.items() if p.grad is not None and not torch.isfinite(p.grad).all()]
            raise NonFiniteLossError(
                f"step {self.step}: the gradient of {', '.join(bad) or 'all parameters together'} is not finite, though "
                "every loss term is. A lower optim.lr may help."
            )

    def rehearse(self) -> None:
        """Run two training and two evaluation images through everything once, without an update.

        Raises:
            NernError: whatever fails there, before any work.
        """
        stream = self.task.train if self.task else None
        sets = [data for data in (self.task.held_out, self.task.test) if data is not None] if self.task else []
        try:
            with torch.no_grad(), self.nern.evaluating():
                weights = self.nern.weights()
                images, labels = (None, None) if stream is None else stream.batch(self.step)
                if images is not None:
                    images, labels = images[:2], None if labels is None else labels[:2]
                self.objective(weights, images, labels, dict(self.extra)).check_finite(self.step)
                for data in sets:
                    images, labels = next(data.batches(2))
                    outputs, _ = self.original.run(weights, images)
                    if labels is not None:
                        torch.nn.functional.cross_entropy(outputs, labels)
        except NernError:
            raise
        except Exception as error:
            raise NernError(f"the first batch cannot be processed: {type(error).__name__}: {error}") from error

    # --- the loop -----------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train from the current step to the end; evaluate and save as the config says, and at the end.

        Raises:
            Interrupted: on SIGINT or SIGTERM, after saving.
            NonFiniteLossError: see `train_step`.
        """
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        with StopRequest() as stop:
            while self.step < self.total_steps:
                step, started = self.step, time.monotonic()
                images, labels = self._images(step)
                losses = self.train_step(images, labels, self.batches.rows(step))
                self.step_seconds += time.monotonic() - started
                self.seconds = time.monotonic() - began
                self._log(step, losses)
                if self._evaluation_due(step, losses):
                    self.evaluate()
                    self.save_state()
                    saved = time.monotonic()
                if self._every(self.config.save_iterations_interval, self.config.save_epochs_interval):
                    self.save_checkpoint(f"step_{self.step}")
                if stop.signal_number is not None or time.monotonic() - saved > 60 * self.config.save_minutes:
                    self.save_state()
                    saved = time.monotonic()
                if stop.signal_number is not None and self.step < self.total_steps:
                    self.save_checkpoint("last")
                    raise Interrupted(stop.signal_number, f"stopped at step {self.step} of {self.total_steps}")
                self.seconds = time.monotonic() - began
            if self._evaluated_at != self.step:
                self.evaluate()
            self.seconds = time.monotonic() - began
            self.save_checkpoint("last")
            self.save_state()

    def _images(self, step: int) -> tuple[Tensor | None, Tensor | None]:
        stream = self.task.train if self.task else None
        if stream is None or step < self.config.loss_warmup_iterations or not self.objective.needs_images:
            return None, None
        return stream.batch(step)

    def _every(self, iterations: int | None, epochs: int | None) -> bool:
        """Whether the step just done ends an interval."""
        steps = self.steps_per_epoch * epochs if epochs and self.task else None
        return any(n is not None and self.step % n == 0 for n in (iterations, steps))

    def _evaluation_due(self, step: int, losses: Losses) -> bool:
        due = self._every(self.config.eval_iterations_interval, self.config.eval_epochs_interval)
        if step % self.config.eval_loss_window_interval == 0 and len(losses.terms) > 1:
            watched = [losses.terms[n] for n in ("feature_maps", "distillation") if n in losses.terms]
            current = sum(float(term.detach()) for term in watched)
            self._window.append(current)
            full = len(self._window) == self._window.maxlen
            due = due or bool(watched and full and current <= min(self._window))
        return due

    def _log(self, step: int, losses: Losses) -> None:
        if self.on_step is not None:
            self.on_step(self.step, losses)
        if step % self.config.logging.log_interval and self.step != self.total_steps:
            return
        terms = {name: float(value.detach()) for name, value in losses.terms.items()}
        terms["total"] = float(losses.total.detach())
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.history.losses.append({"step": step, "lr": lr} | terms)
        if self.tracker is not None:
            scalars = {f"loss/{name}": value for name, value in terms.items()} | {"optim/lr": lr}
            if self.config.logging.verbose:
                scalars |= self._norms()
            self.tracker.log(scalars, step)

    def _norms(self) -> dict[str, float]:
        norms = {}
        for name, p in [*self.nern.predictor.named_parameters(), *self.extra.items()]:
            norms[f"weight_norm/{name}"] = float(p.detach().norm())
            norms[f"gradient_norm/{name}"] = math.nan if p.grad is None else float(p.grad.norm())
        return norms

    # --- evaluating and saving ----------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, Any]:
        """Metrics of the current predictor on the held-out and test sets; keeps it as 'best' if it is."""
        weights, extra = self.nern.reconstruct(), {k: p.detach() for k, p in self.extra.items()}
        sets = {"held_out": self.task.held_out, "test": self.task.test} if self.task else {}
        metrics = {name: self.evaluator(data, weights, extra) for name, data in sets.items() if data is not None}
        record: dict[str, Any] = {"step": self.step} | {name: m.to_dict() for name, m in metrics.items()}
        self.history.evaluations.append(record)
        self._evaluated_at = self.step
        if self.tracker is not None and metrics:
            self.tracker.log({f"{s}/{k}": v for s, m in metrics.items() for k, v in m.to_dict().items()}, self.step)
        chosen = metrics.get(self.config.evaluation.best_on)
        if chosen is not None and (self.best is None or chosen.score >= self.best["score"]):
            self.best = record | {"score": chosen.score}
            self.save_checkpoint("best")
        elif chosen is None:  # nothing to choose by: the latest is the best
            self.best = record | {"score": 0.0}
            self.save_checkpoint("best")
        if self.on_evaluation is not None:
            self.on_evaluation(record)
        return record

    def save_checkpoint(self, name: str) -> None:
        """Write the current predictor as checkpoint `name`."""
        if self.folder is not None:
            self.folder.save_checkpoint(name, self.nern.predictor.state_dict(), self.extra)

    def save_state(self) -> None:
        """Write what `load_state` needs to continue as if uninterrupted."""
        if self.folder is not None:
            self.folder.save_state(self.state())

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs besides the config."""
        return {
            "step": self.step,
            "predictor": self.nern.predictor.state_dict(),
            "extra": {name: p.detach() for name, p in self.extra.items()},
            "optimizer": self.optimizer.state_dict(),
            "schedule_advances": self.schedule.advances,
            "window": list(self._window),
            "best": self.best,
            "losses": self.history.losses,
            "evaluations": self.history.evaluations,
            "evaluated_at": self._evaluated_at,
            "seconds": self.seconds,
            "step_seconds": self.step_seconds,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.nern.predictor.load_state_dict(state["predictor"])
        with torch.no_grad():
            for name, p in self.extra.items():
                p.copy_(state["extra"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.advances = state["schedule_advances"]
        self.step, self.best = state["step"], state["best"]
        self.seconds, self.step_seconds = state["seconds"], state["step_seconds"]
        self._window.extend(state["window"])
        self.history = History(state["losses"], state["evaluations"])
        self._evaluated_at = state["evaluated_at"]
