"""Orderings: greedy paths, files, the published framework's folders, the cache."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from nern.config import NernConfig
from nern.errors import NernError, NernWarning
from nern.files import load_safetensors, save_safetensors
from nern.ordering import (
    CrossFilterOrdering,
    InFilterOrdering,
    NoOrdering,
    get_ordering,
    greedy_filter_path,
    greedy_path,
    load_ordering,
    save_ordering,
    solve_ordering,
)
from nern.ordering.store import FILE_NAME, content_key
from nern.representation import KernelTable, build_nern

pytestmark = pytest.mark.usefixtures("rng_untouched")

MODES = ["crossfilter", "infilter", "infilter_path"]
SHAPES = [(4, 3, 3, 3), (5, 2, 1, 1), (2, 3, 5, 5)]
Array = np.ndarray


def random_weights(shapes: list[tuple[int, ...]] = SHAPES, seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) for shape in shapes]


def similarity(a: Array, b: Array) -> float:
    """Of two kernels: cosine (0 with a zero kernel); of one entry, minus the squared difference."""
    if a.size == 1:
        return -float((a[0] - b[0]) ** 2)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms else 0.0


def slow_path(similarities: Array) -> list[int]:
    """The greedy path over a matrix of similarities, ties to the lowest row."""
    path = [0]
    while len(path) < len(similarities):
        left = [row for row in range(len(similarities)) if row not in path]
        path.append(max(left, key=lambda row: (similarities[path[-1], row], -row)))
    return path


def slow_kernel_path(kernels: Array) -> list[int]:
    return slow_path(np.array([[similarity(a, b) for b in kernels] for a in kernels]))


def slow_filter_path(filters: Array) -> list[int]:
    return slow_path(
        np.array([[sum(similarity(a, b) for a, b in zip(f, g, strict=True)) for g in filters] for f in filters])
    )


def draw(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


# --- paths -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(1, 40), st.sampled_from([1, 4, 9, 25]))
def test_the_path_is_the_greedy_one(seed: int, count: int, entries: int) -> None:
    kernels = draw(seed, count, entries)
    assert greedy_path(kernels).tolist() == slow_kernel_path(kernels)


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 6), st.sampled_from([1, 9, 25]))
def test_the_filter_path_is_the_greedy_one(seed: int, filters: int, channels: int, entries: int) -> None:
    arranged = draw(seed, filters, channels, entries)
    assert greedy_filter_path(arranged).tolist() == slow_filter_path(arranged)


@given(
    st.integers(1, 30),
    st.sampled_from([1, 9]),
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1e-30, 1e30]), min_size=1, max_size=6),
    st.integers(0, 100),
)
def test_a_path_is_a_permutation_that_starts_at_row_0_whatever_the_values(
    count: int, entries: int, values: list[float], seed: int
) -> None:
    kernels = np.random.default_rng(seed).choice(values, (count, entries))
    path = greedy_path(kernels)
    assert path[0] == 0
    assert sorted(path.tolist()) == list(range(count))


def test_kernels_of_one_entry_are_compared_by_value() -> None:
    values = np.array([[0.5], [-0.4], [3.0], [0.6], [0.1]])
    assert greedy_path(values).tolist() == [0, 3, 4, 1, 2]


def test_the_length_of_larger_kernels_does_not_matter() -> None:
    kernels = draw(0, 20, 9)
    lengths = np.random.default_rng(1).uniform(0.01, 100, (20, 1))
    assert greedy_path(kernels * lengths).tolist() == greedy_path(kernels).tolist()


def test_zero_kernels_have_similarity_0() -> None:
    up, across = [1.0, 0, 0, 0], [0, 1.0, 0, 0]
    kernels = np.array([up, [0.0] * 4, [-1.0, 0, 0, 0], up, across])
    # like itself (1); then the zero kernel and the one across tie at 0, before the opposite (-1)
    assert greedy_path(kernels).tolist() == [0, 3, 1, 2, 4]


def test_only_zero_kernels_keep_their_order() -> None:
    assert greedy_path(np.zeros((5, 9))).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("entries", [1, 9])
def test_ties_go_to_the_lowest_row(entries: int) -> None:
    a, b = np.full(entries, 1.0), np.full(entries, 2.0 if entries == 1 else -1.0)
    assert greedy_path(np.stack([a, b, a, b, a])).tolist() == [0, 2, 4, 1, 3]


# --- whole layers ------------------------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([1, 3, 5]), st.integers(0, 100))
def test_cross_filter_orders_all_kernels_of_a_layer(filters: int, channels: int, side: int, seed: int) -> None:
    (weight,) = random_weights([(filters, channels, side, side)], seed)
    (order,) = solve_ordering([weight], "crossfilter").tensors().values()
    assert order.tolist() == slow_kernel_path(weight.double().reshape(filters * channels, -1).numpy())


@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([1, 3, 5]), st.integers(0, 100))
def test_in_filter_orders_channels_then_filters(filters: int, channels: int, side: int, seed: int) -> None:
    (weight,) = random_weights([(filters, channels, side, side)], seed)
    tensors = solve_ordering([weight], "infilter").tensors()
    kernels = weight.double().reshape(filters, channels, -1).numpy()
    channel_paths = [slow_kernel_path(f) for f in kernels]
    arranged = np.stack([f[path] for f, path in zip(kernels, channel_paths, strict=True)])
    assert tensors["channel_order.0"].tolist() == channel_paths
    assert tensors["filter_order.0"].tolist() == slow_filter_path(arranged)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(6, 1, 3, 3), (1, 6, 3, 3), (1, 1, 3, 3), (6, 1, 1, 1), (1, 6, 1, 1), (3, 2, 5, 5)])
def test_zero_kernels_one_channel_and_one_filter_are_ordered(mode: str, shape: tuple[int, ...]) -> None:
    (weight,) = random_weights([shape])
    for broken in (weight, torch.zeros_like(weight), weight * (torch.arange(shape[0]) % 2).view(-1, 1, 1, 1)):
        ordering = solve_ordering([broken], mode)
        (positions,) = ordering.positions([shape])
        assert sorted(positions.tolist()) == list(range(shape[0] * shape[1]))
        nern = build_nern(NernConfig(output_size=5, hidden_layer_size=4), KernelTable((shape,)), ordering, seed=0)
        assert torch.isfinite(nern.encoded(slice(None))).all()
        assert all(torch.isfinite(w).all() for w in nern.reconstruct())


@pytest.mark.parametrize("mode", MODES)
def test_threads_do_not_change_the_result(mode: str) -> None:
    weights = random_weights()
    one, three = (solve_ordering(weights, mode, num_workers=n).tensors() for n in (1, 3))
    assert one.keys() == three.keys()
    assert all(torch.equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize("mode", MODES)
def test_weights_that_are_not_finite_are_refused(mode: str) -> None:
    weights = random_weights()
    weights[1][0, 0] = math.nan
    with pytest.raises(NernError, match="learnable weight 1 holds values that are not finite"):
        solve_ordering(weights, mode)


def test_an_unknown_mode_lists_the_choices() -> None:
    with pytest.raises(NernError, match="crossfilter, infilter, infilter_path, none"):
        solve_ordering(random_weights(), "cross_filter")


def test_bits_are_the_logarithm_of_the_number_of_orderings() -> None:
    weights = random_weights()
    cross = sum(math.log2(math.factorial(f * c)) for f, c, _, _ in SHAPES)
    within = sum(math.log2(math.factorial(f)) + f * math.log2(math.factorial(c)) for f, c, _, _ in SHAPES)
    assert solve_ordering(weights, "crossfilter").bits() == pytest.approx(cross)
    assert solve_ordering(weights, "infilter").bits() == pytest.approx(within)
    assert solve_ordering(weights, "none").bits() == 0


# --- our files ---------------------------------------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    first, second = a.tensors(), b.tensors()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("mode", MODES)
def test_an_ordering_survives_its_file(mode: str, tmp_path: Path) -> None:
    ordering = solve_ordering(random_weights(), mode)
    save_ordering(tmp_path / FILE_NAME, ordering)
    assert same(load_ordering(tmp_path / FILE_NAME, mode, SHAPES), ordering)
    assert same(load_ordering(tmp_path, mode, SHAPES), ordering)


@pytest.mark.parametrize(
    ("kernels", "dtype"),
    [(256, torch.uint8), (257, torch.uint16), (65536, torch.uint16), (65537, torch.int64)],
)
def test_the_smallest_integers_that_hold_an_ordering_are_stored(
    kernels: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    order = torch.arange(kernels).flip(0)
    save_ordering(tmp_path / FILE_NAME, CrossFilterOrdering([order]))
    assert load_file(tmp_path / FILE_NAME)["order.0"].dtype == dtype
    loaded = load_ordering(tmp_path, "crossfilter", [(kernels, 1, 3, 3)])
    assert torch.equal(loaded.tensors()["order.0"], order)


@pytest.mark.parametrize(("written", "asked"), [("crossfilter", "infilter"), ("infilter", "crossfilter")])
def test_an_ordering_of_another_mode_is_refused(written: str, asked: str, tmp_path: Path) -> None:
    save_ordering(tmp_path / FILE_NAME, solve_ordering(random_weights(), written))
    with pytest.raises(NernError, match=rf"is of mode '{written}'.*permute_mode is '{asked}'"):
        load_ordering(tmp_path, asked, SHAPES)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "shapes", [[(4, 2, 3, 3), *SHAPES[1:]], SHAPES[:2], [*SHAPES, (2, 2, 3, 3)], [SHAPES[1], SHAPES[0], SHAPES[2]]]
)
def test_an_ordering_of_another_network_is_refused(mode: str, shapes: list[tuple[int, ...]], tmp_path: Path) -> None:
    save_ordering(tmp_path / FILE_NAME, solve_ordering(random_weights(), mode))
    with pytest.raises(NernError, match=r"ordering.* (does not fit|lacks|has a tensor)"):
        load_ordering(tmp_path, mode, shapes)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "a folder without orderings", "missing"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    save_ordering(path, solve_ordering(random_weights(), "crossfilter"))
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage in ("empty", "text"):
        path.write_text("" if damage == "empty" else "an ordering, trust me")
    else:
        path.unlink()
    with pytest.raises(NernError, match="order"):
        load_ordering(tmp_path if damage == "a folder without orderings" else path, "crossfilter", SHAPES)


@pytest.mark.parametrize("order", [[0, 1, 1, 3], [0, 1, 2], [1, 2, 3, 4], [-1, 0, 1, 2], [[0, 1], [2, 3]]])
def test_what_is_no_permutation_is_refused(order: list[Any], tmp_path: Path) -> None:
    save_file({"order.0": torch.tensor(order)}, tmp_path / FILE_NAME, {"mode": "crossfilter"})
    with pytest.raises(NernError, match=r"layer 0 is not a permutation of 0\.\.3"):
        load_ordering(tmp_path, "crossfilter", [(2, 2, 3, 3)])


@pytest.mark.parametrize(
    ("filters", "channels", "says"),
    [
        ([0, 0], [[0, 1], [1, 0]], "filter order of layer 0"),
        ([0, 1], [[0, 1], [1, 1]], "channel order 1 of layer 0"),
        ([0, 1], [[0, 1, 2], [1, 0, 2]], r"channel orders of layer 0 have shape \(2, 3\)"),
    ],
)
def test_what_is_no_in_filter_order_is_refused(
    filters: list[int], channels: list[list[int]], says: str, tmp_path: Path
) -> None:
    tensors = {"filter_order.0": torch.tensor(filters), "channel_order.0": torch.tensor(channels)}
    save_file(tensors, tmp_path / FILE_NAME, {"mode": "infilter"})
    with pytest.raises(NernError, match=says):
        load_ordering(tmp_path, "infilter", [(2, 2, 3, 3)])


# --- folders of the published framework --------------------------------------------------------------------------


def write_published(folder: Path, layers: list[Any]) -> None:
    folder.mkdir(exist_ok=True)
    for index, content in enumerate(layers):
        torch.save(content, folder / f"layer_{index}.pt")


CROSS_FORMS = {
    "tensor": lambda order: order,
    "int32 tensor": lambda order: order.int(),
    "list": lambda order: order.tolist(),
    "tuple": lambda order: tuple(order.tolist()),
    "array": lambda order: order.numpy(),
    "list of NumPy numbers": lambda order: list(order.numpy()),
}
IN_FORMS = {
    "pair of tensors": lambda filters, channels: (filters, channels),
    "channels first": lambda filters, channels: (channels, filters),
    "pair of lists": lambda filters, channels: [filters.tolist(), channels.tolist()],
    "pair of arrays": lambda filters, channels: (filters.numpy(), channels.numpy()),
    "list of tensors each filter": lambda filters, channels: (filters, list(channels)),
    "list of arrays each filter": lambda filters, channels: (filters.numpy(), list(channels.numpy())),
    "dict": lambda filters, channels: {"filters": filters, "channels": channels},
}


@pytest.mark.parametrize("form", CROSS_FORMS)
def test_published_cross_filter_folders_are_read(form: str, tmp_path: Path) -> None:
    ordering = solve_ordering(random_weights(), "crossfilter")
    write_published(tmp_path, [CROSS_FORMS[form](order) for order in ordering.orders])
    assert same(load_ordering(tmp_path, "crossfilter", SHAPES), ordering)


@pytest.mark.parametrize("form", IN_FORMS)
def test_published_in_filter_folders_are_read(form: str, tmp_path: Path) -> None:
    shapes = [(4, 3, 3, 3), (3, 3, 3, 3), (5, 1, 3, 3), (1, 5, 3, 3)]
    ordering = solve_ordering(random_weights(shapes), "infilter")
    pairs = zip(ordering.filter_orders, ordering.channel_orders, strict=True)
    write_published(tmp_path, [IN_FORMS[form](filters, channels) for filters, channels in pairs])
    assert same(load_ordering(tmp_path, "infilter", shapes), ordering)


def test_more_than_ten_published_layers_are_taken_by_number(tmp_path: Path) -> None:
    shapes = [(2, n, 1, 1) for n in range(1, 13)]
    ordering = solve_ordering(random_weights(shapes), "crossfilter")
    write_published(tmp_path, ordering.orders)
    assert same(load_ordering(tmp_path, "crossfilter", shapes), ordering)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("content", [torch.rand(12), "0 1 2", 7, [1, 2, 3], [[0, 1], [2]], {}, None, ([0], [1], [2])])
def test_published_files_of_something_else_are_refused(mode: str, content: Any, tmp_path: Path) -> None:
    write_published(tmp_path, [content])
    with pytest.raises(NernError, match=rf"layer_0.pt does not hold a {mode} order of 4 filters and 3 channels"):
        load_ordering(tmp_path, mode, SHAPES[:1])


def test_a_published_folder_that_lacks_a_layer_is_refused(tmp_path: Path) -> None:
    write_published(tmp_path, solve_ordering(random_weights(), "crossfilter").orders)
    (tmp_path / "layer_1.pt").unlink()
    with pytest.raises(NernError, match=r"layer_0.pt to layer_2.pt; it has layer_0.pt, layer_2.pt"):
        load_ordering(tmp_path, "crossfilter", SHAPES)


def test_a_damaged_published_file_is_refused(tmp_path: Path) -> None:
    write_published(tmp_path, solve_ordering(random_weights(), "crossfilter").orders)
    (tmp_path / "layer_2.pt").write_bytes((tmp_path / "layer_2.pt").read_bytes()[:100])
    with pytest.raises(NernError, match=r"layer_2.pt cannot be read"):
        load_ordering(tmp_path, "crossfilter", SHAPES)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["save_torch", "save_pickle"])
def test_published_files_with_code_are_refused_and_not_executed(
    mode: str, how: str, attack: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "orders"
    folder.mkdir()
    getattr(attack, how)(folder / "layer_0.pt")
    with pytest.raises(NernError, match=r"layer_0.pt .*refused"):
        load_ordering(folder, mode, SHAPES[:1])
    assert not attack.executed


# --- cache and path ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_second_time_an_ordering_comes_from_the_cache(mode: str, cache_dir: Path) -> None:
    weights = random_weights()
    first, source = get_ordering(weights, mode)
    assert source == "solved now"
    second, source = get_ordering([w.clone() for w in weights], mode)
    assert source.startswith("from the cache")
    assert same(first, second)
    (file,) = (cache_dir / "orderings").iterdir()
    assert file.stem == content_key(weights, mode)


def test_the_key_depends_on_mode_shapes_and_every_weight() -> None:
    weights = random_weights()
    changed = [w.clone() for w in weights]
    changed[2][1, 2, 4, 4] += 1e-6
    keys = {
        content_key(weights, "crossfilter"),
        content_key(weights, "infilter"),
        content_key(changed, "crossfilter"),
        content_key(weights[:2], "crossfilter"),
        content_key(weights[::-1], "crossfilter"),
        content_key([weights[0].transpose(0, 1), *weights[1:]], "crossfilter"),
        content_key([weights[0].reshape(3, 4, 3, 3), *weights[1:]], "crossfilter"),
    }
    assert len(keys) == 7


def test_other_weights_are_not_served_from_the_cache() -> None:
    get_ordering(random_weights(seed=0), "crossfilter")
    other = random_weights(seed=1)
    ordering, source = get_ordering(other, "crossfilter")
    assert source == "solved now"
    assert same(ordering, solve_ordering(other, "crossfilter"))


def test_no_ordering_leaves_no_files(cache_dir: Path, tmp_path: Path) -> None:
    ordering, _ = get_ordering(random_weights(), "none", tmp_path / "orders")
    assert isinstance(ordering, NoOrdering)
    assert not any(cache_dir.iterdir())
    assert not (tmp_path / "orders").exists()


@pytest.mark.parametrize("mode", MODES)
def test_an_ordering_is_written_to_the_path_and_read_from_there(mode: str, tmp_path: Path) -> None:
    weights, folder = random_weights(), tmp_path / "deep" / "orders"
    first, source = get_ordering(weights, mode, folder)
    assert f"written to {folder}" in source
    assert [p.name for p in folder.iterdir()] == [FILE_NAME]
    second, source = get_ordering(weights, mode, folder)
    assert source == f"read from {folder}"
    assert same(first, second)


def test_what_the_path_holds_goes_before_the_cache(tmp_path: Path) -> None:
    weights = random_weights()
    get_ordering(weights, "crossfilter")
    chosen = CrossFilterOrdering([torch.arange(f * c).flip(0) for f, c, _, _ in SHAPES])
    write_published(tmp_path, chosen.orders)
    ordering, source = get_ordering(weights, "crossfilter", tmp_path)
    assert source == f"read from {tmp_path}"
    assert same(ordering, chosen)


def test_a_path_with_an_ordering_of_another_mode_is_an_error_not_overwritten(tmp_path: Path) -> None:
    weights = random_weights()
    get_ordering(weights, "infilter", tmp_path)
    before = (tmp_path / FILE_NAME).read_bytes()
    with pytest.raises(NernError, match="is of mode 'infilter'"):
        get_ordering(weights, "crossfilter", tmp_path)
    assert (tmp_path / FILE_NAME).read_bytes() == before


def test_positions_are_the_inverse_of_the_path() -> None:
    ordering = InFilterOrdering([torch.tensor([2, 0, 1])], [torch.tensor([[1, 0], [0, 1], [1, 0]])])
    (positions,) = ordering.positions([(3, 2, 3, 3)])
    assert positions.tolist() == [3, 2, 4, 5, 1, 0]


def test_an_ordering_of_other_weights_is_taken_with_a_warning(tmp_path: Path) -> None:
    first, second = (torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    get_ordering([first], "crossfilter", tmp_path)
    get_ordering([first], "crossfilter", tmp_path)
    with pytest.warns(NernWarning, match="was solved for other weights"):
        get_ordering([second], "crossfilter", tmp_path)


def rewritten(change: Callable[[dict[str, Tensor], dict[str, str]], object]) -> Callable[[Path], object]:
    """Writes a cached file again, with changed tensors and metadata."""

    def write(path: Path) -> None:
        tensors, metadata = load_safetensors(path, "cached")
        change(tensors, metadata)
        save_safetensors(path, tensors, metadata)

    return write


def folder_of(path: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)


def pipe_of(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CACHE_DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("x" * 5000),
    "a folder": folder_of,
    "a pipe": pipe_of,
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nothing")),
    "deep JSON": rewritten(lambda _, m: m.update(path_cost="[" * 100_000)),
    "a long number": rewritten(lambda _, m: m.update(path_cost=f"[1, {'9' * 5000}]")),
    "a cost of one": rewritten(lambda _, m: m.update(path_cost="[1]")),
    "a cost that is none": rewritten(lambda _, m: m.update(path_cost="[NaN, 1]")),
    "another mode": rewritten(lambda _, m: m.update(mode="infilter")),
    "other weights": rewritten(lambda _, m: m.update(content_key="0" * 64)),
    "a place twice": rewritten(lambda t, _: t["order.0"].__setitem__(0, int(t["order.0"][1]))),
    "a place too far": rewritten(lambda t, _: t["order.0"].__setitem__(0, 200)),
    "real numbers": rewritten(lambda t, _: t.update({"order.0": t["order.0"].float() + 0.5})),
    "another shape": rewritten(lambda t, _: t.update({"order.0": t["order.0"].reshape(3, 4)})),
    "fewer": rewritten(lambda t, _: t.update({"order.0": t["order.0"][:3].clone()})),
    "another name": rewritten(lambda t, _: t.update({"order.9": t.pop("order.0")})),
}


@pytest.mark.parametrize("damage", CACHE_DAMAGE.values(), ids=CACHE_DAMAGE)
def test_a_damaged_cache_is_mended_with_one_warning(damage: Callable[[Path], object], cache_dir: Path) -> None:
    weights = [torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))]
    solved, _ = get_ordering(weights, "crossfilter")
    (cached,) = (cache_dir / "orderings").iterdir()
    damage(cached)
    with pytest.warns(NernWarning, match="is damaged and made anew") as caught:
        again, source = get_ordering(weights, "crossfilter")
    assert len(caught) == 1
    assert source == "solved now"
    assert torch.equal(again.tensors()["order.0"], solved.tensors()["order.0"])
    mended, source = get_ordering(weights, "crossfilter")  # without a warning
    assert source == f"from the cache ({cached})"
    assert torch.equal(mended.tensors()["order.0"], solved.tensors()["order.0"])
    assert list((cache_dir / "orderings").iterdir()) == [cached]
