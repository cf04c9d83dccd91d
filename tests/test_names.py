"""Names of parameters, modules and networks are names: no globs, wrappers, taps, markup, formulas or paths."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import nern
from nern import Config, NernError, registry
from nern.config import LoggingConfig
from nern.config.checks import check_logging
from nern.console import CleanConsole
from nern.originals import Original, as_original
from nern.originals.taps import Taps
from nern.weights_file import load_weights
from runs import same

ODD = [
    "a[0]", "w*", "x?", "a/b", "a b", "ünï", "[red]x", "#k", "module", "_orig_mod", "weight:input", "0", "$x_{$",
    "[!a]", "~", "\\", "'", '"', "{0}", "%s", "-v", "__class__x", "predictor", "A", "network", "<b>", "original0", ":smile:",
]  # fmt: skip


class Odd(nn.Module):
    """A convolution and a vector under every odd name, in an odd module."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Conv2d(1, 2, 2))
        self.own = nn.Module()
        for name in names:
            self.own.register_parameter(name, nn.Parameter(torch.randn(2, 2)))

    def forward(self, images: Tensor) -> Tensor:
        x = sum(getattr(self, name)(images) for name in self.names)
        for name in self.names:
            x = torch.einsum("nchw,cd->ndhw", x, getattr(self.own, name))
        return x.mean((2, 3))


def odd(names: list[str] = ODD, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Odd(names)


def test_networks_of_any_names_come_back(tmp_path: Path) -> None:
    network, images = odd(), torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    fitted = nern.fit(network, iterations=1, ratio=60.0, include=["*"], progress=False)
    expected = [f"{name}.weight" for name in ODD] + [f"own.{name}" for name in ODD]
    assert sorted(fitted.original.weight_names) == sorted(expected)
    nern.save(fitted, tmp_path / "odd.nern", nern.PackOptions(lossless=True))
    loaded = nern.load(tmp_path / "odd.nern").network(odd(seed=1))
    assert same(loaded.state_dict(), fitted.network().state_dict())
    assert torch.equal(loaded(images), fitted.network()(images))
    torch.save(network.state_dict(), tmp_path / "odd.pt")
    other = odd(seed=1)
    load_weights(other, tmp_path / "odd.pt")
    assert same(other.state_dict(), network.state_dict())


@pytest.mark.parametrize("name", ODD)
def test_each_name_alone_is_exact(name: str, tmp_path: Path) -> None:
    """Also beside names that it would match as a glob."""
    network = odd(list(dict.fromkeys([name, "a0", "wide", "xy", "a", "w"])))
    original = Original(network, names=[f"own.{name}", f"{name}.weight"])
    assert original.weight_names == [f"own.{name}", f"{name}.weight"]
    assert original.weights[0] is getattr(network.own, name)
    images = torch.zeros(2, 1, 5, 5)
    maps = Taps([name, f"{name}:input"])(network, images)[1]
    assert torch.equal(maps[0], getattr(network, name)(images))
    assert torch.equal(maps[1], images)
    glob = "".join(f"[{c}]" if c in "*?[" else c for c in name)
    (taken,) = as_original(network, include=[f"own.{glob}"]).weight_names
    assert taken == f"own.{name}"


def test_globs_of_the_user_are_globs() -> None:
    network = odd(["a[0]", "a0", "b"])
    assert as_original(network, include=["a[0].weight"]).weight_names == ["a0.weight"]
    assert as_original(network, include=["a[[]0].weight"]).weight_names == ["a[0].weight"]
    with pytest.raises(NernError, match=r"write 'own\.a\[\[\]0\]'"):
        as_original(odd(["a[0]", "b"]), include=["own.a[0]"])


def test_names_of_runs_stay_in_their_folder() -> None:
    for name in ("a", "a/b", "[red]x", "a*?", "...", ".hidden", "a:b", "ünï", "a/"):
        check_logging(LoggingConfig(exp_name=name))
    for name in ("..", ".", "../a", "a/../../b", "/a", "/", "", " ", "a\0"):
        with pytest.raises(NernError, match=r"logging\.exp_name .* must name a folder in logging\.log_dir"):
            check_logging(LoggingConfig(exp_name=name))


class Line(nn.Module):
    """Layers of odd names in a row; the last shares its name with a layer of the predictor."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("[red]a[0]", "w*", "module", "0", "$x_{$", "weight:input", "#k", "a/b"):
            self.add_module(name, nn.Conv2d(3 if len(list(self.children())) else 1, 3, 3, padding=1))
        self.add_module("n:input", nn.BatchNorm2d(3))
        self.layers = nn.ModuleList([nn.Linear(3, 10)])

    def forward(self, images: Tensor) -> Tensor:
        for module in list(self.children())[:-1]:
            images = module(images)
        scores: Tensor = self.layers[0](images.mean((2, 3)))
        return scores


@pytest.fixture
def line(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A registered network, with weights in a file, as an entry of `networks`."""
    nern.register_original("odd[b]*")(Line)
    torch.save(Line().state_dict(), tmp_path / "w[0].pt")
    task = {"task_name": "digits", "original_model_name": "odd[b]*"}
    yield {"original_model_path": str(tmp_path / "w[0].pt"), "task": task}
    registry.ORIGINALS.unregister("odd[b]*")


@pytest.mark.parametrize("networks", [1, 2])
def test_runs_of_any_names(networks: int, line: dict[str, Any], tmp_path: Path) -> None:
    several = {"networks": [line] * networks} if networks > 1 else line | {"learn_fc_layer": True, "learn_norms": True}
    config = Config.from_dict(
        several
        | {
            "nern": {"hidden_layer_size": 8, "embeddings.permutations.permute_mode": "none"},
            "num_iterations": 2,
            "epochs": None,
            "batch_size": 8,
            "evaluation.test_images": 8,
            "logging": {"exp_name": "g/[red]x$_{$", "log_dir": str(tmp_path), "verbose": True, "log_interval": 1},
        }
    )
    console = CleanConsole(file=io.StringIO(), width=150)
    run = Path(nern.train(config, console)["run_folder"])
    assert run == tmp_path / "g" / "[red]x$_{$"
    nern.pack(run, tmp_path / "a[0].nern", nern.PackOptions(lossless=True), console)
    assert f"run folder: {run}" in console.file.getvalue()  # type: ignore[attr-defined]
    original = torch.load(tmp_path / "w[0].pt")
    for number in range(networks):
        expected = nern.load_run(run, network=number).state_dict()
        found = nern.load(tmp_path / "a[0].nern").network(number).state_dict()
        assert expected.keys() == found.keys() == original.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name])
        assert torch.equal(found["w*.bias"], original["w*.bias"])
        assert not torch.equal(found["w*.weight"], original["w*.weight"])
    if networks == 1:
        scalars = set(EventAccumulator(str(run)).Reload().Tags()["scalars"])
        assert {"weight_norm/layers.0.weight", "weight_norm/original.layers.0.weight"} <= scalars
