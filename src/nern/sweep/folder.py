"""The folder of a sweep: its runs, how far each is, what is beside them.

results.csv            the table, a row for each finished run
results.png            accuracy over the size of the predictor
runs/NAME-sSEED/       run folders
runs/NAME-sSEED.yaml   the config that a run was started with
runs/NAME-sSEED.log    what it printed
runs/NAME-sSEED.json   the machine that it last ran on
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nern.config import Config
from nern.errors import NernError
from nern.files import write_json
from nern.jobs.session import changed_keys
from nern.sweep.file import PlannedRun
from nern.training.run_folder import RunFolder

FINISHED, STOPPED, NEW = "finished", "stopped", "new"


class SweepFolder:
    """Paths and files of a sweep."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()

    @staticmethod
    def of(file: str | Path, out: str | Path | None = None) -> SweepFolder:
        """The folder `out` of a sweep file; None: outputs/NAME, by the name of the file."""
        return SweepFolder(out if out is not None else Path("outputs") / Path(file).stem)

    @property
    def table(self) -> Path:
        """The table."""
        return self.root / "results.csv"

    @property
    def figure(self) -> Path:
        """The picture."""
        return self.root / "results.png"

    def run(self, run: PlannedRun) -> RunFolder:
        """The folder of a run; it may not be there yet."""
        return RunFolder(self.root / "runs" / run.name)

    def beside(self, run: PlannedRun, suffix: str) -> Path:
        """The file of a run with this suffix."""
        return self.root / "runs" / f"{run.name}.{suffix}"

    def states(self, runs: Sequence[PlannedRun]) -> dict[str, str]:
        """How far each run is, by name: 'finished', 'stopped' (to go on with) or 'new'.

        Raises:
            NernError: the config of a run that is there already is not the one in `runs`.
        """
        found, changed = {}, []
        for run in runs:
            folder = self.run(run)
            there = folder.config.is_file()
            marks = {FINISHED: folder.metrics, STOPPED: folder.state}
            found[run.name] = next((state for state, file in marks.items() if there and file.is_file()), NEW)
            if found[run.name] == NEW:
                continue
            if keys := changed_keys(_compared(Config.load(folder.config)), _compared(run.config.with_absolute_paths())):
                changed.append(f"{run.name}: {', '.join(keys)}")
        if changed:
            raise NernError(
                f"{self.root} holds runs with other settings than these ({'; '.join(changed)}). Take another folder "
                "(--out) for the new ones, set these back, or delete the folders of these runs to train them anew."
            )
        return found

    def make_way(self, run: PlannedRun) -> None:
        """Remove what a run left that was killed before it saved anything. Raises NernError if it is still running, or if
        what is in its place is no run."""
        folder = self.run(run)
        if folder.config.is_file():
            with folder.locked():
                shutil.rmtree(folder.root)
        elif folder.root.exists() and not (folder.root.is_dir() and not any(folder.root.iterdir())):
            raise NernError(
                f"{folder.root} is in the way of run {run.name}: it is no run folder; move it, or choose --out"
            )

    def metrics(self, run: PlannedRun) -> dict[str, Any]:
        """Of a finished run. Raises NernError if its file is damaged."""
        return _read_json(self.run(run).metrics)

    def save_machine(self, run: PlannedRun, hardware: Mapping[str, Any]) -> None:
        """Note what a run runs on."""
        write_json(self.beside(run, "json"), hardware)

    def machine(self, run: PlannedRun) -> dict[str, Any]:
        """What `save_machine` noted; {} if nothing. Raises NernError if the file is damaged."""
        path = self.beside(run, "json")
        hardware = _read_json(path) if path.is_file() else {}
        gpu = hardware.get("gpu")
        if (gpu and not (isinstance(gpu, dict) and "name" in gpu)) or (hardware.get("cpu") and "cores" not in hardware):
            raise damaged(path, "it names no hardware")
        return hardware

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While entered, no other sweep works here (where the system has file locks). Raises NernError if one does."""
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / ".lock").open("w")
        except OSError as error:
            raise NernError(f"the sweep's folder {self.root} cannot be made ({error}); see --out") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise NernError(f"another sweep is at work in {self.root}") from error
            yield


def _compared(config: Config) -> dict[str, Any]:
    """What makes a run another one: all but where and how it is logged."""
    values = config.to_dict()
    del values["logging"]
    return values


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(values, dict):
        raise damaged(path, f"it holds {type(values).__name__}")
    return values


def damaged(path: Path, why: object) -> NernError:
    """The error of a run's file that does not hold what was written there."""
    return NernError(f"{path} is damaged ({why}); delete its run folder to train it anew")
