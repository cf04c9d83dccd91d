"""How channels run through a network: which places of which tensors must change places together.

A network is traced and run once. Each axis of a tensor that holds channels (of an activation, a parameter, a buffer) has
an `axis` number; each operation *ties* places of the axes it joins: a convolution its input's channels to the second axis
of its weight, a sum the channels of its terms to those of the result. What is not understood is *pinned*: it keeps its
order, and that is always right. Axes without a number (images, pixels, heads of attention) keep theirs, too.

Whatever permutes all axes so that ties lead to ties, and pinned places to themselves, leaves the function as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Axis = int | None


@dataclass(frozen=True)
class Flow:
    """A tensor's shape, and the numbers of its axes (None: one that keeps its order)."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]


class Ties:
    """Axes and what ties them.

    Attributes:
        sizes: of each axis.
        tensors: (name, dimension) of a parameter or buffer -> its axis.
        ties: pairs (places, places) of the same length, a place being (axis number, index); no place occurs twice on
            one side of a tie.
        pinned: axes' places that stay.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.tensors: dict[tuple[str, int], int] = {}
        self.ties: list[tuple[int, np.ndarray, int, np.ndarray]] = []
        self.pinned: list[tuple[int, np.ndarray]] = []

    def new(self, size: int) -> int:
        """A new axis."""
        self.sizes.append(size)
        return len(self.sizes) - 1

    def of_tensor(self, name: str, tensor: Tensor) -> Flow:
        """A parameter or buffer; all its axes have numbers."""
        for dim, size in enumerate(tensor.shape):
            if (name, dim) not in self.tensors:
                self.tensors[name, dim] = self.new(size)
        shape = tuple(tensor.shape)
        return Flow(shape, tuple(self.tensors[name, dim] for dim in range(len(shape))))

    def pin(self, axis: Axis, places: Any = None) -> None:
        """Keep these places (None: all) of an axis where they are."""
        if axis is not None:
            self.pinned.append((axis, np.arange(self.sizes[axis]) if places is None else np.asarray(places)))

    def pin_flow(self, flow: Flow, *but: int) -> None:
        """Keep the order of all axes of a tensor, `but` some dimensions."""
        for dim, axis in enumerate(flow.axes):
            if dim not in but:
                self.pin(axis)

    def tie(self, a: Axis, b: Axis, places_a: Any = None, places_b: Any = None) -> None:
        """Place places_a[i] of axis a goes with places_b[i] of b (None: with all, in order). One that keeps its order
        makes the other keep it."""
        if a is None or b is None:
            self.pin(a, places_a)
            self.pin(b, places_b)
            return
        left = np.arange(self.sizes[a]) if places_a is None else np.asarray(places_a)
        right = np.arange(self.sizes[b]) if places_b is None else np.asarray(places_b)
        assert len(left) == len(right)
        if a != b or not np.array_equal(left, right) or places_a is not None:
            self.ties.append((a, left, b, right))


def flows_in(value: Any) -> list[Flow]:
    """All flows in arguments of any nesting."""
    if isinstance(value, Flow):
        return [value]
    if isinstance(value, slice):
        return flows_in((value.start, value.stop, value.step))
    if isinstance(value, list | tuple):
        return [flow for item in value for flow in flows_in(item)]
    return [flow for item in value.values() for flow in flows_in(item)] if isinstance(value, dict) else []


def as_they_are(value: Any) -> Any:
    """The same with tensors replaced by flows that keep their order."""
    if isinstance(value, Tensor):
        return Flow(tuple(value.shape), (None,) * value.dim())
    if isinstance(value, list | tuple):
        return tuple(as_they_are(item) for item in value)
    if isinstance(value, dict):
        return {key: as_they_are(item) for key, item in value.items()}
    return value
