"""The faster twin of a network in eval mode: batch norms folded into the convolutions before them.

In eval mode a batch norm is one multiplication and one addition for each channel: `s (W x) + t = (s W) x + t`. The twin
shares all parameters under the same names, so other weights, and other parameters of the norms, run through it in the same
way (`Original.run`); gradients reach them through the multiplication. Which pairs may be folded is read from the traced
graph; a network that cannot be traced stays as it is.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from nern.originals.taps import INPUT

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class FoldedNorm(nn.Module):
    """A batch norm that the convolution before it applies; `weight` and `bias` are its own."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        scale = torch.rsqrt(norm.running_var + norm.eps)
        self.register_buffer("scale", scale.detach(), persistent=False)
        self.register_buffer("shift", (-norm.running_mean * scale).detach(), persistent=False)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What each channel is multiplied by, and what is added."""
        scale: Tensor = self.scale  # type: ignore[assignment]
        shift: Tensor = self.shift  # type: ignore[assignment]
        if self.weight is not None:
            scale, shift = scale * self.weight, shift * self.weight
        return scale, shift if self.bias is None else shift + self.bias

    def forward(self, x: Tensor) -> Tensor:
        """Nothing is left to do."""
        return x


class FoldedConvolution(nn.Module):
    """A convolution with the batch norm after it, in eval mode; `weight` and `bias` are the convolution's own."""

    def __init__(self, convolution: Any, norm: FoldedNorm) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self._convolve = convolution._conv_forward  # keeps stride, padding, groups
        self._norm = (norm,)  # in a tuple: a submodule of its own place alone
        self._channels_first = (-1, *[1] * (convolution.weight.dim() - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Convolution and norm."""
        scale, shift = self._norm[0].scale_and_shift()
        bias = shift if self.bias is None else shift + self.bias * scale
        result: Tensor = self._convolve(x, self.weight * scale.view(self._channels_first), bias)
        return result


def folded(network: nn.Module, taps: Collection[str]) -> nn.Module | None:
    """The twin of a network in eval mode, or None where there is nothing to fold.

    Args:
        taps: names of modules whose outputs ('NAME:input': inputs) must stay what they are.
    """
    tensors = [*network.parameters(), *network.buffers()]
    twin = copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})
    pairs = _pairs(twin, taps)  # tracing may leave traces in it
    if not pairs:
        return None
    for convolution, norm in pairs:
        applied = FoldedNorm(twin.get_submodule(norm)).eval()
        twin.set_submodule(convolution, FoldedConvolution(twin.get_submodule(convolution), applied).eval())
        twin.set_submodule(norm, applied)
    for module in twin.modules():  # feature maps are taken before the activation and must outlive it
        if getattr(module, "inplace", None) is True:
            module.inplace = False  # type: ignore[assignment]
    return twin


def _pairs(network: nn.Module, taps: Collection[str]) -> list[tuple[str, str]]:
    """Names of (convolution, batch norm) where the norm alone sees the convolution's output."""
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # whatever a network with control flow of its own raises
        return []
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    modules = dict(network.named_modules())
    pairs: list[tuple[str, str]] = []
    for node in graph.nodes:
        if node.op != "call_module" or type(modules.get(node.target)) not in _NORMS:
            continue
        before = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if before is None or before.op != "call_module" or list(before.users) != [node]:
            continue
        convolution, norm = modules[before.target], modules[node.target]
        plain = type(convolution) in _CONVOLUTIONS and norm.running_var is not None and not norm.training
        seen = before.target in taps or node.target + INPUT in taps
        once = calls[before.target] == calls[node.target] == 1
        if plain and once and not seen and not _hooked(convolution) and not _hooked(norm):
            pairs.append((str(before.target), str(node.target)))
    return pairs


def _hooked(module: Any) -> bool:
    """Whether anything of the user's runs when the module does."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or hasattr(module, "parametrizations")
