"""Weights kept apart, as bytes: the steps from place to place, entropy-coded, and the values as they are. Version 0.1.0
wrote them; they are read only."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nern.artifact.entropy import Decoder
from nern.errors import NernError
from nern.representation.kernels import KernelTable


def decode_outliers(
    described: tuple[int, int], code: bytes, raw: bytes, table: KernelTable
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]] | None:
    """The weights kept apart: rising numbers among all weights of all layers, one layer after the other, and their values;
    None: there are none. Raises NernError where they do not fit the weights of `table`."""
    count, largest = described
    if max(count, largest) > table.num_weights or (count == 0) != (largest == 0):
        raise NernError(f"it has {count:,} outliers, {largest:,} apart, of {table.num_weights:,} weights")
    if len(raw) != 4 * count:
        raise NernError(f"{count:,} outliers need {4 * count:,} bytes, {len(raw):,} are there")
    decoder = Decoder(code)
    steps = decoder.adaptive(count, largest + 1).astype(np.int64)
    decoder.finish()
    if not count:
        return None
    positions, values = steps.cumsum() - 1, np.frombuffer(raw, "<f4").astype(np.float32)
    if steps.min() < 1 or positions[-1] >= table.num_weights:
        raise NernError(f"the places of its outliers must rise, within the {table.num_weights:,} represented weights")
    if not np.isfinite(values).all():
        raise NernError("its outliers are not all finite numbers")
    return torch.from_numpy(positions), torch.from_numpy(values)
