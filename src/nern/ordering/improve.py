"""Shorter paths: 2-opt and Or-opt moves until none helps or the time is up (Johnson and McGeoch, 1997).

A path is kept as a closed tour with one stop more, numbered n, that is at cost 0 from all rows: both ends of the path are
free. A move takes out edges and puts in others of less cost in sum. It begins at a row of the queue (don't-look bits),
and the first edge that it puts in leads to one of the row's nearest neighbours.
"""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nern.compiled import compiled
from nern.ordering.tree import TREE_FROM, build_tree, has_tree, nearest

_compiled = compiled(error_model="numpy")
_inlined = compiled(error_model="numpy", forceinline=True)  # by LLVM

NEIGHBOURS = 5
LONGEST_SEGMENT = 3  # that Or-opt moves
LONGEST_SHAKEN = 30  # segment that is exchanged with its neighbour
PATIENCE = 20  # exchanges a row without a gain, after which the search ends
LEAST_GAIN = 1e-10  # a move of less may be rounding
LEAST_ROWS = 5
BATCH = 4096  # rows whose neighbours are found together
WORK_OF_TURN = 2_000_000  # stops turned round between two looks at the clock
ENDLESS = 2**62
TURNS_KEPT = 4096
HEAD, HELD, TURNS, WORK, IDLE = range(5)  # places in Tour.state


class Tour(NamedTuple):
    """A path that is being improved, and the state of the search."""

    stops: Any  # (n + 1,) the rows in their order, and n
    places: Any  # (n + 1,) of each stop
    near: Any  # (n, k) the nearest rows of each row, nearest first; -1 where there are no more
    known: Any  # (n,) whether they were looked for
    queue: Any  # (n,) a ring of the rows to look at
    queued: Any  # (n,) whether a row is in it
    turns: Any  # (TURNS_KEPT, 2) the last changes, each a place and how many stops from there on were turned round
    state: Any  # (5,) the queue's first place, rows in it; turns since the last exchange; work done; exchanges without gain


@_inlined
def _cost(rows: Any, whole: Any, a: int, b: int) -> float:  # pragma: no cover (compiled)
    if a == len(rows) or b == len(rows):
        return 0.0
    total = 0.0
    if whole is None:  # settled when it is compiled
        for j in range(rows.shape[1]):
            difference = rows[a, j] - rows[b, j]
            total += difference * difference
        return math.sqrt(total)
    for j in range(rows.shape[1]):
        total += rows[a, j] * rows[b, j]
    return whole - total


@_compiled
def path_sum(rows: Any, whole: Any, path: Any) -> float:  # pragma: no cover (compiled)
    """Sum over consecutive rows of `whole` minus their dot product; None: of their distance."""
    total = 0.0
    for i in range(len(path) - 1):
        total += _cost(rows, whole, path[i], path[i + 1])
    return total


@_compiled
def _edges(rows: Any, whole: Any, path: Any) -> Any:  # pragma: no cover (compiled)
    costs = np.empty(len(path) - 1)
    for i in range(len(costs)):
        costs[i] = _cost(rows, whole, path[i], path[i + 1])
    return costs


@_compiled
def _turn(t: Any, start: int, length: int) -> None:  # pragma: no cover (compiled)
    """Turn round the `length` stops from place `start` on, and note it."""
    n = len(t.stops)
    i, j = start % n, (start + length - 1) % n
    for _ in range(length // 2):
        first, last = t.stops[i], t.stops[j]
        t.stops[i], t.stops[j] = last, first
        t.places[last], t.places[first] = i, j
        i = i + 1 if i + 1 < n else 0
        j = j - 1 if j else n - 1
    t.turns[t.state[TURNS] % len(t.turns)] = start % n, length
    t.state[TURNS] += 1
    t.state[WORK] += length


@_compiled
def _two_opt(t: Any, first: int, last: int) -> None:  # pragma: no cover (compiled)
    """Turn round what lies from stop `first` on to `last`, or all the rest, which comes to the same."""
    n = len(t.stops)
    length = (t.places[last] - t.places[first]) % n + 1
    if 2 * length > n:
        _turn(t, t.places[last] + 1, n - length)
    else:
        _turn(t, t.places[first], length)


@_compiled
def _or_opt(t: Any, a: int, length: int, way: int, before: int, last: bool) -> None:  # pragma: no cover (compiled)
    """Move the segment of `length` stops that ends at a, seen in the direction `way`, behind the stop `before`: with a
    first, or `last`."""
    n = len(t.stops)
    low = t.places[a] - (length - 1 if way == 1 else 0)
    right = (t.places[before] - (low + length - 1)) % n  # stops that it passes on one side, or on the other
    left = n - length - right
    if right <= left:
        _turn(t, low, length + right)
        _turn(t, low, right)
        low += right
    else:
        low -= left
        _turn(t, low, left + length)
        _turn(t, low + length, left)
    if (way == 1) == last:
        _turn(t, low, length)


@_compiled
def _push(t: Any, stop: int) -> None:  # pragma: no cover (compiled)
    if stop < len(t.queued) and not t.queued[stop]:
        t.queued[stop] = True
        t.queue[(t.state[HEAD] + t.state[HELD]) % len(t.queue)] = stop
        t.state[HELD] += 1


@_compiled
def _move(rows: Any, whole: Any, t: Any, a: int) -> float:  # pragma: no cover (compiled)
    """Make the best move that begins at row a; its gain, 0 if there is none."""
    n, dummy = len(t.stops), len(rows)
    best, best_way, best_c, best_length, best_side = LEAST_GAIN, 0, -1, 0, 0
    for way in (1, -1):  # the edge from a on, or back, is taken out
        b = t.stops[(t.places[a] + way) % n]
        taken_out = _cost(rows, whole, a, b)
        for k in range(-1, t.near.shape[1]):
            c = dummy if k < 0 else t.near[a, k]
            gain_1 = taken_out - _cost(rows, whole, a, c) if c >= 0 else 0.0
            if gain_1 <= LEAST_GAIN:
                if k < 0:
                    continue
                break
            d = t.stops[(t.places[c] + way) % n]
            gain = gain_1 + _cost(rows, whole, c, d) - _cost(rows, whole, b, d)
            if gain > best:
                best, best_way, best_c, best_length = gain, way, c, 0
            e = a
            for length in range(1, LONGEST_SEGMENT + 1):  # from a to e, and f behind it
                if length > 1:
                    e = t.stops[(t.places[e] - way) % n]
                f = t.stops[(t.places[e] - way) % n]
                if e in (dummy, c) or f == b:
                    break
                gain_2 = gain_1 + _cost(rows, whole, e, f) - _cost(rows, whole, b, f)
                for side in (1, -1):
                    d = t.stops[(t.places[c] + side) % n]
                    if (way * (t.places[a] - t.places[d])) % n < length:
                        continue  # in the segment
                    gain = gain_2 + _cost(rows, whole, c, d) - _cost(rows, whole, e, d)
                    if gain > best:
                        best, best_way, best_c, best_length, best_side = gain, way, c, length, side
    if best_c < 0:
        return 0.0
    c, b = best_c, t.stops[(t.places[a] + best_way) % n]
    if best_length == 0:
        d = t.stops[(t.places[c] + best_way) % n]
        if best_way == 1:
            _two_opt(t, b, c)
        else:
            _two_opt(t, a, d)
    else:
        e = t.stops[(t.places[a] - best_way * (best_length - 1)) % n]
        f = t.stops[(t.places[e] - best_way) % n]
        d = t.stops[(t.places[c] + best_side) % n]
        _or_opt(t, a, best_length, best_way, c if best_side == 1 else d, best_side == -1)
        _push(t, e)
        _push(t, f)
    _push(t, b)
    _push(t, c)
    _push(t, d)
    return best


@_compiled
def _descend(rows: Any, whole: Any, t: Any, work: int) -> float:  # pragma: no cover (compiled)
    """Moves from the rows of the queue until it is empty, a row's neighbours are not known, or `work` is done; the gain."""
    total = 0.0
    while t.state[HELD] and t.state[WORK] < work:
        a = t.queue[t.state[HEAD]]
        if not t.known[a]:
            break
        t.state[HEAD] = (t.state[HEAD] + 1) % len(t.queue)
        t.state[HELD] -= 1
        t.queued[a] = False
        gain = 1.0
        while gain > 0:
            gain = _move(rows, whole, t, a)
            total += gain
            t.state[WORK] += 100 + 10 * rows.shape[1]
    return total


@_compiled
def _shake(rows: Any, whole: Any, t: Any, work: int, random: Any) -> None:  # pragma: no cover (compiled)
    """Exchange two neighbouring segments, descend again, and take all of it back if the path is longer now; until
    `work` is done, or the path has not become shorter for `PATIENCE` exchanges a row."""
    n = len(t.stops)
    while t.state[WORK] < work and t.state[IDLE] < PATIENCE * n:
        drawn = np.empty(3, np.int64)
        for i in range(3):
            random[0] = random[0] * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
            drawn[i] = np.int64(random[0] >> np.uint64(33))
        longest = min(LONGEST_SHAKEN, (n - 1) // 3)
        start, one, two = drawn[0] % n, 1 + drawn[1] % longest, 1 + drawn[2] % longest
        a, b = t.stops[start], t.stops[(start + 1) % n]
        c, d = t.stops[(start + one) % n], t.stops[(start + one + 1) % n]
        e, f = t.stops[(start + one + two) % n], t.stops[(start + one + two + 1) % n]
        t.state[TURNS] = 0
        total = _cost(rows, whole, a, b) + _cost(rows, whole, c, d) + _cost(rows, whole, e, f)
        total -= _cost(rows, whole, a, d) + _cost(rows, whole, e, b) + _cost(rows, whole, c, f)
        _turn(t, start + 1, one + two)
        _turn(t, start + 1, two)
        _turn(t, start + 1 + two, one)
        for stop in (a, b, c, d, e, f):
            _push(t, stop)
        total += _descend(rows, whole, t, ENDLESS)
        t.state[IDLE] += 1
        if total > LEAST_GAIN:
            t.state[IDLE] = 0
        elif total < 0 and t.state[TURNS] < len(t.turns):
            for i in range(t.state[TURNS] - 1, -1, -1):
                _turn(t, t.turns[i, 0], t.turns[i, 1])
                t.state[TURNS] = i


def improved_path(
    rows: NDArray[np.float64], path: NDArray[np.int64], deadline: float, whole: float | None = 1.0
) -> NDArray[np.int64]:
    """A path of no more cost, the sum over consecutive rows of `whole` minus their dot product, or of their distance.

    Args:
        rows: (n, entries), each of length 0 or the root of `whole`; for distances, of moderate size (`even_rows`).
        path: (n,) a permutation of the rows.
        deadline: of `time.monotonic()`; with enough time the result depends on the other arguments only.
        whole: None: the cost is the distance.

    Returns:
        (n,) the path; either end may come first.
    """
    n = len(rows)
    if n < LEAST_ROWS or time.monotonic() >= deadline:
        return path
    t = _tour(path, _edges(rows, whole, path))
    tree = build_tree(rows) if whole in (None, 1.0) and has_tree(*rows.shape) else None
    k, work, random = t.near.shape[1], 0, np.ones(1, np.uint64)
    while t.state[HELD] and time.monotonic() < deadline:
        if not t.known[t.queue[t.state[HEAD]]]:
            ahead = t.queue[(t.state[HEAD] + np.arange(min(t.state[HELD], BATCH))) % n]
            wanted = ahead[~t.known[ahead]]
            if tree:
                t.near[wanted] = nearest(tree, rows, wanted, k, whole)
            else:
                found = np.full((len(wanted), k), -1, np.int64)
                _scan(np.ascontiguousarray(rows.T), wanted, whole is None, found)
                t.near[wanted] = found
            t.known[wanted] = True
        work = int(t.state[WORK]) + WORK_OF_TURN
        _descend(rows, whole, t, work)
    while t.state[IDLE] < PATIENCE * (n + 1) and time.monotonic() < deadline:
        _shake(rows, whole, t, int(t.state[WORK]) + WORK_OF_TURN, random)
    shorter = np.roll(t.stops, -t.places[n])[1:]
    return shorter if path_sum(rows, whole, shorter) < path_sum(rows, whole, path) else path


def compile_search(whole: float | None = 1.0) -> None:
    """Have everything compiled, or read from the compiler's cache, that `improved_path` needs for this `whole`."""
    for n, entries in ((LEAST_ROWS, 9), (TREE_FROM, 9)):
        rows = np.zeros((n, entries))
        rows[np.arange(n), np.arange(n) % entries] = 1.0
        improved_path(rows, np.arange(n), time.monotonic() + 1e6, whole)


def _tour(path: NDArray[np.int64], costs: NDArray[np.float64]) -> Tour:
    """The tour of a path whose edges have these costs; the queue begins where they are high, as most is gained there."""
    n = len(path)
    stops, places, worst = np.append(path, n), np.empty(n + 1, np.int64), np.zeros(n)
    places[stops] = np.arange(n + 1)
    np.maximum.at(worst, path[:-1], costs)
    np.maximum.at(worst, path[1:], costs)
    return Tour(
        stops=stops,
        places=places,
        near=np.full((n, min(NEIGHBOURS, n - 1)), -1, np.int32),
        known=np.zeros(n, np.bool_),
        queue=np.argsort(-worst, kind="stable"),
        queued=np.ones(n, np.bool_),
        turns=np.empty((TURNS_KEPT, 2), np.int64),
        state=np.array([0, n, 0, 0, 0]),
    )


@_compiled
def _scan(values: Any, wanted: Any, by_distance: bool, out: Any) -> None:  # pragma: no cover (compiled)
    """See `nearest`; `values`: the rows' entries, (entries, n)."""
    (d, n), k = values.shape, out.shape[1]
    similarities, best = np.empty(n), np.empty(k)
    for query in range(len(wanted)):
        similarities[:] = 0.0
        for j in range(d):
            own = values[j, wanted[query]]
            if by_distance:
                for i in range(n):
                    difference = values[j, i] - own
                    similarities[i] -= difference * difference
            else:
                for i in range(n):
                    similarities[i] += values[j, i] * own
        best[:] = -np.inf
        for i in range(n):
            if similarities[i] > best[k - 1] and i != wanted[query]:
                at = k - 1
                while at > 0 and best[at - 1] < similarities[i]:
                    best[at], out[query, at] = best[at - 1], out[query, at - 1]
                    at -= 1
                best[at], out[query, at] = similarities[i], i
