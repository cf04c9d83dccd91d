"""Optimizers: rates set from outside, resumed exactly, captured where the table says so."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from nern.config import OptimConfig
from nern.errors import NonFiniteLossError
from nern.registry import OPTIMIZERS
from nern.training.optimizers import (
    RatedOptimizer,
    build_optimizer,
    check_gradients,
    clip_gradients,
    gradients_finite,
)

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


def trajectory(
    parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: range, lr: Callable[[int], float]
) -> list[list[Tensor]]:
    out = []
    for step in steps:
        give_gradients(parameters, step)
        for group in optimizer.param_groups:
            group["lr"] = lr(step)
        optimizer.step()
        out.append([p.detach().clone() for p in parameters])
    return out


def falling(step: int) -> float:
    return 0.05 * (1 + math.cos(math.pi * min(step / 95, 1)))  # 0 at the end


# --- Ranger ------------------------------------------------------------------------------------------------------


def test_ranger_centralises_rows_of_matrices_and_looks_ahead_every_sixth_step() -> None:
    p = nn.Parameter(torch.zeros(1, 4))
    optimizer = build_optimizer(OptimConfig(optimizer_type="ranger", weight_decay=0.0, betas=(0.0, 0.999)), [p])
    seen = []
    for _ in range(6):  # too few steps to rectify: plain steps of momentum, here of the gradient itself
        p.grad, optimizer.lr = torch.tensor([[1.0, 2.0, 3.0, 6.0]]), 0.1
        optimizer.step()
        seen.append(p.detach().clone())
    step = 0.1 * torch.tensor([[-2.0, -1.0, 0.0, 3.0]])  # less the mean, 3
    torch.testing.assert_close(seen[4], -5 * step)
    # The sixth is rectified; then half the way back to the start.
    steps_taken = seen[5][0, [0, 1, 3]] / -step[0, [0, 1, 3]]
    assert ((steps_taken > 2.5) & (steps_taken < 3)).all()


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


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_resumed_optimizer_continues_exactly(name: str) -> None:
    config = OptimConfig(optimizer_type=name)
    whole, halves = start(), start()
    steps(build_optimizer(config, whole), whole, range(20))
    first = build_optimizer(config, halves)
    steps(first, halves, range(9))
    state = first.state_dict()
    assert all(group["lr"] == falling(8) for group in state["param_groups"])
    second = build_optimizer(config, halves)
    second.load_state_dict(state)
    assert second.lr == falling(8)
    assert second.state_dict()["param_groups"] == state["param_groups"]
    steps(second, halves, range(9, 20))
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_what_belongs_to_the_device_is_not_loaded(name: str) -> None:
    config = OptimConfig(optimizer_type=name)
    here, there = start(), start()
    first = build_optimizer(config, here)
    steps(first, here, range(9))
    state = first.state_dict()
    for group in state["param_groups"]:  # as on a GPU
        group |= {key: True for key in ("capturable", "fused") if key in group}
    second = build_optimizer(config, there)
    for p, q in zip(here, there, strict=True):
        q.data.copy_(p)
    second.load_state_dict(copy.deepcopy(state))
    assert not second.capturable
    steps(first, here, range(9, 15))
    steps(second, there, range(9, 15))
    assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


class Own(torch.optim.Optimizer):
    """An optimizer that knows nothing of graphs."""

    def __init__(self, parameters: object) -> None:
        super().__init__(parameters, {"lr": 1.0})

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.data -= group["lr"] * p.grad


@pytest.fixture
def own() -> Iterator[str]:
    OPTIMIZERS.register("own")(lambda parameters, config: Own(parameters))
    yield "own"
    OPTIMIZERS.unregister("own")


def test_a_registered_optimizer_that_knows_nothing_of_graphs_works(own: str) -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(OptimConfig(optimizer_type=own), [p])
    p.grad, optimizer.lr = torch.ones(2), 0.25
    optimizer.step()
    assert p.tolist() == [0.75, 0.75]
    assert not optimizer.capturable
    optimizer.zero_grad()
    assert p.grad is None


# --- without waiting for the device --------------------------------------------------------------------------------


def on_device(device: str) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(shape, device=device)) for shape in SHAPES]
    for p in parameters:
        p.grad = torch.ones_like(p)
    return parameters


def updated(optimizer: RatedOptimizer, count: int = 13) -> None:
    for _ in range(count):
        optimizer.step()


FUSED = ("sgd", "adamw")
CAPTURABLE = sorted(name for name in OPTIMIZERS if OPTIMIZERS.info(name).get("capturable"))


@pytest.mark.parametrize("name", CAPTURABLE)
def test_an_update_on_a_gpu_reads_no_value(name: str) -> None:
    """Fake tensors have none: reading one raises. They can be on a GPU that is not there."""
    if name in FUSED and not torch.backends.cuda.is_built():
        pytest.skip("torch's fused kernels ask for CUDA even of fake tensors")
    with FakeTensorMode():
        optimizer = build_optimizer(OptimConfig(optimizer_type=name), on_device("cuda"))
        assert optimizer.capturable
        updated(optimizer)
        assert all(isinstance(group["lr"], float) for group in optimizer.state_dict()["param_groups"])


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
def test_torchs_fused_kernels_read_no_value_of_a_rate_in_a_tensor(make: type) -> None:
    with FakeTensorMode():
        settings = {"momentum": 0.9, "nesterov": True} if make is torch.optim.SGD else {}
        optimizer = make(on_device("cpu"), lr=0.1, fused=True, **settings)
        for group in optimizer.param_groups:
            group["lr"] = torch.zeros(())
        updated(RatedOptimizer(optimizer, 0.1))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_an_update_on_the_cpu_branches_on_no_value(name: str) -> None:
    with FakeTensorMode():
        updated(build_optimizer(OptimConfig(optimizer_type=name), on_device("cpu")))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_clipping_and_looking_for_nan_do_not_wait(device: str) -> None:
    with FakeTensorMode():
        parameters = on_device(device)
        clip_gradients(parameters, OptimConfig(max_gradient=0.5, max_gradient_norm=0.1))
        assert gradients_finite(parameters).device.type == device
        with pytest.raises(DataDependentOutputException):  # what the others would raise
            check_gradients({str(i): p for i, p in enumerate(parameters)}, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_are_seen(bad: float) -> None:
    parameters = on_device("cpu")
    parameters[0].grad = None
    assert gradients_finite(parameters).item() is True
    assert gradients_finite([]).item() is True
    parameters[1].grad[2] = bad
    assert gradients_finite(parameters).item() is False
    with pytest.raises(NonFiniteLossError, match="the gradient of 1 is not"):
        check_gradients({str(i): p for i, p in enumerate(parameters)}, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_captured_update_is_the_eager_one(name: str) -> None:
    config = OptimConfig(optimizer_type=name, max_gradient_norm=2.0, max_gradient=1.0)
    ends = []
    for captured in (False, True):
        parameters = [nn.Parameter(p.detach().cuda()) for p in start()]
        for p in parameters:
            p.grad = torch.zeros_like(p)
        optimizer = build_optimizer(config, parameters)
        graph = None
        for step in range(20):
            rng = torch.Generator().manual_seed(step)
            for p in parameters:
                p.grad.copy_(torch.randn(p.shape, generator=rng))
            optimizer.lr = falling(step)
            if captured and step == 3:
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    clip_gradients(parameters, config)
                    optimizer.step()
            if graph is None:
                clip_gradients(parameters, config)
                optimizer.step()
            else:
                graph.replay()
        ends.append([p.detach().cpu() for p in parameters])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
