"""Heads, and kernel tables of tensors of all kinds and of several networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nern.config import EmbeddingsConfig, NernConfig
from nern.errors import NernError
from nern.registry import SAMPLING_MODES
from nern.representation import Heads, KernelTable, build_nern, sample_kernels
from runs import random_weights

pytestmark = pytest.mark.usefixtures("rng_untouched")

SHAPES = ((4, 2, 3, 3), (3, 5), (2, 3, 1, 1), (6, 1, 3, 3), (3, 2, 4), (2, 2, 2, 1, 3))  # 3x3, 1x1, 1x4, 2x3

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


def heads_of(shapes: list[tuple[int, ...]] | tuple[tuple[int, ...], ...], kind: str = "per_size", **more: int) -> Heads:
    return Heads.build(KernelTable.of(random_weights(shapes)), kind, **more)


def to_weights(heads: Heads, predictions: list[Tensor]) -> list[Tensor]:
    return [
        heads.table.to_weight(heads.sampled(heads.part(predictions, i), i), i) for i in range(len(heads.table.shapes))
    ]


@given(networks_of_all_kinds, st.sampled_from([3, 5]))
def test_weights_of_all_kinds_survive_the_way_through_rows(shapes: list[tuple[int, ...]], num_idxs: int) -> None:
    weights = random_weights(shapes)
    heads = Heads.build(KernelTable.of(weights, num_idxs), "per_size")
    rows = list(zip(heads.table.to_rows(weights), heads.of_layer, strict=True))
    exact = [torch.cat([layer for layer, of in rows if of == head]) for head in range(len(heads.sizes))]
    restored = to_weights(heads, exact)
    assert [w.shape for w in restored] == [w.shape for w in weights]
    assert all(torch.equal(a, b) for a, b in zip(restored, weights, strict=True))


@given(networks_of_all_kinds, st.lists(st.integers(0, 10**6), max_size=20), st.sampled_from(["per_size", "shared"]))
def test_splitting_rows_keeps_their_order_and_repeats(
    shapes: list[tuple[int, ...]], numbers: list[int], kind: str
) -> None:
    heads = heads_of(shapes, kind, output_size=9)
    rows = torch.tensor([number % heads.table.rows for number in numbers], dtype=torch.int64)
    parts = heads.split(rows)
    assert len(parts) == len(heads.sizes)
    for head, (of_head, local) in enumerate(parts):
        mine = set(heads.rows(head).tolist())
        assert of_head.tolist() == [row for row in rows.tolist() if row in mine]
        assert torch.equal(heads.rows(head)[local], of_head)
    assert sum(len(of_head) for of_head, _ in parts) == len(rows)


@pytest.mark.parametrize("mode", sorted(SAMPLING_MODES))
def test_a_shared_head_is_sampled_to_the_size_of_each_layer(mode: str) -> None:
    table = KernelTable.of(random_weights(SHAPES))
    heads = Heads.build(table, "shared", 5, mode)
    assert heads.sizes == ((5, 5),)
    predictions = torch.randn(table.rows, 5, 5, generator=torch.Generator().manual_seed(1))
    for index, (weight, shape) in enumerate(zip(to_weights(heads, [predictions]), SHAPES, strict=True)):
        expected = sample_kernels(predictions[table.layer(index)], table.shapes[index][2:], mode)
        assert weight.shape == shape
        assert torch.equal(weight.flatten(), expected.flatten())


def test_a_kernel_larger_than_the_shared_head_names_both_ways_out() -> None:
    with pytest.raises(NernError, match=r"weight 4 has 1 x 4 kernels.*nern.output_size to at least 4, or .*per_size"):
        heads_of(SHAPES[:5], "shared", output_size=3)


def config(**changes: object) -> NernConfig:
    return replace(NernConfig(hidden_layer_size=8, embeddings=EmbeddingsConfig(enc_levels=4)), **changes)


def test_heads_share_all_layers_but_the_last() -> None:
    nern = build_nern(config(), KernelTable.of(random_weights(SHAPES)), None, seed=0)
    layers = [f"layers.{i}.{name}" for i in range(2) for name in ("weight", "bias")]
    heads = [f"final_linear_layers.{h}x{w}.{name}" for h, w in nern.heads.sizes for name in ("weight", "bias")]
    assert list(nern.predictor.state_dict()) == layers + heads
    sum(w.square().sum() for w in nern.weights()).backward()
    assert all(p.grad is not None and p.grad.any() for p in nern.predictor.parameters())
