"""Losses and the objective that adds them up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nern.config import NernConfig
from nern.errors import NernError, NonFiniteLossError
from nern.objectives import Losses, Objective
from nern.originals import Original, as_original
from nern.registry import (
    DISTILLATION_LOSSES,
    FEATURE_MAP_LOSSES,
    RECONSTRUCTION_LOSSES,
    SMOOTHNESS,
    TASK_LOSSES,
)

pytestmark = pytest.mark.usefixtures("rng_untouched")

LIST_LOSSES = {
    **{name: RECONSTRUCTION_LOSSES[name] for name in RECONSTRUCTION_LOSSES},
    **{name: FEATURE_MAP_LOSSES[name] for name in FEATURE_MAP_LOSSES},
}
WEIGHT_SHAPES = [(4, 2, 3, 3), (3, 4, 1, 1)]


def randoms(shapes: list[tuple[int, ...]], seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) for shape in shapes]


# --- losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIST_LOSSES)
def test_an_exact_match_has_no_loss_and_a_finite_gradient(name: str) -> None:
    original = randoms(WEIGHT_SHAPES)
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
    original = randoms(WEIGHT_SHAPES)
    leaves = [t.clone().requires_grad_() for t in randoms(WEIGHT_SHAPES, seed=1)]
    value = LIST_LOSSES[name](original, leaves)
    value.backward()
    norm = torch.stack([leaf.grad.norm() for leaf in leaves]).norm()
    lower = LIST_LOSSES[name](original, [leaf.detach() - 1e-2 * leaf.grad / norm for leaf in leaves])
    assert 0 < float(lower) < float(value.detach())


@pytest.mark.parametrize("name", LIST_LOSSES)
def test_lists_of_different_lengths_are_an_error(name: str) -> None:
    original = randoms(WEIGHT_SHAPES)
    with pytest.raises(ValueError, match="zip"):
        LIST_LOSSES[name](original, original[:1])


def test_the_l2_loss_is_the_root_mean_squared_error_of_all_weights() -> None:
    a, b = randoms(WEIGHT_SHAPES), randoms(WEIGHT_SHAPES, seed=1)
    squares = [(x - y) ** 2 for p, q in zip(a, b, strict=True) for x, y in zip(p.flatten(), q.flatten(), strict=True)]
    assert float(RECONSTRUCTION_LOSSES["L2Loss"](a, b)) == pytest.approx(math.sqrt(sum(squares) / len(squares)))


def test_layers_weigh_equally_in_the_mse_loss() -> None:
    a = [torch.zeros(1, 1, 3, 3), torch.zeros(50, 20, 3, 3)]
    first, second = ([x + shift for x, shift in zip(a, shifts, strict=True)] for shifts in ((1, 0), (0, 1)))
    loss = RECONSTRUCTION_LOSSES["MSELoss"]
    assert float(loss(a, first)) == pytest.approx(0.5) == float(loss(a, second))


@pytest.mark.parametrize("name", sorted(FEATURE_MAP_LOSSES))
def test_feature_maps_are_compared_up_to_their_scale(name: str) -> None:
    maps = [100 * m for m in randoms([(4, 3, 5, 5), (4, 6)])]
    loss = FEATURE_MAP_LOSSES[name]
    assert float(loss(maps, [3 * m for m in maps])) < 1e-4 * float(loss(maps, randoms([(4, 3, 5, 5), (4, 6)], 1)))


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 12), st.sampled_from([0.1, 1.0, 30.0, 1e4]))
def test_divergences_are_not_negative(seed: int, count: int, classes: int, scale: float) -> None:
    p, q = (scale * t for t in randoms([(count, classes), (count, classes)], seed))
    slack = 1e-5
    stable = classes * 1e-4  # log(q + 1e-4) in place of log q lowers the minimum
    bounds = {
        "KLDivLoss": 0.0,
        "MultiStableKLDivLoss": 0.0,
        "StableKLDivLoss": -stable,
        "TempStableKLDivLoss": -4 * stable,
        "LogitsL2Loss": 0.0,
    }
    assert set(bounds) == set(DISTILLATION_LOSSES)
    for name, bound in bounds.items():
        value = DISTILLATION_LOSSES[name](p, q)
        assert value.shape == ()
        assert bound - slack <= float(value) < math.inf, name


@pytest.mark.parametrize("name", sorted(DISTILLATION_LOSSES))
def test_equal_outputs_do_not_diverge(name: str) -> None:
    (logits,) = randoms([(6, 10)])
    leaf = logits.clone().requires_grad_()
    value = DISTILLATION_LOSSES[name](logits, leaf)
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=5e-3)
    assert leaf.grad.abs().max() < 1e-3


@pytest.mark.parametrize("name", sorted(DISTILLATION_LOSSES))
def test_a_batch_twice_as_long_has_the_same_divergence(name: str) -> None:
    p, q = randoms([(6, 10), (6, 10)])
    loss = DISTILLATION_LOSSES[name]
    torch.testing.assert_close(loss(p.repeat(2, 1), q.repeat(2, 1)), loss(p, q))


def test_the_divergence_is_the_sum_over_classes() -> None:
    p, q = randoms([(3, 5), (3, 5)])
    expected = sum(
        a * math.log(a / b)
        for row, other in zip(p.softmax(1).tolist(), q.softmax(1).tolist(), strict=True)
        for a, b in zip(row, other, strict=True)
    )
    assert float(DISTILLATION_LOSSES["KLDivLoss"](p, q)) == pytest.approx(expected / 3, rel=1e-5)


def test_squared_errors_of_logits_are_the_divergence_at_high_temperature() -> None:
    p, q = (5 * t.double() for t in randoms([(3, 5), (3, 5)]))
    temperature = 1e4
    limit = temperature**2 * DISTILLATION_LOSSES["KLDivLoss"](p / temperature, q / temperature)
    assert float(DISTILLATION_LOSSES["LogitsL2Loss"](p, q)) == pytest.approx(float(limit), rel=1e-2)


def test_a_constant_added_to_all_logits_of_an_image_is_no_error() -> None:
    p, shifts = randoms([(3, 5), (3, 1)])
    assert float(DISTILLATION_LOSSES["LogitsL2Loss"](p, p + shifts)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", sorted(TASK_LOSSES))
def test_task_losses_are_single_numbers(name: str) -> None:
    (logits,) = randoms([(6, 10)])
    outputs = logits.log_softmax(1) if name == "NLLLoss" else logits
    labels = torch.arange(6)
    value = TASK_LOSSES[name](outputs, labels)
    cross_entropy = float(-logits.log_softmax(1)[torch.arange(6), labels].mean())
    expected = {"NoLoss": 0.0, "StableCELoss": pytest.approx(cross_entropy, rel=0.1)}
    assert value.shape == ()
    assert float(value) == expected.get(name, pytest.approx(cross_entropy, rel=1e-5))


# --- smoothness --------------------------------------------------------------------------------------------------


def waves(shift: float, side: int) -> Tensor:
    """Kernels that turn by `shift` from one neighbour to the next."""
    filters, channels = torch.arange(5.0).view(-1, 1, 1, 1), torch.arange(4.0).view(1, -1, 1, 1)
    phase = shift * (filters + channels)
    entries = torch.arange(float(side * side)).view(1, 1, side, side)
    return torch.cos(phase + entries)


@pytest.mark.parametrize("name", sorted(SMOOTHNESS))
@pytest.mark.parametrize("side", [1, 3])
def test_smoother_weights_have_a_larger_smoothness(name: str, side: int) -> None:
    values = []
    for shift in (0.0, 0.2, 0.8):
        measured = SMOOTHNESS[name]([waves(shift, side)])
        values.append(float(sum(measured)) if isinstance(measured, tuple) else float(measured))
    assert values == sorted(values, reverse=True)
    assert values[0] - values[2] > 0.1


def test_equal_neighbours_are_as_smooth_as_can_be() -> None:
    same = torch.ones(3, 4, 3, 3)
    pairs = 3 * 3 + 2 * 4
    cosine, l2 = SMOOTHNESS["CosineSmoothness"]([same])
    assert (float(cosine), float(l2)) == (pytest.approx(pairs), 0)
    assert float(SMOOTHNESS["L2Smoothness"]([same])) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", sorted(SMOOTHNESS))
def test_smoothness_of_equal_and_zero_kernels_can_be_differentiated(name: str) -> None:
    leaves = [torch.ones(3, 4, 3, 3), torch.zeros(2, 3, 3, 3), torch.zeros(2, 2, 1, 1), torch.ones(1, 1, 1, 1)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    measured = SMOOTHNESS[name](leaves)
    (sum(measured) if isinstance(measured, tuple) else measured).backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves if leaf.grad is not None)


# --- the objective -----------------------------------------------------------------------------------------------


@pytest.fixture
def original(small_cnn: Callable[..., nn.Module]) -> Original:
    return as_original(small_cnn())


def predicted(original: Original, seed: int = 1) -> list[Tensor]:
    return [w.requires_grad_() for w in randoms([tuple(w.shape) for w in original.weights], seed)]


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


def test_without_images_only_the_reconstruction_counts(original: Original) -> None:
    losses = Objective(config(1, 1, 1, 1), original)(predicted(original), None)
    assert set(losses.terms) == {"reconstruction"}


def test_a_reconstruction_weight_of_zero_leaves_the_term_out_of_the_sum(original: Original, images: Tensor) -> None:
    losses = Objective(config(0, 0, 1), original)(predicted(original), images)
    assert set(losses.terms) == {"reconstruction", "distillation"}
    assert float(losses.total.detach()) == float(losses.terms["distillation"].detach())


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


def test_gradients_flow_to_further_trained_parameters(original: Original, images: Tensor) -> None:
    extra = {name: p.clone().requires_grad_() for name, p in original.classifier().items()}
    objective = Objective(config(0, 0, 1), original)
    objective(predicted(original), images, extra={k: v + 0.1 for k, v in extra.items()}).total.backward()
    assert all(p.grad is not None and p.grad.any() for p in extra.values())
    assert all(p.grad is None for p in original.network.parameters())


def test_the_original_s_own_weights_have_no_loss(original: Original, images: Tensor) -> None:
    losses = Objective(config(1, 1, 1), original)(original.weights, images)
    assert float(losses.total) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("key", "name", "value"),
    [
        ("reconstruction_loss_type", "reconstruction loss", "L3Loss"),
        ("attention_loss_type", "feature-map loss", "Attention"),
        ("distillation_loss_type", "distillation loss", "KL"),
        ("task_loss_type", "task loss", "Accuracy"),
    ],
)
def test_unknown_losses_list_the_choices(original: Original, key: str, name: str, value: str) -> None:
    with pytest.raises(NernError, match=rf"unknown {name} \(nern.{key}\) '{value}'.*Choices: .*Loss"):
        Objective(replace(NernConfig(), **{key: value}), original)


# --- what is not finite ------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_step_and_term(original: Original, images: Tensor) -> None:
    weights = [w.detach().clone() for w in original.weights]
    weights[-1][0] = math.inf
    losses = Objective(config(0.5, 0, 1), original)(weights, images)
    with pytest.raises(
        NonFiniteLossError, match=r"step 17: reconstruction loss is inf, distillation loss is nan. A lower"
    ):
        losses.check_finite(17)
    with pytest.raises(
        NonFiniteLossError, match=r"step 0: .*\. The original's weights are too large: their squares must"
    ):
        losses.check_finite(0)  # nothing was learnt


def test_only_the_terms_at_fault_are_named() -> None:
    terms = {"reconstruction": torch.tensor(1.0), "distillation": torch.tensor(math.nan)}
    with pytest.raises(NonFiniteLossError) as error:
        Losses(terms, sum(terms.values())).check_finite(3)
    assert "distillation loss is nan" in str(error.value)
    assert "reconstruction" not in str(error.value)


def test_a_sum_that_overflows_is_noticed() -> None:
    terms = {"reconstruction": torch.tensor(3e38), "distillation": torch.tensor(3e38)}
    with pytest.raises(NonFiniteLossError, match="step 0: the weighted sum of the losses is inf"):
        Losses(terms, sum(terms.values())).check_finite(0)


def test_finite_losses_pass() -> None:
    Losses({"reconstruction": torch.tensor(0.0)}, torch.tensor(0.0)).check_finite(0)
