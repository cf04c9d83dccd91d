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
