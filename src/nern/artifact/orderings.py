"""Orderings as bytes near their entropy: layer after layer, permutations near log2(n!) bits, by which of the
numbers that are left comes next at each place."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int

from nern.artifact.entropy import AT_ONCE, MOST_UNIFORM, Decoder, Encoder
from nern.compiled import compiled
from nern.errors import NernError
from nern.ordering.order import Ordering, Shapes
from nern.registry import ORDERINGS

MOST_PATHS = 2**20  # permutations in one ordering


def paths(mode: str, shape: tuple[int, int, int, int]) -> dict[str, tuple[int, ...]]:
    """What is stored of a layer: of each of its tensors the shape, permutations along the last axis."""
    of_layer: dict[str, tuple[int, ...]] = ORDERINGS[mode].permutations(shape)
    return of_layer


def check_ordering(mode: str, shapes: Shapes) -> None:
    """Raise NernError for an ordering that a file does not hold."""
    if mode not in ORDERINGS:
        raise NernError(f"its ordering {mode[:64]!r} is unknown")
    count = sum(math.prod(size[:-1]) for shape in shapes for size in paths(mode, shape).values())
    if count > MOST_PATHS:
        raise NernError(f"its ordering has {count:,} permutations; at most {MOST_PATHS:,} are read")


def encode_ordering(ordering: Ordering, shapes: Shapes) -> bytes:
    """The code of an ordering of layers of these shapes."""
    encoder, tensors = Encoder(), ordering.tensors()
    for index, shape in enumerate(shapes):
        for kind, size in paths(ordering.mode, shape).items():
            encode_permutations(encoder, tensors[f"{kind}.{index}"].long().reshape(-1, size[-1]).numpy())
    return encoder.finish()


def decode_ordering(mode: str, code: bytes, shapes: Shapes) -> Ordering:
    """The ordering that was coded. Raises NernError where it cannot be."""
    check_ordering(mode, shapes)
    decoder, layers = Decoder(code), []
    needed = sum(
        math.prod(size[:-1]) * least_bits(size[-1]) for shape in shapes for size in paths(mode, shape).values()
    )
    if needed > decoder.bits + 1:  # before room is made for what is not there
        raise NernError(f"its ordering needs {needed / 8:,.0f} bytes at least, {len(code):,} are there")
    for shape in shapes:
        layer = {}
        for kind, size in paths(mode, shape).items():
            layer[kind] = torch.from_numpy(decode_permutations(decoder, math.prod(size[:-1]), size[-1])).reshape(size)
        layers.append(layer)
    decoder.finish()
    ordering: Ordering = ORDERINGS[mode].from_layers(layers, shapes)
    return ordering


# --- permutations ----------------------------------------------------------------------------------------------------


SHORT = 2**14  # a list of so many numbers gives one away in less time than a tree finds it without compiled code
_compiled = compiled()


def encode_permutations(encoder: Encoder, orders: Int[np.ndarray, "count n"]) -> None:
    """Code permutations of 0..n-1, one a row."""
    rows, n = orders.shape
    sizes = _sizes(rows, n)
    encoder.uniform(_ranks(orders.astype(np.int64)).ravel(), sizes)


def decode_permutations(decoder: Decoder, count: int, n: int) -> Int[np.ndarray, "count n"]:
    """What `encode_permutations` coded. Whatever the bytes are, each row is a permutation."""
    orders, rows = np.empty((count, n), np.int64), max(1, AT_ONCE // max(n, 1))
    for start in range(0, count, rows):
        part = orders[start : start + rows]
        ranks = decoder.uniform(_sizes(len(part), n)).reshape(part.shape)
        part[:] = _short_orders(ranks) if n <= SHORT else _orders(ranks)
    return orders


@lru_cache(maxsize=1024)
def least_bits(n: int) -> float:
    """Bits that every permutation of 0..n-1 takes at least. Raises NernError for one that is too long to be coded."""
    sizes = _sizes(1, n)
    last = 1 - (sizes - 1) * (2**24 // np.maximum(sizes, 1)) / 2**24  # the likeliest rank takes what rounding leaves
    return float(-np.log2(last).sum())


def _sizes(rows: int, n: int) -> np.ndarray:
    if n > MOST_UNIFORM:
        raise NernError(f"an ordering of {n:,} kernels is too long for an artifact; at most {MOST_UNIFORM:,}")
    return np.tile(np.arange(n, 0, -1), rows)


def _short_orders(ranks: np.ndarray) -> list[list[int]]:
    """What `_orders` gives. Nothing is compiled for it, nor read from where compiled code is kept."""
    orders = []
    for row in ranks.tolist():
        left = list(range(len(row)))
        orders.append([left.pop(rank) for rank in row])
    return orders


# A Fenwick tree holds how many of the numbers are left; its root steps by powers of two.


@_compiled
def _full_tree(n: int) -> np.ndarray:
    tree = np.empty(n + 1, np.int64)
    for i in range(n + 1):
        tree[i] = i & -i
    return tree


@_compiled
def _ranks(orders: np.ndarray) -> np.ndarray:
    """Of each number, how many smaller ones are left when its turn comes."""
    rows, n = orders.shape
    ranks = np.empty((rows, n), np.int64)
    for row in range(rows):
        tree = _full_tree(n)
        for place in range(n):
            i, below = orders[row, place], 0
            while i > 0:
                below += tree[i]
                i -= i & -i
            ranks[row, place] = below
            i = orders[row, place] + 1
            while i <= n:
                tree[i] -= 1
                i += i & -i
    return ranks


@_compiled
def _orders(ranks: np.ndarray) -> np.ndarray:
    """The permutations of these ranks."""
    rows, n = ranks.shape
    orders = np.empty((rows, n), np.int64)
    top = 1
    while 2 * top <= n:
        top *= 2
    for row in range(rows):
        tree = _full_tree(n)
        for place in range(n):
            left, at, step = ranks[row, place], 0, top
            while step > 0:
                if at + step <= n and tree[at + step] <= left:
                    at += step
                    left -= tree[at]
                step //= 2
            orders[row, place] = at
            i = at + 1
            while i <= n:
                tree[i] -= 1
                i += i & -i
    return orders
