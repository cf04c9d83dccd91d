"""Inner products and combinations of the rows of feature maps, computed in float32 whatever the maps are in.

For 16-bit maps on a CPU these are compiled loops (`row_loops`): PyTorch would write float32 copies of maps that are read
once. Elsewhere they are PyTorch's operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Pairs = Sequence[tuple[Float[Tensor, "rows entries"], Float[Tensor, "rows entries"]]]


def products(pairs: Pairs) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of each pair of maps (x, y), row by row and in float32: |x|, |y|, x . y."""
    if not _compilable(pairs):
        return [_torch_products(x, y) for x, y in pairs]
    from nern.objectives.row_loops import row_products  # numba takes a third of a second to import

    results = [torch.empty(len(x), 3) for x, _ in pairs]
    for (x, y), out in zip(pairs, results, strict=True):
        row_products(_bits(x), _bits(y), out.numpy())
    return [tuple(out.unbind(1)) for out in results]  # type: ignore[misc]


def combinations(
    pairs: Pairs, factors: Sequence[tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]]
) -> list[Tensor]:
    """Of each pair of maps (x, y) with factors (a, b) for each row: a x + b y, computed in float32, in the maps' type."""
    if not _compilable(pairs):
        scaled = zip(pairs, factors, strict=True)
        return [(x * a.unsqueeze(1)).addcmul_(y, b.unsqueeze(1)).to(x.dtype) for (x, y), (a, b) in scaled]
    from nern.objectives.row_loops import row_combinations

    results = [torch.empty_like(x, memory_format=torch.contiguous_format) for x, _ in pairs]
    for (x, y), (a, b), out in zip(pairs, factors, results, strict=True):
        row_combinations(_bits(x), _bits(y), a.numpy(), b.numpy(), _bits(out))
    return results


def _torch_products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    norms = (torch.linalg.vector_norm(m, dim=1, dtype=wide) for m in (x, y))
    return next(norms), next(norms), (x * y).sum(1, dtype=wide)


def _compilable(pairs: Pairs) -> bool:
    maps = [m for pair in pairs for m in pair]
    return all(type(m) is Tensor and m.device.type == "cpu" and m.dtype == torch.bfloat16 for m in maps)


def _bits(values: Tensor) -> Any:
    """The memory of 16-bit floating-point numbers as an array of their bits."""
    return values.detach().contiguous().view(torch.uint16).numpy()
