"""`nern train-original`: what a run leaves, that it repeats and resumes exactly, smoothness, and what is refused."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import nern
from nern import Config, NernError, OriginalConfig, registry
from nern.cli import main
from nern.objectives.smoothness import mean_neighbour_cosine
from nern.originals.build import build_network
from nern.originals.cifar_resnet import CifarResNet
from nern.stopping import Interrupted
from nern.tasks.base import DataSettings, build_task
from nern.training.original_trainer import OriginalTrainer
from nern.training.run_folder import RunFolder
from runs import Run, assert_same_result, quiet, same, stop_after

pytestmark = pytest.mark.usefixtures("no_picture")

CPU = torch.device("cpu")
WIDTHS = [4, 6, 8]
BASE: dict[str, Any] = {
    "task.task_name": "digits",
    "task.original_model_name": "ResNet8",
    "task.original_model_kwargs": {"widths": WIDTHS},
    "optim.lr": 0.1,
    "logging.tracker": "none",
    "logging.log_interval": 1,
    "logging.exp_name": "run",
    "epochs": 2,
    "batch_size": 300,  # four steps an epoch
    "eval_epochs_interval": None,
}
ONE_STEP: dict[str, Any] = {"epochs": 1, "batch_size": 1200}

Configure = Callable[..., OriginalConfig]
Finished = tuple[RunFolder, dict[str, Any]]


@pytest.fixture
def configure(tmp_path: Path) -> Configure:
    """Makes a short run's config; dotted keys win over its own."""

    def make(given: dict[str, Any] | None = None, **more: Any) -> OriginalConfig:
        values = BASE | {"logging.log_dir": str(tmp_path / "runs")} | (given or {}) | more
        return OriginalConfig.from_dict(values)

    return make


def train(config: OriginalConfig) -> RunFolder:
    return RunFolder(nern.train_original(config, quiet())["run_folder"])


def resume(folder: RunFolder) -> RunFolder:
    return RunFolder(nern.resume_original(folder.root, quiet())["run_folder"])


def losses(folder: RunFolder) -> list[dict[str, float]]:
    return folder.load_state()["losses"]


def weights(folder: RunFolder) -> dict[str, Tensor]:
    return load_file(folder.root / "network.safetensors")


def assert_same_network(a: RunFolder, b: RunFolder) -> None:
    assert_same_result(a, b)
    assert a.checkpoint("last").is_file()
    assert same(weights(a), weights(b))


def interrupted(config: OriginalConfig, step: int) -> RunFolder:
    """The folder of a run that was stopped after `step` steps."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step, loop=OriginalTrainer)
        with pytest.raises(Interrupted, match=f"stopped at step {step} of .*; saved.*nern train-original --resume "):
            nern.train_original(config, quiet())
    return RunFolder(sorted(Path(config.logging.log_dir).iterdir(), key=lambda p: p.stat().st_mtime)[-1])


def start(config: OriginalConfig) -> nn.Module:
    """The network as the run starts with it."""
    return build_network("ResNet8", {"widths": WIDTHS, "in_channels": 1}, seed=config.seed)


def first_batch(config: OriginalConfig) -> tuple[Tensor, Tensor]:
    settings = DataSettings(batch_size=config.batch_size, eval_batch_size=500, num_workers=0, seed=config.seed)
    stream = build_task(config.task, settings, CPU).train
    assert stream is not None
    images, labels = stream.batch(0)
    assert labels is not None
    return images, labels


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that learns something, with every file, and what it returned."""
    values = BASE | {
        "logging.log_dir": str(tmp_path_factory.mktemp("finished")),
        "logging.tracker": "tensorboard",
        "task.original_model_kwargs": {"widths": [8, 12, 16]},
        "eval_epochs_interval": 2,
        "epochs": 5,
        "batch_size": 100,
    }
    metrics = nern.train_original(OriginalConfig.from_dict(values), quiet())
    return RunFolder(metrics["run_folder"]), metrics


def test_run_folder_holds_what_is_documented(finished: Finished) -> None:
    root = finished[0].root
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    found = {"events" if name.startswith("events.out.tfevents.") else name for name in found}
    assert found == {
        "config.yaml",
        "state.pt",
        "metrics.json",
        "curves.png",
        "checkpoints/last.pt",
        "network.safetensors",
        "network.json",
        "network.md",
        "events",
    }
    height, width, _ = matplotlib.image.imread(finished[0].curves).shape
    assert width > height > 300


def test_files_agree_and_hold_the_network_that_was_trained(finished: Finished) -> None:
    folder, metrics = finished
    assert json.loads(folder.metrics.read_text()) == metrics
    assert losses(folder)[-1]["task"] < 0.7 * losses(folder)[0]["task"]
    assert metrics["test"]["top1"] > 50
    state = folder.load_state()
    assert [record["step"] for record in state["evaluations"]] == [24, 48, 60]
    assert metrics["steps"] == state["step"] == 60
    assert metrics["test"] == state["evaluations"][-1]["test"]
    assert metrics["network"] == str(folder.root / "network.safetensors")
    assert metrics["seconds"] >= 60 * metrics["seconds_per_step"] > 0
    assert metrics["versions"]["nern"] == nern.__version__
    for saved in (torch.load(folder.checkpoint("last")), state["network"]):
        assert same(dict(saved), weights(folder))
    kwargs = json.loads((folder.root / "network.json").read_text())
    assert kwargs == {"num_classes": 10, "in_channels": 1, "widths": [8, 12, 16]}
    network = CifarResNet(8, **kwargs)
    network.load_state_dict(weights(folder))
    assert metrics["parameters"] == sum(p.numel() for p in network.parameters())
    card = (folder.root / "network.md").read_text()
    assert f"ResNet8 ({metrics['parameters']:,} parameters) trained on digits" in card
    assert f"{metrics['test']['top1']:.2f} % on 597 test images" in card
    kernels = [w.detach() for w in network.get_learnable_weights()]
    assert metrics["neighbour_cosine"] == pytest.approx(mean_neighbour_cosine(kernels))


def test_network_is_represented_and_evaluated_with_the_same_accuracy(finished: Finished, tmp_path: Path) -> None:
    metrics = finished[1]
    given = ["--original_model_path", metrics["network"], "--json", str(tmp_path / "metrics.json")]
    assert main(["evaluate", *given, "--original", "true"]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["original"]
    assert found["top1"] == pytest.approx(metrics["test"]["top1"])
    assert found["loss"] == pytest.approx(metrics["test"]["loss"], rel=1e-4)
    values = {"original_model_path": metrics["network"], "logging": {"tracker": "none", "log_dir": str(tmp_path)}}
    config = Config.from_dict(values | {"nern.hidden_layer_size": 8, "num_iterations": 1})
    assert nern.train(config, quiet())["original"]["test"]["top1"] == pytest.approx(metrics["test"]["top1"])


@pytest.mark.usefixtures("rng_untouched")
def test_weights_and_dropout_are_functions_of_seed_and_step(configure: Configure) -> None:
    @nern.register_original("Dropping")
    def dropping() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Dropout(), nn.Linear(72, 10))

    given = {"task.original_model_name": "Dropping", "task.original_model_kwargs": {}, "logging.tracker": "tensorboard"}
    try:
        config = configure(given | {"smoothness.cosine_factor": 0.01})
        folders = [train(config), resume(interrupted(config, 5)), train(configure(given, seed=1))]
    finally:
        registry.ORIGINALS.unregister("Dropping")
    assert [folder.root.name for folder in folders] == ["run", "run-2", "run-3"]  # none is overwritten
    assert_same_network(*folders[:2])
    assert not torch.equal(weights(folders[0])["0.weight"], weights(folders[2])["0.weight"])


CLIPPED = {"optim.max_gradient_norm": 1.0, "optim.max_gradient": 0.1, "optim.lr": 0.01}
RESUMED: dict[str, tuple[dict[str, Any], list[int]]] = {
    "stopped at once, and again at an evaluation": ({"eval_epochs_interval": 1}, [1, 4]),
    "smooth": ({"smoothness.cosine_factor": 0.01, "smoothness.l2_factor": 0.01, "precision": "bf16"}, [5]),
    **{
        f"{optimizer}, {schedule}": (
            CLIPPED | {"optim.optimizer_type": optimizer, "optim.lr_scheduler_type": schedule},
            [5],
        )
        for optimizer, schedule in zip(sorted(registry.OPTIMIZERS), sorted(registry.SCHEDULES), strict=False)
    },
}


@pytest.mark.parametrize("case", RESUMED)
def test_resumed_run_equals_an_uninterrupted_one(configure: Configure, case: str) -> None:
    values, (first, *later) = RESUMED[case]
    config = configure(values)
    folder = interrupted(config, first)
    for step in later:
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, step, loop=OriginalTrainer)
            with pytest.raises(Interrupted, match=f"stopped at step {step} of 8"):
                resume(folder)
    assert folder.load_state()["step"] == [first, *later][-1]
    assert not (folder.root / "network.safetensors").exists()
    assert_same_network(train(config), resume(folder))
    assert all(torch.isfinite(tensor).all() for tensor in weights(folder).values())
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in weights(folder).values())
    assert not torch.equal(weights(folder)["conv1.weight"], start(config).get_parameter("conv1.weight"))


def plain_smoothness(layers: list[Tensor], along: list[str]) -> tuple[float, float]:
    """Summed cosine of neighbours, and minus their summed distance after normalising."""
    cosine = distance = 0.0
    for layer in layers:
        kernels = F.normalize(layer.detach().double().flatten(2), dim=2)
        pairs = {"filters": (kernels[1:], kernels[:-1]), "channels": (kernels[:, 1:], kernels[:, :-1])}
        for one, other in (pairs[direction] for direction in along):
            cosine += float((one * other).sum())
            distance -= float((one - other).norm(dim=2).sum())
    return cosine, distance


@pytest.mark.parametrize("along", [["filters"], ["filters", "channels"]])
def test_smoothness_is_that_of_the_neighbours_in_the_given_directions(configure: Configure, along: list[str]) -> None:
    config = configure(ONE_STEP | {"smoothness.cosine_factor": 0.25, "smoothness.along": along})
    record = losses(train(config))[0]
    cosine, distance = plain_smoothness(start(config).get_learnable_weights(), along)
    assert record.keys() == {"step", "lr", "task", "cosine smoothness", "total"}
    assert record["cosine smoothness"] == pytest.approx(cosine, rel=1e-4, abs=1e-4)
    assert record["total"] == pytest.approx(record["task"] - 0.25 * cosine, rel=1e-4)
    l2 = {"smoothness.type": "L2Smoothness", "smoothness.l2_factor": 0.5, "smoothness.along": along}
    record = losses(train(configure(ONE_STEP | l2)))[0]
    assert record["l2 smoothness"] == pytest.approx(distance, rel=1e-4)
    assert record["total"] == pytest.approx(record["task"] - 0.5 * distance, rel=1e-4)


def test_one_step_is_the_one_of_plain_torch(configure: Configure) -> None:
    config = configure(ONE_STEP | {"optim.lr_scheduler_type": "constant", "label_smoothing": 0.2})
    network, (images, labels) = start(config), first_batch(config)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    loss = F.cross_entropy(network.train()(images), labels, label_smoothing=0.2)
    loss.backward()
    optimizer.step()
    folder = train(config)
    (record,) = losses(folder)
    assert record.keys() == {"step", "lr", "task", "total"}
    assert record["total"] == record["task"] == pytest.approx(float(loss.detach()), rel=1e-4)
    torch.testing.assert_close(weights(folder), dict(network.state_dict()), rtol=1e-3, atol=1e-4)


def test_training_goes_on_from_given_weights_from_any_working_directory(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(configure())
    monkeypatch.chdir(first.root)
    barely = {"optim.lr": 1e-9, "optim.min_lr": 0.0, "optim.lr_scheduler_type": "constant"}
    config = configure(barely | {"initial_weights": "network.safetensors", "task.original_model_kwargs": {}})
    second, folder = train(config), interrupted(config, 3)
    before, after = weights(first), weights(second)
    for name in [name for name in before if name.endswith(("weight", "bias"))]:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    assert after["conv1.weight"].shape[0] == WIDTHS[0]  # by the JSON file beside the weights
    monkeypatch.chdir(tmp_path)
    assert_same_network(second, resume(folder))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"initial_weights": "absent.pt"}, "no such file: absent.pt"),
        ({"initial_weights": "torchvision"}, "means pretrained weights of a torchvision network; 'ResNet8' is none"),
        ({"initial_weights": "pretrained:digits-resnet8"}, "does not fit CifarResNet: .* of another shape"),
        ({"task.original_model_kwargs": {"in_channels": 3}}, r"ResNet8 does not take the \(1, 8, 8\) images of digits"),
        ({"task.original_model_kwargs": {"num_classes": 1}}, r"outputs of shape \(1,\) an image; task digits has 10"),
        ({"smoothness.type": "CosineSmothness"}, "unknown smoothness measure .*did you mean 'CosineSmoothness'"),
        ({"smoothness.type": "L2Smoothness", "smoothness.cosine_factor": 0.1}, "set smoothness.l2_factor"),
        ({"smoothness.cosine_factor": -0.1}, "finite numbers, not negative"),
        ({"smoothness.along": ["rows"]}, r"unknown smoothness\.along 'rows'.*Choices: channels, filters"),
        ({"task.use_random_data": True}, "needs labels; task.use_random_data has none"),
        ({"num_iterations": 10}, "unknown configuration key 'num_iterations'"),
        ({"label_smoothing": 1.0}, r"label_smoothing \(=1.0\) must lie in \[0, 1\)"),
    ],
)
def test_run_that_cannot_work_leaves_nothing(
    configure: Configure, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(NernError, match=message):
        train(configure(values))
    assert not (tmp_path / "runs").exists()


FILE = """
task: {task_name: digits, original_model_name: ResNet8, original_model_kwargs: {widths: [4, 6, 8]}}
optim: {lr: 0.1}
logging: {tracker: none, exp_name: mine}
epochs: 3
batch_size: 600
"""


def test_command_line_wins_over_the_file(run: Run) -> None:
    Path("mine.yaml").write_text(FILE)
    options = ["--epochs", "2", "--optim.lr=0.05", "--smoothness.cosine_factor", "0.01", "--json", "figures.json"]
    ended = run("train-original", *options, "--config_path", "mine.yaml")
    assert ended.code == 0
    folder = RunFolder("outputs/mine")
    config = OriginalConfig.load(folder.config)
    assert (config.epochs, config.optim.lr, config.smoothness.cosine_factor, config.batch_size) == (2, 0.05, 0.01, 600)
    figures = json.loads(Path("figures.json").read_text())
    assert figures == json.loads(folder.metrics.read_text())
    for shown in (
        "smoothness.cosine_factor=0.01",
        f"{figures['parameters']:,} parameters",
        "4 steps on cpu; run folder outputs/mine",
        f"{figures['test']['top1']:.2f} %",
        f"network: {folder.root / 'network.safetensors'}",
    ):
        assert shown in ended.out
    assert "CosineSmoothness {'cosine_factor': 0.01}" in (folder.root / "network.md").read_text()


def test_command_resumes_and_takes_no_other_settings(run: Run) -> None:
    Path("mine.yaml").write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3, loop=OriginalTrainer)
        ended = run("train-original", "--config_path", "mine.yaml")
    assert ended.code == 128 + signal.SIGINT
    assert "nern train-original --resume outputs/mine" in ended.err
    resuming = ("train-original", "--resume", "outputs/mine")
    assert "drop --batch_size" in run(*resuming, "--batch_size", "9").err
    assert "6 steps, from step 3" in run(*resuming, "--json", "figures.json").out
    assert json.loads(Path("figures.json").read_text())["steps"] == 6
    assert "12 steps, from step 6" in run(*resuming, "--epochs", "6").out
    ended = run(*resuming, "--epochs", "1")
    assert ended.code == 2
    assert "is at step 12; it cannot end at step" in " ".join(ended.err.split())


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[Path]:
    """Folders of small images of three classes, each of its colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 80, (20, 24, 3))
                pixels[..., label] += 150
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"images/{split}/{name}/{number}.png")
    return tmp_path / "images"


def test_network_of_any_source_is_trained_on_the_images_and_classes_it_is_evaluated_on(
    pictures: Path, tmp_path: Path
) -> None:
    task = {"task_name": "imagefolder", "data_dir": str(pictures), "input_size": 32}
    task["original_model_name"] = "torchvision:shufflenet_v2_x0_5"
    values = {"task": task, "optim": {"lr": 0.02}, "epochs": 2, "batch_size": 6}
    logging = {"tracker": "none", "log_dir": str(tmp_path / "runs")}
    metrics = nern.train_original(OriginalConfig.from_dict(values | {"logging": logging}), quiet())
    config = Config.from_dict({"original_model_path": metrics["network"], "task": task})
    evaluated = nern.evaluate(config, original=True, console=quiet())
    assert (metrics["test"]["images"], metrics["steps"]) == (9, 6)
    assert len(load_file(metrics["network"])["fc.weight"]) == 3
    assert json.loads(Path(metrics["network"]).with_suffix(".json").read_text())["num_classes"] == 3
    assert evaluated["original"]["top1"] == pytest.approx(metrics["test"]["top1"])
    assert evaluated["original"]["loss"] == pytest.approx(metrics["test"]["loss"], rel=1e-3)
