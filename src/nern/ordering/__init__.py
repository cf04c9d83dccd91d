"""Orderings: permutations of kernels that make the signal over coordinates smooth."""
