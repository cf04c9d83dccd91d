"""Batch norms and biases fitted to other weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nern.originals import norm_fitting as module
from nern.originals.base import as_original
from nern.originals.cifar_resnet import CifarResNet
from nern.originals.norm_fitting import fitted_norms
from runs import moments

pytestmark = pytest.mark.usefixtures("rng_untouched")


@pytest.fixture
def resnet() -> nn.Module:
    """A small ResNet whose norms have statistics, weights and biases of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = CifarResNet(8, in_channels=1, widths=[4, 6, 8])
        for m in network.modules():
            if isinstance(m, nn.BatchNorm2d):
                for value in (m.weight, m.bias, m.running_mean):
                    value.data.uniform_(0.3, 1.5)
                assert m.running_var is not None
                m.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture
def many(rng: torch.Generator) -> Tensor:
    return torch.randn(48, 1, 8, 8, generator=rng)


def test_channels_get_the_moments_that_they_have_in_the_original(
    resnet: nn.Module, many: Tensor, rng: torch.Generator
) -> None:
    original = as_original(resnet)
    weights = [w * 1.4 + 0.2 * w.std() * torch.randn(w.shape, generator=rng) for w in original.weights]
    found = fitted_norms(original, weights, many)
    wanted = moments(original.network, many)
    for fits, tensors in ((False, {}), (True, found)):
        pairs = zip(wanted, moments(original.rebuild(weights, tensors), many), strict=True)
        close = [
            torch.allclose(a, b, rtol=1e-3, atol=1e-3) for want, has in pairs for a, b in zip(want, has, strict=True)
        ]
        assert all(close) if fits else not any(close)


def test_images_are_taken_in_parts(
    resnet: nn.Module, many: Tensor, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moments over all parts are those over all images; what deeper norms see differs by the parts' own moments alone."""
    original = as_original(resnet)
    weights = [w + 0.2 * w.std() * torch.randn(w.shape, generator=rng) for w in original.weights]
    whole = fitted_norms(original, weights, many)
    monkeypatch.setattr(module, "IMAGES_AT_ONCE", 12)
    parts = fitted_norms(original, weights, many)
    torch.testing.assert_close(parts["bn1.weight"], whole["bn1.weight"], rtol=1e-5, atol=1e-6)
    for name, value in parts.items():
        torch.testing.assert_close(value, whole[name], rtol=0.1, atol=0.1)
        assert name.startswith("bn1.") or not torch.equal(value, whole[name])


def test_norms_that_are_represented_or_have_no_statistics_are_left_out(
    small_cnn: Callable[..., nn.Module], images: Tensor
) -> None:
    network = small_cnn()
    original = as_original(network)
    biases = set(original.biases())
    assert (
        set(fitted_norms(original, original.weights, images)) == {"1.weight", "1.bias", "6.weight", "6.bias"} | biases
    )
    with torch.random.fork_rng(devices=[]):
        network[1] = nn.BatchNorm2d(4, track_running_stats=False)
        network[6] = nn.GroupNorm(3, 3)
    original = as_original(network)
    assert set(fitted_norms(original, original.weights, images)) == biases
    assert fitted_norms(original, original.weights, images[:0]) == {}


def test_biases_bring_back_the_means_of_channels(many: Tensor, rng: torch.Generator) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3)
        )
    original = as_original(network, include=["0.weight", "3.weight"])
    weights = [w + 0.5 * w.std() * torch.randn(w.shape, generator=rng) for w in original.weights]
    many = many + 1  # so that errors of weights move the means
    found = fitted_norms(original, weights, many)
    assert set(found) == {"0.bias", "3.bias"}

    wanted, fitted, before = (
        torch.cat([network[:1](many).mean((0, 2, 3)), network[:4](many).mean((0, 1))]).detach()
        for network in (original.network, original.rebuild(weights, found), original.rebuild(weights))
    )
    torch.testing.assert_close(fitted, wanted, rtol=1e-4, atol=1e-5)
    assert (before - wanted).abs().max() > 0.01


def test_dead_channels_stay_finite_and_the_network_is_not_changed(resnet: nn.Module, many: Tensor) -> None:
    original = as_original(resnet)
    before = {name: value.clone() for name, value in original.network.state_dict().items()}
    found = fitted_norms(original, [torch.zeros_like(w) for w in original.weights], many)
    assert all(torch.isfinite(value).all() for value in found.values())
    assert all(torch.equal(before[name], value) for name, value in original.network.state_dict().items())
    assert not any(m._forward_pre_hooks for m in original.network.modules())


def test_channels_get_the_moments_that_other_weights_give(
    resnet: nn.Module, many: Tensor, rng: torch.Generator
) -> None:
    original = as_original(resnet)
    like = [w + 0.3 * w.std() * torch.randn(w.shape, generator=rng) for w in original.weights]
    weights = [w + 0.1 * w.std() * torch.randn(w.shape, generator=rng) for w in like]
    found = fitted_norms(original, weights, many, like=like)
    wanted = moments(original.rebuild(like), many)
    for want, has in zip(wanted, moments(original.rebuild(weights, found), many), strict=True):
        torch.testing.assert_close(has, want, rtol=1e-3, atol=1e-3)
    for name, value in fitted_norms(original, like, many, like=like).items():
        torch.testing.assert_close(value, original.network.get_parameter(name).detach(), rtol=1e-5, atol=1e-5)
