"""Made-up images: what each kind looks like, that it is a function of seed and step, and runs that need no dataset."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nern
from nern import Config, NernError, registry
from nern.config import TaskConfig
from nern.originals import Original, as_original
from nern.randomness import generator
from nern.tasks.base import DataSettings, build_task
from nern.tasks.inversion import inverted_images
from runs import SHORT, assert_same_result, interrupted, resume, train, without_digits

CPU = torch.device("cpu")
KINDS = tuple(registry.RANDOM_IMAGES)
INVERSION = sys.modules[inverted_images.__module__]
SHAPES = [(1, 8, 8), (3, 13, 9)]


def normed_network(channels: int, seed: int = 0) -> nn.Module:
    """A small network whose batch norms have seen images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, stride=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )
        for _ in range(20):
            smooth = nn.functional.interpolate(torch.randn(16, channels, 4, 4), size=9, mode="bilinear")
            network(1.5 * smooth + 0.3)
    return network


def section(kind: str, **given: Any) -> TaskConfig:
    """A `task` section; its pool is small."""
    small = {"name": "inversion", "images": 40, "steps": 10} | given
    return TaskConfig(use_random_data=True, random_data=small if kind == "inversion" else kind)


# --- every kind --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_normalised_whatever_their_shape(kind: str, shape: tuple[int, int, int]) -> None:
    original = as_original(normed_network(shape[0])) if kind == "inversion" else None
    images = registry.RANDOM_IMAGES[kind](shape, section(kind), 0, CPU, original)(300, generator(0, "test", 0))
    assert images.shape == (300, *shape)
    assert images.dtype == torch.float32
    assert torch.isfinite(images).all()
    assert abs(float(images.mean())) < 0.35
    assert 0.7 < float(images.std()) < 1.35
    assert float(images.abs().max()) < 3
    means, stds = images.mean((0, 2, 3)), images.std((0, 2, 3))
    assert (means.abs() < 0.5).all()
    assert (stds > 0.5).all()
    assert (images.flatten(1).std(1) > 0.02).all()  # none is of one colour
    assert len(images[:10].flatten(1).unique(dim=0)) > 5  # a pool may be drawn from twice


def stream(kind: str, seed: int = 0, batch_size: int = 50, held_out: int = 30) -> Any:
    """The task of digits with images made up."""
    settings = DataSettings(
        batch_size=batch_size,
        eval_batch_size=20,
        num_workers=0,
        seed=seed,
        held_out_images=held_out,
        test_images=0,
    )
    return build_task(section(kind), settings, CPU, original=as_original(normed_network(1)))


@pytest.mark.usefixtures("rng_untouched")
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_a_function_of_seed_and_step(kind: str) -> None:
    one, again, other = (stream(kind, seed).train for seed in (1, 1, 2))
    assert one.steps_per_epoch == 24  # as many images as the training set has
    images, labels = one.batch(5)
    assert labels is None
    assert images.shape == (50, 1, 8, 8)
    one.batch(6)
    assert torch.equal(one.batch(5)[0], images)
    assert torch.equal(again.batch(5)[0], images)
    assert not torch.equal(other.batch(5)[0], images)
    assert not torch.equal(one.batch(6)[0], images)
    assert not torch.equal(one.batch(5 + 24)[0], images)  # the next epoch has images of its own


# --- inversion ---------------------------------------------------------------------------------------------------


def distance(network: nn.Module, images: Tensor) -> float:
    """Mean over the batch norms of how far mean and variance of a batch are from the running ones, in their units."""
    found: list[Tensor] = []

    def measure(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)
        mean, variance = x.mean(1), x.var(1, correction=0)
        found.append(
            ((mean - norm.running_mean) ** 2 / norm.running_var + (variance / norm.running_var - 1) ** 2).mean()
        )

    handles = [m.register_forward_pre_hook(measure) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return float(sum(found) / len(found))


@pytest.fixture
def start(rng: torch.Generator) -> Tensor:
    """Where the optimisation begins."""
    return torch.randn(30, 3, 10, 10, generator=rng)


def test_inversion_brings_the_statistics_nearer_to_those_of_the_batch_norms(start: Tensor) -> None:
    original = as_original(normed_network(3))
    before, network = original.digest(), original.network
    none, some, more = (inverted_images(original, start, steps, 0) for steps in (0, 40, 120))
    torch.testing.assert_close(none, start, rtol=1e-3, atol=1e-3)  # in half precision
    assert distance(network, some) < 0.5 * distance(network, start)
    assert distance(network, more) < distance(network, some)
    scores = [original(images).softmax(1) for images in (start, more)]
    assert scores[1].amax(1).mean() > scores[0].amax(1).mean()  # each image is of some class
    assert len(scores[1].argmax(1).unique()) > 1
    assert original.digest() == before  # the network is left alone
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())
    assert all(p.grad is None for p in network.parameters())
    assert not network.training


@pytest.mark.usefixtures("rng_untouched")
def test_inverted_images_are_made_once(start: Tensor, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = as_original(normed_network(3))
    made = inverted_images(original, start, 5, 0)
    (file,) = (cache_dir / "images").iterdir()

    def refuse(*args: Any) -> Tensor:
        raise AssertionError("made again")

    monkeypatch.setattr(INVERSION, "_invert", refuse)
    assert torch.equal(inverted_images(original, start, 5, 0), made)
    for changed in ({"steps": 6}, {"seed": 1}, {"start": start + 1}, {"start": start[:9]}):
        with pytest.raises(AssertionError, match="made again"):
            inverted_images(original, **({"start": start, "steps": 5, "seed": 0} | changed))
    with pytest.raises(AssertionError, match="made again"):
        inverted_images(as_original(normed_network(3, seed=1)), start, 5, 0)
    assert list((cache_dir / "images").iterdir()) == [file]


def test_a_damaged_cache_mends_itself(start: Tensor, cache_dir: Path) -> None:
    original = as_original(normed_network(3))
    made = inverted_images(original, start, 5, 0)
    (file,) = (cache_dir / "images").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    assert torch.equal(inverted_images(original, start, 5, 0), made)
    assert file.read_bytes() == whole


def test_draws_are_images_of_the_pool_shifted_and_mirrored() -> None:
    original = as_original(normed_network(1))
    task = section("inversion", images=3, steps=2)
    made = registry.RANDOM_IMAGES[task.random_data]
    draw = made((1, 16, 16), task, 0, CPU, original)
    images = draw(40, generator(0))
    contents = {tuple(sorted(image.flatten().tolist())) for image in images}
    assert len(contents) == 2  # the third is kept for the held-out set
    assert len(images.flatten(1).unique(dim=0)) == 4  # of each image itself and its mirror image
    apart = made((1, 16, 16), task, 0, CPU, original, held_out=True)(40, generator(0))
    assert {tuple(sorted(image.flatten().tolist())) for image in apart}.isdisjoint(contents)


# --- runs --------------------------------------------------------------------------------------------------------


BASE = SHORT | {
    "nern.weights_batch_method": "random_batch",
    "task.use_random_data": True,
    "task.inversion_images": 24,
    "task.inversion_steps": 3,
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
    assert [record["step"] for record in losses] == [0, 1, 2]
    assert all({"feature_maps", "distillation"} <= record.keys() for record in losses)
    assert torch.isfinite(torch.tensor(losses[-1]["total"]))
    nern.load_run(folder.root)
    assert_same_result(folder, resume(interrupted(config, 2)))


@pytest.fixture
def plain_network() -> Iterator[None]:
    """A registered network without batch norms."""

    @nern.register_original("Plain")
    def plain(num_classes: int = 10) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

    yield
    registry.ORIGINALS.unregister("Plain")


@pytest.mark.usefixtures("plain_network")
@pytest.mark.filterwarnings("ignore:original_model_path is not set")
def test_a_run_that_cannot_make_its_images_leaves_nothing(of_kind: Callable[..., Config], tmp_path: Path) -> None:
    plain = {"task.original_model_name": "Plain", "original_model_path": None}
    with pytest.raises(NernError, match="'leaves' needs none"):
        train(of_kind("inversion", **plain))
    assert not (tmp_path / "runs").exists()
    train(of_kind("leaves", **plain))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task.random_data": "leaves"}, r"task\.random_data is 'leaves', but task\.use_random_data is not set"),
        ({"task.random_data": "leafs", "task.use_random_data": True}, "made-up images .*did you mean 'leaves'"),
        (
            {"task.use_random_data": True, "task.inversion_images": 0},
            r"images of task\.random_data 'inversion' \(=0\) must be at least 1",
        ),
    ],
)
def test_bad_settings_are_one_clear_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(NernError, match=message):
        Config.from_dict(values)


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
