"""Weighting of reconstruction errors: which weights' errors matter, measured on the original once before training.

Each weighting is a function `f(original, images, rng) -> factors`: of each represented weight a tensor, not negative, that
broadcasts to it. It stands for the curvature of the network's output error in that weight, up to one common factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nern.config import NernConfig
from nern.devices import computing_in
from nern.errors import NernError
from nern.originals.base import Original
from nern.randomness import generator
from nern.registry import WEIGHTINGS
from nern.tasks.streams import TrainStream, first_images

Factors = list[Tensor]
IMAGES_AT_ONCE = 64
SIDES = (32, 28, 64, 224)  # of noise for networks that do not say what images they expect
NOISE = 0.05  # of 'layers', relative to the root mean square of a layer's weights
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def error_roots(config: NernConfig, original: Original, stream: TrainStream | None, seed: int) -> list[Tensor] | None:
    """What each weight's error is multiplied by before it is squared: the root of its factor, tempered by
    `weighting_power`, with mean square 1 over all weights. On the CPU, in the weights' shapes; None: all are 1.

    Args:
        config: which weighting, and on how many images.
        original: the network.
        stream: its training images, taken from the first step on; None: normal noise in their place.
        seed: of noise and drawn classes.

    Raises:
        NernError: the network does not run on noise, or gives no scores where these are needed.
    """
    if config.weighting == "none" or config.weighting_power == 0:
        return None
    with computing_in("float32", original.weights[0].device), torch.inference_mode(False):
        images = weighting_images(original, stream, config.weighting_images, seed)
        factors = WEIGHTINGS[config.weighting](original, images, generator(seed, "weighting"))
    whole = [f.detach().cpu().double().expand(w.shape) for f, w in zip(factors, original.weights, strict=True)]
    largest = max(float(f.max()) for f in whole)
    if not 0 < largest < float("inf"):
        raise NernError(
            f"nern.weighting {config.weighting!r} finds no weight of {original.name} that matters: its largest factor is "
            f"{largest}; choose another, or 'none'"
        )
    tempered = [(f / largest) ** config.weighting_power for f in whole]
    mean = sum(float(f.sum()) for f in tempered) / sum(f.numel() for f in tempered)
    return [(f / mean).sqrt().float() for f in tempered]


def weighting_images(original: Original, stream: TrainStream | None, count: int, seed: int) -> Tensor:
    """The first images of the stream; None: noise.

    Raises:
        NernError: the network takes no noise.
    """
    if stream is None:
        return _noise(original, count, seed)
    return first_images(stream, count)


def _noise(original: Original, count: int, seed: int) -> Tensor:
    """Normal noise in the shape that the network expects, as its `input_format` says or as its first layer may take."""
    device, dtype = original.weights[0].device, original.weights[0].dtype
    known = original.input_format
    for shape in [known.shape] if known is not None else _shapes(original.network):
        rng = generator(seed, "weighting noise", shape)
        try:
            original(torch.randn(2, *shape, generator=rng).to(device, dtype))
        except Exception:  # images of a size that it does not take
            continue
        rng = generator(seed, "weighting noise", shape)
        return torch.randn(count, *shape, generator=rng).to(device, dtype)
    raise NernError(
        f"nern.weighting and refinement run {original.name} on noise, but no shape of its inputs was found; give the "
        "network an attribute input_format (a nern.originals.InputFormat), or set nern.weighting to 'none' and "
        "refinement.iterations to null"
    )


def _shapes(network: nn.Module) -> Iterator[tuple[int, ...]]:
    for module in network.modules():
        if isinstance(module, CONVOLUTIONS):
            yield from ((module.in_channels, *[side] * len(module.kernel_size)) for side in SIDES)
            return
        if isinstance(module, nn.Linear):
            yield (module.in_features,)
            return


@WEIGHTINGS.register("none")
def none(original: Original, images: Tensor, rng: torch.Generator) -> Factors:
    """All errors count alike."""
    return [torch.ones(()) for _ in original.weights]


# --- activations --------------------------------------------------------------------------------------------------


@WEIGHTINGS.register("activations")
def activations(original: Original, images: Tensor, rng: torch.Generator) -> Factors:
    """Mean square of the inputs that each weight multiplies, over images and places: the diagonal of the layer's own
    output error, were its inputs independent.

    Of a convolution for each channel and entry of the kernel (borders count as the zeros, or copies, that they are); of a
    transposed one for each channel; of a fully connected layer for each input. A weight whose module is not called, or is
    of another kind, gets the mean of all others.
    """
    owners = owners_of(original)
    sums: dict[int, Tensor] = {}
    handles = []
    for weight in original.weights:
        module = owners.get(id(weight))
        measure = None if module is None else _measure_of(module)
        if module is not None and measure is not None:
            handles.append(module.register_forward_pre_hook(_adding(sums, id(weight), measure)))
    try:
        with torch.no_grad():
            for part in images.split(IMAGES_AT_ONCE):
                original.network(part)
    finally:
        for handle in handles:
            handle.remove()
    if not sums:
        raise NernError(
            f"nern.weighting 'activations' needs convolutions or fully connected layers; none of the represented weights of "
            f"{original.name} is one that is called; choose 'fisher' or 'layers'"
        )
    mean = torch.stack([total.mean() for total in sums.values()]).mean()
    return [sums.get(id(weight), mean) / len(images) for weight in original.weights]


def owners_of(original: Original) -> dict[int, nn.Module]:
    """Of each represented weight, by `id`, the module whose `weight` it is, where there is one."""
    owners = {id(p): module for module in original.network.modules() for p in module.parameters(recurse=False)}
    return {id(w): owners[id(w)] for w in original.weights if getattr(owners[id(w)], "weight", None) is w}


def _adding(sums: dict[int, Tensor], key: int, measure: Callable[[Any, Tensor], Tensor]) -> Callable[..., None]:
    """A hook that adds up what a module's inputs measure; a module called twice counts twice."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found = measure(module, inputs[0])
        sums[key] = sums[key] + found if key in sums else found

    return hook


def _measure_of(module: nn.Module) -> Callable[[Any, Tensor], Tensor] | None:
    """(module, inputs) -> the sum over images of the mean square, for a module of a kind that is known."""
    if isinstance(module, CONVOLUTIONS):
        return _of_convolution
    if isinstance(module, TRANSPOSED):
        return _of_transposed
    return _of_linear if isinstance(module, nn.Linear) else None


def windows(module: Any, inputs: Tensor) -> Float[Tensor, "images channels *places_and_kernel"]:
    """The inputs that a convolution's kernels meet at each place of its output: the places' axes, then the kernel's."""
    mode = module.padding_mode
    found = F.pad(inputs, module._reversed_padding_repeated_twice, "constant" if mode == "zeros" else mode)
    for axis, (size, stride, step) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        found = found.unfold(2 + axis, step * (size - 1) + 1, stride)[..., ::step]
    return found


def _of_convolution(module: Any, inputs: Tensor) -> Float[Tensor, "filters channels ..."]:
    squares = windows(module, inputs.float().square().sum(0, keepdim=True))[0]
    means = squares.mean(tuple(range(1, 1 + len(module.kernel_size))))  # (channels, *kernel)
    groups = module.groups
    of_groups = means.unflatten(0, (groups, -1))
    return of_groups.repeat_interleave(module.out_channels // groups, 0)


def _of_transposed(module: Any, inputs: Tensor) -> Float[Tensor, "channels filters ..."]:
    means = inputs.float().square().flatten(2).mean(2).sum(0)
    return means.view(-1, *[1] * (module.weight.dim() - 1)).expand(module.weight.shape)


def _of_linear(module: Any, inputs: Tensor) -> Float[Tensor, "filters channels"]:
    squares = inputs.float().square().flatten(1, -2) if inputs.dim() > 2 else inputs.float().square().unsqueeze(1)
    return squares.mean(1).sum(0).expand(module.weight.shape)


# --- outputs ------------------------------------------------------------------------------------------------------


@WEIGHTINGS.register("fisher")
def fisher(original: Original, images: Tensor, rng: torch.Generator) -> Factors:
    """Diagonal of the Fisher information: the mean over images of the squared derivative of the log-probability of a class,
    drawn from the original's own probabilities (Kirkpatrick et al. 2017; with drawn classes as in Kunstner et al. 2019).
    Images go through the network one by one, each with a gradient of its own."""
    weights = [w.detach().clone().requires_grad_() for w in original.weights]
    sums = [torch.zeros_like(w, dtype=torch.float32) for w in weights]
    draws = torch.rand(len(images), generator=rng, dtype=torch.float64)
    with torch.enable_grad():
        for image, draw in zip(images.split(1), draws.tolist(), strict=True):
            outputs, _ = original.run(weights, image)
            log_p = _scores(original, outputs, "fisher").float().log_softmax(1)[0]
            cumulative = log_p.detach().double().exp().cumsum(0)
            chosen = torch.searchsorted(cumulative, cumulative[-1:] * draw, right=True).clamp_(max=len(log_p) - 1)
            gradients = torch.autograd.grad(log_p[chosen].sum(), weights, allow_unused=True)
            for total, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    total += gradient.float().square()
    return [total / len(images) for total in sums]


@WEIGHTINGS.register("layers")
def layers(original: Original, images: Tensor, rng: torch.Generator) -> Factors:
    """One number a layer: the divergence of the outputs (Kullback-Leibler, mean over images) that normal noise in this layer
    alone causes, over the squared norm of the noise. The noise is 5 % of the root mean square of the layer's weights."""
    weights, parts = [w.detach() for w in original.weights], images.split(IMAGES_AT_ONCE)
    found = []
    with torch.no_grad():
        targets = [_log_p(original, weights, part) for part in parts]
        for index, weight in enumerate(weights):
            noise = torch.randn(weight.shape, generator=rng).to(weight.device, weight.dtype)
            noise *= NOISE * weight.square().mean().sqrt()
            moved = [*weights[:index], weight + noise, *weights[index + 1 :]]
            divergence = weight.new_zeros(())
            for part, target in zip(parts, targets, strict=True):
                divergence += (target.exp() * (target - _log_p(original, moved, part))).sum()
            norm = noise.square().sum()
            found.append(torch.where(norm > 0, divergence.clamp_min(0) / norm, torch.zeros_like(norm)))
    return found


def _log_p(original: Original, weights: Sequence[Tensor], images: Tensor) -> Float[Tensor, "n classes"]:
    return _scores(original, original.run(weights, images)[0], "layers").float().log_softmax(1)


def _scores(original: Original, outputs: Any, name: str) -> Float[Tensor, "n classes"]:
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        given = f"outputs of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise NernError(
            f"nern.weighting {name!r} needs scores of classes, (images, classes); {original.name} gives {given}. Choose "
            "'activations' or 'none'"
        )
    return outputs
