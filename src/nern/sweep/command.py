"""`nern sweep`: run what a sweep file lists, and tell what came out."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nern.devices import available_gpus
from nern.errors import NernError
from nern.files import check_writable
from nern.sweep.file import PlannedRun, load_sweep
from nern.sweep.folder import FINISHED, NEW, STOPPED, SweepFolder, damaged
from nern.sweep.page import write_page
from nern.sweep.picture import draw
from nern.sweep.processes import Ended, Job, run_side_by_side
from nern.sweep.table import Row, read_tables, row_of, write_table
from nern.training.interrupt import Interrupted

THREADS = "OMP_NUM_THREADS"
GPUS = "CUDA_VISIBLE_DEVICES"


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
        Interrupted: on Ctrl-C or SIGTERM, after the runs have saved. The same call goes on with them.
    """
    console = console or Console()
    if jobs is not None and jobs < 1:
        raise NernError(f"--jobs (={jobs}) must be at least 1")
    folder = SweepFolder.of(path, out)
    check_writable(folder.table, "--out")
    runs = load_sweep(path, folder.root, options)
    with folder.locked():
        return _Sweep(runs, folder, command_text(path, options or {}), console).run(jobs)


def make_page(tables: Sequence[str | Path], page: str | Path) -> None:
    """Write a page of results (Markdown) from tables, and the picture (PNG) of the same name beside it.

    Raises:
        NernError: a table is missing or malformed, or the page cannot be written.
    """
    check_writable(page, "--report")
    figure = Path(page).with_suffix(".png")
    draw(figure, read_tables(tables))
    write_page(tables, page, figure.name)


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
    def __init__(self, runs: Sequence[PlannedRun], folder: SweepFolder, command: str, console: Console) -> None:
        self.runs, self.folder, self.command, self.console = runs, folder, command, console
        self.by_name = {run.name: run for run in runs}
        self.hardware: dict[str, Any] = {}
        self.finished = 0

    def run(self, jobs: int | None) -> list[Row]:
        states = self.folder.states(self.runs)
        todo = [run for run in self.runs if states[run.name] != FINISHED]
        self.finished = len(self.runs) - len(todo)
        gpus = max(available_gpus(run.config) for run in self.runs)
        places = _places(min(jobs or max(gpus, 1), max(len(todo), 1)), gpus)
        counts = {state: list(states.values()).count(state) for state in (FINISHED, STOPPED, NEW)}
        self._say(
            f"{len(self.runs)} runs: {counts[FINISHED]} finished, {counts[STOPPED]} to go on with, {counts[NEW]} to train; "
            f"{len(places)} at a time on {'the CPU' if not gpus else '1 GPU' if gpus == 1 else f'{gpus} GPUs'}; "
            f"folder {self.folder.root}"
        )
        if todo:
            self.hardware = _machine(bool(gpus))
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
            self._say(f"table: {self.folder.table}\npicture: {self.folder.figure}")
        if failures:
            raise NernError(*failures)
        return rows

    def _job(self, run: PlannedRun, state: str) -> Job:
        command = [sys.executable, "-m", "nern", "train"]
        if state == STOPPED:
            command += ["--resume", str(self.folder.run(run).root)]
        else:
            self.folder.make_way(run)
            run.config.save(self.folder.beside(run, "yaml"))
            command += ["--config_path", str(self.folder.beside(run, "yaml"))]
        return Job(run.name, command, self.folder.beside(run, "log"), append=state == STOPPED)

    def _on_start(self, job: Job) -> None:
        self.folder.save_machine(self.by_name[job.name], self.hardware)
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
            draw(self.folder.figure, rows)
        return rows

    def _write_table(self) -> list[Row]:
        rows = []
        for run in self.runs:
            files = self.folder.run(run)
            if files.metrics.is_file():
                config = files.config.relative_to(self.folder.root).as_posix()
                metrics, machine = self.folder.metrics(run), self.folder.machine(run)
                try:
                    rows.append(row_of(run, metrics, machine, config, self.command))
                except NernError as error:
                    raise damaged(files.metrics, error) from error
        if rows:
            write_table(self.folder.table, rows)
        return rows

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


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
    gap = "" if row["gap"] is None else f" ({row['gap']:+.2f})"
    return f", {row['last_test']:.2f} %{gap}"


def _failures(failed: Sequence[Ended], count: int) -> str:
    parts = []
    for ended in failed:
        assert ended.error is not None
        told = ended.error.replace("\n", "\n    ")
        parts.append(f"  {ended.job.name}: {told}\n    (log: {ended.job.log})")
    listing = "\n".join(parts)
    return f"{len(failed)} of {count} runs failed; the same command tries them again:\n{listing}"
