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
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nern.config import Config
from nern.console import PLAIN, CleanConsole
from nern.devices import available_gpus
from nern.errors import NernError, plain_errors
from nern.files import check_writable, locked, write_json
from nern.jobs.session import changed_keys
from nern.sweep.file import PlannedRun, load_sweep
from nern.sweep.processes import Ended, Job, run_side_by_side
from nern.sweep.table import Row, row_of, write_table
from nern.training.interrupt import Interrupted
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
) -> list[Row]:
    """Train all runs of a sweep file that are not finished, and write the table and the picture of all that are.

    Args:
        path: the sweep file.
        out: the sweep's folder; None: outputs/NAME, by the name of the file.
        jobs: runs at a time; None: one on each GPU, or one on the CPU.
        options: dotted config keys and values that win over the file.
        console: for messages; None: standard output.

    Returns:
        The rows of the table.

    Raises:
        NernError: before any work, for a mistake in the file or a run folder of other settings; at the end, if runs failed.
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after the runs have saved. The same call goes on with them.
    """
    if jobs is not None and jobs < 1:
        raise NernError(f"--jobs (={jobs}) must be at least 1")
    root = Path(out if out is not None else Path("outputs") / Path(path).stem).expanduser()
    check_writable(root / "results.csv", "--out")
    runs = load_sweep(path, root, options)
    with _locked(root):
        return _Sweep(runs, root, command_text(path, options or {}), console or CleanConsole()).run(jobs)


def command_text(path: str | Path, options: Mapping[str, Any]) -> str:
    """The command as others would type it: folders of this machine are given by the name of their key."""
    path = Path(path)
    if path.is_absolute():
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(path.name)
    words, names = ["nern", "sweep", path.as_posix()], [key.rpartition(".")[2] for key in options]
    for (key, value), name in zip(options.items(), names, strict=True):
        if isinstance(value, str) and Path(value).expanduser().is_absolute():
            value = (name if names.count(name) == 1 else key.replace(".", "_")).upper()
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words)


class _Sweep:
    def __init__(self, runs: Sequence[PlannedRun], root: Path, command: str, console: Console) -> None:
        self.runs, self.root, self.command, self.console = {run.name: run for run in runs}, root, command, console
        self.machine: dict[str, Any] = {}
        self.finished = 0

    def run(self, jobs: int | None) -> list[Row]:
        states = self._states()
        todo = [run for run in self.runs.values() if states[run.name] != FINISHED]
        self.finished = len(self.runs) - len(todo)
        gpus = max(available_gpus(run.config) for run in self.runs.values())
        places = _places(min(jobs or max(gpus, 1), max(len(todo), 1)), gpus)
        counts = {state: list(states.values()).count(state) for state in (FINISHED, STOPPED, NEW)}
        self._say(
            f"{len(self.runs)} runs: {counts[FINISHED]} finished, {counts[STOPPED]} to go on with, {counts[NEW]} to train; "
            f"{len(places)} at a time on {'the CPU' if not gpus else '1 GPU' if gpus == 1 else f'{gpus} GPUs'}; "
            f"folder {self.root}"
        )
        self.machine = _machine(bool(gpus)) if todo else {}
        failed: list[Ended] = []
        try:
            work = [self._job(run, states[run.name]) for run in todo]
            self._write_table()
            failed = [e for e in run_side_by_side(work, places, self._on_start, self._on_end) if e.error is not None]
        except BaseException as error:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                self._write_results()
            if not isinstance(error, Interrupted):
                raise
            message = (
                f"{error}; {self.finished} of {len(self.runs)} runs are finished, those that had begun have saved. "
                "Continue with the same command."
            )
            raise Interrupted(error.signal_number, message) from None
        failures = [_failures(failed, len(self.runs))] if failed else []
        try:
            rows = self._write_results()
        except NernError as error:
            raise NernError("\n".join([*failures, str(error)])) from error
        if rows:
            self._say(f"table: {self.root / 'results.csv'}\npicture: {self.root / 'results.png'}")
        if failures:
            raise NernError(*failures)
        return rows

    def _folder(self, run: PlannedRun) -> RunFolder:
        return RunFolder(self.root / "runs" / run.name)

    def _beside(self, run: PlannedRun, suffix: str) -> Path:
        return self.root / "runs" / f"{run.name}.{suffix}"

    def _states(self) -> dict[str, str]:
        """How far each run is. Raises NernError if the config of one that is there already is another now."""
        found, changed = {}, []
        for run in self.runs.values():
            folder = self._folder(run)
            marks = {FINISHED: folder.metrics, STOPPED: folder.state} if folder.config.is_file() else {}
            found[run.name] = next((state for state, file in marks.items() if file.is_file()), NEW)
            if found[run.name] == NEW:
                continue
            before, now = Config.load(folder.config).to_dict(), run.config.with_absolute_paths().to_dict()
            if keys := changed_keys(before | {"logging": None}, now | {"logging": None}):
                changed.append(f"{run.name}: {', '.join(keys)}")
        if changed:
            raise NernError(
                f"{self.root} holds runs with other settings than these ({'; '.join(changed)}). Take another folder "
                "(--out) for the new ones, set these back, or delete the folders of these runs to train them anew."
            )
        return found

    def _job(self, run: PlannedRun, state: str) -> Job:
        command, config, folder = [sys.executable, "-m", "nern", "train"], self._beside(run, "yaml"), self._folder(run)
        if state == STOPPED:
            command += ["--resume", str(folder.root)]
        else:
            self._make_way(run, folder)
            run.config.save(config)
            command += ["--config_path", str(config)]
        return Job(run.name, command, self._beside(run, "log"), append=state == STOPPED)

    def _make_way(self, run: PlannedRun, folder: RunFolder) -> None:
        """Remove what a run left that was killed before it saved anything. Raises NernError if it is still running, or if
        what is in its place is no run."""
        if folder.config.is_file():
            with folder.locked():
                shutil.rmtree(folder.root)
        elif folder.root.is_dir() and not any(folder.root.iterdir()):
            with folder.locked():
                folder.root.rmdir()
        elif folder.root.exists():
            raise NernError(
                f"{folder.root} is in the way of run {run.name}: it is no run folder; move it, or choose --out"
            )

    def _on_start(self, job: Job) -> None:
        write_json(self._beside(self.runs[job.name], "json"), self.machine)
        self._say(f"{job.name}: {'goes on' if job.append else 'starts'}; log {job.log}")

    def _on_end(self, ended: Ended) -> None:
        if ended.error is not None:
            self._say(f"{ended.job.name}: failed after {_duration(ended.seconds)}")
            return
        self.finished += 1
        try:
            outcome = "".join(_outcome(row) for row in self._write_table() if row["name"] == ended.job.name)
        except NernError as error:  # told again at the end; other runs go on
            outcome = f"; {error}"
        self._say(
            f"{ended.job.name}: finished in {_duration(ended.seconds)}{outcome} "
            f"({self.finished} of {len(self.runs)} runs are finished)"
        )

    def _write_results(self) -> list[Row]:
        rows = self._write_table()
        if rows:
            from nern.sweep.picture import draw  # matplotlib takes a second to import

            draw(self.root / "results.png", rows)
        return rows

    def _write_table(self) -> list[Row]:
        rows = []
        for run in self.runs.values():
            folder, machine = self._folder(run), self._beside(run, "json")
            if not folder.metrics.is_file():
                continue
            config = folder.config.relative_to(self.root).as_posix()
            hardware = read_json(machine, dict, _REMEDY) if machine.is_file() else {}
            metrics = read_json(folder.metrics, dict, _REMEDY)
            try:
                rows.append(row_of(run, metrics, hardware, config, self.command))
            except NernError as error:
                raise _damaged(folder.metrics, error) from error
        if rows:
            write_table(self.root / "results.csv", rows)
        return rows

    def _say(self, text: str) -> None:
        self.console.print(text, **PLAIN)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """While entered, no other sweep works here. Raises NernError if one does, or if the folder cannot be made."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        (root / ".lock").touch()
    except OSError as error:
        raise NernError(f"the sweep's folder {root} cannot be made ({error}); see --out") from error
    with locked(root / ".lock", f"another sweep is at work in {root}"):
        yield


def _damaged(path: Path, why: object) -> NernError:
    """The error of a run's file that does not hold what was written there."""
    return NernError(f"{path} is damaged ({why}){_REMEDY}")


def _places(count: int, gpus: int) -> list[dict[str, str]]:
    """Environment variables of so many runs side by side: GPUs in turn, an equal share of the cores."""
    visible = [name for name in os.environ.get(GPUS, "").split(",") if name] or [str(number) for number in range(gpus)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = {} if count == 1 or THREADS in os.environ else {THREADS: str(max(cores // count, 1))}
    return [share | ({GPUS: visible[number % gpus]} if gpus else {}) for number in range(count)]


def _machine(gpus: bool) -> dict[str, Any]:
    """Hardware of this machine, asked for in another process where that would take memory of a GPU."""
    if not gpus:
        from nern.benchmarks.machine import machine

        return machine() | {"gpu": None}
    code = "import json; from nern.benchmarks.machine import machine; print(json.dumps(machine()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _outcome(row: Row) -> str:
    if row["last_test"] is None:
        return ""
    return f", {row['last_test']:.2f} %" + ("" if row["gap"] is None else f" ({row['gap']:+.2f})")


def _failures(failed: Sequence[Ended], count: int) -> str:
    told = [
        f"  {e.job.name}: {(e.error or '').replace(chr(10), chr(10) + '    ')}\n    (log: {e.job.log})" for e in failed
    ]
    return "\n".join([f"{len(failed)} of {count} runs failed; the same command tries them again:", *told])
