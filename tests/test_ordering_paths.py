"""Paths through kernels: greedy, found with trees, walked filter by filter, improved; and what they cost."""

from __future__ import annotations

import math
import time
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nern.config import NernConfig
from nern.errors import NernError
from nern.ordering.greedy import _greedy_path, comparable_rows, greedy_path
from nern.ordering.improve import improved_path, path_sum
from nern.ordering.order import METRICS, path_cost, solve_ordering
from nern.ordering.tree import tree_path
from nern.representation.kernels import KernelTable
from nern.representation.nern import build_nern

pytestmark = pytest.mark.usefixtures("rng_untouched")

Array = np.ndarray
MODES = ["crossfilter", "infilter", "infilter_path"]
SHAPES = [(9, 7, 3, 3), (12, 6, 1, 1), (1, 9, 3, 3), (30, 1, 3, 3), (3, 2, 5, 5)]

both_metrics = pytest.mark.parametrize("metric", METRICS)
all_modes = pytest.mark.parametrize("mode", MODES)


def weights_of(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=rng) * 10 ** torch.randn((*shape[:2], 1, 1), generator=rng) for shape in shapes
    ]


# Kernels that are hard for a tree, each kind in its own way: ties, duplicates, zeros, differences that vanish.
KINDS: dict[str, Any] = {
    "normal": lambda rng, n, d: rng.standard_normal((n, d)),
    "single": lambda rng, n, d: rng.standard_normal((n, d)).astype(np.float32) * np.float32(1e-30),
    "clustered": lambda rng, n, d: few(rng, n, d) + 1e-4 * rng.standard_normal((n, d)),
    "quantised": lambda rng, n, d: rng.integers(-1, 2, (n, d)).astype(np.float32),
    "sparse": lambda rng, n, d: rng.standard_normal((n, d)) * (rng.random((n, d)) < 0.2),
    "repeated": lambda rng, n, d: few(rng, n, d),
    "opposite": lambda rng, n, d: few(rng, n, d) * rng.choice([-1, 1], (n, 1)),
    "near": lambda rng, n, d: 1.0 * (rng.random((n, 1)) < 0.5) + 1e-170 * rng.standard_normal((n, d)),
    "equal": lambda rng, n, d: np.ones((n, d)),
    "zero": lambda rng, n, d: np.zeros((n, d)) * rng.choice([-1, 1], (n, d)),
}


def few(rng: np.random.Generator, n: int, d: int) -> Array:
    return rng.standard_normal((3, d))[rng.integers(0, 3, n)]


def rows_of(kind: str, n: int, d: int, metric: str, seed: int = 0) -> Array:
    return comparable_rows(KINDS[kind](np.random.default_rng(seed), n, d), metric)


def similarity(a: Array, b: Array, metric: str) -> float:
    """Of two kernels: cosine (0 with a zero kernel); by distance or of one entry, minus the squared distance."""
    if metric == "distance" or a.size == 1:
        return -float(((a - b) ** 2).sum())
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms else 0.0


def slow_path(things: Array, metric: str) -> list[int]:
    """The greedy path over kernels or filters (of which similarities add up), ties to the lowest."""
    kernels = things.reshape(len(things), -1, things.shape[-1])
    table = [[sum(similarity(a, b, metric) for a, b in zip(f, g, strict=True)) for g in kernels] for f in kernels]
    path = [0]
    while len(path) < len(things):
        left = [row for row in range(len(things)) if row not in path]
        path.append(max(left, key=lambda row: (table[path[-1]][row], -row)))
    return path


def slow_walk(kernels: Array, metric: str) -> list[int]:
    """Kernel numbers of the greedy walk that leaves a filter only when it is done, ties to the lowest."""
    filters, channels = kernels.shape[:2]
    walk, left = [(0, 0)], set(product(range(filters), range(channels))) - {(0, 0)}
    while left:
        here = walk[-1]
        choices = sorted(place for place in left if place[0] == here[0]) or sorted(left)
        walk.append(max(choices, key=lambda place: similarity(kernels[here], kernels[place], metric)))
        left.remove(walk[-1])
    return [f * channels + c for f, c in walk]


def is_permutation(path: Any, n: int) -> bool:
    return sorted(np.asarray(path).tolist()) == list(range(n))


def soon(seconds: float = 30) -> float:
    return time.monotonic() + seconds


@both_metrics
@settings(max_examples=60)
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 1500), st.sampled_from([2, 3, 4, 9, 25]), st.integers(0, 10**6))
def test_the_tree_finds_the_plain_path(metric: str, kind: str, n: int, d: int, seed: int) -> None:
    rows, by_distance = rows_of(kind, n, d, metric, seed), metric == "distance"
    assert np.array_equal(tree_path(rows, None if by_distance else 1.0), _greedy_path(rows, by_distance))


def test_a_hundred_thousand_equal_kernels_keep_their_order() -> None:
    assert np.array_equal(greedy_path(np.full((100_000, 9), 0.1, np.float32)), np.arange(100_000))


@both_metrics
@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([1, 3, 5]), st.integers(0, 100))
def test_layers_are_ordered_as_their_mode_says(metric: str, filters: int, channels: int, side: int, seed: int) -> None:
    weights = weights_of((filters, channels, side, side), seed=seed)
    kernels = weights[0].double().flatten(2).numpy()
    cross, inner, walk = (solve_ordering(weights, mode, metric=metric) for mode in MODES)
    assert cross.tensors()["order.0"].tolist() == slow_path(kernels.reshape(-1, side**2), metric)
    channel_paths = [slow_path(f, metric) for f in kernels]
    assert inner.tensors()["channel_order.0"].tolist() == channel_paths
    arranged = np.stack([f[path] for f, path in zip(kernels, channel_paths, strict=True)])
    assert inner.tensors()["filter_order.0"].tolist() == slow_path(arranged, metric)
    assert walk.path(walk.layers[0], weights[0].shape).tolist() == slow_walk(kernels, metric)


@all_modes
@pytest.mark.parametrize("shape", [(6, 1, 3, 3), (1, 6, 3, 3), (1, 1, 3, 3), (6, 1, 1, 1), (1, 6, 1, 1), (3, 2, 5, 5)])
def test_zero_kernels_one_channel_and_one_filter_are_ordered(mode: str, shape: tuple[int, ...]) -> None:
    (weight,) = weights_of(shape)
    for broken in (weight, torch.zeros_like(weight), weight * (torch.arange(shape[0]) % 2).view(-1, 1, 1, 1)):
        ordering = solve_ordering([broken], mode)
        assert is_permutation(ordering.positions([shape])[0], shape[0] * shape[1])
        nern = build_nern(NernConfig(output_size=5, hidden_layer_size=4), KernelTable((shape,)), ordering, seed=0)
        assert all(torch.isfinite(w).all() for w in nern.reconstruct())


def test_what_cannot_be_ordered_is_refused() -> None:
    weights = weights_of(*SHAPES)
    with pytest.raises(NernError, match="crossfilter, infilter, infilter_path, none"):
        solve_ordering(weights, "cross_filter")
    with pytest.raises(NernError, match=r"did you mean 'distance'"):
        solve_ordering(weights, "crossfilter", metric="distnce")
    weights[1][0, 0] = math.nan
    with pytest.raises(NernError, match="learnable weight 1 holds values that are not finite"):
        solve_ordering(weights, "crossfilter")


@both_metrics
@pytest.mark.parametrize("seconds", [-1, 0.05, 0.4])
def test_improvement_of_many_rows_keeps_its_time(seconds: float, metric: str) -> None:
    rows, whole = rows_of("normal", 3000, 9, metric), None if metric == "distance" else 1.0
    path = _greedy_path(rows, whole is None)
    better = improved_path(rows, path, soon(seconds), whole)
    assert is_permutation(better, 3000)
    assert path_sum(rows, whole, better) <= path_sum(rows, whole, path)
    assert (better is path) == (seconds < 0)


@both_metrics
@all_modes
@settings(max_examples=4)
@given(seed=st.integers(0, 1000), zeros=st.booleans())
def test_an_improved_ordering_costs_no_more(mode: str, metric: str, seed: int, zeros: bool) -> None:
    weights = weights_of(*SHAPES, seed=seed)
    if zeros:
        weights[1][:, ::2] = 0
        weights[0][::2] = 0
    before = solve_ordering(weights, mode, 2, metric=metric)
    after = solve_ordering(weights, mode, 2, improve_seconds=0.05, metric=metric)
    assert (after.metric, after.cost.metric) == (metric, metric)
    assert before.cost.final == before.cost.greedy == after.cost.greedy == pytest.approx(path_cost(weights, before))
    assert after.cost.final <= after.cost.greedy
    assert after.cost.final == pytest.approx(path_cost(weights, after))
    for positions, (filters, channels, _, _) in zip(after.positions(SHAPES), SHAPES, strict=True):
        assert is_permutation(positions, filters * channels)


def steps(path: Tensor, metric: str) -> float:
    """Of kernels (positions, ..., entries): 1 - cosine, or the distance of all entries, of successive positions, summed."""
    if metric == "distance":
        return float((path[1:] - path[:-1]).flatten(1).norm(dim=1).sum())
    return float((1 - torch.nn.functional.cosine_similarity(path[1:], path[:-1], dim=-1)).sum())


@both_metrics
def test_the_cost_is_summed_along_the_paths_of_the_mode(metric: str) -> None:
    weights = weights_of((4, 3, 3, 3), (2, 2, 5, 5))
    expected = dict.fromkeys(["none", *MODES], 0.0)
    orderings = {mode: solve_ordering(weights, mode, metric=metric) for mode in expected}
    for index, weight in enumerate(weights):
        kernels = weight.double().flatten(2)
        for mode in ("none", "crossfilter", "infilter_path"):
            ordering = orderings[mode]
            path = ordering.path(ordering.layers[index] if ordering.layers else {}, weight.shape)
            expected[mode] += steps(kernels.flatten(0, 1)[path], metric)
        within = orderings["infilter"].layers[index]
        grid = kernels.gather(1, within["channel_order"][:, :, None].expand_as(kernels))
        expected["infilter"] += sum(steps(f, metric) for f in grid) + steps(grid[within["filter_order"]], metric)
    for mode, ordering in orderings.items():
        assert path_cost(weights, ordering) == pytest.approx(expected[mode])
