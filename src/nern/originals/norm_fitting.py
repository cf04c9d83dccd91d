"""Batch norms and biases fitted to other weights: what errors of weights do to the mean and size of a channel is undone.

With other weights a convolution's channels have other means and variances than those its batch norm expects. These are
measured on images, and the norm's weight and bias chosen such that the channel ends up with the mean and variance that it
has in the original network on the same images: no statistic is changed, and nothing more is stored. Where a represented
layer has a bias, this brings back the mean. (That statistics have to be measured anew is known of pruned, quantised and
averaged networks: Izmailov et al. 2018, arXiv 1803.05407, section 3.2; Nagel et al. 2019, arXiv 1906.04721.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nern.devices import computing_in
from nern.inputs import Seen, batches_of, call_with
from nern.originals.base import Original

IMAGES_AT_ONCE = 256
LAYERS = nn.Linear, nn.modules.conv._ConvNd
Moments = tuple[Tensor, Tensor]  # mean and variance of each channel


@torch.no_grad()
def fitted_norms(
    original: Original,
    weights: Sequence[Tensor],
    images: Seen,
    extra: dict[str, Tensor] | None = None,
    like: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Weights and biases of the original's batch norms, and biases of represented convolutions and fully connected layers,
    for the network with these learnable weights; by name.

    Modules come in the order in which the network calls them: each is fitted with those before it as they have become. Norms
    without a weight or running statistics, or whose weight is represented itself, stay as they are and are left out.

    Args:
        weights: of all represented layers.
        images: batches on which channels are measured, of at most 256.
        extra: further parameters of the reconstructed network, but for those that are fitted, which begin as the original's.
        like: weights of all represented layers with which channels have the moments that are wanted; None: its own.
    """
    network, norms, biases = original.network, original.norms(), original.biases()
    modules: dict[str, Any] = {
        name: module
        for name, module in network.named_modules()
        if (_fits(module) and f"{name}.weight" in norms and f"{name}.bias" in norms)
        or (isinstance(module, LAYERS) and f"{name}.bias" in biases)
    }
    if not modules or not len(images):
        return {}
    beside = {name: value for name, value in (extra or {}).items() if name not in norms and name not in biases}
    replaced = original.replaced(weights, beside)
    reference = {} if like is None else original.replaced(like, beside)
    wanted, found = ({name: _Moments() for name in modules} for _ in range(2))
    expected: dict[str, list[Moments]] = {name: [] for name in modules}  # of what is run now

    def note(name: str, module: Any, x: Tensor) -> None:
        expected[name].append(wanted[name].add(x))

    def correct(name: str, module: Any, x: Tensor) -> Tensor:
        mean, variance = found[name].add(x)
        wanted_mean, wanted_variance = expected[name].pop(0)
        shape = (-1, *[1] * (x.dim() - 2))
        if isinstance(module, LAYERS):
            return x + (wanted_mean - mean).view(shape)
        scale = ((wanted_variance + module.eps) / (variance + module.eps)).sqrt()
        return x * scale.view(shape) + (wanted_mean - mean * scale).view(shape)

    with computing_in("float32", images[0].device):
        for part in batches_of(images, IMAGES_AT_ONCE):
            for look, values in ((note, reference), (correct, replaced)):  # channels are corrected before they go on
                with ExitStack() as hooks:
                    for name, module in modules.items():
                        hooks.enter_context(_hooked(module, partial(look, name)))
                    call_with(network, values, part)
    fitted: dict[str, Tensor] = {}
    for name, module in modules.items():
        if not found[name].count:  # the network uses its weights without calling it
            continue
        moments = wanted[name].result(), found[name].result()
        if isinstance(module, LAYERS):
            shift = moments[0][0] - moments[1][0]
            bias = network.get_parameter(f"{name}.bias")
            fitted[f"{name}.bias"] = (bias.double() + shift).to(bias.dtype)
        else:
            fitted[f"{name}.weight"], fitted[f"{name}.bias"] = fitted_to(module, *moments)
    return fitted


def _fits(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _hooked(module: nn.Module, look: Callable[[Any, Tensor], Tensor | None]) -> Any:
    """A hook that looks at what a norm is given, or at what a layer gives, its channels on the second axis, and may put
    another tensor in its place."""
    if not isinstance(module, LAYERS):
        return module.register_forward_pre_hook(lambda norm, inputs: look(norm, inputs[0]))
    last = isinstance(module, nn.Linear)

    def after(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        changed = look(layer, output.movedim(-1, 1) if last else output)
        return changed if changed is None or not last else changed.movedim(1, -1)

    return module.register_forward_hook(after)


def fitted_to(norm: Any, wanted: Moments, found: Moments) -> tuple[Tensor, Tensor]:
    """Weight and bias of a batch norm for inputs of the moments that were found, as if they had those that are wanted."""
    (wanted_mean, wanted_variance), (mean, variance) = wanted, found
    scale = ((wanted_variance + norm.eps) / (variance + norm.eps)).sqrt()
    root, center = (norm.running_var.double() + norm.eps).sqrt(), norm.running_mean.double()
    shift = (scale * (center - mean) + wanted_mean - center) / root
    weight = (norm.weight.double() * scale).to(norm.weight.dtype)
    return weight, (norm.bias.double() + norm.weight.double() * shift).to(norm.bias.dtype)


class _Moments:
    """Mean and variance of channels over all that was added."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> Moments:
        """Mean and variance of these channels, (images, channels, *places)."""
        channels = x.double().transpose(0, 1).flatten(1)
        total, squares = channels.sum(1), channels.square().sum(1)
        self.count += channels.shape[1]
        self.total, self.squares = self.total.to(total) + total, self.squares.to(total) + squares
        mean = total / channels.shape[1]
        return mean.to(x.dtype), (squares / channels.shape[1] - mean.square()).clamp_min(0).to(x.dtype)

    def result(self) -> Moments:
        mean = self.total / self.count
        return mean, (self.squares / self.count - mean.square()).clamp_min(0)
