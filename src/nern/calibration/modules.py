"""One module that is rounded: what it meets is added up, a few images at a time, and then it is rounded by it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nern.calibration.feedback import Inputs, Rounded, rounded, short
from nern.calibration.sensitivity import channel_axis
from nern.objectives.curvature import meets_patches, patches
from nern.originals.norm_fitting import fitted_to
from nern.representation.codes import is_identity
from nern.representation.grid import on_grid, step_number, step_size

PATCHES = 2**14  # inputs of a layer that are looked at, over all images
MOST_INPUTS = 2304  # weights of a filter that are rounded with one matrix of moments; of larger ones parts are
VECTORS = 0.5  # step of norms and biases, as a share of what codes have at the same sensitivity


GivesCodes = Callable[[], Tensor] | None


class Module:
    """A module of the network, as it is and rounded. Its vectors are rounded to a grid, its codes to the nearest.

    Args:
        module: whose parameters they are.
        sensitivity: of its outputs.
        quality: see `feedback.rounded`.
        codes: gives those of its weight; None: this is not represented.
        basis: of the codes.
        plain: step of codes that are rounded each by itself; None: these are not.

    Attributes:
        vectors: its rounded vectors, by their own names, once it is `done`.
        layer: its rounded codes.
        step: the number of the vectors' step.
        meets: what it meets is added up before it is rounded.
    """

    meets = False

    def __init__(
        self, module: nn.Module, sensitivity: Tensor, quality: float, codes: GivesCodes, basis: Any, plain: float | None
    ) -> None:
        self.module, self.sensitivity, self.quality = module, sensitivity, quality
        self.codes, self.basis, self.plain = codes, basis, plain
        self.as_it_is, self.rounded = copy.copy(module), copy.copy(module)
        self.rounded._parameters = dict(module._parameters)
        self.step = vector_step(sensitivity, quality)
        self.vectors: dict[str, Tensor] = {}
        self.layer: Rounded | None = None
        self.done = False

    def own_vectors(self) -> dict[str, Tensor]:
        """The vectors that are rounded, as the rounded module should have them."""
        return {key: p for key, p in self.module.named_parameters(recurse=False) if p.dim() == 1}

    def finish(self) -> None:
        """Round it."""
        if self.codes is not None:
            self.layer = self.rounded_codes(self.codes())
            own: Any = self.module.weight
            values = (self.layer.values @ self.basis.T).view_as(own).to(own.dtype)
            self.rounded._parameters["weight"] = nn.Parameter(values, requires_grad=False)
        for key, value in self.own_vectors().items():
            self.take(key, value)
        self.done = True

    def add(self, both: Tensor, places: int, rng: torch.Generator) -> None:
        """Add inputs of some images, where it `meets` them.

        Args:
            both: of the original in the first half of the batch, of the rounded network in the second.
            places: of each image that are looked at, drawn; the same of both halves.
            rng: draws them.
        """

    def rounded_codes(self, codes: Tensor) -> Rounded:
        """The codes, rounded."""
        assert self.plain is not None
        return nearest(codes, self.plain)

    def take(self, key: str, value: Tensor) -> None:
        """Take a vector, rounded."""
        if float(value.abs().max()) < step_size(self.step) * 2**20:
            self.vectors[key] = on_grid(value, self.step)
            self.rounded._parameters[key] = nn.Parameter(self.vectors[key], requires_grad=False)


class Layer(Module):
    """A convolution or a linear layer whose weight is represented."""

    meets = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.count, self.sums = 0, list[tuple[slice, Inputs]]()
        self.places, self.lacking = 0, torch.zeros(())

    def add(self, both: Tensor, places: int, rng: torch.Generator) -> None:
        """See `Module`."""
        assert self.codes is not None
        codes = self.codes()
        met = patches(self.module, both, rng, places)
        groups, count, n = met.shape
        k = codes.shape[2]
        if not is_identity(self.basis.cpu()):
            met = (met.reshape(groups, count, n // k, k) @ self.basis).view(groups, count, n)
        first, second = met.chunk(2, dim=1)
        codes = codes.view(groups, -1, n)
        if not self.sums:
            width = n if n <= MOST_INPUTS else MOST_INPUTS // k * k
            for start in range(0, n, width):
                part = slice(start, min(start + width, n))
                size = part.stop - part.start
                moments, outputs = met.new_zeros(groups, size, size), met.new_zeros(groups, codes.shape[1], size)
                self.sums.append((part, Inputs(moments, outputs)))
        for part, inputs in self.sums:
            ours = second[:, :, part]
            inputs.moments.baddbmm_(ours.mT, ours)
            inputs.outputs.baddbmm_((first[:, :, part] @ codes[:, :, part].mT).mT, ours)
        self.count += count // 2

    def rounded_codes(self, codes: Tensor) -> Rounded:
        """The codes, rounded by what was added."""
        multiples, step = [], None
        k = codes.shape[2]
        while self.sums:
            part, inputs = self.sums.pop(0)
            inputs.moments.div_(self.count)
            inputs.outputs.div_(self.count)
            found = rounded(codes[:, part.start // k : part.stop // k], inputs, self.sensitivity, self.quality, step)
            multiples.append(found.multiples)
            step = found.step
        assert step is not None
        return Rounded(torch.cat(multiples, 1), step)

    @property
    def has_bias(self) -> bool:
        """Whether it has a bias, which makes up for the means that its outputs lack."""
        return "bias" in self.vectors

    def add_outputs(self, first: Tensor, second: Tensor) -> None:
        """Add outputs of some images, the original's and the rounded ones."""
        lacking = (first - second).movedim(channel_axis(self.module), 0).flatten(1)
        self.lacking = self.lacking.to(lacking) + lacking.sum(1)
        self.places += lacking.shape[1]

    def finish_bias(self) -> None:
        """Round the bias again, with what the means lack."""
        self.take("bias", self.module.get_parameter("bias") + self.lacking / self.places)


class Norm(Module):
    """A batch norm: its channels get the means and variances of the original's back."""

    meets = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.count, self.sums = 0, torch.zeros(())

    def add(self, both: Tensor, places: int, rng: torch.Generator) -> None:
        """See `Module`; all places are looked at."""
        channels = torch.stack(both.chunk(2)).transpose(1, 2).flatten(2)  # (2, channels, images and places)
        variance, mean = torch.var_mean(channels, 2, correction=0)
        mean, count = mean.double(), channels.shape[2]
        self.sums = self.sums.to(mean) + count * torch.stack([mean, variance.double() + mean.square()])
        self.count += count

    def own_vectors(self) -> dict[str, Tensor]:
        """See `Module`."""
        mean, squares = self.sums / self.count
        wanted, found = zip(mean, (squares - mean.square()).clamp_min(0), strict=True)
        weight, bias = fitted_to(self.module, wanted, found)
        return {"weight": weight, "bias": bias}


def module_of(
    module: nn.Module, sensitivity: Tensor, quality: float, codes: GivesCodes, basis: Tensor | None, plain: float | None
) -> Module:
    """A module of the kind that is needed."""
    kind: type[Module] = Module
    if codes is not None and meets_patches(module):
        kind = Layer
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and module.running_var is not None:
        kind = Norm
    return kind(module, sensitivity, quality, codes, basis, plain)


def nearest(codes: Tensor, step: float) -> Rounded:
    """Codes rounded to the nearest multiples of a step."""
    return Rounded((codes.double() / step).round().to(torch.int32), step)


def share_of_deviation(codes: Tensor, share: float) -> float:
    """A step that is this share of the standard deviation of codes."""
    deviation = float(codes.double().square().mean().sqrt())
    return short(share * deviation) if deviation > 0 else 1.0


def vector_step(sensitivity: Tensor, quality: float) -> int:
    """The number of the step of a module's norm weights and biases."""
    return step_number(VECTORS * quality / math.sqrt(max(float(sensitivity.mean()), 1e-60)))
