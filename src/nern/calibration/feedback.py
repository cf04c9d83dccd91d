"""Rounding a layer's codes one input after the other, each time moving the numbers that are still to be rounded such that
they make up for the error (optimal brain quantisation: Frantar et al. 2022, arXiv 2210.17323, section 3), and choosing each
number by its error and by its bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

DAMPING = 0.01  # of the mean of a diagonal, added to it
LAGRANGE = 0.1  # error that a bit is worth, in squares of a step at mean sensitivity
COLUMNS = 64  # rounded before all further ones are moved
PRIOR = 8.0  # numbers that a filter's or an input's mean size counts as seen at the layer's
FEW_ZEROS = 0.02  # share of zeros beyond which they are those of a pruned layer, and stay
LEAST = 0.02  # mean size of numbers, in steps: what occurs less often costs no more bits


@dataclass(frozen=True)
class Inputs:
    """Second moments of what a layer's filters multiply, in the basis of its codes.

    Attributes:
        moments: of the inputs that the rounded network gives, (groups, n, n).
        outputs: of the original's outputs with these inputs, (groups, filters of a group, n).
    """

    moments: Float[Tensor, "groups n n"]
    outputs: Float[Tensor, "groups f n"]


@dataclass(frozen=True)
class Rounded:
    """Codes that were rounded.

    Attributes:
        multiples: whole numbers, of the shape of the codes.
        step: in 16 bits, where these hold it.
    """

    multiples: Tensor
    step: float

    @property
    def values(self) -> Tensor:
        """The codes, in float32."""
        return (self.multiples.double() * self.step).float()


def rounded(
    codes: Float[Tensor, "filters channels k"],
    inputs: Inputs,
    importance: Float[Tensor, " filters"],
    quality: float,
    step: float | None = None,
) -> Rounded:
    """Round the codes of a layer.

    Args:
        codes: of its kernels.
        inputs: rotated into the basis of the codes.
        importance: of a squared error of each filter's outputs.
        quality: root of the error that a number may have at mean importance: steps are in proportion to it.
        step: None: the one that goes with the quality.
    """
    groups, n = inputs.moments.shape[:2]
    zeros = pruned(codes)
    exact = torch.float64 if n <= 1024 else torch.float32
    importance = importance.reshape(groups, -1).to(exact)
    diagonal = inputs.moments.diagonal(dim1=1, dim2=2)
    damping = DAMPING * diagonal.mean(1).clamp_min(1e-12)[:, None]
    order = diagonal.argsort(dim=1, descending=True)  # in which they are rounded
    back, last_first = order.argsort(dim=1), order.flip(1)
    moments = inputs.moments.gather(1, last_first[:, :, None].expand_as(inputs.moments))
    moments = moments.gather(2, last_first[:, None].expand_as(moments)).to(exact)
    moments.diagonal(dim1=1, dim2=2).add_(damping)
    root = torch.linalg.cholesky(moments)
    del moments
    wanted = (inputs.outputs + damping[:, None] * codes.reshape(groups, -1, n)).to(exact)
    wanted = wanted.gather(2, last_first[:, None].expand_as(wanted))
    # what gives the original's outputs from the rounded one's inputs
    weights = torch.cholesky_solve(wanted.mT, root).mT.flip(2)
    eye = torch.eye(n, dtype=exact, device=root.device).expand_as(root)
    # the upper factor of the inverse, whose product with its transpose it is: that of the reversed order, inverted
    factor = torch.linalg.solve_triangular(root, eye, upper=False).flip(1, 2).float()
    del root, eye
    own = factor.diagonal(dim1=1, dim2=2).pow(-2)  # what the square of a number's error costs, after feedback
    if step is None:
        mean = float(importance.mean()) * math.exp(float(own.log().mean()))
        step = short(quality / math.sqrt(max(mean, 1e-60)))
    weights = (weights / step).float()
    scaled = weights.gather(2, back[:, None].expand_as(weights)).view(codes.shape)
    if zeros is not None:
        scaled = scaled.masked_fill(zeros, 0.0)
    first, each = (
        LAGRANGE * quality**2 * bits.view(groups, -1, n).gather(2, order[:, None].expand_as(weights))
        for bits in bits_of(scaled)
    )
    cost = importance.float()[:, :, None] * own[:, None] * step**2
    if zeros is not None:  # a pruned weight stays one, whatever its error
        cost = cost.masked_fill(zeros.reshape(groups, -1, n).gather(2, order[:, None].expand_as(weights)), 0.0)
    found = _fed_back(weights, factor, cost, first, each)
    return Rounded(found.gather(2, back[:, None].expand_as(found)).view(codes.shape).to(torch.int32), step)


def pruned(codes: Tensor) -> Tensor | None:
    """Where a layer's codes are zeros that stay: those of a pruned layer. None: it is none."""
    zeros = codes == 0
    return zeros if float(zeros.float().mean()) > FEW_ZEROS else None


def short(step: float) -> float:
    """A step as it is held: in 16 bits, or where these do not hold it nearly in 32."""
    half = float(torch.tensor(step).half())
    return half if abs(half / step - 1) < 2**-10 else float(torch.tensor(step).float())


def _fed_back(weights: Tensor, factor: Tensor, cost: Tensor, first: Tensor, each: Tensor) -> Tensor:
    """Weights (groups, f, n), in steps, as whole numbers. `cost`: of squared errors; `first`, `each`: of the first unit of a
    size, and of each further one."""
    n, found = weights.shape[2], torch.empty_like(weights)
    for start in range(0, n, COLUMNS):
        end = min(start + COLUMNS, n)
        block, errors = weights[:, :, start:end].clone(), torch.empty_like(weights[:, :, start:end])
        for column in range(start, end):
            at = column - start
            value = block[:, :, at]
            chosen = _nearest(value, *(costs[:, :, column] for costs in (cost, first, each)))
            found[:, :, column] = chosen
            errors[:, :, at] = (value - chosen) / factor[:, column, column][:, None]
            block[:, :, at + 1 :] -= errors[:, :, at, None] * factor[:, None, column, column + 1 : end]
        weights[:, :, end:] -= errors @ factor[:, start:end, end:]
    return found


def _nearest(value: Tensor, cost: Tensor, first: Tensor, each: Tensor) -> Tensor:
    """The whole number that costs least, among both neighbours of a value and 0."""
    size = value.abs()
    low = size.floor()
    high = low + 1
    of_low = cost * (size - low).square() + (first + each * (low - 1)) * (low > 0)
    of_high = cost * (size - high).square() + first + each * low
    best = torch.where(of_high < of_low, high, low)
    best = torch.where(cost * size.square() < torch.minimum(of_low, of_high), 0.0, best)
    return best * value.sign()


def expected_sizes(scaled: Float[Tensor, "filters channels k"]) -> Tensor:
    """Of each number the size to expect, from those of its filter, its channel and its place in the code."""
    size = scaled.abs().round()
    return _expected(size, torch.ones_like(size)).clamp_min(LEAST)


def _expected(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of the counted values, times what that of its filter, its channel and its place is over it."""
    mean = (values.sum() / counted.sum().clamp_min(1)).clamp_min(LEAST)
    expected = mean
    for axes in ((1, 2), (0, 2), (0, 1)):
        sums, counts = (t.sum(axes, keepdim=True) for t in (values, counted))
        expected = expected * (sums / mean + PRIOR) / (counts + PRIOR)
    return expected


def bits_of(scaled: Float[Tensor, "filters channels k"]) -> tuple[Tensor, Tensor]:
    """Bits that the first unit of each number's size costs, over those of a zero, and bits of each further unit: shares of
    numbers that are not zero, and mean sizes of these, are expected as in `expected_sizes`."""
    size = scaled.abs().round()
    there = (size > 0).to(size)
    share = _expected(there, torch.ones_like(size)).clamp(LEAST, 1 - LEAST)
    further = _expected((size - 1).clamp_min(0), there).clamp_min(LEAST)
    return ((1 - share) / share).log2() + 1 + (1 + further).log2(), bits_a_unit(further)


def bits_a_unit(expected: Tensor) -> Tensor:
    """Bits of each unit of the size of numbers whose mean sizes are these, distributed geometrically."""
    return ((1 + expected) / expected).log2()
