"""One walk through all kernels of a layer that leaves a filter only when all of its channels are visited.

A filter's channels are a path that can be walked from either end; the walk's links lead from the end of one filter's path
to an end of the next one's. Numbers of ends: 2 * filter for the first channel of its path, 2 * filter + 1 for the last.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nern.compiled import compiled
from nern.ordering.greedy import comparable_rows, greedy_path
from nern.ordering.improve import LEAST_GAIN, _cost

_compiled = compiled(error_model="numpy")

LONGEST_MOVED = 3  # filters that are moved together


def greedy_walk(
    kernels: NDArray[Any], share: float = 1.0, metric: str = "cosine"
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Greedy walk: within a filter as `greedy_path` has it, then to the most similar kernel of the filters not visited.

    Args:
        kernels: (filters, channels, entries).
        share, metric: see `greedy_path`.

    Returns:
        (filters,) the filter visited at each position, filter 0 first; (filters, channels) the channel of each filter
        visited at each position, channel 0 of filter 0 first. Ties go to the lowest filter, then the lowest channel.
    """
    count, channels, _ = kernels.shape
    rows = walked_rows(kernels, metric)
    left = np.ones(count, np.bool_)
    filters, paths = np.empty(count, np.int64), np.empty((count, channels), np.int64)
    current, first = 0, 0
    for position in range(count):
        left[current] = False
        begins = np.concatenate(([first], np.delete(np.arange(channels), first)))
        filters[position] = current
        paths[current] = begins[greedy_path(kernels[current, begins], share, metric)]
        current, first = _next(rows, left, rows[current, paths[current, -1]], by_distance(kernels, metric))
    return filters, paths


def by_distance(kernels: NDArray[Any], metric: str) -> bool:
    """Whether links are compared by distance: kernels of one entry always are."""
    return metric == "distance" or kernels.shape[-1] == 1


def walked_rows(kernels: NDArray[Any], metric: str) -> NDArray[np.float64]:
    """The copy of kernels on which links are found."""
    return comparable_rows(kernels, "distance" if by_distance(kernels, metric) else metric)


@_compiled
def _next(rows: Any, left: Any, here: Any, by_distance: bool) -> Any:  # pragma: no cover (compiled)
    """Filter (of those `left`) and channel of the row most similar to `here`; 0, 0 where none is left."""
    best, filter_, channel = -np.inf, 0, 0
    for f in range(rows.shape[0]):
        if left[f]:
            for c in range(rows.shape[1]):
                similarity = 0.0
                for j in range(rows.shape[2]):
                    if by_distance:
                        similarity -= (rows[f, c, j] - here[j]) ** 2
                    else:
                        similarity += rows[f, c, j] * here[j]
                if similarity > best:
                    best, filter_, channel = similarity, f, c
    return filter_, channel


def linked_walk(
    ends: NDArray[np.float64], filters: NDArray[np.int64], deadline: float, whole: float | None = 1.0
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Order and directions of filters with shorter links: the best directions for an order by dynamic programming, then
    2-opt and Or-opt moves, which turn filters round, too, until none helps.

    Args:
        ends: (2 * filters, entries) the kernels at both ends of each filter's path, by the numbers of ends.
        filters: (filters,) the order to begin with.
        deadline: of `time.monotonic()`; with enough time the result depends on the other arguments only.
        whole: see `improved_path`.

    Returns:
        (filters,) the filter visited at each position; (filters,) by filter, whether its path is walked from the end.
    """
    entries = 2 * filters + _directions(ends, whole, filters)
    while time.monotonic() < deadline and _sweep(ends, whole, entries) > 0:
        pass
    order, turned = entries // 2, np.zeros(len(filters), np.bool_)
    turned[order] = _directions(ends, whole, order) == 1
    return order, turned


def compile_links(whole: float | None = 1.0) -> None:
    """Have everything compiled, or read from the compiler's cache, that `linked_walk` needs for this `whole`."""
    linked_walk(np.zeros((4, 9)), np.arange(2), time.monotonic() + 1e6, whole)


@_compiled
def _directions(ends: Any, whole: Any, filters: Any) -> Any:  # pragma: no cover (compiled)
    """Of each position, 1 if its filter is walked from the end: of all choices the one with the shortest links."""
    n = len(filters)
    least, source = np.zeros((n, 2)), np.zeros((n, 2), np.int64)
    for i in range(1, n):
        for side in range(2):  # at which the filter is entered
            here = 2 * filters[i] + side
            costs = least[i - 1, 0] + _cost(ends, whole, 2 * filters[i - 1] + 1, here)
            turned = least[i - 1, 1] + _cost(ends, whole, 2 * filters[i - 1], here)
            least[i, side] = min(costs, turned)
            source[i, side] = 1 if turned < costs else 0
    sides = np.empty(n, np.int64)
    side = 1 if least[n - 1, 1] < least[n - 1, 0] else 0
    for i in range(n - 1, -1, -1):
        sides[i] = side
        side = source[i, side]
    return sides


@_compiled
def _link(ends: Any, whole: Any, a: int, b: int) -> float:  # pragma: no cover (compiled)
    """Cost of the link between two ends; nothing lies before the first filter and behind the last (-1)."""
    return 0.0 if a < 0 or b < 0 else _cost(ends, whole, a, b)


@_compiled
def _turn(entries: Any, start: int, stop: int) -> None:  # pragma: no cover (compiled)
    """Walk the filters at positions start to stop - 1 the other way round."""
    part = entries[start:stop][::-1].copy()
    for i in range(len(part)):
        entries[start + i] = part[i] ^ 1


@_compiled
def _sweep(ends: Any, whole: Any, entries: Any) -> float:  # pragma: no cover (compiled)
    """Try all moves once, make those that gain; the gain. `entries`: of each position, the end it is entered by."""
    n, total = len(entries), 0.0
    for start in range(n):
        for stop in range(start + 1, n + 1):  # the segment between them
            before = entries[start - 1] ^ 1 if start else -1
            behind = entries[stop] if stop < n else -1
            first, last = entries[start], entries[stop - 1] ^ 1
            cut = _link(ends, whole, before, first) + _link(ends, whole, last, behind)
            gain = cut - _link(ends, whole, before, last) - _link(ends, whole, first, behind)
            if gain > LEAST_GAIN:
                _turn(entries, start, stop)
                total += gain
                continue
            if stop - start > LONGEST_MOVED:
                continue
            cut -= _link(ends, whole, before, behind)
            if cut <= LEAST_GAIN:
                continue
            best, target, turned = LEAST_GAIN, -1, False
            for place in range(n + 1):  # between the filters at place - 1 and place
                if start <= place <= stop:
                    continue
                a = entries[place - 1] ^ 1 if place else -1
                b = entries[place] if place < n else -1
                room = cut + _link(ends, whole, a, b)
                for way in range(2):
                    enter, leave = (last, first) if way else (first, last)
                    gain = room - _link(ends, whole, a, enter) - _link(ends, whole, leave, b)
                    if gain > best:
                        best, target, turned = gain, place, way == 1
            if target >= 0:
                total += best
                low, high = min(start, target), max(stop, target)
                length = stop - start
                _turn(entries, low, high)  # the segment, and what it passes: turned round twice or once
                if target < start:
                    _turn(entries, low + length, high)
                    if not turned:
                        _turn(entries, low, low + length)
                else:
                    _turn(entries, low, high - length)
                    if not turned:
                        _turn(entries, high - length, high)
    return total
