"""Refinement: a phase whose errors count as they move the outputs; norms fitted at the end of phases without images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from nern import Config, NernError
from nern.objectives.curvature import curvatures
from nern.originals.norm_fitting import fitted_norms
from nern.tasks.streams import first_images
from runs import SHORT, assert_same_result, build, interrupted, resume, same, train

BASE: dict[str, Any] = SHORT | {
    "nern.weights_batch_size": 65536,
    "nern.attention_loss_weight": 0.0,
    "optim.lr": 1e-2,
    "reconstruction.iterations": 2,
    "refinement.iterations": 3,
    "refinement.images": 24,
    "refinement.optim.lr": 2e-3,
    "refinement.optim.optimizer_type": "soap",
    "distillation.iterations": 2,
    "learn_norms": True,
    "norm_images": 30,
}
Configure = Callable[..., Config]


@pytest.mark.parametrize("rows", ["all", "drawn"])
def test_the_loss_is_the_root_of_the_form(configure: Configure, rows: str) -> None:
    given = {"nern.reconstruction_rows": rows, "refinement.weights_batch_method": "random_filters"}
    trainer = build(configure(given))
    original = trainer.members[0].original
    assert trainer.members[0].task is not None
    found = curvatures(original, trainer.members[0].task.train, 24, 0, True)
    for _ in range(2):
        trainer.do_step()
    for _ in range(5):
        predicted = trainer.nern.reconstruct()
        losses = trainer.do_step()
        pairs = zip(found, predicted, original.weights, strict=True)
        errors = torch.cat([c(p - w).flatten() for c, p, w in pairs])
        assert float(losses.terms["reconstruction"].detach()) == pytest.approx(
            float(errors.square().mean().sqrt()), rel=1e-4
        )


def test_norms_are_fitted_at_the_end_of_each_phase_without_images(configure: Configure) -> None:
    trainer = build(configure())
    original = trainer.members[0].original
    assert trainer.members[0].task is not None
    assert trainer.members[0].task.train is not None
    images = first_images(trainer.members[0].task.train, 30)
    for step in range(1, 6):
        before = {name: p.detach().clone() for name, p in trainer.extra.items()}
        trainer.do_step()
        if step in (2, 5):
            wanted = fitted_norms(original, trainer.nern.reconstruct(), images)
            assert wanted
            assert all(torch.equal(trainer.extra[name], value) for name, value in wanted.items())
        else:
            assert same(before, {name: p.detach() for name, p in trainer.extra.items()})
    before = {name: p.detach().clone() for name, p in trainer.extra.items()}
    trainer.do_step()
    assert not same(before, {name: p.detach() for name, p in trainer.extra.items()})  # distillation trains them


@pytest.mark.usefixtures("no_picture")
def test_a_run_stopped_anywhere_ends_as_an_uninterrupted_one(configure: Configure) -> None:
    whole = train(configure({"logging.exp_name": "whole"}))
    for step in (2, 3, 6):
        stopped = interrupted(configure({"logging.exp_name": f"stopped-{step}"}), step)
        assert_same_result(whole, resume(stopped))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"refinement.images": 0}, r"refinement\.images \(=0\) must be at least 1"),
        ({"learn_norms": False}, r"norm_images \(=30\) needs learn_norms: true"),
        ({"refinement.iterations": None}, r"refinement\.images \(=24\) has no effect: that phase has no length"),
        (
            {"nern.reconstruction_rows": "drawn", "nern.weights_batch_method": "random_batch", "norm_images": 1},
            r"whole filters.*'random_batch'; set refinement\.weights_batch_method to one of all, .*random_filters",
        ),
        (
            {"nern.reconstruction_loss_weight": 0.0},
            r"no loss of reconstruction has a weight above 0 \(nern\.reconstruction_loss_weight\), but",
        ),
    ],
)
def test_what_does_not_go_together_is_said_before_any_work(
    configure: Configure, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(NernError, match=message):
        configure(given).check()
