"""Outliers: the few weights that a NeRN keeps exactly, by their places, and does not predict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nern.errors import NernError
from nern.representation.kernels import KernelTable

VALUE_BITS = 32


@dataclass(frozen=True, eq=False)
class Outliers:
    """Weights kept apart.

    Args:
        positions: rising numbers among all weights of all layers, one layer after the other, each in row-major order.
        values: of these weights, float32.
    """

    positions: Int[Tensor, " n"]
    values: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.positions)

    def bits(self, weights: int) -> float:
        """Least bits that any code needs for them: log2 of the number of ways to choose so many of all weights, and 32 for
        each value."""
        chosen = len(self)
        ways = math.lgamma(weights + 1) - math.lgamma(chosen + 1) - math.lgamma(weights - chosen + 1)
        return ways / math.log(2) + VALUE_BITS * chosen

    def of_layers(self, table: KernelTable) -> list[tuple[Int[Tensor, " n"], Float[Tensor, " n"]]]:
        """Of each layer, places within its weight and the values there."""
        parts, start = [], 0
        for shape in table.shapes:
            inside = (self.positions >= start) & (self.positions < start + math.prod(shape))
            parts.append((self.positions[inside] - start, self.values[inside]))
            start += math.prod(shape)
        return parts

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name; positions in 32 bits where they fit."""
        large = len(self) > 0 and int(self.positions[-1]) > torch.iinfo(torch.int32).max
        return {"positions": self.positions.to(torch.int64 if large else torch.int32), "values": self.values}

    @staticmethod
    def from_tensors(
        tensors: Mapping[str, Tensor], table: KernelTable, source: object = "given", expected: int | None = None
    ) -> Outliers:
        """What `tensors()` gave. Raises NernError, naming `source`, where they do not fit the weights of `table`, or are not
        as many as `expected` (None: any number)."""
        positions, values = tensors.get("positions"), tensors.get("values")
        if positions is None or values is None or positions.dim() != 1 or positions.shape != values.shape:
            found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
            raise NernError(
                f"outliers {source}: equally many positions and values are expected, not {found or 'nothing'}"
            )
        if positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool:
            raise NernError(f"outliers {source}: positions must be whole numbers, not {positions.dtype}")
        if values.dtype != torch.float32:
            raise NernError(f"outliers {source}: values must be torch.float32, not {values.dtype}")
        positions = positions.long()
        rising = bool((positions[1:] > positions[:-1]).all())  # differences could overflow
        if not rising or (len(positions) and not 0 <= int(positions[0]) <= int(positions[-1]) < table.num_weights):
            raise NernError(
                f"outliers {source}: positions must rise, within the {table.num_weights:,} represented weights"
            )
        if not torch.isfinite(values).all():
            raise NernError(f"outliers {source}: values are not all finite")
        if expected is not None and len(positions) != expected:
            raise NernError(f"outliers {source}: {expected:,} are expected, {len(positions):,} are there")
        return Outliers(positions, values)


def find_outliers(weights: Sequence[Tensor], share: float) -> Outliers:
    """The weights of largest magnitude, each in units of the root mean square of its layer.

    Args:
        weights: of all layers.
        share: of all weights, how many are kept apart (rounded).
    """
    flat = [w.detach().flatten().double().cpu() for w in weights]  # the same choice on every device
    scores = torch.cat([w.abs() / w.square().mean().sqrt().clamp_min(torch.finfo(w.dtype).tiny) for w in flat])
    count = round(share * len(scores))
    order = scores.argsort(descending=True, stable=True)
    positions = order[:count].sort().values
    return Outliers(positions, torch.cat(flat)[positions].float())
