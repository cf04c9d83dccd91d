"""Muon: the momentum of a matrix, made orthogonal, is its step; everything else takes steps of AdamW.

Muon: Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the scale of Liu et al. 2025, arXiv 2502.16982: a
matrix's step has the root mean square of 0.2 that AdamW's steps have, so one learning rate serves both. `torch.optim.Muon`
is not used: it iterates in bfloat16 and takes matrices only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's: singular values end near 1, not at it, in few steps
ITERATIONS = 5
STEP_RMS = 0.2
EPS_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon, with Nesterov momentum, for matrices (parameters of two axes); AdamW, with `betas`, for the others. Weight decay
    is decoupled: times `lr`."""

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8}
        groups = [{"params": list(matrices), "matrices": True}, {"params": list(others), "matrices": False}]
        super().__init__([group for group in groups if group["params"]], settings)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step with the gradients that parameters hold."""
        for group in self.param_groups:
            p = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not p:
                continue
            steps = self._orthogonal(group, p) if group["matrices"] else self._adam(group, p)
            if group["weight_decay"]:
                torch._foreach_mul_(p, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(p, torch._foreach_mul(steps, -group["lr"]))

    def _orthogonal(self, group: dict[str, Any], p: list[Tensor]) -> list[Tensor]:
        moments = self._states(p, "momentum")
        gradients = _gradients(p)
        torch._foreach_lerp_(moments, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, moments, group["momentum"])
        steps: dict[int, Tensor] = {}
        for shape in {tuple(step.shape) for step in ahead}:  # matrices of one shape go together
            numbers = [i for i, step in enumerate(ahead) if tuple(step.shape) == shape]
            made = orthogonalised(torch.stack([ahead[i] for i in numbers])) * (STEP_RMS * max(shape) ** 0.5)
            steps |= dict(zip(numbers, made.unbind(), strict=True))
        return [steps[i] for i in range(len(p))]

    def _adam(self, group: dict[str, Any], p: list[Tensor]) -> list[Tensor]:
        (beta1, beta2), gradients = group["betas"], _gradients(p)
        means, squares = self._states(p, "exp_avg"), self._states(p, "exp_avg_sq")
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        steps = self._states(p, "step")  # a parameter's own: its first gradient may come late
        torch._foreach_add_(steps, 1.0)
        counted = [[1 - torch.pow(beta, step) for step in steps] for beta in (beta1, beta2)]
        divisors = torch._foreach_sqrt(torch._foreach_div(squares, counted[1]))
        torch._foreach_add_(divisors, group["eps"])
        return list(torch._foreach_div(torch._foreach_div(means, counted[0]), divisors))

    def _states(self, p: list[Tensor], name: str) -> list[Tensor]:
        for parameter in p:
            if name not in self.state[parameter]:
                kind = torch.promote_types(parameter.dtype, torch.float32)  # counts beyond what 16 bits tell apart
                count = torch.zeros((), dtype=kind, device=parameter.device)
                self.state[parameter][name] = count if name == "step" else torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in p]


def _gradients(p: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in p if parameter.grad is not None]


def orthogonalised(matrices: Tensor) -> Tensor:
    """Of each matrix (..., rows, columns) about U V^T of its singular value decomposition, by a Newton-Schulz iteration
    whose singular values end between about 0.7 and 1.2."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + EPS_NORM)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT
