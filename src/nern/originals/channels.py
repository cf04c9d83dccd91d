"""Permutations of whole channels that leave a network's function as it is, and so need not be stored.

The filters of a layer may change places if the inputs of the next layer do so with them, and everything in between: the
numbers of a batch norm, the other terms of a sum. `channel_groups` finds which channels may change places with which, by
the ties of `channel_ties`: places tied to each other, directly or not, make up a channel; channels whose places lie in
the same axes and are tied in the same way are interchangeable. Of the CIFAR ResNets' shortcuts that pad with zero channels,
say, this makes two groups of a stage's channels: those that the stage before gives, and the padded ones.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nern.errors import NernError, NernWarning
from nern.originals.base import Original
from nern.originals.channel_flow import channel_ties
from nern.originals.channel_ties import Ties
from nern.randomness import generator

SIDES = (32, 64, 28, 224, 8, 16, 96, 128, 299)  # of the noise images on which a network is tried
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}  # of the largest output, of two orders of the same sums

AxisOrders = Mapping[tuple[str, int], Tensor]


@dataclass(frozen=True)
class Slot:
    """Where the channels of a group lie: places[i], of axis `axis` of a parameter or buffer, are those of channel i."""

    tensor: str
    axis: int
    places: Tensor  # (channels, places of each)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that may change places with one another, in all slots at the same time."""

    size: int
    slots: tuple[Slot, ...]


def channel_groups(network: nn.Module, shape: Sequence[int] | None = None) -> list[ChannelGroup]:
    """The groups of a network's interchangeable channels, tried on noise. What is not understood keeps its order; where
    that is the whole network, or noise finds fault, a NernWarning says so.

    Args:
        network: of any kind; it is not changed.
        shape: of what it takes, without the batch axis; None: guessed from its first layer.
    """

    def none(reason: str) -> list[ChannelGroup]:
        what = f"the channels of {type(network).__name__} keep their order"
        warnings.warn(f"{what}: {reason}", NernWarning, stacklevel=3)
        return []

    trial = _Trial.of(network, shape)
    if trial is None:
        return none("it does not run on noise images, so that no permutation can be tried")
    try:
        with _quiet():
            ties = channel_ties(trial.copied(), trial.images)
    except Exception as error:  # whatever a network with control flow of its own raises
        return none(f"it cannot be traced ({type(error).__name__}: {' '.join(str(error).split())[:200]})")
    groups = groups_of(ties)
    if not groups:
        return none("none can be permuted together with what reads it")
    if trial.agrees(groups):
        return groups
    right = [group for group in groups if trial.agrees([group])]
    if not trial.agrees(right):
        return none("permuting them changes its output")
    warnings.warn(
        f"{len(groups) - len(right)} of {len(groups)} groups of channels of {type(network).__name__} keep their order: "
        "permuting them changes its output",
        NernWarning,
        stacklevel=2,
    )
    return right


def axis_orders(groups: Sequence[ChannelGroup], orders: Sequence[Tensor], network: nn.Module) -> AxisOrders:
    """The permutation of each (tensor, axis) that puts channel orders[g][p] of group g in the place of its channel p.

    Raises:
        NernError: an order that is no permutation of its group's channels.
    """
    tensors, found = _tensors(network), dict[tuple[str, int], Tensor]()
    for number, (group, order) in enumerate(zip(groups, orders, strict=True)):
        if not _is_permutation(order, group.size):
            raise NernError(f"order {number} is not a permutation of the {group.size} channels of its group")
        for slot in group.slots:
            whole = found.setdefault((slot.tensor, slot.axis), torch.arange(tensors[slot.tensor].shape[slot.axis]))
            whole[slot.places] = slot.places[order]
    return found


def permuted(network: nn.Module, orders: AxisOrders) -> nn.Module:
    """A copy of a network whose tensors are permuted: entry p of an axis is entry order[p] of the network's own.

    Raises:
        NernError: a tensor or axis that it lacks; an order that is no permutation of it.
    """
    twin = copy.deepcopy(network)
    tensors = _tensors(twin)
    with torch.no_grad():
        for (name, axis), order in orders.items():
            tensor = tensors.get(name)
            if tensor is None or not 0 <= axis < tensor.dim() or not _is_permutation(order, tensor.shape[axis]):
                has = f"of shape {tuple(tensor.shape)}" if tensor is not None else "not there"
                raise NernError(f"no order of axis {axis} of {name}, which is {has} in {type(network).__name__}")
            tensor.data = tensor.index_select(axis, order.to(tensor.device))  # others may share its storage
    return twin


def permuted_original(original: Original, orders: AxisOrders) -> Original:
    """The original with its network permuted. Raises NernError as `permuted` does."""
    twin = copy.copy(original)
    twin.network, twin._way = permuted(original.network, orders), None  # the fastest way is one of the old network
    return twin


def check_same_function(network: nn.Module, orders: AxisOrders, shape: Sequence[int] | None = None) -> None:
    """Raise NernError if a network so permuted gives other outputs on noise; one that does not run on it is trusted."""
    trial = _Trial.of(network, shape)
    if trial is not None and not trial.agrees_with(permuted(trial.network, orders)):
        raise NernError(
            f"these orders of channels change what {type(network).__name__} computes: they belong to another network"
        )


# --- channels from ties -----------------------------------------------------------------------------------------------


def groups_of(ties: Ties) -> list[ChannelGroup]:
    """Groups of two or more channels that lie in parameters or buffers."""
    neighbours, axis_of, index_of = _graph(ties)
    fixed = {place for axis, places in ties.pinned for place in (_starts(ties)[axis] + places).tolist()}
    alike: dict[tuple[int, ...], list[list[int]]] = {}
    seen = [False] * len(neighbours)
    for start in range(len(neighbours)):
        if seen[start] or not neighbours[start]:
            continue
        channel = _walk(start, neighbours)
        for place in channel:
            seen[place] = True
        if fixed.isdisjoint(channel):
            code, walk = _code(channel, neighbours, axis_of)
            alike.setdefault(code, []).append(walk)
    tensor_of = {axis: key for key, axis in ties.tensors.items()}
    groups = []
    for channels in alike.values():
        places: dict[tuple[str, int], list[list[int]]] = {}
        for column in zip(*channels, strict=True):  # the places of all channels that correspond
            key = tensor_of.get(axis_of[column[0]])
            if key is not None:
                places.setdefault(key, []).append([index_of[place] for place in column])
        if len(channels) > 1 and places:
            slots = (Slot(*key, torch.tensor(columns).T.contiguous()) for key, columns in sorted(places.items()))
            groups.append(ChannelGroup(len(channels), tuple(slots)))
    return groups


def _starts(ties: Ties) -> list[int]:
    starts = [0]
    for size in ties.sizes:
        starts.append(starts[-1] + size)
    return starts


def _graph(ties: Ties) -> tuple[list[list[tuple[int, int]]], list[int], list[int]]:
    """Of each place, numbered through all axes: (label, place) of what it is tied to, its axis, its index there. A label
    tells the tie and the direction; no place has two of the same, so that a walk can be repeated from another channel."""
    starts = _starts(ties)
    neighbours: list[list[tuple[int, int]]] = [[] for _ in range(starts[-1])]
    for label, (a, places_a, b, places_b) in enumerate(ties.ties):
        for one, other in zip((starts[a] + places_a).tolist(), (starts[b] + places_b).tolist(), strict=True):
            neighbours[one].append((2 * label, other))
            neighbours[other].append((2 * label + 1, one))
    axis_of = [axis for axis, size in enumerate(ties.sizes) for _ in range(size)]
    return neighbours, axis_of, [index for size in ties.sizes for index in range(size)]


def _walk(start: int, neighbours: list[list[tuple[int, int]]]) -> list[int]:
    """All places tied to `start`, the nearest first."""
    walk, reached = [start], {start}
    for place in walk:
        for _, other in neighbours[place]:
            if other not in reached:
                reached.add(other)
                walk.append(other)
    return walk


def _code(
    channel: list[int], neighbours: list[list[tuple[int, int]]], axis_of: list[int]
) -> tuple[tuple[int, ...], list[int]]:
    """A description of a channel's places and ties, which is the same for all that are interchangeable, and the walk over
    its places that it describes: place k of one channel corresponds to place k of another of the same code."""
    counts: dict[int, int] = {}
    for place in channel:
        counts[axis_of[place]] = counts.get(axis_of[place], 0) + 1
    axis = min(counts, key=lambda a: (counts[a], a))  # few places to begin at; of several the first
    walk = _walk(min(place for place in channel if axis_of[place] == axis), neighbours)
    number = {place: k for k, place in enumerate(walk)}
    code = []
    for place in walk:
        code += [axis_of[place], len(neighbours[place])]
        for label, other in neighbours[place]:
            code += [label, number[other]]
    return tuple(code), walk


# --- trials on noise --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Trial:
    """A copy of a network on the CPU, noise that it takes, and what it gives for it."""

    network: nn.Module
    images: Tensor
    outputs: list[Tensor]

    @staticmethod
    def of(network: nn.Module, shape: Sequence[int] | None) -> _Trial | None:
        """In double precision if it runs so; None: it does not run at all, or what it gives is not finite."""
        for dtype in TOLERANCES:
            try:
                trial = copy.deepcopy(network).cpu().eval().to(dtype)
            except Exception:  # whatever modules of others raise
                return None
            for images in _noise(network, shape):
                try:
                    outputs = _run(trial, images.to(dtype))
                except Exception:  # images of a size that it does not take
                    continue
                if outputs and all(torch.isfinite(output).all() for output in outputs):
                    return _Trial(trial, images.to(dtype), outputs)
        return None

    def copied(self) -> nn.Module:
        """The network, for what may leave traces in its modules; it shares its tensors."""
        tensors = [*self.network.parameters(), *self.network.buffers()]
        return copy.deepcopy(self.network, {id(tensor): tensor for tensor in tensors})

    def agrees(self, groups: Sequence[ChannelGroup]) -> bool:
        """Whether the outputs stay when the channels of these groups are permuted at random."""
        rng = generator(0, "channels")
        orders = [torch.randperm(group.size, generator=rng) for group in groups]
        return self.agrees_with(permuted(self.network, axis_orders(groups, orders, self.network)))

    def agrees_with(self, twin: nn.Module) -> bool:
        """Whether another network gives the same outputs, up to rounding."""
        pairs = list(zip(self.outputs, _run(twin, self.images), strict=True))
        tolerance = TOLERANCES[self.images.dtype]
        return all(
            a.shape == b.shape and float((a - b).abs().max()) <= tolerance * float(a.abs().max()) for a, b in pairs
        )


def _noise(network: nn.Module, shape: Sequence[int] | None) -> Iterator[Tensor]:
    """Two noise images of `shape`, or of one shape after another that the first layer may take."""
    shapes = [tuple(shape)] if shape is not None else []
    for module in network.modules() if shape is None else ():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            depth = (8,) if isinstance(module, nn.Conv3d) else ()
            sides = 1 if isinstance(module, nn.Conv1d) else 2
            shapes = [(module.in_channels, *depth, *[side] * sides) for side in SIDES]
            break
        if isinstance(module, nn.Linear):
            shapes = [(module.in_features,)]
            break
    for one in shapes:
        yield torch.randn(2, *one, generator=generator(0, "channels", one), dtype=torch.float64)


def _run(network: nn.Module, images: Tensor) -> list[Tensor]:
    """All tensors that it gives, in double precision."""
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        return [output.double() for output in _tensors_in(network(images.clone()))]


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of networks that are only tried are no news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in _tensors_in(item)]


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, shared ones by their first name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _is_permutation(order: Tensor, size: int) -> bool:
    return order.dim() == 1 and torch.equal(order.cpu().long().sort().values, torch.arange(size))
