"""What arrives at the predictor in a step that draws rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nern.config import Config
from nern.originals.base import as_original
from nern.registry import RECONSTRUCTION_LOSSES, SAMPLING_MODES
from nern.representation.kernels import KernelTable
from nern.representation.nern import build_nern
from nern.training import step as step_module
from nern.training.members import Member
from nern.training.trainer import Trainer
from runs import LOSSES

pytestmark = pytest.mark.usefixtures("rng_untouched")

SETTINGS = LOSSES | {"nern.hidden_layer_size": 7, "nern.embeddings.enc_levels": 4, "num_iterations": 3}
HEADS: dict[str, dict[str, Any]] = {
    "per size": {"nern.heads": "per_size"},
    **{mode: {"nern.heads": "shared", "nern.output_size": 4, "nern.sampling_mode": mode} for mode in SAMPLING_MODES},
    "single weights": {"nern.method": "basic", "nern.embeddings.num_idxs": 5},
}
# of 4 + 24 + 18 + 30 rows in layers of 3x3, 1x1, 3x3 and fully connected; with repeats, not in order
ROWS = torch.tensor([70, 3, 29, 29, 5, 70, 70, 0, 45, 12])


@pytest.fixture
def make(small_cnn: Callable[..., nn.Module]) -> Callable[..., Trainer]:
    """Makes a trainer of one small network, or several."""

    def trainer(networks: int = 1, **settings: Any) -> Trainer:
        config = Config.from_dict(SETTINGS | settings)
        originals = [as_original(small_cnn(seed), include=["*.weight"]) for seed in range(networks)]
        table = KernelTable.of_networks([o.weights for o in originals], config.nern.embeddings.num_idxs)
        nern = build_nern(config.nern, table, None, seed=0)
        return Trainer(config, [Member(o, name=str(i)) for i, o in enumerate(originals)], nern)

    return trainer


def gradients(trainer: Trainer) -> list[Tensor]:
    """Of all parameters; zeros where none arrived."""
    parameters = list(trainer.nern.predictor.parameters())
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    trainer.nern.zero_grad()
    return found


def by_layer(trainer: Trainer, rows: Tensor, layers: range) -> list[tuple[Tensor, Tensor]]:
    """Originals and predictions of the drawn rows, repeats kept, one flat pair for each of these layers that has any."""
    table, weights = trainer.nern.table, [w for m in trainer.members for w in m.original.weights]
    originals, predicted = ([r for of in table.to_rows(w) for r in of] for w in (weights, trainer.nern.weights()))
    pairs = []
    for index in layers:
        own = [row for row in rows.tolist() if table.starts[index] <= row < table.starts[index + 1]]
        if own:
            pairs.append(tuple(torch.cat([source[r].flatten() for r in own]) for source in (originals, predicted)))
    return pairs


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("loss", sorted(RECONSTRUCTION_LOSSES))
def test_the_loss_of_drawn_rows_is_that_of_these_kernels_alone(
    make: Callable[..., Trainer], loss: str, heads: str
) -> None:
    values = {"nern.reconstruction_rows": "drawn", "nern.reconstruction_loss_type": loss}
    trainer = make(**(values | HEADS[heads]))
    losses = trainer.differentiate(None, ROWS)
    found = gradients(trainer)
    pairs = by_layer(trainer, ROWS, range(4))
    errors = [(p - o).square() for o, p in pairs]
    if loss == "L2Loss":
        expected = torch.cat(errors).mean().sqrt()
    else:
        expected = torch.stack([error.mean() for error in errors]).mean()
    (0.7 * expected).backward()
    assert losses.terms.keys() == {"reconstruction"}
    torch.testing.assert_close(losses.terms["reconstruction"], expected)
    torch.testing.assert_close(losses.total, 0.7 * expected)
    torch.testing.assert_close(found, gradients(trainer))


def test_a_step_with_images_compares_all_rows(make: Callable[..., Trainer], images: Tensor) -> None:
    losses = []
    for rows in ("drawn", "all"):
        trainer = make(**{"nern.reconstruction_rows": rows})
        losses.append(trainer.differentiate([(images, None)], ROWS))
    assert losses[0].terms.keys() == {"reconstruction", "feature_maps", "distillation"}
    assert all(torch.equal(losses[0].terms[name], losses[1].terms[name]) for name in losses[0].terms)


def test_drawn_rows_of_several_networks_have_the_mean_of_the_networks_and_none_counts_as_zero(
    make: Callable[..., Trainer],
) -> None:
    trainer = make(3, **{"nern.reconstruction_rows": "drawn"})
    rows = torch.tensor([200, 3, 3, 160, 27])  # of the first and the third network
    losses = trainer.differentiate(None, rows)
    found = gradients(trainer)
    parts = []
    for layers in (range(4), range(8, 12)):
        pairs = by_layer(trainer, rows, layers)
        parts.append(torch.cat([(p - o).square() for o, p in pairs]).mean().sqrt())
    expected = (parts[0] + parts[1]) / 3
    (0.7 * expected).backward()
    torch.testing.assert_close(losses.terms["reconstruction"], expected)
    torch.testing.assert_close(found, gradients(trainer))


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("heads", HEADS)
def test_gradient_arrives_through_the_drawn_rows_as_often_as_they_were_drawn(
    make: Callable[..., Trainer], images: Tensor, heads: str, with_images: bool
) -> None:
    trainer = make(**HEADS[heads])
    batches = [(images, None)] if with_images else None
    losses = trainer.differentiate(batches, ROWS)
    found = gradients(trainer)
    live = trainer.nern()
    leaves = [p.detach().requires_grad_() for p in live]
    expected = trainer.differentiate.losses(trainer.nern.weights(leaves), batches)
    expected.total.backward()
    assert losses.terms.keys() == expected.terms.keys()
    torch.testing.assert_close(losses.total, expected.total)
    carried = torch.zeros(())
    for row in ROWS.tolist():  # one term for each draw
        for head, (_, local) in enumerate(trainer.nern.heads.split(torch.tensor([row]))):
            carried = carried + (live[head][local] * leaves[head].grad[local]).sum()
    carried.backward()
    torch.testing.assert_close(found, gradients(trainer))
    assert any(gradient.any() for gradient in found)


@pytest.mark.parametrize("rows", [None, ROWS], ids=["all rows", "drawn rows"])
@pytest.mark.parametrize("heads", HEADS)
def test_rows_that_are_too_many_to_keep_are_predicted_again(
    make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, heads: str, rows: Tensor | None
) -> None:
    batches = [(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), None)]
    whole = make(**HEADS[heads])
    monkeypatch.setattr(step_module, "KEPT_NUMBERS", 100)
    parts, sizes = make(**HEADS[heads]), list[int]()
    predict = parts.nern.forward
    monkeypatch.setattr(
        parts.nern, "forward", lambda given=None: sizes.append(-1 if given is None else len(given)) or predict(given)
    )
    losses, others = (trainer.differentiate(batches, rows) for trainer in (whole, parts))
    assert sizes[0] == -1
    assert len(sizes) > 2
    assert sum(sizes[1:]) == (parts.nern.table.rows if rows is None else len(rows))
    assert float(others.total) == pytest.approx(float(losses.total), rel=1e-6)
    for expected, found in zip(gradients(whole), gradients(parts), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
