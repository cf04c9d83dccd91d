"""A k-d tree over kernels, compiled: the most similar row by branch and bound, and deletion.

Rows lie in leaves of 16 and nodes have 16 children, each stored entry by entry (structure of arrays), so that a leaf's
similarities and a node's bounds are each one vectorised loop. Rows are compared by the plain path's arithmetic, and
pruning never changes which row is found:

- Similarity by cosine, x . q of unit vectors, is 1 - |x - q|**2 / 2: the distance to a child's bounding box bounds the
  similarity of everything in it. `SLACK` covers the rounding of both sides.
- Similarity by distance is -|x - q|**2. A box's distance is summed as a row's is, from parts that are no larger, and
  rounding keeps that order: nothing need be added.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nern.compiled import compiled

_compiled = compiled(error_model="numpy")
_inlined = compiled(error_model="numpy", forceinline=True)  # by LLVM

WIDTH = 16  # rows of a leaf, children of a node
SLACK = 2e-13  # rounding of 2 - 2 x . q and of |x - q|**2 for up to 25 entries, some times over
LEVELS = 16
MOST_ENTRIES = 25  # of kernels for which trees pay
TREE_FROM = 2048  # rows of up to 9 entries; below, looking at all is faster
WIDE_TREE_FROM = 32768  # rows of more entries: boxes bound them less well
MOST_DEVIATION = 1e-14  # of a squared length from 1; rounding leaves 3e-15 for 25 entries
MOST_VISITS = 256
ANYWHERE = 1e300  # beyond all squared distances of rows of moderate size


class Tree(NamedTuple):
    """Arrays of a tree. Leaf l holds `rows[l]` (-1: none) with `values[l]`; node k of level v has the leaves, or the
    nodes of level v - 1, from 16 k on as children; its boxes are `boxes[starts[v] + k]`."""

    values: Any  # (leaves, entries, 16); NaN where there is no row
    rows: Any  # (leaves, 16)
    live: Any  # (leaves,) rows left
    boxes: Any  # (nodes, 2, entries, 16) lower and upper corners; inf and -inf where there is no child
    starts: Any  # (levels,)


@_compiled
def _select(keys: Any, order: Any, start: int, stop: int, middle: int) -> None:  # pragma: no cover (compiled)
    """Hoare's selection: in `order[start:stop]` the rows with the smallest keys come before `middle`."""
    low, high = start, stop - 1
    while low < high:
        a, b, c = keys[low], keys[(low + high) // 2], keys[high]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while pivot < keys[j]:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                order[i], order[j] = order[j], order[i]
                i += 1
                j -= 1
        if middle <= j:
            high = j
        elif middle >= i:
            low = i
        else:
            return


@_compiled
def _arrange(points: Any) -> Any:  # pragma: no cover (compiled)
    """Order of the points in which every aligned group of 16 * 2**k is a cell: split at the axis of most variance."""
    n, d = points.shape
    order, keys = np.arange(n), np.empty(n)
    starts, stops, depth = np.empty(64, np.int64), np.empty(64, np.int64), 1
    starts[0], stops[0] = 0, n
    while depth:
        depth -= 1
        start, stop = starts[depth], stops[depth]
        if stop - start <= WIDTH:
            continue
        left = WIDTH
        while 2 * left < stop - start:
            left *= 2
        step = max(1, (stop - start) // 256)
        axis, most = 0, -1.0
        for j in range(d):
            total, squares, count = 0.0, 0.0, 0
            for i in range(start, stop, step):
                value = points[order[i], j]
                total += value
                squares += value * value
                count += 1
            spread = squares - total * total / count
            if spread > most:
                axis, most = j, spread
        for i in range(start, stop):
            keys[i] = points[order[i], axis]
        _select(keys, order, start, stop, start + left)
        starts[depth], stops[depth] = start, start + left
        starts[depth + 1], stops[depth + 1] = start + left, stop
        depth += 2
    return order


@_compiled
def _build(points: Any, numbers: Any, axes: Any) -> Any:  # pragma: no cover (compiled)
    """Tree of points (n, d) that are called `numbers`; `axes`: a tuple as long as the tree is wide, at least d."""
    n, d = points.shape
    order = _arrange(points)
    leaves = (n + WIDTH - 1) // WIDTH
    starts, levels, nodes, size = np.zeros(LEVELS, np.int64), 0, 0, leaves
    while levels == 0 or size > 1:
        size = (size + WIDTH - 1) // WIDTH
        starts[levels] = nodes
        nodes += size
        levels += 1
    values = np.full((leaves, len(axes), WIDTH), np.nan)
    rows = np.full((leaves, WIDTH), -1, np.int64)
    live = np.zeros(leaves, np.int64)
    boxes = np.empty((nodes, 2, len(axes), WIDTH))
    boxes[:, 0], boxes[:, 1] = np.inf, -np.inf
    for place in range(n):
        leaf, slot, point = place // WIDTH, place % WIDTH, order[place]
        rows[leaf, slot] = numbers[point]
        live[leaf] += 1
        for j in range(len(axes)):
            value = points[point, j] if j < d else 0.0
            values[leaf, j, slot] = value
            node, child = leaf // WIDTH, leaf % WIDTH
            boxes[node, 0, j, child] = min(boxes[node, 0, j, child], value)
            boxes[node, 1, j, child] = max(boxes[node, 1, j, child], value)
    for level in range(1, levels):
        for below in range(starts[level] - starts[level - 1]):
            node, child = starts[level] + below // WIDTH, below % WIDTH
            for j in range(len(axes)):
                boxes[node, 0, j, child] = boxes[starts[level - 1] + below, 0, j].min()
                boxes[node, 1, j, child] = boxes[starts[level - 1] + below, 1, j].max()
    return Tree(values, rows, live, boxes, starts[:levels].copy())


@_inlined
def _similarities(values: Any, q: Any, out: Any, axes: Any, whole: Any) -> None:  # pragma: no cover (compiled)
    """Dot products of a leaf's rows with q, or minus their squared distances, each summed in the order of the entries."""
    if whole is None:
        for i in range(WIDTH):
            total = 0.0
            for j in range(len(axes)):
                difference = values[j, i] - q[j]
                total -= difference * difference
            out[i] = total
    else:
        for i in range(WIDTH):
            total = 0.0
            for j in range(len(axes)):
                total += values[j, i] * q[j]
            out[i] = total


@_inlined
def _distances(boxes: Any, q: Any, out: Any, axes: Any) -> None:  # pragma: no cover (compiled)
    """Least squared distance of q from each child's box."""
    for i in range(WIDTH):
        total = 0.0
        for j in range(len(axes)):
            below, above = boxes[0, j, i] - q[j], q[j] - boxes[1, j, i]
            gap = below if below > above else above
            gap = gap if gap > 0.0 else 0.0
            total += gap * gap
        out[i] = total


class Scratch(NamedTuple):
    """What a search works with: the nodes still to look at, nearest last, and a block of 16 results."""

    far: Any
    index: Any
    level: Any
    block: Any


@_compiled
def _scratch() -> Any:  # pragma: no cover (compiled)
    size = WIDTH * LEVELS
    return Scratch(np.empty(size), np.empty(size, np.int64), np.empty(size, np.int64), np.empty(WIDTH))


@_inlined
def _expand(tree: Any, depth: int, q: Any, limit: float, s: Any, axes: Any) -> int:  # pragma: no cover (compiled)
    """Replace the node at `depth` of the stack by its children within `limit`, the nearest on top; the new depth."""
    index, level = s.index[depth], s.level[depth]
    _distances(tree.boxes[tree.starts[level] + index], q, s.block, axes)
    base = depth
    for child in range(WIDTH):
        far = s.block[child]
        if far <= limit:
            at = depth
            while at > base and s.far[at - 1] < far:
                s.far[at], s.index[at] = s.far[at - 1], s.index[at - 1]
                at -= 1
            s.far[at], s.index[at] = far, index * WIDTH + child
            s.level[depth] = level - 1
            depth += 1
    return depth


@_inlined
def _limit(best: float, whole: Any) -> float:  # pragma: no cover (compiled)
    """Squared distance beyond which nothing is looked at, once something of similarity `best` is found; finite, as what
    does not exist is at infinity."""
    if whole is None:
        return -best if best > -ANYWHERE else ANYWHERE
    if best < -2.0:
        return 4.0 + SLACK
    return 2.0 - 2.0 * best + SLACK


@_inlined
def _best_of_leaf(
    tree: Any, leaf: int, q: Any, best: float, row: int, slot: int, s: Any, axes: Any, whole: Any
) -> Any:  # pragma: no cover
    """`best`, its row and its slot, or those of a row of this leaf that is more similar, or as similar and lower."""
    _similarities(tree.values[leaf], q, s.block, axes, whole)
    hits = 0
    for i in range(WIDTH):
        hits += s.block[i] >= best
    if hits:
        for i in range(WIDTH):
            if s.block[i] > best or (s.block[i] == best and tree.rows[leaf, i] < row):
                best, row, slot = s.block[i], tree.rows[leaf, i], leaf * WIDTH + i
    return best, row, slot


@_inlined
def _search(
    tree: Any, q: Any, near: int, best: float, row: int, s: Any, axes: Any, whole: Any
) -> Any:  # pragma: no cover
    """Row most similar to q, the lowest of several, and its place (leaf * 16 + slot; -1: it is the `row` given).

    Args:
        near: a leaf to begin with.
        best, row: similarity of a row that is not in the tree (-inf: there is none), and that row.
    """
    best, row, place = _best_of_leaf(tree, near, q, best, row, -1, s, axes, whole)
    limit = _limit(best, whole)
    s.far[0], s.index[0], s.level[0] = 0.0, 0, len(tree.starts) - 1
    depth = 1
    while depth:
        depth -= 1
        if s.far[depth] > limit:
            continue
        if s.level[depth] >= 0:
            depth = _expand(tree, depth, q, limit, s, axes)
        elif s.index[depth] != near:
            best, row, place = _best_of_leaf(tree, s.index[depth], q, best, row, place, s, axes, whole)
            limit = _limit(best, whole)
    return row, place


@_compiled
def _remove(tree: Any, place: int, places: Any) -> None:  # pragma: no cover (compiled)
    """Take the row at `place` out; the last row of its leaf takes its slot."""
    leaf, slot = place // WIDTH, place % WIDTH
    tree.live[leaf] -= 1
    last = tree.live[leaf]
    for j in range(tree.values.shape[1]):
        tree.values[leaf, j, slot] = tree.values[leaf, j, last]
        tree.values[leaf, j, last] = np.nan
    moved = tree.rows[leaf, last]
    tree.rows[leaf, slot] = moved
    tree.rows[leaf, last] = -1
    places[moved] = place
    if last == 0:
        for j in range(tree.values.shape[1]):
            tree.boxes[leaf // WIDTH, 0, j, leaf % WIDTH] = np.inf
            tree.boxes[leaf // WIDTH, 1, j, leaf % WIDTH] = -np.inf


@_compiled
def _rebuilt(tree: Any, count: int, places: Any, axes: Any) -> Any:  # pragma: no cover (compiled)
    """A tree of the rows left: full leaves, tight boxes."""
    points, numbers, kept = np.empty((count, len(axes))), np.empty(count, np.int64), 0
    for leaf in range(len(tree.rows)):
        for slot in range(tree.live[leaf]):
            for j in range(len(axes)):
                points[kept, j] = tree.values[leaf, j, slot]
            numbers[kept] = tree.rows[leaf, slot]
            kept += 1
    smaller = _build(points, numbers, axes)
    _note_places(smaller, places)
    return smaller


@_compiled
def _note_places(tree: Any, places: Any) -> None:  # pragma: no cover (compiled)
    for leaf in range(len(tree.rows)):
        for slot in range(tree.live[leaf]):
            places[tree.rows[leaf, slot]] = leaf * WIDTH + slot


@_compiled
def _nearest(
    tree: Any, queries: Any, numbers: Any, visits: int, axes: Any, whole: Any, out: Any
) -> None:  # pragma: no cover
    """Of each query the rows most similar to it, most similar first, into `out` (queries, k); -1 where there are no more.

    Args:
        queries, numbers: values (queries, d) and the rows' own numbers, which are left out.
        visits: leaves looked at for a query, at most.
    """
    k = out.shape[1]
    s, q, best = _scratch(), np.zeros(len(axes)), np.empty(k)
    for query in range(len(queries)):
        for j in range(queries.shape[1]):
            q[j] = queries[query, j]
        best[:], out[query] = -np.inf, -1
        limit = _limit(-np.inf, whole)
        s.far[0], s.index[0], s.level[0] = 0.0, 0, len(tree.starts) - 1
        depth, seen = 1, 0
        while depth and seen < visits:
            depth -= 1
            if s.far[depth] > limit:
                continue
            if s.level[depth] >= 0:
                depth = _expand(tree, depth, q, limit, s, axes)
                continue
            leaf = s.index[depth]
            _similarities(tree.values[leaf], q, s.block, axes, whole)
            seen += 1
            for i in range(WIDTH):
                if s.block[i] > best[k - 1] and tree.rows[leaf, i] != numbers[query]:
                    at = k - 1
                    while at > 0 and best[at - 1] < s.block[i]:
                        best[at], out[query, at] = best[at - 1], out[query, at - 1]
                        at -= 1
                    best[at], out[query, at] = s.block[i], tree.rows[leaf, i]
                    limit = _limit(best[k - 1], whole)


@_compiled
def _walk(points: Any, numbers: Any, following: Any, zeros: Any, axes: Any, whole: Any) -> Any:  # pragma: no cover
    """Greedy path from row 0 over rows in groups of equal ones.

    Args:
        points, numbers: of each group in the tree, the values (groups, d), and the first row's number.
        following: of each row the next one of its group, or -1.
        zeros: rows that are not in the tree, as their similarity to all is 0, in rising order.
        axes: see `_build`.
    """
    n, count, built = len(following), len(numbers), len(numbers)
    path, visited, places = np.empty(n, np.int64), np.zeros(n, np.bool_), np.full(n, -1, np.int64)
    tree = _build(points, numbers, axes)
    _note_places(tree, places)
    s, q = _scratch(), np.zeros(len(axes))
    row, place, zero, lowest = 0, places[0], 0, 0
    for position in range(n):
        path[position] = row
        visited[row] = True
        while lowest < n and visited[lowest]:
            lowest += 1
        if place < 0:  # a zero row: all others are as similar to it
            zero += 1
            row = lowest
            place = places[row] if row < n else -1
            continue
        leaf = place // WIDTH
        for j in range(len(axes)):
            q[j] = tree.values[leaf, j, place % WIDTH]
        after = following[row]
        if after >= 0:
            tree.rows[leaf, place % WIDTH] = after
            places[after] = place
        else:
            _remove(tree, place, places)
            count -= 1
            if 2 * count < built and built > WIDTH * WIDTH:
                tree = _rebuilt(tree, count, places, axes)
                built, leaf = count, 0
        best, row = (0.0, zeros[zero]) if zero < len(zeros) else (-np.inf, n)
        row, place = _search(tree, q, leaf, best, row, s, axes, whole)
    return path


def _axes(entries: int) -> tuple[int, ...]:
    """A tuple of the width that rows are padded to: compiled functions unroll their loops over its length."""
    return (0,) * (9 if entries <= 9 else MOST_ENTRIES)


def has_tree(n: int, entries: int) -> bool:
    """Whether the path over n kernels is found with a tree: many rows of few entries."""
    return n >= (TREE_FROM if entries <= 9 else WIDE_TREE_FROM) and 1 < entries <= MOST_ENTRIES


def tree_path(rows: NDArray[np.float64], whole: float | None = 1.0) -> NDArray[np.int64] | None:
    """The greedy path over rows, as `greedy._greedy_path` has it, ties included.

    Args:
        rows: (n, entries) with at most `MOST_ENTRIES` entries; compared by dot products, of length 1 or 0.
        whole: 1: the next row is the one of the largest dot product. None: of the least distance.

    Returns:
        (n,) the row at each position; None if the rows are too far from length 1 for the bounds (subnormal kernels).
    """
    n, by_distance = len(rows), whole is None
    zero = np.zeros(n, np.bool_) if by_distance else np.logical_not(rows.any(1))
    squares = np.square(rows).sum(1)
    if not by_distance and (np.abs(squares - 1) > MOST_DEVIATION)[~zero].any():
        return None
    order = np.lexsort(rows.T)  # equal rows side by side, ascending
    same = np.ones(n - 1, np.bool_)
    for entries in rows.T:
        same &= entries[order[1:]] == entries[order[:-1]]
    following, first = np.full(n, -1, np.int64), np.logical_not(zero)
    following[order[:-1][same]] = order[1:][same]
    first[order[1:][same]] = False
    numbers = np.flatnonzero(first)
    points = rows if len(numbers) == n else rows[numbers]
    return _walk(points, numbers, following, np.flatnonzero(zero), _axes(rows.shape[1]), whole)


def build_tree(rows: NDArray[np.float64]) -> Tree:
    """Tree of all rows (n, entries)."""
    return Tree(*_build(rows, np.arange(len(rows)), _axes(rows.shape[1])))


def nearest(
    tree: Tree, rows: NDArray[np.float64], wanted: NDArray[np.int64], k: int, whole: float | None = 1.0
) -> NDArray[np.int64]:
    """Of each `wanted` row of `rows` the k rows most similar to it, most similar first; -1 where there are no more.
    Exact, unless that takes more than `MOST_VISITS` leaves. See `tree_path` for `rows` and `whole`."""
    found = np.empty((len(wanted), k), np.int64)
    _nearest(tree, rows[wanted], wanted, MOST_VISITS, _axes(rows.shape[1]), whole, found)
    return found
