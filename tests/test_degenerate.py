"""Degenerate numbers: layers of zeros, of equal kernels and of values too small for their squares."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nern
from nern.api import fit_config
from nern.config import Config
from nern.jobs import train

ITERATIONS = 100


def stack(middle: Callable[[Tensor], Tensor] | None = None) -> nn.Sequential:
    """Three convolutions, and a fourth between them whose weight is `middle` of random numbers."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3), nn.Conv2d(12, 8, 3)]
    if middle is not None:
        convolutions.append(nn.Conv2d(12, 12, 3))
        with torch.no_grad():
            convolutions[3].weight.copy_(middle(convolutions[3].weight))
    return nn.Sequential(*convolutions)


def fitted(network: nn.Module, **settings: Any) -> nern.Fitted:
    return nern.fit(network, iterations=ITERATIONS, progress=False, **settings)


@pytest.fixture(scope="module")
def ordinary() -> dict[bool, list[float]]:
    """Relative errors of the three layers by one predictor: False, beside an ordinary fourth layer; True, alone."""
    beside = fitted(stack(torch.clone))
    config = fit_config(ITERATIONS)
    config.nern.hidden_layer_size = beside.config.hidden_layer_size
    alone = nern.fit(stack(), config=config, progress=False)
    return {only: [e.relative for e in of.layer_errors()[:3]] for only, of in ((False, beside), (True, alone))}


@pytest.mark.parametrize(
    ("middle", "exact"),
    [
        (torch.zeros_like, True),
        (lambda w: w * 1e-30, True),  # its squares are zero
        (lambda w: torch.full_like(w, 1e-42), True),  # subnormal
        (lambda w: w * (torch.arange(12) % 2).view(-1, 1, 1, 1), False),  # every other filter is zero
        (lambda w: w[:, :1].expand_as(w), False),  # equal kernels
    ],
    ids=["zeros", "squares vanish", "subnormal", "zero filters", "equal kernels"],
)
def test_a_degenerate_layer_leaves_the_others_alone(
    middle: Callable[[Tensor], Tensor], exact: bool, ordinary: dict[bool, list[float]], tmp_path: Path
) -> None:
    network = stack(middle)
    found = fitted(network)
    errors = found.layer_errors()
    assert all(math.isfinite(error.rmse) for error in errors)
    for error, without in zip(errors[:3], ordinary[exact], strict=True):
        assert error.relative < without + 0.1, (error.name, error.relative, without)
    nern.save(found, tmp_path / "net.nern")
    read = nern.load(tmp_path / "net.nern").network(stack(middle))
    for rebuilt in (found.network(), read):
        weight = rebuilt[3].weight
        assert torch.isfinite(weight).all()
        assert (not weight.any()) == exact


ZERO_LAYER = """
import torch
from torch import nn


def net(num_classes=10, in_channels=1):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
    network[3].weight.data.zero_()
    return network
"""


@pytest.mark.filterwarnings("ignore:original_model_path is not set")
def test_all_phases_train_beside_a_layer_of_zeros(tmp_path: Path) -> None:
    (tmp_path / "zero.py").write_text(ZERO_LAYER)
    config = Config.of_recipe(
        "nern",
        {
            "task": {"task_name": "digits", "original_model_name": f"{tmp_path}/zero.py:net"},
            "nern": {"hidden_layer_size": 16, "embeddings.permutations.improve_seconds": 0},
            **{f"{phase}.iterations": 6 for phase in ("reconstruction", "refinement", "distillation", "quantisation")},
            "refinement.images": 32,
            "norm_images": 64,
            "batch_size": 16,
            "logging": {"exp_name": "zero", "log_dir": str(tmp_path), "progress": False},
        },
    )
    metrics = train(config)
    zero = next(layer for layer in metrics["layers"] if layer["name"] == "3.weight")
    assert zero["rmse"] == 0
    assert all(math.isfinite(layer["rmse"]) for layer in metrics["layers"])
    assert not nern.load_run(metrics["run_folder"])[3].weight.any()


def test_whole_numbers_cost_few_bytes(tmp_path: Path) -> None:
    """Statistics of batch norms that are folded are zeros and ones: in a file they must take next to nothing."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    plain = nern.save(nern.fit(network, iterations=1, progress=False), tmp_path / "a.nern").size
    network.register_buffer("zeros", torch.zeros(100_000))
    network.register_buffer("ones", torch.ones(100_000))
    with_them = nern.save(nern.fit(network, iterations=1, progress=False), tmp_path / "b.nern").size
    assert with_them - plain < 200
