"""Tracking: scalars over time, to TensorBoard, ClearML or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from nern.config import LoggingConfig
from nern.config.published import clearml_installed
from nern.errors import NernError
from nern.registry import TRACKERS


class Run(Protocol):
    """The configuration of a run, of whatever kind."""

    logging: LoggingConfig

    def to_dict(self) -> dict[str, Any]: ...


class Tracker(Protocol):
    """Contract of a tracker. Built as `Tracker(run_folder, config, first_step)`; what was recorded from
    `first_step` on, before a run was resumed, is superseded."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Record scalars; names are `group/name`."""
        ...

    def close(self) -> None:
        """Write everything out."""
        ...


@TRACKERS.register("none")
class NoTracker:
    """Records nothing."""

    def __init__(self, folder: Path, config: Run, first_step: int) -> None:
        pass

    def log(self, scalars: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


@TRACKERS.register("tensorboard")
class TensorBoardTracker:
    """Event files in the run folder."""

    def __init__(self, folder: Path, config: Run, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step or None)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


@TRACKERS.register("clearml")
class ClearMLTracker:
    """A ClearML task, named after the run, in the project `nern`."""

    def __init__(self, folder: Path, config: Run, first_step: int) -> None:
        check_tracker(config.logging)
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
            detail = " ".join(str(error).split())[:200]
            raise NernError(f"ClearML does not start ({detail}); run clearml-init, or set logging.tracker") from error
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
    if config.tracker == "clearml" and not clearml_installed():
        raise NernError("logging.tracker 'clearml' needs the clearml extra: pip install 'nern[clearml]'")


def build_tracker(config: Run, folder: Path, first_step: int = 0) -> Tracker:
    """The tracker of a run that starts at (or is resumed from) `first_step`."""
    tracker: Tracker = TRACKERS[config.logging.tracker](folder, config, first_step)
    return tracker
