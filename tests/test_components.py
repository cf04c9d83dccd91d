"""Components of a user's own, with settings of their own: configured in files, and trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nern import Config, NernError, registry
from nern.cli import main
from nern.objectives.objective import Outputs
from runs import TINY, build

BASE: dict[str, Any] = TINY | {"num_iterations": 2, "loss_warmup_iterations": 0}


@dataclass
class GainSettings:
    gain: float = 2.0
    depth: int = 1


@dataclass
class MarginSettings:
    power: float = 2.0


@pytest.fixture(autouse=True)
def mine(original: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registers a predictor and a loss term, both with settings, and an optimizer without."""
    plain = registry.PREDICTORS["kxk"]
    monkeypatch.setitem(BASE, "original_model_path", str(original))

    @registry.PREDICTORS.register("gained", settings=GainSettings)
    class Gained(plain):  # type: ignore[misc, valid-type]
        def __init__(self, *, settings: GainSettings, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.gain = nn.Parameter(torch.full((settings.depth,), settings.gain))

    @registry.LOSS_TERMS.register("margin", settings=MarginSettings, by_image=True, maps=True)
    def margin(seen: Outputs, *, settings: MarginSettings) -> Tensor:
        assert len(seen.maps) == len(seen.target_maps) > 0
        return (seen.outputs - seen.target).abs().pow(settings.power).mean()

    @registry.OPTIMIZERS.register("plain_sgd")
    def plain_sgd(parameters: Any, config: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=config.lr)

    yield
    registry.PREDICTORS.unregister("gained")
    registry.LOSS_TERMS.unregister("margin")
    registry.OPTIMIZERS.unregister("plain_sgd")


def config_of(**given: Any) -> Config:
    """The config of a tiny run on digits; keys given win over its own."""
    return Config.from_dict(BASE | {key.replace("__", "."): value for key, value in given.items()})


@pytest.mark.parametrize(
    ("choice", "gain"),
    [("gained", [2.0]), ({"name": "gained"}, [2.0]), ({"name": "gained", "gain": 3, "depth": 2}, [3.0, 3.0])],
)
def test_a_predictor_gets_its_settings(choice: Any, gain: list[float]) -> None:
    trainer = build(config_of(nern__method=choice))
    assert trainer.nern.predictor.gain.tolist() == gain
    trainer.do_step()


def test_settings_come_from_files_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.yaml").write_text("nern: {method: {name: gained, gain: 5}, losses: {margin: 0.5}}\n")
    loaded = Config.load(tmp_path / "own.yaml")
    assert loaded.nern.method == {"name": "gained", "gain": 5}
    options = ["--nern.method.depth", "3", "--nern.losses.margin", "0.25", "--optim.optimizer_type", "plain_sgd"]
    assert main(["train", "--config_path", str(tmp_path / "own.yaml"), *options, "--print_config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    printed = Config.load(tmp_path / "printed.yaml")
    assert printed.nern.method == {"name": "gained", "gain": 5, "depth": 3}
    assert printed.nern.losses == {"margin": 0.25}
    assert printed.optim.optimizer_type == "plain_sgd"
    (tmp_path / "other.yaml").write_text("base: own.yaml\nnern.method: {name: kxk}\n")
    assert Config.load(tmp_path / "other.yaml").nern.method == {
        "name": "kxk"
    }  # another component, none of its settings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"nern__method": {"name": "gained", "gian": 3}},
            r"setting of predictor .*'gained' 'gian'; did you mean 'gain'",
        ),
        (
            {"nern__method": {"name": "gained", "gain": "much"}},
            r"predictor \(nern\.method\) 'gained': gain needs a number, not 'much'",
        ),
        ({"nern__method": {"name": "kxk", "gain": 3}}, "'kxk' has no settings, but gain is given"),
        ({"nern__losses": {"margins": 1}}, "unknown loss term .*did you mean 'margin'"),
        ({"nern__losses": {"margin": "much"}}, r"nern\.losses\.margin needs a weight, a finite number, not 'much'"),
        ({"nern__losses": {"margin": {"weight": 1, "pow": 1}}}, r"setting of loss term .*'pow'; did you mean 'power'"),
    ],
)
def test_mistakes_in_settings_are_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(NernError, match=said):
        config_of(**values)


def test_a_loss_term_is_weighted_and_differentiated_like_the_others() -> None:
    given = {"nern__losses": {"margin": {"weight": 0.5, "power": 1}}, "nern__attention_loss_weight": 0}
    trainer = build(config_of(**given))
    before = [p.detach().clone() for p in trainer.parameters]
    losses = trainer.do_step()
    weights = trainer.differentiate.objectives[0].weights
    assert weights["margin"] == 0.5
    assert losses.terms.keys() == {"reconstruction", "distillation", "margin"}
    torch.testing.assert_close(losses.total, sum(weights[name] * value for name, value in losses.terms.items()))
    alone = build(config_of(**given, nern__reconstruction_loss_weight=0, nern__distillation_loss_weight=0))
    alone.do_step()
    moved = [not torch.equal(p, q) for p, q in zip(alone.parameters, before, strict=True)]
    assert any(moved)
