"""A linear layer over many rows, by the fastest exact way there is on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MANY = 256  # rows from which on the detour pays


def linear(
    rows: Float[Tensor, "r i"], weight: Float[Tensor, "o i"], bias: Float[Tensor, " o"] | None
) -> Float[Tensor, "r o"]:
    """`rows @ weight.T + bias`.

    PyTorch multiplies float32 matrices on the CPU by MKL, which uses half of what some processors can do; its
    convolutions go through oneDNN, which uses all. So the rows become pixels of one image with channels last, a view, and
    the layer a 1 x 1 convolution.
    """
    if len(rows) < MANY or rows.device.type != "cpu" or rows.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return F.linear(rows, weight, bias)
    result: Tensor = _ByConvolution.apply(rows, weight, bias)
    return result


class _ByConvolution(torch.autograd.Function):
    """A function of its own, so that its result is no view: activations may then work in place without a copy."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        result = _rows(F.conv2d(_pixels(rows), weight[:, :, None, None], bias))
        return result.new_empty(0).set_(result.untyped_storage(), 0, result.shape, result.stride())  # the same, no view

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (rows, weight) = gradients, ctx.saved_tensors
        needed = list(ctx.needs_input_grad)
        of_rows, of_weight, of_bias = torch.ops.aten.convolution_backward(
            _pixels(gradient), _pixels(rows), weight[:, :, None, None], [len(weight)],
            [1, 1], [0, 0], [1, 1], False, [0, 0], 1, needed,
        )  # fmt: skip
        return (
            _rows(of_rows) if needed[0] else None,
            of_weight.reshape(weight.shape) if needed[1] else None,
            of_bias if needed[2] else None,
        )


def _pixels(rows: Float[Tensor, "r c"]) -> Float[Tensor, "1 c r 1"]:
    """Rows as the pixels of one image, channels last in memory."""
    return rows.reshape(1, len(rows), 1, rows.shape[1]).permute(0, 3, 1, 2)


def _rows(pixels: Float[Tensor, "1 c r 1"]) -> Float[Tensor, "r c"]:
    return pixels.permute(0, 2, 3, 1).reshape(pixels.shape[2], pixels.shape[1])
