"""Orderings as bytes near their entropy: layer after layer, each permutation by `permutations`."""

from __future__ import annotations

import math

import torch

from nern.artifact.entropy import Decoder, Encoder
from nern.artifact.permutations import decode_permutations, encode_permutations, least_bits
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
