"""Kernel table, sampling, encodings, predictors, and the NeRN made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nern.config import EmbeddingsConfig, NernConfig
from nern.errors import NernError
from nern.files import save_torch
from nern.ordering import CrossFilterOrdering, InFilterOrdering, NoOrdering, solve_ordering
from nern.registry import ACTIVATIONS, ENCODINGS, NORM_LAYERS, PREDICTORS, SAMPLING_MODES
from nern.representation import Heads, KernelTable, NeRN, build_nern, build_predictor, parameters_of, sample_kernels
from nern.representation.coordinates import ListedCoordinates

pytestmark = pytest.mark.usefixtures("rng_untouched")

SHAPES = ((4, 2, 3, 3), (3, 4, 1, 1), (2, 3, 3, 2))
CPU = torch.device("cpu")

shapes_of_networks = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4
).map(tuple)


def random_weights(shapes: tuple[tuple[int, ...], ...], seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) for shape in shapes]


def to_weights(heads: Heads, predictions: list[Tensor]) -> list[Tensor]:
    """The weights that these predictions of all rows stand for."""
    return [heads.table.to_weight(heads.layer(predictions, i), i) for i in range(len(heads.table.shapes))]


# --- kernel table ------------------------------------------------------------------------------------------------


@given(shapes_of_networks)
def test_coordinates_are_layer_filter_channel_of_every_kernel(shapes: tuple[tuple[int, int, int, int], ...]) -> None:
    expected = [
        (layer, f, c)
        for layer, (filters, channels, _, _) in enumerate(shapes)
        for f in range(filters)
        for c in range(channels)
    ]
    table = KernelTable(shapes)
    assert table.coordinates().tolist() == [list(row) for row in expected]
    assert table.rows == len(expected)
    assert [table.layer(i).stop - table.layer(i).start for i in range(len(shapes))] == [f * c for f, c, _, _ in shapes]


@given(shapes_of_networks)
def test_five_indices_are_those_of_every_weight(shapes: tuple[tuple[int, int, int, int], ...]) -> None:
    weights = random_weights(shapes)
    table = KernelTable(shapes, num_idxs=5)
    expected = [
        ((layer, f, c, y, x), weights[layer][f, c, y, x])
        for layer, (filters, channels, height, width) in enumerate(shapes)
        for f in range(filters)
        for c in range(channels)
        for y in range(height)
        for x in range(width)
    ]
    assert table.coordinates().tolist() == [list(row) for row, _ in expected]
    rows = torch.cat(table.to_rows(weights)).flatten()
    assert rows.tolist() == [float(value) for _, value in expected]
    assert table.rows == table.num_weights


@given(shapes_of_networks, st.sampled_from([3, 5]), st.sampled_from(["center", "average", "max"]))
def test_weights_survive_the_way_through_rows(
    shapes: tuple[tuple[int, int, int, int], ...], num_idxs: int, mode: str
) -> None:
    weights = random_weights(shapes)
    table = KernelTable.of(weights, num_idxs)
    for index, weight in enumerate(weights):
        alone = KernelTable.of([weight], num_idxs)
        heads = Heads.build(alone, "per_size", sampling_mode=mode)
        (restored,) = to_weights(heads, [table.to_rows(weights)[index]])
        assert torch.equal(restored, weight)


def test_predicted_kernels_are_sampled_to_each_layer() -> None:
    table = KernelTable(SHAPES)
    predictions = torch.randn(table.rows, 3, 3, generator=torch.Generator().manual_seed(0))
    weights = to_weights(Heads.build(table, "shared", 3, "center"), [predictions])
    assert [tuple(w.shape) for w in weights] == list(SHAPES)
    assert torch.equal(weights[0][3, 1], predictions[3 * 2 + 1])
    assert torch.equal(weights[1][2, 3], predictions[8 + 2 * 4 + 3, 1:2, 1:2])


@given(shapes_of_networks, st.sampled_from([3, 5]))
def test_norms_are_those_of_the_rows(shapes: tuple[tuple[int, int, int, int], ...], num_idxs: int) -> None:
    weights = random_weights(shapes)
    expected = [
        float(entry.square().sum().sqrt())
        for weight in weights
        for entry in (weight.flatten(0, 1) if num_idxs == 3 else weight.flatten())
    ]
    norms = KernelTable(shapes, num_idxs).norms(weights)
    torch.testing.assert_close(norms, torch.tensor(expected))


@pytest.mark.parametrize("num_idxs", [3, 5])
def test_local_normalisation_divides_by_the_sizes_of_the_own_layer(num_idxs: int) -> None:
    table = KernelTable(SHAPES, num_idxs)
    raw = table.coordinates()
    for row, normalized in zip(raw.tolist(), table.normalize(raw, "local").tolist(), strict=True):
        sizes = (len(SHAPES), *SHAPES[row[0]])
        assert normalized == [index / size for index, size in zip(row, sizes, strict=False)]


def test_global_normalisation_divides_by_the_largest_size_and_none_keeps_indices() -> None:
    table = KernelTable(((2, 2, 7, 1), (3, 5, 1, 1)))
    raw = table.coordinates()
    assert torch.equal(table.normalize(raw, "global"), raw.double() / 7)
    assert torch.equal(table.normalize(raw, "none"), raw.double())


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


def test_a_kernel_above_the_output_size_is_refused_before_anything_is_built() -> None:
    table = KernelTable(((4, 2, 3, 3), (4, 4, 5, 5)))
    with pytest.raises(NernError, match=r"learnable weight 1 .* nern.output_size to at least 5"):
        build_nern(NernConfig(heads="shared"), table, None, seed=0)


# --- sampling ----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("mode", sorted(SAMPLING_MODES))
def test_kernels_of_the_predicted_size_are_left_as_they_are(mode: str) -> None:
    kernels = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_kernels(kernels, (3, 3), mode), kernels)


@pytest.mark.parametrize("size", [(7, 7), (7, 3), (1, 5)])
def test_a_kernel_larger_than_the_prediction_names_the_key_to_raise(size: tuple[int, int]) -> None:
    with pytest.raises(NernError, match=rf"set nern.output_size to at least {max(size)}"):
        sample_kernels(torch.zeros(1, 3, 3), size, "center")


# --- encodings ---------------------------------------------------------------------------------------------------


def integer_coordinates(num_idxs: int, seed: int, rows: int = 20) -> Tensor:
    return torch.randint(0, 40, (rows, num_idxs), generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 5), st.integers(1, 7), st.sampled_from(["concat", "sum"]))
def test_the_basic_encoding_has_two_numbers_a_frequency(num_idxs: int, levels: int, fusion: str) -> None:
    encoding = ENCODINGS["basic"](num_idxs=num_idxs, enc_levels=levels, base=0.8, fusion_mode=fusion)
    encoded = encoding.encode(integer_coordinates(num_idxs, levels).double())
    assert encoding.size == 2 * levels * (num_idxs if fusion == "concat" else 1)
    assert encoded.shape == (20, encoding.size)


@given(st.integers(1, 5), st.integers(1, 5))
def test_sum_adds_what_concat_joins(num_idxs: int, levels: int) -> None:
    coordinates = integer_coordinates(num_idxs, levels).double()
    joined, added = (
        ENCODINGS["basic"](num_idxs=num_idxs, enc_levels=levels, base=1.25, fusion_mode=mode).encode(coordinates)
        for mode in ("concat", "sum")
    )
    torch.testing.assert_close(added, joined.view(20, num_idxs, 2 * levels).sum(1))


def test_the_basic_encoding_is_index_major_then_level_then_sine_and_cosine() -> None:
    encoding = ENCODINGS["basic"](num_idxs=2, enc_levels=2, base=0.5)
    arguments = torch.tensor([3, 3 * 0.5, 5, 5 * 0.5], dtype=torch.float64) * torch.pi
    expected = torch.stack((arguments.sin(), arguments.cos()), 1).flatten()
    torch.testing.assert_close(encoding.encode(torch.tensor([[3.0, 5.0]], dtype=torch.float64))[0], expected)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_fourier_features_are_sines_and_cosines_of_scaled_random_directions(
    num_idxs: int, levels: int, seed: int
) -> None:
    scale = [1.0, 0.1, 0.3, 0.2, 0.5][:num_idxs]
    encoding = ENCODINGS["ffn"](num_idxs=num_idxs, enc_levels=levels, gauss_scale=scale)
    draw = torch.randn(levels * num_idxs, num_idxs, generator=torch.Generator().manual_seed(0))
    coordinates = integer_coordinates(num_idxs, seed).double()
    arguments = 2 * torch.pi * coordinates @ (draw * torch.tensor(scale)).double().T
    expected = torch.stack((arguments.sin(), arguments.cos()), 2).flatten(1)
    assert encoding.size == expected.shape[1]
    torch.testing.assert_close(encoding.encode(coordinates), expected, rtol=0, atol=1e-9)


@given(st.integers(1, 5), st.integers(0, 100), st.sampled_from(["concat", "sum"]), st.sampled_from([0.76, 1.25]))
def test_served_basic_encodings_are_those_of_encode(num_idxs: int, seed: int, fusion: str, base: float) -> None:
    coordinates = integer_coordinates(num_idxs, seed)
    encoding = ENCODINGS["basic"](num_idxs=num_idxs, enc_levels=6, base=base, fusion_mode=fusion)
    served = encoding.prepare(ListedCoordinates(coordinates.double()))
    whole = encoding.encode(coordinates.float())
    assert served(slice(None)).dtype == torch.float32
    which = torch.tensor([3, 3, 0, 19])
    for rows in (slice(None), slice(5, 9), which):
        torch.testing.assert_close(served(rows), whole[rows], rtol=0, atol=2e-6)


@given(st.integers(1, 5), st.integers(0, 100))
def test_served_fourier_features_are_those_of_encode(num_idxs: int, seed: int) -> None:
    coordinates = integer_coordinates(num_idxs, seed).double()
    encoding = ENCODINGS["ffn"](num_idxs=num_idxs, enc_levels=4, gauss_scale=[1.0] * num_idxs)
    served = encoding.prepare(ListedCoordinates(coordinates))
    whole = encoding.encode(coordinates)
    torch.testing.assert_close(served(slice(None)).double(), whole, rtol=0, atol=1e-5)
    which = torch.tensor([7, 0, 7])
    torch.testing.assert_close(served(which).double(), whole[which], rtol=0, atol=1e-5)


# --- predictors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_layer", sorted(NORM_LAYERS))
@pytest.mark.parametrize("act_layer", sorted(ACTIVATIONS))
@pytest.mark.parametrize("method", sorted(PREDICTORS))
def test_every_predictor_trains_all_its_parameters(
    method: str, act_layer: str, norm_layer: str, rng: torch.Generator
) -> None:
    options = {"hidden_layer_size": 6, "num_blocks": 4, "act_layer": act_layer, "norm_layer": norm_layer}
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


@pytest.mark.parametrize("method", sorted(PREDICTORS))
def test_state_dicts_have_the_published_names(method: str) -> None:
    predictor = build_predictor(method, seed=0, input_size=8, num_blocks=4, hidden_layer_size=6)
    layers = [f"layers.{i}.{name}" for i in range(3) for name in ("weight", "bias")]
    assert list(predictor.state_dict()) == [*layers, "final_linear_layer.weight", "final_linear_layer.bias"]


def test_norm_layers_are_named_beside_the_linear_layers() -> None:
    predictor = build_predictor("kxk", seed=0, input_size=8, num_blocks=3, hidden_layer_size=6, norm_layer="ln")
    assert {"norms.0.weight", "norms.1.bias"} < set(predictor.state_dict())


def test_sizes_of_the_linear_layers_follow_from_the_method() -> None:
    sizes = {
        method: [layer.in_features for layer in build_predictor(method, 0, input_size=8, num_blocks=5).layers]
        for method in PREDICTORS
    }
    plain = [8, 30, 30, 30]
    assert sizes == {"kxk": plain, "kxk_residual": plain, "basic": plain, "kxk_nerf": [8, 30, 38, 30]}


def test_the_plain_predictor_is_linear_layers_with_activations_between(rng: torch.Generator) -> None:
    predictor = build_predictor("kxk", seed=0, input_size=8, num_blocks=3, hidden_layer_size=6)
    encodings = torch.randn(5, 8, generator=rng)
    first, second = predictor.layers
    expected = predictor.final_linear_layer(second(first(encodings).relu()).relu()).view(5, 3, 3)
    torch.testing.assert_close(predictor(encodings), expected)


@pytest.mark.parametrize("blocks", [2, 3, 4])
@pytest.mark.parametrize("method", ["kxk", "kxk_nerf", "kxk_residual"])
def test_a_skip_enters_the_layer_in_the_middle_where_there_is_one(
    method: str, blocks: int, rng: torch.Generator
) -> None:
    predictor = build_predictor(method, seed=0, input_size=8, num_blocks=blocks, hidden_layer_size=6)
    e, skips = torch.randn(5, 8, generator=rng), method != "kxk"
    first, *rest = predictor.layers
    x = first(e) if method == "kxk_residual" else first(e).relu()
    for number, layer in enumerate(rest, 1):
        middle = skips and number == blocks // 2
        if method == "kxk_nerf":
            x = layer(torch.cat([e, x], dim=1) if middle else x).relu()
        else:
            x = (layer(x) + (first(e) if middle else 0)).relu()
    torch.testing.assert_close(predictor(e), predictor.final_linear_layer(x).view(5, 3, 3))
    assert [layer.in_features for layer in rest].count(14) == (method == "kxk_nerf" and blocks > 2)


@pytest.mark.parametrize("method", sorted(PREDICTORS))
def test_too_few_blocks_are_refused(method: str) -> None:
    build_predictor(method, seed=0, input_size=8, num_blocks=2)
    with pytest.raises(NernError, match=r"nern.num_blocks \(=1\) must be at least 2"):
        build_predictor(method, seed=0, input_size=8, num_blocks=1)


def test_initialisation_depends_on_the_seed_alone() -> None:
    first, again, other = (build_predictor("kxk", seed, input_size=8).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_fmod_leaves_the_default_initialisation_as_it_is() -> None:
    default, fmod = (build_predictor("kxk", 0, init, input_size=8).state_dict() for init in ("default", "fmod"))
    assert all(torch.equal(default[name], fmod[name]) for name in default)


def test_the_number_of_parameters_is_that_of_the_published_experiment() -> None:
    predictor = build_predictor("kxk", seed=0, input_size=240, num_blocks=5, hidden_layer_size=180)
    assert parameters_of(predictor) == 142_749


def test_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    source = build_predictor("kxk", seed=5, input_size=8).state_dict()
    save_torch(tmp_path / "predictor.pt", source)
    loaded = build_predictor("kxk", 0, "checkpoint", str(tmp_path / "predictor.pt"), input_size=8).state_dict()
    assert all(torch.equal(source[name], loaded[name]) for name in source)


def test_a_checkpoint_of_another_predictor_is_refused_and_says_where_to_look(tmp_path: Path) -> None:
    save_torch(tmp_path / "predictor.pt", build_predictor("kxk", 5, input_size=8, num_blocks=4).state_dict())
    with pytest.raises(NernError) as error:
        build_predictor("kxk", 0, "checkpoint", str(tmp_path / "predictor.pt"), input_size=10, num_blocks=3)
    for part in ("layers.2.weight", "layers.0.weight", "(30, 10)", "(30, 8)", "num_blocks", "nern.embeddings"):
        assert part in str(error.value)


# --- NeRN --------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("norm_layer", ["none", "bn"])
def test_many_rows_are_predicted_in_parts_with_the_same_values_and_gradients(
    norm_layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients() -> tuple[list[Tensor], int]:
        nern = build_nern(config(norm_layer=norm_layer), KernelTable(SHAPES), None, seed=0).train()
        calls: list[int] = []
        nern.predictor.register_forward_pre_hook(lambda *_: calls.append(1))
        torch.cat([of_head.flatten() for of_head in nern()]).square().sum().backward()
        return [p.grad for p in nern.predictor.parameters()], len(calls)

    whole, once = gradients()
    monkeypatch.setattr("nern.representation.nern.FEW_ROWS", 4)
    monkeypatch.setattr("nern.representation.nern.CACHED_ROWS", 3)
    parts, calls = gradients()
    torch.testing.assert_close(parts, whole)
    assert (calls > once) == (norm_layer == "none")  # statistics are those of all rows of a step


@pytest.mark.parametrize("method", sorted(PREDICTORS))
@pytest.mark.parametrize("sampling_mode", [None, *sorted(SAMPLING_MODES)])
def test_a_nern_gives_weights_of_the_original_shapes(method: str, sampling_mode: str | None) -> None:
    num_idxs = PREDICTORS.info(method)["num_idxs"]
    shared = {"heads": "shared", "sampling_mode": sampling_mode} if sampling_mode else {"heads": "per_size"}
    settings = config(method=method, num_blocks=4, **shared)
    settings.embeddings.num_idxs = num_idxs
    nern = build_nern(settings, KernelTable(SHAPES, num_idxs), None, seed=0)
    assert [tuple(w.shape) for w in nern.weights()] == list(SHAPES)
    assert all(torch.equal(a, b) for a, b in zip(nern.weights(), nern.reconstruct(), strict=True))


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


def test_the_mode_is_restored_after_an_error() -> None:
    class Failing(nn.Module):
        def forward(self, encodings: Tensor, head: int) -> Tensor:
            raise RuntimeError("no")

    nern = NeRN(Heads.build(KernelTable(SHAPES), "shared"), Failing(), lambda rows: torch.zeros(1)).train()
    with pytest.raises(RuntimeError, match="no"):
        nern.reconstruct()
    assert nern.training


def test_a_cross_filter_ordering_gives_the_kernel_at_position_p_the_coordinates_of_row_p() -> None:
    table = KernelTable(((2, 3, 3, 3), (2, 2, 1, 1)))
    orders = [torch.tensor([4, 0, 5, 1, 3, 2]), torch.tensor([1, 3, 0, 2])]
    own = table.coordinates()
    moved = table.coordinates(CrossFilterOrdering([{"order": order} for order in orders]).positions(table.shapes))
    for layer, order in enumerate(orders):
        start = table.starts[layer]
        for position, kernel in enumerate(order.tolist()):
            assert torch.equal(moved[start + kernel], own[start + position])


def test_an_in_filter_ordering_moves_channels_within_their_filter_and_filters_as_wholes() -> None:
    table = KernelTable(((2, 3, 3, 3),))
    filters, channels = torch.tensor([1, 0]), torch.tensor([[2, 0, 1], [1, 2, 0]])
    moved = table.coordinates(
        InFilterOrdering([{"filter_order": filters, "channel_order": channels}]).positions(table.shapes)
    ).tolist()
    for place, f in enumerate(filters.tolist()):
        for position, c in enumerate(channels[f].tolist()):
            assert moved[f * 3 + c] == [0, place, position]


def test_no_ordering_leaves_the_coordinates_as_they_are() -> None:
    table = KernelTable(SHAPES)
    assert torch.equal(table.coordinates(NoOrdering().positions(table.shapes)), table.coordinates())


def test_five_indices_move_with_their_kernel() -> None:
    table = KernelTable(((2, 2, 2, 2),), num_idxs=5)
    moved = table.coordinates([torch.tensor([3, 1, 0, 2])])
    assert moved[:4].tolist() == [[0, 1, 1, y, x] for y in range(2) for x in range(2)]


@pytest.mark.parametrize("mode", ["crossfilter", "infilter"])
def test_a_nern_encodes_the_ordered_coordinates(mode: str) -> None:
    weights = random_weights(SHAPES)
    table = KernelTable.of(weights)
    ordering = solve_ordering(weights, mode)
    plain, ordered = build_nern(config(), table, None, seed=0), build_nern(config(), table, ordering, seed=0)
    for layer, positions in enumerate(ordering.positions(table.shapes)):
        served = ordered.encoded(table.layer(layer))
        assert torch.equal(served, plain.encoded(table.layer(layer))[positions])
