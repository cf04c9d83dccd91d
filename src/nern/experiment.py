"""A config made into objects: original networks with their tasks, ordering, NeRN."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nern.config import Config, NernConfig, NetworkConfig, TaskConfig
from nern.config.imports import import_modules
from nern.devices import select_device
from nern.errors import NernError, NernWarning
from nern.naming import of_number
from nern.ordering.order import Ordering, ordering_bits
from nern.ordering.store import get_ordering, read_ordering
from nern.originals.base import Mirrored, Original
from nern.originals.build import build_original, build_original_network
from nern.originals.input_format import InputFormat
from nern.processes import ALONE, Processes
from nern.registry import PREDICTORS, TASKS
from nern.representation.kernels import KernelTable
from nern.representation.nern import NeRN, build_heads, build_nern
from nern.tasks.base import DataSettings, build_task, classes_of, format_of, network_arguments, stated_format
from nern.terminal import ordering_text, ordering_warning
from nern.training.members import Member, biases_beside, trained_beside
from nern.training.run_folder import RunFolder, load_beside
from nern.training.trainer import Trainer


@dataclass(frozen=True)
class Experiment:
    """Everything a config describes, built."""

    config: Config
    device: torch.device
    members: list[Member]
    ordering: Ordering
    ordering_source: str
    nern: NeRN
    extra: dict[str, Tensor]

    def beside(self, number: int) -> dict[str, Tensor]:
        """What was trained beside the predictor of one of the networks, counted from 0."""
        return of_number(self.extra, number, len(self.members))

    def trainer(self, processes: Processes = ALONE) -> Trainer:
        """What trains it, from the first step on."""
        return Trainer(self.config, self.members, self.nern, self.extra, processes)


def build_checked_original(network: NetworkConfig, seed: int, device: torch.device) -> Original:
    """One original network of a config, frozen, checked against its task's images and classes."""
    task, name = network.task, network.task.original_model_name
    original = build_original(
        name,
        network.original_model_path,
        task.original_model_kwargs,
        network_arguments(task),
        seed,
        device,
        network.feature_maps,
        network.include,
        network.exclude or (),
    )
    check_outputs(original, task, original.input_format, device)
    return original


def build_teachers(
    config: Config, device: torch.device, originals: Sequence[Original]
) -> list[Original | Mirrored | None]:
    """Of each original, whose outputs are distilled; None: its own. Raises NernError for `teacher.mirrored` where an
    original's inputs are no images; or see `build_teacher`."""
    teacher = build_teacher(config, device, originals[0])
    found: list[Original | Mirrored | None] = []
    for network, original in zip(config.members(), originals, strict=True):
        task, mirrored = network.task, config.teacher.mirrored
        if mirrored is None:
            mirrored = TASKS.info(task.task_name)["mirrors"] and not task.use_random_data
        shape = tuple(format_of(task, original.input_format).shape)
        if mirrored and len(shape) != 3:
            raise NernError(f"teacher.mirrored needs images, but the inputs of {task.task_name} have shape {shape}")
        found.append(Mirrored(teacher or original) if mirrored else teacher)
    return found


def build_teacher(config: Config, device: torch.device, original: Original) -> Original | None:
    """The network whose outputs are distilled, frozen; None: the original itself. It sees the original's images.

    Raises:
        NernError: it cannot be built, does not take these images or expects them normalised otherwise, or has other classes.
    """
    name, task = config.teacher.original_model_name, config.task
    if name is None:
        return None
    teacher, arguments = config.teacher, network_arguments(task)
    network = build_original_network(
        name, teacher.original_model_path, teacher.original_model_kwargs, arguments, config.seed, device
    )
    found = Original(network, feature_maps=[], include=["*"])
    check_outputs(found, replace(task, original_model_name=name), original.input_format, device)
    own, images = stated_format(task, found.input_format), format_of(task, original.input_format)
    if own is not None and (own.mean, own.std) != (images.mean, images.std):
        raise NernError(
            f"the teacher {name} expects images of mean {list(own.mean)} and std {list(own.std)}, but those of the original "
            f"have {list(images.mean)} and {list(images.std)}; choose a teacher that was trained on the same"
        )
    return found


def check_outputs(
    run: Callable[[Tensor], Any], task: TaskConfig, expected: InputFormat | None, device: torch.device
) -> None:
    """Raise NernError if what `run` gives for an image of the task is not a score for each of its classes."""
    name, classes, shape = task.original_model_name, classes_of(task), format_of(task, expected).shape
    try:
        outputs = run(torch.zeros(1, *shape, device=device))
    except NernError:
        raise
    except Exception as error:
        raise NernError(f"{name} does not take the {shape} images of {task.task_name}: {error}") from error
    if not isinstance(outputs, Tensor):
        raise NernError(f"{name} gives {type(outputs).__name__}, not a tensor of class scores")
    if outputs.shape != (1, classes):
        raise NernError(
            f"{name} gives outputs of shape {tuple(outputs.shape[1:])} an image; task {task.task_name} has {classes} classes"
        )


def data_settings(config: Config) -> DataSettings:
    """How a NeRN's training uses its data."""
    hold_out = config.evaluation.best_on == "held_out"
    return DataSettings(
        batch_size=config.batch_size,
        eval_batch_size=config.evaluation.batch_size,
        num_workers=config.num_workers,
        seed=config.seed,
        held_out_images=config.evaluation.held_out_images if hold_out else 0,
        test_images=config.evaluation.test_images,
    )


def member_names(networks: list[NetworkConfig]) -> list[str]:
    """A name for each network: architecture on task, numbered where that occurs twice."""
    names: list[str] = []
    for network in networks:
        file, colon, function = network.task.original_model_name.rpartition(":")
        name = base = f"{Path(file).name}{colon}{function} on {network.task.task_name}"  # the same from any folder
        while name in names:
            name = f"{base} ({names.count(name) + sum(n.startswith(f'{base} (') for n in names) + 1})"
        names.append(name)
    return names


def ordering_beside(config: Config) -> str | None:
    """The ordering that a checkpoint of a run was trained with, where the predictor begins with one: solved again it may be
    another. None: the file does not lie in a run folder, or its ordering is of another kind."""
    n = config.nern
    if n.init != "checkpoint" or n.checkpoint_path is None:
        return None
    file, permutations = RunFolder(Path(n.checkpoint_path).parent.parent).ordering, n.embeddings.permutations
    try:
        read_ordering(file, permutations.permute_mode or "none", permutations.metric)
    except NernError:
        return None
    return str(file)


def solved_by_the_clock(config: Config) -> bool:
    """Whether the ordering, solved again, may be another one: paths were improved for some time."""
    permutations = config.nern.embeddings.permutations
    return permutations.permute_mode not in (None, "none") and permutations.improve_seconds > 0


def kernel_table(config: NernConfig, originals: Sequence[Original]) -> KernelTable:
    """The kernels of all represented weights, as the predictor of `config` sees them."""
    return KernelTable.of_networks([o.weights for o in originals], PREDICTORS.info(config.method)["num_idxs"])


def represent(
    config: Config,
    originals: Sequence[Original],
    device: torch.device,
    processes: Processes = ALONE,
    tell: Callable[[str], None] | None = None,
) -> tuple[NeRN, Ordering, str]:
    """The NeRN that `config` describes for these networks, untrained; the ordering of their kernels, solved by the main
    process; and where that came from. `tell` is told what the ordering takes, before it is solved. Raises NernError for a
    kernel larger than a shared head's, and an ordering or a checkpoint that does not fit."""
    table, order = kernel_table(config.nern, originals), config.nern.embeddings.permutations
    build_heads(config.nern, table)  # fails before the ordering takes its time
    weights = [weight for original in originals for weight in original.weights]
    mode = order.permute_mode or "none"
    if tell is not None and ordering_bits(mode, table.shapes):
        tell(ordering_text(mode, table.shapes))
    if order.path is None and processes.main and (text := ordering_warning(mode, table.shapes)):
        warnings.warn(text, NernWarning, stacklevel=3)
    limits = order.num_workers, order.improve_seconds
    ordering, source = processes.from_main(
        lambda: get_ordering(table.views(weights), mode, order.path, *limits, order.metric)
    )
    return build_nern(config.nern, table, ordering, config.seed, device, weights), ordering, source


def _start_from_run(config: Config) -> None:
    """Put the best checkpoint of a run in the place of its folder. Raises NernError if there is none."""
    path = config.nern.checkpoint_path
    if path is None or not Path(path).expanduser().is_dir():
        return
    checkpoint = RunFolder.open(path).checkpoint("best")
    if not checkpoint.is_file():
        raise NernError(f"run {path} has no checkpoint 'best' yet: let it come to an evaluation first")
    config.nern.checkpoint_path = str(checkpoint)


def build_experiment(
    config: Config, train: bool = True, processes: Processes = ALONE, tell: Callable[[str], None] | None = None
) -> Experiment:
    """Build what `config` describes; `train` False: without the training sets. Several processes do so together: each has
    all of it, but the main one alone solves the ordering, and downloads are made once on each machine. `tell`: see
    `represent`.

    Raises:
        NernError: anything in the config that cannot work, before any training starts.
    """
    import_modules(config.imports)
    config.check()
    _start_from_run(config)
    permutations = config.nern.embeddings.permutations
    permutations.path = permutations.path or ordering_beside(config)
    device, networks = select_device(config.num_gpus, processes), config.members()
    with processes.first_here():
        originals = [build_checked_original(network, config.seed, device) for network in networks]
    nern, ordering, source = represent(config, originals, device, processes, tell)
    extra = trained_beside(originals, config)
    checkpoint = config.nern.checkpoint_path if config.nern.init == "checkpoint" else None
    if extra and checkpoint is not None:
        beside = load_beside(checkpoint, extra, biases_beside(originals))
        if beside is None and not train:
            raise NernError(
                f"{checkpoint} holds no parameters trained beside the predictor (learn_fc_layer, learn_norms)"
            )
        extra = {name: value.to(device) for name, value in (beside or extra).items()}
    settings = data_settings(config)
    teachers = build_teachers(config, device, originals) if train else [None] * len(originals)
    with processes.first_here():
        members = [
            Member(original, build_task(network.task, settings, device, train, original), name, teacher)
            for network, original, name, teacher in zip(
                networks, originals, member_names(networks), teachers, strict=True
            )
        ]
    return Experiment(config, device, members, ordering, source, nern, extra)
