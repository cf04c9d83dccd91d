"""Steps that are captured and replayed. Without a GPU a stand-in records them; what a GPU alone can show is marked so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from nern.config import Config
from nern.errors import NernWarning, NonFiniteLossError
from nern.training import Trainer
from nern.training.graph import WARM_UP, GraphedStep
from runs import build

pytestmark = pytest.mark.usefixtures("rng_untouched")

SETTINGS: dict[str, Any] = {
    "original_model_path": "pretrained:digits-resnet8",
    "nern.hidden_layer_size": 12,
    "nern.weights_batch_size": 300,
    "nern.weights_batch_method": "random_weighted_batch",
    "nern.attention_loss_weight": 0.1,
    "nern.distillation_loss_weight": 0.1,
    "loss_warmup_iterations": 7,
    "batch_size": 6,
    "epochs": None,
    "num_iterations": 60,
    "eval_epochs_interval": None,
    "optim.lr": 1e-3,
    "optim.optimizer_type": "ranger",
    "optim.max_gradient_norm": 0.5,
    "evaluation.test_images": 50,
}


STEPS = 16


class Rerun:
    """Records work by doing it again each time, on the tensors it was recorded with."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Do it."""
        return work()

    def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Count, and do it when asked."""
        self.recorded += 1
        result = torch.empty(0)

        def replay() -> Tensor:
            self.replayed += 1
            values = work()
            return result.resize_(values.shape).copy_(values)  # the same memory each time, as a graph's

        return replay


def make(**settings: Any) -> Trainer:
    """A trainer on digits."""
    return build(Config.from_dict(SETTINGS | settings))


def run(trainer: Trainer, steps: int) -> None:
    """Take so many steps."""
    for _ in range(steps):
        trainer.do_step()


def parameters(trainer: Trainer) -> list[Tensor]:
    """Copies of what is trained."""
    return [p.detach().clone() for p in trainer.parameters]


# --- the same result ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"nern.weights_batch_method": "all"},
        {"nern.weights_batch_method": "random_batch_without_replacement", "nern.reconstruction_rows": "drawn"},
        {"optim.optimizer_type": "adamw", "nern.task_loss_weight": 0.1, "learn_fc_layer": True},
        {"precision": "bf16", "nern.norm_layer": "ln"},
    ],
    ids=["ranger", "all rows", "short slices", "labels and classifier", "bf16"],
)
def test_replayed_steps_train_as_plain_ones(settings: dict[str, Any]) -> None:
    plain, replayed, recorder = make(**settings), make(**settings), Rerun()
    replayed.replay_steps(recorder)
    for _ in range(STEPS):
        one, other = plain.do_step(), replayed.do_step()
        assert one.terms.keys() == other.terms.keys()
        assert torch.equal(one.total.detach(), other.total)
        assert all(torch.equal(one.terms[name].detach(), other.terms[name]) for name in one.terms)
    assert all(torch.equal(a, b) for a, b in zip(parameters(plain), parameters(replayed), strict=True))
    assert recorder.recorded >= 2  # with images and without
    assert recorder.replayed >= STEPS - WARM_UP * recorder.recorded - 4


def test_what_is_returned_stays_when_the_step_is_replayed() -> None:
    step = GraphedStep(lambda inputs: inputs[0] * 2, Rerun())
    results = [step([torch.tensor([float(number)])]) for number in range(WARM_UP + 4)]
    assert [float(result) for result in results] == [2.0 * number for number in range(WARM_UP + 4)]


def test_a_step_that_cannot_be_captured_runs_without() -> None:
    class Refusing(Rerun):
        def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
            raise RuntimeError("operation not permitted when stream is capturing")

    plain, other = make(), make()
    other.replay_steps(Refusing())
    with pytest.warns(NernWarning, match=r"cannot be captured as a CUDA graph.*not permitted"):
        run(other, 14)
    run(plain, 14)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        plain.do_step(), other.do_step()
    assert all(torch.equal(a, b) for a, b in zip(parameters(plain), parameters(other), strict=True))


def test_a_run_is_interrupted_and_resumed_as_without_graphs() -> None:
    plain, first, second = make(), make(), make()
    for trainer in (first, second):
        trainer.replay_steps(Rerun())
    run(plain, 20), run(first, 11), run(second, 5)  # what the second did is forgotten
    second.load_state(first.state())
    run(second, 9)
    assert all(torch.equal(a, b) for a, b in zip(parameters(plain), parameters(second), strict=True))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"nern.reconstruction_rows": "drawn"}, True),
        ({"nern.reconstruction_rows": "drawn", "nern.reconstruction_loss_type": "MSELoss"}, False),  # sorts by layer
    ],
)
def test_only_steps_that_never_wait_are_captured(settings: dict[str, Any], expected: bool) -> None:
    assert make(**settings).differentiate.capturable == expected


def test_gradients_are_those_of_the_step_that_was_replayed_last() -> None:
    class Kept(Rerun):
        def record(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
            result, parameter.grad = work(), torch.full((2,), float(self.recorded))
            self.recorded += 1
            return lambda: result

    parameter = torch.zeros(2)
    step = GraphedStep(lambda inputs: inputs[0].sum().view(1), Kept(), [parameter])
    for number in range(3 * WARM_UP):
        for size in (1, 2):
            step([torch.ones(size)])
            assert number < WARM_UP or float(parameter.grad[0]) == size - 1


# --- losses that are not finite ----------------------------------------------------------------------------------


def poison(trainer: Trainer) -> None:
    """Make the next losses infinite."""
    with torch.no_grad():
        trainer.nern.predictor.layers[0].weight.fill_(float("inf"))


def test_a_loss_that_is_not_finite_is_named_with_its_step_when_it_is_looked_at() -> None:
    trainer = make(loss_warmup_iterations=0)
    trainer.replay_steps(Rerun())
    for _ in range(6):
        trainer.do_step()
    poison(trainer)
    trainer.do_step()
    trainer.do_step()
    with pytest.raises(NonFiniteLossError, match=r"step 6: .*reconstruction loss is"):
        trainer.settle()


@pytest.mark.parametrize("look", ["evaluate", "state"])
def test_nothing_is_evaluated_or_saved_before_the_losses_were_looked_at(look: str, tmp_path: Path) -> None:
    trainer = make(loss_warmup_iterations=0)
    trainer.replay_steps(Rerun())
    for _ in range(4):
        trainer.do_step()
    poison(trainer)
    trainer.do_step()
    with pytest.raises(NonFiniteLossError, match="step 4"):
        getattr(trainer, look)()


# --- nothing waits for the device --------------------------------------------------------------------------------


def faked(values: Any, mode: FakeTensorMode) -> Any:
    """Tensors without values: an operation whose result's shape or control flow depends on values fails on them."""
    return None if values is None else mode.from_tensor(values)


@pytest.mark.parametrize("with_images", [True, False])
@pytest.mark.parametrize("rows", ["all", "drawn"])
def test_the_losses_and_gradients_of_a_step_never_ask_for_a_value(with_images: bool, rows: str) -> None:
    trainer = make(**{"nern.reconstruction_rows": rows})
    batches, _ = trainer._images(10)
    drawn = trainer.batches.rows(3)
    trainer._differentiate(batches, drawn)  # what is found out once, is
    step, mode = trainer.differentiate, FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        try:
            losses = step(
                [tuple(faked(t, mode) for t in b) for b in batches] if with_images else None, faked(drawn, mode)
            )
        except DataDependentOutputException as error:
            pytest.fail(f"the step waits for the device: {error}")
    assert "reconstruction" in losses.terms


# --- on a GPU ----------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="captures real CUDA graphs")


@needs_gpu
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd", "adadelta"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_real_graphs_train_as_plain_steps(optimizer: str, precision: str) -> None:  # pragma: no cover
    settings = {"optim.optimizer_type": optimizer, "precision": precision}
    plain, graphed = make(**settings), make(**settings, cuda_graph=True)
    assert plain.graph is None
    assert graphed.graph is not None
    for _ in range(30):
        plain.do_step(), graphed.do_step()
    assert graphed.graph.graphs >= 2
    for a, b in zip(parameters(plain), parameters(graphed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
