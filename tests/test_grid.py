"""Steps of rounding: their sizes, what rounding costs, and how steps are shared out among tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nern import NernError
from nern.representation.grid import (
    LEAST_STEP,
    MOST_STEP,
    Quantised,
    StepChooser,
    entropy_bits,
    on_grid,
    step_number,
    step_size,
)


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear_effect(tensors: Mapping[str, Tensor], weights: Mapping[str, float]) -> Any:
    def effect(changed: Mapping[str, Tensor]) -> float:
        return sum(weights[name] * float((changed[name] - tensors[name]).square().sum()) for name in changed)

    return effect


@given(st.integers(LEAST_STEP, MOST_STEP))
def test_steps_are_powers_of_two_by_eighths(number: int) -> None:
    size = step_size(number)
    assert size == pytest.approx(2.0 ** (number / 8), rel=1e-6)
    assert step_number(size) == number
    assert float(torch.tensor(size, dtype=torch.float32)) == size  # a float32, the same everywhere


@given(st.integers(-160, 40), st.integers(0, 2**31))
def test_rounding_is_to_the_nearest_multiple_and_changes_nothing_twice(number: int, seed: int) -> None:
    tensor = normal(50, seed=seed)
    rounded = on_grid(tensor, number)
    assert rounded.dtype == tensor.dtype
    assert (rounded - tensor).abs().max() <= step_size(number) * 0.5 + 1e-6 * tensor.abs().max()
    assert torch.equal(on_grid(rounded, number), rounded)
    multiples = rounded.double() / step_size(number)
    torch.testing.assert_close(multiples, multiples.round(), rtol=1e-6, atol=1e-6)


@given(st.floats(1.5, 14))
def test_the_bits_asked_for_are_what_comes(bits: float) -> None:
    tensors = {"a": normal(2000), "b": normal(300, scale=5, seed=1)}
    chooser = StepChooser(tensors, linear_effect(tensors, {"a": 1.0, "b": 1.0}))
    steps = chooser.steps(chooser.level_of_bits(bits, tensors))
    found = sum(entropy_bits(tensor, steps[name]) for name, tensor in tensors.items()) / 2300
    assert found == pytest.approx(bits, abs=0.15)


@pytest.mark.parametrize(
    "value",
    [None, {"steps": {"a": 1}}, *({"level": 1.0, "steps": {"a": step}} for step in (1.5, True, 10_000))],
)
def test_damaged_steps_are_an_error(value: Any) -> None:
    with pytest.raises(NernError, match="step"):
        Quantised.from_json(value)
