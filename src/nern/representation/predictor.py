"""Predictors: MLPs from an encoding to a kernel.

State dicts have the published names: `layers.{i}.weight`, `layers.{i}.bias`, `final_linear_layer.weight`,
`final_linear_layer.bias` (and `norms.{i}.*` if a norm layer was asked for), so checkpoints travel both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from nern.errors import NernError
from nern.randomness import forked_rng
from nern.registry import ACTIVATIONS, INITS, NORM_LAYERS, PREDICTORS, Choice
from nern.representation.encoding import Encodings
from nern.weights_file import load_weights


class Sine(nn.Module):
    """The sine, as an activation (Sitzmann et al. 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        """Of each entry."""
        return x.sin()


for _name, _activation in {
    "relu": partial(nn.ReLU, inplace=True),
    "leaky_relu": partial(nn.LeakyReLU, inplace=True),
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "relu6": partial(nn.ReLU6, inplace=True),
    "elu": partial(nn.ELU, inplace=True),
    "sine": Sine,
}.items():
    ACTIVATIONS.register(_name)(_activation)

for _name, _norm in {"none": None, "bn": nn.BatchNorm1d, "ln": nn.LayerNorm}.items():
    NORM_LAYERS.register(_name)(_norm)


Input = Float[Tensor, "n e"] | Encodings
SCALES = "output_scales"  # the parameter that holds them


@PREDICTORS.register("kxk", num_idxs=3)
class KxKPredictor(nn.Module):
    """`num_blocks` linear layers, an activation after each but the last; the output is a kernel.

    Args:
        input_size: length of an encoding.
        kernel_sizes: (height, width) of the kernels that each head gives.
        norm_layer: 'bn' uses the statistics of the rows predicted with gradient while training, running averages otherwise.
        head_names: of the heads, where there are several; empty: their sizes.
        output_scales: how many scales of outputs it holds; they are set, and applied, from outside. Not trained.

    Heads share all layers but the final one. Shapes: (rows, input_size) -> (rows, height, width) of the head. Under
    autocast the hidden layers compute in the lower precision, the first where it separates by index and the final one in
    float32.
    """

    takes_encodings = True  # besides tensors, an `Encodings`

    def __init__(
        self,
        input_size: int,
        kernel_sizes: Sequence[tuple[int, int]] = ((3, 3),),
        hidden_layer_size: int = 30,
        num_blocks: int = 3,
        act_layer: str = "relu",
        norm_layer: str = "none",
        head_names: Sequence[str] = (),
        output_scales: int = 0,
    ) -> None:
        super().__init__()
        if num_blocks < 2:
            raise NernError(f"nern.num_blocks (={num_blocks}) must be at least 2")
        self.kernel_sizes = list(kernel_sizes)
        self.middle = num_blocks // 2
        sizes = [self.layer_input_size(i, input_size, hidden_layer_size) for i in range(num_blocks - 1)]
        self.layers = nn.ModuleList(nn.Linear(size, hidden_layer_size) for size in sizes)
        self.head_names = list(head_names) or [f"{h}x{w}" for h, w in self.kernel_sizes]
        pairs = zip(self.head_names, self.kernel_sizes, strict=True)
        finals = {name: nn.Linear(hidden_layer_size, h * w) for name, (h, w) in pairs}
        if len(finals) == 1:  # the published name
            self.final_linear_layer = next(iter(finals.values()))
        else:
            self.final_linear_layers = nn.ModuleDict(finals)
        self.activation: nn.Module = ACTIVATIONS[act_layer]()
        norm: Any = NORM_LAYERS[norm_layer]
        self.norms = nn.ModuleList(norm(hidden_layer_size) for _ in sizes) if norm else None
        scales = nn.Parameter(torch.ones(output_scales), requires_grad=False) if output_scales else None
        self.register_parameter(SCALES, scales)

    def layer_input_size(self, index: int, input_size: int, hidden_layer_size: int) -> int:
        """Input size of hidden layer `index`."""
        return input_size if index == 0 else hidden_layer_size

    def linear(self, index: int, h: Input, skip: Tensor | None = None) -> Tensor:
        """Hidden linear layer `index` of `h` (of [h, skip] where there is a skip), normalised, before its activation."""
        layer: Any = self.layers[index]
        weight, bias = layer.weight, layer.bias
        if skip is not None:
            weight, rest = weight.split([weight.shape[1] - skip.shape[1], skip.shape[1]], dim=1)
        result = h.linear(weight, bias) if isinstance(h, Encodings) else F.linear(h, weight, bias)
        if skip is not None:
            result = result + F.linear(skip, rest)
        if self.norms is None:
            return result
        norm = self.norms[index]
        if len(result) == 1 and self.training and isinstance(norm, nn.BatchNorm1d):  # a single row has no variance
            return F.batch_norm(result, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return norm(result)

    def hidden(self, encodings: Input) -> Float[Tensor, "n h"]:
        """Everything before the final linear layer."""
        h: Any = encodings
        for index in range(len(self.layers)):
            h = self.activation(self.linear(index, h))
        return h

    def forward(self, encodings: Input, head: int = 0) -> Float[Tensor, "n h w"]:
        """Kernels of encoded coordinates, of the size of `head`."""
        height, width = self.kernel_sizes[head]
        single = len(self.kernel_sizes) == 1
        final: Any = self.final_linear_layer if single else self.final_linear_layers[self.head_names[head]]
        hidden = self.hidden(encodings)
        with torch.autocast(hidden.device.type, enabled=False):  # weights deserve all their digits
            return F.linear(hidden.float(), final.weight, final.bias).unflatten(-1, (height, width))


@PREDICTORS.register("kxk_nerf", num_idxs=3)
class KxKNerfPredictor(KxKPredictor):
    """As kxk; hidden layer `num_blocks // 2` receives [encoding, running activation] (the skip of NeRF). Of two blocks, the
    one hidden layer comes before it: as kxk."""

    def layer_input_size(self, index: int, input_size: int, hidden_layer_size: int) -> int:
        if index == self.middle:
            return input_size + hidden_layer_size
        return super().layer_input_size(index, input_size, hidden_layer_size)

    def hidden(self, encodings: Input) -> Float[Tensor, "n h"]:
        h: Any = encodings
        for index in range(len(self.layers)):
            skipped = index == self.middle
            h = self.activation(self.linear(index, encodings, h) if skipped else self.linear(index, h))
        return h


@PREDICTORS.register("kxk_residual", num_idxs=3)
class KxKResidualPredictor(KxKPredictor):
    """As kxk, but no activation follows the first layer, and its output is added to that of hidden layer
    `num_blocks // 2` before the activation there. Of two blocks, that layer is not there: two linear maps."""

    def hidden(self, encodings: Input) -> Float[Tensor, "n h"]:
        first = h = self.linear(0, encodings)
        for index in range(1, len(self.layers)):
            h = self.linear(index, h)
            h = self.activation(h + first if index == self.middle else h)
        return h


@PREDICTORS.register("basic", num_idxs=5)
class BasicPredictor(KxKPredictor):
    """As kxk, but a coordinate has five indices (layer, filter, channel, row, column) and the output is one weight,
    as a 1 x 1 kernel."""

    def __init__(self, input_size: int, kernel_sizes: Sequence[tuple[int, int]] = ((1, 1),), **kwargs: Any) -> None:
        super().__init__(input_size, kernel_sizes=kernel_sizes, **kwargs)


def parameters_of(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


@INITS.register("default")
def default_init(predictor: nn.Module, checkpoint_path: str | None) -> None:
    """PyTorch's own initialisation, which construction did already."""


@INITS.register("fmod")
def fmod_init(predictor: nn.Module, checkpoint_path: str | None) -> None:
    """Parameters of two or more dimensions are replaced by their remainder by 2. On PyTorch's initialisation, whose
    values lie within 1, this changes nothing."""
    with torch.no_grad():
        for parameter in predictor.parameters():
            if parameter.dim() >= 2:
                parameter.fmod_(2)


@INITS.register("siren")
def siren_init(predictor: nn.Module, checkpoint_path: str | None) -> None:
    """Weights of hidden layers uniform within +-sqrt(6 / fan-in): before each sine values are then normal with a variance
    of about 1 (Sitzmann et al. 2020, section 3.2; frequencies are the encoding's part). The rest is PyTorch's own."""
    layers: Any = predictor.layers
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(6**0.5)  # PyTorch's lie within +-1 / sqrt(fan-in)


@INITS.register("checkpoint")
def checkpoint_init(predictor: nn.Module, checkpoint_path: str | None) -> None:
    """Weights from a file: ours, or a predictor's state dict of the published framework, alone or in a training
    checkpoint. Raises NernError naming the keys to look at if it does not fit."""
    assert checkpoint_path is not None  # the config's check
    load_weights(
        predictor,
        checkpoint_path,
        "predictor checkpoint",
        "Its shape follows from nern.method, num_blocks, hidden_layer_size, heads, output_scales, output_size, norm_layer "
        "and nern.embeddings; they must be those of the run that wrote it.",
    )


def build_predictor(
    method: Choice, seed: int, init: str = "default", checkpoint_path: str | None = None, **kwargs: Any
) -> Any:
    """The predictor registered as `method`, initialised from `seed` (or the checkpoint); kwargs: its arguments."""
    with forked_rng(seed, "predictor"):
        predictor: nn.Module = PREDICTORS[method](**kwargs)
    INITS[init](predictor, checkpoint_path)
    return predictor
