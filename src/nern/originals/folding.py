"""The fastest way to run a network in eval mode: by a twin with batch norms folded into the convolutions before them, and
with channels last, as far as that gives what the network itself gives.

In eval mode a batch norm is one multiplication and one addition for each channel: `s (W x) + t = (s W) x + t`. The twin
shares all parameters under the same names, so other weights, and other parameters of the norms, run through it in the same
way (`Original.run`); gradients reach them through the multiplication. Which pairs may be folded is read from the traced
graph; a network that cannot be traced stays as it is.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from nern.devices import computing_in
from nern.inputs import Images
from nern.originals.taps import INPUT, FeatureMaps
from nern.randomness import generator

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


def fastest_way(
    network: nn.Module,
    images: Images,
    run: Callable[[nn.Module, Images], tuple[Tensor, FeatureMaps]],
    taps: Collection[str],
) -> tuple[nn.Module, bool]:
    """Which network to run in place of this one, and whether with channels last, the faster layout for convolutions.

    Args:
        network: in eval mode.
        images: of the kind that will be run; noise in their place is compared.
        run: gives output and feature maps.
        taps: see `folded`.
    """
    if isinstance(images, Tensor) and images.is_floating_point():
        noise = torch.randn(images.shape, generator=generator(0, "fastest way"))
        images = noise.to(images.device, images.dtype)
    exact = computing_in("float32", images.device)
    with torch.inference_mode(False), torch.no_grad(), exact, torch.autocast(images.device.type, enabled=False):
        output, maps = run(network, images)
        twin = folded(network, taps)
        convolves = (
            isinstance(images, Tensor)
            and images.dim() == 4
            and any(isinstance(module, nn.Conv2d) for module in network.modules())
        )
        for one in [network] if twin is None else [twin, network]:
            for last in (True, False) if convolves else (False,):
                try:
                    found = run(one, channels_last(images) if last and isinstance(images, Tensor) else images)
                    if _close([output, *maps], [found[0], *found[1]]):
                        return one, last
                except Exception:  # it reads what was folded away, or views what is now in another order
                    continue
    return network, False


def channels_last(images: Tensor) -> Tensor:
    """The same images, the numbers of a pixel beside each other."""
    return images.contiguous(memory_format=torch.channels_last)


def _close(expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Whether tensors are the same up to the rounding of another order of sums."""
    if len(expected) != len(found):
        return False
    pairs = [(e, f, 1e-4 * float(e.abs().max()) if e.numel() else 0.0) for e, f in zip(expected, found, strict=True)]
    return all(e.shape == f.shape and torch.allclose(f, e, rtol=1e-3, atol=atol) for e, f, atol in pairs)


def folded(network: nn.Module, taps: Collection[str]) -> nn.Module | None:
    """The twin of a network in eval mode, or None where there is nothing to fold. `taps`: names of modules whose outputs
    ('NAME:input': inputs) must stay what they are."""
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
