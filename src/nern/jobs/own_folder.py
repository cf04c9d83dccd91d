"""A fit in a folder: checkpoints, losses, and going on from where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from nern.config import Config
from nern.errors import NernError
from nern.experiment import Experiment
from nern.files import load_safetensors, save_safetensors
from nern.jobs.results import finish, kept_tensors, store_ordering, take_ordering
from nern.jobs.session import changed_keys, continue_from, resumable, run_loop, saved_run
from nern.originals.base import Original
from nern.training.interrupt import Interrupted
from nern.training.phases import check_extension, phases_of
from nern.training.run_folder import RunFolder
from nern.training.trainer import Trainer

PLACE = ("logging.log_dir", "logging.exp_name", "logging.progress")  # keys that say where a run is, not what it is
GO_ON = "call nern.fit again with this run_folder"


def train_in_folder(
    config: Config,
    original: Original,
    build: Callable[[Config], Experiment],
    path: Path,
    console: Console,
    hear: Callable[[Trainer], None],
) -> tuple[Experiment, Trainer, int | None]:
    """Train in a folder, from the first step on, or from where the run in it was.

    Args:
        config: a checked config.
        original: the network.
        build: makes it into objects.
        path: the folder.
        console: for progress.
        hear: is given the trainer before the first step.

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
        state, digest = None, {"original": original.digest()}
        if folder.state.is_file():
            state, saved = _saved(config, folder)
            if load_safetensors(folder.kept, "kept parameters of the run")[1].get("original") != digest["original"]:
                raise NernError(f"the network in {root} had other weights than this one; name another run_folder")
            take_ordering(config, folder)
        experiment = build(config)
        if state is None:
            config.with_absolute_paths().save(folder.config)
            store_ordering(experiment, folder)
            save_safetensors(folder.kept, kept_tensors(experiment), digest)
        trainer = experiment.trainer()
        if state is not None:
            check_extension(phases_of(saved, trainer.steps_per_epoch), trainer.phases, state.get("step", 0))
            continue_from(trainer, state, folder)
        with resumable(folder, GO_ON):
            trainer.rehearse()
            try:
                run_loop(trainer, config, folder, console, trainer.without_images, GO_ON, hear)
            except Interrupted as error:
                return experiment, trainer, error.signal_number
            finish(experiment, trainer, folder, trainer.original_metrics(), trainer.skipped_images())
    return experiment, trainer, None


def _saved(config: Config, folder: RunFolder) -> tuple[dict[str, Any], Config]:
    """The saved state of the run in a folder, and the config in it. Raises NernError if it has other settings."""
    saved, state, before = saved_run(folder, Config)
    keys = [key for key in changed_keys(saved.to_dict(), config.with_absolute_paths().to_dict()) if key not in PLACE]
    changed = [
        key for key in keys if not before.may_change(key) and not key.startswith("nern.embeddings.permutations.path")
    ]
    if changed:
        raise NernError(
            f"{folder.root} holds a run with other settings ({', '.join(changed)}); name another run_folder"
        )
    return state, saved
