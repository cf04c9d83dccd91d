"""The example configuration and the commands of the published framework's README, given the files they name."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from nern import Config
from nern.cli import main
from nern.training.trainer import Trainer

WEIGHTS = "trained_models/original_tasks/cifar10/resnet20_0_B.pt"
RUN = Path("outputs/resnet20/cifar10/cifar10_resnet20_smoothpes_permute_crossfilter_180")
SHORTER = [
    "--epochs=null",
    "--num_iterations=2",
    "--batch_size=8",
    "--loss_warmup_iterations=1",
    "--eval_epochs_interval=null",
    "--evaluation.test_images=64",
    "--evaluation.held_out_images=32",
]


@pytest.fixture(scope="session")
def readme(shared: Path) -> str:
    return (shared / "spec-nern-readme.md").read_text(encoding="utf-8")


def block(readme: str, begins: str) -> str:
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    return next(text for text in blocks if text.startswith(begins))


def arguments(readme: str, begins: str, config: str) -> list[str]:
    """A documented command without `python`, the placeholder replaced by the path of a config."""
    line = block(readme, begins).splitlines()[0]
    script, *rest = re.sub(r"<PATH_TO_\w*YAML_FILE>", config, line).split()[1:]
    return [script.removesuffix(".py"), *rest]


@pytest.fixture
def folder(
    shared: Path, readme: str, cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_picture: None
) -> Path:
    """A working directory with the example configuration and the files that it names."""
    (tmp_path / "data").symlink_to(cifar10)
    (tmp_path / WEIGHTS).parent.mkdir(parents=True)
    shutil.copy(shared / "weights" / "resnet20-cifar10.pt", tmp_path / WEIGHTS)
    (tmp_path / "config.yaml").write_text(block(readme, "logging:\n  exp_name"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluation_recipe(readme: str, checkpoint: Path) -> None:
    """Writes `evaluate.yaml` as the README says: a copy of the training configuration with its added fields."""
    config = yaml.safe_load(Path("config.yaml").read_text())
    added = block(readme, "nern:\n  init: checkpoint").replace("<PATH_TO_NERN_CHECKPOINT>", str(checkpoint))
    for section, values in yaml.safe_load(added).items():
        config[section] |= values
    Path("evaluate.yaml").write_text(yaml.safe_dump(config))


def test_example_trains_and_is_evaluated_as_documented(
    folder: Path, readme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments(readme, "python train.py --config_path", "config.yaml"), *SHORTER]) == 0
    metrics = json.loads((RUN / "metrics.json").read_text())
    assert metrics["steps"] == 2
    assert len(metrics["layers"]) == 19
    assert metrics["original"]["test"]["top1"] > 80
    assert any(path.name.startswith("events.out.tfevents") for path in RUN.iterdir())

    evaluation_recipe(readme, RUN / "checkpoints" / "best.pt")
    command = arguments(readme, "python evaluate.py", "evaluate.yaml")
    assert main([*command, "--evaluation.test_images", "64", "--json", "evaluated.json"]) == 0
    evaluated = json.loads(Path("evaluated.json").read_text())
    assert evaluated["reconstructed"] == metrics["best"]["test"]
    assert evaluated["original"] == metrics["original"]["test"]
    assert "error" not in capsys.readouterr().err


def test_documented_overrides_reach_the_run(folder: Path, readme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train_step = Trainer.train_step

    def stopping(self: Trainer, *args: Any) -> Any:
        losses = train_step(self, *args)
        signal.raise_signal(signal.SIGINT)
        return losses

    monkeypatch.setattr(Trainer, "train_step", stopping)
    command = arguments(readme, "python train.py --logging.use_tensorboard True", "config.yaml")
    assert "400" in command
    assert main(command) == 128 + signal.SIGINT
    config = Config.load(RUN / "config.yaml")
    assert (config.logging.tracker, config.epochs, config.nern.weights_batch_method) == ("tensorboard", 400, "all")
    assert torch.load(RUN / "state.pt", weights_only=True)["step"] == 1


def test_tensorboard_is_switched_on_by_the_documented_key(folder: Path, readme: str) -> None:
    config = yaml.safe_load(Path("config.yaml").read_text())
    config["logging"] |= yaml.safe_load(block(readme, "logging:\n    use_tensorboard"))["logging"]
    Path("config.yaml").write_text(yaml.safe_dump(config))
    assert Config.load("config.yaml").logging.tracker == "tensorboard"
