"""Orderings: permutations of kernels that make the signal over coordinates smooth."""

from nern.ordering.cost import PathCost
from nern.ordering.greedy import greedy_filter_path, greedy_path
from nern.ordering.order import (
    CrossFilterOrdering,
    InFilterOrdering,
    InFilterPathOrdering,
    NoOrdering,
    Ordering,
    ordering_bits,
    path_cost,
    solve_ordering,
)
from nern.ordering.store import get_ordering, load_ordering, save_ordering

__all__ = [
    "CrossFilterOrdering",
    "InFilterOrdering",
    "InFilterPathOrdering",
    "NoOrdering",
    "Ordering",
    "PathCost",
    "get_ordering",
    "greedy_filter_path",
    "greedy_path",
    "load_ordering",
    "ordering_bits",
    "path_cost",
    "save_ordering",
    "solve_ordering",
]
