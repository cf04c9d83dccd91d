"""Orderings as bytes near their entropy: layer after layer, each permutation by `permutations`."""

from __future__ import annotations

import torch

from nern.artifact.entropy import Decoder, Encoder
from nern.artifact.permutations import decode_permutations, encode_permutations
from nern.ordering.order import Ordering, Shapes
from nern.registry import ORDERINGS


def encode_ordering(ordering: Ordering, shapes: Shapes) -> bytes:
    """The code of an ordering of layers of these shapes."""
    encoder, tensors = Encoder(), ordering.tensors()
    for index, shape in enumerate(shapes):
        for kind, size in ORDERINGS[ordering.mode].permutations(shape).items():
            encode_permutations(encoder, tensors[f"{kind}.{index}"].long().reshape(-1, size[-1]).numpy())
    return encoder.finish()


def decode_ordering(mode: str, code: bytes, shapes: Shapes) -> Ordering:
    """The ordering that was coded. Raises NernError where it cannot be."""
    decoder, layers = Decoder(code), []
    for shape in shapes:
        layer = {}
        for kind, size in ORDERINGS[mode].permutations(shape).items():
            count = 1 if len(size) == 1 else size[0]
            layer[kind] = torch.from_numpy(decode_permutations(decoder, count, size[-1])).reshape(size)
        layers.append(layer)
    decoder.finish()
    ordering: Ordering = ORDERINGS[mode].from_layers(layers, shapes)
    return ordering
