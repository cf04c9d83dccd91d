"""Orderings by Euclidean distance: paths, improvement, cost, files, cache, config."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from nern.cli import main
from nern.config import Config
from nern.errors import NernError
from nern.experiment import joint_ordering
from nern.ordering import (
    PathCost,
    get_ordering,
    greedy_filter_path,
    greedy_path,
    load_ordering,
    path_cost,
    save_ordering,
    solve_ordering,
)
from nern.ordering.greedy import _greedy_path, even_rows
from nern.ordering.improve import improved_path, path_sum
from nern.ordering.store import FILE_NAME, cache_key, content_key
from nern.ordering.tree import build_tree, nearest, tree_path
from nern.representation.kernels import KernelTable

pytestmark = pytest.mark.usefixtures("rng_untouched")

Array = np.ndarray
SHAPES = [(4, 3, 3, 3), (5, 2, 1, 1), (2, 3, 5, 5)]
KINDS = ["normal", "lengths", "clustered", "quantised", "sparse", "repeated", "line", "near", "equal", "zero"]


def kernels_of(kind: str, n: int, d: int, seed: int) -> Array:
    """Kernels of a kind that is hard for a tree in its own way: ties, duplicates, zeros, differences that vanish."""
    rng = np.random.default_rng(seed)
    normal, few = rng.standard_normal((n, d)), rng.standard_normal((3, d))
    return {
        "normal": lambda: normal,
        "lengths": lambda: normal * 10.0 ** rng.uniform(-6, 2, (n, 1)),
        "clustered": lambda: few[rng.integers(0, 3, n)] + 1e-4 * normal,
        "quantised": lambda: rng.integers(-1, 2, (n, d)).astype(np.float32),
        "sparse": lambda: normal * (rng.random((n, d)) < 0.2),
        "repeated": lambda: few[rng.integers(0, 3, n)],
        "line": lambda: rng.integers(0, n, (n, 1)) * few[:1],
        "near": lambda: 1.0 * (rng.random((n, 1)) < 0.5) + 1e-170 * normal,  # squares of differences vanish
        "equal": lambda: np.ones((n, d)),
        "zero": lambda: np.zeros((n, d)) * rng.choice([-1, 1], (n, d)),
    }[kind]()


def weights_of(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=rng) * 10 ** torch.randn((*shape[:2], 1, 1), generator=rng) for shape in shapes
    ]


def slow_path(rows: Array) -> list[int]:
    """The greedy path by distance, ties to the lowest row."""
    path = [0]
    while len(path) < len(rows):
        left = [row for row in range(len(rows)) if row not in path]
        path.append(min(left, key=lambda row: (((rows[path[-1]] - rows[row]) ** 2).sum(), row)))
    return path


def steps(path: Array) -> float:
    """Sum of the distances of successive rows."""
    return float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


# --- paths -------------------------------------------------------------------------------------------------------


@given(st.integers(0, 1000), st.integers(1, 40), st.sampled_from([1, 4, 9, 25, 49]))
def test_the_path_goes_to_the_nearest_kernel(seed: int, n: int, d: int) -> None:
    kernels = kernels_of("lengths", n, d, seed)
    assert greedy_path(kernels, metric="distance").tolist() == slow_path(kernels)


@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 6), st.sampled_from([1, 9, 25]))
def test_the_filter_path_goes_to_the_nearest_filter(seed: int, filters: int, channels: int, d: int) -> None:
    kernels = kernels_of("lengths", filters * channels, d, seed).reshape(filters, channels, d)
    assert greedy_filter_path(kernels, "distance").tolist() == slow_path(kernels.reshape(filters, -1))


@settings(max_examples=150)
@given(st.sampled_from(KINDS), st.integers(1, 700), st.sampled_from([2, 3, 4, 9, 25]), st.integers(0, 10**6))
def test_the_tree_finds_the_plain_path(kind: str, n: int, d: int, seed: int) -> None:
    rows = even_rows(kernels_of(kind, n, d, seed))
    assert np.array_equal(tree_path(rows, by_distance=True), _greedy_path(rows, True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_finds_the_plain_path_of_many_rows(kind: str) -> None:
    kernels = kernels_of(kind, 5000, 9, 0)
    assert np.array_equal(greedy_path(kernels, metric="distance"), _greedy_path(even_rows(kernels), True))


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_the_scale_of_all_kernels_does_not_matter(scale: float) -> None:
    kernels = kernels_of("normal", 2500, 9, 0)
    path = greedy_path(kernels, metric="distance")
    assert np.array_equal(greedy_path(kernels * scale, metric="distance"), path)


def test_the_length_of_a_kernel_matters() -> None:
    kernels = np.array([[1.0, 0], [100.0, 0], [0, 1.0], [2.0, 0]])
    assert greedy_path(kernels).tolist() == [0, 1, 3, 2]
    assert greedy_path(kernels, metric="distance").tolist() == [0, 3, 2, 1]


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.integers(1, 700), st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.9]))
def test_an_approximate_path_is_a_permutation(kind: str, n: int, seed: int, share: float) -> None:
    path = tree_path(even_rows(kernels_of(kind, n, 9, seed)), share, True)
    assert path is not None
    assert path[0] == 0
    assert sorted(path) == list(range(n))


def test_the_nearest_rows_are_found() -> None:
    rows = even_rows(kernels_of("lengths", 600, 9, 1))
    distances = ((rows[:, None] - rows) ** 2).sum(2)
    np.fill_diagonal(distances, np.inf)
    found = nearest(build_tree(rows), rows, np.array([0, 5, 599]), 5, True)
    assert np.array_equal(found, np.argsort(distances[[0, 5, 599]], axis=1, kind="stable")[:, :5])


# --- improvement and cost ----------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 80), st.sampled_from([2, 9]), st.integers(0, 10**6), st.booleans())
def test_an_improved_path_is_never_longer(kind: str, n: int, d: int, seed: int, greedy: bool) -> None:
    rows = even_rows(kernels_of(kind, n, d, seed))
    path = _greedy_path(rows, True) if greedy else np.random.default_rng(seed).permutation(n)
    better = improved_path(rows, path, soon(), None)
    assert sorted(better) == list(range(n))
    assert path_sum(rows, None, better) <= path_sum(rows, None, path)
    assert path_sum(rows, None, better) == pytest.approx(steps(rows[better]))


def test_improvement_of_many_rows_shortens_the_path() -> None:
    rows = even_rows(kernels_of("normal", 3000, 9, 0))
    path = greedy_path(rows, metric="distance")
    assert steps(rows[improved_path(rows, path, soon(2), None)]) < 0.99 * steps(rows[path])


@pytest.mark.parametrize("mode", ["crossfilter", "infilter"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), zeros=st.booleans())
def test_an_improved_ordering_costs_no_more(mode: str, seed: int, zeros: bool) -> None:
    weights = weights_of((9, 7, 3, 3), (12, 6, 1, 1), (1, 9, 3, 3), (30, 1, 3, 3), (3, 2, 5, 5), seed=seed)
    if zeros:
        weights[1][:, ::2] = 0
        weights[0][::2] = 0
    before = solve_ordering(weights, mode, 2, metric="distance")
    after = solve_ordering(weights, mode, 2, improve_seconds=0.05, metric="distance")
    assert before.cost is not None
    assert after.cost is not None
    assert (after.metric, after.cost.metric) == ("distance", "distance")
    assert before.cost.final == before.cost.greedy == after.cost.greedy == pytest.approx(path_cost(weights, before))
    assert after.cost.final <= after.cost.greedy
    assert after.cost.final == pytest.approx(path_cost(weights, after))
    shapes = [tuple(w.shape) for w in weights]
    for positions, (filters, channels, _, _) in zip(after.positions(shapes), shapes, strict=True):  # type: ignore[arg-type]
        assert sorted(positions.tolist()) == list(range(filters * channels))


def test_the_cost_is_the_sum_of_the_distances() -> None:
    weights = weights_of(*SHAPES)
    orderings = {mode: solve_ordering(weights, mode, metric="distance") for mode in ("none", "crossfilter", "infilter")}
    expected = dict.fromkeys(orderings, 0.0)
    for index, weight in enumerate(weights):
        kernels = weight.flatten(2).double()
        flat = kernels.flatten(0, 1).numpy()
        expected["none"] += steps(flat)
        expected["crossfilter"] += steps(flat[orderings["crossfilter"].tensors()[f"order.{index}"]])
        within = orderings["infilter"].tensors()
        grid = kernels.gather(1, within[f"channel_order.{index}"][:, :, None].expand_as(kernels))
        expected["infilter"] += sum(steps(filter.numpy()) for filter in grid)
        expected["infilter"] += steps(grid[within[f"filter_order.{index}"]].flatten(1).numpy())
    for mode, ordering in orderings.items():
        assert path_cost(weights, ordering) == pytest.approx(expected[mode])
    by_cosine = solve_ordering(weights, "crossfilter")
    assert path_cost(weights, by_cosine, "distance") > expected["crossfilter"]
    assert path_cost(weights, by_cosine) < path_cost(weights, orderings["crossfilter"], "cosine")


def test_an_unknown_metric_lists_the_choices() -> None:
    with pytest.raises(NernError, match=r"did you mean 'distance'"):
        solve_ordering(weights_of(*SHAPES), "crossfilter", metric="distnce")


# --- files, cache, config ----------------------------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    first, second = a.tensors(), b.tensors()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("mode", ["crossfilter", "infilter"])
def test_the_metric_is_kept_with_the_ordering(mode: str, tmp_path: Path) -> None:
    ordering = solve_ordering(weights_of(*SHAPES), mode, metric="distance")
    save_ordering(tmp_path / FILE_NAME, ordering)
    again = load_ordering(tmp_path, mode, SHAPES, "distance")
    assert same(again, ordering)
    assert (again.metric, again.cost) == ("distance", ordering.cost)
    with pytest.raises(NernError, match=r"is of metric 'distance'.*permutations\.metric is 'cosine'; set that"):
        load_ordering(tmp_path, mode, SHAPES)


def test_files_without_a_metric_are_of_cosine(tmp_path: Path) -> None:
    save_ordering(tmp_path / FILE_NAME, solve_ordering(weights_of(*SHAPES), "crossfilter"))
    save_file(load_file(tmp_path / FILE_NAME), tmp_path / FILE_NAME, {"mode": "crossfilter", "path_cost": "[2.0, 1.0]"})
    assert load_ordering(tmp_path, "crossfilter", SHAPES).cost == PathCost(2.0, 1.0, "cosine")
    with pytest.raises(NernError, match="is of metric 'cosine'"):
        load_ordering(tmp_path, "crossfilter", SHAPES, "distance")


def test_published_folders_are_read_whatever_the_metric(tmp_path: Path) -> None:
    ordering = solve_ordering(weights_of(*SHAPES), "crossfilter")
    for index, order in enumerate(ordering.tensors().values()):
        torch.save(order, tmp_path / f"layer_{index}.pt")
    for metric in ("cosine", "distance"):
        assert same(get_ordering(weights_of(*SHAPES), "crossfilter", tmp_path, metric=metric)[0], ordering)


def test_what_changes_the_result_changes_the_cached_file() -> None:
    key = content_key(weights_of((3, 3, 3, 3)), "crossfilter")
    assert cache_key(key, [], 0.0, "cosine") == key
    keys = {cache_key(key, a, s, m) for a in ([], [0]) for s in (0.0, 1.0) for m in ("cosine", "distance")}
    assert len(keys) == 8


@pytest.mark.parametrize("mode", ["crossfilter", "infilter"])
def test_the_cache_does_not_mix_metrics(mode: str) -> None:
    weights = weights_of(*SHAPES)
    found = {}
    for source in ("solved now", "from the cache"):
        for metric in ("cosine", "distance"):
            ordering, said = get_ordering(weights, mode, metric=metric)
            assert said.startswith(source)
            assert ordering.metric == metric
            assert same(ordering, found.setdefault(metric, ordering))
    assert not same(found["cosine"], found["distance"])


def test_the_config_chooses_the_metric() -> None:
    weights = weights_of(*SHAPES)
    chosen = {"permute_mode": "crossfilter", "metric": "distance"}
    config = Config.from_dict({"nern": {"embeddings": {"permutations": chosen}}})
    ordering, _ = joint_ordering(KernelTable(tuple(SHAPES)), weights, config)
    assert same(ordering, solve_ordering(weights, "crossfilter", metric="distance"))
    assert ordering.cost is not None
    assert str(ordering.cost).startswith("path cost (distance) ")


@pytest.mark.parametrize(
    ("permutations", "says"),
    [
        ({"permute_mode": "crossfilter", "metric": "euclid"}, r"permutations\.metric.*'euclid'.*cosine, distance"),
        ({"metric": "distance"}, "permute_mode is 'none'; choose one .'crossfilter', 'infilter', "),
    ],
)
def test_settings_that_cannot_work_are_refused(permutations: dict[str, object], says: str) -> None:
    with pytest.raises(NernError, match=says):
        Config.from_dict({"nern": {"embeddings": {"permutations": permutations}}})


def test_bench_order_takes_the_metric(tmp_path: Path) -> None:
    options = ["--kernels", "200", "--repeats", "1", "--warmup", "1", "--threads", "1"]
    options += ["--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")]
    chosen = {"permute_mode": "infilter_path", "metric": "distance"}
    options += [part for key, value in chosen.items() for part in (f"--nern.embeddings.permutations.{key}", value)]
    assert main(["bench", "order", *options]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert (found["mode"], found["metric"]) == ("infilter_path", "distance")
    assert all(0 < of["cost"] < of["cost_unordered"] for of in found["measured"].values())
    assert "infilter_path by distance" in (tmp_path / "out.md").read_text()
    assert "Path cost: distance of successive kernels" in (tmp_path / "out.md").read_text()
