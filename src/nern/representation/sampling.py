"""Sampling: reduce predicted K x K kernels to the smaller kernels of a layer."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nern.errors import NernError
from nern.registry import SAMPLING_MODES


@SAMPLING_MODES.register("center")
def center(kernels: Float[Tensor, "n k k"], size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """The central window, which starts at `int(K / 2 - size / 2)`."""
    top, left = (int(kernels.shape[axis + 1] / 2 - size[axis] / 2) for axis in (0, 1))
    return kernels[:, top : top + size[0], left : left + size[1]]


@SAMPLING_MODES.register("average")
def average(kernels: Float[Tensor, "n k k"], size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """Mean over sliding windows of `K - size + 1`, stride 1."""
    return F.avg_pool2d(kernels.unsqueeze(1), _window(kernels, size), stride=1).squeeze(1)


@SAMPLING_MODES.register("max")
def maximum(kernels: Float[Tensor, "n k k"], size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """Maximum over sliding windows of `K - size + 1`, stride 1."""
    return F.max_pool2d(kernels.unsqueeze(1), _window(kernels, size), stride=1).squeeze(1)


def sample_kernels(kernels: Float[Tensor, "n k k"], size: tuple[int, int], mode: str) -> Float[Tensor, "n h w"]:
    """Kernels of `size` (height, width) from predicted ones; unchanged where they have it already.

    Raises:
        NernError: `size` exceeds the predicted size.
    """
    height, width = kernels.shape[1:]
    if size[0] > height or size[1] > width:
        raise NernError(
            f"a {size[0]} x {size[1]} kernel cannot be sampled from a predicted {height} x {width} one; "
            f"set nern.output_size to at least {max(size)}"
        )
    return kernels if size == (height, width) else SAMPLING_MODES[mode](kernels, size)


def _window(kernels: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    return kernels.shape[1] - size[0] + 1, kernels.shape[2] - size[1] + 1
