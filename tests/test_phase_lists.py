"""Phases as a list: what an item is, what changes it, what its losses and errors are; and runs that are made longer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nern
from nern import Config, NernError
from nern.cli import main
from nern.config.phases import KNOWN
from nern.training.phases import phases_of
from runs import TINY, build, quiet, resume, train

pytestmark = pytest.mark.usefixtures("no_pictures")

BASE: dict[str, Any] = TINY | {"logging.log_interval": 1, "epochs": None}
LIST: list[dict[str, Any]] = [
    {"name": "rough", "iterations": 2, "losses": ["reconstruction"], "optim": {"lr": 0.02}},
    {"name": "reconstruction", "iterations": 2},
    {"name": "outputs", "epochs": None, "iterations": 2, "losses": ["distillation"], "optim": {"lr": 1e-3}},
]
Configure = Callable[..., Config]


# --- the list ------------------------------------------------------------------------------------------------------


def test_phases_run_in_the_order_of_their_list(configure: Configure) -> None:
    phases = phases_of(configure(phases=LIST), 5)
    assert [(p.name, p.begins, p.ends, p.images_from) for p in phases] == [
        ("rough", 0, 2, 2),
        ("reconstruction", 2, 4, 4),
        ("outputs", 4, 6, 4),
    ]
    assert [p.optim.lr for p in phases] == [0.02, 1e-4, 1e-3]


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_phase_is_what_its_name_says(name: str) -> None:
    (phase,) = Config.from_dict({"epochs": None, "phases": [{"name": name, "iterations": 3}]}).phases
    assert {key: getattr(phase, key) for key in KNOWN[name]} == KNOWN[name]
    assert phase == Config.from_dict({"epochs": None, name: {"iterations": 3}}).phases[0]


def test_a_phase_of_a_base_file_is_changed_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "base.yaml").write_text(
        "epochs: null\nphases: [{name: mine, iterations: 5, losses: [reconstruction]}]\n"
    )
    (tmp_path / "own.yaml").write_text("base: base.yaml\nmine: {iterations: 8}\n")
    assert Config.load(tmp_path / "own.yaml").phase("mine").iterations == 8
    typed = ["--mine.optim.lr", "0.5", "--config_path", str(tmp_path / "own.yaml"), "--print_config"]
    assert main(["train", *typed]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    phase = Config.load(tmp_path / "printed.yaml").phase("mine")
    assert (phase.iterations, phase.optim) == (8, {"lr": 0.5})


def test_known_phases_that_are_added_stand_in_their_places() -> None:
    config = Config.from_dict({"epochs": None, "distillation.iterations": 3, "reconstruction.iterations": 2})
    assert [p.name for p in config.phases] == ["reconstruction", "distillation"]
    config.phase("quantisation").iterations = 1
    config.phase("refinement").iterations = 1
    assert [p.name for p in config.phases] == list(KNOWN)
    assert Config.from_dict(config.check().to_dict()) == config


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([{"iterations": 3}], "item 1 needs a name"),
        ([{"name": "a", "iterations": 3}, {"name": "a", "iterations": 3}], "two are named 'a'"),
        ([{"name": "a", "iteration": 3}], r"phases\.iteration'.*iterations"),
        ([{"name": "a", "iterations": 3, "optim": {"lr": "fast"}}], r"a\.optim\.lr needs a number, not 'fast'"),
        ([{"name": "a", "iterations": 3, "losses": ["reconstructions"]}], r"a\.losses.*did you mean 'reconstruction'"),
        ([{"name": "a", "iterations": 3, "errors": "curved"}], r"a\.errors.*did you mean 'curvature'"),
        ([{"name": "a", "epochs": 3, "losses": ["reconstruction"]}], r"a\.epochs \(=3\) counts epochs of images, but"),
        ([{"name": "a", "iterations": 3, "losses": ["task"]}], r"no loss of a has a weight above 0"),
        ([{"name": "best", "iterations": 3}], "'best' cannot be the name of a phase"),
        ("distillation", "phases is a list of sections"),
    ],
)
def test_mistakes_in_a_list_are_named(phases: Any, said: str) -> None:
    with pytest.raises(NernError, match=said):
        Config.from_dict({"epochs": None, "phases": phases})


# --- losses, errors, bits ------------------------------------------------------------------------------------------


def test_each_phase_has_the_losses_that_it_names(configure: Configure) -> None:
    trainer = build(configure(phases=[*LIST, {"name": "all", "iterations": 1}], **{"nern.attention_loss_weight": 1e-3}))
    losses = [trainer.do_step() for _ in range(7)]
    weights = trainer.differentiate.objectives[0].all_weights
    terms = [{name for name, weight in weights.items() if weight > 0 and name in found.terms} for found in losses]
    outputs = {"reconstruction", "distillation"}  # the error of the weights is always told, whether it counts or not
    assert terms == [{"reconstruction"}] * 4 + [outputs] * 2 + [outputs | {"feature_maps"}]
    alone = losses[4]
    torch.testing.assert_close(alone.total, weights["distillation"] * alone.terms["distillation"])


def test_errors_and_bits_are_those_of_their_phase(configure: Configure) -> None:
    phases = [
        {"name": "refinement", "iterations": 1, "images": 8},
        {"name": "as_before", "iterations": 1, "bits": 5, "images": 8},
        {"name": "alike", "iterations": 1, "errors": "plain"},
    ]
    trainer, seen = build(configure(phases=phases)), []
    for _ in phases:
        trainer.do_step()
        seen.append((trainer.differentiate.curvatures is not None, trainer.rounding.quantised is not None))
    assert seen == [(True, False), (True, True), (False, False)]


# --- longer runs ---------------------------------------------------------------------------------------------------

CONSTANT = {"optim.lr_scheduler_type": "constant"}


def test_a_finished_run_made_longer_is_the_longer_run_at_a_constant_rate(configure: Configure) -> None:
    short, long = (train(configure(phases=LIST, outputs={"iterations": n}, **CONSTANT)) for n in (2, 5))
    nern.resume(short.root, quiet(), lengths={"outputs.iterations": 5})
    assert Config.load(short.config).phase("outputs").iterations == 5
    ends = json.loads(short.metrics.read_text())["phases"][-1]
    assert (ends["name"], ends["steps"], ends["ends"]) == ("outputs", 5, 9)
    one, other = (torch.load(folder.checkpoint("last")) for folder in (short, long))
    assert all(torch.equal(one[name], other[name]) for name in one)
    resume(short)  # and nothing more


def test_a_phase_can_follow_a_finished_run(configure: Configure) -> None:
    folder = train(configure(phases=LIST))
    metrics = nern.resume(folder.root, quiet(), lengths={"quantisation.iterations": 2})
    assert [p["name"] for p in metrics["phases"]] == ["rough", "reconstruction", "outputs", "quantisation"]
    assert metrics["steps"] == 8


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--rough.iterations", "3"], "phase rough (steps 0 to 2) cannot have 3 steps now"),
        (["--outputs.iterations", "1"], "phase outputs (steps 4 to 6) cannot have 1 steps now"),
        (["--seed", "1"], "drop --seed"),
        (["--outputs.iterations", "many"], "outputs.iterations needs a whole number"),
        (["--absent.iterations", "3"], "absent.iterations"),
    ],
)
def test_what_cannot_change_is_refused_and_the_run_is_as_before(
    configure: Configure, typed: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(configure(phases=LIST))
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}
    assert main(["train", "--resume", str(folder.root), *typed]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()} == before


def test_a_killed_extension_goes_on(configure: Configure) -> None:
    folder, whole = (train(configure(phases=LIST, outputs={"iterations": n}, **CONSTANT)) for n in (2, 4))
    text = folder.config.read_text().replace("name: outputs\n  iterations: 2", "name: outputs\n  iterations: 4")
    folder.config.write_text(text)  # as after a kill: the config is the new one, the state the old one
    resume(folder)
    one, other = (torch.load(f.checkpoint("last")) for f in (folder, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)
