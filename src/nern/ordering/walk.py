"""One walk through all kernels of a layer that leaves a filter only when all of its channels are visited.

The walk's links lead from the end of one filter's path to the beginning of the next one's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nern.compiled import compiled
from nern.ordering.greedy import comparable_rows, greedy_path

_compiled = compiled(error_model="numpy")


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
