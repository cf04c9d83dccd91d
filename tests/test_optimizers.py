"""Optimizers: rates set from outside, resumed exactly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nern.config import OptimConfig
from nern.errors import NonFiniteLossError
from nern.training.optimizers import RatedOptimizer, build_optimizer, check_gradients

SHAPES = [(3, 4), (5,), (4, 3, 3, 2), (), (2, 3, 4)]


def start(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=rng, dtype=dtype)) for shape in SHAPES]


def give_gradients(parameters: list[nn.Parameter], step: int, missing: bool = True) -> None:
    """The same for the same step; some parameters have none in some steps, and one only from the eighth on."""
    rng = torch.Generator().manual_seed(100 + step)
    for i, p in enumerate(parameters):
        gradient = torch.randn(p.shape, generator=rng, dtype=p.dtype) + 0.3 * torch.sin(p.detach())
        absent = missing and ((step % 5 == 3 and i % 2 == 1) or step == 20 or (i == 2 and step < 8))
        p.grad = None if absent else gradient


def falling(step: int) -> float:
    return 0.05 * (1 + math.cos(math.pi * min(step / 95, 1)))  # 0 at the end


# --- Ranger ------------------------------------------------------------------------------------------------------


def test_ranger_goes_on_from_the_state_of_a_run_before_0_2() -> None:
    whole, halves = start(), start()
    config = OptimConfig(optimizer_type="ranger", lr=0.1, betas=(0.9, 0.999), weight_decay=0.01)
    steps(build_optimizer(config, whole), whole, range(20))
    first = build_optimizer(config, halves)
    steps(first, halves, range(9))
    state = first.state_dict()
    names = ("params", "lr", "betas", "weight_decay", "eps", "k", "alpha", "step")
    older = {"n_sma_threshold": 5, "use_gc": True, "capturable": False}
    state["param_groups"] = [{name: group[name] for name in names} | older for group in state["param_groups"]]
    second = build_optimizer(config, halves)
    second.load_state_dict(state)
    steps(second, halves, range(9, 20))
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


# --- rates -------------------------------------------------------------------------------------------------------


def steps(optimizer: RatedOptimizer, parameters: list[nn.Parameter], which: range) -> None:
    for step in which:
        optimizer.lr = falling(step)
        give_gradients(parameters, step, missing=False)
        optimizer.step()


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_gradients_that_are_not_finite_are_seen(bad: float) -> None:
    parameters = start()
    check_gradients({str(i): p for i, p in enumerate(parameters)}, 0)  # none has a gradient
    give_gradients(parameters, 0)
    check_gradients({str(i): p for i, p in enumerate(parameters)}, 0)
    parameters[1].grad[2] = bad
    with pytest.raises(NonFiniteLossError, match="the gradient of 1 is not"):
        check_gradients({str(i): p for i, p in enumerate(parameters)}, 0)
