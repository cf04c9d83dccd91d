"""Train a NeRN; continue a run that was stopped."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from nern.config import Config
from nern.console import PLAIN, CleanConsole
from nern.errors import plain_errors
from nern.experiment import Experiment, build_experiment
from nern.files import check_writable, save_safetensors, write_json
from nern.jobs.results import (
    check_original,
    digests,
    finish,
    kept_tensors,
    store_ordering,
    take_ordering,
)
from nern.jobs.session import continue_from, new_folder, resumable, run_loop, saved_run
from nern.processes import Processes, join
from nern.representation.nern import NeRN
from nern.terminal import result_table, share_text
from nern.training.phases import check_extension, phases_of
from nern.training.run_folder import RunFolder
from nern.training.tracking import check_tracker
from nern.training.trainer import Trainer


@plain_errors()
def train(config: Config, console: Console | None = None, json_path: str | Path | None = None) -> dict[str, Any]:
    """Train the NeRN that `config` describes, in a new run folder; returns (and writes) its metrics.

    Where torchrun or `accelerate launch` has started several processes, all of them call this: they train together, and the
    first alone writes and talks. All return the metrics.

    Args:
        config: a checked config.
        console: where messages and progress go; None: standard output.
        json_path: also write the metrics here.

    Raises:
        NernError: before anything is written, if the config cannot work; later, if a loss is not finite, or disk or memory
            run out (`ResourceError`).
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after saving.
    """
    processes = join()
    console = _console(console, processes)
    processes.from_main(lambda: check_writable(json_path, "--json"))
    check_tracker(config.logging)
    experiment = build_experiment(config, processes=processes, tell=_tell(console))
    trainer = experiment.trainer(processes)
    with new_folder(config) if processes.main else nullcontext() as folder:
        if folder is not None:
            config.with_absolute_paths().save(folder.config)
            store_ordering(experiment, folder)
            save_safetensors(folder.kept, kept_tensors(experiment), digests(experiment))
        return _run(experiment, trainer, folder, console, json_path)


@plain_errors()
def resume(
    path: str | Path,
    console: Console | None = None,
    json_path: str | Path | None = None,
    lengths: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Continue the run in folder `path` to its end, with the result that an uninterrupted run would have had; by any
    number of processes (see `train`), up to the rounding of sums.

    Args:
        path: the run folder.
        console: where messages and progress go; None: standard output.
        json_path: also write the metrics here.
        lengths: dotted keys of lengths ('distillation.iterations') with new values: of the phase that the run is in, or
            ended with, and of those after it. Rates are those of the new length from there on, so the result is not that of
            a run which had it from the start.

    Raises:
        NernError: no run there, nothing saved, its state is damaged, or a phase that has ended has another length now.
        Interrupted: as for `train`.
    """
    processes = join()
    console = _console(console, processes)
    processes.from_main(lambda: check_writable(json_path, "--json"))
    folder = processes.from_main(lambda: RunFolder.open(path))
    with folder.locked() if processes.main else nullcontext():
        config, state, before = processes.from_main(lambda: _saved(folder, lengths))
        written = copy.deepcopy(config)
        if processes.main:
            take_ordering(config, folder)
        if config.nern.init == "checkpoint":  # the state holds the weights; the file may be gone
            config.nern.init, config.nern.checkpoint_path = "default", None
        experiment = build_experiment(config, processes=processes, tell=_tell(console))
        if processes.main:
            check_original(experiment, folder)
            if not folder.ordering.is_file():
                store_ordering(experiment, folder)
        trainer = experiment.trainer(processes)
        check_extension(phases_of(before, trainer.steps_per_epoch), trainer.phases, state.get("step", 0))
        continue_from(trainer, state, folder)
        if written != before and processes.main:
            written.save(folder.config)
        return _run(experiment, trainer, folder if processes.main else None, console, json_path)


def _saved(folder: RunFolder, lengths: Mapping[str, Any] | None) -> tuple[Config, dict[str, Any], Config]:
    config, state, before = saved_run(folder, Config, lengths)
    best = folder.record("best")
    if best is not None and best["step"] > state.get("step", best["step"]):  # killed between checkpoint and state
        state["best"] = best
    return config, state, before


def _console(given: Console | None, processes: Processes) -> Console:
    return (given or CleanConsole()) if processes.main else CleanConsole(quiet=True)


def _tell(console: Console) -> Callable[[str], None]:
    return partial(console.print, **PLAIN)


def _run(
    experiment: Experiment, trainer: Trainer, folder: RunFolder | None, console: Console, json_path: str | Path | None
) -> dict[str, Any]:
    """Train to the end and report; `folder` is None in all processes but the main one."""
    config, processes = experiment.config, trainer.processes

    def end() -> dict[str, Any]:
        assert folder is not None
        return finish(experiment, trainer, folder, originals, skipped)

    with nullcontext() if folder is None else resumable(folder, "nern train"):
        trainer.rehearse()
        if folder is not None:
            announce(console, experiment, trainer, folder)
            if trainer.step < trainer.total_steps:
                folder.metrics.unlink(missing_ok=True)  # they are of fewer steps
        run_loop(trainer, config, folder, console, trainer.without_images, "nern train")
        originals, skipped = trainer.original_metrics(), trainer.skipped_images()
        metrics = processes.from_main(end)
    if json_path is not None and processes.main:
        write_json(json_path, metrics)
    console.print(result_table(metrics))
    console.print(f"run folder: {metrics['run_folder']}", **PLAIN)
    return metrics


def announce(console: Console, experiment: Experiment, trainer: Trainer, folder: RunFolder | None = None) -> None:
    """Say what is trained, and where."""
    where = "" if folder is None else f"; run folder {folder.root}"
    nern_, start = experiment.nern, f", from step {trainer.step}" if trainer.step else ""
    ordering, cost = experiment.ordering, experiment.ordering.cost
    kept = sum(len(m.original.choices) - len(m.original.weight_names) for m in experiment.members)
    console.print(
        f"{', '.join(m.name for m in experiment.members)}: {nern_.table.num_weights:,} weights in "
        f"{len(nern_.table.shapes)} layers ({_sizes_text(nern_)}), represented by {nern_.num_parameters:,} parameters "
        f"({share_text(nern_.num_parameters / nern_.table.num_weights)}); {kept} tensors are kept as they are\n"
        f"ordering: {ordering.mode}, {experiment.ordering_source}{'' if cost is None else f'; {cost}'}\n"
        f"{_steps_text(trainer)}{start} on {_devices_text(experiment, trainer)}{where}",
        **PLAIN,
    )


def _sizes_text(nern_: NeRN) -> str:
    sizes = [shape[2:] for shape in nern_.table.shapes]
    counts = {size: sizes.count(size) for size in sizes}
    return ", ".join(f"{count} of {height}x{width}" for (height, width), count in counts.items())


def _steps_text(trainer: Trainer) -> str:
    parts = ", ".join(f"{phase.name}: {phase.steps:,}" for phase in trainer.phases)
    return f"{trainer.total_steps:,} steps{f' ({parts})' if len(trainer.phases) > 1 else ''}"


def _devices_text(experiment: Experiment, trainer: Trainer) -> str:
    count, kind = trainer.processes.count, {"cuda": "GPU"}.get(experiment.device.type, experiment.device.type)
    return f"{count} processes, each on a {kind}" if count > 1 else str(experiment.device)
