"""Weights kept apart, as bytes: the steps from place to place, entropy-coded, and the values as they are."""

from __future__ import annotations

import numpy as np
import torch

from nern.artifact.entropy import Decoder, Encoder
from nern.errors import NernError
from nern.representation.kernels import KernelTable
from nern.representation.outliers import Outliers


def encode_outliers(outliers: Outliers | None) -> tuple[tuple[int, int], bytes, bytes]:
    """Code them: how many there are and the largest step, the code of the steps, the values."""
    if outliers is None or not len(outliers):
        return (0, 0), b"", b""
    steps, encoder = np.diff(outliers.positions.long().numpy(), prepend=-1), Encoder()
    encoder.adaptive(steps, int(steps.max()) + 1)
    return (len(steps), int(steps.max())), encoder.finish(), outliers.values.numpy().astype("<f4").tobytes()


def decode_outliers(described: tuple[int, int], code: bytes, raw: bytes, table: KernelTable) -> Outliers | None:
    """What `encode_outliers` coded. Raises NernError where it does not fit the weights of `table`."""
    count, largest = described
    if max(count, largest) > table.num_weights or (count == 0) != (largest == 0):
        raise NernError(f"it has {count:,} outliers, {largest:,} apart, of {table.num_weights:,} weights")
    if len(raw) != 4 * count:
        raise NernError(f"{count:,} outliers need {4 * count:,} bytes, {len(raw):,} are there")
    decoder = Decoder(code)
    positions = decoder.adaptive(count, largest + 1).astype(np.int64).cumsum() - 1
    decoder.finish()
    if not count:
        return None
    values = np.frombuffer(raw, "<f4").astype(np.float32)
    found = {"positions": torch.from_numpy(positions), "values": torch.from_numpy(values)}
    return Outliers.from_tensors(found, table, "of the artifact", count)
