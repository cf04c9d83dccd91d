"""Encoding by place along the order: one index a kernel, its frequencies scaled to the length of its layer.

A kernel's place t = 0 .. n - 1 along its layer's order gives the phases `pi g_j t / n`; the layer enters as a one-hot.
A predictor follows what changes slowly along few indices best (spectral bias: Rahaman et al. 2019), and neighbours along an
order are alike; frequencies up to a share of n let it follow neighbours in long layers as in short ones.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nern.randomness import generator
from nern.registry import ENCODINGS
from nern.representation.coordinates import Rows, TableCoordinates

HELD_BYTES = 256_000_000  # encodings of up to this much are kept; more are made anew each time


class OrderRows:
    """Encodings of a table's rows.

    Args:
        coordinates: of the table, which tell a row's layer and place.
        frequencies: g, (layers, levels).
    """

    def __init__(self, coordinates: TableCoordinates, frequencies: Float[Tensor, "layers levels"]) -> None:
        self.coordinates, self.frequencies = coordinates, frequencies
        layers, levels = frequencies.shape
        rows = coordinates.table.rows
        held = 4 * rows * (2 * levels + layers) <= HELD_BYTES
        self._held = self._make(slice(None)) if held else None

    def __call__(self, which: Rows) -> Float[Tensor, "r size"]:
        """Encodings of these rows: sines, cosines, the layer."""
        return self._make(which) if self._held is None else self._held[which]

    def linear(self, which: Rows, weight: Float[Tensor, "out size"], bias: Tensor | None) -> Float[Tensor, "r out"]:
        """`encodings @ weight.T + bias`."""
        return F.linear(self(which), weight, bias)

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
    ratios; and a one-hot of the layer.

    Args:
        layers: of the network.
        enc_levels: frequencies.
        bandwidth: of a layer of n kernels the highest frequency is `bandwidth * n` half-turns.
    """

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
