"""One pass through a network that rounds it as it goes.

Every image is there twice: in one half of the batch it meets the original's weights, in the other the rounded ones. Where a
layer is called, both of its inputs are known, and the layer is rounded such that what goes in rounded comes out as the
original's does (Frantar et al. 2022 round for the same inputs; here errors of earlier layers are made up for, too). Norms
and biases get the means and variances of the original's channels back, as in `fitted_norms`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nern.calibration.feedback import Inputs, Rounded, rounded, short
from nern.calibration.sensitivity import channel_axis, checked_outputs, has_vectors, sensitivities
from nern.devices import computing_in
from nern.objectives.curvature import owners_of, patches
from nern.originals.base import Original
from nern.originals.norm_fitting import fitted_to
from nern.randomness import generator
from nern.representation.grid import on_grid, step_number, step_size
from nern.representation.nern import NeRN

PATCHES = 2**14  # inputs of a layer that are looked at, over all images
MOST_INPUTS = 4608  # weights of a filter that are rounded with one matrix of moments; of larger ones parts are
UNSEEN = 0.125  # step of weights that no image tells of, as a share of their standard deviation
USUAL_ERROR = 1.0  # of the outputs' deviation, over the root of the number of weights: the usual quality
UNSEEN_QUALITY = 0.35  # the usual quality without images: a step as a share of a layer's deviation
VECTORS = 0.5  # step of norms and biases, as a share of what codes have at the same sensitivity


@dataclass
class Calibrated:
    """A rounded network.

    Attributes:
        layers: codes of each represented weight.
        vectors: rounded parameters of norms and biases, by name.
        steps: the number of the step of each vector.
        agreement: of the classes of the original and of the rounded network on the images, in percent; None: not known.
    """

    layers: list[Rounded]
    vectors: dict[str, Tensor] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    agreement: float | None = None


def calibrate(
    original: Original,
    nern: NeRN,
    images: Tensor | None,
    quality: float,
    seed: int,
    on_layer: Callable[[int], None] | None = None,
    known: Mapping[str, Tensor] | None = None,
) -> Calibrated:
    """Round the codes of a network.

    Args:
        original: the network.
        nern: of method 'codes', its codes those of the original's weights.
        images: on which it is calibrated; None: none, each weight is rounded by itself.
        quality: see `feedback.rounded`; without images, the step as a share of each layer's standard deviation.
        seed: of drawn places and directions.
        on_layer: is told how many layers are done.
        known: what `measured` gave, to measure it once only.

    Raises:
        NernError: outputs that are no tensor, or not finite.
    """
    codes: Any = nern.predictor
    heads = nern.heads
    bases = [codes.bases[head].detach() for head in heads.of_layer]
    values = codes.values()
    if images is None:
        return Calibrated([_unseen(value, quality) for value in values])
    with computing_in("float32", images.device), torch.inference_mode(False), torch.no_grad():
        found = _Pass(original, values, bases, quality, seed, on_layer, known or measured(original, images, seed))
        outputs = found.run(images)
    layers = [found.layers.get(number) or _unseen(values[number], UNSEEN) for number in range(len(values))]
    agreement = None
    if outputs.dim() == 2 and outputs.shape[1] > 1:
        first, second = outputs.argmax(1).chunk(2)
        agreement = 100 * float((first == second).float().mean())
    return Calibrated(layers, found.vectors, found.steps, agreement)


def usual_quality(original: Original, images: Tensor | None, weights: int) -> float:
    """A quality that keeps a network of so many weights near the original."""
    if images is None:
        return UNSEEN_QUALITY
    with torch.no_grad():
        outputs = checked_outputs(original.network(images[:64]))
    return USUAL_ERROR * max(float(outputs.std(correction=0)), 1e-6) / math.sqrt(weights)


def measured(original: Original, images: Tensor, seed: int) -> dict[str, Tensor]:
    """The sensitivities that calibration needs, by name of the module; of those that it can calibrate."""
    modules = _seen_modules(original)
    halved = _halved(original.network, modules, images[:2])
    return sensitivities(original.network, {name: m for name, m in modules.items() if name in halved}, images, seed)


@torch.no_grad()
def _halved(network: nn.Module, modules: Mapping[str, nn.Module], images: Tensor) -> set[str]:
    """The modules whose inputs' first axis has one half for each half of a batch."""
    found: dict[str, bool] = {}

    def hook(name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x, same = inputs[0] if len(inputs) == 1 else None, False
            if isinstance(x, Tensor) and x.dim() > 0 and len(x) % (2 * len(images)) == 0:
                first, second = x.double().chunk(2)
                same = torch.allclose(first, second, rtol=1e-3, atol=1e-6)
            found[name] = same and found.get(name, True)

        return look

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        network(torch.cat([images, images]))
    finally:
        for handle in handles:
            handle.remove()
    return {name for name, same in found.items() if same}


def _seen_modules(original: Original) -> dict[str, nn.Module]:
    owners = {id(module) for module in owners_of(original).values()}
    return {n: m for n, m in original.network.named_modules() if id(m) in owners or has_vectors(m)}


def _unseen(codes: Tensor, share: float) -> Rounded:
    """Codes rounded to the nearest multiples of a share of their standard deviation."""
    deviation = float(codes.double().square().mean().sqrt())
    step = short(share * deviation) if deviation > 0 else 1.0
    return Rounded((codes.double() / step).round().to(torch.int32), step)


def vector_step(sensitivity: Tensor, quality: float) -> int:
    """The number of the step of a module's norm weights and biases."""
    return step_number(VECTORS * quality / math.sqrt(max(float(sensitivity.mean()), 1e-60)))


def vector_steps(original: Original, sensitivity: Mapping[str, Tensor], quality: float) -> dict[str, int]:
    """The number of the step of each vector of the modules whose sensitivity is known, by name."""
    modules = dict(original.network.named_modules())
    return {
        f"{name}.{key}" if name else key: vector_step(found, quality)
        for name, found in sensitivity.items()
        for key, value in modules[name].named_parameters(recurse=False)
        if value.dim() == 1
    }


class _Pass:
    """Hooks on all modules whose parameters are rounded."""

    def __init__(
        self,
        original: Original,
        codes: Sequence[Tensor],
        bases: Sequence[Tensor],
        quality: float,
        seed: int,
        on_layer: Callable[[int], None] | None,
        sensitivity: Mapping[str, Tensor],
    ) -> None:
        self.original, self.codes, self.bases, self.quality, self.on_layer = original, codes, bases, quality, on_layer
        self.sensitivity, self.rng = sensitivity, generator(seed, "places")
        owners = owners_of(original)
        self.numbers = {id(owners[id(w)]): n for n, w in enumerate(original.weights) if id(w) in owners}
        self.layers: dict[int, Rounded] = {}
        self.vectors: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}
        self.half = 0

    def run(self, images: Tensor) -> Tensor:
        """Outputs of the original on the images, and of the rounded network."""
        handles = [
            module.register_forward_hook(self._hook(name))
            for name, module in _seen_modules(self.original).items()
            if name in self.sensitivity
        ]
        self.half = len(images)
        try:
            return checked_outputs(self.original.network(torch.cat([images, images])))
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        replaced: dict[str, Tensor] = {}  # parameters of the module, once it has been rounded

        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if len(output) % (2 * self.half):  # a call of this hook's own, of one half
                return output
            if not replaced:
                replaced.update(self._rounded(name, module, inputs[0], output))
            if not replaced:
                return output
            second = functional_call(module, replaced, (inputs[0][len(inputs[0]) // 2 :],))
            return torch.cat([output[: len(output) // 2], second])

        return hook

    def _rounded(self, name: str, module: Any, inputs: Tensor, output: Tensor) -> dict[str, Tensor]:
        """The parameters of a module, rounded."""
        found: dict[str, Tensor] = {}
        own = dict(module.named_parameters(recurse=False))
        sensitivity = self.sensitivity[name]
        number = self.numbers.get(id(module))
        if number is not None:
            layer = self._layer(number, module, inputs, sensitivity)
            self.layers[number] = layer
            found["weight"] = (layer.values @ self.bases[number].T).view_as(module.weight).to(module.weight.dtype)
            if self.on_layer is not None:
                self.on_layer(len(self.layers))
        vectors = {key: value for key, value in own.items() if key not in found and value.dim() == 1}
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            vectors = vectors | _fitted(module, inputs)
        elif "bias" in vectors and number is not None:
            vectors["bias"] = vectors["bias"] + self._missing(module, found, inputs, output)
        step = vector_step(sensitivity, self.quality)
        prefix = f"{name}." if name else ""
        for key, value in vectors.items():
            if float(value.abs().max()) < step_size(step) * 2**20:
                found[key] = on_grid(value, step)
                self.vectors[prefix + key], self.steps[prefix + key] = found[key], step
        return found

    def _layer(self, number: int, module: Any, inputs: Tensor, sensitivity: Tensor) -> Rounded:
        codes, basis = self.codes[number], self.bases[number]
        if isinstance(module, nn.Embedding):
            return _unseen(codes, UNSEEN)
        met = patches(module, inputs, self.rng, max(1, PATCHES // self.half))  # the same places of both halves
        if met.shape[2] <= MOST_INPUTS:
            return rounded(codes, _moments(met).rotated(basis), sensitivity, self.quality)
        parts, start, step = [], 0, None
        for part in codes.split(MOST_INPUTS // codes.shape[2], dim=1):
            own = met[:, :, start : start + part.shape[1] * part.shape[2]]
            start += own.shape[2]
            parts.append(rounded(part, _moments(own).rotated(basis), sensitivity, self.quality, step))
            step = parts[0].step
        return Rounded(torch.cat([part.multiples for part in parts], 1), parts[0].step)

    def _missing(self, module: Any, found: Mapping[str, Tensor], inputs: Tensor, output: Tensor) -> Tensor:
        """What the means of a module's outputs lack with its rounded weight."""
        second = functional_call(module, dict(found), (inputs[len(inputs) // 2 :],))
        axis = channel_axis(module)
        return (output[: len(output) // 2] - second).movedim(axis, 0).flatten(1).mean(1)


def _moments(met: Tensor) -> Inputs:
    """Second moments of the later half of patches, and of the earlier with it."""
    first, second = met.chunk(2, dim=1)
    count = first.shape[1]
    return Inputs(second.mT @ second / count, first.mT @ second / count)


def _fitted(norm: Any, inputs: Tensor) -> dict[str, Tensor]:
    """Weight and bias of a batch norm that give the later half of its inputs the moments of the earlier."""
    if norm.running_var is None or norm.weight is None or norm.bias is None:
        return {}
    first, second = (half.transpose(0, 1).flatten(1).double() for half in inputs.chunk(2))
    wanted, found = ((half.mean(1), half.var(1, correction=0)) for half in (first, second))
    weight, bias = fitted_to(norm, wanted, found)
    return {"weight": weight, "bias": bias}
