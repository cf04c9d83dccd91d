"""The frequency loss: reconstruction errors along the order of each layer's kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nern import Config, NernError
from nern.objectives import frequency
from nern.objectives.frequency import focal_frequency_loss
from nern.ordering.order import CrossFilterOrdering
from nern.originals import as_original
from nern.representation import KernelTable, build_nern
from nern.training import Member, Trainer

pytestmark = pytest.mark.usefixtures("rng_untouched")

SHAPES = ((4, 3, 3, 3), (5, 2), (2, 2, 1, 1))
BASE: dict[str, Any] = {
    "nern.hidden_layer_size": 7,
    "nern.embeddings.enc_levels": 4,
    "nern.frequency_loss_weight": 0.3,
    "nern.reconstruction_loss_weight": 0.7,
    "epochs": None,
    "num_iterations": 3,
}


def layers(rng: torch.Generator) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Original weights, predicted ones, orders."""
    original, predicted = ([torch.randn(shape, generator=rng) for shape in SHAPES] for _ in range(2))
    return original, predicted, [torch.randperm(shape[0] * shape[1], generator=rng) for shape in SHAPES]


def test_it_is_the_mean_over_frequencies_weighted_by_their_errors(rng: torch.Generator) -> None:
    original, predicted, orders = layers(rng)
    total = 0.0
    for o, r, order in zip(original, predicted, orders, strict=True):
        kernels = (r - o).reshape(o.shape[0] * o.shape[1], -1)
        for entry in range(kernels.shape[1]):
            sequence = torch.stack([kernels[int(place), entry] for place in order]).double()
            magnitude = torch.fft.fft(sequence).abs() / len(sequence) ** 0.5
            total += float((magnitude / magnitude.max() * magnitude.square()).sum())
    expected = (total / sum(o.numel() for o in original)) ** 0.5
    assert float(focal_frequency_loss(original, predicted, orders)) == pytest.approx(expected, rel=1e-5)


def test_without_weights_of_frequencies_it_is_the_mean_squared_error(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, predicted, orders = layers(rng)
    monkeypatch.setattr(frequency, "POWER", 0.0)
    errors = torch.cat([(r - o).flatten() for o, r in zip(original, predicted, strict=True)])
    torch.testing.assert_close(focal_frequency_loss(original, predicted, orders), errors.square().mean().sqrt())


def test_no_gradient_flows_through_the_weights_of_frequencies(rng: torch.Generator) -> None:
    original, predicted, orders = layers(rng)
    leaves = [p.requires_grad_() for p in predicted]
    loss = focal_frequency_loss(original, leaves, orders)
    loss.backward()  # type: ignore[no-untyped-call]
    pairs = zip(leaves, original, strict=True)
    along = sum(float((leaf.grad * (leaf.detach() - o)).sum()) for leaf, o in pairs if leaf.grad is not None)
    assert along == pytest.approx(
        float(loss.detach()), rel=1e-5
    )  # of a weighted root of squares; else half as much again


def test_an_exact_match_is_zero_with_zero_gradient(rng: torch.Generator) -> None:
    original, _, orders = layers(rng)
    leaves = [o.clone().requires_grad_() for o in original]
    loss = focal_frequency_loss(original, leaves, orders)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def test_a_smooth_error_counts_more_along_the_order_that_makes_it_smooth() -> None:
    places = torch.arange(64) / 64 * 2 * torch.pi
    error = places.sin().view(8, 8, 1, 1)
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    in_order, out_of_order = (
        float(focal_frequency_loss([torch.zeros(8, 8, 1, 1)], [error], [order]))
        for order in (torch.arange(64), shuffled)
    )
    assert in_order > 1.2 * out_of_order


# --- in training ------------------------------------------------------------------------------------------------------


@pytest.fixture
def make(small_cnn: Callable[..., nn.Module]) -> Callable[..., Trainer]:
    """Makes a trainer of one small network, or several, their kernels in an order at random."""

    def trainer(networks: int = 1, ordered: bool = True, **settings: Any) -> Trainer:
        config = Config.from_dict(BASE | settings)
        originals = [as_original(small_cnn(seed)) for seed in range(networks)]
        table = KernelTable.of_networks([o.weights for o in originals], config.nern.embeddings.num_idxs)
        rng = torch.Generator().manual_seed(5)
        orders = [torch.randperm(shape[0] * shape[1], generator=rng) for shape in table.shapes]
        ordering = CrossFilterOrdering(orders) if ordered else None
        nern_ = build_nern(config.nern, table, ordering, 0, "cpu", [w for o in originals for w in o.weights])
        return Trainer(config, [Member(o, name=str(i)) for i, o in enumerate(originals)], nern_)

    return trainer


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("basic", [{}, {"nern.method": "basic", "nern.embeddings.num_idxs": 5}])
def test_a_step_adds_it_along_the_ordering(
    make: Callable[..., Trainer], networks: int, ordered: bool, basic: dict[str, Any]
) -> None:
    trainer = make(networks, ordered, **basic)
    losses = trainer.differentiate(None, None)
    rng = torch.Generator().manual_seed(5)
    counts = [shape[0] * shape[1] for shape in trainer.nern.table.shapes]
    orders = [torch.randperm(n, generator=rng) if ordered else torch.arange(n) for n in counts]
    predicted, begins, expected = trainer.nern.reconstruct(), 0, 0.0
    for member in trainer.members:
        own = slice(begins, begins + len(member.original.weights))
        expected += float(focal_frequency_loss(member.original.weights, predicted[own], orders[own])) / networks
        begins = own.stop
    assert float(losses.terms["frequency"]) == pytest.approx(expected, rel=1e-5)
    total = 0.7 * float(losses.terms["reconstruction"]) + 0.3 * expected
    assert float(losses.total) == pytest.approx(total, rel=1e-5)


def test_drawn_rows_carry_its_gradient_where_all_are_compared(make: Callable[..., Trainer]) -> None:
    trainer = make(**{"nern.weights_batch_method": "random_batch", "nern.weights_batch_size": 5})
    losses = trainer.differentiate(None, torch.tensor([0, 3, 30]))
    assert losses.terms.keys() == {"reconstruction", "frequency"}
    assert any(p.grad is not None and bool(p.grad.any()) for p in trainer.nern.predictor.parameters())


def test_off_there_is_no_such_term(make: Callable[..., Trainer]) -> None:
    trainer = make(**{"nern.frequency_loss_weight": 0.0})
    assert trainer.differentiate(None, None).terms.keys() == {"reconstruction"}


def test_steps_without_images_do_not_enter_the_window_of_losses(make: Callable[..., Trainer]) -> None:
    trainer = make(eval_loss_window_interval=1)
    trainer.evaluation_due(0, trainer.do_step())
    assert not trainer.assessment.window


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"nern.weights_batch_method": "random_batch"}, "nern.weights_batch_method"),
        (
            {
                "reconstruction.iterations": 2,
                "reconstruction.weights_batch_method": "random_layer",
                "num_iterations": None,
            },
            "reconstruction.weights_batch_method",
        ),
    ],
)
def test_it_needs_whole_layers(values: dict[str, Any], key: str) -> None:
    drawn = BASE | {"nern.reconstruction_rows": "drawn"}
    Config.from_dict(drawn).check()
    Config.from_dict(drawn | values | {"nern.reconstruction_rows": "all"}).check()
    Config.from_dict(drawn | values | {"nern.frequency_loss_weight": 0.0}).check()
    with pytest.raises(NernError, match=f"compares whole layers.*{key} is"):
        Config.from_dict(drawn | values).check()


def test_its_weight_must_be_finite() -> None:
    with pytest.raises(NernError, match="finite"):
        Config.from_dict({"nern.frequency_loss_weight": float("nan")}).check()
