"""What benchmarks measure, built from a config."""

from __future__ import annotations

import copy

import torch

from nern.config import Config, phase_batches, phase_optim
from nern.experiment import build_experiment
from nern.representation.nern import NeRN
from nern.training import Trainer

STEPS = 10**9  # of a run that does not end while it is measured
SMALL = 1e-2


def endless(config: Config, images: bool) -> Config:
    """A copy whose every step is a full one (`images`), or one of reconstruction only, as in its phases of distillation
    and reconstruction, where it has such; without images to evaluate on. The learning rate is next to nothing: with it a
    network of any depth stays finite, whatever its weights, and a step takes the same time."""
    config = copy.deepcopy(config)
    if config.by_phases:
        keys = config.phase("distillation" if images else "reconstruction")
        config.optim = phase_optim(config, keys)
        config.nern.weights_batch_method, config.nern.weights_batch_size = phase_batches(config, keys)
    config.phases, config.epochs, config.num_iterations = [], None, STEPS
    config.loss_warmup_iterations = 0 if images else STEPS
    config.optim.lr, config.optim.min_lr, config.optim.lr_scheduler_type = 1e-9, 0.0, "constant"
    config.evaluation.best_on, config.evaluation.test_images = "held_out", 0
    if not images:
        n = config.nern
        n.attention_loss_weight = n.distillation_loss_weight = n.task_loss_weight = 0.0
        n.reconstruction_loss_weight = n.reconstruction_loss_weight or 1.0
    return config


def build_trainer(config: Config, images: bool = True) -> Trainer:
    """A trainer of `config` as it is; without `images` the training images are not read."""
    return build_experiment(config, train=images).trainer()


def quieten(nern: NeRN) -> None:
    """Scale down what an untrained predictor gives: a deep network with kernels that all look alike would overflow."""
    finals = [m for name, m in nern.predictor.named_modules() if name.startswith("final_linear_layer")]
    with torch.no_grad():
        for module in finals:
            for parameter in module.parameters(recurse=False):
                parameter.mul_(SMALL)
