"""Heads, and kernel tables of tensors of all kinds and of several networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nern.config import Config, EmbeddingsConfig, NernConfig
from nern.errors import NernError
from nern.registry import SAMPLING_MODES
from nern.representation import Heads, KernelTable, build_nern, kernel_shape, sample_kernels
from nern.representation.coordinates import TableCoordinates
from nern.representation.nern import build_encoding, build_heads

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


def random_weights(shapes: list[tuple[int, ...]] | tuple[tuple[int, ...], ...], seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) for shape in shapes]


def heads_of(shapes: list[tuple[int, ...]] | tuple[tuple[int, ...], ...], kind: str = "per_size", **more: int) -> Heads:
    return Heads.build(KernelTable.of(random_weights(shapes)), kind, **more)


def exact_predictions(heads: Heads, weights: list[Tensor]) -> list[Tensor]:
    """For each head the rows that make these weights."""
    rows = heads.table.to_rows(weights)
    return [
        torch.cat([layer for layer, of in zip(rows, heads.of_layer, strict=True) if of == head])
        for head in range(len(heads.sizes))
    ]


def to_weights(heads: Heads, predictions: list[Tensor]) -> list[Tensor]:
    return [
        heads.table.to_weight(heads.sampled(heads.part(predictions, i), i), i) for i in range(len(heads.table.shapes))
    ]


# --- weights of all kinds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((7, 5), (7, 5, 1, 1)),
        ((7, 5, 4), (7, 5, 1, 4)),
        ((7, 5, 4, 3), (7, 5, 4, 3)),
        ((7, 1, 3, 3), (7, 1, 3, 3)),
        ((7, 5, 2, 3, 4), (7, 5, 6, 4)),
    ],
)
def test_every_weight_is_seen_as_filters_of_channels_of_kernels(
    shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert kernel_shape(shape) == expected


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (3, 2, 0, 3)])
def test_a_tensor_without_kernels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(NernError, match="has no kernels"):
        KernelTable.of([torch.zeros(shape)])


@given(networks_of_all_kinds, st.sampled_from([3, 5]))
def test_weights_of_all_kinds_survive_the_way_through_rows(shapes: list[tuple[int, ...]], num_idxs: int) -> None:
    weights = random_weights(shapes)
    heads = Heads.build(KernelTable.of(weights, num_idxs), "per_size")
    restored = to_weights(heads, exact_predictions(heads, weights))
    assert [w.shape for w in restored] == [w.shape for w in weights]
    assert all(torch.equal(a, b) for a, b in zip(restored, weights, strict=True))


@given(networks_of_all_kinds, st.sampled_from([3, 5]))
def test_views_and_norms_are_those_of_the_tensors(shapes: list[tuple[int, ...]], num_idxs: int) -> None:
    weights = random_weights(shapes)
    table = KernelTable.of(weights, num_idxs)
    assert [tuple(view.shape) for view in table.views(weights)] == list(table.shapes)
    expected = [row.norm() for w in weights for row in (w.flatten(0, 1) if num_idxs == 3 else w.flatten())]
    torch.testing.assert_close(table.norms(weights), torch.stack(expected))


# --- heads -------------------------------------------------------------------------------------------------------


def test_each_kernel_size_has_a_head_in_the_order_of_the_layers() -> None:
    heads = heads_of(SHAPES)
    assert heads.sizes == ((3, 3), (1, 1), (1, 4), (2, 3))
    assert heads.of_layer == (0, 1, 1, 0, 2, 3)
    assert heads.counts == (8 + 6, 15 + 6, 6, 4)
    assert heads.starts == (0, 0, 15, 8, 0, 0)


@given(networks_of_all_kinds)
def test_every_row_belongs_to_one_head_of_its_size(shapes: list[tuple[int, ...]]) -> None:
    heads = heads_of(shapes)
    rows = [heads.rows(head) for head in range(len(heads.sizes))]
    assert sorted(torch.cat(rows).tolist()) == list(range(heads.table.rows))
    assert tuple(map(len, rows)) == heads.counts
    for index, shape in enumerate(heads.table.shapes):
        head = heads.of_layer[index]
        assert heads.sizes[head] == shape[2:]
        own = rows[head][heads.starts[index] :][: heads.table.layer_rows[index]]
        assert own.tolist() == list(range(heads.table.starts[index], heads.table.starts[index + 1]))


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


@given(
    networks_of_all_kinds,
    st.lists(st.integers(0, 10**6), max_size=20),
    st.sampled_from([("per_size", 3), ("shared", 3), ("per_size", 5)]),
)
def test_predictions_sorted_by_layer_are_those_of_the_whole(
    shapes: list[tuple[int, ...]], numbers: list[int], which: tuple[str, int]
) -> None:
    kind, num_idxs = which
    weights = random_weights(shapes)
    heads = Heads.build(KernelTable.of(weights, num_idxs), kind, output_size=9)
    rows = torch.tensor([number % heads.table.rows for number in numbers], dtype=torch.int64).sort().values
    rng = torch.Generator().manual_seed(1)
    whole = [torch.randn(n, *size, generator=rng) for n, size in zip(heads.counts, heads.sizes, strict=True)]
    drawn = [of_head[local] for of_head, (_, local) in zip(whole, heads.split(rows), strict=True)]
    parts = heads.by_layer(rows, drawn)
    layers = [index for index, _, _ in parts]
    assert layers == sorted(set(layers))
    begins = [heads.table.starts[index] + local for index, local, _ in parts]
    assert torch.cat([rows[:0], *begins]).tolist() == rows.tolist()
    for index, local, kernels in parts:
        assert len(kernels) > 0
        assert torch.equal(kernels, heads.sampled(heads.part(whole, index), index)[local])


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


@pytest.mark.parametrize("kind", ["per_size", "shared"])
def test_single_weights_have_one_head(kind: str) -> None:
    heads = Heads.build(KernelTable.of(random_weights(SHAPES), num_idxs=5), kind)
    assert heads.sizes == ((1, 1),)
    assert heads.counts == (heads.table.num_weights,)


def config(**changes: object) -> NernConfig:
    return replace(NernConfig(hidden_layer_size=8, embeddings=EmbeddingsConfig(enc_levels=4)), **changes)


@pytest.mark.parametrize(("output_size", "kind"), [(3, "per_size"), (5, "shared"), (7, "shared")])
def test_heads_are_shared_by_default_where_an_output_size_is_set(output_size: int, kind: str) -> None:
    table = KernelTable.of(random_weights(SHAPES))
    expected = Heads.build(table, kind, output_size).sizes
    assert build_heads(config(output_size=output_size), table).sizes == expected
    assert build_heads(Config(nern=config(output_size=output_size)).check().nern, table).sizes == expected


def test_an_output_size_without_a_part_is_refused() -> None:
    with pytest.raises(NernError, match=r"nern.output_size \(=5\) has a part only with nern.heads 'shared'"):
        Config(nern=config(output_size=5, heads="per_size")).check()


def test_for_kernels_of_one_size_both_kinds_of_heads_are_the_same() -> None:
    table = KernelTable(((4, 2, 3, 3), (3, 4, 3, 3)))
    one, other = (build_nern(config(heads=kind), table, None, seed=0) for kind in ("per_size", "shared"))
    assert one.predictor.state_dict().keys() == other.predictor.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(one.reconstruct(), other.reconstruct(), strict=True))


def test_heads_share_all_layers_but_the_last() -> None:
    nern = build_nern(config(), KernelTable.of(random_weights(SHAPES)), None, seed=0)
    layers = [f"layers.{i}.{name}" for i in range(2) for name in ("weight", "bias")]
    heads = [f"final_linear_layers.{h}x{w}.{name}" for h, w in nern.heads.sizes for name in ("weight", "bias")]
    assert list(nern.predictor.state_dict()) == layers + heads
    sum(w.square().sum() for w in nern.weights()).backward()
    assert all(p.grad is not None and p.grad.any() for p in nern.predictor.parameters())


def test_a_head_without_rows_predicts_nothing() -> None:
    nern = build_nern(config(), KernelTable.of(random_weights(SHAPES)), None, seed=0)
    predictions = nern(torch.tensor([1, 0, 1]))
    assert [tuple(p.shape) for p in predictions] == [
        (n, *s) for n, s in zip((3, 0, 0, 0), nern.heads.sizes, strict=True)
    ]
    assert [len(p) for p in nern(torch.tensor([], dtype=torch.int64))] == [0, 0, 0, 0]


def test_the_weights_of_a_nern_have_the_shapes_of_the_originals() -> None:
    nern = build_nern(config(), KernelTable.of(random_weights(SHAPES)), None, seed=0)
    assert [tuple(w.shape) for w in nern.reconstruct()] == list(SHAPES)


# --- several networks --------------------------------------------------------------------------------------------

TWO = [[(2, 3, 3, 3), (4, 2)], [(3, 2, 3, 3), (2, 2, 1, 1), (2, 2, 3)]]


def table_of_two(num_idxs: int = 3) -> KernelTable:
    return KernelTable.of_networks([random_weights(shapes) for shapes in TWO], num_idxs)


def test_one_network_alone_has_no_number() -> None:
    weights = random_weights(TWO[0])
    assert KernelTable.of_networks([weights]) == KernelTable.of(weights)
    assert KernelTable.of(weights).networks == ()


@pytest.mark.parametrize("kind", ["basic", "ffn"])
def test_the_number_of_the_network_is_encoded_as_one_more_index(kind: str) -> None:
    embeddings = EmbeddingsConfig(type=kind, enc_levels=4, gauss_scale=[0.5, 0.1, 0.1])
    alone = KernelTable(table_of_two().shapes)
    one, several = build_encoding(embeddings, alone), build_encoding(embeddings, table_of_two())
    assert several.size == one.size // 3 * 4
    rows = several.prepare(TableCoordinates(table_of_two()))(slice(None))
    assert rows.shape == (table_of_two().rows, several.size)


def test_equal_networks_have_different_encodings() -> None:
    weights = random_weights(TWO[0])
    nern = build_nern(config(), KernelTable.of_networks([weights, weights]), None, seed=0)
    first, second = nern.encoded(slice(None)).chunk(2)
    assert first.shape == second.shape
    assert not torch.equal(first, second)
    assert len(torch.cat([first, second]).unique(dim=0)) == len(first) + len(second)
