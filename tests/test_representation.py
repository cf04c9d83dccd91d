"""Kernel table, sampling, encodings, predictors, and the NeRN made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nern.config import EmbeddingsConfig, NernConfig
from nern.errors import NernError
from nern.files import save_torch
from nern.ordering import solve_ordering
from nern.registry import NORM_LAYERS, PREDICTORS
from nern.representation import KernelTable, build_nern, build_predictor, parameters_of, sample_kernels
from runs import random_weights

pytestmark = pytest.mark.usefixtures("rng_untouched")

SHAPES = ((4, 2, 3, 3), (3, 4, 1, 1), (2, 3, 3, 2))

shapes_of_networks = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4
).map(tuple)


@given(shapes_of_networks, st.sampled_from([3, 5]))
def test_rows_are_kernels_or_weights_in_the_order_of_their_coordinates(
    shapes: tuple[tuple[int, int, int, int], ...], num_idxs: int
) -> None:
    weights = random_weights(shapes)
    table = KernelTable(shapes, num_idxs)
    rows = torch.cat([rows.flatten() for rows in table.to_rows(weights)])
    assert torch.equal(rows, torch.cat([w.flatten() for w in weights]))
    sizes = [w.numel() if num_idxs == 5 else w.shape[0] * w.shape[1] for w in weights]
    assert [table.layer(i).stop - table.layer(i).start for i in range(len(shapes))] == sizes
    assert table.rows == sum(sizes)
    assert table.num_weights == len(rows)


@pytest.mark.parametrize(
    ("shapes", "num_idxs", "says"),
    [
        ((), 3, "no learnable weights"),
        (((4, 2),), 3, r"shape \(4, 2\)"),
        (((4, 2, 3, 3), (4, 0, 3, 3)), 3, "learnable weight 1"),
        (SHAPES, 4, "num_idxs"),
    ],
)
def test_impossible_tables_are_refused(shapes: tuple, num_idxs: int, says: str) -> None:
    with pytest.raises(NernError, match=says):
        KernelTable(shapes, num_idxs)


def sampled_by_loops(kernel: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    height, width = kernel.shape
    out = torch.empty(size)
    if mode == "center":
        top, left = int(height / 2 - size[0] / 2), int(width / 2 - size[1] / 2)
    for y in range(size[0]):
        for x in range(size[1]):
            if mode == "center":
                out[y, x] = kernel[top + y, left + x]
            else:
                window = kernel[y : y + height - size[0] + 1, x : x + width - size[1] + 1]
                out[y, x] = window.mean() if mode == "average" else window.max()
    return out


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7), st.sampled_from(["center", "average", "max"]))
def test_sampling_equals_loops(predicted: int, height: int, width: int, mode: str) -> None:
    size = (min(height, predicted), min(width, predicted))
    kernels = torch.randn(3, predicted, predicted, generator=torch.Generator().manual_seed(predicted))
    sampled = sample_kernels(kernels, size, mode)
    assert sampled.shape == (3, *size)
    torch.testing.assert_close(sampled, torch.stack([sampled_by_loops(kernel, size, mode) for kernel in kernels]))


MLPS = sorted(name for name in PREDICTORS if not PREDICTORS.info(name)["of_kernels"])


@pytest.mark.parametrize("norm_layer", sorted(NORM_LAYERS))
@pytest.mark.parametrize("method", MLPS)
def test_every_predictor_trains_all_its_parameters(method: str, norm_layer: str, rng: torch.Generator) -> None:
    options = {"hidden_layer_size": 6, "num_blocks": 4, "act_layer": "gelu", "norm_layer": norm_layer}
    predictor = build_predictor(method, seed=0, input_size=8, **options)
    kernels = predictor(torch.randn(12, 8, generator=rng))
    side = 1 if method == "basic" else 3
    assert kernels.shape == (12, side, side)
    (kernels * torch.randn(kernels.shape, generator=rng)).sum().backward()
    for name, parameter in predictor.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if norm_layer == "none" or not name.startswith("layers.") or name.endswith("weight"):
            assert parameter.grad.any(), name  # a batch norm takes the bias before it away


def test_the_number_of_parameters_is_that_of_the_published_experiment() -> None:
    predictor = build_predictor("kxk", seed=0, input_size=240, num_blocks=5, hidden_layer_size=180)
    assert parameters_of(predictor) == 142_749


def test_a_checkpoint_of_another_predictor_is_refused_and_says_where_to_look(tmp_path: Path) -> None:
    save_torch(tmp_path / "predictor.pt", build_predictor("kxk", 5, input_size=8, num_blocks=4).state_dict())
    with pytest.raises(NernError) as error:
        build_predictor("kxk", 0, "checkpoint", str(tmp_path / "predictor.pt"), input_size=10, num_blocks=3)
    for part in ("layers.2.weight", "layers.0.weight", "(30, 10)", "(30, 8)", "num_blocks", "nern.embeddings"):
        assert part in str(error.value)


def config(**changes: object) -> NernConfig:
    return replace(NernConfig(hidden_layer_size=8, embeddings=EmbeddingsConfig(enc_levels=4)), **changes)


@given(st.integers(1, 25), st.sampled_from(["per_size", "shared"]))
def test_predictions_do_not_depend_on_the_size_of_forward_calls(chunk: int, heads: str) -> None:
    table = KernelTable(SHAPES)
    whole, pieces = (
        build_nern(config(weights_batch_size=size, heads=heads), table, None, seed=0) for size in (None, chunk)
    )
    torch.testing.assert_close(pieces(), whole())
    rows = torch.tensor([25, 3, 3, 11])
    expected = [of_head[local] for of_head, (_, local) in zip(whole(), whole.heads.split(rows), strict=True)]
    assert sum(map(len, expected)) == 4
    torch.testing.assert_close(pieces(rows), expected)


@pytest.mark.parametrize("training", [True, False])
def test_reconstructing_leaves_mode_and_statistics_as_they_are(training: bool) -> None:
    nern = build_nern(config(norm_layer="bn"), KernelTable(SHAPES), None, seed=0).train(training)
    nern.train()
    nern()  # statistics that differ from the initial ones
    nern.train(training)
    before = {name: value.clone() for name, value in nern.state_dict().items()}
    weights = nern.reconstruct()
    assert nern.training is training
    assert all(module.training is training for module in nern.predictor.modules())
    assert all(torch.equal(value, before[name]) for name, value in nern.state_dict().items())
    assert not any(w.requires_grad for w in weights)
    assert all(torch.equal(a, b) for a, b in zip(weights, nern.eval().weights(), strict=True))


@pytest.mark.parametrize("mode", ["crossfilter", "infilter"])
def test_a_nern_encodes_the_ordered_coordinates(mode: str) -> None:
    weights = random_weights(SHAPES)
    table = KernelTable.of(weights)
    ordering = solve_ordering(weights, mode)
    plain, ordered = build_nern(config(), table, None, seed=0), build_nern(config(), table, ordering, seed=0)
    for layer, positions in enumerate(ordering.positions(table.shapes)):
        served = ordered.encoded(table.layer(layer))
        assert torch.equal(served, plain.encoded(table.layer(layer))[positions])
