"""The published configurations in `experiments/`: what they say, and that each of them trains."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from nern import Config, ImageTensors, OriginalConfig, register_task
from nern.config.settings import read_config_file
from nern.files import save_safetensors
from nern.jobs.packing import PackOptions, pack
from nern.jobs.training import train as train_run
from nern.objectives.objective import Losses
from nern.originals.build import build_network
from nern.registry import TASKS
from nern.training.run_folder import RunFolder
from nern.training.trainer import Trainer
from runs import build, quiet

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
SHARED_PARTS = ("base.yaml", "crossfilter.yaml", "infilter.yaml")  # files that others are based on
FILES = sorted(
    path.relative_to(EXPERIMENTS).as_posix()
    for path in EXPERIMENTS.rglob("*.yaml")
    if path.name not in SHARED_PARTS and path.parent.name != "sweeps"  # tests/test_sweep.py loads those
)
ORIGINALS = [path for path in FILES if path.startswith("originals/")]
OURS = [path for path in FILES if path.startswith(("without-data/", "several-networks/", "files/"))]
PUBLISHED = [path for path in FILES if path not in ORIGINALS + OURS]
CLASSES = 1000
IMAGES = 20


@pytest.mark.parametrize("path", FILES)
def test_config_loads_and_its_runs_are_named_after_it(path: str) -> None:
    kind = OriginalConfig if path in ORIGINALS else Config
    assert kind.load(EXPERIMENTS / path).logging.exp_name == Path(path).stem


def test_configs_say_what_was_published(shared: Path) -> None:
    published = json.loads((shared / "golden" / "experiments.json").read_text(encoding="utf-8"))["experiments"]
    assert set(PUBLISHED) == set(published)
    for path, expected in published.items():
        expected["task"].pop("imagenet_path", None)  # a placeholder: the user gives it
        assert read_config_file(EXPERIMENTS / path, Config) == expected, path


@pytest.fixture
def imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few made-up images of 1000 classes in place of the task of this name."""
    others = {name: entry for name, entry in TASKS._entries.items() if name != "imagenet"}
    monkeypatch.setattr(TASKS, "_entries", others)
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (IMAGES, 3, 64, 64), generator=rng, dtype=torch.uint8)
    data = ImageTensors(images, torch.randint(0, CLASSES, (IMAGES,), generator=rng), (0.5,) * 3, (0.2,) * 3)
    register_task("imagenet", input_shape=(3, 64, 64), num_classes=CLASSES)(lambda *args, **kwargs: (data, data))


@pytest.fixture(scope="session")
def tiny_cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CIFAR-10 and CIFAR-100 of a few made-up images."""
    root, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for folder, classes, key, names in (
        ("cifar-10-batches-py", 10, "labels", [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]),
        ("cifar-100-python", 100, "fine_labels", ["train", "test"]),
    ):
        (root / folder).mkdir()
        for name in names:
            data = rng.integers(0, 256, (IMAGES, 3072), dtype=np.uint8)
            entry = {"data": data, key: rng.integers(0, classes, IMAGES).tolist()}
            (root / folder / name).write_bytes(pickle.dumps(entry, protocol=2))
    return root


@pytest.fixture(scope="session")
def cifar_networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights of each CIFAR network, option B. Their norms divide by 10: a deep network that an
    untrained predictor makes would overflow."""
    folder = tmp_path_factory.mktemp("networks")
    for group, classes in (("resnet20/cifar10", 10), ("resnet56/cifar10", 10), ("resnet56/cifar100", 100)):
        name = {"resnet20": "ResNet20", "resnet56": "ResNet56"}[group.partition("/")[0]]
        state = build_network(name, {"option": "B", "num_classes": classes}).state_dict()
        state |= {key: torch.full_like(value, 100.0) for key, value in state.items() if key.endswith("running_var")}
        save_safetensors(folder / f"{group}.safetensors", state)
    return folder


@pytest.fixture(scope="session")
def orderings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a group's first run leaves its ordering for the others."""
    return tmp_path_factory.mktemp("orderings")


def short(path: str, tmp_path: Path, **changes: Any) -> Config:
    """The config of a step with images, over the file at `path`; sections and names are joined by two underscores."""
    values = {
        "base": str(EXPERIMENTS / path),
        "no_cuda": True,
        "logging.log_dir": str(tmp_path / "outputs"),
        "logging.tracker": "none",
    }
    if path in OURS:  # by phases; the first may take its rest
        values |= {"reconstruction.iterations": 1, "distillation.iterations": 2}
        if Config.load(EXPERIMENTS / path).phase("refinement").runs:
            values |= {"refinement.iterations": 1, "refinement.images": 8, "norm_images": 8}
        values |= {"nern.embeddings.permutations.improve_seconds": 0}
    else:
        values |= {"loss_warmup_iterations": 0, "epochs": None, "num_iterations": 1}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return Config.load(tmp_path / "short.yaml")


def train(config: Config) -> Trainer:
    """Train; every loss of the step is finite and taken from images, and the predictor moves."""
    trainer = build(config)
    before = [p.detach().clone() for p in trainer.parameters]
    steps: list[Losses] = []
    trainer.on_step = lambda step, losses: steps.append(losses)
    trainer.fit()
    (losses,) = steps
    assert set(losses.terms) == {"reconstruction", "feature_maps", "distillation"}
    assert math.isfinite(losses.total.detach())
    assert min(losses.terms["reconstruction"], losses.terms["feature_maps"]) > 0
    assert all(torch.isfinite(p).all() for p in trainer.parameters)
    assert not any(torch.equal(p, b) for p, b in zip(trainer.parameters, before, strict=True))
    assert len(trainer.history.evaluations) == 1
    return trainer


@pytest.mark.filterwarnings("ignore:num_gpus is 2:nern.errors.NernWarning")
@pytest.mark.parametrize("path", [path for path in PUBLISHED if "cifar" in path])
def test_cifar_experiment_trains(
    path: str, tmp_path: Path, tiny_cifar: Path, cifar_networks: Path, orderings: Path
) -> None:
    group, small = Path(path).parent, "resnet20" in path
    size = int(path.rpartition("_")[2].removesuffix(".yaml"))
    config = short(
        path,
        tmp_path,
        batch_size=8 if small else 2,
        original_model_path=str(cifar_networks / f"{group}.safetensors"),
        nern__hidden_layer_size=size if small else size // 8,
        task__data_dir=str(tiny_cifar),
        nern__embeddings__permutations__path=str(orderings / path.rpartition("_")[0]),
    )
    assert len(train(config).nern.table.shapes) == (19 if small else 55)


@pytest.mark.filterwarnings("ignore:(num_gpus is 2|original_model_path is not set):nern.errors.NernWarning")
@pytest.mark.usefixtures("imagenet")
@pytest.mark.parametrize("path", [path for path in PUBLISHED if "resnet18" in path])
def test_imagenet_experiment_trains_on_the_first_stage(path: str, tmp_path: Path, orderings: Path) -> None:
    config = short(
        path,
        tmp_path,
        batch_size=2,
        original_model_path=None,
        nern__hidden_layer_size=int(path.rpartition("_")[2].removesuffix(".yaml")) // 16,
        nern__include=["layer1.?.conv?.weight"],
        nern__embeddings__permutations__path=str(orderings / path.rpartition("_")[0]),
    )
    assert len(train(config).nern.table.shapes) == 4


def test_two_networks_train_in_one_nern(tmp_path: Path, tiny_cifar: Path) -> None:
    config = short("several-networks/resnet20-and-digits.yaml", tmp_path, batch_size=4)
    config.networks[0].task.data_dir = str(tiny_cifar)
    config.evaluation.test_images = 20
    trainer = build(config)
    trainer.fit()
    assert set(trainer.history.evaluations[-1]["networks"]) == {"ResNet20 on cifar10", "ResNet8 on digits"}


def test_reconstruction_and_distillation_without_data_train(tmp_path: Path, tiny_cifar: Path) -> None:
    first = short(
        "without-data/reconstruction.yaml", tmp_path, task__data_dir=str(tiny_cifar), distillation__iterations=0
    )
    trainer = build(first)
    with RunFolder.claimed(first.logging) as trainer.folder:
        first.save(trainer.folder.config)
        trainer.fit()
    checkpoint = trainer.folder.checkpoint("last")
    second = short(
        "without-data/distillation.yaml",
        tmp_path,
        batch_size=4,
        reconstruction__iterations=0,
        task__data_dir=str(tiny_cifar),
        task__use_random_data=True,
        task__random_data="leaves",
        nern__checkpoint_path=str(checkpoint),
    )
    trainer = build(second)
    state = torch.load(checkpoint, weights_only=True)
    assert all(torch.equal(p, state[name]) for name, p in trainer.nern.predictor.state_dict().items())
    trainer.fit()
    assert {"reconstruction", "distillation"} <= set(trainer.history.losses[-1])


@pytest.mark.usefixtures("no_picture")
def test_a_network_is_trained_for_its_file_and_packed(tmp_path: Path, tiny_cifar: Path) -> None:
    small = {"batch_size": 2, "nern__hidden_layer_size": 40}
    config = short("files/resnet20.yaml", tmp_path, task__data_dir=str(tiny_cifar), **small)
    phase = config.phase("quantisation")
    phase.iterations, phase.images = 1, 2
    config.evaluation.held_out_images = config.evaluation.test_images = 20
    run = train_run(config, quiet())["run_folder"]
    artifact = pack(run, tmp_path / "network.nern", PackOptions(checkpoint="last", images=2), quiet())
    predictor = sum(code.count for code in artifact.description.predictor)
    assert 8 * artifact.sizes["PRED"] / predictor == pytest.approx(phase.bits, rel=0.15)
    assert artifact.description.networks[0].architecture == "ResNet20"
