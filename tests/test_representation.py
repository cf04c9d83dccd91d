"""Kernel table, sampling, predictors, heads, and the NeRN made of them."""

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
from nern.registry import NORM_LAYERS, PREDICTORS
from nern.representation.heads import Heads, sample_kernels
from nern.representation.kernels import KernelTable
from nern.representation.nern import build_nern
from nern.representation.predictor import build_predictor
from runs import random_weights

pytestmark = pytest.mark.usefixtures("rng_untouched")

SHAPES = ((4, 2, 3, 3), (3, 4, 1, 1), (2, 3, 3, 2))
ALL_KINDS = ((4, 2, 3, 3), (3, 5), (2, 3, 1, 1), (6, 1, 3, 3), (3, 2, 4), (2, 2, 2, 1, 3))  # 3x3, 1x1, 1x4, 2x3

sizes = st.integers(1, 4)
few = st.integers(1, 3)
tensor_shapes = st.one_of(
    st.tuples(sizes, sizes),  # fully connected
    st.tuples(sizes, sizes, few),  # 1-d
    st.tuples(sizes, sizes, few, few),
    st.tuples(sizes, st.just(1), few, few),  # depthwise
    st.tuples(sizes, sizes, few, few, few),  # 3-d
)
networks_of_all_kinds = st.lists(tensor_shapes, min_size=1, max_size=5)


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


@given(networks_of_all_kinds, st.sampled_from([3, 5]))
def test_weights_of_all_kinds_survive_the_way_through_rows(shapes: list[tuple[int, ...]], num_idxs: int) -> None:
    weights = random_weights(shapes)
    table = KernelTable.of(weights, num_idxs)
    heads, rows = Heads.build(table, "per_size"), table.to_rows(weights)
    assert torch.equal(torch.cat([of.flatten() for of in rows]), torch.cat([w.flatten() for w in weights]))
    sizes = [w.numel() if num_idxs == 5 else w.shape[0] * w.shape[1] for w in weights]
    assert [table.layer(i).stop - table.layer(i).start for i in range(len(shapes))] == sizes
    assert (table.rows, table.num_weights) == (sum(sizes), sum(w.numel() for w in weights))
    layers = list(zip(rows, heads.of_layer, strict=True))
    exact = [torch.cat([layer for layer, of in layers if of == head]) for head in range(len(heads.sizes))]
    parts = [heads.sampled(heads.part(exact, i), i) for i in range(len(shapes))]
    restored = [table.to_weight(part, i) for i, part in enumerate(parts)]
    assert [w.shape for w in restored] == [w.shape for w in weights]
    assert all(torch.equal(a, b) for a, b in zip(restored, weights, strict=True))


def test_a_kernel_larger_than_the_shared_head_names_both_ways_out() -> None:
    with pytest.raises(NernError, match=r"weight 4 has 1 x 4 kernels.*nern.output_size to at least 4, or .*per_size"):
        Heads.build(KernelTable.of(random_weights(ALL_KINDS[:5])), "shared", output_size=3)
