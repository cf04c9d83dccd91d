"""Tracking: scalars over time, to TensorBoard, a CSV file, Weights & Biases, MLflow, ClearML or nowhere."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nern.config import Config, LoggingConfig, OriginalConfig
from nern.config.settings import leaves
from nern.errors import EXTRAS, NernError
from nern.registry import TRACKERS

Run = Config | OriginalConfig


@TRACKERS.register("none")
class Tracker:
    """A tracker, which records nothing; others record. What was recorded from `first_step` on, before a run was resumed, is
    superseded."""

    def __init__(self, folder: Path, config: Run, first_step: int) -> None: ...

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Record scalars; names are `group/name`."""

    def close(self) -> None:
        """Write everything out."""


@TRACKERS.register("tensorboard")
class TensorBoardTracker(Tracker):
    """Event files in the run folder."""

    def __init__(self, folder: Path, config: Run, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


@TRACKERS.register("csv")
class CsvTracker(Tracker):
    """`scalars.csv` in the run folder: columns step, name, value."""

    def __init__(self, folder: Path, config: Run, first_step: int) -> None:
        path, before = folder / "scalars.csv", list[list[str]]()
        if first_step and path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == 3 and row[0].isdigit()]
            before = [row for row in rows if int(row[0]) < first_step]
        self._file = path.open("w", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerows([["step", "name", "value"], *before])

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._rows.writerows([[step, name, value] for name, value in scalars.items()])
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@TRACKERS.register("wandb")
class WandbTracker(Tracker):
    """A run of Weights & Biases in the project `nern`. Its files lie in the run folder. WANDB_MODE=offline needs no
    server."""

    def __init__(self, folder: Path, config: Run, first_step: int) -> None:
        import wandb

        name = config.logging.exp_name
        try:
            self._run: Any = wandb.init(
                project="nern", name=name, dir=str(folder), config=config.to_dict(), reinit="create_new"
            )
        except Exception as error:  # not configured, no server
            raise _does_not_start("Weights & Biases", error, "run `wandb login`, set WANDB_MODE=offline") from error

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


@TRACKERS.register("mlflow")
class MlflowTracker(Tracker):
    """A run of MLflow in the experiment `nern`, where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: Path, config: Run, first_step: int) -> None:
        from mlflow.tracking import MlflowClient

        try:
            self._client: Any = MlflowClient()
            known = self._client.get_experiment_by_name("nern")
            experiment = known.experiment_id if known is not None else self._client.create_experiment("nern")
            self._run = self._client.create_run(experiment, run_name=config.logging.exp_name).info.run_id
            for name, value in leaves(config.to_dict()):
                self._client.log_param(self._run, name, str(value)[:500])
        except Exception as error:  # not configured, no server
            raise _does_not_start("MLflow", error, "set MLFLOW_TRACKING_URI") from error

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


@TRACKERS.register("clearml")
class ClearMLTracker(Tracker):
    """A ClearML task, named after the run, in the project `nern`."""

    def __init__(self, folder: Path, config: Run, first_step: int) -> None:
        from clearml import Task

        # Report from a thread, not from a forked process: while ClearML asks git about the working directory in another
        # thread, a fork inherits the pipe to git, and closing then waits forever.
        Task._report_subprocess_enabled = False  # type: ignore[assignment]
        try:
            self._task: Any = Task.init(
                project_name="nern",
                task_name=config.logging.exp_name,
                auto_connect_frameworks=False,
                auto_connect_arg_parser=False,
                auto_connect_streams=False,
                auto_resource_monitoring=False,
                reuse_last_task_id=False,
            )
        except Exception as error:  # not configured, no server
            raise _does_not_start("ClearML", error, "run clearml-init") from error
        self._task.connect(config.to_dict())
        self._logger: Any = self._task.get_logger()

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            title, _, series = name.rpartition("/")
            self._logger.report_scalar(title or name, series, value=value, iteration=step)

    def close(self) -> None:
        self._task.close()


def check_tracker(config: LoggingConfig) -> None:
    """Raise NernError if the tracker that is asked for is not installed."""
    extra = EXTRAS.get(config.tracker)
    if extra is not None and importlib.util.find_spec(config.tracker) is None:
        raise NernError(f"logging.tracker {config.tracker!r} needs the {extra} extra: pip install 'nern[{extra}]'")


def _does_not_start(name: str, error: Exception, remedy: str) -> NernError:
    detail = " ".join(str(error).split())[:200]
    return NernError(f"{name} does not start ({detail}); {remedy}, or set logging.tracker")


def build_tracker(config: Run, folder: Path, first_step: int = 0) -> Tracker:
    """The tracker of a run that starts at (or is resumed from) `first_step`."""
    check_tracker(config.logging)
    tracker: Tracker = TRACKERS[config.logging.tracker](folder, config, first_step)
    return tracker
