"""Training by phases: reconstruction, then distillation, each with its own optimizer, schedule and batches."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

import nern
from nern import Config, NernError
from nern.originals.cifar_resnet import CifarResNet
from nern.training.optimizers import clip_gradients
from nern.training.phases import phases_of
from nern.training.run_folder import RunFolder
from nern.training.trainer import Trainer
from runs import SHORT, assert_same_result, build, interrupted, resume, same, train, without_pictures

PHASES: dict[str, Any] = {
    "reconstruction.iterations": 4,
    "reconstruction.weights_batch_size": 48,
    "reconstruction.optim.optimizer_type": "muon",
    "reconstruction.optim.lr": 2e-2,
    "reconstruction.optim.min_lr": 0.0,
    "distillation.iterations": 3,
    "distillation.weights_batch_method": "random_layer",
    "distillation.optim.lr": 1e-3,
    "distillation.optim.max_gradient_norm": 1.0,
}
BASE = SHORT | PHASES | {"nern.weights_batch_method": "random_batch"}
NAMES = ["reconstruction", "distillation"]
ENDS = [4, 7]

Configure = Callable[..., Config]
State = dict[str, Tensor]


def predictor_of(trainer: Trainer) -> State:
    return {name: value.clone() for name, value in trainer.nern.predictor.state_dict().items()}


def cosine(highest: float, lowest: float, step: int, steps: int) -> float:
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * step / steps)) / 2


@given(
    reconstruction=st.none() | st.integers(0, 5),
    iterations=st.none() | st.integers(0, 5),
    epochs=st.none() | st.integers(0, 3),
    steps_per_epoch=st.integers(1, 4),
)
def test_phases_are_consecutive_and_cover_the_run(
    reconstruction: int | None, iterations: int | None, epochs: int | None, steps_per_epoch: int
) -> None:
    config = Config(epochs=11, loss_warmup_iterations=3)
    config.phase("reconstruction").iterations = reconstruction
    config.phase("distillation").iterations = iterations
    config.phase("distillation").epochs = None if iterations is not None else epochs
    phases = phases_of(config, steps_per_epoch)
    assert [phase.begins for phase in phases] == [0, *(phase.ends for phase in phases[:-1])]
    assert len({phase.name for phase in phases}) == len(phases)
    if not config.by_phases:
        assert reconstruction is iterations is epochs is None
        assert [(p.name, p.ends, p.images_from) for p in phases] == [("training", 11 * steps_per_epoch, 3)]
        return
    distilled = (epochs or 0) * steps_per_epoch if iterations is None else iterations
    steps = {phase.name: phase.steps for phase in phases}
    assert steps.get("reconstruction", 0) == (reconstruction or 0)
    assert steps.get("distillation", 0) == distilled
    assert len(phases) == 1 or all(steps.values())
    for phase in phases:
        assert phase.images_from == phase.begins if phase.name == "distillation" else phase.images_from >= phase.ends


@pytest.mark.parametrize("phase", ["refinement", "distillation"])
@pytest.mark.parametrize(("given", "held"), [(None, 0.5), (0, 0.0), (2, 2.0)])
def test_zero_switches_off_in_a_phase_what_is_set_for_all(phase: str, given: float | None, held: float) -> None:
    values = {"optim.max_gradient_norm": 0.5, "optim.max_gradient": 0.5, "nern.weights_batch_size": 7}
    own = {f"{phase}.optim.max_gradient_norm": given, f"{phase}.optim.max_gradient": given}
    rows = None if given is None else int(given)
    config = Config.from_dict(values | own | {f"{phase}.iterations": 3, f"{phase}.weights_batch_size": rows})
    (only,) = phases_of(config, 10)
    assert (only.optim.max_gradient_norm, only.optim.max_gradient) == (held, held)
    assert only.weights_batch_size == {None: 7, 0: None, 2: 2}[rows]
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([30.0, 40.0])
    clip_gradients([parameter], only.optim)
    assert float(parameter.grad.norm()) == pytest.approx(held or 50.0, rel=1e-4)
    assert Config.from_dict(config.to_dict()) == config


ALONE = {"epochs": None, "reconstruction.iterations": 4}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reconstruction.iterations": 4, "epochs": 250}, r"set epochs and num_iterations to null \(epochs is 250"),
        (ALONE | {"distillation.iterations": 3, "distillation.epochs": 2}, r"one of distillation\.iterations \(=3\)"),
        ({"reconstruction.optim.lr": 0.1}, r"^reconstruction\.optim \(=.*\) has no effect: that phase has no length"),
        (ALONE | {"distillation.optim.lr": 1e-9}, r"^distillation\.optim\.min_lr \(=1e-06\) must not be above"),
        (ALONE | {"distillation.optim.betas": [0.5, 1.0]}, r"^distillation\.optim\.betas \(=\[0\.5, 1\.0\]\)"),
        (ALONE | {"reconstruction.optim.optimizer_type": "adm"}, r"unknown .*'adm'.*adamw"),
        (
            ALONE | {"nern.weights_batch_size": None, "reconstruction.weights_batch_method": "random_weighted_batch"},
            r"'random_weighted_batch' of reconstruction needs reconstruction\.weights_batch_size",
        ),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(NernError, match=message):
        Config.from_dict(values)


@dataclasses.dataclass
class Seen:
    """What one step was given."""

    phase: str
    lr: float
    optimizer: Any
    batches: Any
    rows: Tensor | None
    before: State
    terms: dict[str, float]
    after: State


def watched(trainer: Trainer, patch: pytest.MonkeyPatch) -> list[Seen]:
    """Every step of the trainer, as it is taken."""
    seen: list[Seen] = []
    train_step = Trainer.train_step

    def watching(self: Trainer, batches: Any, rows: Any, fractions: Any = None) -> Any:
        before, phase, lr = predictor_of(self), self.phase.name, self.schedule.lr
        losses = train_step(self, batches, rows, fractions)
        terms = {name: float(value.detach()) for name, value in losses.terms.items()}
        assert self.lr == lr
        seen.append(Seen(phase, lr, self.optimizer, batches, rows, before, terms, predictor_of(self)))
        return losses

    patch.setattr(Trainer, "train_step", watching)
    return seen


def test_each_phase_has_its_own_optimizer_schedule_and_batches(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(configure())
    seen = watched(trainer, monkeypatch)
    at_end = {}
    while trainer.step < trainer.total_steps:
        trainer.do_step()
        at_end[trainer.phase.name] = trainer.schedule.lr
    assert [step.phase for step in seen] == [NAMES[0]] * 4 + [NAMES[1]] * 3
    falling = [cosine(2e-2, 0.0, step, 4) for step in range(4)]
    assert [step.lr for step in seen] == pytest.approx(falling + [cosine(1e-3, 1e-6, step, 3) for step in range(3)])
    assert list(at_end.values()) == pytest.approx([0.0, 1e-6], abs=1e-12)
    assert [type(step.optimizer).__name__ for step in seen] == ["Muon"] * 4 + ["AdamW"] * 3
    assert len({id(step.optimizer) for step in seen}) == 2
    assert seen[0].optimizer is seen[1].optimizer
    assert all(len(step.rows) == 48 for step in seen[:4] if step.rows is not None)
    table = trainer.nern.table
    layers = [torch.arange(table.starts[i], table.starts[i + 1]) for i in range(len(table.shapes))]
    assert all(step.batches is None and step.terms.keys() == {"reconstruction"} for step in seen[:4])
    assert trainer.members[0].task is not None
    stream = trainer.members[0].task.train
    for number, step in enumerate(seen[4:]):  # distillation begins with the first images
        assert step.terms.keys() == {"reconstruction", "feature_maps", "distillation"}
        assert step.rows is not None
        assert any(torch.equal(step.rows, layer) for layer in layers)
        assert stream is not None
        assert all(map(torch.equal, step.batches[0], stream.batch(number)))


def test_losses_and_evaluations_tell_their_phase(configure: Configure) -> None:
    trainer, scalars = build(configure({"eval_iterations_interval": 3})), {}

    class Kept:
        def log(self, named: dict[str, float], step: int) -> None:
            for name in named:
                scalars.setdefault(name, []).append(step)

        def close(self) -> None:
            """Nothing to close."""

    trainer.tracker = Kept()
    trainer.fit()
    assert [record["phase"] for record in trainer.history.losses] == [NAMES[0]] * 4 + [NAMES[1]] * 3
    told = [(record["step"], record["phase"]) for record in trainer.history.evaluations]
    assert told == [(3, NAMES[0]), (4, NAMES[0]), (6, NAMES[1]), (7, NAMES[1])]
    for name, steps in zip(NAMES, ([0, 1, 2, 3], [4, 5, 6]), strict=True):
        assert scalars[f"{name}/loss/{name}"] == scalars[f"{name}/loss/total"] == scalars[f"{name}/optim/lr"] == steps
    assert "reconstruction/loss/distillation" not in scalars
    assert not any(name.startswith(("loss/", "optim/")) for name in scalars)
    assert scalars["test/top1"] == [3, 4, 6, 7]


@pytest.mark.usefixtures("no_picture")
def test_a_run_keeps_a_checkpoint_and_the_figures_of_each_phase(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, output = configure({"save_iterations_interval": 3}), io.StringIO()
    seen = watched(build(config), monkeypatch)
    metrics = nern.train(config, Console(file=output, width=200))
    folder = RunFolder(metrics["run_folder"])
    kept = {file.stem: torch.load(file) for file in (folder.root / "checkpoints").iterdir()}
    assert kept.keys() == {*NAMES, "best", "last", "step_3", "step_6"}
    assert all(same(kept[name], seen[end - 1].after) for name, end in zip(NAMES, ENDS, strict=True))
    assert same(kept["last"], seen[-1].after)
    state = folder.load_state()
    phases = json.loads(folder.metrics.read_text())["phases"]
    assert [(p["name"], p["steps"], p["ends"]) for p in phases] == list(zip(NAMES, [4, 3], ENDS, strict=True))
    for phase, record in zip(phases, state["evaluations"], strict=True):
        assert record["step"] == phase["ends"]
        assert {key: phase[key] for key in ("held_out", "test")} == {key: record[key] for key in ("held_out", "test")}
    assert metrics["steps"] == 7
    text = output.getvalue()
    assert "7 steps (reconstruction: 4, distillation: 3) on " in text
    assert "step 1/7" not in text
    assert all(f"step {end}/7, {name}: test" in text for end, name in zip(ENDS, NAMES, strict=True))
    assert isinstance(nern.load_run(folder.root, "reconstruction"), CifarResNet)


@pytest.fixture(scope="module")
def whole(original: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """An uninterrupted run of three phases."""
    own = {"original_model_path": str(original), "logging.log_dir": str(tmp_path_factory.mktemp("whole"))}
    with without_pictures():
        return train(Config.from_dict(own | BASE))


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_run_stopped_anywhere_and_resumed_equals_the_uninterrupted_one(
    configure: Configure, whole: RunFolder, step: int
) -> None:
    resumed = resume(interrupted(configure(), step))
    assert_same_result(whole, resumed)
    phases = [json.loads(folder.metrics.read_text())["phases"] for folder in (whole, resumed)]
    assert phases[0] == phases[1]
