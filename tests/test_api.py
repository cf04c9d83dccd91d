"""The Python API: a module of one's own in, its NeRN and a reconstructed module out; networks and tasks of one's own."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nern
import runs
from nern import Config, NernError, registry
from nern.config import NernConfig
from nern.evaluation import layer_errors
from runs import assert_same_result, without_digits


class Mixed(nn.Module):
    """3 x 3, 1 x 1 and 5 x 5 convolutions, a skip connection, a fully connected layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 8, 1)
        self.wide = nn.Conv2d(8, 6, 5, padding=2)
        self.head = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.stem(images)).relu()
        x = self.wide(x + self.point(x)).relu()
        return self.head(x.mean((2, 3)))


def mixed() -> Mixed:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Mixed()


def fit(network: nn.Module, **arguments: Any) -> nern.Fitted:
    return nern.fit(network, **({"iterations": 4, "progress": False} | arguments))


@pytest.fixture(scope="module")
def fitted() -> nern.Fitted:
    return fit(mixed())


@pytest.fixture
def batch(rng: torch.Generator) -> Tensor:
    return torch.randn(2, 3, 9, 9, generator=rng)


def test_each_call_gives_a_network_of_its_own(fitted: nern.Fitted, batch: Tensor) -> None:
    first, second = fitted.network(), fitted.network()
    assert type(first) is Mixed
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert not torch.equal(first(batch), second(batch))


def test_module_of_the_user_is_not_changed(batch: Tensor) -> None:
    network = mixed().train()
    network.point.weight.requires_grad_(False)
    before = copy.deepcopy(network)
    fit(network)
    assert runs.same(dict(network.state_dict()), dict(before.state_dict()))
    assert network.training
    assert [p.requires_grad for p in network.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_more_steps_reconstruct_better() -> None:
    def error(iterations: int) -> float:
        return max(layer.relative for layer in fit(mixed(), iterations=iterations, ratio=2.0).layer_errors())

    assert error(200) < 0.75 * error(1)


def width(fitted: nern.Fitted) -> int:
    return fitted.nern.predictor.layers[-1].out_features


@pytest.mark.parametrize("ratio", [0.6, 1.0, 4.0])
def test_predictor_is_the_largest_within_the_ratio(ratio: float) -> None:
    config = nern.fit_config(1)
    config.nern.embeddings.enc_levels = 5
    fitted = fit(mixed(), config=config, ratio=ratio)
    weights = sum(w.numel() for w in fitted.original.weights)
    assert fitted.predictor_share == fitted.nern.num_parameters / weights
    assert fitted.predictor_share <= ratio
    kernels = [w.shape[0] * w.shape[1] for w in fitted.original.weights]
    order = sum(math.log2(math.factorial(n)) for n in kernels)
    assert fitted.share == pytest.approx((fitted.nern.num_parameters * 4 + order / 8) / (4 * weights), rel=1e-12)
    config.nern.hidden_layer_size = width(fitted) + 1
    assert fit(mixed(), config=config, ratio=None).predictor_share > ratio


def test_too_small_a_ratio_says_how_small_it_can_be() -> None:
    with pytest.raises(NernError, match=r"ratio \(=0.001\) .* the narrowest predictor of this config has \d+\. Raise"):
        fit(mixed(), ratio=0.001)


def test_settings_may_be_ones_own_and_stay_as_they_are() -> None:
    config = Config(epochs=None, num_iterations=3, nern=NernConfig(hidden_layer_size=5, method="kxk_residual"))
    before = copy.deepcopy(config)
    fitted = fit(mixed(), config=config, ratio=None, iterations=99)
    assert width(fitted) == 5
    assert fitted.nern.predictor.kernel_sizes == [(3, 3), (1, 1), (5, 5)]
    assert config == before


def test_same_seed_same_network_other_seed_another(fitted: nern.Fitted) -> None:
    again, other = fit(mixed(), seed=0), fit(mixed(), seed=1)
    assert runs.same(fitted.nern.reconstruct(), again.nern.reconstruct())
    assert not torch.equal(fitted.nern.reconstruct()[0], other.nern.reconstruct()[0])


def test_layer_errors_are_those_of_the_convolutions(fitted: nern.Fitted) -> None:
    for error, original, weight in zip(
        fitted.layer_errors(), fitted.original.weights, fitted.nern.reconstruct(), strict=True
    ):
        assert error.weights == original.numel()
        assert error.rmse == pytest.approx((weight - original).square().mean().sqrt().item())
        assert error.relative == pytest.approx(((weight - original).norm() / original.norm()).item())


@pytest.mark.parametrize(("original", "predicted"), [(0.0, 0.5), (1e-200, 0.0), (1e200, 0.0)])
def test_relative_errors_are_finite_also_where_squares_are_not(original: float, predicted: float) -> None:
    tensors = ([torch.full((2, 3), value, dtype=torch.float64)] for value in (original, predicted))
    (error,) = layer_errors(["layer"], *tensors)
    assert (error.relative, error.rmse) == pytest.approx((1.0, abs(predicted - original)))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_picture: None) -> Callable[..., Config]:
    """Makes a short run's config in an empty working directory; the picture is left out."""
    monkeypatch.chdir(tmp_path)
    return lambda **sections: Config.from_dict(
        runs.SHORT | {"num_iterations": 4, "loss_warmup_iterations": 2} | sections
    )


def train(config: Config) -> dict[str, Any]:
    return nern.train(config, runs.quiet())


def test_network_of_a_run_needs_no_data(config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(config(original_model_path="pretrained:digits-resnet8"))["run_folder"]
    without_digits(monkeypatch)  # loading it would fail
    assert nern.load_run(folder, "last")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


MINE = '''
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from nern import OriginalNetwork, register_original, register_task


@register_original("Published")
class Published(OriginalNetwork):
    """Has exactly the methods of the published guide."""

    def __init__(self, num_classes: int = 10, **kwargs):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.side = nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4, num_classes)

    def forward(self, batch):
        return self.get_feature_maps(batch)[0]

    def get_feature_maps(self, batch):
        first = self.first(batch)
        second = self.second(first.relu()) + self.side(first)
        return self.linear(second.relu().mean((2, 3))), [first, second]

    def get_learnable_weights(self):
        return [self.first.weight, self.second.weight]

    def load(self, path, device):
        self.load_state_dict(torch.load(path, weights_only=True)["published"])
        self.to(device)


def images(count, seed):
    rng = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 2, 6, 6, generator=rng), torch.randint(3, (count,), generator=rng))


@register_task("loaders", input_shape=(2, 6, 6), num_classes=3, train_images=64)
def get_dataloaders(train_kwargs, test_kwargs, use_workers=True, **kwargs):
    """Returns loaders as the published guide says."""
    workers = train_kwargs["num_workers"] if use_workers else 0
    train_loader = DataLoader(images(64, 0), batch_size=train_kwargs["batch_size"], shuffle=True, num_workers=workers)
    return train_loader, DataLoader(images(20, 1), batch_size=8, shuffle=False)
'''
OWN = {"task.task_name": "loaders", "task.original_model_name": "Published", "original_model_path": "mine.weights"}


@pytest.fixture
def mine(tmp_path: Path, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that registers a network and a task, and weights of that network."""
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    names: dict[str, Any] = {}
    exec(MINE, names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        torch.save({"published": names["Published"](num_classes=3).state_dict()}, tmp_path / "mine.weights")
    forget()
    sys.modules.pop("mine", None)  # of another test, as the folders of others are that hold such a file
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if not Path(folder, "mine.py").is_file()])
    modules = set(sys.modules)
    yield path
    forget()
    for name in set(sys.modules) - modules:
        if name == "mine" or name.startswith("nern_import_"):
            del sys.modules[name]


def forget() -> None:
    for names, name in ((registry.ORIGINALS, "Published"), (registry.TASKS, "loaders")):
        if name in names:
            names.unregister(name)


@pytest.mark.parametrize("name", ["mine.py", "mine"])
def test_network_and_task_registered_in_an_imported_file_train_and_are_found_again(
    mine: Path, config: Callable[..., Config], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = train(config(imports=[name], **(OWN | {"original_model_path": str(tmp_path / "mine.weights")})))
    assert [layer["name"] for layer in metrics["layers"]] == ["first.weight", "second.weight"]
    assert (metrics["original"]["test"]["images"], metrics["original"]["held_out"]["images"]) == (20, 6)
    folder = Path(metrics["run_folder"]).resolve()
    if name == "mine.py":  # a file is found from another folder, too
        forget()
        for module in [module for module in sys.modules if module.startswith("nern_import_")]:
            del sys.modules[module]
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
    network, state = nern.load_run(folder), torch.load(tmp_path / "mine.weights")["published"]
    assert type(network).__name__ == "Published"
    assert torch.equal(network.get_parameter("side.weight"), state["side.weight"])
    assert not torch.equal(network.get_parameter("first.weight"), state["first.weight"])


def test_loaders_resume_bit_for_bit(mine: Path, config: Callable[..., Config]) -> None:
    own = config(imports=["mine.py"], **(OWN | {"num_iterations": 12, "loss_warmup_iterations": 0}))
    whole = runs.train(own)
    assert_same_result(whole, runs.resume(runs.interrupted(own, 5)))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("absent.py", None, "no such file"),
        ("broken.py", "1 / 0", "'broken.py' cannot be imported .*ZeroDivisionError"),
        ("again.py", MINE.replace('"Published"', '"ResNet20"'), "'ResNet20' is registered already"),
    ],
)
def test_bad_imports_are_explained(
    config: Callable[..., Config], tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(NernError, match=said):
        config(imports=[name])
