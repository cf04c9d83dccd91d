"""The loop that every training shares: step, log, evaluate, save; stops on request, resumes from its state."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nern.config import LoggingConfig, OptimConfig
from nern.errors import NernError
from nern.objectives.objective import Losses
from nern.processes import ALONE, Processes
from nern.stopping import Interrupted, StopRequest
from nern.training.optimizers import check_gradients, clip_gradients, load_optimizer
from nern.training.run_folder import RunFolder
from nern.training.schedules import Schedule
from nern.training.tracking import Tracker


@dataclass
class History:
    """What happened when. `losses`: unweighted terms every log interval; `evaluations`: metrics of each evaluation."""

    losses: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)


def _scalars(figures: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers in nested figures, by path."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


@contextmanager
def rehearsing() -> Iterator[None]:
    """Whatever fails inside is a NernError about the first batch."""
    try:
        yield
    except NernError:
        raise
    except Exception as error:
        raise NernError(f"the first batch cannot be processed: {type(error).__name__}: {error}") from error


class Loop:
    """Training from the current step to the last. Subclasses say what a step, an evaluation and a state are.

    Attributes:
        step, total_steps: done, and in all.
        parameters, optimizer, schedule: what is trained, and how.
        folder: where checkpoints go; None: nothing is written.
        tracker: where scalars go.
        on_step, on_evaluation: called with (steps done, losses) after each step, and with the record of an evaluation.
        seconds, step_seconds: of the whole run, evaluations included; of training steps alone.
        precision: that steps are computed in.
        processes: that run this loop together, step by step. All but the main one have no folder and no tracker.
    """

    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    schedule: Schedule

    def __init__(
        self, logging: LoggingConfig, save_minutes: float, total_steps: int, processes: Processes = ALONE
    ) -> None:
        self.logging, self.save_minutes, self.total_steps = logging, save_minutes, total_steps
        self.processes = processes
        self.precision = "float32"
        self.folder: RunFolder | None = None
        self.tracker: Tracker | None = None
        self.on_step: Callable[[int, Losses], None] | None = None
        self.on_evaluation: Callable[[dict[str, Any]], None] | None = None
        self.step = 0
        self.seconds = 0.0
        self.step_seconds = 0.0
        self.history = History()
        self._evaluated_at = -1

    def do_step(self) -> Losses:
        """One training step, number `self.step`; raises it by one."""
        raise NotImplementedError

    def metrics(self) -> dict[str, Any]:
        """The record of an evaluation of what is trained now; also keeps what is worth keeping."""
        raise NotImplementedError

    def evaluation_due(self, step: int, losses: Losses) -> bool:
        """Whether to evaluate after step number `step`."""
        raise NotImplementedError

    def checkpoints_due(self) -> list[str]:
        """Names of the checkpoints to keep now."""
        return []

    @property
    def phase_name(self) -> str:
        """Name of the phase of the last step, where there are several; else empty."""
        return ""

    def save_checkpoint(self, name: str) -> None:
        """Write what is trained as checkpoint `name`."""
        raise NotImplementedError

    def named_parameters(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        raise NotImplementedError

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def update(self, optim: OptimConfig, begins: int = 0) -> None:
        """Go a step by the gradients, as `optim` limits them; the schedule counts from step `begins`.

        Raises:
            NonFiniteLossError: a gradient is not finite.
        """
        check_gradients(self.named_parameters(), self.step)
        clip_gradients(self.parameters, optim)
        self.optimizer.step()
        self.schedule.after_step(self.step - begins)
        self.step += 1

    def fit(self) -> None:
        """Train to the end; evaluate and save as the config says, and at the end.

        Raises:
            Interrupted: on SIGINT, SIGTERM or SIGHUP, after saving. Several processes stop after the same step, whichever
                was asked.
            NonFiniteLossError: a loss or a gradient is not finite.
        """
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        with StopRequest() as stop:
            while self.step < self.total_steps:
                step, started = self.step, time.monotonic()
                losses = self.do_step()
                self.seconds = time.monotonic() - began
                self._log(step, losses)
                self.step_seconds += time.monotonic() - started  # a GPU's steps end when they are looked at
                for name in self.checkpoints_due():
                    self.save_checkpoint(name)
                if self.evaluation_due(step, losses):
                    self.evaluate()
                    self.save_state()
                    saved = time.monotonic()
                signal_number = self.processes.largest(stop.signal_number or 0)
                if signal_number or time.monotonic() - saved > 60 * self.save_minutes:
                    self.save_state()
                    saved = time.monotonic()
                if signal_number and self.step < self.total_steps:
                    self.save_checkpoint("last")
                    raise Interrupted(signal_number, f"stopped at step {self.step} of {self.total_steps}")
                self.seconds = time.monotonic() - began
            if self._evaluated_at != self.step:
                self.evaluate()
            self.seconds = time.monotonic() - began
            self.save_checkpoint("last")
            self.save_state()

    def evaluate(self) -> dict[str, Any]:
        """Evaluate what is trained now, record and report it."""
        phase = {"phase": self.phase_name} if self.phase_name else {}
        record = {"step": self.step} | phase | self.metrics()
        self.history.evaluations.append(record)
        self._evaluated_at = self.step
        figures = {name: value for name, value in record.items() if name not in ("step", "phase")}
        if self.tracker is not None and figures:
            self.tracker.log(dict(_scalars(figures)), self.step)
        if self.on_evaluation is not None:
            self.on_evaluation(record)
        return record

    def _log(self, step: int, losses: Losses) -> None:
        if self.on_step is not None:
            self.on_step(self.step, losses)
        if step % self.logging.log_interval and self.step != self.total_steps:
            return
        terms = {name: float(value.detach()) for name, value in losses.terms.items()}
        terms["total"] = float(losses.total.detach())
        phase = {"phase": self.phase_name} if self.phase_name else {}
        self.history.losses.append({"step": step, "lr": self.lr} | terms | phase)
        if self.tracker is not None:
            of = f"{self.phase_name}/" if self.phase_name else ""
            scalars = {f"{of}loss/{name}": value for name, value in terms.items()} | {f"{of}optim/lr": self.lr}
            if self.logging.verbose:
                scalars |= self._norms()
            self.tracker.log(scalars, step)

    def _norms(self) -> dict[str, float]:
        norms = {}
        for name, p in self.named_parameters().items():
            norms[f"weight_norm/{name}"] = float(p.detach().norm())
            norms[f"gradient_norm/{name}"] = math.nan if p.grad is None else float(p.grad.norm())
        return norms

    def save_state(self) -> None:
        """Write what `load_state` needs to continue as if uninterrupted."""
        if self.folder is not None:
            self.folder.save_state(self.state())

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs besides the config."""
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "schedule_advances": self.schedule.advances,
            "losses": self.history.losses,
            "evaluations": self.history.evaluations,
            "evaluated_at": self._evaluated_at,
            "seconds": self.seconds,
            "step_seconds": self.step_seconds,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        load_optimizer(self.optimizer, state["optimizer"])
        self.schedule.advances = state["schedule_advances"]
        self.step, self._evaluated_at = state["step"], state["evaluated_at"]
        self.seconds, self.step_seconds = state["seconds"], state["step_seconds"]
        self.history = History(state["losses"], state["evaluations"])
