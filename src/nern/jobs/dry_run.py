"""What a training run would be: what is trained, how long its steps take here, how large its file becomes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import timedelta

import torch
from rich.console import Console
from rich.table import Table

from nern.config import Config
from nern.console import CleanConsole
from nern.errors import plain_errors
from nern.experiment import Experiment, build_experiment
from nern.jobs.training import announce
from nern.registry import PREDICTORS
from nern.terminal import bytes_text
from nern.training.phases import Phase
from nern.training.trainer import Trainer

WARM, TIMED = 1, 4  # steps of a phase that are not timed, and that are
UNROUNDED_BITS = 8.0  # of a number of a predictor that was not trained to be rounded, as `nern pack` chooses
KEPT_BITS = 8.0  # of all other numbers, about


@dataclass(frozen=True)
class Forecast:
    """What a run would take.

    Attributes:
        step_seconds: of a training step on this machine, by phase; without evaluations and what a phase measures at its
            start.
        steps: by phase.
        file_bytes: of the run, packed.
    """

    step_seconds: dict[str, float]
    steps: dict[str, int]
    file_bytes: float

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(self.step_seconds[name] * count for name, count in self.steps.items())


@plain_errors()
def dry_run(config: Config, console: Console | None = None) -> Forecast:
    """Build what a config describes, and time some steps of each phase. Nothing is written.

    Args:
        config: a checked config.
        console: where the table goes; None: standard output.

    Raises:
        NernError: anything in the config that cannot work.
    """
    console = console or CleanConsole()
    experiment = build_experiment(config)
    trainer = experiment.trainer()
    trainer.rehearse()
    announce(console, experiment, trainer)
    table = Table(title="What each phase takes here", title_justify="left", title_style="bold")
    for heading in ("phase", "steps", "seconds a step", "time"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    seconds = {phase.name: _seconds(trainer, phase) for phase in trainer.phases}
    found = Forecast(seconds, {phase.name: phase.steps for phase in trainer.phases}, _file_bytes(experiment))
    for name, count in found.steps.items():
        of_phase = timedelta(seconds=round(count * seconds[name]))
        table.add_row(name, f"{count:,}", f"{seconds[name]:.3f}", str(of_phase))
    table.add_row("all", f"{trainer.total_steps:,}", "", str(timedelta(seconds=round(found.seconds))))
    console.print(table)
    console.print(f"packed, the run takes about {bytes_text(found.file_bytes)}. Nothing was written.")
    return found


def _seconds(trainer: Trainer, phase: Phase) -> float:
    """Of a step of a phase."""
    trainer.start_phase(phase, measure=False)
    for number in range(WARM + TIMED):
        if number == WARM:
            began = _now(trainer.device)
        trainer.do_step()
    return (_now(trainer.device) - began) / TIMED


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _file_bytes(experiment: Experiment) -> float:
    config, nern = experiment.config, experiment.nern
    rounded = [phase.bits for phase in config.phases if phase.runs and phase.bits is not None]
    bits = rounded[-1] if rounded else UNROUNDED_BITS
    numbers = nern.table.num_weights if PREDICTORS.info(config.nern.method)["of_kernels"] else nern.num_parameters
    kept = sum(t.numel() for member in experiment.members for t in member.original.kept().values())
    return (numbers * bits + experiment.ordering.bits() + kept * KEPT_BITS) / 8
