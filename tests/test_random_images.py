"""Made-up images: what each kind looks like, that it is a function of seed and step, and runs that need no dataset."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from nern import Config, registry
from nern.config import TaskConfig
from nern.originals.base import Original
from nern.randomness import generator
from nern.tasks.base import DataSettings, build_task
from runs import SHORT, assert_same_result, interrupted, resume, train, without_digits

CPU = torch.device("cpu")
KINDS = tuple(registry.RANDOM_IMAGES)
SHAPES = [(1, 8, 8), (3, 13, 9)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_normalised_whatever_their_shape(kind: str, shape: tuple[int, int, int]) -> None:
    section = TaskConfig(use_random_data=True, random_data=kind)
    images = registry.RANDOM_IMAGES[kind](shape, section, 0, CPU, None)(300, generator(0, "test", 0))
    assert (images.shape, images.dtype) == ((300, *shape), torch.float32)
    assert abs(float(images.mean())) < 0.35
    assert 0.7 < float(images.std()) < 1.35
    assert float(images.abs().max()) < 3
    means, stds = images.mean((0, 2, 3)), images.std((0, 2, 3))
    assert (means.abs() < 0.5).all()
    assert (stds > 0.5).all()
    assert (images.flatten(1).std(1) > 0.02).all()  # none is of one colour
    assert len(images[:10].flatten(1).unique(dim=0)) > 5  # a pool may be drawn from twice


def stream(kind: str, seed: int) -> Any:
    sizes = {"batch_size": 50, "eval_batch_size": 20, "held_out_images": 30, "test_images": 0}
    settings = DataSettings(**sizes, num_workers=0, seed=seed)
    return build_task(TaskConfig(use_random_data=True, random_data=kind), settings, CPU)


@pytest.mark.usefixtures("rng_untouched")
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_a_function_of_seed_and_step(kind: str) -> None:
    one, again, other = (stream(kind, seed).train for seed in (1, 1, 2))
    assert one.steps_per_epoch == 24  # as many images as the training set has
    images, labels = one.batch(5)
    assert labels is None
    assert images.shape == (50, 1, 8, 8)
    assert torch.equal(one.batch(5)[0], images)
    assert torch.equal(again.batch(5)[0], images)
    assert not torch.equal(other.batch(5)[0], images)
    assert not torch.equal(one.batch(6)[0], images)
    assert not torch.equal(one.batch(5 + 24)[0], images)  # the next epoch has images of its own


BASE = SHORT | {
    "nern.weights_batch_method": "random_batch",
    "task.use_random_data": True,
    "evaluation.test_images": 0,
    "num_iterations": 3,
    "loss_warmup_iterations": 0,
}


@pytest.fixture
def of_kind(
    configure: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, no_picture: None
) -> Callable[..., Config]:
    """Makes a short run's config. No picture is drawn, and the dataset cannot be read."""
    without_digits(monkeypatch)
    return lambda kind, **more: configure({"task.random_data": kind}, **more)


@pytest.mark.usefixtures("rng_untouched")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_needs_no_dataset_and_goes_on_exactly(kind: str, of_kind: Callable[..., Config]) -> None:
    config = of_kind(kind)
    folder = train(config)
    metrics = json.loads(folder.metrics.read_text())
    assert set(metrics["best"]) == {"step", "held_out"}
    assert set(metrics["best"]["held_out"]) == {"images", "agreement", "divergence"}
    assert metrics["best"]["held_out"]["images"] == 20
    losses = folder.load_state()["losses"]
    assert all({"feature_maps", "distillation"} <= record.keys() for record in losses)
    assert_same_result(folder, resume(interrupted(config, 2)))


def test_a_kind_of_one_s_own_is_used(of_kind: Callable[..., Config]) -> None:
    asked: list[tuple[Any, ...]] = []

    @registry.RANDOM_IMAGES.register("grey")
    def grey(
        shape: Any, settings: TaskConfig, seed: int, device: torch.device, original: Original | None, held_out: bool
    ) -> Any:
        asked.append((tuple(shape), settings.random_data, seed, device.type, type(original), held_out))
        return lambda count, rng: torch.full((count, *shape), 0.5) + 0.1 * torch.randn(count, *shape, generator=rng)

    try:
        train(of_kind("grey", seed=4))
    finally:
        registry.RANDOM_IMAGES.unregister("grey")
    assert asked == [((1, 8, 8), "grey", 4, "cpu", Original, held_out) for held_out in (False, True)]
