"""Several networks in one NeRN: training, resuming, evaluating, and what a run leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

import nern
from nern import Config, NernError, registry
from nern.evaluation import accuracy, mean_metrics
from nern.experiment import build_experiment
from nern.jobs.evaluating import config_of_run
from nern.originals.base import Original
from nern.training.run_folder import RunFolder, attached_to
from runs import SHORT, assert_same_result, build, interrupted, quiet, resume, small_resnet, train

BASE: dict[str, Any] = SHORT | {
    "nern.weights_batch_method": "random_weighted_batch",
    "optim.lr": 0.02,
    "num_iterations": 6,
    "eval_iterations_interval": 3,
    "loss_warmup_iterations": 2,
}
FIRST = "ResNet8 on digits"
SECOND = "ResNet8 on digits (2)"

Configure = Callable[..., Config]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small ResNet with 1 x 1 shortcuts, which are represented, too; first.pt beside them: of one without."""
    path = tmp_path_factory.mktemp("original") / "small.pt"
    torch.save(small_resnet(option="B").state_dict(), path)
    torch.save(small_resnet(4).state_dict(), path.with_name("first.pt"))
    return path


def two(small: Path) -> list[dict[str, Any]]:
    """A small network, and another one with other layers."""
    return [
        {"original_model_path": str(small.with_name("first.pt"))},
        {"original_model_path": str(small), "include": ["*conv?.weight", "*shortcut*", "linear.weight"]},
    ]


@pytest.fixture
def configure(small: Path, tmp_path: Path, no_picture: None) -> Configure:
    """Makes the config of a short run of two networks on digits; the picture is left out."""

    def make(**given: Any) -> Config:
        return Config.from_dict(BASE | {"networks": two(small), "logging.log_dir": str(tmp_path / "runs")} | given)

    return make


@pytest.fixture(scope="module")
def finished(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, dict[str, Any]]:
    """A complete run, ordered, with its picture, and what it returned."""
    more = {
        "networks": two(small),
        "nern.embeddings.permutations.permute_mode": "crossfilter",
        "logging.log_dir": str(tmp_path_factory.mktemp("finished")),
    }
    metrics = nern.train(Config.from_dict(BASE | more), quiet())
    return RunFolder(metrics["run_folder"]), metrics


Finished = tuple[RunFolder, dict[str, Any]]


def test_metrics_hold_each_network_and_their_mean(finished: Finished) -> None:
    folder, metrics = finished
    assert json.loads(folder.metrics.read_text()) == metrics
    assert folder.curves.is_file()
    assert metrics["original"].keys() == {"networks"}
    assert list(metrics["original"]["networks"]) == [FIRST, SECOND]
    for record in (metrics["best"], metrics["last"]):
        assert record.keys() == {"step", "held_out", "test", "networks"}
        assert list(record["networks"]) == [FIRST, SECOND]
        for name in ("held_out", "test"):
            parts = [record["networks"][network][name] for network in (FIRST, SECOND)]
            assert record[name]["images"] == sum(part["images"] for part in parts)
            for figure in ("agreement", "divergence", "top1", "top5", "loss"):
                assert record[name][figure] == pytest.approx((parts[0][figure] + parts[1][figure]) / 2)


def test_kept_and_represented_make_the_whole_networks(finished: Finished) -> None:
    folder, metrics = finished
    layers = [layer["name"] for layer in metrics["layers"]]
    assert (layers[0], layers[-1], len(layers)) == (f"{FIRST}: conv1.weight", f"{SECOND}: linear.weight", 7 + 10)
    kept = load_file(folder.kept)
    represented = {name.replace(f"{FIRST}: ", "0.").replace(f"{SECOND}: ", "1.") for name in layers}
    networks = [small_resnet(), small_resnet(option="B")]
    names = {f"{number}.{name}" for number, network in enumerate(networks) for name in network.state_dict()}
    assert represented | kept.keys() == names
    assert not represented & kept.keys()


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_evaluating_gives_the_figures_of_the_run(finished: Finished, checkpoint: str) -> None:
    folder, metrics = finished
    config = config_of_run(folder.root, checkpoint)
    evaluated = nern.evaluate(config, console=quiet(), run=folder.root)
    assert list(evaluated["networks"]) == [FIRST, SECOND]
    for name, figures in evaluated["networks"].items():
        assert figures["reconstructed"] == metrics[checkpoint]["networks"][name]["test"]
        assert figures["original"] == metrics["original"]["networks"][name]["test"]
    assert (evaluated["layers"] == metrics["layers"]) == (checkpoint == "best" or metrics["best"] == metrics["last"])


def test_each_network_is_loaded_with_the_accuracy_that_was_reported(finished: Finished, small: Path) -> None:
    folder, metrics = finished
    kept = load_file(folder.kept)
    _, test = nern.tasks.digits.digits({}, {})
    for number, name in enumerate((FIRST, SECOND)):
        network = nern.load_run(folder.root, network=number)
        assert torch.equal(network.bn1.weight, kept[f"{number}.bn1.weight"])
        figures = accuracy(network, test.subset(torch.arange(40)), 40)
        assert figures["top1"] == pytest.approx(metrics["best"]["networks"][name]["test"]["top1"])
    for number in (2, -1):
        with pytest.raises(NernError, match=rf"network \(={number}\) must be below 2"):
            nern.load_run(folder.root, network=number)


@pytest.mark.parametrize(
    "more",
    [
        {"nern.reconstruction_rows": "drawn", "loss_warmup_iterations": 6},
        {"nern.embeddings.type": "ffn", "nern.embeddings.permutations.permute_mode": "infilter"},
        {"nern.method": "basic", "nern.embeddings.num_idxs": 5, "nern.embeddings.normalization_mode": "local"},
        {"learn_norms": True},
    ],
    ids=["drawn rows", "ffn, ordered", "single weights", "norms"],
)
def test_a_resumed_run_of_several_equals_an_uninterrupted_one(configure: Configure, more: dict[str, Any]) -> None:
    whole, stopped = train(configure(**more)), interrupted(configure(**more), 4)
    assert_same_result(whole, resume(stopped))


def test_the_norms_of_each_network_are_its_own(configure: Configure) -> None:
    folder = train(configure(learn_norms=True, loss_warmup_iterations=0))
    kept = attached_to(folder.checkpoint("best"))["beside"]
    networks = [nern.load_run(folder.root, network=number) for number in (0, 1)]
    for number, network in enumerate(networks):
        own = {name: tensor for name, tensor in kept.items() if name.startswith(f"{number}.")}
        assert own
        assert all(torch.equal(network.state_dict()[name[2:]], tensor) for name, tensor in own.items())
    assert {f"{number}.{name}" for number in (0, 1) for name in Original(networks[number]).norms()} <= kept.keys()
    config = nern.jobs.evaluating.config_of_run(folder.root)
    found = nern.evaluate(config, console=quiet())["networks"]
    best = json.loads(folder.metrics.read_text())["best"]["networks"]
    assert {name: of["reconstructed"] for name, of in found.items()} == {name: of["test"] for name, of in best.items()}


def test_a_mean_lacks_what_one_network_lacks() -> None:
    labelled = nern.evaluation.Metrics(10, 50.0, 0.5, 40.0, 80.0, 1.0)
    unlabelled = nern.evaluation.Metrics(30, 100.0, 0.1)
    mean = mean_metrics([labelled, unlabelled])
    assert mean.to_dict() == {"images": 40, "agreement": 75.0, "divergence": pytest.approx(0.3)}
    assert mean_metrics([labelled]) == labelled


@pytest.fixture
def colours() -> Iterator[None]:
    """A task of 90 colour images of 6 x 6 in three classes, and a network for it."""

    def data(train_kwargs: dict[str, Any], test_kwargs: dict[str, Any], **kwargs: Any) -> Any:
        rng = torch.Generator().manual_seed(0)
        parts = []
        for count in (90, 30):
            labels = torch.randint(3, (count,), generator=rng)
            parts.append(TensorDataset(torch.randn(count, 3, 6, 6, generator=rng), labels))
        return tuple(DataLoader(part, batch_size=8) for part in parts)

    class Plain(torch.nn.Sequential):
        def __init__(self, num_classes: int = 3) -> None:
            nn = torch.nn
            super().__init__(nn.Conv2d(3, 5, 5), nn.ReLU(True), nn.Flatten(), nn.Linear(20, num_classes))

    nern.register_task("colours", input_shape=(3, 6, 6), num_classes=3)(data)
    nern.register_original("Plain")(Plain)
    yield
    registry.TASKS.unregister("colours")
    registry.ORIGINALS.unregister("Plain")


@pytest.mark.usefixtures("colours")
@pytest.mark.filterwarnings("ignore:original_model_path is not set")
def test_networks_may_have_different_tasks_and_an_epoch_is_one_of_the_largest_data_set(
    configure: Configure, small: Path
) -> None:
    networks = [{"task": {"task_name": "colours", "original_model_name": "Plain"}}, *two(small)[:1]]
    folder = train(configure(networks=networks, batch_size=10, num_iterations=20))
    metrics = json.loads(folder.metrics.read_text())
    assert list(metrics["original"]["networks"]) == ["Plain on colours", FIRST]
    images = [metrics["last"]["networks"][name]["test"]["images"] for name in ("Plain on colours", FIRST)]
    assert images == [30, 40]
    assert "distillation" in folder.load_state()["losses"][-1]
    assert nern.load_run(folder.root, network=0)(torch.zeros(2, 3, 6, 6)).shape == (2, 3)
    trainer = build(configure(networks=networks, batch_size=100, num_iterations=None, epochs=1))
    assert trainer.total_steps == 12
    assert [len(images) for images, _ in trainer._images(11)[0]] == [81, 80]


def test_the_same_network_twice_is_numbered(configure: Configure, small: Path) -> None:
    experiment = build_experiment(configure(networks=two(small)[:1] * 3))
    assert [member.name for member in experiment.members] == [FIRST, SECOND, "ResNet8 on digits (3)"]
    parts = experiment.nern.reconstruct()
    assert not torch.equal(parts[0], parts[7])  # the network's number is part of the coordinates
