"""What codes cost in a file while they are trained, and the weight with which this counts so that they cost what they
should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nern.artifact.codes import coded_bytes
from nern.calibration.feedback import bits_a_unit, expected_sizes
from nern.objectives.objective import Losses
from nern.representation.codes import UNIT, Codes

FIRST_SHARE = 0.003  # of the gradient of the other losses that the rate's has at first
GAIN = 1.0  # of the logarithm of the weight in a step, for each share of the goal that is missed
MOST_CHANGE = 0.1  # of that logarithm in a step
MEASURED_EVERY = 50  # steps: what a file needs, beside what the distributions tell of


class Rate:
    """The rate of codes in bits a weight, as a loss: near what the file needs (see `artifact.codes`), each number by a
    geometric distribution around the size that goes with its filter, channel and entry. Numbers count as they are before
    they are rounded: what they will cost shows there long before the first of them rounds to another whole number.

    Args:
        codes: that are trained.
        goal: bits a weight.
        zeros: of each layer, which of its codes stay zero; None: none has to.
        state: what `state()` gave; None: a new one.
    """

    def __init__(
        self,
        codes: Codes,
        goal: float,
        zeros: Sequence[Tensor | None],
        state: dict[str, float | None] | None = None,
    ) -> None:
        self.codes, self.goal, self.zeros = codes, goal, zeros
        self.weight = None if state is None else state["weight"]
        self.steps = 0 if state is None else int(state.get("steps") or 0)
        self.count = sum(code.numel() for code in codes.codes)
        known = None if state is None else state["factor"]
        self.factor = known if known is not None else self._measured_factor()

    def _measured_factor(self) -> float:
        """Bits of a file for each that the distributions tell of."""
        multiples = [code.detach() / UNIT for code in self.codes.codes]
        told = sum(float(_bits(exact, bits_a_unit(expected_sizes(exact.round()))).sum()) for exact in multiples)
        return 8 * coded_bytes([exact.round().long().cpu().numpy() for exact in multiples]) / max(told, 1.0)

    @torch.no_grad()
    def __call__(self, losses: Losses) -> Losses:
        """Add the rate to losses, and its gradient to those of the codes; then mend its weight."""
        if self.steps and self.steps % MEASURED_EVERY == 0:
            self.factor = self._measured_factor()
        self.steps += 1
        total, slopes = torch.zeros((), device=self.codes.steps.device), list[Tensor]()
        for code in self.codes.codes:
            exact = code / UNIT
            each = bits_a_unit(expected_sizes(exact.round()))
            total += _bits(exact, each).sum()
            slopes.append(each * code.sign() * (self.factor / UNIT / self.count))
        rate = total * (self.factor / self.count)
        if self.weight is None:
            other, own = (_norm(tensors) for tensors in ([code.grad for code in self.codes.codes], slopes))
            self.weight = FIRST_SHARE * other / own if own > 0 else 0.0
        for code, slope, zeros in zip(self.codes.codes, slopes, self.zeros, strict=True):
            gradient = slope * self.weight if code.grad is None else code.grad.add_(slope, alpha=self.weight)
            code.grad = gradient if zeros is None else gradient.masked_fill_(zeros, 0)
        found = losses + Losses({"rate": rate}, rate * self.weight)
        missed = GAIN * (float(rate) - self.goal) / self.goal
        self.weight *= math.exp(max(-MOST_CHANGE, min(MOST_CHANGE, missed)))
        return found

    def state(self) -> dict[str, float | None]:
        """What a new one goes on with."""
        return {"weight": self.weight, "factor": self.factor, "steps": self.steps}


def _bits(exact: Tensor, each: Tensor) -> Tensor:
    """Bits of numbers that are whole but for what rounding takes away: of their sizes, and of the signs."""
    size = exact.abs()
    return each * size + size.clamp(max=1) - (1 - 2.0**-each).log2()


def _norm(tensors: Sequence[Any]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors if tensor is not None))
