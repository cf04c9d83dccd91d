"""Weighting of reconstruction errors: what is measured, and that every way to compare weights uses it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import nern
from nern import Config, NernError
from nern.config import NernConfig
from nern.objectives.weighting import NOISE, activations, error_roots, fisher
from nern.originals import as_original
from nern.randomness import generator
from nern.registry import RECONSTRUCTION_LOSSES, WEIGHTINGS
from nern.representation import KernelTable, build_nern
from nern.tasks.images import Batch
from nern.training import Member, Trainer

pytestmark = pytest.mark.usefixtures("rng_untouched")

Made = TypeVar("Made", bound=nn.Module)
MEASURED = sorted(set(WEIGHTINGS) - {"none"})
BASE: dict[str, Any] = {
    "nern.hidden_layer_size": 7,
    "nern.embeddings.enc_levels": 4,
    "nern.weighting_images": 12,
    "nern.attention_loss_weight": 0.0,
    "nern.distillation_loss_weight": 0.0,
    "epochs": None,
    "num_iterations": 4,
    "logging.tracker": "none",
}


def seeded(make: Callable[[], Made]) -> Made:
    """A module with weights of its own, the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


class Stream:
    """Batches of eight images, different in each step."""

    steps_per_epoch = 5

    def batch(self, step: int) -> Batch:
        return torch.randn(8, 1, 8, 8, generator=generator(7, step)), None

    def share(self, step: int, processes: object) -> tuple[Batch, float]:
        return self.batch(step), 1.0


def factors(name: str, network: nn.Module, power: float = 1.0, stream: Stream | None = None, seed: int = 0) -> Tensor:
    """Of all weights, in one piece."""
    config = NernConfig(weighting=name, weighting_power=power, weighting_images=12)
    roots = error_roots(config, as_original(network, include=["*.weight"]), stream, seed)
    assert roots is not None
    return torch.cat([root.square().flatten() for root in roots])


@pytest.fixture
def network(small_cnn: Callable[..., nn.Module]) -> nn.Module:
    """Seeded, in eval mode, without a normalisation that is represented."""
    return nn.Sequential(*[m for m in small_cnn() if not isinstance(m, nn.BatchNorm2d)]).eval()


@pytest.mark.parametrize("stream", [None, Stream()], ids=["noise", "images"])
@pytest.mark.parametrize("name", MEASURED)
def test_factors_have_mean_one_and_are_a_function_of_the_seed(
    network: nn.Module, name: str, stream: Stream | None
) -> None:
    found = factors(name, network, stream=stream)
    assert len(found) == sum(p.numel() for n, p in network.named_parameters() if n.endswith("weight"))
    assert float(found.mean()) == pytest.approx(1, rel=1e-5)
    assert bool((found >= 0).all())
    assert float(found.std()) > 0.01
    assert torch.equal(found, factors(name, network, stream=stream))
    if name != "activations" or stream is None:  # else nothing is drawn
        assert not torch.equal(found, factors(name, network, stream=stream, seed=1))


@pytest.mark.parametrize("name", MEASURED)
def test_the_power_tempers(network: nn.Module, name: str) -> None:
    whole, half = factors(name, network), factors(name, network, 0.5)
    tempered = whole.sqrt() / whole.sqrt().mean()
    torch.testing.assert_close(half, tempered, rtol=1e-4, atol=1e-5)


def test_no_weighting_or_no_power_is_none(network: nn.Module) -> None:
    original = as_original(network)
    assert error_roots(NernConfig(), original, None, 0) is None
    assert error_roots(NernConfig(weighting="fisher", weighting_power=0.0), original, None, 0) is None


LAYERS = {
    "plain": (nn.Conv2d(3, 4, 3), (3, 9, 8)),
    "padded": (nn.Conv2d(3, 4, 3, padding=1), (3, 9, 8)),
    "same, dilated": (nn.Conv2d(3, 4, (3, 2), padding="same", dilation=2), (3, 9, 8)),
    "strided, grouped": (nn.Conv2d(4, 6, 3, stride=2, groups=2, padding=1), (4, 9, 8)),
    "reflected": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (3, 9, 8)),
    "one axis": (nn.Conv1d(3, 4, 3, stride=2), (3, 9)),
    "three axes": (nn.Conv3d(2, 3, (1, 2, 3)), (2, 4, 5, 6)),
    "fully connected": (nn.Linear(5, 3), (5,)),
    "fully connected, of sequences": (nn.Linear(5, 3), (7, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_activations_are_the_mean_squares_that_each_weight_multiplies(kind: str, rng: torch.Generator) -> None:
    layer, shape = LAYERS[kind]
    images = torch.randn(5, *shape, generator=rng)
    (found,) = activations(as_original(nn.Sequential(layer), include=["*.weight"]), images, rng)
    weight = layer.weight.detach().clone()
    expected = torch.empty_like(weight)
    for index in range(weight.numel()):  # the outputs of a layer of one weight
        single = torch.zeros_like(weight).flatten()
        single[index] = 1
        arguments = {"weight": single.view_as(weight)} | (
            {} if layer.bias is None else {"bias": layer.bias.detach() * 0}
        )
        outputs = torch.func.functional_call(layer, arguments, (images,)).detach()
        axis = 1 if not isinstance(layer, nn.Linear) else -1
        of_filter = outputs.select(axis, index // weight[0].numel())
        expected.view(-1)[index] = of_filter.square().mean()
    torch.testing.assert_close(found.expand(weight.shape), expected)


def test_a_weight_whose_module_is_unknown_gets_the_mean(rng: torch.Generator) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(2, 3))
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.linear(x), self.matrix)

    images = torch.randn(4, 3, generator=rng)
    matrix, linear = activations(as_original(seeded(Other), include=["matrix", "linear.weight"]), images, rng)
    torch.testing.assert_close(linear[0], images.square().mean(0))
    torch.testing.assert_close(matrix, images.square().mean())


def test_fisher_is_the_mean_squared_derivative(rng: torch.Generator) -> None:
    linear = seeded(lambda: nn.Linear(3, 4))
    images = torch.randn(2000, 3, generator=rng)
    (found,) = fisher(as_original(nn.Sequential(linear), include=["*.weight"]), images, rng)
    p = linear(images).detach().softmax(1)
    expected = (p * (1 - p)).T @ images.square() / len(images)  # the variance of the class times the input's square
    torch.testing.assert_close(found, expected, rtol=0.2, atol=0.01)


def test_layers_tell_how_far_noise_moves_the_outputs() -> None:
    sizes = ((8, 8), (8, 8), (8, 3))
    network = seeded(lambda: nn.Sequential(*(nn.Linear(*size, bias=False) for size in sizes)))
    with torch.no_grad():
        network[2].weight *= 10
        network[1].weight *= 0.1
    found = factors("layers", network)
    first, second, third = found[0], found[64], found[-1]
    assert torch.equal(found[:64], first.expand(64))  # one number a layer
    assert second > 20 * first  # of small weights, the same error is the more of them: 0.1 ** -2, less what chance adds
    assert third < second
    assert 0 < NOISE < 1


def test_noise_needs_a_shape_and_scores_need_classes() -> None:
    odd = seeded(lambda: nn.Sequential(nn.Unflatten(1, (3, 7)), nn.Conv1d(3, 4, 3)))
    with pytest.raises(NernError, match="input_format"):
        factors("activations", odd)
    with pytest.raises(NernError, match="scores of classes"):
        factors("fisher", seeded(lambda: nn.Sequential(nn.Conv2d(1, 4, 3))))
    one_class = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 1)))
    with pytest.raises(NernError, match="no weight"):
        factors("fisher", one_class)


# --- every way to compare weights ---------------------------------------------------------------------------------


@pytest.fixture
def make(small_cnn: Callable[..., nn.Module]) -> Callable[..., Trainer]:
    """Makes a trainer of one small network, or several."""

    def trainer(networks: int = 1, **settings: Any) -> Trainer:
        config = Config.from_dict(BASE | settings)
        originals = [
            as_original(small_cnn(seed), include=["*.weight"], exclude=["1.*", "6.*"]) for seed in range(networks)
        ]
        table = KernelTable.of_networks([o.weights for o in originals], config.nern.embeddings.num_idxs)
        nern_ = build_nern(config.nern, table, None, 0, "cpu", [w for o in originals for w in o.weights])
        return Trainer(config, [Member(o, name=str(i)) for i, o in enumerate(originals)], nern_)

    return trainer


def gradients(trainer: Trainer) -> list[Tensor]:
    found = [p.grad.clone() for p in trainer.nern.predictor.parameters() if p.grad is not None]
    trainer.nern.zero_grad()
    return found


def expected_loss(trainer: Trainer, kind: str) -> Tensor:
    """Mean over the networks of the weighted loss, from whole weights."""
    predicted, begins, losses = trainer.nern.weights(), 0, []
    for member in trainer.members:
        own = range(begins, begins + len(member.original.weights))
        config = trainer.config
        roots = error_roots(config.nern, member.original, None, config.seed)
        assert roots is not None
        parts = [
            (root.square(), (predicted[i] - w).square())
            for i, root, w in zip(own, roots, member.original.weights, strict=True)
        ]
        if kind == "MSELoss":
            losses.append(torch.stack([(f * e).mean() for f, e in parts]).mean())
        else:
            losses.append(torch.cat([(f * e).flatten() for f, e in parts]).mean().sqrt())
        begins = own.stop
    return torch.stack(losses).mean()


HEADS: dict[str, dict[str, Any]] = {
    "per size": {},
    "shared": {"nern.heads": "shared", "nern.output_size": 4},
    "single weights": {"nern.method": "basic", "nern.embeddings.num_idxs": 5},
}


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("loss", sorted(RECONSTRUCTION_LOSSES))
@pytest.mark.parametrize("rows", ["all", "drawn"])
def test_all_ways_weight_alike(make: Callable[..., Trainer], rows: str, loss: str, heads: str, networks: int) -> None:
    settings = {"nern.weighting": "fisher", "nern.reconstruction_loss_type": loss, "nern.reconstruction_rows": rows}
    trainer = make(networks, **(settings | HEADS[heads]))
    every = torch.randperm(trainer.nern.table.rows, generator=torch.Generator().manual_seed(0))
    losses = trainer.differentiate(None, every if rows == "drawn" else None)
    found = gradients(trainer)
    expected = expected_loss(trainer, loss)
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(losses.terms["reconstruction"].detach(), expected.detach())
    torch.testing.assert_close(found, gradients(trainer), rtol=1e-4, atol=1e-6)


def test_weights_that_do_not_matter_are_not_followed(make: Callable[..., Trainer]) -> None:
    trainer = make(**{"nern.weighting": "layers", "nern.weighting_power": 1.0})
    assert trainer.differentiate.roots is not None
    trainer.differentiate.roots[0].zero_()
    trainer.differentiate.retarget(None)
    losses = trainer.differentiate(None, None)
    errors = zip(trainer.nern.weights(), trainer.differentiate.roots, trainer.members[0].original.weights, strict=True)
    parts = [((p - w) * root).square().flatten() for p, root, w in errors]
    assert float(parts[0].detach().sum()) == 0
    torch.testing.assert_close(losses.total, torch.cat(parts).mean().sqrt().detach(), check_dtype=False)


def test_off_is_what_was_before(make: Callable[..., Trainer]) -> None:
    off, zero = make(), make(**{"nern.weighting": "fisher", "nern.weighting_power": 0.0})
    assert off.differentiate.roots is zero.differentiate.roots is None
    assert all(a is b for a, b in zip(off.differentiate.targets, off.members[0].original.weights, strict=True))


def test_fit_works_without_data(small_cnn: Callable[..., nn.Module]) -> None:
    config = Config.from_dict(BASE | {"nern.weighting": "activations"})
    fitted = nern.fit(small_cnn(), config=config, progress=False)
    assert all(torch.isfinite(w).all() for w in fitted.nern.reconstruct())


# --- runs ----------------------------------------------------------------------------------------------------------

RUN: dict[str, Any] = BASE | {
    "original_model_path": "pretrained:digits-resnet8",
    "task.original_model_name": "ResNet8",
    "task.task_name": "digits",
    "evaluation.held_out_images": 20,
    "evaluation.test_images": 20,
    "eval_epochs_interval": None,
    "save_epochs_interval": None,
    "save_iterations_interval": 2,
    "nern.weighting": "fisher",
}


@pytest.mark.parametrize("random_data", [False, True])
def test_a_resumed_run_measures_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_data: bool) -> None:
    monkeypatch.setattr("nern.analysis.plots.plot_run", lambda *args: None)
    roots: list[list[Tensor]] = []
    init = Trainer.__init__

    def watched(self: Trainer, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        assert self.differentiate.roots is not None
        roots.append(self.differentiate.roots)

    monkeypatch.setattr(Trainer, "__init__", watched)
    values = RUN | {"logging.log_dir": str(tmp_path), "task.use_random_data": random_data}
    console = Console(file=io.StringIO())
    folder = nern.train(Config.from_dict(values), console)["run_folder"]
    nern.resume(folder, console)
    assert len(roots) == 2
    assert all(torch.equal(one, other) for one, other in zip(*roots, strict=True))


# --- the config -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nern.weighting": "nonesuch"}, "nern.weighting"),
        ({"nern.weighting_power": -1.0}, "nern.weighting_power"),
        ({"nern.weighting_power": float("inf")}, "nern.weighting_power"),
        ({"nern.weighting_images": 0}, "nern.weighting_images"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(NernError, match=message):
        Config.from_dict(values).check()
