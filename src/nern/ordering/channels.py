"""The order of whole channels: filters change places together with the inputs of the next layer.

The permuted network computes the same function, so that nothing of the order need be stored with the weights: a network of
permuted channels takes the original's place. Of each group of interchangeable channels (`originals.channels`) one path is
sought over the channels' vectors, all represented kernels that a channel gives or takes. How far two channels are apart
does not depend on the order of the channels of other groups: each group is a problem of its own.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from nern.errors import NernError, NernWarning
from nern.ordering.cost import PathCost
from nern.ordering.greedy import unit_rows
from nern.ordering.improve import compile_search, improved_path
from nern.ordering.order import Layer, NoOrdering, Shapes
from nern.ordering.store import (
    FILE_NAME,
    content_key,
    holds_ordering,
    is_number,
    read_ordering,
    save_ordering,
    warn_if_of_other_weights,
)
from nern.originals.base import Original
from nern.originals.channels import (
    AxisOrders,
    ChannelGroup,
    axis_orders,
    channel_groups,
    check_same_function,
    permuted_original,
)
from nern.registry import ORDERINGS

IMPROVE_SECONDS = 10.0  # at most, where the config gives no more; most networks need less than one
SCAN_SECONDS = 1e-9  # of one product of two numbers
ROUNDING = 1e-9  # of the largest dot product of many numbers, and more

Views = Callable[[list[Tensor]], list[Tensor]]
InputShapes = Sequence[Sequence[int] | None]


@ORDERINGS.register("channels", whole_network=True)
class ChannelOrdering:
    """Permutations of whole channels, one of each axis that has channels which change places. They are no part of what
    represents the network: they tell which of its equals is represented.

    `orders[n][name, axis][p]`: which entry of that axis of a parameter or buffer of network n comes to place p.

    It is made of networks, not of weights (registered with `whole_network`): see `channel_ordering`.
    """

    mode = "channels"
    metric = "cosine"
    cost: PathCost | None = None

    def __init__(self, orders: Sequence[AxisOrders] = ()) -> None:
        self.orders = list(orders)

    @staticmethod
    def solve_layer(weight: np.ndarray, share: float = 1.0, metric: str = "cosine") -> dict[str, Tensor]:
        """Raises NernError: the channels of a layer are not free without the next layer's."""
        raise NernError(
            "permute_mode 'channels' orders whole networks, not layers: `nern train` and nern.fit do so; choose "
            "'crossfilter' or 'infilter' here"
        )

    @staticmethod
    def improve_layer(weight: np.ndarray, layer: Layer, deadline: float, metric: str = "cosine") -> dict[str, Tensor]:
        """Nothing to improve in a layer alone."""
        return {}

    @staticmethod
    def layer_cost(weight: np.ndarray, layer: Layer, metric: str = "cosine") -> float:
        """As of 'none': the kernels lie in their order already."""
        return NoOrdering.layer_cost(weight, layer, metric)

    @staticmethod
    def path_length(shape: tuple[int, ...]) -> int:
        """There is no path through a layer's kernels."""
        return 0

    @staticmethod
    def from_layers(layers: Sequence[Mapping[str, Tensor]], shapes: Shapes) -> ChannelOrdering:
        """Of networks whose channels lie in their order already."""
        return ChannelOrdering()

    def positions(self, shapes: Shapes) -> list[Int[Tensor, " kernels"]]:
        """See `Ordering.positions`: every kernel of the permuted network keeps its own coordinates."""
        return [torch.arange(co * ci) for co, ci, _, _ in shapes]

    def tensors(self) -> dict[str, Tensor]:
        """See `Ordering.tensors`; names are NETWORK.AXIS.TENSOR."""
        return {
            f"{network}.{axis}.{name}": order
            for network, of_axes in enumerate(self.orders)
            for (name, axis), order in of_axes.items()
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], networks: int) -> ChannelOrdering:
        """From what `tensors` gives. Raises NernError for a name that it does not give for so many networks, and for what
        is not whole numbers."""
        orders: list[dict[tuple[str, int], Tensor]] = [{} for _ in range(networks)]
        for key, order in tensors.items():
            network, axis, name = (*key.split(".", 2), "", "")[:3]
            if not (is_number(network) and is_number(axis) and name and int(network) < networks):
                raise NernError(
                    f"{key!r} names no axis of {networks} network{'s' * (networks > 1)} (NETWORK.AXIS.TENSOR)"
                )
            if order.is_floating_point() or order.is_complex() or order.dtype == torch.bool:
                raise NernError(f"{key!r} holds {order.dtype}, not whole numbers")
            orders[int(network)][name, int(axis)] = order.long()
        return ChannelOrdering(orders)

    def bits(self) -> float:
        """The permuted networks compute what the original ones do: nothing of the order need be known."""
        return 0.0

    def applied(self, originals: Sequence[Original]) -> list[Original]:
        """The originals with permuted channels. Raises NernError if an order does not fit."""
        return [permuted_original(o, orders) for o, orders in zip(originals, self.orders, strict=True)]


def channel_ordering(
    originals: Sequence[Original],
    views: Views,
    path: str | Path | None = None,
    improve_seconds: float = 0.0,
    metric: str = "cosine",
    shapes: InputShapes | None = None,
) -> tuple[ChannelOrdering, str]:
    """The order of the channels of these networks, and where it came from, in words.

    Read from the folder (or file) `path` if it holds one, with a warning if it was solved for other weights; else solved,
    and written to `path`.

    Args:
        originals: with their channels as they are.
        views: of all represented weights, each as (filters, channels, height, width).
        improve_seconds: time for improving the greedy paths; below `IMPROVE_SECONDS` these.
        metric: what makes channels neighbours: 'cosine' (of their kernels, each) or 'distance' (of all in one vector).
        shapes: of what each network takes, without the batch axis; None: unknown.

    Raises:
        NernError: the stored ordering is of another mode or metric, damaged, does not fit, or is of another network.
    """
    shapes = [None] * len(originals) if shapes is None else shapes

    def key(ordering: ChannelOrdering) -> str:
        return content_key(views([w for o in ordering.applied(originals) for w in o.weights]), ordering.mode)

    if path is not None and holds_ordering(Path(path)):
        tensors, cost = read_ordering(path, ChannelOrdering.mode, metric)
        try:
            ordering = ChannelOrdering.from_tensors(tensors, len(originals))
            for original, orders, shape in zip(originals, ordering.orders, shapes, strict=True):
                check_same_function(original.network, orders, shape)
            found = key(ordering)
        except NernError as error:
            raise NernError(f"ordering {path} does not fit the network: {error}") from error
        ordering.metric, ordering.cost = metric, cost
        warn_if_of_other_weights(Path(path), found)
        return ordering, f"read from {path}"
    ordering, free = solve_channels(originals, improve_seconds, metric, shapes)
    channels, groups = sum(g.size for of_one in free for g in of_one), sum(len(of_one) for of_one in free)
    source = f"solved now; {channels:,} channels in {groups:,} groups are free"
    if path is not None:
        save_ordering(Path(path) / FILE_NAME, ordering, key(ordering))
        source += f", written to {path}"
    return ordering, source


def solve_channels(
    originals: Sequence[Original],
    improve_seconds: float = 0.0,
    metric: str = "cosine",
    shapes: InputShapes | None = None,
) -> tuple[ChannelOrdering, list[list[ChannelGroup]]]:
    """Paths over the channels of each group: greedy, then improved (arguments: see `channel_ordering`). Also each network's
    groups: those of which channels give or take represented kernels."""
    free = []
    for original, shape in zip(originals, shapes or [None] * len(originals), strict=True):
        names = set(original.weight_names)
        groups = channel_groups(original.network, shape)
        free.append([group for group in groups if any(slot.tensor in names for slot in group.slots)])
        if groups and not free[-1]:
            what = f"the represented channels of {original.name} keep their order"
            warnings.warn(f"{what}: none can be permuted together with what reads it", NernWarning, stacklevel=2)
    waiting = sum(group.size**2 for groups in free for group in groups)
    if waiting:
        compile_search(None if metric == "distance" else 1.0)  # its time is not the search's
    end = time.monotonic() + max(improve_seconds, IMPROVE_SECONDS)
    orders, greedy, final = [], 0.0, 0.0
    for original, groups in zip(originals, free, strict=True):
        weights = dict(zip(original.weight_names, original.weights, strict=True))
        paths = []
        for group in groups:
            costs, rows, whole = channel_costs(weights, group, metric)
            path, now = greedy_channels(costs), time.monotonic()
            seconds = max(end - now, 0.0) * group.size**2 / waiting
            better = path
            if group.size**3 * SCAN_SECONDS <= seconds:  # the search begins with a scan that does not look at the clock
                better = improved_path(rows, path, now + seconds, whole)
            waiting -= group.size**2
            before, after = (float(costs[p[:-1], p[1:]].sum()) for p in (path, better))
            paths.append(torch.from_numpy(better if after < before else path))
            greedy, final = greedy + before, final + min(before, after)
        orders.append(axis_orders(groups, paths, original.network))
    ordering = ChannelOrdering(orders)
    ordering.metric = metric
    ordering.cost = PathCost(greedy, final, metric) if any(free) else None
    return ordering, free


def channel_costs(
    weights: Mapping[str, Tensor], group: ChannelGroup, metric: str = "cosine"
) -> tuple[Float[NDArray, "channels channels"], Float[NDArray, "channels channels"], float | None]:
    """How far each two channels of a group are apart, and rows and `whole` with which `improved_path` finds the same.

    By cosine: 1 - cosine of two corresponding kernels, summed over all represented ones; kernels of one entry, which have
    no angle but a sign, are compared as one vector a slot, which counts as often. By distance: the Euclidean one of all
    represented weights of the channels.

    Args:
        weights: the represented weights, by name.
        group: channels some of whose slots lie in them.
        metric: 'cosine' or 'distance'.
    """
    products, count = np.zeros((group.size, group.size)), 0
    for slot in group.slots:
        if slot.tensor not in weights:
            continue
        weight = weights[slot.tensor].detach().cpu().double().numpy()
        kernels = np.moveaxis(weight.reshape(*weight.shape[:2], -1), slot.axis, 0)[slot.places.numpy()]
        kernels = kernels.reshape(group.size, -1, weight[0, 0].size)  # (channels, kernels of each, entries)
        count += kernels.shape[1]
        if metric == "cosine" and kernels.shape[2] > 1:
            kernels = unit_rows(kernels)
        elif metric == "cosine":
            kernels = unit_rows(kernels[:, :, 0]) * np.sqrt(kernels.shape[1])
        rows = kernels.reshape(group.size, -1)
        products += rows @ rows.T
    lengths = np.diag(products)
    if metric == "distance":
        whole, costs = None, np.sqrt(np.maximum(lengths[:, None] + lengths - 2 * products, 0.0))
    else:
        whole, costs = float(count), count - products
    scale = lengths.max() if whole is None and lengths.max() > 0 else 1.0
    # rows of the same dot products as the channels' vectors, which may be much longer; what is added to their lengths is
    # no part of a dot product and of next to no distance, and keeps the square root from failing at equal channels
    rows = np.linalg.cholesky(products / scale + np.eye(group.size) * max(lengths.max() / scale, 1.0) * ROUNDING)
    return costs, np.ascontiguousarray(rows), whole


def greedy_channels(costs: Float[NDArray, "channels channels"]) -> Int[NDArray, " channels"]:
    """From channel 0 always to the nearest one not yet visited, of several the first."""
    path, left = [0], np.ones(len(costs), bool)
    for _ in range(len(costs) - 1):
        left[path[-1]] = False
        path.append(int(np.argmin(np.where(left, costs[path[-1]], np.inf))))
    return np.array(path)
