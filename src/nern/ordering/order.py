"""Orderings: which kernel takes which place in its layer.

The weights stay where they are and the coordinates move: the kernel that the path visits at position p gets the
(filter, channel) of row p, so that walking the coordinates walks the kernels along the path.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from nern.errors import NernError, unknown_name
from nern.ordering.cost import METRICS, PathCost
from nern.ordering.greedy import comparable_rows, greedy_filter_path, greedy_path, unit_rows
from nern.ordering.improve import compile_search, improved_path, path_sum
from nern.ordering.tree import has_tree
from nern.ordering.walk import by_distance, compile_links, greedy_walk, linked_walk, walked_rows
from nern.registry import ORDERINGS

Shapes = Sequence[tuple[int, int, int, int]]
Layer = Mapping[str, Tensor]

# `share` of layers above the limit: a third of the time, paths 2 % longer (1,048,576 random 3x3 kernels).
APPROXIMATE = 0.3


class Ordering(Protocol):
    """Contract of an ordering of all layers. `mode` is its registered name, `metric` what makes kernels neighbours in it
    ('cosine' or 'distance'), `cost` how long its paths are, if known.

    Its class has `solve_layer`, `improve_layer`, `layer_cost`, `path_length`, `permutations` and `from_layers`, as those
    below.
    """

    mode: str
    metric: str
    cost: PathCost | None

    def positions(self, shapes: Shapes) -> list[Int[Tensor, " kernels"]]:
        """Of each layer, the kernel number (filter * c_in + channel) whose coordinates each kernel takes."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        ...

    def bits(self) -> float:
        """Least bits that any code needs for one of all such orderings: log2 of their number."""
        ...


def _check_permutation(order: Tensor, size: int, what: str) -> Int[Tensor, " size"]:
    order = order.long()
    fits = order.dim() == 1 and len(order) == size and bool(((order >= 0) & (order < size)).all())
    if not fits or not torch.zeros(size, dtype=torch.bool).index_fill_(0, order, True).all():
        raise NernError(f"{what} is not a permutation of 0..{size - 1} (it has shape {tuple(order.shape)})")
    return order


def _inverse(orders: Int[Tensor, "*batch n"]) -> Int[Tensor, "*batch n"]:
    """Of each row of permutations, its inverse."""
    return torch.empty_like(orders).scatter_(-1, orders, torch.arange(orders.shape[-1]).expand_as(orders))


def _log2_factorial(n: int) -> float:
    return math.lgamma(n + 1) / math.log(2)


@ORDERINGS.register("crossfilter")
class CrossFilterOrdering:
    """One path through all kernels of a layer. `orders[l][p]` is the kernel visited at position p."""

    mode = "crossfilter"
    metric = "cosine"
    cost: PathCost | None = None

    def __init__(self, orders: Sequence[Tensor]) -> None:
        self.orders = list(orders)

    @staticmethod
    def solve_layer(weight: np.ndarray, share: float = 1.0, metric: str = "cosine") -> dict[str, Tensor]:
        """Order one weight (filters, channels, height, width); `share` and `metric`: see `greedy_path`."""
        return {"order": torch.from_numpy(greedy_path(_kernels(weight), share, metric))}

    @staticmethod
    def improve_layer(weight: np.ndarray, layer: Layer, deadline: float, metric: str = "cosine") -> dict[str, Tensor]:
        """A shorter path, found until `deadline` (of `time.monotonic()`). Kernels of one entry are sorted: no path has
        fewer changes of sign, nor a smaller sum of differences."""
        kernels = _kernels(weight)
        if kernels.shape[1] == 1:
            return {"order": torch.from_numpy(np.argsort(kernels[:, 0], kind="stable"))}
        rows, whole = comparable_rows(kernels, metric), _whole(metric)
        return {"order": torch.from_numpy(improved_path(rows, layer["order"].numpy(), deadline, whole))}

    @staticmethod
    def layer_cost(weight: np.ndarray, layer: Layer, metric: str = "cosine") -> float:
        """1 - cosine, or the distance, summed over consecutive kernels."""
        return path_sum(_measured(_kernels(weight), metric), _whole(metric), layer["order"].numpy())

    @staticmethod
    def path_length(shape: tuple[int, ...]) -> int:
        """Kernels in a path."""
        return shape[0] * shape[1]

    @staticmethod
    def permutations(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """Of each of a layer's tensors, its shape: permutations along the last axis."""
        return {"order": (shape[0] * shape[1],)}

    @staticmethod
    def from_layers(layers: Sequence[Mapping[str, Tensor]], shapes: Shapes) -> CrossFilterOrdering:
        """From each layer's tensors, checked against the shapes."""
        return CrossFilterOrdering(
            [
                _check_permutation(layer["order"], co * ci, f"the cross-filter order of layer {index}")
                for index, (layer, (co, ci, _, _)) in enumerate(zip(layers, shapes, strict=True))
            ]
        )

    def positions(self, shapes: Shapes) -> list[Int[Tensor, " kernels"]]:
        """See `Ordering.positions`."""
        return [_inverse(order) for order in self.orders]

    def tensors(self) -> dict[str, Tensor]:
        """See `Ordering.tensors`."""
        return {f"order.{index}": order for index, order in enumerate(self.orders)}

    def bits(self) -> float:
        """log2(n!) a layer of n kernels."""
        return sum(_log2_factorial(len(order)) for order in self.orders)


@ORDERINGS.register("infilter")
class InFilterOrdering:
    """A path through the channels of each filter, then one through the filters so arranged.

    `channel_orders[l][f, p]`: channel of filter f visited at position p; `filter_orders[l][p]`: filter at position p.
    """

    mode = "infilter"
    metric = "cosine"
    cost: PathCost | None = None

    def __init__(self, filter_orders: Sequence[Tensor], channel_orders: Sequence[Tensor]) -> None:
        self.filter_orders = list(filter_orders)
        self.channel_orders = list(channel_orders)

    @staticmethod
    def solve_layer(weight: np.ndarray, share: float = 1.0, metric: str = "cosine") -> dict[str, Tensor]:
        """Order one weight (filters, channels, height, width); `share` and `metric`: see `greedy_path`."""
        kernels = weight.reshape(*weight.shape[:2], -1)
        channel_order = np.stack([greedy_path(kernels_of_filter, share, metric) for kernels_of_filter in kernels])
        return {
            "filter_order": torch.from_numpy(greedy_filter_path(_arranged(kernels, channel_order), metric)),
            "channel_order": torch.from_numpy(channel_order),
        }

    @staticmethod
    def improve_layer(weight: np.ndarray, layer: Layer, deadline: float, metric: str = "cosine") -> dict[str, Tensor]:
        """Shorter paths of channels, then of the filters so arranged, found until `deadline` (of `time.monotonic()`).
        Kernels of one entry are sorted within each filter, and by cosine filters stay on the greedy path."""
        kernels = weight.reshape(*weight.shape[:2], -1)
        channels = _improved_channels(kernels, layer["channel_order"].numpy(), deadline, metric)
        arranged = _arranged(kernels, channels)
        filters = greedy_filter_path(arranged, metric)
        if kernels.shape[2] > 1 or metric == "distance":
            rows = comparable_rows(arranged, metric).reshape(len(kernels), -1)
            filters = improved_path(rows, filters, deadline, _whole(metric, kernels.shape[1]))
        return {"filter_order": torch.from_numpy(filters), "channel_order": torch.from_numpy(channels)}

    @staticmethod
    def layer_cost(weight: np.ndarray, layer: Layer, metric: str = "cosine") -> float:
        """1 - cosine, summed over consecutive channels of each filter, and over the kernels of consecutive filters; or the
        distances of consecutive channels and of consecutive filters as a whole, summed."""
        filters, channels = weight.shape[:2]
        arranged = _measured(_arranged(weight.reshape(filters, channels, -1), layer["channel_order"].numpy()), metric)
        within = sum(path_sum(rows, _whole(metric), np.arange(channels)) for rows in arranged)
        between = path_sum(arranged.reshape(filters, -1), _whole(metric, channels), layer["filter_order"].numpy())
        return within + between

    @staticmethod
    def path_length(shape: tuple[int, ...]) -> int:
        """Kernels in a path of channels."""
        return shape[1]

    @staticmethod
    def permutations(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """See `CrossFilterOrdering.permutations`."""
        return {"filter_order": shape[:1], "channel_order": shape[:2]}

    @classmethod
    def from_layers(cls, layers: Sequence[Mapping[str, Tensor]], shapes: Shapes) -> InFilterOrdering:
        """From each layer's tensors, checked against the shapes."""
        filter_orders, channel_orders = [], []
        for index, (layer, (co, ci, _, _)) in enumerate(zip(layers, shapes, strict=True)):
            channels = layer["channel_order"]
            if tuple(channels.shape) != (co, ci):
                raise NernError(
                    f"the channel orders of layer {index} have shape {tuple(channels.shape)}, not {(co, ci)}"
                )
            filter_orders.append(_check_permutation(layer["filter_order"], co, f"the filter order of layer {index}"))
            rows = [_check_permutation(r, ci, f"channel order {f} of layer {index}") for f, r in enumerate(channels)]
            channel_orders.append(torch.stack(rows))
        return cls(filter_orders, channel_orders)

    def positions(self, shapes: Shapes) -> list[Int[Tensor, " kernels"]]:
        """See `Ordering.positions`."""
        result = []
        for filters, channels, (_, ci, _, _) in zip(self.filter_orders, self.channel_orders, shapes, strict=True):
            result.append((_inverse(filters)[:, None] * ci + _inverse(channels)).flatten())
        return result

    def tensors(self) -> dict[str, Tensor]:
        """See `Ordering.tensors`."""
        named = {f"filter_order.{index}": order for index, order in enumerate(self.filter_orders)}
        return named | {f"channel_order.{index}": order for index, order in enumerate(self.channel_orders)}

    def bits(self) -> float:
        """log2(filters!) + filters * log2(channels!) a layer."""
        return sum(
            _log2_factorial(len(channels)) + len(channels) * _log2_factorial(channels.shape[1])
            for channels in self.channel_orders
        )


@ORDERINGS.register("infilter_path")
class InFilterPathOrdering(InFilterOrdering):
    """One walk through all kernels of a layer, filter by filter: as in-filter orderings, but where one filter's path of
    channels ends, the next one's begins nearby. For encodings that count kernels along the order."""

    mode = "infilter_path"

    @staticmethod
    def solve_layer(weight: np.ndarray, share: float = 1.0, metric: str = "cosine") -> dict[str, Tensor]:
        """Order one weight (filters, channels, height, width) as `greedy_walk` does."""
        filters, channels = greedy_walk(weight.reshape(*weight.shape[:2], -1), share, metric)
        return {"filter_order": torch.from_numpy(filters), "channel_order": torch.from_numpy(channels)}

    @staticmethod
    def improve_layer(weight: np.ndarray, layer: Layer, deadline: float, metric: str = "cosine") -> dict[str, Tensor]:
        """Shorter paths of channels, as `InFilterOrdering.improve_layer` has them, then shorter links between them."""
        kernels = weight.reshape(*weight.shape[:2], -1)
        channels = _improved_channels(kernels, layer["channel_order"].numpy(), deadline, metric)
        rows = np.take_along_axis(walked_rows(kernels, metric), channels[:, [0, -1], None], axis=1)
        whole = None if by_distance(kernels, metric) else 1.0
        ends = rows.reshape(-1, kernels.shape[2])
        filters, turned = linked_walk(ends, layer["filter_order"].numpy(), deadline, whole)
        channels[turned] = channels[turned, ::-1]
        return {"filter_order": torch.from_numpy(filters), "channel_order": torch.from_numpy(channels)}

    @staticmethod
    def layer_cost(weight: np.ndarray, layer: Layer, metric: str = "cosine") -> float:
        """1 - cosine, or the distance, summed over consecutive kernels of the walk."""
        filters, channels = layer["filter_order"].numpy(), layer["channel_order"].numpy()
        walk = (filters[:, None] * channels.shape[1] + channels[filters]).ravel()
        return path_sum(_measured(_kernels(weight), metric), _whole(metric), walk)


@ORDERINGS.register("none")
class NoOrdering:
    """Every kernel keeps its own coordinates; nothing is stored."""

    mode = "none"
    metric = "cosine"
    cost: PathCost | None = None

    @staticmethod
    def solve_layer(weight: np.ndarray, share: float = 1.0, metric: str = "cosine") -> dict[str, Tensor]:
        """Nothing to solve."""
        return {}

    @staticmethod
    def improve_layer(weight: np.ndarray, layer: Layer, deadline: float, metric: str = "cosine") -> dict[str, Tensor]:
        """Nothing to improve."""
        return {}

    @staticmethod
    def layer_cost(weight: np.ndarray, layer: Layer, metric: str = "cosine") -> float:
        """1 - cosine, or the distance, summed over consecutive kernels in the order in which they are."""
        rows = _measured(_kernels(weight), metric)
        return path_sum(rows, _whole(metric), np.arange(len(rows)))

    @staticmethod
    def path_length(shape: tuple[int, ...]) -> int:
        """There is no path."""
        return 0

    @staticmethod
    def permutations(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """There are none."""
        return {}

    @staticmethod
    def from_layers(layers: Sequence[Mapping[str, Tensor]], shapes: Shapes) -> NoOrdering:
        """Nothing to read."""
        return NoOrdering()

    def positions(self, shapes: Shapes) -> list[Int[Tensor, " kernels"]]:
        """See `Ordering.positions`."""
        return [torch.arange(co * ci) for co, ci, _, _ in shapes]

    def tensors(self) -> dict[str, Tensor]:
        """See `Ordering.tensors`."""
        return {}

    def bits(self) -> float:
        """Nothing is stored."""
        return 0.0


def solve_ordering(
    weights: Sequence[Tensor],
    mode: str,
    num_workers: int = 1,
    exact_limit: int | None = None,
    improve_seconds: float = 0.0,
    metric: str = "cosine",
) -> Ordering:
    """Order the kernels of these weights, with the path's cost, `num_workers` layers side by side.

    Args:
        weights: (filters, channels, height, width) each.
        mode: a registered ordering.
        num_workers: threads.
        exact_limit: layers with longer paths are ordered approximately (see `approximate_layers`); None: none is.
        improve_seconds: time for improving the greedy paths, of all layers together.
        metric: what makes kernels neighbours, the cosine of their angle or their Euclidean 'distance'.

    Raises:
        NernError: unknown mode or metric; a weight with values that are not finite.
    """
    cls = ORDERINGS[mode]
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    shapes = [tuple(w.shape) for w in weights]
    for index, weight in enumerate(weights):
        if not torch.isfinite(weight).all():
            raise NernError(f"learnable weight {index} holds values that are not finite; its kernels cannot be ordered")
    approximate = approximate_layers(shapes, mode, exact_limit)  # type: ignore[arg-type]

    def solve(index: int) -> tuple[Layer, float]:
        weight = _array(weights[index])
        layer = cls.solve_layer(weight, APPROXIMATE if index in approximate else 1.0, metric)
        return layer, cls.layer_cost(weight, layer, metric)

    by_size = sorted(range(len(weights)), key=lambda index: -weights[index].numel())
    with ThreadPoolExecutor(max_workers=num_workers) as pool:
        solved = dict(zip(by_size, pool.map(solve, by_size), strict=True))
    better = _improve(weights, cls, solved, num_workers, improve_seconds, metric) if improve_seconds > 0 else solved
    ordering: Ordering = cls.from_layers([better[index][0] for index in range(len(weights))], shapes)
    ordering.metric = metric
    if mode != "none":
        greedy, final = (math.fsum(cost for _, cost in layers.values()) for layers in (solved, better))
        ordering.cost = PathCost(greedy, final, metric)
    return ordering


def approximate_layers(shapes: Shapes, mode: str, exact_limit: int | None) -> list[int]:
    """The layers whose paths hold more than `exact_limit` kernels. Only trees search approximately: kernels of one entry
    and short paths are always exact, and so are kernels too large for trees."""
    length = ORDERINGS[mode].path_length
    return [
        index
        for index, shape in enumerate(shapes)
        if exact_limit is not None and length(shape) > exact_limit and has_tree(length(shape), shape[2] * shape[3])
    ]


def ordering_bits(mode: str, shapes: Shapes) -> float:
    """`Ordering.bits` of any ordering of this mode of layers of these shapes, known before one is solved."""
    sizes = [size for shape in shapes for size in ORDERINGS[mode].permutations(shape).values()]
    return sum(math.prod(size[:-1]) * _log2_factorial(size[-1]) for size in sizes)


def path_cost(weights: Sequence[Tensor], ordering: Ordering, metric: str | None = None) -> float:
    """How far consecutive kernels are apart: 1 - cosine, or the Euclidean distance, summed along the paths of all layers.
    `metric` None: the ordering's own.

    The paths are those of the ordering's mode: one through each layer; or one through each filter and one through the
    filters of a layer, over all their kernels; or, of 'none', the kernels as they are.
    """
    cls, tensors = ORDERINGS[ordering.mode], ordering.tensors()
    total = 0.0
    for index, weight in enumerate(weights):
        layer = {name.rpartition(".")[0]: t for name, t in tensors.items() if name.rpartition(".")[2] == str(index)}
        total += cls.layer_cost(_array(weight), layer, metric or ordering.metric)
    return total


def _improve(
    weights: Sequence[Tensor],
    cls: Any,
    solved: Mapping[int, tuple[Layer, float]],
    num_workers: int,
    seconds: float,
    metric: str,
) -> dict[int, tuple[Layer, float]]:
    """Layers of no more cost. Time is shared by the number of weights; what small layers leave, larger ones get."""
    for compiled in (compile_search, compile_links):
        compiled(_whole(metric))  # its time is not the search's
    lock, end = threading.Lock(), time.monotonic() + seconds
    waiting = sum(w.numel() for w in weights)

    def improve(index: int) -> tuple[Layer, float]:
        nonlocal waiting
        with lock:
            now, own = time.monotonic(), weights[index].numel()
            deadline = now + (end - now) * min(1.0, num_workers * own / waiting)
            waiting -= own
        weight = _array(weights[index])
        layer = cls.improve_layer(weight, solved[index][0], deadline, metric)
        cost = cls.layer_cost(weight, layer, metric)
        return (layer, cost) if cost <= solved[index][1] else solved[index]

    by_size = sorted(range(len(weights)), key=lambda index: weights[index].numel())
    with ThreadPoolExecutor(max_workers=num_workers) as pool:
        return dict(zip(by_size, pool.map(improve, by_size), strict=True))


def _array(weight: Tensor) -> np.ndarray:
    """In single or double precision, whichever holds its values."""
    weight = weight.detach().cpu()
    return (weight if weight.dtype in (torch.float32, torch.float64) else weight.float()).numpy()


def _kernels(weight: np.ndarray) -> np.ndarray:
    return weight.reshape(weight.shape[0] * weight.shape[1], -1)


def _whole(metric: str, channels: int = 1) -> float | None:
    """What `path_sum` takes dot products of `channels` unit vectors from; None: it sums distances."""
    return None if metric == "distance" else float(channels)


def _measured(kernels: np.ndarray, metric: str) -> np.ndarray:
    """What `layer_cost` compares: unit vectors, or the kernels in their own size."""
    return np.array(kernels, np.float64, order="C") if metric == "distance" else unit_rows(kernels)


def _improved_channels(kernels: np.ndarray, paths: np.ndarray, deadline: float, metric: str) -> np.ndarray:
    """See `InFilterOrdering.improve_layer`."""
    if kernels.shape[2] == 1:
        return np.argsort(kernels[:, :, 0], axis=1, kind="stable")
    channels = np.empty_like(paths)
    for index, path in enumerate(paths):
        now = time.monotonic()
        until = now + (deadline - now) / (len(kernels) - index + 1)  # the filters' path is one more
        channels[index] = improved_path(comparable_rows(kernels[index], metric), path, until, _whole(metric))
    return channels


def _arranged(kernels: np.ndarray, channel_order: np.ndarray) -> np.ndarray:
    return np.take_along_axis(kernels, channel_order[:, :, None], axis=1)
