"""Ranger against pytorch_optimizer's; steps in two parts, of which the device's reads no value on the host."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from pytorch_optimizer import Ranger as TheirRanger
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException

from nern.config import OptimConfig
from nern.errors import NonFiniteLossError
from nern.registry import OPTIMIZERS
from nern.training.optimizers import (
    SplitOptimizer,
    build_optimizer,
    check_gradients,
    clip_gradients,
    gradients_finite,
)
from nern.training.ranger import Ranger

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


def theirs(parameters: list[nn.Parameter], **settings: object) -> TheirRanger:
    fixed = {"weight_decouple": True, "alpha": 0.5, "k": 6, "n_sma_threshold": 5, "degenerated_to_sgd": True}
    return TheirRanger(parameters, eps=1e-5, **fixed, **settings)


def falling(step: int) -> float:
    return 0.05 * (1 + math.cos(math.pi * min(step / 95, 1)))  # 0 at the end


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("use_gc", [False, True])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.5)])  # the last: never rectified
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_a_hundred_steps_are_those_of_pytorch_optimizer(
    capturable: bool,
    use_gc: bool,
    betas: tuple[float, float],
    weight_decay: float,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    ours, others = start(dtype), start(dtype)
    settings = {"lr": 0.1, "betas": betas, "weight_decay": weight_decay, "use_gc": use_gc}
    got = trajectory(ours, Ranger(ours, **settings, capturable=capturable), range(100), falling)
    wanted = trajectory(others, theirs(others, **settings), range(100), falling)
    for step, (a, b) in enumerate(zip(got, wanted, strict=True)):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=lambda m, step=step: f"{step}: {m}")


@pytest.mark.parametrize("capturable", [False, True])
def test_layouts_in_memory_do_not_matter(capturable: bool) -> None:
    """torch's fused kernel pairs entries by their place in memory."""
    rng = torch.Generator().manual_seed(0)
    plain = torch.randn(4, 3, 3, 2, generator=rng)
    wide = torch.randn(4, 6, generator=rng)
    laid = [
        [plain.clone(), wide[:, ::2].clone()],
        [plain.clone(memory_format=torch.channels_last), wide.clone()[:, ::2]],  # with gaps
        [plain.clone().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0), wide[:, ::2].t().contiguous().t()],
    ]
    ends = []
    for values in laid:
        parameters = [nn.Parameter(value) for value in values]
        optimizer = Ranger(parameters, 0.1, capturable=capturable)
        for step in range(14):
            give_gradients(parameters, step, missing=False)  # these lie as in `plain`
            optimizer.step()
        ends.append([p.detach() for p in parameters])
    for end in ends[1:]:
        for a, b in zip(ends[0], end, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_gradients_are_left_as_they_are() -> None:
    parameters = start()
    give_gradients(parameters, 0, missing=False)
    before = [p.grad.clone() for p in parameters]
    Ranger(parameters, 0.1).step()
    assert all(torch.equal(p.grad, g) for p, g in zip(parameters, before, strict=True))


def test_groups_have_settings_of_their_own() -> None:
    together, apart = start(), start()
    settings = [{"betas": (0.9, 0.99), "weight_decay": 0.1}, {"betas": (0.5, 0.999), "use_gc": False}]
    groups = [{"params": together[:2], **settings[0]}, {"params": together[2:], **settings[1]}]
    optimizer = Ranger(groups, 0.1)
    parts = [Ranger(apart[:2], 0.1, **settings[0]), Ranger(apart[2:], 0.1, **settings[1])]
    for step in range(8):
        give_gradients(together, step)
        give_gradients(apart, step)
        optimizer.step()
        for part in parts:
            part.step()
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


@pytest.mark.parametrize("capturable", [False, True])
def test_a_copied_and_a_resumed_ranger_continue_exactly(capturable: bool) -> None:
    whole = start()
    wanted = trajectory(whole, Ranger(whole, 0.1, capturable=capturable), range(20), falling)
    halves = start()
    first = Ranger(halves, 0.1, capturable=capturable)
    trajectory(halves, first, range(9), falling)
    copied, second = copy.deepcopy((halves, first))
    third = Ranger(halves, 0.1, capturable=capturable)
    third.load_state_dict(first.state_dict())
    for parameters, optimizer in ((copied, second), (halves, third)):
        got = trajectory(parameters, optimizer, range(9, 20), falling)
        assert all(torch.equal(a, b) for a, b in zip(got[-1], wanted[-1], strict=True))


def test_the_state_of_an_older_run_by_pytorch_optimizer_is_continued() -> None:
    whole, halves = start(torch.float64), start(torch.float64)
    settings = {"lr": 0.1, "betas": (0.9, 0.999), "weight_decay": 0.01, "use_gc": True}
    wanted = trajectory(whole, theirs(whole, **settings), range(20), falling)
    first = theirs(halves, **settings)
    trajectory(halves, first, range(9), falling)
    config = OptimConfig(optimizer_type="ranger", lr=0.1, betas=(0.9, 0.999), weight_decay=0.01)
    second = build_optimizer(config, halves)
    second.load_state_dict(first.state_dict())
    got = trajectory(halves, second.optimizer, range(9, 20), falling)
    for a, b in zip(got[-1], wanted[-1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# --- steps in two parts ------------------------------------------------------------------------------------------


def steps(optimizer: SplitOptimizer, parameters: list[nn.Parameter], which: range) -> None:
    for step in which:
        optimizer.lr = falling(step)
        give_gradients(parameters, step, missing=False)
        optimizer.prepare()
        optimizer.update()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_the_two_parts_are_a_step(name: str) -> None:
    config = OptimConfig(optimizer_type=name)
    ours, plain = start(), start()
    steps(build_optimizer(config, iter(ours)), ours, range(10))
    optimizer = OPTIMIZERS[name](plain, config)
    for step in range(10):
        give_gradients(plain, step, missing=False)
        for group in optimizer.param_groups:
            group["lr"] = falling(step)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_resumed_split_optimizer_continues_exactly(name: str) -> None:
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


def updated(optimizer: SplitOptimizer, count: int = 13) -> None:
    for _ in range(count):
        optimizer.prepare()
        optimizer.update()


FUSED = ("sgd", "adamw")
OF_OTHERS = {"soap"}  # of a package that captures no graphs


@pytest.mark.parametrize("name", sorted({*OPTIMIZERS} - OF_OTHERS))
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
        updated(SplitOptimizer(optimizer, 0.1))


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
            optimizer.prepare()
            if captured and step == 3:
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    clip_gradients(parameters, config)
                    optimizer.update()
            if graph is None:
                clip_gradients(parameters, config)
                optimizer.update()
            else:
                graph.replay()
        ends.append([p.detach().cpu() for p in parameters])
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
