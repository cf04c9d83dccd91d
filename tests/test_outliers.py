"""Outliers: which weights are kept apart, that they are not predicted, and that a run keeps them."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import nern
from nern import Config, NernError
from nern.originals import as_original
from nern.registry import RECONSTRUCTION_LOSSES
from nern.representation import KernelTable, build_nern
from nern.representation.outliers import Outliers, find_outliers
from nern.training import Member, RunFolder, Trainer

pytestmark = pytest.mark.usefixtures("rng_untouched")

BASE: dict[str, Any] = {
    "nern.hidden_layer_size": 7,
    "nern.embeddings.enc_levels": 4,
    "nern.outliers": 0.05,
    "epochs": None,
    "num_iterations": 4,
    "logging.tracker": "none",
}


@pytest.fixture
def make(small_cnn: Callable[..., nn.Module]) -> Callable[..., Trainer]:
    """Makes a trainer of one small network, or several."""

    def trainer(networks: int = 1, **settings: Any) -> Trainer:
        config = Config.from_dict(BASE | settings)
        originals = [as_original(small_cnn(seed)) for seed in range(networks)]
        table = KernelTable.of_networks([o.weights for o in originals], config.nern.embeddings.num_idxs)
        nern_ = build_nern(config.nern, table, None, 0, "cpu", [w for o in originals for w in o.weights])
        return Trainer(config, [Member(o, name=str(i)) for i, o in enumerate(originals)], nern_)

    return trainer


def masks(trainer: Trainer) -> list[Tensor]:
    """Of each layer's weights, which are outliers."""
    outliers = trainer.nern.outliers
    assert outliers is not None
    flat = torch.zeros(trainer.nern.table.num_weights, dtype=torch.bool)
    flat[outliers.positions] = True
    weights = [w for m in trainer.members for w in m.original.weights]
    return [part.view(w.shape) for part, w in zip(flat.split([w.numel() for w in weights]), weights, strict=True)]


# --- which ----------------------------------------------------------------------------------------------------------


def test_the_largest_weights_of_their_layers_are_found() -> None:
    small, large = torch.full((2, 3, 3, 3), 0.1), torch.full((4, 5), 10.0)
    small[1, 2, 0, 1], large[3, 0] = -0.9, 30.0
    found = find_outliers([small, large], 2 / 74)
    assert found.positions.tolist() == [27 + 18 + 1, 54 + 15]
    assert found.values.tolist() == pytest.approx([-0.9, 30.0])
    assert len(find_outliers([small, large], 0.001)) == 0
    assert find_outliers([torch.zeros(2, 2)], 0.5).positions.tolist() == [0, 1]


def test_bits_count_places_and_values() -> None:
    outliers = Outliers(torch.tensor([1, 5, 6]), torch.zeros(3))
    assert outliers.bits(20) == pytest.approx(math.log2(math.comb(20, 3)) + 96)
    assert Outliers(torch.empty(0, dtype=torch.int64), torch.empty(0)).bits(20) == pytest.approx(0)


# --- what becomes of them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "heads",
    [{}, {"nern.heads": "shared", "nern.output_size": 4}, {"nern.method": "basic", "nern.embeddings.num_idxs": 5}],
)
@pytest.mark.parametrize("networks", [1, 2])
def test_reconstructed_weights_take_their_values(
    make: Callable[..., Trainer], heads: dict[str, Any], networks: int
) -> None:
    trainer = make(networks, **heads)
    without = build_nern(trainer.config.nern, trainer.nern.table, None, 0)
    originals = [w for m in trainer.members for w in m.original.weights]
    assert trainer.nern.outliers is not None
    assert len(trainer.nern.outliers) == round(0.05 * trainer.nern.table.num_weights) > 0
    for kept, plain, own, mask in zip(
        trainer.nern.reconstruct(), without.reconstruct(), originals, masks(trainer), strict=True
    ):
        assert torch.equal(kept, torch.where(mask, own, plain))


@pytest.mark.parametrize("rows", ["all", "drawn"])
@pytest.mark.parametrize("loss", sorted(RECONSTRUCTION_LOSSES))
@pytest.mark.parametrize("heads", [{}, {"nern.heads": "shared", "nern.output_size": 4}])
def test_no_loss_and_no_gradient_where_they_are(
    make: Callable[..., Trainer], heads: dict[str, Any], loss: str, rows: str
) -> None:
    trainer = make(**({"nern.reconstruction_loss_type": loss, "nern.reconstruction_rows": rows} | heads))
    every = torch.arange(trainer.nern.table.rows)
    losses = trainer.differentiate(None, every if rows == "drawn" else None)
    parameters = list(trainer.nern.predictor.parameters())
    found = [p.grad.clone() for p in parameters if p.grad is not None]
    trainer.nern.zero_grad()
    plain = build_nern(trainer.config.nern, trainer.nern.table, None, 0)
    plain.predictor.load_state_dict(trainer.nern.predictor.state_dict())
    pairs = zip(plain.weights(), trainer.members[0].original.weights, masks(trainer), strict=True)
    errors = [torch.where(mask, 0.0, r - o).square() for r, o, mask in pairs]  # of what is predicted
    if loss == "MSELoss":
        expected = torch.stack([e.mean() for e in errors]).mean()
    else:
        expected = torch.cat([e.flatten() for e in errors]).mean().sqrt()
    expected.backward()
    torch.testing.assert_close(losses.terms["reconstruction"].detach(), expected.detach())
    torch.testing.assert_close(found, [p.grad for p in plain.predictor.parameters()], rtol=1e-4, atol=1e-6)


def test_images_see_them_and_no_gradient_reaches_them(make: Callable[..., Trainer], images: Tensor) -> None:
    trainer = make(
        **{"nern.outliers": 0.999999, "nern.distillation_loss_weight": 1.0, "nern.attention_loss_weight": 1.0}
    )
    losses = trainer.differentiate([(images, None)], None)
    assert float(losses.terms["distillation"].detach()) == pytest.approx(0, abs=1e-6)
    assert all(p.grad is None or not p.grad.any() for p in trainer.nern.predictor.parameters())


def test_a_further_round_keeps_them(make: Callable[..., Trainer]) -> None:
    trainer = make(**{"reconstruction.iterations": 1, "reconstruction.rounds": 2, "num_iterations": None})
    for _ in range(2):
        trainer.do_step()
    assert trainer.targets is not None
    for target, own, mask in zip(trainer.targets, trainer.members[0].original.weights, masks(trainer), strict=True):
        assert torch.equal(target[mask], own[mask])


def test_fit_keeps_them(small_cnn: Callable[..., nn.Module]) -> None:
    network = small_cnn()
    fitted = nern.fit(network, config=Config.from_dict(BASE), progress=False)
    outliers = fitted.nern.outliers
    assert outliers is not None
    whole = torch.cat([p.flatten() for p in fitted.nern.reconstruct()])
    assert torch.equal(whole[outliers.positions], outliers.values)


# --- runs -------------------------------------------------------------------------------------------------------------

RUN: dict[str, Any] = BASE | {
    "original_model_path": "pretrained:digits-resnet8",
    "task.original_model_name": "ResNet8",
    "task.task_name": "digits",
    "evaluation.held_out_images": 20,
    "evaluation.test_images": 40,
    "eval_epochs_interval": None,
    "save_epochs_interval": None,
    "loss_warmup_iterations": 2,
}


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Makes a short run's config, without the picture."""
    monkeypatch.setattr("nern.analysis.plots.plot_run", lambda *args: None)
    return lambda **more: Config.from_dict(RUN | {"logging.log_dir": str(tmp_path)} | more)


def test_a_run_stores_counts_and_restores_them(configure: Callable[..., Config]) -> None:
    console = quiet()
    metrics = nern.train(configure(), console)
    folder, sizes = RunFolder(metrics["run_folder"]), metrics["sizes"]
    stored, count = load_file(folder.outliers), sizes["outliers"]
    assert stored["positions"].dtype == torch.int32
    assert len(stored["positions"]) == len(stored["values"]) == count == round(0.05 * sizes["represented_parameters"])
    assert sizes["outlier_bytes"] == folder.outliers.stat().st_size
    assert 4 * count < sizes["outlier_bytes_at_least"] < 8 * count
    rest = sizes["original_parameters"] - sizes["represented_parameters"]
    assert sizes["reconstructed_parameters"] == rest + sizes["predictor_parameters"] + count
    assert f"{count:,} outliers" in console.file.getvalue()  # type: ignore[attr-defined]
    config = nern.jobs.config_of_run(folder.root)
    assert nern.evaluate(config, console=quiet(), run=folder.root)["reconstructed"] == metrics["best"]["test"]
    stored["values"] += 1  # what the folder holds is what counts
    save_file(stored, folder.outliers)
    network = nern.load_run(folder.root)
    original = torch.cat([w.flatten() for w in as_original(network).weights])
    assert torch.equal(original[stored["positions"].long()], stored["values"])
    again = nern.resume(folder.root, quiet())
    assert again["layers"] != metrics["layers"]


def test_without_outliers_there_is_no_file_and_no_row(configure: Callable[..., Config]) -> None:
    console = quiet()
    metrics = nern.train(configure(**{"nern.outliers": 0.0}), console)
    assert not RunFolder(metrics["run_folder"]).outliers.exists()
    assert metrics["sizes"]["outlier_bytes"] == metrics["sizes"]["outlier_bytes_at_least"] == 0
    assert " outliers" not in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (None, "no such file"),
        ({"positions": torch.tensor([1, 2])}, "equally many"),
        ({"positions": torch.tensor([2, 1]), "values": torch.zeros(2)}, "must rise"),
        ({"positions": torch.tensor([0, 10**6]), "values": torch.zeros(2)}, "must rise"),
        ({"positions": torch.tensor([-1]), "values": torch.zeros(1)}, "must rise"),
        ({"positions": torch.tensor([1]), "values": torch.tensor([math.nan])}, "finite"),
        ({"positions": torch.tensor([1]), "values": torch.zeros(1)}, "are expected, 1 are there"),
    ],
)
def test_damaged_files_are_refused(
    configure: Callable[..., Config], tensors: dict[str, Tensor] | None, message: str
) -> None:
    folder = RunFolder(nern.train(configure(num_iterations=1), quiet())["run_folder"])
    folder.outliers.unlink()
    if tensors is not None:
        save_file(tensors, folder.outliers)
    with pytest.raises(NernError, match=message):
        nern.load_run(folder.root)


@pytest.mark.parametrize(
    ("positions", "values", "message"),
    [
        (torch.tensor([1.0, 2.5]), torch.zeros(2), "positions must be whole numbers, not torch.float32"),
        (torch.tensor([1, 2], dtype=torch.complex64), torch.zeros(2), "positions must be whole numbers"),
        (torch.tensor([False, True]), torch.zeros(2), "positions must be whole numbers, not torch.bool"),
        (torch.tensor([1, 2]), torch.zeros(2, dtype=torch.float64), "values must be torch.float32, not torch.float64"),
        (torch.tensor([1, 2]), torch.zeros(2, dtype=torch.int64), "values must be torch.float32"),
        (torch.tensor([1, 1]), torch.zeros(2), "must rise, within the 54 represented weights"),
        (torch.tensor([1, 54]), torch.zeros(2), "must rise"),
        (torch.tensor([10, 5 - 2**63, -1, 20]), torch.zeros(4), "must rise"),  # differences wrap around
        (torch.tensor([1, 2, 3]), torch.zeros(3), "2 are expected, 3 are there"),
        (torch.tensor([1]), torch.zeros(1), "2 are expected, 1 are there"),
    ],
)  # fmt: skip
def test_tensors_that_are_no_outliers(positions: Tensor, values: Tensor, message: str) -> None:
    table = KernelTable.of_networks([[torch.zeros(2, 3, 3, 3)]], 3)
    good = {"positions": torch.tensor([0, 53], dtype=torch.int32), "values": torch.ones(2)}
    for count in (None, 2):
        assert Outliers.from_tensors(good, table, expected=count).positions.tolist() == [0, 53]
    expected = 2 if "are expected" in message else None
    with pytest.raises(NernError, match=f"outliers a file: .*{message}"):
        Outliers.from_tensors({"positions": positions, "values": values}, table, "a file", expected)


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_share_lies_between_zero_and_one(share: float) -> None:
    with pytest.raises(NernError, match=r"nern\.outliers"):
        Config.from_dict({"nern.outliers": share}).check()
