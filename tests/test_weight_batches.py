"""Weight batches: which rows carry gradient in a step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nern.config import Config, NernConfig
from nern.errors import NernError
from nern.registry import WEIGHT_BATCHES
from nern.representation.kernels import KernelTable
from nern.training.weight_batches import WeightBatches

pytestmark = pytest.mark.usefixtures("rng_untouched")

TABLE = KernelTable(((4, 2, 3, 3), (3, 4, 1, 1), (2, 3, 3, 3)))
METHODS = sorted(WEIGHT_BATCHES)


def batches(method: str, size: int | None = 8, seed: int = 0, norms: Tensor | None = None) -> WeightBatches:
    return WeightBatches(method, TABLE, torch.ones(TABLE.rows) if norms is None else norms, size, seed)


def listed(rows: Tensor | None) -> list[int]:
    return list(range(TABLE.rows)) if rows is None else rows.tolist()


@pytest.mark.parametrize("method", METHODS)
@given(size=st.integers(1, 40), seed=st.integers(0, 1000), step=st.integers(0, 10**6))
def test_drawn_rows_are_rows_of_the_table(method: str, size: int, seed: int, step: int) -> None:
    norms = torch.rand(TABLE.rows, generator=torch.Generator().manual_seed(seed))
    rows = batches(method, size, seed, norms).rows(step)
    assert rows is None or rows.dtype == torch.int64
    assert listed(rows)
    assert set(listed(rows)) <= set(range(TABLE.rows))
    if method != "random_weighted_batch":
        assert len(set(listed(rows))) == len(listed(rows))


@pytest.mark.parametrize("method", METHODS)
def test_the_rows_of_a_step_depend_on_seed_and_step_alone(method: str) -> None:
    one_by_one = batches(method)
    reached = [listed(one_by_one.rows(step)) for step in range(30)]
    for step in (29, 0, 13):
        assert listed(batches(method).rows(step)) == listed(one_by_one.rows(step)) == reached[step]
    if method.startswith("random"):
        assert [listed(batches(method, seed=1).rows(step)) for step in range(30)] != reached
        assert len(set(map(tuple, reached))) > 1


def test_sequential_layer_begins_with_layer_1_and_ends_with_layer_0() -> None:
    rows = batches("sequential_layer").rows
    layers = [list(range(TABLE.starts[i], TABLE.starts[i + 1])) for i in range(3)]
    assert [listed(rows(step)) for step in range(7)] == [layers[i] for i in (1, 2, 0, 1, 2, 0, 1)]


def test_random_layer_draws_whole_layers_all_alike() -> None:
    starts = {TABLE.starts[i]: i for i in range(3)}
    counts = [0, 0, 0]
    for step in range(600):
        rows = listed(batches("random_layer").rows(step))
        layer = starts[rows[0]]
        assert rows == list(range(TABLE.starts[layer], TABLE.starts[layer + 1]))
        counts[layer] += 1
    assert all(150 < count < 250 for count in counts)


def test_random_batch_draws_size_different_rows_all_alike() -> None:
    counts = torch.zeros(TABLE.rows)
    for step in range(1000):
        rows = batches("random_batch", size=5).rows(step)
        assert len(rows.unique()) == len(rows) == 5
        counts[rows] += 1
    expected = 1000 * 5 / TABLE.rows
    assert float((counts - expected).abs().max()) < 5 * expected**0.5


@given(st.integers(1, 60), st.integers(0, 50))
def test_without_replacement_each_cycle_covers_all_rows_once(size: int, seed: int) -> None:
    draw = batches("random_batch_without_replacement", size, seed)
    steps = -(-TABLE.rows // min(size, TABLE.rows))
    cycles = []
    for cycle in range(3):
        slices = [listed(draw.rows(step)) for step in range(cycle * steps, (cycle + 1) * steps)]
        assert all(len(rows) == min(size, TABLE.rows) for rows in slices[:-1])
        cycles.append([row for rows in slices for row in rows])
        assert sorted(cycles[-1]) == list(range(TABLE.rows))
    assert cycles[0] != cycles[1] != cycles[2] != cycles[0]  # a new permutation each


def weighted_steps(norms: Tensor, size: int, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """Draws by norm (a row of norm zero never occurs) and uniform draws (no row twice) of many steps, told apart by the
    rows of norm zero: with `size` equal to the number of rows each uniform draw has them all."""
    weighted, uniform = [], []
    for step in range(steps):
        rows = batches("random_weighted_batch", size, norms=norms).rows(step)
        (uniform if bool((norms[rows] == 0).any()) else weighted).append(rows)
    return weighted, uniform


def test_a_fifth_of_the_weighted_steps_draws_by_norm() -> None:
    norms = torch.rand(TABLE.rows, generator=torch.Generator().manual_seed(0)) + 0.1
    norms[::5] = 0
    weighted, uniform = weighted_steps(norms, TABLE.rows, 2000)
    assert 0.17 < len(weighted) / 2000 < 0.23
    assert all(sorted(rows.tolist()) == list(range(TABLE.rows)) for rows in uniform)
    assert all(len(rows) == TABLE.rows for rows in weighted)
    drawn = torch.cat(weighted)
    counts = torch.bincount(drawn, minlength=TABLE.rows).double()
    expected = len(drawn) * norms.double() / norms.double().sum()
    positive = norms > 0
    assert not counts[~positive].any()
    chi_square = float(((counts - expected).square() / expected)[positive].sum())
    freedom = int(positive.sum()) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_need_a_size_say_so(method: str) -> None:
    config = Config(nern=replace(NernConfig(), weights_batch_method=method, weights_batch_size=None))
    if method in ("random_weighted_batch", "random_batch_without_replacement"):
        with pytest.raises(NernError, match=rf"weight batch method '{method}' of nern needs nern.weights_batch_size"):
            config.check()
    else:
        config.check()
