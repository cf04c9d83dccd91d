"""A config made into objects: task, original network, ordering, NeRN."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nern.config import Config
from nern.devices import select_device
from nern.errors import NernError
from nern.ordering.order import Ordering
from nern.ordering.store import get_ordering
from nern.originals.base import Original
from nern.originals.build import build_original_network
from nern.registry import PREDICTORS, TASKS
from nern.representation.kernels import KernelTable
from nern.representation.nern import NeRN, build_nern
from nern.tasks.base import Task, build_task
from nern.training.run_folder import load_extra


@dataclass(frozen=True)
class Experiment:
    """Everything a config describes, built."""

    config: Config
    device: torch.device
    task: Task
    original: Original
    ordering: Ordering
    ordering_source: str
    nern: NeRN
    extra: dict[str, Tensor]


def build_original(config: Config, device: torch.device) -> Original:
    """The original network of a config, frozen, checked against the task's images and classes."""
    info = TASKS.info(config.task.task_name)
    network = build_original_network(
        config.task.original_model_name,
        config.original_model_path,
        config.task.original_model_kwargs,
        {"num_classes": info["num_classes"], "in_channels": info["input_shape"][0]},
        config.seed,
        device,
    )
    original = Original(network.to(device), config.nern.feature_maps)
    shape, classes = info["input_shape"], info["num_classes"]
    try:
        outputs = original(torch.zeros(1, *shape, device=device))
    except NernError:
        raise
    except Exception as error:
        raise NernError(
            f"{config.task.original_model_name} does not take the {shape} images of {config.task.task_name}: {error}"
        ) from error
    if not isinstance(outputs, torch.Tensor):
        raise NernError(
            f"{config.task.original_model_name} gives {type(outputs).__name__}, not a tensor of class scores"
        )
    if outputs.shape != (1, classes):
        raise NernError(
            f"{config.task.original_model_name} gives outputs of shape {tuple(outputs.shape[1:])} an image; task "
            f"{config.task.task_name} has {classes} classes"
        )
    return original


def build_experiment(config: Config, train: bool = True) -> Experiment:
    """Build what `config` describes; `train` False: without the training set.

    Raises:
        NernError: anything in the config that cannot work, before any training starts.
    """
    config.check()
    device = select_device(config)
    original = build_original(config, device)
    num_idxs = PREDICTORS.info(config.nern.method)["num_idxs"]
    table = KernelTable.of(original.weights, num_idxs)
    table.check_output_size(config.nern.output_size)
    permutations = config.nern.embeddings.permutations
    ordering, source = get_ordering(
        original.weights, permutations.permute_mode or "none", permutations.path, permutations.num_workers
    )
    nern = build_nern(config.nern, table, ordering, config.seed, device)
    extra: dict[str, Tensor] = {}
    if config.learn_fc_layer:
        extra = original.classifier()
        if config.nern.init == "checkpoint" and config.nern.checkpoint_path is not None:
            extra = {k: v.to(device) for k, v in load_extra(config.nern.checkpoint_path, extra).items()}
    task = build_task(config, device, train)
    return Experiment(config, device, task, original, ordering, source, nern, extra)
