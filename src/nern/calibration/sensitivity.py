"""How much the outputs of a network move with what its modules put out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nern.errors import NernError
from nern.inputs import Images, call, gives_scores
from nern.objectives.curvature import meets_patches
from nern.originals.taps import NORMS
from nern.randomness import generator

IMAGES_AT_ONCE = 32  # at most, and
KEPT = 2**24  # numbers that are kept for the derivatives of these
MOST_IMAGES = 512
WEIGHT_IMAGES = 32  # one at a time, for the derivatives by weights themselves
LEAST_SHARE = 1e-3  # of a module's mean sensitivity, that each of its channels has at least


def channel_axis(module: nn.Module) -> int:
    """The axis of a module's outputs that counts its filters, or the channels that it scales."""
    return -1 if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm | nn.RMSNorm) else 1


def sensitivities(
    network: nn.Module, modules: Mapping[str, nn.Module], images: Images, seed: int
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
    rng, sums = generator(seed, "directions"), dict[str, Tensor]()

    def hook(name: str, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        def add(gradient: Tensor) -> None:
            squares = gradient.movedim(channel_axis(module), 0).flatten(1).square().sum(1).double()
            sums[name] = sums[name] + squares if name in sums else squares

        if not output.requires_grad:  # nothing before it does
            output = output + torch.zeros((), device=output.device, dtype=output.dtype, requires_grad=True)
        output.register_hook(add)
        return output

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    images, done, kept = images[:MOST_IMAGES], 0, list[int]()
    with ExitStack() as hooks, torch.enable_grad():
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(partial(hook, name)))
        while done < len(images):  # the first one alone, to see what is kept for it
            count = max(1, min(IMAGES_AT_ONCE, KEPT // max(sum(kept), 1))) if done else 1
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor) if not done else nullcontext():
                outputs = checked_outputs(call(network, images[done : done + count]))
            directions = torch.randn(outputs.shape, generator=rng).to(outputs)
            if outputs.dim() == 2 and gives_scores(images):  # scores of classes, up to a constant
                directions = directions - directions.mean(1, keepdim=True)
            if outputs.requires_grad:
                (outputs * directions).sum().backward()
            done += count
    means = {name: total / len(images) for name, total in sums.items()}
    return {name: mean.clamp_min(float(mean.mean()) * LEAST_SHARE).float() for name, mean in means.items()}


def of_weights(network: nn.Module, weights: Mapping[str, Tensor], images: Images, seed: int) -> dict[str, Tensor]:
    """Of each of these parameters, by name, the squared derivative of the outputs by a number in it: a mean over its numbers
    and over images, along one drawn direction of the outputs for each image. Raises as `sensitivities` does."""
    if not weights:
        return {}
    rng, found = generator(seed, "directions of weights"), dict.fromkeys(weights, 0.0)
    asked = {name: weight.requires_grad for name, weight in weights.items()}
    count = min(len(images), WEIGHT_IMAGES)
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for image in images[:count].split(1):
            with torch.enable_grad():
                outputs = checked_outputs(call(network, image))
                directions = torch.randn(outputs.shape, generator=rng).to(outputs)
                aim = (outputs * directions).sum()
                derivatives = torch.autograd.grad(aim, list(weights.values()), allow_unused=True)
            for name, derivative in zip(weights, derivatives, strict=True):
                found[name] += 0.0 if derivative is None else float(derivative.double().square().mean()) / count
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(asked[name])
    return {name: torch.tensor([mean]) for name, mean in found.items()}


def checked_outputs(outputs: Any) -> Tensor:
    """Outputs of a network, as a tensor of finite numbers. Raises NernError for others."""
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        raise NernError(
            f"the network gives {type(outputs).__name__}, and calibration needs one tensor of numbers; give `forward`, a "
            "function of the network and a batch that returns such outputs, or pack it without images (--images 0)"
        )
    if not outputs.isfinite().all():
        raise NernError("the network's outputs on the calibration images are not finite; are these its images?")
    return outputs


def has_vectors(module: nn.Module) -> bool:
    """Whether calibration rounds the vectors (weights of norms, biases) of a module of this kind."""
    return isinstance(module, NORMS) or meets_patches(module)
