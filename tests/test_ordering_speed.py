"""Paths found with trees, approximate ones and improved ones, against the plain path."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nern.config import Config
from nern.errors import NernError
from nern.ordering import PathCost, get_ordering, load_ordering, path_cost, save_ordering, solve_ordering
from nern.ordering.greedy import _greedy_path, greedy_path, unit_rows
from nern.ordering.improve import LEAST_ROWS, improved_path, path_sum
from nern.ordering.order import approximate_layers
from nern.ordering.store import FILE_NAME, cache_key, content_key
from nern.ordering.tree import build_tree, nearest, tree_path

pytestmark = pytest.mark.usefixtures("rng_untouched")

Array = np.ndarray
KINDS = [
    "normal",
    "single",
    "clustered",
    "quantised",
    "scaled",
    "sparse",
    "repeated",
    "opposite",
    "axes",
    "equal",
    "zero",
]


def rows_of(kind: str, n: int, d: int, seed: int) -> Array:
    """Normalised rows of a kind that is hard for a tree in its own way."""
    rng = np.random.default_rng(seed)
    normal, few = rng.standard_normal((n, d)), rng.standard_normal((3, d))
    signs = rng.integers(-1, 2, (n, d))
    return unit_rows(
        {
            "normal": lambda: normal,
            "single": lambda: normal.astype(np.float32) * np.float32(1e-30),
            "clustered": lambda: few[rng.integers(0, 3, n)] + 1e-4 * normal,
            "quantised": lambda: signs,
            "scaled": lambda: (signs * normal[:, :1]).astype(np.float32),  # equal up to rounding
            "sparse": lambda: normal * (rng.random((n, d)) < 0.2),
            "repeated": lambda: few[rng.integers(0, 3, n)],
            "opposite": lambda: few[rng.integers(0, 3, n)] * rng.choice([-1, 1], (n, 1)),
            "axes": lambda: -np.eye(d)[rng.integers(0, d, n)] * (rng.random((n, 1)) < 0.7),
            "equal": lambda: np.ones((n, d)),
            "zero": lambda: np.zeros((n, d)),
        }[kind]()
    )


def weights_of(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) for shape in shapes]


def is_permutation(path: Array, n: int) -> bool:
    return bool(np.array_equal(np.sort(path), np.arange(n)))


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


# --- trees -------------------------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(st.sampled_from(KINDS), st.integers(1, 700), st.sampled_from([2, 3, 4, 9, 25]), st.integers(0, 10**6))
def test_the_tree_finds_the_plain_path(kind: str, n: int, d: int, seed: int) -> None:
    rows = rows_of(kind, n, d, seed)
    assert np.array_equal(tree_path(rows), _greedy_path(rows, False))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_finds_the_plain_path_of_many_rows(kind: str) -> None:
    rows = rows_of(kind, 5000, 9, 0)
    assert np.array_equal(tree_path(rows), _greedy_path(rows, False))


@pytest.mark.parametrize("file", ["resnet20-cifar10.pt", "resnet56-cifar10.pt"])
def test_the_tree_finds_the_plain_path_of_trained_kernels(file: str, shared: Path) -> None:
    weights = torch.load(shared / "weights" / file, weights_only=True)
    for weight in [w for w in weights.values() if w.dim() == 4][-6:]:
        rows = unit_rows(weight.reshape(-1, 9).numpy())
        assert np.array_equal(tree_path(rows), _greedy_path(rows, False))


def test_a_hundred_thousand_equal_kernels_keep_their_order() -> None:
    assert np.array_equal(greedy_path(np.full((100_000, 9), 0.1, np.float32)), np.arange(100_000))


@pytest.mark.parametrize(("scale", "has_lengths_of_1"), [(1e-45, True), (1e-160, False), (1e-300, True)])
def test_kernels_too_small_for_their_squares_take_the_plain_path(scale: float, has_lengths_of_1: bool) -> None:
    kernels = scale * np.random.default_rng(0).standard_normal((2500, 9))
    rows = unit_rows(kernels)  # at 1e-300 all are zero
    assert (tree_path(rows) is not None) == has_lengths_of_1
    assert np.array_equal(greedy_path(kernels), _greedy_path(rows, False))


def test_normalising_leaves_the_weights_alone() -> None:
    kernels = np.random.default_rng(0).standard_normal((5, 3, 9))
    before = kernels.copy()
    assert np.allclose(np.linalg.norm(unit_rows(kernels), axis=-1), 1)
    assert np.array_equal(kernels, before)


@pytest.mark.parametrize("d", [4, 9, 25])
def test_the_nearest_rows_are_found(d: int) -> None:
    rows = rows_of("normal", 600, d, 1)
    similarities = rows @ rows.T
    np.fill_diagonal(similarities, -np.inf)
    wanted = np.array([0, 5, 599])
    found = nearest(build_tree(rows), rows, wanted, 5)
    assert np.array_equal(found, np.argsort(-similarities[wanted], axis=1, kind="stable")[:, :5])
    assert nearest(build_tree(rows[:3]), rows[:3], np.array([1]), 5)[0, 2:].tolist() == [-1] * 3


# --- approximate paths -------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.integers(1, 700), st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.9]))
def test_an_approximate_path_is_a_permutation(kind: str, n: int, seed: int, share: float) -> None:
    path = tree_path(rows_of(kind, n, 9, seed), share)
    assert path is not None
    assert path[0] == 0
    assert is_permutation(path, n)


def test_an_approximate_path_is_near_the_exact_one_and_repeats() -> None:
    rows = rows_of("normal", 10_000, 9, 0)
    exact, path = tree_path(rows), tree_path(rows, 0.3)
    assert np.array_equal(path, tree_path(rows, 0.3))
    assert not np.array_equal(path, exact)
    assert path_sum(rows, 1.0, path) < 1.05 * path_sum(rows, 1.0, exact)


def test_layers_above_the_limit_are_approximate() -> None:
    shapes = [(64, 64, 3, 3), (64, 65, 3, 3), (128, 128, 3, 3), (128, 128, 1, 1), (5, 5, 3, 3), (128, 128, 7, 7)]
    assert approximate_layers(shapes, "crossfilter", 4096) == [1, 2]
    assert approximate_layers(shapes, "crossfilter", 4) == [0, 1, 2]  # small layers, 1x1 and 7x7 kernels have no tree
    assert approximate_layers(shapes, "crossfilter", None) == []
    assert approximate_layers(shapes, "infilter", 64) == []
    assert approximate_layers([(2, 4096, 3, 3)], "infilter", 4000) == [0]
    assert approximate_layers(shapes, "none", 1) == []


@pytest.mark.parametrize("mode", ["crossfilter", "infilter"])
def test_what_is_approximate_is_said(mode: str, tmp_path: Path) -> None:
    shape = (64, 64, 3, 3) if mode == "crossfilter" else (2, 4096, 3, 3)
    weights = weights_of(shape, (2, 2, 3, 3), shape)
    exact, source = get_ordering(weights, mode)
    assert source == "solved now"
    approximate, source = get_ordering(weights, mode, tmp_path, exact_limit=4000)
    assert source == f"solved now (2 layers of more than 4,000 kernels approximately), written to {tmp_path}"
    assert approximate.cost is not None
    assert exact.cost is not None
    assert exact.cost.final < approximate.cost.final < 1.05 * exact.cost.final
    again, source = get_ordering(weights, mode, exact_limit=4000)
    assert source.startswith("from the cache")
    other = solve_ordering(weights, mode, exact_limit=4000)
    for ordering in (again, other):
        assert all(torch.equal(t, approximate.tensors()[name]) for name, t in ordering.tensors().items())
    assert get_ordering(weights, mode, exact_limit=4096 * 2)[1].startswith("from the cache")  # the exact one
    assert "(1 layer of" in get_ordering(weights[:1], mode, exact_limit=4000)[1]


# --- improvement -------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.integers(1, 80), st.sampled_from([2, 9]), st.integers(0, 10**6), st.booleans())
def test_an_improved_path_is_never_longer(kind: str, n: int, d: int, seed: int, greedy: bool) -> None:
    rows = rows_of(kind, n, d, seed)
    path = _greedy_path(rows, False) if greedy else np.random.default_rng(seed).permutation(n)
    better = improved_path(rows, path, soon())
    assert is_permutation(better, n)
    assert path_sum(rows, 1.0, better) <= path_sum(rows, 1.0, path)
    assert np.array_equal(better, improved_path(rows, path, soon()))


def test_small_paths_become_the_shortest() -> None:
    from itertools import permutations

    for seed in range(5):
        rows = rows_of("normal", 7, 9, seed)
        least = min(path_sum(rows, 1.0, np.array(p)) for p in permutations(range(7)))
        found = path_sum(rows, 1.0, improved_path(rows, _greedy_path(rows, False), soon()))
        assert found == pytest.approx(least, rel=0.02)


@pytest.mark.parametrize("seconds", [-1, 0.05, 0.4])
def test_improvement_of_many_rows_keeps_its_time(seconds: float) -> None:
    rows = rows_of("normal", 3000, 9, 0)
    path = greedy_path(rows)
    better = improved_path(rows, path, soon(seconds))
    assert is_permutation(better, 3000)
    assert path_sum(rows, 1.0, better) <= path_sum(rows, 1.0, path)
    assert (better is path) == (seconds < 0)


@pytest.mark.parametrize("mode", ["crossfilter", "infilter"])
@settings(max_examples=10)
@given(seed=st.integers(0, 1000), zeros=st.booleans())
def test_an_improved_ordering_costs_no_more(mode: str, seed: int, zeros: bool) -> None:
    weights = weights_of((9, 7, 3, 3), (12, 6, 1, 1), (1, 9, 3, 3), (30, 1, 3, 3), (3, 2, 5, 5), seed=seed)
    if zeros:
        weights[1][:, ::2] = 0
        weights[0][::2] = 0
    before = solve_ordering(weights, mode, 2)
    after = solve_ordering(weights, mode, 2, improve_seconds=0.05)
    assert before.cost is not None
    assert after.cost is not None
    assert before.cost.final == before.cost.greedy == pytest.approx(path_cost(weights, before))
    assert after.cost.greedy == before.cost.greedy
    assert after.cost.final <= after.cost.greedy
    assert after.cost.final == pytest.approx(path_cost(weights, after))
    shapes = [tuple(w.shape) for w in weights]
    for positions, (filters, channels, _, _) in zip(after.positions(shapes), shapes, strict=True):  # type: ignore[arg-type]
        assert is_permutation(positions.numpy(), filters * channels)


def test_improved_kernels_of_one_entry_are_sorted() -> None:
    weights = weights_of((6, 5, 1, 1))
    (order,) = solve_ordering(weights, "crossfilter", improve_seconds=0.1).tensors().values()
    assert weights[0].flatten()[order].diff().min() >= 0


def test_the_cost_is_the_sum_of_1_minus_cosine() -> None:
    weights = weights_of((4, 3, 3, 3), (2, 2, 3, 3))
    cosine = torch.nn.functional.cosine_similarity
    expected = {"crossfilter": 0.0, "infilter": 0.0, "none": 0.0}
    orderings = {mode: solve_ordering(weights, mode) for mode in expected}
    for index, weight in enumerate(weights):
        kernels = weight.flatten(2)
        order = orderings["crossfilter"].tensors()[f"order.{index}"]
        for mode, path in (("none", kernels.flatten(0, 1)), ("crossfilter", kernels.flatten(0, 1)[order])):
            expected[mode] += float((1 - cosine(path[1:], path[:-1], dim=1)).sum())
        within = orderings["infilter"].tensors()
        channels = within[f"channel_order.{index}"][:, :, None].expand_as(kernels)
        grid = kernels.gather(1, channels)
        expected["infilter"] += float((1 - cosine(grid[:, 1:], grid[:, :-1], dim=2)).sum())
        grid = grid[within[f"filter_order.{index}"]]
        expected["infilter"] += float((1 - cosine(grid[1:], grid[:-1], dim=2)).sum())
    for mode, ordering in orderings.items():
        assert path_cost(weights, ordering) == pytest.approx(expected[mode], rel=1e-5)


# --- what is told and kept ---------------------------------------------------------------------------------------


def test_a_cost_tells_its_improvement() -> None:
    assert str(PathCost(1300.2, 1234.5)) == "path cost (cosine) 1,234.5, improved from 1,300.2 (-5.1 %)"
    assert str(PathCost(1300.2, 1300.2, "distance")) == "path cost (distance) 1,300.2"
    assert str(PathCost(0.0, 0.0)) == "path cost (cosine) 0.0"


def test_the_cost_is_kept_with_the_ordering(tmp_path: Path) -> None:
    weights = weights_of((9, 7, 3, 3))
    shapes = [(9, 7, 3, 3)]
    first, _ = get_ordering(weights, "crossfilter", tmp_path, improve_seconds=0.05)
    assert first.cost is not None
    assert first.cost.final < first.cost.greedy
    for source in (None, tmp_path):
        again, _ = get_ordering(weights, "crossfilter", source, improve_seconds=0.05)
        assert again.cost == first.cost
        assert torch.equal(again.tensors()["order.0"], first.tensors()["order.0"])
    first.cost = None
    save_ordering(tmp_path / FILE_NAME, first)
    assert load_ordering(tmp_path, "crossfilter", shapes).cost is None


@pytest.mark.parametrize("text", ["", "1", "[1]", "[1, 2, 3]", '["a", "b"]', "[1, NaN]", "{"])
def test_a_damaged_cost_is_refused(text: str) -> None:
    with pytest.raises(NernError, match="is not a path cost"):
        PathCost.from_json(text)


def test_what_changes_the_result_changes_the_cached_file() -> None:
    key = content_key(weights_of((3, 3, 3, 3)), "crossfilter")
    assert cache_key(key, [], 0.0) == key
    keys = {cache_key(key, a, s) for a in ([], [0], [1], [0, 1]) for s in (0.0, 1.0, 1.5)}
    assert len(keys) == 12


def test_an_improved_ordering_is_not_served_for_the_greedy_one() -> None:
    weights = weights_of((9, 7, 3, 3))
    get_ordering(weights, "crossfilter", improve_seconds=0.02)
    ordering, source = get_ordering(weights, "crossfilter")
    assert source == "solved now"
    assert torch.equal(ordering.tensors()["order.0"], solve_ordering(weights, "crossfilter").tensors()["order.0"])


@pytest.mark.parametrize(
    ("permutations", "says"),
    [
        ({"improve_seconds": 3.0}, "permute_mode is 'none'; choose one .'crossfilter', 'infilter', 'infilter_path'"),
        ({"permute_mode": "crossfilter", "improve_seconds": -1.0}, "improve_seconds"),
        ({"permute_mode": "crossfilter", "improve_seconds": float("inf")}, "must be finite"),
        ({"permute_mode": "crossfilter", "exact_limit": 0}, "exact_limit"),
    ],
)
def test_settings_that_cannot_work_are_refused(permutations: dict[str, object], says: str) -> None:
    with pytest.raises(NernError, match=says):
        Config.from_dict({"nern": {"embeddings": {"permutations": permutations}}})


def test_short_paths_are_left_alone() -> None:
    for n in range(1, LEAST_ROWS):
        assert improved_path(rows_of("normal", n, 9, 0), np.arange(n), soon()).tolist() == list(range(n))
