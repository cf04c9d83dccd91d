"""What each operation does to channels: a rule takes (ties, what the operation gives, its arguments with flows in place of
tensors) and returns the flow of what it gives; None: called in a way that it does not understand.

`MODULES`, `FUNCTIONS` and `METHODS` hold all rules; what is in none of them is not understood. A rule of a module with
parameters takes the module and a function that gives a parameter's flow before its arguments.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nern.originals.channel_ties import Axis, Flow, Ties, flows_in

MOST_BLOCKS = 4096  # inputs of a fully connected layer for each channel of a flattened map; more are pinned


def elementwise(ties: Ties, value: Any, *args: Any, **kwargs: Any) -> Flow:
    """Every entry from the entries at its place, broadcast; also softmax, which treats all places of an axis alike."""
    given, shape = [*flows_in(args), *flows_in(kwargs)], tuple(value.shape)
    axes: list[Axis] = []
    for dim, size in enumerate(shape):
        from_end = len(shape) - dim
        here = [f.axes[-from_end] for f in given if len(f.shape) >= from_end and f.shape[-from_end] == size]
        tracked = [axis for axis in here if axis is not None]
        if size == 1 or not tracked:
            axes.append(None)
        elif len(tracked) < len(here):
            for axis in tracked:
                ties.pin(axis)
            axes.append(None)
        elif len(set(tracked)) == 1:
            axes.append(tracked[0])
        else:
            axes.append(ties.new(size))
            for axis in tracked:
                ties.tie(axis, axes[-1])
    return Flow(shape, tuple(axes))


def _spatial(dims: int) -> Callable[..., Flow | None]:
    """Pooling, padding and resizing of the last axes."""

    def rule(ties: Ties, value: Any, x: Flow, *args: Any, **kwargs: Any) -> Flow | None:
        if any(axis is not None for axis in x.axes[-dims:]) or flows_in(args):
            return None
        return Flow(tuple(value.shape), (*x.axes[:-dims], *[None] * dims))

    return rule


def _resize(ties: Ties, value: Any, input: Flow, *args: Any, **kwargs: Any) -> Flow | None:
    """All axes after the channels are pixels."""
    return _spatial(len(input.shape) - 2)(ties, value, input)


def _convolution(
    ties: Ties, value: Any, x: Flow, weight: Flow, bias: Flow | None, groups: int, transposed: bool = False
) -> Flow | None:
    if len(x.shape) != len(weight.shape) or any(axis is not None for axis in (x.axes[0], *x.axes[2:])):
        return None
    shape = tuple(value.shape)
    given, gives, out = x.shape[1], shape[1], ties.new(shape[1])
    filters, channels = weight.axes[:2]
    ties.pin_flow(weight, 0, 1)
    if transposed:
        if groups != 1:
            return None
        filters, channels = channels, filters
    if groups == 1:
        ties.tie(x.axes[1], channels)
        ties.tie(filters, out)
    elif groups == given:  # depthwise: its outputs lie side by side
        many = gives // given
        for k in range(many):
            ties.tie(x.axes[1], out, None, np.arange(given) * many + k)
        ties.tie(filters, out)
    else:  # channels of a group have no axis of their own; filters may change places within it
        ties.pin(x.axes[1])
        ties.pin(channels)
        for group in np.split(np.arange(gives), groups):
            ties.tie(filters, out, group, group)
    if bias is not None:
        ties.tie(bias.axes[0], out)
    return Flow(shape, (x.axes[0], out, *[None] * (len(shape) - 2)))


def _convolution_module(transposed: bool) -> Callable[..., Flow | None]:
    def rule(ties: Ties, value: Any, m: Any, of: Callable[..., Any], x: Flow) -> Flow | None:
        return _convolution(ties, value, x, of(m.weight), of(m.bias), m.groups, transposed)

    return rule


def _convolution_function(
    ties: Ties,
    value: Any,
    input: Flow,
    weight: Flow,
    bias: Flow | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Flow | None:
    return _convolution(ties, value, input, weight, bias, groups)


def _linear(ties: Ties, value: Any, input: Flow, weight: Flow, bias: Flow | None = None) -> Flow:
    out = ties.new(value.shape[-1])
    ties.tie(input.axes[-1], weight.axes[1])
    ties.tie(weight.axes[0], out)
    if bias is not None:
        ties.tie(bias.axes[0], out)
    return Flow(tuple(value.shape), (*input.axes[:-1], out))


def _per_channel(ties: Ties, value: Any, x: Flow, *vectors: Flow | None) -> Flow:
    """Numbers for each channel, the second axis."""
    for vector in vectors:
        if isinstance(vector, Flow) and len(vector.shape) and vector.shape[0] > 1:
            ties.tie(vector.axes[0], x.axes[1])
    return Flow(tuple(value.shape), x.axes)


def _batch_norm(
    ties: Ties,
    value: Any,
    input: Flow,
    running_mean: Flow | None = None,
    running_var: Flow | None = None,
    weight: Flow | None = None,
    bias: Flow | None = None,
    *args: Any,
    **kwargs: Any,
) -> Flow:
    return _per_channel(ties, value, input, running_mean, running_var, weight, bias)


def _batch_norm_module(ties: Ties, value: Any, m: Any, of: Callable[..., Any], x: Flow) -> Flow:
    return _batch_norm(ties, value, x, of(m.running_mean), of(m.running_var), of(m.weight), of(m.bias))


def _layer_norm(
    ties: Ties,
    value: Any,
    input: Flow,
    normalized_shape: Any,
    weight: Flow | None = None,
    bias: Flow | None = None,
    eps: Any = None,
) -> Flow:
    """Statistics over all entries do not depend on their order."""
    for vector in (weight, bias):
        if vector is not None:
            for a, b in zip(vector.axes, input.axes[-len(vector.axes) :], strict=True):
                ties.tie(a, b)
    return Flow(tuple(value.shape), input.axes)


def _layer_norm_module(ties: Ties, value: Any, m: Any, of: Callable[..., Any], x: Flow) -> Flow:
    return _layer_norm(ties, value, x, m.normalized_shape, of(m.weight), of(getattr(m, "bias", None)))


def _group_norm(
    ties: Ties,
    value: Any,
    input: Flow,
    num_groups: int,
    weight: Flow | None = None,
    bias: Flow | None = None,
    eps: Any = None,
) -> Flow:
    if 1 < num_groups < input.shape[1]:  # a tie to itself for each group keeps its channels within it
        for group in np.split(np.arange(input.shape[1]), num_groups):
            ties.tie(input.axes[1], input.axes[1], group, group)
    return _per_channel(ties, value, input, weight, bias)


def _reshape(ties: Ties, value: Any, x: Flow, *args: Any, **kwargs: Any) -> Flow:
    """Axes that stay, and channels that become blocks of a joint axis; other channels keep their order."""
    shape = tuple(value.shape)
    axes: list[Axis] = [None] * len(shape)
    for before, after in _segments(x.shape, shape):
        joined, gives = [d for d in before if x.shape[d] > 1], [d for d in after if shape[d] > 1]
        tracked = [d for d in joined if x.axes[d] is not None]
        if not tracked:
            continue
        outer = math.prod(x.shape[d] for d in joined if d < tracked[0])
        inner = math.prod(x.shape[d] for d in joined if d > tracked[0])
        if len(tracked) > 1 or len(gives) > 1 or outer * inner > MOST_BLOCKS:
            for d in tracked:
                ties.pin(x.axes[d])
        elif len(joined) == 1:
            axes[gives[0]] = x.axes[tracked[0]]
        else:
            size = x.shape[tracked[0]]
            axes[gives[0]] = ties.new(shape[gives[0]])
            for block in range(outer):
                for k in range(inner):
                    places = (block * size + np.arange(size)) * inner + k
                    ties.tie(x.axes[tracked[0]], axes[gives[0]], None, places)
    return Flow(shape, tuple(axes))


def _segments(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The shortest runs of dimensions of both shapes with the same products; what is left over is of size 1."""
    i = j = 0
    while i < len(before) and j < len(after):
        to_i, to_j, size_i, size_j = i + 1, j + 1, before[i], after[j]
        while size_i != size_j:
            if size_i < size_j:
                size_i, to_i = size_i * before[to_i], to_i + 1
            else:
                size_j, to_j = size_j * after[to_j], to_j + 1
        yield range(i, to_i), range(j, to_j)
        i, j = to_i, to_j


def _permute(ties: Ties, value: Any, x: Flow, *dims: Any) -> Flow:
    order = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    return Flow(tuple(value.shape), tuple(x.axes[d] for d in order))


def _transpose(ties: Ties, value: Any, x: Flow, dim0: int, dim1: int) -> Flow:
    axes = list(x.axes)
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return Flow(tuple(value.shape), tuple(axes))


def _reduce(ties: Ties, value: Any, x: Flow, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Flow | None:
    """Sums and the like, which do not depend on the order of what they take together."""
    if not isinstance(value, Tensor) or not set(kwargs) <= {"dtype"}:
        return None
    count = len(x.shape)
    gone = set(range(count)) if dim is None else {d % count for d in ([dim] if isinstance(dim, int) else dim)}
    axes = [None if d in gone else axis for d, axis in enumerate(x.axes) if keepdim or d not in gone]
    return Flow(tuple(value.shape), tuple(axes))


def _cat(ties: Ties, value: Any, tensors: Sequence[Flow], dim: int = 0) -> Flow:
    shape, start = tuple(value.shape), 0
    dim %= len(shape)
    axes: list[Axis] = []
    for d, size in enumerate(shape):
        parts = [t.axes[d] for t in tensors]
        axes.append(ties.new(size) if any(part is not None for part in parts) else None)
        if d != dim:
            for part in parts:
                ties.tie(part, axes[d])
    for tensor in tensors:
        ties.tie(tensor.axes[dim], axes[dim], None, start + np.arange(tensor.shape[dim]))
        start += tensor.shape[dim]
    return Flow(shape, tuple(axes))


def _part(ties: Ties, x: Flow, dim: int, places: np.ndarray) -> Flow:
    """These places of a dimension."""
    axis, shape = x.axes[dim], [*x.shape]
    shape[dim] = len(places)
    axes = list(x.axes)
    if axis is not None and len(places) != x.shape[dim]:
        axes[dim] = ties.new(len(places))
        ties.tie(axis, axes[dim], places, np.arange(len(places)))
    return Flow(tuple(shape), tuple(axes))


def _split(ties: Ties, value: Any, x: Flow, sizes: Any, dim: int = 0) -> tuple[Flow, ...]:
    parts, start = [], 0
    for piece in value:
        size = piece.shape[dim]
        parts.append(_part(ties, x, dim % len(x.shape), np.arange(start, start + size)))
        start += size
    return tuple(parts)


def _getitem(ties: Ties, value: Any, x: Any, index: Any) -> Any:
    if not isinstance(x, Flow):
        return x[index]
    index = index if isinstance(index, tuple) else (index,)
    if not all(i is None or i is Ellipsis or isinstance(i, int | slice) for i in index):
        return None
    named = sum(i is not None and i is not Ellipsis for i in index)
    if Ellipsis not in index:
        index = (*index, Ellipsis)
    shape: list[int] = []
    axes: list[Axis] = []
    dim = 0
    for i in index:
        if i is None:
            shape.append(1)
            axes.append(None)
        elif i is Ellipsis:
            for _ in range(len(x.shape) - named):
                shape.append(x.shape[dim])
                axes.append(x.axes[dim])
                dim += 1
        elif isinstance(i, int):
            ties.pin(x.axes[dim], [i % x.shape[dim]])
            dim += 1
        else:
            part = _part(ties, x, dim, np.arange(x.shape[dim])[i])
            shape.append(part.shape[dim])
            axes.append(part.axes[dim])
            dim += 1
    return Flow(tuple(shape), tuple(axes))


def _pad(ties: Ties, padded: Any, input: Flow, pad: Any, mode: str = "constant", value: Any = None) -> Flow | None:
    """Padding; of channels with a constant only: what is added is alike, and may change places with one another."""
    axes, shape = list(input.axes), tuple(padded.shape)
    for number, (low, high) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        dim = len(shape) - 1 - number
        axis, size = input.axes[dim], input.shape[dim]
        if axis is None or (low == 0 and high == 0):
            continue
        if mode != "constant":
            return None
        places = np.arange(max(0, -low), size - max(0, -high))
        axes[dim] = ties.new(shape[dim])
        ties.tie(axis, axes[dim], places, places + low)
    return Flow(shape, tuple(axes))


def _module(rule: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of a module without parameters from that of the function of its input."""
    return lambda ties, value, m, of, *args: rule(ties, value, *args)


QUESTIONS = (getattr, "size", "dim", "numel", "ndimension", "is_floating_point", "stride", "is_contiguous", len)

_ELEMENTWISE_NAMES = (
    "abs", "add", "addcmul", "add_", "clamp", "clamp_", "clamp_min", "clamp_max", "contiguous", "clone", "cos",
    "detach", "div", "div_", "double", "exp", "expand", "expand_as", "float", "half", "leaky_relu_", "log",
    "log_softmax", "mul", "mul_", "neg", "pow", "reciprocal", "relu", "relu_", "rsqrt", "sigmoid", "sigmoid_",
    "sign", "sin", "softmax", "sqrt", "square", "sub", "sub_", "tanh", "tanh_", "to", "type", "type_as",
)  # fmt: skip
_ELEMENTWISE_IN_NN = (
    "relu", "relu_", "relu6", "gelu", "silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "elu", "selu", "celu",
    "leaky_relu", "softplus", "softsign", "logsigmoid", "sigmoid", "tanh", "tanhshrink", "softmax", "softmin",
    "log_softmax", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
    "threshold", "hardshrink", "softshrink", "normalize",
)  # fmt: skip
_REDUCING_NAMES = ("mean", "sum", "amax", "amin")
METHODS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_ELEMENTWISE_NAMES, elementwise),
    **dict.fromkeys(_REDUCING_NAMES, _reduce),
    **dict.fromkeys(("view", "reshape", "flatten", "squeeze", "unsqueeze", "unflatten"), _reshape),
    "permute": _permute,
    "transpose": _transpose,
    "chunk": _split,
    "split": _split,
}
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    **{getattr(torch, name): elementwise for name in _ELEMENTWISE_NAMES if hasattr(torch, name)},
    **{getattr(torch, name): _reduce for name in _REDUCING_NAMES},
    **dict.fromkeys((torch.where, torch.maximum, torch.minimum, torch.erf, torch.rsub), elementwise),
    **{
        getattr(operator, name): elementwise
        for name in ("add", "sub", "mul", "truediv", "neg", "pow", "iadd", "isub", "imul", "itruediv", "abs")
    },
    **{getattr(F, name): elementwise for name in _ELEMENTWISE_IN_NN},
    **{
        getattr(F, f"{kind}{dims}d"): _spatial(dims)
        for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
        for dims in (1, 2, 3)
    },
    **{getattr(F, f"conv{dims}d"): _convolution_function for dims in (1, 2, 3)},
    **dict.fromkeys((torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.unflatten), _reshape),
    **dict.fromkeys((torch.cat, torch.concat), _cat),
    **dict.fromkeys((torch.chunk, torch.split), _split),
    torch.permute: _permute,
    torch.transpose: _transpose,
    F.linear: _linear,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.prelu: _per_channel,
    F.pad: _pad,
    F.interpolate: _resize,
    operator.getitem: _getitem,
}
_ELEMENTWISE_MODULES = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.ELU, nn.SELU,
    nn.CELU, nn.LeakyReLU, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Sigmoid, nn.Tanh, nn.Tanhshrink, nn.Threshold,
    nn.Hardshrink, nn.Softshrink, nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.Dropout, nn.Dropout1d,
    nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
_SPATIAL_MODULES = (
    "MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool", "LPPool", "ZeroPad", "ReflectionPad",
    "ReplicationPad", "ConstantPad", "CircularPad",
)  # fmt: skip
MODULES: dict[type, Callable[..., Any]] = {
    **dict.fromkeys(_ELEMENTWISE_MODULES, _module(elementwise)),
    **{
        getattr(nn, f"{kind}{dims}d"): _module(_spatial(dims))
        for kind in _SPATIAL_MODULES
        for dims in (1, 2, 3)
    },
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), _module(_resize)),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution_module(False)),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _convolution_module(True)),
    **dict.fromkeys(
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        _batch_norm_module,
    ),
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), _layer_norm_module),
    nn.GroupNorm: lambda ties, value, m, of, x: _group_norm(ties, value, x, m.num_groups, of(m.weight), of(m.bias)),
    nn.PReLU: lambda ties, value, m, of, x: _per_channel(ties, value, x, of(m.weight)),
    nn.Linear: lambda ties, value, m, of, x: _linear(ties, value, x, of(m.weight), of(m.bias)),
    nn.Flatten: _module(_reshape),
    nn.Unflatten: _module(_reshape),
}  # fmt: skip
