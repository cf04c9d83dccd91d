"""Encoding: coordinates -> vectors of sines and cosines (NeRN, section 3.1; random Fourier features: Tancik et al. 2020).

The encodings 'order' and 'order_random' know of a kernel its place t = 0 .. n - 1 along its layer's order, as the phases
`pi g_j t / n`; the layer enters as a one-hot. A predictor follows what changes slowly along few indices best (spectral bias:
Rahaman et al. 2019), and neighbours along an order are alike; frequencies up to a share of n let it follow neighbours in
long layers as in short ones.

Arguments reach hundreds of radians and more, where float32 rounds them visibly. 'basic' rounds as the published code
does (index times base**level, then times pi, all in float32), so that published predictors see what they were trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nern.randomness import generator
from nern.registry import ENCODINGS
from nern.representation.coordinates import Rows, TableCoordinates


class Encoded:
    """Encodings of fixed rows, in float32."""

    def __call__(self, which: Rows) -> Float[Tensor, "r size"]:
        """Encodings of these rows."""
        raise NotImplementedError

    def linear(self, which: Rows, weight: Float[Tensor, "out size"], bias: Tensor | None) -> Float[Tensor, "r out"]:
        """`encodings @ weight.T + bias`."""
        return F.linear(self(which), weight, bias)


class Encoding(Protocol):
    """Contract of an encoding. `size`: length of the vector of one coordinate."""

    size: int

    def prepare(self, coordinates: Any) -> Encoded:
        """The encodings of fixed rows (`TableCoordinates`), to be asked for by row."""
        ...


class EncodedRows(Encoded):
    """Encodings of rows, made when asked for: the whole is never held in memory.

    Args:
        tables: of each index, a vector for each of its values.
        combine: (vectors of each index) -> encodings.
        join: 'concat' or 'sum' where that is all `combine` does; then a linear layer separates by index. None: it does
            more.
    """

    def __init__(
        self,
        coordinates: TableCoordinates,
        tables: Sequence[Float[Tensor, "v d"]],
        combine: Callable[[list[Tensor]], Tensor],
        join: str | None = None,
    ) -> None:
        self.coordinates, self.tables, self.combine, self.join = coordinates, list(tables), combine, join

    def __call__(self, which: Rows) -> Float[Tensor, "r size"]:
        lookups = self.coordinates.lookups(which)
        return self.combine([table[lookup] for table, lookup in zip(self.tables, lookups, strict=True)])

    def linear(self, which: Rows, weight: Float[Tensor, "out size"], bias: Tensor | None) -> Float[Tensor, "r out"]:
        """`encodings @ weight.T + bias`, in float32, without making the encodings where they separate by index:
        `W e(l, f, c) = W_l e(l) + W_f e(f) + W_c e(c)`, each product made once for each value of its index."""
        with torch.autocast(weight.device.type, enabled=False):
            scatters = torch.is_grad_enabled() and weight.requires_grad and weight.is_cuda
            if self.join is None or scatters:  # adding up gradients of repeated values is not deterministic on a GPU
                return super().linear(which, weight, bias)
            sizes = [table.shape[1] for table in self.tables]
            parts = weight.split(sizes, dim=1) if self.join == "concat" else [weight] * len(sizes)
            projected = [table @ part.T for table, part in zip(self.tables, parts, strict=True)]
            first, *others = zip(projected, self.coordinates.lookups(which), strict=True)
            total = (first[0] if bias is None else first[0] + bias).index_select(0, first[1])
            for table, lookup in others:
                total += table.index_select(0, lookup)
            return total


class Encodings:
    """Encodings of some rows, of which a predictor sees what linear layers make of them."""

    def __init__(self, encoded: Encoded, which: Rows) -> None:
        self.encoded, self.which = encoded, which

    def linear(self, weight: Float[Tensor, "out size"], bias: Tensor | None = None) -> Float[Tensor, "r out"]:
        return self.encoded.linear(self.which, weight, bias)


def _sin_cos(arguments: Tensor) -> Tensor:
    """(sin, cos) of each argument, interleaved along the last axis."""
    return torch.stack((arguments.sin(), arguments.cos()), dim=-1).flatten(-2)


@ENCODINGS.register("basic")
class BasicEncoding:
    """sin and cos of `pi * base**level * index`; index-major, then level, then (sin, cos). Arguments: see
    `EmbeddingsConfig`."""

    def __init__(
        self,
        num_idxs: int = 3,
        enc_levels: int = 20,
        base: float = 1.25,
        fusion_mode: str = "concat",
        **others: Any,
    ) -> None:
        del others  # of other encodings
        self.sum = fusion_mode == "sum"
        self.size = 2 * enc_levels * (1 if self.sum else num_idxs)
        self.base, self.enc_levels = base, enc_levels

    def _encode_index(self, values: Float[Tensor, " n"]) -> Float[Tensor, "n levels2"]:
        powers = self.base ** torch.arange(self.enc_levels, dtype=values.dtype, device=values.device)
        return _sin_cos(values.unsqueeze(-1) * powers * math.pi)

    def encode(self, coordinates: Float[Tensor, "n idxs"]) -> Float[Tensor, "n size"]:
        """Vectors, computed in the precision of `coordinates`."""
        return self._join([self._encode_index(column) for column in coordinates.unbind(1)])

    def _join(self, parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).sum(0) if self.sum else torch.cat(parts, dim=1)

    def prepare(self, coordinates: TableCoordinates) -> EncodedRows:
        """Each index takes few values: encode those once, gather rows when asked."""
        tables = [self._encode_index(values.float()) for values in coordinates.values]
        return EncodedRows(coordinates, tables, self._join, "sum" if self.sum else "concat")


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
        gauss_scale: Sequence[float] = (1.0, 0.1, 0.1),
        **others: Any,
    ) -> None:
        del others  # of other encodings; other fusions are refused by the config
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

    def prepare(self, coordinates: TableCoordinates) -> EncodedRows:
        """Arguments are sums over indices: multiply each index's few values by B once, gather and add when asked."""
        tables = []
        for values, weights in zip(coordinates.values, self.B.double().unbind(1), strict=True):
            # whole turns change nothing; dropping them keeps float32 sums exact enough
            turns = values.unsqueeze(1) * weights.to(values.device)
            tables.append((2 * math.pi * (turns - turns.round())).float())
        return EncodedRows(coordinates, tables, lambda parts: _sin_cos(torch.stack(parts).sum(0)))


HELD_BYTES = 256_000_000  # encodings of up to this much are kept; more are made anew each time


class OrderRows(Encoded):
    """Encodings of a table's rows, whose coordinates tell layer and place. `frequencies`: g."""

    def __init__(self, coordinates: TableCoordinates, frequencies: Float[Tensor, "layers levels"]) -> None:
        self.coordinates, self.frequencies = coordinates, frequencies
        layers, levels = frequencies.shape
        rows = coordinates.table.rows
        held = 4 * rows * (2 * levels + layers) <= HELD_BYTES
        self._held = self._make(slice(None)) if held else None

    def __call__(self, which: Rows) -> Float[Tensor, "r size"]:
        """Encodings of these rows: sines, cosines, the layer."""
        return self._make(which) if self._held is None else self._held[which]

    def _make(self, which: Rows) -> Tensor:
        layer, place, count = self.coordinates.places(which)
        turns = place.double().unsqueeze(1) * (self.frequencies / 2)[layer] / count.unsqueeze(1)
        phases = (2 * math.pi * (turns - turns.round())).float()  # whole turns change nothing
        return torch.cat([phases.sin(), phases.cos(), F.one_hot(layer, len(self.frequencies)).float()], dim=1)


class _ByOrder:
    """What both encodings share. `size`: length of a vector."""

    def __init__(self, layers: int = 1, enc_levels: int = 20, bandwidth: float = 1 / 3, **others: Any) -> None:
        del others  # of encodings by index
        self.layers, self.enc_levels, self.bandwidth = layers, enc_levels, bandwidth
        self.size = 2 * enc_levels + layers

    def frequencies(self, kernels: int) -> Float[Tensor, " levels"]:
        """g of a layer of so many kernels, in half-turns over the layer."""
        raise NotImplementedError

    def prepare(self, coordinates: TableCoordinates) -> OrderRows:
        """The encodings of a table's rows, to be asked for by row."""
        table = coordinates.table
        rows = [self.frequencies(count) for count in table.layer_rows]
        return OrderRows(coordinates, torch.stack(rows).to(coordinates.device))


@ENCODINGS.register("order", by_order=True)
class OrderEncoding(_ByOrder):
    """Place along the order, at frequencies from half a turn a layer up to `bandwidth` half-turns a kernel, in equal
    ratios; and a one-hot of the layer. Of a layer of n kernels the highest is `bandwidth * n` half-turns."""

    def frequencies(self, kernels: int) -> Float[Tensor, " levels"]:
        highest = max(kernels * self.bandwidth, 1.0)
        return torch.logspace(0, math.log10(highest), self.enc_levels, dtype=torch.float64)


@ENCODINGS.register("order_random", by_order=True)
class RandomOrderEncoding(_ByOrder):
    """As 'order', with random frequencies (random Fourier features, Tancik et al. 2020): absolute values of normal draws,
    of standard deviation `bandwidth * n` half-turns in a layer of n kernels. The draws are always the same."""

    def frequencies(self, kernels: int) -> Float[Tensor, " levels"]:
        draws = torch.randn(self.enc_levels, generator=generator(0, "order encoding"), dtype=torch.float64)
        return draws.abs().sort().values * kernels * self.bandwidth
