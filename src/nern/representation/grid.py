"""Quantisation: tensors as multiples of steps, one step a tensor, chosen by what rounding does.

Steps are 2**(n / 8): a small number n names each, the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from nern.errors import NernError

STEPS_AN_OCTAVE = 8
# 2**(n / 8) for n from 0 to 7, rounded to float32 once, here.
_STEPS = (1.0, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081)
LEAST_STEP, MOST_STEP = -100 * STEPS_AN_OCTAVE, 100 * STEPS_AN_OCTAVE
ENOUGH = 8  # values for each that occurs: then their frequencies are known well enough
COARSEST, FINEST = 4.0, 2.0**-20  # of a tensor's standard deviation: beyond, all is zero; below, float32 is as coarse
TRIAL_SHARE = 1 / 16  # of a tensor's standard deviation: the step by which its sensitivity is measured

Effect = Callable[[Mapping[str, Tensor]], float]


def step_size(number: int) -> float:
    """The step of this number, 2**(number / 8) in float32. Raises NernError beyond 2**100 and 2**-100."""
    if not LEAST_STEP <= number <= MOST_STEP:
        raise NernError(f"step {number} is not from {LEAST_STEP} to {MOST_STEP}")
    octave, part = divmod(number, STEPS_AN_OCTAVE)
    return math.ldexp(float(np.float32(_STEPS[part])), octave)


def step_number(size: float) -> int:
    """The number of the step nearest to `size`, which is positive."""
    return max(LEAST_STEP, min(MOST_STEP, round(STEPS_AN_OCTAVE * math.log2(size))))


def on_grid(tensor: Tensor, number: int) -> Tensor:
    """The multiples of a step nearest to a tensor's values."""
    size = step_size(number)
    return (tensor.double() / size).round().mul(size).to(tensor.dtype)


def entropy_bits(tensor: Tensor, number: int) -> float:
    """Bits of a tensor's multiples of a step: by how often each occurs, or where too few occur to tell, as of a normal
    distribution."""
    multiples = (tensor.detach().double() / step_size(number)).round()
    counts = multiples.unique(return_counts=True)[1].double()
    found = float((counts * (counts.sum() / counts).log2()).sum())
    if len(counts) * ENOUGH <= multiples.numel():
        return found
    normal = 0.5 * math.log2(2 * math.pi * math.e * max(float(multiples.var()), 1 / 12))
    return max(found, normal * multiples.numel())


@dataclass(frozen=True)
class Quantised:
    """A predictor that was trained to be rounded."""

    steps: dict[str, int]  # the number of each tensor's step, by name
    level: float  # at which these were chosen (see `StepChooser`)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"level": self.level, "steps": self.steps}

    @staticmethod
    def from_json(value: Any) -> Quantised:
        """What `to_json` gave. Raises NernError for anything else."""
        steps, level = (value.get("steps"), value.get("level")) if isinstance(value, dict) else (None, None)
        if not isinstance(steps, dict) or not isinstance(level, float) or not 0 < level < math.inf:
            raise NernError("the steps of a quantised predictor are names with numbers, and their level is above 0")
        for name, step in steps.items():
            if type(step) is not int:
                raise NernError(f"the step of {name} is {step!r}, not a whole number")
            step_size(step)
        return Quantised(steps, level)


def quantised_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """The tensors that have a step: of real numbers, not all equal."""
    return [n for n, t in tensors.items() if t.is_floating_point() and t.numel() > 1 and float(t.std()) > 0]


class StepChooser:
    """Chooses steps such that no bit is better spent on another tensor.

    Rounding to a step d changes what counts by c d**2, for small d, and costs n log2(1/d) bits; so the best steps are those
    with d**2 in proportion to n / c: `level` is the factor. c is measured, one tensor at a time.

    Args:
        tensors: by name; those of `quantised_names` get steps.
        effect: (some of the tensors, changed) -> how much worse the result is; 0: not at all.
    """

    def __init__(self, tensors: Mapping[str, Tensor], effect: Effect) -> None:
        self.tensors = {name: tensors[name].detach() for name in quantised_names(tensors)}
        self._ratios: dict[str, float] = {}  # n / c
        for name, tensor in self.tensors.items():
            trial = step_number(float(tensor.std()) * TRIAL_SHARE)
            found = max(effect({name: on_grid(tensor, trial)}), 0.0) / step_size(trial) ** 2
            self._ratios[name] = tensor.numel() / found if found > 0 else math.inf
        finite = [ratio for ratio in self._ratios.values() if ratio < math.inf]
        largest = max(finite, default=1.0)
        self._ratios = {name: min(ratio, largest) for name, ratio in self._ratios.items()}
        self._deviations = {name: float(tensor.std()) for name, tensor in self.tensors.items()}
        self._bits: dict[tuple[str, int], float] = {}  # of a tensor at a step: searches ask for them again and again

    def steps(self, level: float) -> dict[str, int]:
        """The step of each tensor, at this level; none is so coarse that all is rounded to zero, or uselessly fine."""
        wanted = {name: math.sqrt(level * ratio) / self._deviations[name] for name, ratio in self._ratios.items()}
        return {n: step_number(self._deviations[n] * max(min(step, COARSEST), FINEST)) for n, step in wanted.items()}

    def level_of_bits(self, bits: float, names: Iterable[str]) -> float:
        """The level at which the values of these tensors need so many bits each, on average."""
        names = list(names)
        count = sum(self.tensors[name].numel() for name in names)

        def found(exponent: float) -> float:
            steps = self.steps(2.0**exponent)
            for at in ((name, steps[name]) for name in names if (name, steps[name]) not in self._bits):
                self._bits[at] = entropy_bits(self.tensors[at[0]], at[1])
            return sum(self._bits[name, steps[name]] for name in names) / count

        low, high = -200.0, 200.0  # bits fall with the level
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if found(middle) > bits else (low, middle)
        return 2.0**high
