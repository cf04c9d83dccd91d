"""Training in 16 bits, and batches taken in parts: the results stay what they were."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nern.config import Config
from nern.objectives import Objective
from nern.originals.base import as_original
from nern.registry import DISTILLATION_LOSSES, FEATURE_MAP_LOSSES, RECONSTRUCTION_LOSSES, TASK_LOSSES
from nern.representation.kernels import KernelTable
from nern.representation.nern import build_nern
from nern.tasks.images import Batch, ImageTensors
from nern.training import step as step_module
from nern.training.members import Member
from nern.training.trainer import Trainer
from runs import LOSSES

pytestmark = pytest.mark.usefixtures("rng_untouched")

SETTINGS = LOSSES | {
    "nern.hidden_layer_size": 16,
    "nern.embeddings.enc_levels": 6,
    "nern.task_loss_weight": 0.4,
    "optim.lr": 1e-3,
    "num_iterations": 20,
}
KEYS = {
    "nern.reconstruction_loss_type": RECONSTRUCTION_LOSSES,
    "nern.attention_loss_type": FEATURE_MAP_LOSSES,
    "nern.distillation_loss_type": DISTILLATION_LOSSES,
    "nern.task_loss_type": TASK_LOSSES,
}
EVERY_LOSS = [(key, name) for key, losses in KEYS.items() for name in sorted(losses)]
ROWS = torch.tensor([0, 3, 5, 10, 20, 27, 33, 45])
MAP_BYTES = 4 * 8 * 8 * 4  # of the largest feature map of an image in the small network, in float32

Make = Callable[..., Trainer]


@pytest.fixture
def make(small_cnn: Callable[..., nn.Module]) -> Make:
    def trainer(given_task: Any = None, **settings: Any) -> Trainer:
        config = Config.from_dict(SETTINGS | settings).check()
        original = as_original(small_cnn(0))
        nern = build_nern(config.nern, KernelTable.of(original.weights), None, seed=0)
        return Trainer(config, [Member(original, given_task)], nern)

    return trainer


def batch(count: int = 8, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 8, 8, generator=rng)
    return images, torch.randint(10, (count,), generator=rng)


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    """Of all parameters of the predictor; they are cleared."""
    found = {n: p.grad.clone() for n, p in trainer.nern.predictor.named_parameters() if p.grad is not None}
    trainer.nern.zero_grad()
    return found


def parameters(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.nern.predictor.named_parameters()}


def together(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten().double() for t in tensors.values()])


@pytest.mark.parametrize(("key", "name"), EVERY_LOSS)
def test_every_loss_in_16_bits_is_nearly_that_in_float32(make: Make, key: str, name: str) -> None:
    settings = {key: name} | ({"nern.reconstruction_loss_weight": 1.0} if "reconstruction" in key else {})
    whole, lower = make(**settings), make(precision="bf16", **settings)
    losses, low = (trainer.differentiate([batch()], ROWS) for trainer in (whole, lower))
    assert set(low.terms) == {"reconstruction", "feature_maps", "distillation", "task"}
    for term, value in losses.terms.items():
        assert low.terms[term].dtype == torch.float32
        assert float(low.terms[term]) == pytest.approx(float(value), rel=0.05, abs=5e-3), term
    assert low.terms != losses.terms  # it is another arithmetic
    expected, found = gradients(whole), gradients(lower)
    assert found.keys() == expected.keys()
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in found.values())
    one, other = together(found), together(expected)
    assert float((one - other).norm()) < 0.15 * float(other.norm())


@pytest.mark.parametrize("optimizer", ["adamw", "ranger", "sgd"])
def test_training_in_16_bits_keeps_parameters_in_float32_and_lowers_the_loss(make: Make, optimizer: str) -> None:
    rate = 1e-3 if optimizer == "sgd" else 5e-3
    trainer = make(precision="bf16", **{"optim.optimizer_type": optimizer, "optim.lr": rate})
    losses = [float(trainer.train_step([batch()], None).total) for _ in range(20)]
    after = parameters(trainer)
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in after.values())
    assert any((p != p.bfloat16().float()).any() for p in after.values())


def test_evaluations_do_not_depend_on_the_precision_of_training(make: Make) -> None:
    rng = torch.Generator().manual_seed(3)
    images = torch.randint(256, (20, 1, 8, 8), generator=rng).to(torch.uint8)
    data = ImageTensors(images, torch.randint(10, (20,), generator=rng), [0.5], [0.25])
    task = SimpleNamespace(train=None, held_out=None, test=data)
    records, states, weights = [], [], []
    for precision in ("float32", "bf16"):
        trainer = make(task, precision=precision)
        trainer.differentiate([batch()], ROWS)
        trainer.nern.zero_grad()
        records.append((trainer.metrics(), trainer.assessment.of_originals()))
        states.append(parameters(trainer))
        weights.append(trainer.nern.reconstruct())
    assert torch.equal(together(states[0]), together(states[1]))  # the same predictor
    assert records[0] == records[1]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images that objectives were given at a time."""
    seen: list[int] = []
    real = Objective.of_images

    def counted(self: Objective, weights: Any, images: Tensor, *rest: Any, **named: Any) -> Any:
        seen.append(len(images))
        return real(self, weights, images, *rest, **named)

    monkeypatch.setattr(Objective, "of_images", counted)
    return seen


def at_once(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    monkeypatch.setattr(step_module, "CACHE_BYTES", images * MAP_BYTES)
    monkeypatch.setattr(step_module, "LEAST_IMAGES", 1)


BY_IMAGE = [(key, name) for key, name in EVERY_LOSS if KEYS[key].info(name).get("by_image")]
AS_A_WHOLE = [(key, name) for key, name in EVERY_LOSS if (key, name) not in BY_IMAGE and "reconstruction" not in key]


@pytest.mark.parametrize("rows", [ROWS, None], ids=["drawn", "all"])
@pytest.mark.parametrize(("key", "name"), BY_IMAGE)
def test_parts_of_a_batch_add_up_to_it(
    make: Make, monkeypatch: pytest.MonkeyPatch, sizes: list[int], key: str, name: str, rows: Tensor | None
) -> None:
    results = []
    for limit in (10**6, 3):
        at_once(monkeypatch, limit)
        trainer = make(**{key: name})
        losses = trainer.differentiate([batch()], rows)
        results.append((losses, gradients(trainer)))
    assert sizes == [8, 3, 3, 2]
    (whole, expected), (parts, found) = results
    assert parts.terms.keys() == {"reconstruction", "feature_maps", "distillation", "task"}
    torch.testing.assert_close(parts.terms, whole.terms, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.total, whole.total, rtol=1e-5, atol=1e-6)
    scale = float(together(expected).abs().max())
    assert scale > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("key", "name"), AS_A_WHOLE)
def test_losses_of_a_batch_as_a_whole_are_never_divided(
    make: Make, monkeypatch: pytest.MonkeyPatch, sizes: list[int], key: str, name: str, precision: str
) -> None:
    at_once(monkeypatch, 1)
    make(precision=precision, **{key: name}).differentiate([batch()], ROWS)
    assert sizes == [8]
    make(precision=precision, **{key: name, key.replace("type", "weight"): 0.0}).differentiate([batch()], ROWS)
    assert sizes == [8, *[2 if precision == "bf16" else 1] * len(sizes[1:])]  # without it the others are
    assert sum(sizes) == 16
