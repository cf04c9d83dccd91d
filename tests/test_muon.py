"""Muon against a plain loop, and its part for other parameters against torch's AdamW."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nern.config import OptimConfig
from nern.training.muon import Muon
from nern.training.optimizers import build_optimizer

pytestmark = pytest.mark.usefixtures("rng_untouched")

MATRICES = [(20, 30), (30, 20), (20, 30), (16, 16)]
OTHERS = [(20,), (9, 20), (2, 3, 4), ()]


def made(shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32, seed: int = 1) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=rng, dtype=dtype)) for shape in shapes]


def give_gradients(parameters: list[nn.Parameter], step: int) -> None:
    rng = torch.Generator().manual_seed(100 + step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=rng, dtype=p.dtype) + 0.3 * p.detach().sin()


def train(optimizer: Any, parameters: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        give_gradients(parameters, step)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + step)
        optimizer.step()


def plain_newton_schulz(matrix: Tensor) -> Tensor:
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def plain_loop(parameters: list[nn.Parameter], steps: range, momentum: float, decay: float) -> None:
    """Muon as it is written down: Nesterov momentum, made orthogonal, of root mean square 0.2 for a full matrix."""
    moments = [torch.zeros_like(p) for p in parameters]
    for step in steps:
        give_gradients(parameters, step)
        lr = 0.1 / (1 + step)
        for p, moment in zip(parameters, moments, strict=True):
            assert p.grad is not None
            moment.mul_(momentum).add_(p.grad, alpha=1 - momentum)
            ahead = momentum * moment + (1 - momentum) * p.grad
            p.data.mul_(1 - lr * decay).sub_(plain_newton_schulz(ahead) * 0.2 * max(p.shape) ** 0.5, alpha=lr)


@pytest.mark.parametrize(("momentum", "decay"), [(0.95, 0.0), (0.6, 0.3), (0.0, 0.0)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_matrices_take_the_steps_of_a_plain_loop(
    momentum: float, decay: float, dtype: torch.dtype, tolerance: float
) -> None:
    ours, plain = made(MATRICES, dtype), made(MATRICES, dtype)
    optimizer = Muon(ours, [], 0.1, momentum, weight_decay=decay)
    train(optimizer, ours, range(8))
    plain_loop(plain, range(8), momentum, decay)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_other_parameters_take_the_steps_of_adamw(
    betas: tuple[float, float], decay: float, dtype: torch.dtype, tolerance: float
) -> None:
    ours, theirs = made(OTHERS, dtype), made(OTHERS, dtype)
    train(Muon([], ours, 0.1, betas=betas, weight_decay=decay), ours, range(20))
    train(torch.optim.AdamW(theirs, lr=0.1, betas=betas, weight_decay=decay), theirs, range(20))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_muon_is_made_of_the_keys_of_optim() -> None:
    config = OptimConfig(optimizer_type="muon", lr=0.3, momentum=0.7, betas=(0.4, 0.8), weight_decay=0.01)
    parameters = made([*MATRICES, *OTHERS])
    optimizer = build_optimizer(config, parameters)
    assert isinstance(optimizer, Muon)
    by_hand = made([*MATRICES, *OTHERS])
    plain = Muon(by_hand[:4], by_hand[4:], 0.3, 0.7, (0.4, 0.8), 0.01)
    for step in range(4):
        give_gradients(parameters, step)
        give_gradients(by_hand, step)
        optimizer.step()
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, by_hand, strict=True))
