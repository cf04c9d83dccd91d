"""Optimizers by name, and the one way in which training loops use them: a step in two parts.

`build_optimizer` gives a `SplitOptimizer`. The learning rate is set on it, `prepare()` is what the host does for a step,
`update()` what the device does: without waiting for the device, and, where `capturable`, without any host number that
changes from step to step, so that it can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nern.config import OptimConfig
from nern.errors import NonFiniteLossError
from nern.registry import OPTIMIZERS
from nern.training.muon import Muon
from nern.training.ranger import Ranger

Parameters = Iterable[nn.Parameter]
LEAST_ROWS = 16  # of a matrix that Muon makes orthogonal; kernels have fewer entries
SOAP_EVERY = 10  # steps between new eigenbases
OF_THE_DEVICE = ("capturable", "fused", "foreach")  # settings that belong to a device, not to a saved state


class SplitOptimizer:
    """A torch optimizer whose step is `prepare()` and `update()`.

    An optimizer with methods `prepare` and `update`, and with `capturable`, is used by them. Any other one does all in
    `update()`; it counts as capturable if its learning rates are tensors on a GPU and it was told `capturable` (SGD, which
    has no such setting: `fused`).

    A graph is captured after at least one update that was not, which makes the optimizer's state, and anew after
    `load_state_dict`. It is then replayed after each `prepare()`.

    Args:
        optimizer: what an entry of OPTIMIZERS returned.
        lr: its learning rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        self.optimizer, self.lr = optimizer, lr
        self._own: Any = optimizer if hasattr(optimizer, "prepare") and hasattr(optimizer, "update") else None

    @property
    def capturable(self) -> bool:
        """Whether `update()` may be captured in a CUDA graph."""
        if self._own is not None:
            return bool(getattr(self._own, "capturable", False))
        flag = "fused" if isinstance(self.optimizer, torch.optim.SGD) else "capturable"
        return all(
            group.get(flag, False) and isinstance(group["lr"], Tensor) and not group["lr"].is_cpu
            for group in self.optimizer.param_groups
        )

    def prepare(self) -> None:
        """The host's part of a step with the rate `lr`."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self.lr)
            else:
                group["lr"] = self.lr
        if self._own is not None:
            self._own.prepare()

    def update(self) -> None:
        """The device's part."""
        if self._own is not None:
            self._own.update()
        else:
            self.optimizer.step()

    def step(self) -> None:
        """Both."""
        self.prepare()
        self.update()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set them to 0."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """What continues a run, on whatever device."""
        state = self.optimizer.state_dict()
        return {**state, "param_groups": [{**group, "lr": self.lr} for group in state["param_groups"]]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over `state_dict()`, but for settings that belong to the device."""
        groups, own = state["param_groups"], self.optimizer.param_groups
        kept = [{key: group[key] for key in ("lr", *OF_THE_DEVICE) if key in group} for group in own]
        merged = [{**group, **kept[i]} if i < len(kept) else group for i, group in enumerate(groups)]
        self.optimizer.load_state_dict({**state, "param_groups": merged})
        self.lr = float(groups[0]["lr"])


def build_optimizer(config: OptimConfig, parameters: Parameters) -> SplitOptimizer:
    """The optimizer that `config` names."""
    return SplitOptimizer(OPTIMIZERS[config.optimizer_type](list(parameters), config), config.lr)


def for_graphs(parameters: list[nn.Parameter], *flags: str) -> dict[str, Any]:
    """The flags of torch's optimizers that let a graph capture them, where there are graphs."""
    return dict.fromkeys(flags, True) if all(p.is_cuda for p in parameters) else {}


def with_lr_on_device(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The rates as tensors that a graph reads, where the parameters are on a GPU."""
    for group in optimizer.param_groups:
        device = group["params"][0].device
        if device.type == "cuda":
            group["lr"] = torch.full((), float(group["lr"]), dtype=torch.float32, device=device)
    return optimizer


@OPTIMIZERS.register("sgd")
def sgd(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum (plain without momentum)."""
    parameters = list(parameters)
    optimizer = torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        **for_graphs(parameters, "fused"),  # the only one of its loops that reads a rate on the device
    )
    if config.momentum and optimizer.param_groups[0].get("fused"):  # which wants all buffers or none
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return with_lr_on_device(optimizer)


@OPTIMIZERS.register("adamw")
def adamw(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    """AdamW."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        **for_graphs(parameters, "capturable", "fused"),
    )
    return with_lr_on_device(optimizer)


@OPTIMIZERS.register("adadelta")
def adadelta(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    """Adadelta."""
    parameters = list(parameters)
    optimizer = torch.optim.Adadelta(
        parameters,
        lr=config.lr,
        weight_decay=config.weight_decay,
        **for_graphs(parameters, "capturable", "foreach"),
    )
    return with_lr_on_device(optimizer)


@OPTIMIZERS.register("ranger")
def ranger(parameters: Parameters, config: OptimConfig) -> torch.optim.Optimizer:
    """Ranger: rectified Adam with look-ahead (every 6 steps, half-way) and gradient centralisation.

    While the rectification is undefined (the first steps) it takes plain momentum steps.
    """
    return Ranger(parameters, config.lr, config.betas, config.weight_decay, use_gc=config.ranger_use_gc)


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
    """Limit gradient entries to `max_gradient`, then the global norm to `max_gradient_norm`, where set.
    Does not wait for the device."""
    parameters = list(parameters)
    if config.max_gradient is not None:
        nn.utils.clip_grad_value_(parameters, config.max_gradient)
    if config.max_gradient_norm is not None:
        nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)


def gradients_finite(parameters: Iterable[Tensor]) -> Tensor:
    """Whether all gradients are finite (their norms' sum, that is): a scalar on their device, to be looked at later."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.tensor(True)
    return torch.isfinite(torch.stack(torch._foreach_norm(gradients)).sum())


def check_gradients(named: Mapping[str, Tensor], step: int) -> None:
    """Raise NonFiniteLossError, naming the step and the parameters, if a gradient is NaN or infinite.
    Waits for the device."""
    if not gradients_finite(named.values()):
        bad = [name for name, p in named.items() if p.grad is not None and not torch.isfinite(p.grad).all()]
        raise NonFiniteLossError(
            f"step {step}: the gradient of {', '.join(bad) or 'all parameters together'} is not finite, though every loss "
            "term is. A lower optim.lr may help."
        )
