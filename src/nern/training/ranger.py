"""Ranger: rectified Adam, look-ahead, gradient centralisation, in a step whose device part depends on no host number.

Rectified Adam: Liu et al. 2019, arXiv 1908.03265. Look-ahead: Zhang et al. 2019, 1907.08610. Centralisation: Yong et al.
2020, 2004.01461. Put together by Wright, 2019. The state has the names that pytorch_optimizer gives it, so either can
load the other's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nern.training.two_part import TwoPartOptimizer


class Numbers(NamedTuple):
    """What a step depends on besides tensors, on the host. `to_tensors` has the same on the device."""

    decay: float
    """Factor of the parameters: 1 - lr * weight_decay."""
    size: float
    """Factor of the mean gradient: minus the rate, rectified and corrected for the moment's start at 0."""
    rectified: float
    """1: divide by the root of the mean square; 0: too few steps yet to know it, take a momentum step."""
    floor: float
    """What is added to that root times `rectified`: eps; 1 where it is 0."""
    pull: float
    """Share of the way that the slow parameters go: alpha in every k-th step, else 0."""
    keep: float
    """1; in every k-th step 0: the parameters are replaced by the slow ones."""
    replace: float
    """1 - keep."""


def numbers_of_step(group: dict[str, Any]) -> Numbers:
    """The numbers of step `group["step"]`, counted from 1."""
    step, lr, (beta1, beta2) = group["step"], float(group["lr"]), group["betas"]
    size = lr / (1 - beta1**step)
    remaining = beta2**step
    longest = 2 / (1 - beta2) - 1  # of the averages, in steps
    length = longest - 2 * step * remaining / (1 - remaining)
    rectified = length >= group["n_sma_threshold"]
    if rectified:
        certain = (length - 4) / (longest - 4) * (length - 2) / (longest - 2) * longest / length
        size *= math.sqrt((1 - remaining) * certain)
    synchronise = step % group["k"] == 0
    return Numbers(
        decay=1 - lr * group["weight_decay"],
        size=-size,
        rectified=float(rectified),
        floor=group["eps"] if rectified else 1.0,
        pull=group["alpha"] if synchronise else 0.0,
        keep=float(not synchronise),
        replace=float(synchronise),
    )


class Ranger(TwoPartOptimizer):
    """Rectified Adam with decoupled weight decay, look-ahead and, with `use_gc`, gradients of matrices less their means.

    A step is `prepare()`, on the host, then `update()`, on the device. With `capturable`, `update()` reads the numbers of
    the step from tensors that `prepare()` fills without waiting: captured in a CUDA graph (after one update that was not,
    which makes the state), it may be replayed after each `prepare()`. Loading a state makes new tensors: capture anew.

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: factors of the means of gradients and of their squares.
        weight_decay: decoupled: times `lr`.
        eps: added to the root of the mean square.
        k: a look-ahead every so many steps.
        alpha: share of the way that the slow parameters go then.
        n_sma_threshold: until the average is over so many steps, momentum steps are taken.
        use_gc: centralise gradients.
        capturable: None: where the first parameter is not on the CPU.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.95, 0.999),
        weight_decay: float = 0.0,
        *,
        eps: float = 1e-5,
        k: int = 6,
        alpha: float = 0.5,
        n_sma_threshold: int = 5,
        use_gc: bool = True,
        capturable: bool | None = None,
    ) -> None:
        settings = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps, "k": k, "alpha": alpha}
        settings |= {"n_sma_threshold": n_sma_threshold, "use_gc": use_gc, "capturable": capturable, "step": 0}
        super().__init__(params, settings)
        if capturable is None:
            self.defaults["capturable"] = self.param_groups[0]["params"][0].device.type != "cpu"
            for group in self.param_groups:
                group["capturable"] = self.defaults["capturable"]
        self._prepared: dict[int, Numbers] = {}
        self._tensors: dict[int, list[Tensor]] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._prepared, self._tensors = {}, {}
        for group in self.param_groups:
            for name in ("n_sma_threshold", "use_gc", "capturable"):  # what a state of pytorch_optimizer lacks
                group.setdefault(name, self.defaults[name])

    def prepare(self) -> None:
        """The host's part: count the step, compute its numbers, send them to the device without waiting for it."""
        for index, group in enumerate(self.param_groups):
            group["step"] += 1
            self._prepared[index] = numbers = numbers_of_step(group)
            if group["capturable"]:
                if index not in self._tensors:
                    first = group["params"][0]
                    kind = torch.float64 if first.dtype == torch.float64 else torch.float32
                    self._tensors[index] = [torch.empty((), dtype=kind, device=first.device) for _ in numbers]
                torch._foreach_zero_(self._tensors[index])
                torch._foreach_add_(self._tensors[index], list(numbers))  # they travel as arguments of the kernel

    @torch.no_grad()
    def update(self) -> None:
        """The device's part, with the numbers of the last `prepare()`."""
        for index, group in enumerate(self.param_groups):
            p = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not p:
                continue
            states = [self._state_of(parameter) for parameter in p]
            mean, square, slow = ([s[name] for s in states] for name in ("exp_avg", "exp_avg_sq", "slow_buffer"))
            gradients = [parameter.grad for parameter in p]
            if group["use_gc"]:
                gradients = [centralised(g) for g in gradients]
            numbers = self._prepared[index]
            if group["capturable"]:
                decay, size, rectified, floor, *look_ahead = self._tensors[index]
                self._adam(group, p, gradients, mean, square, decay, size, rectified, floor)
                self._look_ahead(p, slow, *look_ahead)
                continue
            if numbers.rectified and one_kernel_can(p, mean, square):
                self._fused(group, p, gradients, mean, square, numbers)
            else:
                self._adam(group, p, gradients, mean, square, *numbers[:4])
            if numbers.replace:
                torch._foreach_lerp_(slow, p, numbers.pull)
                torch._foreach_copy_(p, slow)

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["slow_buffer"] = parameter.clone()
        return state

    def _adam(
        self,
        group: dict[str, Any],
        p: list[Tensor],
        gradients: list[Tensor],
        mean: list[Tensor],
        square: list[Tensor],
        decay: Any,  # these four are numbers, or tensors of no axes
        size: Any,
        rectified: Any,
        floor: Any,
    ) -> None:
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(mean, gradients, 1 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, gradients, gradients, 1 - beta2)
        if group["weight_decay"]:
            torch._foreach_mul_(p, decay)
        divisors = torch._foreach_sqrt(square)
        torch._foreach_mul_(divisors, rectified)
        if isinstance(floor, Tensor):
            torch._foreach_add_(divisors, floor, alpha=1)  # without alpha torch reads its value on the host
        else:
            torch._foreach_add_(divisors, floor)
        torch._foreach_addcdiv_(p, torch._foreach_mul(mean, size), divisors)

    def _look_ahead(self, p: list[Tensor], slow: list[Tensor], pull: Tensor, keep: Tensor, replace: Tensor) -> None:
        """Without a branch: other steps add and multiply by 0 and 1."""
        way = torch._foreach_sub(p, slow)
        torch._foreach_mul_(way, pull)
        torch._foreach_add_(slow, way)
        torch._foreach_mul_(p, keep)
        torch._foreach_add_(p, torch._foreach_mul(slow, replace))

    def _fused(
        self,
        group: dict[str, Any],
        p: list[Tensor],
        gradients: list[Tensor],
        mean: list[Tensor],
        square: list[Tensor],
        numbers: Numbers,
    ) -> None:
        """The same by torch's kernel for AdamW, as at an infinite step, where its own corrections are 1."""
        rate = -numbers.size
        like = [
            g if g.stride() == q.stride() else torch.empty_like(q).copy_(g) for g, q in zip(gradients, p, strict=True)
        ]
        torch._fused_adamw_(
            p,
            like,
            mean,
            square,
            [],
            [torch.tensor(math.inf)] * len(p),
            lr=rate,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=(1 - numbers.decay) / rate if rate else 0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def one_kernel_can(p: list[Tensor], mean: list[Tensor], square: list[Tensor]) -> bool:
    """Whether torch's fused kernel, which walks through memory whatever the strides, sees the same entries side by side
    (the means of a parameter with gaps have none)."""
    kind = p[0].dtype
    return all(
        q.is_cpu and q.dtype is kind and q.stride() == m.stride() == s.stride()
        for q, m, s in zip(p, mean, square, strict=True)
    )


def centralised(gradient: Tensor) -> Tensor:
    """A matrix less the mean of each row (of all axes but the first); vectors as they are."""
    if gradient.dim() < 2:
        return gradient
    return gradient - gradient.mean(tuple(range(1, gradient.dim())), keepdim=True)
