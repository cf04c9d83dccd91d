"""Training by phases: what is set and has no part is refused; what a run trained with is what is read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nern
from nern import Config, NernError
from nern.experiment import build_experiment, ordering_beside
from runs import SHORT, resume, train

Configure = Callable[..., Config]
BASE = SHORT
PHASES: dict[str, Any] = {
    "num_iterations": None,
    "loss_warmup_iterations": 10000,
    "reconstruction.iterations": 2,
    "distillation.iterations": 2,
}
IMPROVED = {
    "nern.embeddings.permutations.permute_mode": "crossfilter",
    "nern.embeddings.permutations.improve_seconds": 0.2,
}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss_warmup_iterations": 5}, r"loss_warmup_iterations \(=5\) has no effect"),
        ({"nern.reconstruction_loss_weight": 0}, r"no loss of .* has a weight above 0"),
        (
            {"teacher.original_model_name": "ResNet8", "distillation.iterations": None},
            r"teacher has no effect without a phase of distillation",
        ),
    ],
)
def test_what_has_no_part_in_phases_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(NernError, match=message):
        Config.from_dict({"epochs": None, **PHASES, **values})


def test_a_rate_for_both_phases_over_a_recipe_is_refused_naming_the_keys() -> None:
    with pytest.raises(
        NernError,
        match=r"optim\.lr .*: recipe 'nern' sets reconstruction\.optim\.lr, refinement\.optim\.lr, distillation\.optim\.lr",
    ):
        Config.of_recipe("nern", {"optim": {"lr": 1.0}})
    config = Config.of_recipe("nern", {"optim": {"weight_decay": 0.1}})
    assert config.optim.weight_decay == 0.1


def test_a_run_whose_ordering_is_gone_is_refused_where_it_would_not_be_found_again(configure: Configure) -> None:
    folder = train(configure(PHASES | IMPROVED))
    folder.ordering.unlink()
    with pytest.raises(NernError, match="is missing"):
        nern.load_run(folder.root)
    with pytest.raises(NernError, match="is missing"):
        resume(folder)


def test_a_checkpoint_brings_the_ordering_of_its_run(configure: Configure, tmp_path: Path) -> None:
    folder = train(configure(PHASES | IMPROVED))
    begun = {"nern.init": "checkpoint", "nern.checkpoint_path": str(folder.checkpoint("last"))}
    config = configure(PHASES | IMPROVED | begun)
    assert ordering_beside(config) == str(folder.ordering)
    assert build_experiment(config).ordering_source == f"read from {folder.ordering}"
    other = configure(PHASES | begun | {"nern.embeddings.permutations.permute_mode": "infilter"})
    assert ordering_beside(other) is None
    alone = tmp_path / "elsewhere.pt"
    alone.write_bytes(folder.checkpoint("last").read_bytes())
    assert ordering_beside(configure(PHASES | IMPROVED | begun | {"nern.checkpoint_path": str(alone)})) is None


@pytest.mark.parametrize(
    ("key", "value"), [("teacher.original_model_name", "ResNet8"), ("teacher.mirrored", True), ("learn_fc_layer", True)]
)
def test_fit_refuses_what_needs_images(key: str, value: object, small: nn.Module) -> None:
    config = nern.fit_config(2)
    section, _, name = key.rpartition(".")
    setattr(getattr(config, section) if section else config, name, value)
    with pytest.raises(NernError, match="fit has no images"):
        nern.fit(small, config=config, progress=False)


@pytest.fixture
def small() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3))
