"""Train a NeRN, in a new run folder or in one of one's own; continue a run that was stopped; tell what a run would take."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nern.benchmarks.measure import seconds_per_call
from nern.config import Config
from nern.console import PLAIN, CleanConsole
from nern.errors import NernError, plain_errors
from nern.experiment import Experiment, build_experiment
from nern.files import check_writable, save_safetensors, write_json
from nern.jobs.results import check_original, digests, finish, kept_tensors, store_ordering, take_ordering
from nern.jobs.session import Saved, changed_keys, continue_from, resumable, run_loop, saved_run
from nern.processes import Processes, join
from nern.registry import PREDICTORS
from nern.stopping import Interrupted
from nern.terminal import bytes_text, result_table, share_text
from nern.training.members import Member
from nern.training.phases import Phase, check_extension, phases_of
from nern.training.run_folder import RunFolder
from nern.training.tracking import check_tracker
from nern.training.trainer import Trainer

PLACE = ("logging.log_dir", "logging.exp_name", "logging.progress")  # keys that say where a run is, not what it is
GO_ON = "call nern.fit again with this run_folder"
TIMED = 4  # steps of a phase that a dry run times
PACKED_BITS = 8.0  # about, of a number that was not trained to be rounded, as `nern pack` chooses


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
    processes, console = _joined(console, json_path)
    check_tracker(config.logging)
    experiment = build_experiment(config, processes=processes, tell=partial(console.print, **PLAIN))
    trainer = experiment.trainer(processes)
    with RunFolder.claimed(config.logging) if processes.main else nullcontext() as folder:
        if folder is not None:
            _begin(experiment, folder)
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
    processes, console = _joined(console, json_path)
    folder = processes.from_main(lambda: RunFolder.open(path))
    with folder.locked() if processes.main else nullcontext():
        saved = processes.from_main(lambda: saved_run(folder, Config, lengths))
        config = copy.deepcopy(saved.config)
        if processes.main:
            take_ordering(config, folder)
        if config.nern.init == "checkpoint":  # the state holds the weights; the file may be gone
            config.nern.init, config.nern.checkpoint_path = "default", None
        experiment = build_experiment(config, processes=processes, tell=partial(console.print, **PLAIN))
        if processes.main:
            check_original(experiment.members, folder)
            if not folder.ordering.is_file():
                store_ordering(experiment, folder)
        trainer = experiment.trainer(processes)
        _go_on(trainer, saved, folder)
        if saved.config != saved.before and processes.main:
            saved.config.save(folder.config)
        return _run(experiment, trainer, folder if processes.main else None, console, json_path)


def train_in_folder(
    config: Config,
    member: Member,
    build: Callable[[Config], Experiment],
    path: Path,
    console: Console,
    hear: Callable[[Trainer], None],
) -> tuple[Experiment, Trainer, int | None]:
    """Train in a folder of the caller's, from the first step on, or from where the run in it was; `hear` is given the
    trainer before the first step.

    Returns:
        What was trained, its trainer, and the signal that stopped it (None: it came to its end).

    Raises:
        NernError: the folder holds something else, another process trains in it, or another network was fitted there.
    """
    folder = RunFolder(path.expanduser())
    root = folder.root
    if root.exists() and not folder.config.is_file() and (not root.is_dir() or any(root.iterdir())):
        raise NernError(f"run_folder (={path}) is neither a run folder nor empty; name another one")
    root.mkdir(parents=True, exist_ok=True)
    config.logging.log_dir, config.logging.exp_name = str(root.absolute().parent), root.absolute().name
    with folder.locked():
        saved = saved_run(folder, Config) if folder.state.is_file() else None
        if saved is not None:
            _check_same_run(config, saved, folder)
            check_original([member], folder)
            take_ordering(config, folder)
        experiment = build(config)
        trainer = experiment.trainer()
        if saved is None:
            _begin(experiment, folder)
        else:
            _go_on(trainer, saved, folder)
        try:
            _trained(experiment, trainer, folder, console, GO_ON, hear)
        except Interrupted as error:
            return experiment, trainer, error.signal_number
    return experiment, trainer, None


def _check_same_run(config: Config, saved: Saved[Config], folder: RunFolder) -> None:
    """Raise NernError if the run in a folder has other settings, beyond its lengths."""
    keys = changed_keys(saved.config.to_dict(), config.with_absolute_paths().to_dict())
    free = (*PLACE, "nern.embeddings.permutations.path")
    if changed := [key for key in keys if key not in free and not saved.before.may_change(key)]:
        raise NernError(
            f"{folder.root} holds a run with other settings ({', '.join(changed)}); name another run_folder"
        )


def _joined(console: Console | None, json_path: str | Path | None) -> tuple[Processes, Console]:
    """The processes of this run, and where this one prints."""
    processes = join()
    processes.from_main(lambda: check_writable(json_path, "--json"))
    return processes, (console or CleanConsole()) if processes.main else CleanConsole(quiet=True)


def _begin(experiment: Experiment, folder: RunFolder) -> None:
    """Write what a run folder holds from the start."""
    experiment.config.with_absolute_paths().save(folder.config)
    store_ordering(experiment, folder)
    save_safetensors(folder.kept, kept_tensors(experiment), digests(experiment.members))


def _go_on(trainer: Trainer, saved: Saved[Config], folder: RunFolder) -> None:
    """Take over what was saved, with the lengths that phases have now."""
    before = phases_of(saved.before, trainer.steps_per_epoch)
    check_extension(before, trainer.phases, saved.state.get("step", 0))
    continue_from(trainer, saved.state, folder)


def _run(
    experiment: Experiment, trainer: Trainer, folder: RunFolder | None, console: Console, json_path: str | Path | None
) -> dict[str, Any]:
    """Train to the end and report; `folder` is None in all processes but the main one."""

    def say(trainer: Trainer) -> None:
        announce(console, experiment, trainer, folder)

    metrics = _trained(experiment, trainer, folder, console, "nern train", say)
    if json_path is not None and trainer.processes.main:
        write_json(json_path, metrics)
    console.print(result_table(metrics))
    console.print(f"run folder: {metrics['run_folder']}", **PLAIN)
    return metrics


def _trained(
    experiment: Experiment,
    trainer: Trainer,
    folder: RunFolder | None,
    console: Console,
    command: str,
    hear: Callable[[Trainer], None],
) -> dict[str, Any]:
    """Train to the end; the metrics. `command`, `hear`: see `run_loop`."""
    with nullcontext() if folder is None else resumable(folder, command):
        trainer.rehearse()
        run_loop(trainer, experiment.config, folder, console, command, hear)
        originals, skipped = trainer.assessment.of_originals(), trainer.skipped_images()

        def end() -> dict[str, Any]:
            assert folder is not None  # as of the main process
            return finish(experiment, trainer, folder, originals, skipped)

        return trainer.processes.from_main(end)


def announce(console: Console, experiment: Experiment, trainer: Trainer, folder: RunFolder | None = None) -> None:
    """Say what is trained, and where."""
    where = "" if folder is None else f"; run folder {folder.root}"
    nern_, start = experiment.nern, f", from step {trainer.step}" if trainer.step else ""
    ordering, cost = experiment.ordering, experiment.ordering.cost
    kept = sum(len(m.original.choices) - len(m.original.weight_names) for m in experiment.members)
    counts = Counter(shape[2:] for shape in nern_.table.shapes)
    sizes = ", ".join(f"{count} of {height}x{width}" for (height, width), count in counts.items())
    phases = ", ".join(f"{phase.name}: {phase.steps:,}" for phase in trainer.phases)
    steps = f"{trainer.total_steps:,} steps{f' ({phases})' if len(trainer.phases) > 1 else ''}"
    kind = {"cuda": "GPU"}.get(experiment.device.type, experiment.device.type)
    several = f"{trainer.processes.count} processes, each on a {kind}"
    console.print(
        f"{', '.join(m.name for m in experiment.members)}: {nern_.table.num_weights:,} weights in "
        f"{len(nern_.table.shapes)} layers ({sizes}), represented by {nern_.num_parameters:,} parameters "
        f"({share_text(nern_.num_parameters / nern_.table.num_weights)}); {kept} tensors are kept as they are\n"
        f"ordering: {ordering.mode}, {experiment.ordering_source}{'' if cost is None else f'; {cost}'}\n"
        f"{steps}{start} on {several if trainer.processes.several else experiment.device}{where}",
        **PLAIN,
    )


@plain_errors()
def dry_run(config: Config, console: Console | None = None) -> tuple[dict[str, float], float]:
    """Build what a config describes, time some steps of each phase, and print what the run would take. Nothing is written.

    Returns:
        Seconds of a step by phase, without evaluations and what a phase measures at its start; bytes of the packed run.
    """
    console = console or CleanConsole()
    experiment = build_experiment(config)
    trainer = experiment.trainer()
    trainer.rehearse()
    announce(console, experiment, trainer)
    table = Table("phase", title="What each phase takes here", title_justify="left", title_style="bold")
    for heading in ("steps", "seconds a step", "time"):
        table.add_column(heading, justify="right")
    seconds, total = dict[str, float](), 0.0
    for phase in trainer.phases:
        seconds[phase.name] = step = _step_seconds(trainer, phase)
        total += phase.steps * step
        table.add_row(phase.name, f"{phase.steps:,}", f"{step:.3f}", _time_text(phase.steps * step))
    table.add_row("all", f"{trainer.total_steps:,}", "", _time_text(total))
    rounded = [phase.bits for phase in config.phases if phase.runs and phase.bits is not None]
    nern_, of_kernels = experiment.nern, PREDICTORS.info(config.nern.method)["of_kernels"]
    numbers = nern_.table.num_weights if of_kernels else nern_.num_parameters
    kept = sum(t.numel() for member in experiment.members for t in member.original.kept().values())
    bits = numbers * (rounded[-1] if rounded else PACKED_BITS) + experiment.ordering.bits() + kept * PACKED_BITS
    size = bits / 8
    console.print(table)
    console.print(f"packed, the run takes about {bytes_text(size)}. Nothing was written.")
    return seconds, size


def _time_text(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _step_seconds(trainer: Trainer, phase: Phase) -> float:
    """Of a step of a phase; the first is not timed."""
    trainer.start_phase(phase)
    trainer.do_step()
    return seconds_per_call(trainer.do_step, trainer.device, TIMED)
