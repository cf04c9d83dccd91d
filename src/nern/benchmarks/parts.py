"""What benchmarks measure, built from a config."""

from __future__ import annotations

import copy

import torch

from nern.config import Config
from nern.devices import select_device
from nern.experiment import build_checked_original, build_experiment, joint_ordering, member_names
from nern.originals.base import Original
from nern.registry import PREDICTORS
from nern.representation.kernels import KernelTable
from nern.representation.nern import NeRN, build_heads, build_nern
from nern.training import Member, Trainer
from nern.training.phases import one_phase

STEPS = 10**9  # of a run that does not end while it is measured
SMALL = 1e-2


def endless(config: Config, images: bool) -> Config:
    """A copy whose every step is a full one (`images`), or one of reconstruction only. The learning rate is next to
    nothing: with it a network of any depth stays finite, whatever its weights, and a step takes the same time."""
    config = one_phase(config, STEPS, images)
    config.optim.lr, config.optim.min_lr, config.optim.lr_scheduler_type = 1e-9, 0.0, "constant"
    if not images:
        n = config.nern
        n.attention_loss_weight = n.distillation_loss_weight = n.task_loss_weight = 0.0
        n.reconstruction_loss_weight = n.reconstruction_loss_weight or 1.0
    return config


def without_evaluation(config: Config) -> Config:
    """A copy that reads no images but the training ones."""
    config = copy.deepcopy(config)
    config.evaluation.best_on, config.evaluation.test_images = "held_out", 0
    return config


def build_originals(config: Config) -> tuple[list[Original], torch.device]:
    """The original networks, and the device they are on."""
    device = select_device(config)
    return [build_checked_original(network, config.seed, device) for network in config.members()], device


def build_nern_of(config: Config, originals: list[Original], device: torch.device) -> NeRN:
    """The NeRN of these networks, as `build_experiment` builds it."""
    num_idxs = PREDICTORS.info(config.nern.method)["num_idxs"]
    table = KernelTable.of_networks([original.weights for original in originals], num_idxs)
    build_heads(config.nern, table)  # fails before the ordering takes its time
    weights = [w for original in originals for w in original.weights]
    ordering, _ = joint_ordering(table, weights, config)
    return build_nern(config.nern, table, ordering, config.seed, device, weights)


def build_trainer(config: Config, images: bool) -> Trainer:
    """A trainer of `config` as it is; without `images` its data are not even read."""
    config.check()
    if images:
        experiment = build_experiment(config)
        return Trainer(config, experiment.members, experiment.nern, experiment.extra)
    originals, device = build_originals(config)
    nern = build_nern_of(config, originals, device)
    names = member_names(config.members())
    return Trainer(config, [Member(o, None, name) for o, name in zip(originals, names, strict=True)], nern)


def quieten(nern: NeRN) -> None:
    """Scale down what an untrained predictor gives: a deep network with kernels that all look alike would overflow."""
    finals = [m for name, m in nern.predictor.named_modules() if name.startswith("final_linear_layer")]
    with torch.no_grad():
        for module in finals:
            for parameter in module.parameters(recurse=False):
                parameter.mul_(SMALL)
