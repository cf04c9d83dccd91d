"""Orderings: which kernel takes which place in its layer.

The weights stay where they are and the coordinates move: the kernel that the path visits at position p gets the
(filter, channel) of row p, so that walking the coordinates walks the kernels along the path.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from nern.errors import NernError, unknown_name
from nern.ordering.greedy import comparable_rows, greedy_filter_path, greedy_path, greedy_walk, unit_rows
from nern.ordering.improve import compile_search, improved_path, path_sum
from nern.registry import ORDERINGS
from nern.untrusted import parse_json

Shapes = Sequence[tuple[int, int, int, int]]
Array = NDArray[Any]
Layer = Mapping[str, Array]  # a layer's permutations by name
METRICS = ("cosine", "distance")


@dataclass(frozen=True)
class PathCost:
    """Cost of all paths (see `path_cost`): of the greedy ones, and of those that were kept, by the same metric."""

    greedy: float
    final: float
    metric: str = "cosine"

    def __str__(self) -> str:
        if self.final >= self.greedy:
            return f"path cost ({self.metric}) {self.final:,.1f}"
        change = self.final / self.greedy - 1
        return f"path cost ({self.metric}) {self.final:,.1f}, improved from {self.greedy:,.1f} ({change:+.1%})".replace(
            "%", " %"
        )

    def to_json(self) -> str:
        """As a file's metadata keep it, beside the metric."""
        return json.dumps([self.greedy, self.final])

    @staticmethod
    def from_json(text: str, metric: str = "cosine") -> PathCost:
        """Raises NernError for what `to_json` does not write."""
        try:
            greedy, final = (float(value) for value in parse_json(text))
        except (ValueError, TypeError) as error:
            raise NernError(f"{text[:40]!r} is not a path cost ({error})") from error
        if not (math.isfinite(greedy) and math.isfinite(final)):
            raise NernError(f"{text!r} is not a path cost (two finite numbers)")
        return PathCost(greedy, final, metric)


class Ordering:
    """An ordering of all layers: base of the registered ones, and the one of them ('none') that keeps every kernel in its
    place.

    Args:
        layers: of each layer, its permutations by name (see `permutations`), unchecked.

    Attributes:
        mode: its registered name.
        metric: what makes kernels neighbours in it, 'cosine' or 'distance'.
        cost: how long its paths are, if known.
    """

    mode: ClassVar[str] = "none"
    metric: str = "cosine"
    cost: PathCost | None = None

    def __init__(self, layers: Sequence[Mapping[str, Tensor]] = ()) -> None:
        self.layers = [dict(layer) for layer in layers]

    def __repr__(self) -> str:
        cost = "" if self.cost is None else f", {self.cost}"
        return f"{type(self).__name__}: ordering {self.mode!r} of {len(self.layers)} layers by {self.metric}{cost}"

    @classmethod
    def from_layers(cls, layers: Sequence[Mapping[str, Tensor]], shapes: Shapes) -> Ordering:
        """From each layer's permutations, checked against the layers' shapes. Raises NernError for what is no permutation of
        its layer, KeyError where a layer lacks one."""
        pairs = zip(layers, shapes, strict=True) if cls.mode != "none" else ()
        return cls([_checked(layer, cls.permutations(shape), index) for index, (layer, shape) in enumerate(pairs)])

    @staticmethod
    def permutations(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """What is stored of a layer of this shape: of each tensor its shape, permutations along the last axis."""
        return {}

    @staticmethod
    def path(layer: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
        """The kernel number (filter * c_in + channel) at each position of a layer."""
        return torch.arange(shape[0] * shape[1])

    @classmethod
    def solve_layer(cls, weight: Array, metric: str = "cosine") -> Layer:
        """Order one weight (filters, channels, height, width); `metric`: see `greedy_path`."""
        return {}

    @classmethod
    def improve_layer(cls, weight: Array, layer: Layer, deadline: float, metric: str = "cosine") -> Layer:
        """Shorter paths, found until `deadline` (of `time.monotonic()`)."""
        return layer

    @classmethod
    def layer_cost(cls, weight: Array, layer: Layer, metric: str = "cosine") -> float:
        """1 - cosine, or the distance, summed over consecutive kernels of the path."""
        path = np.asarray(cls.path(layer, weight.shape))
        return path_sum(_measured(_kernels(weight), metric), _whole(metric), path)

    def positions(self, shapes: Shapes) -> list[Int[Tensor, " kernels"]]:
        """Of each layer, the kernel number whose coordinates each kernel takes."""
        layers = self.layers or [{}] * len(shapes)
        return [_inverse(self.path(layer, shape)) for layer, shape in zip(layers, shapes, strict=True)]

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        return {f"{name}.{i}": order for i, layer in enumerate(self.layers) for name, order in layer.items()}

    def bits(self) -> float:
        """Least bits that any code needs for one of all such orderings: log2 of their number."""
        return sum((sum(_bits(order.shape) for order in layer.values()) for layer in self.layers), 0.0)


ORDERINGS.register("none")(Ordering)


@ORDERINGS.register("crossfilter")
class CrossFilterOrdering(Ordering):
    """One path through all kernels of a layer: `order[p]` is the kernel visited at position p."""

    mode = "crossfilter"

    @staticmethod
    def permutations(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"order": (shape[0] * shape[1],)}

    @staticmethod
    def path(layer: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
        return layer["order"]

    @classmethod
    def solve_layer(cls, weight: Array, metric: str = "cosine") -> Layer:
        return {"order": greedy_path(_kernels(weight), metric)}

    @classmethod
    def improve_layer(cls, weight: Array, layer: Layer, deadline: float, metric: str = "cosine") -> Layer:
        """See `Ordering.improve_layer`. Kernels of one entry are sorted: no path has fewer changes of sign, nor a smaller
        sum of differences."""
        kernels = _kernels(weight)
        if kernels.shape[1] == 1:
            return {"order": np.argsort(kernels[:, 0], kind="stable")}
        return {"order": improved_path(comparable_rows(kernels, metric), layer["order"], deadline, _whole(metric))}


@ORDERINGS.register("infilter")
class InFilterOrdering(Ordering):
    """A path through the channels of each filter, then one through the filters so arranged.

    `channel_order[f, p]`: channel of filter f visited at position p; `filter_order[p]`: filter at position p.
    """

    mode = "infilter"

    @staticmethod
    def permutations(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        return {"filter_order": shape[:1], "channel_order": shape[:2]}

    @staticmethod
    def path(layer: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
        filters, channels = layer["filter_order"], layer["channel_order"]
        return (filters[:, None] * shape[1] + channels[filters]).reshape(-1)

    @classmethod
    def solve_layer(cls, weight: Array, metric: str = "cosine") -> Layer:
        kernels = weight.reshape(*weight.shape[:2], -1)
        channels = np.stack([greedy_path(of_filter, metric) for of_filter in kernels])
        return {"filter_order": greedy_filter_path(_arranged(kernels, channels), metric), "channel_order": channels}

    @classmethod
    def improve_layer(cls, weight: Array, layer: Layer, deadline: float, metric: str = "cosine") -> Layer:
        """See `Ordering.improve_layer`: paths of channels, then of the filters so arranged. Kernels of one entry are
        sorted within each filter, and by cosine filters stay on the greedy path."""
        kernels = weight.reshape(*weight.shape[:2], -1)
        channels = _improved_channels(kernels, layer["channel_order"], deadline, metric)
        arranged = _arranged(kernels, channels)
        filters = greedy_filter_path(arranged, metric)
        if kernels.shape[2] > 1 or metric == "distance":
            rows = comparable_rows(arranged, metric).reshape(len(kernels), -1)
            filters = improved_path(rows, filters, deadline, _whole(metric, kernels.shape[1]))
        return {"filter_order": filters, "channel_order": channels}

    @classmethod
    def layer_cost(cls, weight: Array, layer: Layer, metric: str = "cosine") -> float:
        """1 - cosine, summed over consecutive channels of each filter, and over the kernels of consecutive filters; or the
        distances of consecutive channels and of consecutive filters as a whole, summed."""
        filters, channels = weight.shape[:2]
        arranged = _measured(_arranged(weight.reshape(filters, channels, -1), layer["channel_order"]), metric)
        within = sum(path_sum(rows, _whole(metric), np.arange(channels)) for rows in arranged)
        return within + path_sum(arranged.reshape(filters, -1), _whole(metric, channels), layer["filter_order"])


@ORDERINGS.register("infilter_path")
class InFilterPathOrdering(InFilterOrdering):
    """One walk through all kernels of a layer, filter by filter: as in-filter orderings, but where one filter's path of
    channels ends, the next one's begins nearby. For encodings that count kernels along the order."""

    mode = "infilter_path"

    @classmethod
    def solve_layer(cls, weight: Array, metric: str = "cosine") -> Layer:
        filters, channels = greedy_walk(weight.reshape(*weight.shape[:2], -1), metric)
        return {"filter_order": filters, "channel_order": channels}

    @classmethod
    def improve_layer(cls, weight: Array, layer: Layer, deadline: float, metric: str = "cosine") -> Layer:
        """See `Ordering.improve_layer`: the paths of channels, as `InFilterOrdering` has them."""
        kernels = weight.reshape(*weight.shape[:2], -1)
        return {**layer, "channel_order": _improved_channels(kernels, layer["channel_order"], deadline, metric)}

    @classmethod
    def layer_cost(cls, weight: Array, layer: Layer, metric: str = "cosine") -> float:
        return super(InFilterOrdering, cls).layer_cost(weight, layer, metric)


def solve_ordering(
    weights: Sequence[Tensor],
    mode: str,
    num_workers: int = 1,
    improve_seconds: float = 0.0,
    metric: str = "cosine",
) -> Ordering:
    """Order the kernels of these weights, (filters, channels, height, width) each, with the path's cost, `num_workers`
    layers side by side.

    Args:
        mode: a registered ordering.
        improve_seconds: time for improving the greedy paths, of all layers together.
        metric: what makes kernels neighbours, the cosine of their angle or their Euclidean 'distance'.

    Raises:
        NernError: unknown mode or metric; a weight with values that are not finite.
    """
    cls: type[Ordering] = ORDERINGS[mode]
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    shapes = [tuple(w.shape) for w in weights]
    for index, weight in enumerate(weights):
        if not torch.isfinite(weight).all():
            raise NernError(f"learnable weight {index} holds values that are not finite; its kernels cannot be ordered")

    def solve(index: int) -> tuple[Layer, float]:
        weight = _array(weights[index])
        layer = cls.solve_layer(weight, metric)
        return layer, cls.layer_cost(weight, layer, metric)

    by_size = sorted(range(len(weights)), key=lambda index: -weights[index].numel())
    with ThreadPoolExecutor(max_workers=num_workers) as pool:
        solved = dict(zip(by_size, pool.map(solve, by_size), strict=True))
    better = _improve(weights, cls, solved, num_workers, improve_seconds, metric) if improve_seconds > 0 else solved
    layers = [{name: torch.from_numpy(order) for name, order in better[i][0].items()} for i in range(len(weights))]
    ordering = cls.from_layers(layers, shapes)  # type: ignore[arg-type]
    ordering.metric = metric
    if mode != "none":
        greedy, final = (math.fsum(cost for _, cost in found.values()) for found in (solved, better))
        ordering.cost = PathCost(greedy, final, metric)
    return ordering


def ordering_bits(mode: str, shapes: Shapes) -> float:
    """`Ordering.bits` of any ordering of this mode of layers of these shapes, known before one is solved."""
    return sum(_bits(size) for shape in shapes for size in ORDERINGS[mode].permutations(shape).values())


def path_cost(weights: Sequence[Tensor], ordering: Ordering, metric: str | None = None) -> float:
    """How far consecutive kernels are apart: 1 - cosine, or the Euclidean distance, summed along the paths of all layers.
    `metric` None: the ordering's own.

    The paths are those of the ordering's mode: one through each layer; or one through each filter and one through the
    filters of a layer, over all their kernels; or, of 'none', the kernels as they are.
    """
    layers = ordering.layers or [{}] * len(weights)
    total = 0.0
    for weight, layer in zip(weights, layers, strict=True):
        arrays = {name: order.numpy() for name, order in layer.items()}
        total += ordering.layer_cost(_array(weight), arrays, metric or ordering.metric)
    return total


def _improve(
    weights: Sequence[Tensor],
    cls: type[Ordering],
    solved: Mapping[int, tuple[Layer, float]],
    num_workers: int,
    seconds: float,
    metric: str,
) -> dict[int, tuple[Layer, float]]:
    """Layers of no more cost. Time is shared by the number of weights; what small layers leave, larger ones get."""
    compile_search(_whole(metric))  # its time is not the search's
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


def _improved_channels(kernels: Array, paths: Array, deadline: float, metric: str) -> Array:
    """See `InFilterOrdering.improve_layer`."""
    if kernels.shape[2] == 1:
        return np.argsort(kernels[:, :, 0], axis=1, kind="stable")
    channels = np.empty_like(paths)
    for index, path in enumerate(paths):
        now = time.monotonic()
        until = now + (deadline - now) / (len(kernels) - index + 1)  # the filters' path is one more
        channels[index] = improved_path(comparable_rows(kernels[index], metric), path, until, _whole(metric))
    return channels


def _checked(layer: Mapping[str, Tensor], sizes: Mapping[str, tuple[int, ...]], index: int) -> dict[str, Tensor]:
    """A layer's permutations. Raises NernError for what is none of this size."""
    checked = {}
    for name, size in sizes.items():
        order, what = layer[name].long(), "cross-filter order" if name == "order" else name.replace("_", " ")
        if len(size) > 1 and tuple(order.shape) != size:
            raise NernError(f"the {what}s of layer {index} have shape {tuple(order.shape)}, not {size}")
        for number, row in enumerate(order if len(size) > 1 else [order]):
            if row.shape != size[-1:] or not torch.equal(row.sort().values, torch.arange(size[-1])):
                which = f"{what} {number}" if len(size) > 1 else f"the {what}"
                raise NernError(
                    f"{which} of layer {index} is not a permutation of 0..{size[-1] - 1} (it has shape "
                    f"{tuple(row.shape)})"
                )
        checked[name] = order
    return checked


def _inverse(order: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


def _bits(size: Sequence[int]) -> float:
    """Of permutations along the last axis of a tensor of this shape, log2 of their number."""
    return math.prod(size[:-1]) * math.lgamma(size[-1] + 1) / math.log(2)


def _array(weight: Tensor) -> Array:
    """In single or double precision, whichever holds its values."""
    weight = weight.detach().cpu()
    return (weight if weight.dtype in (torch.float32, torch.float64) else weight.float()).numpy()


def _kernels(weight: Array) -> Array:
    return weight.reshape(weight.shape[0] * weight.shape[1], -1)


def _whole(metric: str, channels: int = 1) -> float | None:
    """What `path_sum` takes dot products of `channels` unit vectors from; None: it sums distances."""
    return None if metric == "distance" else float(channels)


def _measured(kernels: Array, metric: str) -> Array:
    """What `layer_cost` compares: unit vectors, or the kernels in their own size."""
    return np.array(kernels, np.float64, order="C") if metric == "distance" else unit_rows(kernels)


def _arranged(kernels: Array, channel_order: Array) -> Array:
    return np.take_along_axis(kernels, channel_order[:, :, None], axis=1)
