"""Batch norms fitted to other weights: what errors of weights do to the mean and size of a channel is undone.

With other weights a convolution's channels have other means and variances than those its batch norm expects. These are
measured on images, and the norm's weight and bias chosen such that the channel ends up with the mean and variance that it
has in the original network on the same images: no statistic is changed, and nothing more is stored. (That statistics have
to be measured anew is known of pruned, quantised and averaged networks: Izmailov et al. 2018, arXiv 1803.05407, section 3.2;
Nagel et al. 2019, arXiv 1906.04721.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nern.devices import computing_in
from nern.originals.base import Original

IMAGES_AT_ONCE = 256
Moments = tuple[Tensor, Tensor]  # mean and variance of each channel


@torch.no_grad()
def fitted_norms(
    original: Original,
    weights: Sequence[Tensor],
    images: Tensor,
    extra: dict[str, Tensor] | None = None,
    like: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """Weights and biases of the original's batch norms, for the network with these learnable weights; by name.

    Norms come in the order in which the network calls them: each is fitted with those before it as they have become. Norms
    without a weight or running statistics, or whose weight is represented itself, stay as they are and are left out.

    Args:
        original: the network.
        weights: of all represented layers.
        images: on which channels are measured, 256 at a time.
        extra: further parameters of the reconstructed network, but for those of norms, which begin as the original's.
        like: weights of all represented layers with which channels have the moments that are wanted; None: its own.
    """
    network, trained = original.network, original.norms()
    norms = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_mean is not None
        and f"{name}.weight" in trained
        and f"{name}.bias" in trained
    }
    if not norms or not len(images):
        return {}
    beside = {name: value for name, value in (extra or {}).items() if name not in trained}
    replaced = dict(zip(original.weight_names, weights, strict=True)) | beside
    reference = {} if like is None else dict(zip(original.weight_names, like, strict=True)) | beside
    sums: dict[str, list[_Moments]] = {name: [_Moments(), _Moments()] for name in norms}
    with computing_in("float32", images.device):
        for part in images.split(IMAGES_AT_ONCE):
            expected: dict[str, list[Moments]] = {name: [] for name in norms}

            def note(name: str, x: Tensor, expected: dict[str, list[Moments]] = expected) -> None:
                expected[name].append(sums[name][0].add(x))

            def correct(name: str, x: Tensor, expected: dict[str, list[Moments]] = expected) -> Tensor:
                mean, variance = sums[name][1].add(x)
                wanted_mean, wanted = expected[name].pop(0)
                scale = ((wanted + norms[name].eps) / (variance + norms[name].eps)).sqrt()
                return _by_channel(x, scale, wanted_mean - mean * scale)

            with _before(norms, note):
                functional_call(network, reference, (part,))
            with _before(norms, correct):
                functional_call(network, replaced, (part,))
    found = {}
    for name, module in norms.items():
        (wanted_mean, wanted), (mean, variance) = (moments.result() for moments in sums[name])
        root = (module.running_var.double() + module.eps).sqrt()  # type: ignore[operator, union-attr]
        scale = ((wanted + module.eps) / (variance + module.eps)).sqrt()
        center = module.running_mean.double()  # type: ignore[operator, union-attr]
        shift = (scale * (center - mean) + wanted_mean - center) / root
        found[f"{name}.weight"] = (module.weight.double() * scale).to(module.weight.dtype)
        found[f"{name}.bias"] = (module.bias.double() + module.weight.double() * shift).to(module.bias.dtype)
    return found


class _Moments:
    """Mean and variance of channels over all that was added."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> Moments:
        """Mean and variance of these inputs of a norm, (images, channels, *places)."""
        channels = x.double().transpose(0, 1).flatten(1)
        total, squares = channels.sum(1), channels.square().sum(1)
        self.count, self.total, self.squares = (
            self.count + channels.shape[1],
            self.total.to(total) + total,
            self.squares.to(total) + squares,
        )
        mean = total / channels.shape[1]
        return mean.to(x.dtype), (squares / channels.shape[1] - mean.square()).clamp_min(0).to(x.dtype)

    def result(self) -> Moments:
        mean = self.total / self.count
        return mean, (self.squares / self.count - mean.square()).clamp_min(0)


def _by_channel(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    shape = (-1, *[1] * (x.dim() - 2))
    return x * scale.view(shape) + shift.view(shape)


@contextmanager
def _before(norms: dict[str, Any], look: Callable[[str, Tensor], Tensor | None]) -> Iterator[None]:
    """Within, `look(name, input)` is called before each norm; what it returns takes the input's place."""

    def hook_of(name: str) -> Callable[..., Any]:
        return lambda module, inputs: look(name, inputs[0])

    handles = [module.register_forward_pre_hook(hook_of(name)) for name, module in norms.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
