"""Names of parameters, modules and networks are names: no globs, wrappers, taps, markup, formulas or paths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nern
from nern import NernError
from nern.config import LoggingConfig
from nern.config.checks import check_logging
from nern.originals.base import Original, as_original
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
