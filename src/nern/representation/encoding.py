"""Encoding: coordinates -> vectors of sines and cosines (NeRN, section 3.1; random Fourier features: Tancik et al. 2020).

Arguments reach hundreds of radians and more, where float32 rounds them visibly. 'basic' rounds as the published code
does (index times base**level, then times pi, all in float32), so that published predictors see what they were trained on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nern.registry import ENCODINGS


class Encoding(Protocol):
    """Contract of an encoding. `size`: length of the vector of one coordinate."""

    size: int

    def encode(self, coordinates: Float[Tensor, "n idxs"]) -> Float[Tensor, "n size"]:
        """Vectors, computed in the precision of `coordinates`."""
        ...

    def prepare(self, coordinates: Float[Tensor, "n idxs"], device: torch.device) -> EncodedRows:
        """The encodings of fixed coordinates, to be asked for by row, on `device` in float32."""
        ...


class EncodedRows(Protocol):
    """Encodings of a table's rows, made when asked for: the whole is never held in memory."""

    def __call__(self, which: Int[Tensor, " r"] | slice, /) -> Float[Tensor, "r size"]: ...


def _sin_cos(arguments: Tensor) -> Tensor:
    """(sin, cos) of each argument, interleaved along the last axis."""
    return torch.stack((arguments.sin(), arguments.cos()), dim=-1).flatten(-2)


@ENCODINGS.register("basic")
class BasicEncoding:
    """sin and cos of `pi * base**level * index`; index-major, then level, then (sin, cos).

    Args:
        num_idxs: indices of a coordinate.
        enc_levels: frequencies of each index.
        base: ratio of successive frequencies.
        fusion_mode: 'concat' or 'sum' over indices.
    """

    def __init__(
        self,
        num_idxs: int = 3,
        enc_levels: int = 20,
        base: float = 1.25,
        fusion_mode: str = "concat",
        gauss_scale: Sequence[float] = (),
    ) -> None:
        del gauss_scale  # the random encoding's
        self.sum = fusion_mode == "sum"
        self.size = 2 * enc_levels * (1 if self.sum else num_idxs)
        self.base, self.enc_levels = base, enc_levels

    def _encode_index(self, values: Float[Tensor, " n"]) -> Float[Tensor, "n levels2"]:
        powers = self.base ** torch.arange(self.enc_levels, dtype=values.dtype, device=values.device)
        return _sin_cos(values.unsqueeze(-1) * powers * math.pi)

    def encode(self, coordinates: Float[Tensor, "n idxs"]) -> Float[Tensor, "n size"]:
        """Vectors, computed in the precision of `coordinates`."""
        parts = [self._encode_index(column) for column in coordinates.unbind(1)]
        return torch.stack(parts).sum(0) if self.sum else torch.cat(parts, dim=1)

    def prepare(self, coordinates: Float[Tensor, "n idxs"], device: torch.device) -> EncodedRows:
        """Each index takes few values: encode those once, gather rows when asked."""
        tables, lookups = [], []
        for column in coordinates.unbind(1):
            values, lookup = column.unique(return_inverse=True)
            tables.append(self._encode_index(values.float()).to(device))
            lookups.append(lookup.to(device))

        def rows(which: Int[Tensor, " r"] | slice) -> Float[Tensor, "r size"]:
            parts = [table[lookup[which]] for table, lookup in zip(tables, lookups, strict=True)]
            return torch.stack(parts).sum(0) if self.sum else torch.cat(parts, dim=1)

        return rows


@ENCODINGS.register("ffn")
class FourierEncoding:
    """Random Fourier features: sin and cos of `B @ (2 pi coordinate)`; row of B, then (sin, cos).

    B (enc_levels * num_idxs, num_idxs) is standard normal, column j scaled by gauss_scale[j], always drawn from
    PyTorch's CPU generator seeded with 0, as published: a checkpoint needs no record of it.
    """

    def __init__(
        self,
        num_idxs: int = 3,
        enc_levels: int = 20,
        base: float = 1.25,
        fusion_mode: str = "concat",
        gauss_scale: Sequence[float] = (1.0, 0.1, 0.1),
    ) -> None:
        del base, fusion_mode  # the basic encoding's; other fusions are refused by the config
        self.size = 2 * enc_levels * num_idxs
        self.B = self.matrix(enc_levels, num_idxs, gauss_scale)

    @staticmethod
    def matrix(enc_levels: int, num_idxs: int, gauss_scale: Sequence[float]) -> Float[Tensor, "features idxs"]:
        """The matrix B, float32."""
        draw = torch.randn(enc_levels * num_idxs, num_idxs, generator=torch.Generator().manual_seed(0))
        return draw * torch.tensor(list(gauss_scale))

    def encode(self, coordinates: Float[Tensor, "n idxs"]) -> Float[Tensor, "n size"]:
        """Vectors, computed in the precision of `coordinates`."""
        return _sin_cos((2 * math.pi * coordinates) @ self.B.to(coordinates).T)

    def prepare(self, coordinates: Float[Tensor, "n idxs"], device: torch.device) -> EncodedRows:
        """Arguments are sums over indices: multiply each index's few values by B once, gather and add when asked."""
        tables, lookups = [], []
        for column, weights in zip(coordinates.unbind(1), self.B.double().unbind(1), strict=True):
            values, lookup = column.unique(return_inverse=True)
            # whole turns change nothing; dropping them keeps float32 sums exact enough
            turns = values.double().unsqueeze(1) * weights
            tables.append((2 * math.pi * (turns - turns.round())).float().to(device))
            lookups.append(lookup.to(device))

        def rows(which: Int[Tensor, " r"] | slice) -> Float[Tensor, "r size"]:
            arguments = torch.stack([table[lookup[which]] for table, lookup in zip(tables, lookups, strict=True)])
            return _sin_cos(arguments.sum(0))

        return rows
