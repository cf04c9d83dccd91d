"""Curvature of a network's outputs in its weights, and errors of weights measured by it.

An error E of a layer's weight, (filters, n) with the n weights of each filter, moves the outputs by about the quadratic form

    trace(G E A E^T),   A = mean of a a^T over images and places,   G = mean over images of the sum of g g^T over places,

where a are the inputs that a filter's weights multiply and g the derivatives of the outputs at the layer's own output: the
Kronecker-factored approximation of the Gauss-Newton matrix (K-FAC, Martens & Grosse 2015, arXiv 1503.05671; of convolutions,
Grosse & Martens 2016, arXiv 1602.01407, whose A and G these are). Of G the diagonal is kept here, so that each filter has an
error of its own. With roots of both factors the form is a sum of squares, so a reconstruction loss of E becomes one of the
network's function by multiplying.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from nern.devices import computing_in
from nern.errors import NernError
from nern.inputs import Seen, batches_of, call, gives_scores
from nern.originals.base import Original
from nern.randomness import generator
from nern.tasks.streams import TrainStream, first_images

IMAGES_AT_ONCE = 64
SIDES = (32, 28, 64, 224)  # of noise for networks that do not say what images they expect
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PLACES = 64  # of an image whose inputs are looked at, drawn for each batch
DAMPING = 0.01  # of the mean of each factor's diagonal, added to it: what was not seen in these images counts a little
MEAN_SHARE = 0.1  # of the inputs' mean in A, where norms undo what errors do to the means of outputs
MOST_INPUTS = 4608  # weights of a filter up to which A is a matrix; of larger ones the diagonal is taken


@dataclass(frozen=True, eq=False)
class Curvature:
    """Of one layer: roots of both factors.

    Attributes:
        filters: root of the diagonal of G, and of the common factor that makes the mean over all weights 1.
        inputs: of each group of filters, R with R R^T = A, or (where a filter is very large) the root of A's diagonal;
            (groups, n, n) or (groups, n).
    """

    filters: Float[Tensor, " filters"]
    inputs: Float[Tensor, "groups n *n"]

    def __call__(self, weight: Tensor, filters: Int[Tensor, " some"] | None = None) -> Tensor:
        """A weight, or errors, in the coordinates in which the form is the sum of squares; in the weight's shape.

        Args:
            weight: of the layer, its first axis the filters.
            filters: numbers of these, where they are some; None: all.
        """
        with torch.autocast(weight.device.type, enabled=False):  # differences of large products: 16 bits would not do
            rows = weight.float().flatten(1)
            chosen = slice(None) if filters is None else filters
            groups, factors = len(self.inputs), self.filters[chosen, None]
            if groups == 1:
                moved = rows @ self.inputs[0] if self.inputs.dim() == 3 else rows * self.inputs[0]
            else:
                numbers = torch.arange(len(self.filters), device=rows.device)[chosen]
                own = self.inputs[numbers // (len(self.filters) // groups)]
                moved = (rows[:, None] @ own)[:, 0] if self.inputs.dim() == 3 else rows * own
            return (moved * factors).view_as(weight)

    def to(self, device: torch.device) -> Curvature:
        """On a device."""
        return Curvature(self.filters.to(device), self.inputs.to(device))


def curvatures(
    original: Original, stream: TrainStream | None, images: int, seed: int, norms_follow: bool
) -> list[Curvature]:
    """Of all represented weights, measured on the original, on the CPU. The mean of the form's diagonal is 1.

    Args:
        original: the network.
        stream: its training images, taken from the first step on; None: normal noise in their place.
        images: how many.
        seed: of noise, drawn places and directions of the outputs.
        norms_follow: the means of the layers' outputs are put right afterwards (see `fitted_norms`), so that errors which
            move them count for less.

    Raises:
        NernError: the network does not run on noise, gives no tensor, or no weight matters.
    """
    rng = generator(seed, "curvature")
    with computing_in("float32", original.weights[0].device), torch.inference_mode(False):
        seen = _noise(original, images, seed) if stream is None else first_images(stream, images)
        measured = _measure(original, seen, rng)
    counts: list[int] = []
    diagonals: list[float] = []
    found: list[tuple[Tensor, Tensor] | None] = []
    for weight, sums in zip(original.weights, measured, strict=True):
        if sums is None:
            found.append(None)
            continue
        a, g = sums.factors(MEAN_SHARE if norms_follow else 1.0)
        found.append((a, g))
        diagonals.append(float((_diagonal(a).mean(1).repeat_interleave(len(g) // len(a)) * g).mean()))
        counts.append(weight.numel())
    mean = sum(d * n for d, n in zip(diagonals, counts, strict=True)) / max(sum(counts), 1)
    if not 0 < mean < float("inf"):
        raise NernError(
            f"refinement finds no weight of {original.name} that moves its outputs (mean curvature {mean}); set "
            "refinement.iterations to null"
        )
    result = []
    for weight, factors in zip(original.weights, found, strict=True):
        if factors is None:  # of a module that is not known: as the mean of all others
            result.append(Curvature(torch.ones(len(weight)), torch.ones(1, weight[0].numel())))
        else:
            a, g = factors
            result.append(Curvature((g / mean).sqrt().float(), _root(a)))
    return result


# --- measuring ----------------------------------------------------------------------------------------------------


def _noise(original: Original, count: int, seed: int) -> Tensor:
    """Normal noise in the shape that the network expects, as its `input_format` says or as its first layer may take."""
    shape = next(shapes_taken(original), None)
    if shape is None:
        raise NernError(
            f"refinement runs {original.name} on noise, but no shape of its inputs was found; give the network an "
            "attribute input_format (a nern.originals.InputFormat), or set refinement.iterations to null"
        )
    rng = generator(seed, "weighting noise", shape)
    return torch.randn(count, *shape, generator=rng).to(original.weights[0])


def shapes_taken(original: Original) -> Iterator[tuple[int, ...]]:
    """Shapes of inputs that a network takes: what its `input_format` says, or those that its first layer may take."""
    known, like = original.input_format, original.weights[0]
    for shape in [known.shape] if known is not None else _shapes(original.network):
        try:
            original(torch.randn(2, *shape, generator=generator(0, "shape", shape)).to(like))
        except Exception:  # images of a size that it does not take
            continue
        yield shape


def _shapes(network: nn.Module) -> Iterator[tuple[int, ...]]:
    for module in network.modules():
        if isinstance(module, CONVOLUTIONS):
            yield from ((module.in_channels, *[side] * len(module.kernel_size)) for side in SIDES)
            return
        if isinstance(module, nn.Linear):
            yield (module.in_features,)
            return


def owners_of(original: Original) -> dict[int, nn.Module]:
    """Of each represented weight, by `id`, the module whose `weight` it is, where there is one."""
    owners = {id(p): module for module in original.network.modules() for p in module.parameters(recurse=False)}
    return {id(w): owners[id(w)] for w in original.weights if getattr(owners[id(w)], "weight", None) is w}


def windows(module: Any, inputs: Tensor) -> Float[Tensor, "images channels *places_and_kernel"]:
    """The inputs that a convolution's kernels meet at each place of its output: the places' axes, then the kernel's."""
    mode = module.padding_mode
    found = F.pad(inputs, module._reversed_padding_repeated_twice, "constant" if mode == "zeros" else mode)
    for axis, (size, stride, step) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        found = found.unfold(2 + axis, step * (size - 1) + 1, stride)[..., ::step]
    return found


class _Sums:
    """What is added up for one layer."""

    def __init__(self) -> None:
        self.products: Tensor | float = 0.0  # (groups, n, n), or of the squares alone (groups, n)
        self.inputs: Tensor | float = 0.0  # (groups, n)
        self.derivatives: Tensor | float = 0.0  # (filters,)
        self.places, self.images = 0, 0

    def add_inputs(self, patches: Float[Tensor, "groups p n"]) -> None:
        patches = patches.float()
        squares = patches.square().sum(1) if patches.shape[2] > MOST_INPUTS else patches.mT @ patches
        self.products = self.products + squares.double().cpu()
        self.inputs = self.inputs + patches.sum(1).double().cpu()
        self.places += patches.shape[1]

    def add_derivatives(self, gradient: Float[Tensor, "images filters *places"]) -> None:
        squares = gradient.float().flatten(2) if gradient.dim() > 2 else gradient.float().unsqueeze(2)
        self.derivatives = self.derivatives + squares.square().sum((0, 2)).double().cpu()
        self.images += len(gradient)

    def factors(self, mean_share: float) -> tuple[Tensor, Tensor]:
        """A, with so much of the inputs' mean, and the diagonal of G; both damped."""
        assert isinstance(self.products, Tensor)
        assert isinstance(self.inputs, Tensor)
        assert isinstance(self.derivatives, Tensor)
        a, mean, g = self.products / self.places, self.inputs / self.places, self.derivatives / self.images
        whole = a.dim() == 3
        a = a - (1 - mean_share) * (mean[:, :, None] * mean[:, None, :] if whole else mean.square())
        damping = DAMPING * _diagonal(a).mean(1).clamp_min(1e-30)
        eye = torch.eye(a.shape[1], dtype=a.dtype) if whole else torch.ones(a.shape[1], dtype=a.dtype)
        return a + damping.view(-1, *[1] * (a.dim() - 1)) * eye, g + DAMPING * g.mean()


def _diagonal(a: Tensor) -> Float[Tensor, "groups n"]:
    return a.diagonal(dim1=1, dim2=2) if a.dim() == 3 else a


def _root(a: Tensor) -> Float[Tensor, "groups n *n"]:
    """R with R R^T = A."""
    return (torch.linalg.cholesky(a) if a.dim() == 3 else a.sqrt()).float()


def _measure(original: Original, images: Seen, rng: torch.Generator) -> list[_Sums | None]:
    """Sums of each represented weight; None: its module is of another kind, or was not called."""
    owners = owners_of(original)
    sums = {id(w): _Sums() for w in original.weights if (m := owners.get(id(w))) is not None and meets_patches(m)}
    probes: list[Tensor] = []
    keys: list[int] = []

    def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        key = id(module.weight)
        with torch.no_grad():
            sums[key].add_inputs(patches(module, inputs[0], rng))
        probe = torch.zeros_like(output).requires_grad_()  # its gradient is that of the output
        probes.append(probe)
        keys.append(key)
        moved: Tensor = output + probe
        return moved

    handles = [owners[key].register_forward_hook(hook) for key in sums]
    try:
        for part in batches_of(images, IMAGES_AT_ONCE):
            probes.clear()
            keys.clear()
            with torch.enable_grad():
                outputs = call(original.network, part)
                if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
                    raise NernError(
                        f"refinement needs outputs that are one tensor of numbers; {original.name} gives "
                        f"{type(outputs).__name__}. Set refinement.iterations to null"
                    )
                directions = torch.randn(outputs.shape, generator=rng).to(outputs.device, outputs.dtype)
                if outputs.dim() == 2 and gives_scores(part):
                    directions = directions - directions.mean(1, keepdim=True)  # scores of classes, up to a constant
                along = (outputs * directions).sum()
                if not along.requires_grad:
                    continue
                gradients = torch.autograd.grad(along, probes, allow_unused=True)
            for key, gradient in zip(keys, gradients, strict=True):
                if gradient is not None:
                    linear = isinstance(owners[key], nn.Linear)  # its filters lie along the last axis
                    sums[key].add_derivatives(gradient.movedim(-1, 1) if linear else gradient)
    finally:
        for handle in handles:
            handle.remove()
    return [s if (s := sums.get(id(w))) is not None and s.places and s.images else None for w in original.weights]


def meets_patches(module: nn.Module) -> bool:
    """Whether the weights of a module multiply patches of its inputs, as those of convolutions and linear layers do."""
    return isinstance(module, (*CONVOLUTIONS, nn.Linear))


def patches(module: Any, inputs: Tensor, rng: torch.Generator, most: int = PLACES) -> Float[Tensor, "groups p n"]:
    """The inputs that the weights of a filter multiply, at so many drawn places of each image, the same of all."""
    if isinstance(module, nn.Linear):
        rows = inputs.reshape(len(inputs), -1, inputs.shape[-1])
        return rows[:, _drawn(rows.shape[1], rng, most).to(rows.device)].flatten(0, 1).unsqueeze(0)
    met = windows(module, inputs)
    shape = met.shape[2 : 2 + len(module.kernel_size)]  # of the output
    drawn = _drawn(math.prod(shape), rng, most).to(met.device)
    places: Any = torch.unravel_index(drawn, shape)
    found = met[(slice(None), slice(None), *places)]  # (images, channels, places, *kernel)
    grouped = found.unflatten(1, (module.groups, -1)).movedim(3, 2).flatten(3)  # (images, groups, places, n)
    return grouped.transpose(0, 1).flatten(1, 2)


def _drawn(places: int, rng: torch.Generator, most: int) -> Int[Tensor, " p"]:
    return torch.randperm(places, generator=rng)[:most]
