"""A teacher: another network's outputs are distilled; all else is compared with the original."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nern import Config, NernError
from nern.cli import main
from nern.experiment import build_experiment, build_teachers
from nern.objectives.objective import Objective
from nern.originals.base import Mirrored, Original
from nern.registry import DISTILLATION_LOSSES, FEATURE_MAP_LOSSES
from nern.training.run_folder import RunFolder
from runs import SHORT, assert_same_result, interrupted, resume, small_resnet, train

pytestmark = pytest.mark.usefixtures("no_picture")

BASE: dict[str, Any] = SHORT | {
    "nern.attention_loss_weight": 1e-3,
    "nern.distillation_loss_weight": 1e-2,
    "num_iterations": 5,
    "loss_warmup_iterations": 1,
}
NONE = {"teacher.original_model_name": None, "teacher.original_model_path": None}
Configure = Callable[..., Config]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of a very small ResNet for digits, of a wider one, and of one for other classes."""
    folder = tmp_path_factory.mktemp("networks")
    torch.save(small_resnet().state_dict(), folder / "original.pt")
    torch.save(small_resnet(4, widths=[6, 8, 10]).state_dict(), folder / "teacher.pt")
    torch.save(small_resnet(5, widths=[6, 8, 10], num_classes=7).state_dict(), folder / "seven.pt")
    return folder


@pytest.fixture
def configure(files: Path, tmp_path: Path) -> Configure:
    """Makes the config of a short run with a teacher; dotted keys win over its own."""

    def make(given: Mapping[str, Any] | None = None) -> Config:
        paths = {"original_model_path": str(files / "original.pt"), "logging.log_dir": str(tmp_path / "runs")}
        teacher = {
            "teacher.original_model_name": "ResNet8",
            "teacher.original_model_path": str(files / "teacher.pt"),
        }
        return Config.from_dict(paths | BASE | teacher | dict(given or {}))

    return make


def test_outputs_are_the_teachers_and_feature_maps_the_originals(images: Tensor) -> None:
    original, teacher = Original(small_resnet()), Original(small_resnet(4, widths=[6, 8, 10]))
    config = Config.from_dict({"nern.attention_loss_weight": 0.5, "nern.distillation_loss_weight": 0.25}).nern
    rng = torch.Generator().manual_seed(9)
    weights = [w + 0.1 * torch.randn(w.shape, generator=rng) for w in original.weights]
    with_teacher, without = Objective(config, original, teacher), Objective(config, original)
    found, plain = with_teacher(weights, images), without(weights, images)
    outputs, own_maps = original.run(weights, images, None, True)
    distilled = DISTILLATION_LOSSES[config.distillation_loss_type]
    torch.testing.assert_close(found.terms["distillation"], distilled(teacher(images), outputs))
    torch.testing.assert_close(plain.terms["distillation"], distilled(original(images), outputs))
    assert not torch.allclose(found.terms["distillation"], plain.terms["distillation"])
    compared = FEATURE_MAP_LOSSES[config.attention_loss_type](original.features(images)[1], own_maps)
    torch.testing.assert_close(found.terms["feature_maps"], compared)
    for name in ("feature_maps", "reconstruction"):
        assert torch.equal(found.terms[name], plain.terms[name])
    assert not any(p.requires_grad for p in teacher.network.parameters())
    assert not teacher.network.training
    twin = Objective(config, original, Original(small_resnet()))(weights, images)  # the original as its own teacher
    torch.testing.assert_close(twin.total, plain.total)


@pytest.mark.parametrize("named", [True, False])
def test_a_mirrored_teacher_is_the_named_network_or_the_original(
    configure: Configure, images: Tensor, named: bool
) -> None:
    (member,) = build_experiment(configure({"teacher.mirrored": True} | ({} if named else NONE))).members
    assert member.teacher is not None
    (plain,) = build_experiment(configure({} if named else NONE)).members
    single = plain.teacher or plain.original
    torch.testing.assert_close(member.teacher(images), (single(images) + single(images.flip(-1))) / 2)
    assert member.teacher.digest() == single.digest()


@pytest.mark.parametrize(
    ("task", "mirrors"),
    [("cifar10", True), ("cifar100", True), ("imagenet", True), ("imagefolder", True), ("digits", False)],
)
def test_tasks_say_whether_images_are_mirrored(configure: Configure, task: str, mirrors: bool) -> None:
    config = configure(NONE)
    config.task.task_name, config.teacher.mirrored = task, None
    original = Original(small_resnet())
    (found,) = build_teachers(config, torch.device("cpu"), [original])
    assert isinstance(found, Mirrored) is mirrors
    config.task.use_random_data = True  # made-up images have no class to keep
    assert build_teachers(config, torch.device("cpu"), [original]) == [None]
    config.teacher.mirrored = True
    assert isinstance(build_teachers(config, torch.device("cpu"), [original])[0], Mirrored)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"teacher.original_model_name": "ResNet9"}, r"unknown .*'ResNet9'.*ResNet8"),
        ({"teacher.original_model_name": None}, r"teacher\.original_model_name is null, so the original network is"),
        ({"nern.distillation_loss_weight": 0.0}, r"set nern\.distillation_loss_weight above 0"),
        (
            {"networks": [{"original_model_path": "a.pt"}] * 2, "original_model_path": None},
            r"teacher\.original_model_name works with one original network; networks lists several",
        ),
    ],
)
def test_mistakes_are_named_before_anything_is_built(
    configure: Configure, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(NernError, match=message):
        configure(values)


def test_a_teacher_that_does_not_fit_is_refused(configure: Configure, files: Path) -> None:
    said = r"ResNet8 gives outputs of shape \(7,\) an image; task digits has 10 classes"
    for path, message in (("seven.pt", said), ("gone.pt", r"gone\.pt")):
        with pytest.raises(NernError, match=message):
            build_experiment(configure({"teacher.original_model_path": str(files / path)}))


def losses(folder: RunFolder, term: str) -> list[float]:
    return [record[term] for record in folder.load_state()["losses"] if term in record]


def test_a_run_follows_its_teacher_and_is_evaluated_against_the_original(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, plain = train(configure()), train(configure(NONE))
    assert losses(folder, "reconstruction")[0] == losses(plain, "reconstruction")[0]
    assert losses(folder, "feature_maps")[0] == pytest.approx(losses(plain, "feature_maps")[0])
    assert losses(folder, "distillation")[0] != pytest.approx(losses(plain, "distillation")[0])
    metrics = json.loads(folder.metrics.read_text())
    assert metrics["original"] == json.loads(plain.metrics.read_text())["original"]
    assert metrics["sizes"]["original_parameters"] == sum(p.numel() for p in small_resnet().parameters())
    file = folder.root / "figures.json"
    assert main(["evaluate", "--run", str(folder.root), "--json", str(file)]) == 0
    assert "Traceback" not in capsys.readouterr().err
    figures = json.loads(file.read_text())
    assert figures["original"]["top1"] == metrics["original"]["test"]["top1"]
    assert figures["reconstructed"]["agreement"] == metrics["best"]["test"]["agreement"]


def test_a_run_with_a_teacher_goes_on_as_if_uninterrupted(configure: Configure) -> None:
    config = configure()
    whole = train(config)
    assert_same_result(resume(interrupted(config, 3)), whole)
