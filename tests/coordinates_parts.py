"""Coordinates one by one, to compare those that are made when asked for with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from nern.representation.kernels import KernelTable


def listed(table: KernelTable, positions: Sequence[Tensor] | None = None, mode: str = "none") -> Tensor:
    """Coordinates of all rows (rows, idxs) in float64, by the plain rules."""
    rows, largest = [], max(max(shape) for shape in table.shapes)
    for index, (co, ci, kh, kw) in enumerate(table.shapes):
        begin = [(index, len(table.shapes))]
        if table.networks:
            begin.insert(0, (table.networks[index], max(table.networks) + 1))
        entries: list[Any] = [[(y, kh), (x, kw)] for y, x in product(range(kh), range(kw))]
        for kernel in range(co * ci):
            place = kernel if positions is None else int(positions[index][kernel])
            for entry in entries if table.num_idxs == 5 else [[]]:
                pairs = [*begin, (place // ci, co), (place % ci, ci), *entry]
                rows.append([n / {"none": 1, "local": size, "global": largest}[mode] for n, size in pairs])
    return torch.tensor(rows, dtype=torch.float64)


def served(coordinates: Any, which: Tensor | slice = slice(None)) -> Tensor:
    """Coordinates of these rows, (rows, idxs), put together from values and lookups."""
    pairs = zip(coordinates.values, coordinates.lookups(which), strict=True)
    return torch.stack([values[lookup] for values, lookup in pairs], dim=1)
