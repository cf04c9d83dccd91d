"""Coordinates that are made when asked for equal the listed ones; rows drawn without repeats are drawn fairly."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nern.representation.coordinates import TableCoordinates
from nern.representation.kernels import KernelTable
from nern.training import weight_batches
from nern.training.weight_batches import MANY_TIMES, different_rows

pytestmark = pytest.mark.usefixtures("rng_untouched")

MODES = ("none", "local", "global")


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


@st.composite
def tables(draw: st.DrawFn) -> KernelTable:
    size = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))
    shapes = draw(st.lists(size, min_size=1, max_size=5))
    networks: tuple[int, ...] = ()
    if draw(st.booleans()):
        steps = draw(st.lists(st.integers(0, 1), min_size=len(shapes) - 1, max_size=len(shapes) - 1))
        networks = tuple(sum(steps[:index]) for index in range(len(shapes)))
    return KernelTable(tuple(shapes), draw(st.sampled_from([3, 5])), networks=networks)


def shuffled(table: KernelTable, seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randperm(co * ci, generator=rng) for co, ci, _, _ in table.shapes]


@given(tables(), st.sampled_from(MODES), st.one_of(st.none(), st.integers(0, 999)), st.data())
@settings(max_examples=100)
def test_lookups_give_the_listed_coordinates(
    table: KernelTable, mode: str, ordering: int | None, data: st.DataObject
) -> None:
    positions = None if ordering is None else shuffled(table, ordering)
    expected = listed(table, positions, mode)
    coordinates = TableCoordinates(table, positions, mode)
    assert all(values.dtype == torch.float64 for values in coordinates.values)
    assert torch.equal(served(coordinates, slice(None)), expected)
    start = data.draw(st.integers(0, table.rows + 2))
    stop = data.draw(st.one_of(st.none(), st.integers(min(start, table.rows), table.rows + 2)))
    part = slice(
        start if data.draw(st.booleans()) else start - table.rows - 3, stop, data.draw(st.sampled_from([None, 2]))
    )
    assert torch.equal(served(coordinates, part), expected[part])
    some = torch.tensor(data.draw(st.lists(st.integers(0, table.rows - 1), max_size=30)), dtype=torch.int64)
    assert torch.equal(served(coordinates, some), expected[some])


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 60), st.data())
@settings(max_examples=60)
def test_drawn_rows_differ_and_are_in_range(count: int, data: st.DataObject) -> None:
    size, seed = data.draw(st.integers(0, count)), data.draw(st.integers(0, 999))
    with pytest.MonkeyPatch.context() as patch:
        for many_times in (0, MANY_TIMES, 10**9):  # with 0, all of the rows may be drawn one by one
            patch.setattr(weight_batches, "MANY_TIMES", many_times)
            rows = different_rows(count, size, rng(seed))
            assert rows.dtype == torch.int64
            assert rows.shape == (size,)
            assert set(rows.tolist()) <= set(range(count))
            assert len(set(rows.tolist())) == size
            assert torch.equal(rows, different_rows(count, size, rng(seed)))
