"""Walks through all kernels of a layer, filter by filter (permute_mode infilter_path)."""

from __future__ import annotations

import time
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nern.ordering import InFilterOrdering, Ordering, get_ordering, path_cost, solve_ordering
from nern.ordering.cost import METRICS
from nern.ordering.greedy import even_rows
from nern.ordering.walk import _sweep, linked_walk

pytestmark = pytest.mark.usefixtures("rng_untouched")

Array = np.ndarray
SHAPES = [(9, 7, 3, 3), (12, 6, 1, 1), (1, 9, 3, 3), (30, 1, 3, 3), (3, 2, 5, 5)]


def weights_of(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=rng) * 10 ** torch.randn((*shape[:2], 1, 1), generator=rng) for shape in shapes
    ]


def similarity(a: Array, b: Array, metric: str) -> float:
    """Cosine (0 with a zero kernel), or minus the squared distance."""
    if metric == "distance" or a.size == 1:
        return -float(((a - b) ** 2).sum())
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norms) if norms else 0.0


def slow_walk(kernels: Array, metric: str) -> list[tuple[int, int]]:
    """Filter and channel at each position, ties to the lowest."""
    filters, channels = kernels.shape[:2]
    walk, left = [(0, 0)], set(product(range(filters), range(channels))) - {(0, 0)}
    while left:
        here = walk[-1]
        choices = sorted(place for place in left if place[0] == here[0]) or sorted(left)
        walk.append(max(choices, key=lambda place: similarity(kernels[here], kernels[place], metric)))
        left.remove(walk[-1])
    return walk


def walked(ordering: Ordering, weights: list[Tensor]) -> list[Array]:
    """The kernels of each layer in the order of their positions."""
    shapes = [tuple(w.shape) for w in weights]
    result = []
    for weight, positions in zip(weights, ordering.positions(shapes), strict=True):  # type: ignore[arg-type]
        kernels = weight.double().flatten(0, 1).flatten(1).numpy()
        result.append(np.empty_like(kernels))
        result[-1][positions.numpy()] = kernels
    return result


def links(ends: Array, order: Array, turned: Array) -> float:
    """Sum of the distances between one filter's exit and the next one's entry."""
    turned = turned[order].astype(int)
    enter, leave = ends[2 * order + turned], ends[2 * order + 1 - turned]
    return float(np.linalg.norm(leave[:-1] - enter[1:], axis=1).sum())


# --- greedy walks ------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([1, 3, 5]), st.integers(0, 100), st.sampled_from(METRICS))
def test_the_walk_is_the_greedy_one(filters: int, channels: int, side: int, seed: int, metric: str) -> None:
    weights = weights_of((filters, channels, side, side), seed=seed)
    kernels = weights[0].double().flatten(2).numpy()
    expected = np.stack([kernels[place] for place in slow_walk(kernels, metric)])
    assert np.array_equal(walked(solve_ordering(weights, "infilter_path", metric=metric), weights)[0], expected)


@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_lowest_filter_and_channel(metric: str) -> None:
    ordering = solve_ordering([torch.ones(3, 4, 3, 3)], "infilter_path", metric=metric)
    assert ordering.positions([(3, 4, 3, 3)])[0].tolist() == list(range(12))


@pytest.mark.parametrize("metric", METRICS)
def test_a_filter_is_left_only_when_it_is_done(metric: str) -> None:
    shapes = [(9, 7, 3, 3)]
    (positions,) = solve_ordering(weights_of(*shapes), "infilter_path", metric=metric).positions(shapes)  # type: ignore[arg-type]
    assert all(len(set(own)) == 1 for own in (positions // 7).view(9, 7).tolist())


@pytest.mark.parametrize("metric", METRICS)
def test_a_walk_jumps_less_than_an_in_filter_order(metric: str) -> None:
    weights, lengths = [torch.randn(24, 8, 3, 3, generator=torch.Generator().manual_seed(0))], {}
    for mode in ("infilter", "infilter_path"):
        (walk,) = walked(solve_ordering(weights, mode, metric=metric), weights)
        ends = zip(walk[7:-1:8], walk[8::8], strict=True)
        lengths[mode] = sum(-similarity(a, b, metric) for a, b in ends)
    assert lengths["infilter_path"] < lengths["infilter"]


# --- links -------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10**6), st.sampled_from(["normal", "repeated", "zero"]))
def test_directions_are_the_best_ones(filters: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    ends = {"normal": rng.standard_normal, "repeated": lambda shape: rng.integers(-1, 2, shape), "zero": np.zeros}[kind]
    rows = even_rows(ends((2 * filters, 4)))  # type: ignore[operator]
    order = rng.permutation(filters)
    same, turned = linked_walk(rows, order, time.monotonic() - 1, None)
    assert np.array_equal(same, order)
    least = min(links(rows, order, np.array(choice)) for choice in product((0, 1), repeat=filters))
    assert links(rows, order, turned) == pytest.approx(least)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6), st.booleans())
def test_moves_gain_what_they_say_and_keep_all_filters(filters: int, seed: int, repeated: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = even_rows(rng.integers(-1, 2, (2 * filters, 3)) if repeated else rng.standard_normal((2 * filters, 3)))
    entries = 2 * rng.permutation(filters) + rng.integers(0, 2, filters)

    def length() -> float:
        turned = np.zeros(filters, bool)
        turned[entries // 2] = entries % 2 == 1
        return links(rows, entries // 2, turned)

    before = length()
    gain = _sweep(rows, None, entries)
    assert sorted(entries // 2) == list(range(filters))
    assert before - length() == pytest.approx(gain, abs=1e-9)
    order, turned = linked_walk(rows, entries // 2, time.monotonic() + 30, None)
    assert sorted(order) == list(range(filters))
    assert links(rows, order, turned) <= length() + 1e-9


def test_few_links_become_the_shortest() -> None:
    for seed in range(5):
        rows = even_rows(np.random.default_rng(seed).standard_normal((10, 4)))
        found = links(rows, *linked_walk(rows, np.arange(5), time.monotonic() + 30, None))
        choices = product(permutations(range(5)), product((0, 1), repeat=5))
        least = min(links(rows, np.array(order), np.array(turned)) for order, turned in choices)
        assert found == pytest.approx(least, rel=0.1)


# --- improvement and cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), zeros=st.booleans())
def test_an_improved_walk_costs_no_more(metric: str, seed: int, zeros: bool) -> None:
    weights = weights_of(*SHAPES, seed=seed)
    if zeros:
        weights[1][:, ::2] = 0
        weights[0][::2] = 0
    before = solve_ordering(weights, "infilter_path", 2, metric=metric)
    after = solve_ordering(weights, "infilter_path", 2, improve_seconds=0.05, metric=metric)
    assert before.cost is not None
    assert after.cost is not None
    assert before.cost.final == before.cost.greedy == after.cost.greedy == pytest.approx(path_cost(weights, before))
    assert after.cost.final <= after.cost.greedy
    assert after.cost.final == pytest.approx(path_cost(weights, after))
    for positions, (filters, channels, _, _) in zip(after.positions(SHAPES), SHAPES, strict=True):
        assert sorted(positions.tolist()) == list(range(filters * channels))


def test_the_cost_is_that_of_the_whole_walk() -> None:
    weights = weights_of(*SHAPES)
    ordering = solve_ordering(weights, "infilter_path", metric="distance")
    steps = sum(float(np.linalg.norm(np.diff(walk, axis=0), axis=1).sum()) for walk in walked(ordering, weights))
    assert path_cost(weights, ordering) == pytest.approx(steps)
    assert path_cost(weights, ordering) < path_cost(weights, solve_ordering(weights, "none"), "distance")


def test_it_takes_as_many_bits_as_an_in_filter_order() -> None:
    weights = weights_of(*SHAPES)
    assert solve_ordering(weights, "infilter_path").bits() == solve_ordering(weights, "infilter").bits()


def test_the_cache_tells_it_from_an_in_filter_order() -> None:
    weights = weights_of(*SHAPES)
    get_ordering(weights, "infilter")
    ordering, source = get_ordering(weights, "infilter_path")
    assert source == "solved now"
    again, source = get_ordering(weights, "infilter_path")
    assert source.startswith("from the cache")
    assert isinstance(again, InFilterOrdering)
    assert (again.mode, again.cost) == ("infilter_path", ordering.cost)
