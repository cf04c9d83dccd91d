"""Optimizers by name, from torch and pytorch_optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from nern.config import OptimConfig
from nern.errors import NonFiniteLossError
from nern.registry import OPTIMIZERS

Parameters = Iterable[nn.Parameter]


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
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


@OPTIMIZERS.register("adadelta")
def adadelta(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    """Adadelta."""
    return torch.optim.Adadelta(parameters, lr=config.lr, weight_decay=config.weight_decay)


@OPTIMIZERS.register("ranger")
def ranger(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    """Ranger: rectified Adam with look-ahead (every 6 steps, half-way) and gradient centralisation.

    While the rectification is undefined (the first steps) it takes plain momentum steps.
    """
    from pytorch_optimizer import Ranger  # type: ignore[attr-defined]

    optimizer: torch.optim.Optimizer = Ranger(
        parameters,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        weight_decouple=True,
        alpha=0.5,
        k=6,
        n_sma_threshold=5,
        degenerated_to_sgd=True,
        use_gc=config.ranger_use_gc,
        eps=1e-5,
    )
    return optimizer


def clip_gradients(parameters: Iterable[nn.Parameter], config: OptimConfig) -> None:
    """Limit gradient entries to `max_gradient`, then the global norm to `max_gradient_norm`, where set."""
    parameters = list(parameters)
    if config.max_gradient is not None:
        nn.utils.clip_grad_value_(parameters, config.max_gradient)
    if config.max_gradient_norm is not None:
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
