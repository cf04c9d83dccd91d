"""Made-up images: what each kind looks like, that it is a function of seed and step, and runs that need no dataset."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import nern
from nern import Config, NernError, registry
from nern.config import TaskConfig
from nern.originals import Original, as_original, build_original
from nern.randomness import generator
from nern.tasks.base import DataSettings, build_task, register_task
from nern.tasks.inversion import inverted_images
from nern.training import Interrupted, RunFolder, Trainer

CPU = torch.device("cpu")
KINDS = tuple(registry.RANDOM_IMAGES)
INVERSION = sys.modules[inverted_images.__module__]
SHAPES = [(1, 8, 8), (3, 8, 8), (1, 7, 11), (3, 13, 9)]


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
    small = {"inversion_images": 40, "inversion_steps": 10}
    return TaskConfig(**({"use_random_data": True, "random_data": kind} | small | given))


def drawer(
    kind: str, shape: tuple[int, int, int] = (3, 12, 12), seed: int = 0, **given: Any
) -> Callable[[int, torch.Generator], Tensor]:
    original = as_original(normed_network(shape[0])) if kind == "inversion" else None
    return registry.RANDOM_IMAGES[kind](shape, section(kind, **given), seed, CPU, original)


def drawn(
    kind: str, shape: tuple[int, int, int] = (3, 12, 12), count: int = 64, seed: int = 0, step: int = 0
) -> Tensor:
    return drawer(kind, shape, seed)(count, generator(seed, "test", step))


# --- every kind --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_normalised_whatever_their_shape(kind: str, shape: tuple[int, int, int]) -> None:
    images = drawn(kind, shape, count=300)
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


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_a_batch_differ(kind: str) -> None:
    images = drawn(kind, count=10).flatten(1)
    assert len(images.unique(dim=0)) > 5  # a pool may be drawn from twice


@pytest.mark.usefixtures("rng_untouched")
@pytest.mark.parametrize("kind", KINDS)
def test_images_are_a_function_of_their_generator(kind: str) -> None:
    assert torch.equal(drawn(kind), drawn(kind))
    assert not torch.equal(drawn(kind), drawn(kind, step=1))
    draw = drawer(kind)
    first, second = draw(8, generator(1)), draw(8, generator(2))
    assert torch.equal(draw(8, generator(1)), first)
    assert not torch.equal(first, second)


def original_of(kind: str) -> Original | None:
    return as_original(normed_network(1)) if kind == "inversion" else None


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
    return build_task(section(kind), settings, CPU, original=original_of(kind))


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


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_images_stay_the_same_and_are_others(kind: str) -> None:
    task = stream(kind)
    first, again = (list(task.held_out.batches(20)) for _ in range(2))
    assert [len(images) for images, _ in first] == [20, 10]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], task.train.batch(0)[0][:20])
    assert task.test is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_batch_of_an_epoch_is_short(kind: str) -> None:
    batches = stream(kind, batch_size=500).train
    assert [len(batches.batch(step)[0]) for step in range(4)] == [500, 500, 200, 500]


# --- uniform, leaves -------------------------------------------------------------------------------------


def test_uniform_noise_fills_its_range_evenly() -> None:
    images = drawn("uniform", count=500)
    assert images.min() < -1.99
    assert images.max() > 1.99
    assert images.abs().max() <= 2
    counts = torch.histc(images, bins=8, min=-2, max=2)
    assert (counts / counts.mean() - 1).abs().max() < 0.05


def radial_power(images: Tensor, bands: int = 4) -> list[float]:
    """Mean power of bands of rising frequency, the constant part left out."""
    side = images.shape[-1]
    power = torch.fft.fft2(images.double()).abs().square().mean((0, 1))
    frequencies = torch.fft.fftfreq(side)
    radius = (frequencies[:, None].square() + frequencies[None, :].square()).sqrt()
    edges = torch.linspace(0.5 / side, 0.5, bands + 1)
    return [float(power[(radius > a) & (radius <= b)].mean()) for a, b in pairwise(edges)]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_spectrum_of_leaves_falls_as_that_of_natural_images(channels: int) -> None:
    found = radial_power(drawn("leaves", (channels, 32, 32), count=100))
    assert found == sorted(found, reverse=True)
    assert found[0] > 5 * found[1]
    assert found[0] > 15 * found[3]


def test_the_spectrum_of_uniform_noise_is_flat() -> None:
    found = radial_power(drawn("uniform", (1, 32, 32), count=100))
    assert max(found) < 1.1 * min(found)


def test_leaves_differ_in_brightness_and_contrast() -> None:
    images = drawn("leaves", (1, 16, 16), count=200).flatten(1)
    assert images.mean(1).std() > 0.3
    assert images.std(1).max() > 1.5 * images.std(1).min()


def test_leaves_have_areas_of_one_colour_and_edges_between() -> None:
    steps = drawn("leaves", (1, 32, 32), count=50).diff(dim=3).abs().flatten()
    assert steps.median() < 0.45 * steps.mean()


def test_the_kinds_give_different_images() -> None:
    images = [drawn(kind) for kind in KINDS]
    assert all(not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


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
    images = inverted_images(original, start, 40, 0)
    assert images.shape == start.shape
    assert distance(original.network, images) < 0.5 * distance(original.network, start)
    more = inverted_images(original, start, 120, 0)
    assert distance(original.network, more) < distance(original.network, images)


def test_inversion_raises_the_score_of_a_class_of_each_image(start: Tensor) -> None:
    original = as_original(normed_network(3))
    images = inverted_images(original, start, 80, 0)

    def confidence(batch: Tensor) -> float:
        return float(original(batch).softmax(1).amax(1).mean())

    assert confidence(images) > confidence(start)
    assert len(original(images).argmax(1).unique()) > 1


def test_inversion_without_steps_gives_the_start(start: Tensor) -> None:
    images = inverted_images(as_original(normed_network(3)), start, 0, 0)
    torch.testing.assert_close(images, start, rtol=1e-3, atol=1e-3)  # in half precision


@pytest.mark.usefixtures("rng_untouched")
def test_inverted_images_are_made_once(start: Tensor, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = as_original(normed_network(3))
    made = inverted_images(original, start, 5, 0)
    (file,) = (cache_dir / "images").iterdir()

    def refuse(*args: Any) -> Tensor:
        raise AssertionError("made again")

    monkeypatch.setattr(INVERSION, "_invert", refuse)
    assert torch.equal(inverted_images(original, start, 5, 0), made)
    assert torch.equal(inverted_images(as_original(normed_network(3)), start, 5, 0), made)
    for changed in ({"steps": 6}, {"seed": 1}, {"start": start + 1}, {"start": start[:9]}):
        with pytest.raises(AssertionError, match="made again"):
            inverted_images(original, **({"start": start, "steps": 5, "seed": 0} | changed))
    with pytest.raises(AssertionError, match="made again"):
        inverted_images(as_original(normed_network(3, seed=1)), start, 5, 0)
    assert list((cache_dir / "images").iterdir()) == [file]


@pytest.mark.parametrize("damage", [lambda f: f.write_bytes(b""), lambda f: f.write_bytes(f.read_bytes()[:-9])])
def test_a_damaged_cache_mends_itself(start: Tensor, cache_dir: Path, damage: Callable[[Path], Any]) -> None:
    original = as_original(normed_network(3))
    made = inverted_images(original, start, 5, 0)
    (file,) = (cache_dir / "images").iterdir()
    whole = file.read_bytes()
    damage(file)
    assert torch.equal(inverted_images(original, start, 5, 0), made)
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(
    start: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").touch()
    monkeypatch.setenv("NERN_CACHE_DIR", str(tmp_path / "taken"))
    assert inverted_images(as_original(normed_network(3)), start, 2, 0).shape == start.shape


def test_inversion_leaves_the_network_alone(start: Tensor) -> None:
    original = as_original(normed_network(3))
    before = original.digest()
    inverted_images(original, start, 3, 0)
    assert original.digest() == before
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in original.network.modules())
    assert all(p.grad is None for p in original.network.parameters())
    assert not original.network.training


def test_images_are_made_in_batches(start: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    original = as_original(normed_network(3))
    monkeypatch.setattr(INVERSION, "BATCH", 20)
    images = inverted_images(original, start, 5, 0)
    assert images.shape == start.shape
    assert torch.equal(images[:20], inverted_images(original, start[:20], 5, 0))


@pytest.mark.parametrize("norm", [None, nn.GroupNorm(1, 4), nn.BatchNorm2d(4, track_running_stats=False)])
def test_inversion_needs_batch_norms_and_says_what_does_not(norm: nn.Module | None) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), *([norm] if norm else []), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(
        NernError, match=r"'inversion' needs a network with batch norms.*Sequential lacks; 'leaves' needs"
    ):
        inverted_images(as_original(network), torch.zeros(2, 1, 8, 8), 1, 0)


def test_draws_are_images_of_the_pool_shifted_and_mirrored() -> None:
    original = as_original(normed_network(1))
    draw = registry.RANDOM_IMAGES["inversion"](
        (1, 16, 16), section("inversion", inversion_images=3, inversion_steps=2), 0, CPU, original
    )
    images = draw(40, generator(0))
    contents = {tuple(sorted(image.flatten().tolist())) for image in images}
    assert len(contents) == 2  # the third is kept for the held-out set
    assert len(images.flatten(1).unique(dim=0)) == 4  # of each image itself and its mirror image
    apart = registry.RANDOM_IMAGES["inversion"](
        (1, 16, 16), section("inversion", inversion_images=3, inversion_steps=2), 0, CPU, original, held_out=True
    )(40, generator(0))
    assert {tuple(sorted(image.flatten().tolist())) for image in apart}.isdisjoint(contents)


# --- runs --------------------------------------------------------------------------------------------------------

BASE: dict[str, Any] = {
    "original_model_path": "pretrained:digits-resnet8",
    "nern.hidden_layer_size": 8,
    "nern.embeddings.enc_levels": 4,
    "nern.weights_batch_method": "random_batch",
    "nern.weights_batch_size": 64,
    "optim.lr": 5e-3,
    "task.use_random_data": True,
    "task.inversion_images": 24,
    "task.inversion_steps": 3,
    "logging.tracker": "none",
    "logging.log_interval": 1,
    "evaluation.held_out_images": 20,
    "evaluation.test_images": 0,
    "epochs": None,
    "num_iterations": 2,
    "batch_size": 8,
    "eval_epochs_interval": None,
    "loss_warmup_iterations": 0,
}


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_picture: None) -> Callable[..., Config]:
    """Makes a short run's config. No picture is drawn, and the dataset cannot be read."""
    monkeypatch.setitem(registry.TASKS._entries, "digits", None)

    def make(kind: str, **more: Any) -> Config:
        return Config.from_dict(BASE | {"task.random_data": kind, "logging.log_dir": str(tmp_path / "runs")} | more)

    return make


def train(config: Config) -> RunFolder:
    return RunFolder(nern.train(config, Console(file=io.StringIO()))["run_folder"])


@pytest.mark.usefixtures("rng_untouched")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_needs_no_dataset(kind: str, configure: Callable[..., Config]) -> None:
    folder = train(configure(kind))
    metrics = json.loads(folder.metrics.read_text())
    assert set(metrics["best"]) == {"step", "held_out"}
    assert set(metrics["best"]["held_out"]) == {"images", "agreement", "divergence"}
    assert metrics["best"]["held_out"]["images"] == 20
    losses = folder.load_state()["losses"]
    assert [record["step"] for record in losses] == [0, 1]
    assert all({"feature_maps", "distillation"} <= record.keys() for record in losses)
    assert torch.isfinite(torch.tensor(losses[-1]["total"]))
    nern.load_run(folder.root)


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, in containers of any depth."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one(kind: str, configure: Callable[..., Config]) -> None:
    config = configure(kind, num_iterations=5, eval_iterations_interval=2)
    whole = train(config)
    train_step = Trainer.train_step

    def stopping(self: Trainer, *args: Any) -> Any:
        losses = train_step(self, *args)
        if self.step == 3:
            signal.raise_signal(signal.SIGINT)
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopping)
        with pytest.raises(Interrupted, match="stopped at step 3 of 5"):
            train(config)
    folder = RunFolder(whole.root.with_name(f"{whole.root.name}-2"))
    nern.resume(folder.root, Console(file=io.StringIO()))
    first, second = whole.load_state(), folder.load_state()
    for key in first.keys() - {"config", "seconds", "step_seconds"}:
        assert same(first[key], second[key]), key


def test_other_kinds_train_other_weights(configure: Callable[..., Config]) -> None:
    found = [train(configure(kind)).load_state()["predictor"] for kind in KINDS]
    assert all(not same(a, b) for i, a in enumerate(found) for b in found[:i])


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
def test_a_run_that_cannot_make_its_images_leaves_nothing(configure: Callable[..., Config], tmp_path: Path) -> None:
    plain = {"task.original_model_name": "Plain", "original_model_path": None}
    with pytest.raises(NernError, match="'leaves' needs none"):
        train(configure("inversion", **plain))
    assert not (tmp_path / "runs").exists()
    train(configure("leaves", **plain))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task.random_data": "leaves"}, r"task\.random_data is 'leaves', but task\.use_random_data is not set"),
        ({"task.random_data": "leafs", "task.use_random_data": True}, "made-up images .*did you mean 'leaves'"),
        (
            {"task.use_random_data": True, "task.inversion_images": 0},
            r"task\.inversion_images \(=0\) must be at least 1",
        ),
        ({"task.use_random_data": True, "task.inversion_steps": -1}, r"task\.inversion_steps"),
    ],
)
def test_bad_settings_are_one_clear_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(NernError, match=message):
        Config.from_dict(values)


def test_a_kind_of_one_s_own_is_used(configure: Callable[..., Config]) -> None:
    asked: list[tuple[Any, ...]] = []

    @registry.RANDOM_IMAGES.register("grey")
    def grey(
        shape: Any, settings: TaskConfig, seed: int, device: torch.device, original: Original | None, held_out: bool
    ) -> Any:
        asked.append((tuple(shape), settings.random_data, seed, device.type, type(original), held_out))
        return lambda count, rng: torch.full((count, *shape), 0.5) + 0.1 * torch.randn(count, *shape, generator=rng)

    try:
        train(configure("grey", seed=4))
    finally:
        registry.RANDOM_IMAGES.unregister("grey")
    assert asked == [((1, 8, 8), "grey", 4, "cpu", Original, held_out) for held_out in (False, True)]


def test_images_have_the_format_that_the_network_expects() -> None:
    @register_task("anything", num_classes=5, train_images=12)
    def anything(train_kwargs: Any, test_kwargs: Any, **kwargs: Any) -> Any:
        raise AssertionError("read")

    try:
        network = normed_network(3)
        network.default_cfg = {"input_size": (3, 14, 14)}  # type: ignore[assignment]
        settings = DataSettings(batch_size=5, eval_batch_size=5, num_workers=0, seed=0, test_images=0)
        task = build_task(section("inversion", task_name="anything"), settings, CPU, original=as_original(network))
        assert task.train is not None
        assert task.train.steps_per_epoch == 3
        assert task.train.batch(0)[0].shape == (5, 3, 14, 14)
    finally:
        registry.TASKS.unregister("anything")


def test_the_network_that_ships_is_inverted(rng: torch.Generator) -> None:
    original = build_original("ResNet8", "pretrained:digits-resnet8")
    noise = torch.randn(40, 1, 8, 8, generator=rng)
    images = inverted_images(original, noise, 30, 0)
    assert distance(original.network, images) < 0.5 * distance(original.network, noise)
