"""Exact greedy paths, compiled: from row 0 always to the most similar row not yet visited (NeRN, section 3.2, which
compares by cosine), or to the nearest one; and one walk through all kernels of a layer that leaves a filter only when all of
its channels are visited.

Here is the plain path, which looks at every row at every step; `tree` finds the same one faster where there are many
rows. Ties go to the lowest row number. Similarities are computed in float64, so a path does not depend on the machine's
float32 rounding. All functions release the GIL: layers are ordered in threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nern.compiled import compiled
from nern.ordering.tree import has_tree, tree_path

_compiled = compiled(error_model="numpy")


@_compiled
def _greedy_path(rows: Any, by_distance: bool) -> Any:  # pragma: no cover (compiled)
    """Path over `rows` (n, d): next is the largest dot product, or, `by_distance`, the least squared distance."""
    n, d = rows.shape
    path = np.empty(n, np.int64)
    left = np.arange(n)  # rows not yet visited
    values = rows.T.copy()  # (d, n), columns as in `left`
    similarities = np.empty(n)
    current, count = 0, n
    for position in range(n):
        path[position] = left[current]
        here = values[:, current].copy()
        count -= 1
        left[current] = left[count]
        for j in range(d):
            values[j, current] = values[j, count]
        similarities[:count] = 0.0
        for j in range(d):
            if by_distance:
                for i in range(count):
                    difference = values[j, i] - here[j]
                    similarities[i] -= difference * difference
            else:
                for i in range(count):
                    similarities[i] += values[j, i] * here[j]
        current = 0
        for i in range(1, count):
            if similarities[i] > similarities[current] or (
                similarities[i] == similarities[current] and left[i] < left[current]
            ):
                current = i
    return path


@_compiled
def _greedy_line(values: Any, first: Any, start: int) -> Any:  # pragma: no cover (compiled)
    """The same path for different numbers, which rise, in n steps: what was visited is an interval, so the next number
    lies at one of its ends. `first`: the row of each; of two that are as near, the lower one is next."""
    n = len(values)
    path = np.empty(n, np.int64)
    path[0], low, high = start, start - 1, start + 1  # the ends
    for position in range(1, n):
        here = values[path[position - 1]]
        below = (values[low] - here) ** 2 if low >= 0 else np.inf
        above = (values[high] - here) ** 2 if high < n else np.inf
        if high < n and (above < below or (above == below and first[high] < first[low])):
            path[position] = high
            high += 1
        else:
            path[position] = low
            low -= 1
    return path


def unit_rows(kernels: NDArray[Any]) -> NDArray[np.float64]:
    """A copy of kernels (..., entries) in float64, each divided by its norm; a zero kernel stays zero (it is similar to
    nothing: cosine 0)."""
    units = np.array(kernels, dtype=np.float64, order="C")
    rows = units.reshape(-1, units.shape[-1])
    for start in range(0, len(rows), 65536):  # the norm takes a copy
        part = rows[start : start + 65536]
        norms = np.linalg.norm(part, axis=-1, keepdims=True)
        np.divide(part, norms, out=part, where=norms > 0)
        part[norms[:, 0] == 0] = 0  # also what is too small for its square
    return units


def even_rows(kernels: NDArray[Any]) -> NDArray[np.float64]:
    """A copy of kernels (..., entries) in float64, multiplied by the power of two that brings their largest entry to
    between 0.5 and 1: distances stay in proportion to the last bit, and squares neither overflow nor vanish."""
    rows = np.array(kernels, dtype=np.float64, order="C")
    return np.ldexp(rows, -np.frexp(np.abs(rows).max(initial=0.0))[1], out=rows)


def comparable_rows(kernels: NDArray[Any], metric: str) -> NDArray[np.float64]:
    """The copy of kernels (..., entries) on which paths are found by this metric: `unit_rows` or `even_rows`."""
    return even_rows(kernels) if metric == "distance" else unit_rows(kernels)


def greedy_path(kernels: NDArray[Any], metric: str = "cosine") -> NDArray[np.int64]:
    """Greedy path over kernels (n, entries): (n,) the row visited at each position; row 0 is first. `metric`: how kernels
    are compared, by 'cosine' or (Euclidean) 'distance'; those of one entry always by value (the nearest is next)."""
    n, entries = kernels.shape
    if entries == 1:
        values, first, group = np.unique(kernels[:, 0].astype(np.float64), return_index=True, return_inverse=True)
        visited = np.empty(len(values), np.int64)
        visited[_greedy_line(values, first, group[0])] = np.arange(len(values))
        return np.argsort(visited[group], kind="stable")  # equal rows follow each other
    by_distance = metric == "distance"
    rows = comparable_rows(kernels, metric)
    path = tree_path(rows, None if by_distance else 1.0) if has_tree(n, entries) else None
    return _greedy_path(rows, by_distance) if path is None else path


def greedy_filter_path(filters: NDArray[Any], metric: str = "cosine") -> NDArray[np.int64]:
    """Greedy path over filters whose channels are arranged already.

    Args:
        filters: (filters, channels, entries). The similarity of two filters is the sum over channels of the kernels'
            cosine similarities; for kernels of one entry, minus the sum of squared differences.
        metric: 'distance': the nearest filter is next, whatever its kernels' size.

    Returns:
        (filters,) the filter visited at each position; filter 0 is first.
    """
    by_distance = filters.shape[2] == 1 or metric == "distance"
    rows = even_rows(filters) if by_distance else unit_rows(filters)
    return _greedy_path(rows.reshape(len(rows), -1), by_distance)


def greedy_walk(kernels: NDArray[Any], metric: str = "cosine") -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Greedy walk: within a filter as `greedy_path` has it, then to the most similar kernel of the filters not visited.

    Args:
        kernels: (filters, channels, entries).
        metric: see `greedy_path`.

    Returns:
        (filters,) the filter visited at each position, filter 0 first; (filters, channels) the channel of each filter
        visited at each position, channel 0 of filter 0 first. Ties go to the lowest filter, then the lowest channel.
    """
    count, channels, entries = kernels.shape
    by_distance = metric == "distance" or entries == 1
    rows = comparable_rows(kernels, "distance" if by_distance else metric)
    left = np.ones(count, np.bool_)
    filters, paths = np.empty(count, np.int64), np.empty((count, channels), np.int64)
    current, first = 0, 0
    for position in range(count):
        left[current] = False
        begins = np.concatenate(([first], np.delete(np.arange(channels), first)))
        filters[position] = current
        paths[current] = begins[greedy_path(kernels[current, begins], metric)]
        current, first = _next(rows, left, rows[current, paths[current, -1]], by_distance)
    return filters, paths


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
