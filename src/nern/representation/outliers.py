"""Outliers: weights that a file of version 0.1.0 may hold exactly, by their places, in place of what is predicted there."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from nern.representation.kernels import KernelTable


@dataclass(frozen=True, eq=False)
class Outliers:
    """Weights kept apart.

    Attributes:
        positions: rising numbers among all weights of all layers, one layer after the other, each in row-major order.
        values: of these weights, float32.
    """

    positions: Int[Tensor, " n"]
    values: Float[Tensor, " n"]

    def of_layers(self, table: KernelTable) -> list[tuple[Int[Tensor, " n"], Float[Tensor, " n"]]]:
        """Of each layer, places within its weight and the values there."""
        parts, start = [], 0
        for shape in table.shapes:
            inside = (self.positions >= start) & (self.positions < start + math.prod(shape))
            parts.append((self.positions[inside] - start, self.values[inside]))
            start += math.prod(shape)
        return parts
