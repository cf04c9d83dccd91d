"""Curvature of the outputs in the weights: what is measured, and what an error of weights counts by it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nern.objectives import curvature as module
from nern.objectives.curvature import DAMPING, Curvature, curvatures
from nern.originals.base import as_original
from nern.tasks.images import Batch


class Stream:
    steps_per_epoch = 1

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def batch(self, step: int) -> Batch:
        return self.images, None

    def share(self, step: int, processes: object) -> tuple[Batch, float]:
        return self.batch(step), 1.0


def of(network: nn.Module, images: Tensor, norms_follow: bool = False, seed: int = 0) -> list[Curvature]:
    original = as_original(network, include=["*.weight"])
    return curvatures(original, Stream(images), len(images), seed, norms_follow)


def seeded(*modules: nn.Module) -> nn.Module:
    """These modules one after the other, with weights of their own."""
    network = nn.Sequential(*modules)
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) / math.sqrt(max(p[0].numel(), 1)))
    return network.eval()


def proportional(a: Tensor, b: Tensor, rtol: float = 1e-4) -> None:
    torch.testing.assert_close(a / a.abs().max(), b / b.abs().max(), rtol=rtol, atol=rtol)


def second_moments(rows: Tensor) -> Tensor:
    """A of rows of inputs, damped."""
    a = rows.mT.double() @ rows.double() / len(rows)
    return (a + DAMPING * a.diagonal().mean() * torch.eye(len(a))).float()


LAYERS = {
    "plain": (nn.Conv2d(3, 4, 3), (3, 9, 8)),
    "padded": (nn.Conv2d(3, 4, 3, padding=1), (3, 8, 8)),
    "same, dilated": (nn.Conv2d(3, 4, (3, 2), padding="same", dilation=2), (3, 7, 8)),
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 9, 8)),
    "reflected": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 8, 7)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_inputs_of_a_convolution_are_its_patches(kind: str, rng: torch.Generator) -> None:
    layer, shape = LAYERS[kind]
    images = torch.randn(6, *shape, generator=rng)
    (found,) = of(seeded(layer, nn.Flatten()), images)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(images, layer._reversed_padding_repeated_twice, mode)
    patches = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    rows = patches.transpose(1, 2).flatten(0, 1)
    assert rows.shape[0] <= len(images) * module.PLACES
    proportional(found.inputs[0] @ found.inputs[0].mT, second_moments(rows))


def test_the_form_is_what_errors_do_to_the_outputs(rng: torch.Generator) -> None:
    """For a linear network and errors of one filter it is exact: the mean square of the change of the outputs."""
    first, second = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(16, 5, bias=False)
    network = seeded(first, nn.AdaptiveAvgPool2d(2), nn.Flatten(), second)
    images = torch.randn(4000, 3, 4, 4, generator=rng)  # four places, each one input of the last layer
    found = of(network, images)[0]
    ratios = []
    for number in range(4):
        error = torch.zeros(4, 3, 3, 3)
        error[number] = torch.randn(3, 3, 3, generator=rng)
        with torch.no_grad():
            moved = second(F.conv2d(images, error).flatten(1))
        change = (moved - moved.mean(1, keepdim=True)).square().sum(1).mean()
        ratios.append(float(found(error).square().sum() / change))
    assert max(ratios) / min(ratios) == pytest.approx(1, abs=0.15)
