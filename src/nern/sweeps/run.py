"""`nern sweep`: run what a sweep file lists, and tell what came out.

Files in the folder of a sweep:

results.csv            the table, a row for each finished run
results.png            accuracy over the size of the predictor
runs/NAME-sSEED/       run folders
runs/NAME-sSEED.yaml   the config that a run was started with
runs/NAME-sSEED.log    what it printed
runs/NAME-sSEED.json   the machine that it last ran on
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from nern.benchmarks.machine import cores, machine
from nern.benchmarks.measure import in_process
from nern.config import Config
from nern.console import PLAIN, CleanConsole
from nern.devices import available_gpus
from nern.errors import NernError, plain_errors
from nern.files import check_writable, locked, write_json, write_text
from nern.jobs.session import changed_keys
from nern.stopping import Interrupted
from nern.sweeps.file import PlannedRun, load_sweep
from nern.sweeps.processes import Job, run_side_by_side
from nern.sweeps.table import Row, row_of, table_text
from nern.training.run_folder import RunFolder
from nern.untrusted import read_json

_REMEDY = "; delete its run folder to train it anew"
THREADS, GPUS = "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"
FINISHED, STOPPED, NEW = "finished", "stopped", "new"


@plain_errors()
def sweep(
    path: str | Path,
    out: str | Path | None = None,
    jobs: int | None = None,
    options: Mapping[str, Any] | None = None,
    console: Console | None = None,
    shard: str | None = None,
) -> list[Row]:
    """Train all runs of a sweep file that are not finished, and write the table and the picture of all that are.

    Args:
        path: the sweep file.
        out: the sweep's folder; None: outputs/NAME, by the name of the file.
        jobs: runs at a time; None: one on each GPU, or one on the CPU.
        options: dotted config keys and values that win over the file.
        console: for messages; None: standard output.
        shard: 'I/N': train every Nth run, from the Ith on (counted from 1), as one of N machines with the folder in common;
            None: all.

    Returns:
        The rows of the table: of all finished runs, of whatever shard.

    Raises:
        NernError: before any work, for a mistake in the file or a run folder of other settings; at the end, if runs failed.
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after the runs have saved. The same call goes on with them.
    """
    if jobs is not None and jobs < 1:
        raise NernError(f"--jobs (={jobs}) must be at least 1")
    root = Path(out if out is not None else Path("outputs") / Path(path).stem).expanduser()
    check_writable(root / "results.csv", "--out")
    runs = load_sweep(path, root, options)
    found = re.fullmatch(r"(\d+)/(\d+)", shard or "1/1")
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise NernError(f"--shard (={shard}) must be I/N, with I from 1 to N, such as 1/4")
    lock = root if shard is None else root / f"shard-{found[1]}-of-{found[2]}"
    lock.mkdir(parents=True, exist_ok=True)
    own = runs[int(found[1]) - 1 :: int(found[2])]
    with locked(lock, f"another sweep is at work in {lock}"):
        return _Sweep(runs, own, root, command_text(path, options or {}), console or CleanConsole()).run(jobs)


def command_text(path: str | Path, options: Mapping[str, Any]) -> str:
    """The command as others would type it: folders of this machine are given by the name of their key."""
    words = ["nern", "sweep", Path(path).name if Path(path).is_absolute() else Path(path).as_posix()]
    for key, value in options.items():
        if isinstance(value, str) and Path(value).expanduser().is_absolute():
            value = key.rpartition(".")[2].upper()
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words)


@dataclass
class _Sweep:
    """Training of some runs of a sweep, and the table of all."""

    every: Sequence[PlannedRun]
    runs: Sequence[PlannedRun]  # those that are trained here
    root: Path  # the sweep's folder
    command: str  # as others would type it
    console: Console
    machine: dict[str, Any] = field(default_factory=dict)  # what the runs are trained on
    finished: int = 0  # of those trained here

    def run(self, jobs: int | None) -> list[Row]:
        states = [self._state(run) for run in self.runs]
        self._check_settings(states)
        todo = [(run, state) for run, state in zip(self.runs, states, strict=True) if state != FINISHED]
        self.finished = len(self.runs) - len(todo)
        gpus = max(available_gpus(run.config.num_gpus) for run in self.runs)
        places = _places(min(jobs or max(gpus, 1), max(len(todo), 1)), gpus)
        self._say(
            f"{len(self.runs)} runs: {self.finished} finished, {states.count(STOPPED)} to go on with, {states.count(NEW)} "
            f"to train; {len(places)} at a time on {f'{gpus} GPUs' if gpus else 'the CPU'}; folder {self.root}"
        )
        if todo:  # asked for in another process where that would take memory of a GPU
            self.machine = in_process(machine) if gpus else machine() | {"gpu": None}
        work = [self._job(run, state) for run, state in todo]
        self._write_table()
        try:
            run_side_by_side(work, places, self._on_start, self._on_end)
        except Interrupted as error:
            message = (
                f"{error}; {self.finished} of {len(self.runs)} runs are finished, those that had begun have saved. "
                "Continue with the same command."
            )
            raise Interrupted(error.signal_number, message) from None
        problems = []
        for job in work:
            if job.error is not None:
                told = job.error.replace("\n", "\n    ")
                problems.append(f"  {job.name}: {told}\n    (log: {job.log})")
        if problems:
            count = f"{len(problems)} of {len(self.runs)} runs failed; the same command tries them again:"
            problems.insert(0, count)
        rows: list[Row] = []
        try:
            if rows := self._write_table():
                from nern.sweeps.picture import draw  # matplotlib takes a second to import

                draw(self.root / "results.png", rows)
                self._say(f"table: {self.root / 'results.csv'}\npicture: {self.root / 'results.png'}")
        except NernError as error:
            problems.append(str(error))
        if problems:
            raise NernError("\n".join(problems))
        return rows

    def _folder(self, run: PlannedRun) -> RunFolder:
        return RunFolder(self.root / "runs" / run.name)

    def _beside(self, name: str, suffix: str) -> Path:
        return self.root / "runs" / f"{name}.{suffix}"

    def _state(self, run: PlannedRun) -> str:
        """How far a run is."""
        folder = self._folder(run)
        if not folder.config.is_file():
            return NEW
        return FINISHED if folder.metrics.is_file() else STOPPED if folder.state.is_file() else NEW

    def _check_settings(self, states: Sequence[str]) -> None:
        """Raise NernError if the config of a run that is there already is another now."""
        changed = []
        for run, state in zip(self.runs, states, strict=True):
            if state != NEW:
                before = Config.load(self._folder(run).config).to_dict()
                now = run.config.with_absolute_paths().to_dict()
                if keys := changed_keys(before | {"logging": None}, now | {"logging": None}):
                    changed.append(f"{run.name}: {', '.join(keys)}")
        if changed:
            raise NernError(
                f"{self.root} holds runs with other settings than these ({'; '.join(changed)}). Take another folder "
                "(--out) for the new ones, set these back, or delete the folders of these runs to train them anew."
            )

    def _job(self, run: PlannedRun, state: str) -> Job:
        """The command that trains a run, or goes on with it. What a run left that was killed before it saved anything is
        removed. Raises NernError if it is still running, or if what is in its place is no run."""
        folder, command = self._folder(run), [sys.executable, "-m", "nern", "train"]
        config, log, root = self._beside(run.name, "yaml"), self._beside(run.name, "log"), folder.root
        if state == STOPPED:
            return Job(run.name, [*command, "--resume", str(root)], log, append=True)
        if root.exists():
            if not folder.config.is_file() and (not root.is_dir() or any(root.iterdir())):
                raise NernError(
                    f"{root} is in the way of run {run.name}: it is no run folder; move it, or choose --out"
                )
            with folder.locked():
                shutil.rmtree(root)
        run.config.save(config)
        return Job(run.name, [*command, "--config_path", str(config)], log)

    def _on_start(self, job: Job) -> None:
        write_json(self._beside(job.name, "json"), self.machine)
        self._say(f"{job.name}: {'goes on' if job.append else 'starts'}; log {job.log}")

    def _on_end(self, job: Job) -> None:
        how = "failed after" if job.error is not None else "finished in"
        self.finished += job.error is None
        with contextlib.suppress(NernError):  # told at the end; other runs go on
            self._write_table()
        self._say(f"{job.name}: {how} {job.seconds:.0f} s ({self.finished} of {len(self.runs)} runs are finished)")

    def _write_table(self) -> list[Row]:
        rows = []
        for run in self.every:
            folder, machine_file = self._folder(run), self._beside(run.name, "json")
            if not folder.metrics.is_file():
                continue
            config = folder.config.relative_to(self.root).as_posix()
            hardware = read_json(machine_file, dict, _REMEDY) if machine_file.is_file() else {}
            metrics = read_json(folder.metrics, dict, _REMEDY)
            try:
                rows.append(row_of(run, metrics, hardware, config, self.command))
            except NernError as error:
                raise NernError(f"{folder.metrics} is damaged ({error}){_REMEDY}") from error
        if rows:
            write_text(self.root / "results.csv", table_text(rows))
        return rows

    def _say(self, text: str) -> None:
        self.console.print(text, **PLAIN)


def _places(count: int, gpus: int) -> list[dict[str, str]]:
    """Environment variables of so many runs side by side: GPUs in turn, an equal share of the cores."""
    visible = [name for name in os.environ.get(GPUS, "").split(",") if name] or [str(number) for number in range(gpus)]
    share = {} if count == 1 or THREADS in os.environ else {THREADS: str(max(cores() // count, 1))}
    return [share | ({GPUS: visible[number % gpus]} if gpus else {}) for number in range(count)]
