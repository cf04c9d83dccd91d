"""Kinds of networks: inspect, fit and save take each one, with equal weights, or refuse it with the same words."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import nern
from nern import Config, NernError, registry
from nern.cli import main
from nern.experiment import build_experiment
from nern.files import tensors_of

pytestmark = [  # torch's, of what is old in it
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("UserWarning", "DeprecationWarning", "FutureWarning")
]
Change = Callable[[nn.Module], Any]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.second(self.first(images.to(self.first.weight.dtype)).relu())
        return self.head(x.mean((2, 3)).to(self.head.weight.dtype)).float()


class Extra(Net):
    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.value = {"a": 1} if value is None else value

    def get_extra_state(self) -> Any:
        return self.value

    def set_extra_state(self, state: Any) -> None:
        self.value = state


class Cloning(Net):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: tensor.clone() for name, tensor in super().state_dict(*args, **kwargs).items()}


def buffer(value: Tensor, persistent: bool = True) -> Change:
    return lambda network: network.register_buffer("more", value, persistent)


def parameter(value: Tensor, grad: bool = True) -> Change:
    return lambda network: network.register_parameter("more", nn.Parameter(value, grad))


def tied(network: nn.Module) -> None:
    network.second = nn.Conv2d(3, 3, 3, padding=1)
    network.third = network.second
    network.fourth = nn.Conv2d(3, 3, 3)
    network.fourth.weight = network.second.weight


def same_data(network: nn.Module) -> None:
    network.fourth = nn.Conv2d(3, 3, 3)
    network.fourth.weight.data = network.second.weight.data


TAKEN: dict[str, Change] = {
    "plain": lambda network: None,
    "training, some frozen": lambda network: network.train().first.weight.requires_grad_(False),
    "tied": tied,
    "bfloat16": lambda network: network.to(torch.bfloat16),
    "mixed": lambda network: network.head.to(torch.float64),
    "buffers of any values": buffer(torch.tensor([float("-inf"), float("nan"), -0.0, 0.1, float("inf")])),
    "fleeting complex buffer": buffer(torch.ones(2, dtype=torch.complex64), persistent=False),
    "empty parameter": parameter(torch.zeros(0, 3)),
    "whole parameter": parameter(torch.arange(4), grad=False),
    "parametrized by what changes nothing": lambda network: parametrize.register_parametrization(
        network.first, "weight", nn.Identity()
    ),
}


class OwnTensor(torch.Tensor):
    """A class of the user's."""


REFUSED: dict[str, tuple[Change, str]] = {
    "lock": (lambda network: setattr(network, "value", threading.Lock()), "cannot be copied .*lock"),
    "weight_norm": (lambda network: parametrizations.weight_norm(network.first), "remove_parametrizations"),
    "spectral_norm": (lambda network: nn.utils.spectral_norm(network.first), "is not a parameter of Net"),
    "scripted part": (
        lambda network: setattr(network, "first", torch.jit.script(network.first)),
        "first is scripted or traced",
    ),
    "lazy part": (lambda network: setattr(network, "lazy", nn.LazyLinear(3)), "lazy.weight has no shape yet"),
    "meta part": (
        lambda network: setattr(network, "far", nn.Linear(3, 3, device="meta")),
        r"far.weight has no values \(it is on device meta\)",
    ),
    "complex parameter": (parameter(torch.ones(2, 2, dtype=torch.complex64)), "more holds torch.complex64"),
    "quantised buffer": (
        lambda network: buffer(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))(network),
        "more is sparse, quantised or wrapped",
    ),
    "parameter of a class of its own": (
        parameter(torch.ones(2, 2).as_subclass(OwnTensor)),
        "more is of a class of its own, OwnTensor; plain tensors are needed",
    ),
    "same data": (same_data, "second.weight and fourth.weight share memory"),
    "name that safetensors reserves": (
        lambda network: network.register_parameter("__metadata__", nn.Parameter(torch.ones(2))),
        "__metadata__ is no name that a file of safetensors can hold",
    ),
    "not a number": (parameter(torch.tensor([[float("nan")]])), "more of Net holds values that are not finite"),
    "statistics": (
        lambda network: setattr(network, "norm", nn.BatchNorm2d(2)) or network.norm.running_var.fill_(float("inf")),
        "norm.running_var of Net holds values that are not finite",
    ),
    "no convolutions": (
        lambda network: [delattr(network, name) for name in ("first", "second")],
        "Net has no convolutions to represent",
    ),
}


def seeded(build: Callable[[], nn.Module], change: Change = lambda network: None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        network = build()
        change(network)
        return network


def fit(network: nn.Module) -> nern.Fitted:
    return nern.fit(network, iterations=2, ratio=15.0, progress=False)


def told(call: Callable[[], Any]) -> str:
    """What the error of a call says; empty: there is none."""
    try:
        call()
    except NernError as error:
        return str(error)
    return ""


@contextmanager
def registered(build: Callable[[], nn.Module]) -> Iterator[None]:
    nern.register_original("Mine")(lambda: build())
    try:
        yield
    finally:
        registry.ORIGINALS.unregister("Mine")


def inspected(build: Callable[[], nn.Module], capsys: pytest.CaptureFixture[str]) -> str:
    """The error that `nern inspect` shows; empty: it takes the network."""
    with registered(build):
        code = main(["inspect", "Mine"])
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (code == 0) == (not shown)
    return shown[0].removeprefix("error: ") if shown else ""


def trained(build: Callable[[], nn.Module]) -> str:
    """The error that building a run of `nern train` raises; empty: it is built."""
    task = {"original_model_name": "Mine", "task_name": "digits"}
    with registered(build):
        config = Config.from_dict({"task": task, "nern.embeddings.permutations.permute_mode": "none"})
        return told(lambda: build_experiment(config))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal to the bit."""
    assert a.keys() == b.keys()
    return all(bits(a[name]) == bits(b[name]) and a[name].dtype == b[name].dtype for name in a)


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_taken_comes_back(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def build() -> nn.Module:
        return seeded(Net, TAKEN[kind])

    network = build()
    if kind in ("plain", "tied", "fleeting complex buffer"):  # one function decides for all
        assert inspected(build, capsys) == trained(build) == ""
    fitted = fit(network)
    rebuilt, own = tensors_of(fitted.network()), tensors_of(network)
    represented = [own[name] for name in fitted.original.weight_names]
    kept = {name: tensor for name, tensor in own.items() if not any(tensor is weight for weight in represented)}
    assert same({name: rebuilt[name] for name in kept}, kept)
    parameters = dict(network.named_parameters(remove_duplicate=False))
    buffers = {name: tensor for name, tensor in kept.items() if name not in parameters}
    loaded = []
    for options in (nern.PackOptions(lossless=True), None):
        nern.save(fitted, tmp_path / "a.nern", options)
        loaded.append(tensors_of(nern.load(tmp_path / "a.nern").network(build())))
        (tmp_path / "a.nern").unlink()
    assert same(loaded[0], rebuilt)
    assert same({name: loaded[1][name] for name in buffers}, buffers)
    assert loaded[1].keys() == rebuilt.keys()
    assert torch.isfinite(fitted.network()(torch.ones(1, 1, 4, 4))).all()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused_is_refused_alike(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, words = REFUSED[kind]

    def build() -> nn.Module:
        return seeded(Net, change)

    message = told(lambda: fit(build()))
    assert re.search(words, message), message
    if kind in ("lock", "weight_norm", "meta part", "same data", "statistics", "no convolutions"):
        assert plain(inspected(build, capsys)) == plain(message) == plain(trained(build))


def plain(message: str) -> str:
    return re.sub("0x[0-9a-f]+", "", message)


def test_networks_without_a_usable_state_dict_are_refused_alike(capsys: pytest.CaptureFixture[str]) -> None:
    message = told(lambda: fit(Cloning()))
    assert "its state_dict() does not hold its parameter first.weight" in message
    assert inspected(Cloning, capsys) == message == trained(Cloning)
    assert "it is scripted or traced" in told(lambda: fit(torch.jit.trace(Net().eval(), torch.ones(1, 1, 4, 4))))


@pytest.mark.parametrize("value", [{"a": 1}, torch.tensor([1.5, float("nan")]), threading.Event])
def test_extra_state_stays_with_its_module(value: Any, tmp_path: Path) -> None:
    def build() -> nn.Module:
        return seeded(lambda: Extra(value))

    fitted = fit(build())
    nern.save(fitted, tmp_path / "a.nern")
    for network in (fitted.network(), nern.load(tmp_path / "a.nern").network(build())):
        expected = build().value
        assert (
            network.value is expected or bits(network.value) == bits(expected)
            if isinstance(expected, Tensor)
            else network.value == expected
        )
