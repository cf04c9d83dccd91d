"""Permutations as bytes near log2(n!) bits: at each place, which of the numbers that are left comes next."""

from __future__ import annotations

import numba
import numpy as np
from jaxtyping import Int

from nern.artifact.entropy import MOST_UNIFORM, Decoder, Encoder
from nern.errors import NernError


def encode_permutations(encoder: Encoder, orders: Int[np.ndarray, "count n"]) -> None:
    """Code permutations of 0..n-1, one a row."""
    rows, n = orders.shape
    ranks = np.empty((rows, n), np.int64)
    for index, order in enumerate(orders):
        ranks[index] = _ranks(order.astype(np.int64))
    encoder.uniform(ranks.ravel(), _sizes(rows, n))


def decode_permutations(decoder: Decoder, count: int, n: int) -> Int[np.ndarray, "count n"]:
    """What `encode_permutations` coded. Whatever the bytes are, each row is a permutation."""
    ranks = decoder.uniform(_sizes(count, n)).reshape(count, n)
    return np.stack([_order(row) for row in ranks]) if count else ranks


def _sizes(rows: int, n: int) -> np.ndarray:
    if n > MOST_UNIFORM:
        raise NernError(f"an ordering of {n:,} kernels is too long for an artifact; at most {MOST_UNIFORM:,}")
    return np.tile(np.arange(n, 0, -1), rows)


# A Fenwick tree holds how many of the numbers are left; its root steps by powers of two.


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _full_tree(n: int) -> np.ndarray:
    tree = np.empty(n + 1, np.int64)
    for i in range(n + 1):
        tree[i] = i & -i
    return tree


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _ranks(order: np.ndarray) -> np.ndarray:
    """Of each number, how many smaller ones are left when its turn comes."""
    n = len(order)
    tree, ranks = _full_tree(n), np.empty(n, np.int64)
    for place in range(n):
        i, below = order[place], 0
        while i > 0:
            below += tree[i]
            i -= i & -i
        ranks[place] = below
        i = order[place] + 1
        while i <= n:
            tree[i] -= 1
            i += i & -i
    return ranks


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _order(ranks: np.ndarray) -> np.ndarray:
    """The permutation of these ranks."""
    n = len(ranks)
    tree, order = _full_tree(n), np.empty(n, np.int64)
    top = 1
    while 2 * top <= n:
        top *= 2
    for place in range(n):
        left, at, step = ranks[place], 0, top
        while step > 0:
            if at + step <= n and tree[at + step] <= left:
                at += step
                left -= tree[at]
            step //= 2
        order[place] = at
        i = at + 1
        while i <= n:
            tree[i] -= 1
            i += i & -i
    return order
