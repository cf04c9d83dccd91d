"""One pass through a network that rounds it as it goes.

Every image is there twice: in one half of the batch it meets the original's weights, in the other the rounded ones. Where a
layer is called, both of its inputs are known, and the layer is rounded such that what goes in rounded comes out as the
original's does (Frantar et al. 2022 round for the same inputs; here errors of earlier layers are made up for, too). Norms
and biases get the means and variances of the original's channels back, as in `fitted_norms`.

A few images at a time go through the network, and wait in front of each layer for the others (`turns`). Layers whose
activations are large are rounded on the first of the images alone; then more images start anew, through what is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nern.calibration.feedback import Rounded, short
from nern.calibration.modules import (
    PATCHES,
    Layer,
    Module,
    module_of,
    nearest,
    share_of_deviation,
    vector_step,
)
from nern.calibration.sensitivity import checked_outputs, has_vectors, of_weights, sensitivities
from nern.calibration.turns import Enough, Turns
from nern.devices import computing_in
from nern.inputs import Images, call, gives_scores, joined
from nern.objectives.curvature import meets_patches, owners_of
from nern.originals.base import Original
from nern.randomness import generator
from nern.representation.nern import NeRN

USUAL_ERROR = 1.0  # of the outputs' deviation, over the root of the number of weights: the usual quality
UNSEEN_QUALITY = 0.35  # the usual quality without images: a step as a share of a layer's deviation
UNFELT = 1.0  # the same of weights that move no output
HELD = 2**24  # numbers of activations that wait in front of a layer, at most
AT_ONCE = 2**22  # of them, that a few images have which go through the network at a time
MOST_TURNS = 32  # of these few


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
    images: Images | None,
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
    if images is None:
        values = [codes.values(layer) for layer in range(len(codes.codes))]
        return Calibrated([nearest(v, share_of_deviation(v, quality)) for v in values])
    with computing_in("float32", images.device), torch.inference_mode(False), torch.no_grad():
        work = _Pass(original, codes, quality, seed, on_layer, known or measured(original, images, seed))
        outputs = work.run(images)
        found = work.found()
    if outputs.dim() == 2 and outputs.shape[1] > 1 and gives_scores(images):
        first, second = outputs.argmax(1).chunk(2)
        found.agreement = 100 * float((first == second).float().mean())
    return found


def usual_quality(original: Original, images: Images | None, weights: int) -> float:
    """A quality that keeps a network of so many weights near the original."""
    if images is None:
        return UNSEEN_QUALITY
    with torch.no_grad():
        outputs = torch.cat([checked_outputs(call(original.network, part)) for part in images[:64].split(8)])
    return USUAL_ERROR * max(float(outputs.std(correction=0)), 1e-6) / math.sqrt(weights)


def measured(original: Original, images: Images, seed: int) -> dict[str, Tensor]:
    """The sensitivities that calibration needs: of modules that it can calibrate, by name, and of represented weights that
    are in none of these, by theirs."""
    modules = _seen_modules(original)
    halved = _halved(original.network, modules, images[:2])
    seen = {name: module for name, module in modules.items() if name in halved}
    met = {id(module.weight) for module in seen.values() if meets_patches(module)}
    named = zip(original.weight_names, original.weights, strict=True)
    others = {name: weight for name, weight in named if id(weight) not in met}
    found = sensitivities(original.network, seen, images, seed)
    return found | of_weights(original.network, others, images, seed)


@torch.no_grad()
def _halved(network: nn.Module, modules: Mapping[str, nn.Module], images: Images) -> set[str]:
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
        call(network, joined([images, images]))
    finally:
        for handle in handles:
            handle.remove()
    return {name for name, same in found.items() if same}


def _seen_modules(original: Original) -> dict[str, nn.Module]:
    owners = {id(module) for module in owners_of(original).values()}
    return {n: m for n, m in original.network.named_modules() if id(m) in owners or has_vectors(m)}


def vector_steps(original: Original, sensitivity: Mapping[str, Tensor], quality: float) -> dict[str, int]:
    """The number of the step of each vector of the modules whose sensitivity is known, by name."""
    modules = dict(original.network.named_modules())
    return {
        f"{name}.{key}" if name else key: vector_step(found, quality)
        for name, found in sensitivity.items()
        if name in modules
        for key, value in modules[name].named_parameters(recurse=False)
        if value.dim() == 1
    }


class _Pass:
    """Rounds all modules whose sensitivity is known, in the order in which they are called."""

    def __init__(
        self,
        original: Original,
        codes: Any,
        quality: float,
        seed: int,
        on_layer: Callable[[int], None] | None,
        sensitivity: Mapping[str, Tensor],
    ) -> None:
        self.network, self.codes, self.seed, self.on_layer = original.network, codes, seed, on_layer
        self.plain = {
            n: self._plain_step(n, float(sensitivity[name]), quality)
            for n, name in enumerate(original.weight_names)
            if name in sensitivity
        }
        owners = owners_of(original)
        self.numbers = {id(owners[id(w)]): n for n, w in enumerate(original.weights) if id(w) in owners}
        self.modules: dict[str, Module] = {}
        for name, module in original.network.named_modules():
            if name in sensitivity:
                number = self.numbers.get(id(module))
                own: tuple[Any, Any, float | None] = (None, None, None)
                if number is not None:
                    basis = codes.bases[codes.heads.of_layer[number]].detach()
                    own = (partial(codes.values, number), basis, self.plain.get(number))
                self.modules[name] = module_of(module, sensitivity[name], quality, *own)

    def _plain_step(self, number: int, sensitivity: float, quality: float) -> float:
        """The step of codes of a weight that are rounded each by itself."""
        if sensitivity > 0:
            return short(quality / math.sqrt(sensitivity))
        return share_of_deviation(self.codes.values(number), UNFELT)

    def run(self, images: Images) -> Tensor:
        """Outputs of the original on the images, and of the rounded network."""
        costs, outputs = self._costs(images[:1]), list[Tensor]()
        for module in self.modules.values():
            if not module.meets:
                self._finish(module)
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it leaves out the modules of a transformer's layers
        try:
            for place, name in enumerate(costs):
                self.modules[name].module.forward = partial(self._forward, name, place)
            for self.end, self.count in waves(list(costs.values()), len(images)):
                at_once = max(AT_ONCE // max(costs.values(), default=1), -(-self.count // MOST_TURNS), 1)
                self.turns = Turns(self._through, images[: self.count].split(at_once))
                outputs = self.turns.run()
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for name in costs:
                self.modules[name].module.__dict__.pop("forward", None)
        return torch.cat([torch.cat(halves) for halves in zip(*(part.chunk(2) for part in outputs), strict=True)])

    def found(self) -> Calibrated:
        """What became of the modules; of codes that were not met, too."""
        layers = {self.numbers[id(m.module)]: m.layer for m in self.modules.values() if m.layer is not None}
        found = Calibrated(
            [layers.get(n) or nearest(self.codes.values(n), self.plain[n]) for n in range(len(self.codes.codes))]
        )
        for name, module in self.modules.items():
            for key, value in module.vectors.items():
                whole = f"{name}.{key}" if name else key
                found.vectors[whole], found.steps[whole] = value, module.step
        return found

    def _costs(self, images: Images) -> dict[str, int]:
        """Numbers that wait in front of each module for one image, by name, in the order in which they are called."""
        found: dict[str, int] = {}

        def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found.setdefault(name, 2 * (inputs[0].numel() + output.numel()))

        with ExitStack() as hooks:
            for name, module in self.modules.items():
                hooks.enter_context(module.module.register_forward_hook(partial(note, name)))
            call(self.network, images)
        return found

    def _through(self, images: Images) -> Tensor:
        with torch.no_grad():
            return checked_outputs(call(self.network, joined([images, images])))

    def _forward(self, name: str, place: int, both: Tensor) -> Tensor:
        """What a module gives for both halves of a batch, rounded before if it is not yet."""
        module, (first, second) = self.modules[name], both.chunk(2)
        met = not module.done
        if met:
            if place >= self.end:
                raise Enough
            rng = generator(self.seed, "places", name, self.turns.running)
            module.add(both, max(1, PATCHES // self.count), rng)
            self.turns.meet(partial(self._finish, module))
        outputs = module.as_it_is.forward(first), module.rounded.forward(second)
        if met and isinstance(module, Layer) and module.has_bias:
            module.add_outputs(*outputs)
            self.turns.meet(module.finish_bias)
            outputs = outputs[0], module.rounded.forward(second)
        return torch.cat(outputs)

    def _finish(self, module: Module) -> None:
        module.finish()
        if module.layer is not None and self.on_layer is not None:
            self.on_layer(sum(other.layer is not None for other in self.modules.values()))


def waves(costs: Sequence[int], images: int) -> Iterator[tuple[int, int]]:
    """How many modules are rounded, and on how many images, each time that images start anew.

    Args:
        costs: numbers that wait in front of each module for one image.
        images: that there are.
    """
    counts = []
    for cost in costs:
        count = images
        while count > 1 and count * cost > HELD:
            count = -(-count // 2)
        counts.append(count)
    found, end = list[tuple[int, int]](), len(costs)
    while end > 0 or not found:
        count, start = (counts[end - 1], end - 1) if end else (images, 0)
        while start > 0 and counts[start - 1] >= count:
            start -= 1
        found.append((end, count))
        end = start
    yield from reversed(found)
