"""Optimizers by name, with a learning rate that is set before each step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nern.config import OptimConfig
from nern.errors import NonFiniteLossError
from nern.registry import OPTIMIZERS
from nern.training.muon import Muon

Parameters = Iterable[nn.Parameter]
LEAST_ROWS = 16  # of a matrix that Muon makes orthogonal; kernels have fewer entries
SOAP_EVERY = 10  # steps between new eigenbases
OF_THE_DEVICE = ("capturable", "fused", "foreach")  # settings that belong to a device, not to a saved state


def build_optimizer(config: OptimConfig, parameters: Parameters) -> torch.optim.Optimizer:
    """The optimizer that `config` names."""
    optimizer: torch.optim.Optimizer = OPTIMIZERS[config.optimizer_type](list(parameters), config)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Have the next step taken at this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take over a `state_dict()`, from whatever device: settings that belong to the device stay as they are, and so do those
    that the state of an earlier version lacks."""
    groups = []
    for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        settings = {key: value for key, value in own.items() if key != "params"}
        groups.append(settings | saved | {key: own[key] for key in OF_THE_DEVICE if key in own})
    optimizer.load_state_dict({**state, "param_groups": groups})
    set_rate(optimizer, float(groups[0]["lr"]))


@OPTIMIZERS.register("sgd")
def sgd(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum (plain without momentum)."""
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
    )


@OPTIMIZERS.register("adamw")
def adamw(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW."""
    return torch.optim.AdamW(parameters, config.lr, config.betas, weight_decay=config.weight_decay)


@OPTIMIZERS.register("adadelta")
def adadelta(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    """Adadelta."""
    return torch.optim.Adadelta(parameters, config.lr, weight_decay=config.weight_decay)


@OPTIMIZERS.register("ranger")
def ranger(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    """Ranger (Wright 2019), of the package pytorch-optimizer: rectified Adam (arXiv 1908.03265) with look-ahead (every 6
    steps, half-way; arXiv 1907.08610) and gradient centralisation (arXiv 2004.01461).

    While the rectification is undefined (the first steps) it takes plain momentum steps.
    """
    from pytorch_optimizer import Ranger  # type: ignore[attr-defined]  # a second to import

    optimizer: torch.optim.Optimizer = Ranger(
        list(parameters),
        config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        use_gc=config.ranger_use_gc,
        degenerated_to_sgd=True,
    )
    return optimizer


def split_matrices(parameters: Parameters) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that are matrices of at least `LEAST_ROWS` rows and columns, and all others: biases, and the layers that
    give kernels."""
    trained = [p for p in parameters if p.requires_grad]
    matrices = [p for p in trained if p.dim() == 2 and min(p.shape) >= LEAST_ROWS]
    chosen = {id(p) for p in matrices}
    return matrices, [p for p in trained if id(p) not in chosen]


@OPTIMIZERS.register("muon")
def muon(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    """Muon for hidden matrices, with `momentum`; AdamW for the rest, with `betas`. One `lr` serves both (see `Muon`)."""
    return Muon(*split_matrices(parameters), config.lr, config.momentum, config.betas, config.weight_decay)


@OPTIMIZERS.register("soap")
def soap(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv 2409.11321), of the package
    pytorch-optimizer."""
    from pytorch_optimizer import SOAP  # type: ignore[attr-defined]  # a second to import

    trained = [p for p in parameters if p.requires_grad]
    optimizer: torch.optim.Optimizer = SOAP(
        trained, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, precondition_frequency=SOAP_EVERY
    )
    return optimizer


def clip_gradients(parameters: Iterable[nn.Parameter], config: OptimConfig) -> None:
    """Limit gradient entries to `max_gradient`, then the global norm to `max_gradient_norm`, where set."""
    parameters = list(parameters)
    if config.max_gradient:
        nn.utils.clip_grad_value_(parameters, config.max_gradient)
    if config.max_gradient_norm:
        nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)


def check_gradients(named: Mapping[str, Tensor], step: int) -> None:
    """Raise NonFiniteLossError, naming the step and the parameters, if a gradient is NaN or infinite."""
    gradients = [p.grad for p in named.values() if p.grad is not None]
    if gradients and not torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum()):
        bad = [name for name, p in named.items() if p.grad is not None and not torch.isfinite(p.grad).all()]
        raise NonFiniteLossError(
            f"step {step}: the gradient of {', '.join(bad) or 'all parameters together'} is not finite, though every loss "
            "term is. A lower optim.lr may help."
        )
