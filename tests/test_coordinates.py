"""Coordinates that are made when asked for equal the listed ones; rows drawn without repeats are drawn fairly."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinates_parts import listed, served
from nern.ordering import solve_ordering
from nern.registry import ORDERINGS
from nern.representation import KernelTable
from nern.representation.coordinates import TableCoordinates
from nern.training import weight_batches
from nern.training.weight_batches import MANY_TIMES, different_rows

pytestmark = pytest.mark.usefixtures("rng_untouched")

MODES = ("none", "local", "global")


@st.composite
def tables(draw: st.DrawFn) -> KernelTable:
    """Geometry of random networks."""
    size = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))
    shapes = draw(st.lists(size, min_size=1, max_size=5))
    networks: tuple[int, ...] = ()
    if draw(st.booleans()):
        steps = draw(st.lists(st.integers(0, 1), min_size=len(shapes) - 1, max_size=len(shapes) - 1))
        networks = tuple(sum(steps[:index]) for index in range(len(shapes)))
    return KernelTable(tuple(shapes), draw(st.sampled_from([3, 5])), networks=networks)


def shuffled(table: KernelTable, seed: int) -> list[Tensor]:
    """Positions of a random ordering."""
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


@given(tables(), st.sampled_from(MODES))
def test_an_index_has_no_more_values_than_it_takes(table: KernelTable, mode: str) -> None:
    coordinates = TableCoordinates(table, None, mode)
    lookups = coordinates.lookups(slice(None))
    assert all(int(lookup.min()) >= 0 for lookup in lookups)
    assert [len(values) for values in coordinates.values] == [int(lookup.max()) + 1 for lookup in lookups]


@pytest.mark.parametrize("num_idxs", [3, 5])
@pytest.mark.parametrize("networks", [(), (0, 0, 1, 1)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ordering", sorted(ORDERINGS))
def test_orderings_move_coordinates_as_they_do_listed_ones(
    ordering: str, mode: str, networks: tuple[int, ...], num_idxs: int
) -> None:
    shapes = ((5, 3, 3, 3), (4, 5, 1, 1), (2, 4, 2, 3), (3, 2, 3, 3))
    rng = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=rng) for shape in shapes]
    table = KernelTable(shapes, num_idxs, networks=networks)
    positions = solve_ordering(weights, ordering).positions(shapes)
    expected = listed(table, positions, mode)
    plain = listed(table, None, mode)
    assert torch.equal(expected, plain) == (ordering == "none")
    coordinates = TableCoordinates(table, positions, mode)
    repeated = torch.tensor([table.rows - 1, 0, 7, 7, 20, 0])
    for which in (slice(None), slice(4, 31), slice(table.rows, None), repeated):
        assert torch.equal(served(coordinates, which), expected[which])


def test_rows_do_not_depend_on_what_is_asked_for_beside_them() -> None:
    table = KernelTable(((5, 3, 3, 3), (4, 5, 1, 1)), 5)
    coordinates = TableCoordinates(table, shuffled(table, 0), "local")
    whole = served(coordinates, slice(None))
    for row in range(table.rows):
        assert torch.equal(served(coordinates, torch.tensor([row])), whole[row : row + 1])


@pytest.mark.parametrize("nothing", [slice(5, 2), slice(10**6, 3)])
def test_a_slice_that_ends_before_it_begins_is_empty(nothing: slice) -> None:
    table = KernelTable(((5, 3, 3, 3), (4, 5, 1, 1)))
    assert served(TableCoordinates(table), nothing).shape == (0, 3)


# --- rows drawn without repeats ------------------------------------------------------------------------------------


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=["permutation", "one by one"])
def branch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Rows are drawn by either way, however many they are."""
    monkeypatch.setattr(weight_batches, "MANY_TIMES", 10**9 if request.param == "permutation" else 0)
    return str(request.param)


def unlikeliness(counts: list[int], draws: int) -> float:
    """Chi-square of counts that should be equal, in standard deviations from its mean."""
    expected, freedom = draws / len(counts), len(counts) - 1
    assert sum(counts) == draws
    chi_square = sum((count - expected) ** 2 for count in counts) / expected
    return (chi_square - freedom) / (2 * freedom) ** 0.5


def test_chi_square_sees_what_is_not_uniform() -> None:
    assert unlikeliness([100] * 9 + [200], 1100) > 10
    fair = torch.randint(20, (4000,), generator=rng(0)).bincount(minlength=20)
    assert abs(unlikeliness(fair.tolist(), 4000)) < 4


@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_few_of_many_rows_are_drawn_one_by_one(beside: int, monkeypatch: pytest.MonkeyPatch) -> None:
    permutations_made: list[int] = []
    real = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda n, **kwargs: (permutations_made.append(n), real(n, **kwargs))[1])
    size = 5
    assert len(different_rows(MANY_TIMES * size + beside, size, rng(0))) == size
    assert permutations_made == ([MANY_TIMES * size + beside] if beside < 0 else [])


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


@pytest.mark.parametrize("count", [10**6, 2**40])
def test_of_very_many_rows_few_are_drawn(count: int) -> None:
    rows = different_rows(count, 1000, rng(0))
    assert len(rows.unique()) == 1000
    assert 0 <= int(rows.min()) < 0.01 * count
    assert 0.99 * count < int(rows.max()) < count
    assert not torch.equal(rows, different_rows(count, 1000, rng(1)))
    assert not torch.equal(rows, rows.sort().values)


def test_every_row_is_drawn_equally_often_at_every_place(branch: str) -> None:
    count, size, draws = 24, 6, 3000
    drawn = torch.stack([different_rows(count, size, rng(seed)) for seed in range(draws)])
    assert abs(unlikeliness(drawn.flatten().bincount(minlength=count).tolist(), draws * size)) < 4
    for place in range(size):
        assert abs(unlikeliness(drawn[:, place].bincount(minlength=count).tolist(), draws)) < 4


def test_every_choice_in_every_order_is_equally_likely(branch: str) -> None:
    count, size, draws = 5, 3, 6000
    generator = rng(1)
    found = Counter(tuple(different_rows(count, size, generator).tolist()) for _ in range(draws))
    possible = [order for choice in combinations(range(count), size) for order in permutations(choice)]
    assert set(found) <= set(possible)
    assert abs(unlikeliness([found[order] for order in possible], draws)) < 4
