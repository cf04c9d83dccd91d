"""Losses and the objective that adds them up."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nern.config import NernConfig
from nern.objectives import Objective
from nern.originals.base import Original, as_original
from nern.registry import DISTILLATION_LOSSES, FEATURE_MAP_LOSSES, RECONSTRUCTION_LOSSES, TASK_LOSSES
from runs import random_weights

pytestmark = pytest.mark.usefixtures("rng_untouched")

LIST_LOSSES = {name: losses[name] for losses in (RECONSTRUCTION_LOSSES, FEATURE_MAP_LOSSES) for name in losses}
WEIGHT_SHAPES = [(4, 2, 3, 3), (3, 4, 1, 1)]


@pytest.mark.parametrize("name", LIST_LOSSES)
def test_an_exact_match_has_no_loss_and_a_finite_gradient(name: str) -> None:
    original = random_weights(WEIGHT_SHAPES)
    leaves = [t.clone().requires_grad_() for t in original]
    value = LIST_LOSSES[name](original, leaves)
    value.backward()
    assert value.shape == ()
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    for leaf in leaves:
        assert torch.isfinite(leaf.grad).all()
        assert leaf.grad.abs().max() < 1e-3


@pytest.mark.parametrize("name", LIST_LOSSES)
def test_a_difference_is_a_loss_and_descending_lowers_it(name: str) -> None:
    original = random_weights(WEIGHT_SHAPES)
    leaves = [t.clone().requires_grad_() for t in random_weights(WEIGHT_SHAPES, seed=1)]
    value = LIST_LOSSES[name](original, leaves)
    value.backward()
    norm = torch.stack([leaf.grad.norm() for leaf in leaves]).norm()
    lower = LIST_LOSSES[name](original, [leaf.detach() - 1e-2 * leaf.grad / norm for leaf in leaves])
    assert 0 < float(lower) < float(value.detach())


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 12), st.sampled_from([0.1, 1.0, 30.0, 1e4]))
def test_divergences_are_not_negative(seed: int, count: int, classes: int, scale: float) -> None:
    p, q = (scale * t for t in random_weights([(count, classes), (count, classes)], seed))
    slack = 1e-5
    stable = classes * 1e-4  # log(q + 1e-4) in place of log q lowers the minimum
    bounds = {
        "KLDivLoss": 0.0,
        "MultiStableKLDivLoss": 0.0,
        "StableKLDivLoss": -stable,
        "TempStableKLDivLoss": -4 * stable,
        "LogitsL2Loss": 0.0,
        "OutputsL2Loss": 0.0,
    }
    assert set(bounds) == set(DISTILLATION_LOSSES)
    for name, bound in bounds.items():
        value = DISTILLATION_LOSSES[name](p, q)
        assert value.shape == ()
        assert bound - slack <= float(value) < math.inf, name


@pytest.fixture
def original(small_cnn: Callable[..., nn.Module]) -> Original:
    return as_original(small_cnn())


def predicted(original: Original, seed: int = 1) -> list[Tensor]:
    return [w.requires_grad_() for w in random_weights([tuple(w.shape) for w in original.weights], seed)]


def config(reconstruction: float = 1, maps: float = 0, distillation: float = 0, task: float = 0) -> NernConfig:
    return NernConfig(
        reconstruction_loss_weight=reconstruction,
        attention_loss_weight=maps,
        distillation_loss_weight=distillation,
        task_loss_weight=task,
    )


LABELS = torch.arange(8)


@pytest.mark.parametrize("maps", [0.0, 0.5])
@pytest.mark.parametrize("distillation", [0.0, 0.25, -1.0])
@pytest.mark.parametrize("task", [0.0, 2.0])
def test_terms_take_part_if_their_weight_is_above_zero(
    original: Original, images: Tensor, maps: float, distillation: float, task: float
) -> None:
    objective = Objective(config(1, maps, distillation, task), original)
    losses = objective(predicted(original), images, LABELS)
    weights = {"reconstruction": 1, "feature_maps": maps, "distillation": distillation, "task": task}
    present = {name for name, weight in weights.items() if weight > 0}
    assert set(losses.terms) == present
    assert objective.needs_images == (len(present) > 1)
    total = sum(weights[name] * float(value.detach()) for name, value in losses.terms.items())
    assert float(losses.total.detach()) == pytest.approx(total, rel=1e-5)
    losses.check_finite(step=0)


def test_terms_are_the_losses_of_the_network_run_with_the_weights(original: Original, images: Tensor) -> None:
    weights = predicted(original)
    losses = Objective(config(1, 1, 1, 1), original)(weights, images, LABELS)
    target, target_maps = original.features(images)
    outputs, maps = original.run(weights, images, with_maps=True)
    expected = {
        "reconstruction": RECONSTRUCTION_LOSSES["L2Loss"](original.weights, weights),
        "feature_maps": FEATURE_MAP_LOSSES["L2BatchedAttentionLoss"](target_maps, maps),
        "distillation": DISTILLATION_LOSSES["KLDivLoss"](target, outputs),
        "task": TASK_LOSSES["CELoss"](outputs, LABELS),
    }
    for name, value in expected.items():
        torch.testing.assert_close(losses.terms[name], value)


@pytest.mark.parametrize("weights", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 1, 1)])
def test_gradients_flow_to_the_weights_and_never_into_the_original(
    original: Original, images: Tensor, weights: tuple[float, ...]
) -> None:
    before = {name: value.clone() for name, value in original.network.state_dict().items()}
    leaves = predicted(original)
    Objective(config(*weights), original)(leaves, images, LABELS).total.backward()
    assert all(leaf.grad is not None and leaf.grad.any() for leaf in leaves)
    for name, parameter in original.network.named_parameters():
        assert parameter.grad is None, name
        assert not parameter.requires_grad, name
    assert all(torch.equal(value, before[name]) for name, value in original.network.state_dict().items())
    assert not any(module.training for module in original.network.modules())
