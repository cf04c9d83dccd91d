"""How much the outputs of a network move with what its modules put out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nern.errors import NernError
from nern.originals.taps import NORMS
from nern.randomness import generator

IMAGES_AT_ONCE = 32
MOST_IMAGES = 512
LEAST_SHARE = 1e-3  # of a module's mean sensitivity, that each of its channels has at least


def channel_axis(module: nn.Module) -> int:
    """The axis of a module's outputs that counts its filters, or the channels that it scales."""
    return -1 if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm | nn.RMSNorm) else 1


def sensitivities(
    network: nn.Module, modules: Mapping[str, nn.Module], images: Tensor, seed: int
) -> dict[str, Float[Tensor, " channels"]]:
    """Of each module and channel, the squared derivative of the outputs by what the module puts out: summed over places, a
    mean over images, along one drawn direction of the outputs for each image (the diagonal of G, `objectives.curvature`).

    Args:
        network: in eval mode.
        modules: of the network, by name.
        images: at most 512 of them are taken.
        seed: of the directions.

    Raises:
        NernError: outputs that are no tensor, or not finite.
    """
    rng, probes = generator(seed, "directions"), dict[str, list[Tensor]]()
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def moved(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            probe = torch.zeros_like(output).requires_grad_()
            probes.setdefault(name, []).append(probe)
            return output + probe

        return moved

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    images = images[:MOST_IMAGES]
    try:
        for part in images.split(IMAGES_AT_ONCE):
            probes.clear()
            with torch.enable_grad():
                outputs = checked_outputs(network(part))
                directions = torch.randn(outputs.shape, generator=rng)
                if outputs.dim() == 2:  # scores of classes, up to a constant
                    directions = directions - directions.mean(1, keepdim=True)
                flat = [(name, probe) for name, of_calls in probes.items() for probe in of_calls]
                along = (outputs * directions).sum()
                found = torch.autograd.grad(along, [probe for _, probe in flat], allow_unused=True)
            for (name, _), gradient in zip(flat, found, strict=True):
                if gradient is not None:
                    squares = gradient.movedim(channel_axis(modules[name]), 0).flatten(1).square().sum(1).double()
                    sums[name] = sums.get(name, 0.0) + squares
    finally:
        for handle in handles:
            handle.remove()
    means = {name: total / len(images) for name, total in sums.items()}
    return {name: mean.clamp_min(float(mean.mean()) * LEAST_SHARE).float() for name, mean in means.items()}


def checked_outputs(outputs: Any) -> Tensor:
    """Outputs of a network, as a tensor of finite numbers. Raises NernError for others."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        raise NernError(
            f"the network gives {type(outputs).__name__}, and calibration needs one tensor of numbers; pack it without "
            "images (--images 0)"
        )
    if not outputs.isfinite().all():
        raise NernError("the network's outputs on the calibration images are not finite; are these its images?")
    return outputs


def has_vectors(module: nn.Module) -> bool:
    """Whether calibration rounds the vectors (weights of norms, biases) of a module of this kind."""
    return isinstance(module, (*NORMS, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
