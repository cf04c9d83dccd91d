"""Orderings: permutations of kernels that make the signal over coordinates smooth."""

from nern.ordering.order import path_cost, solve_ordering

__all__ = ["path_cost", "solve_ordering"]
