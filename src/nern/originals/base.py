"""The contract of an original network, and the frozen handle through which everything else uses it."""

from __future__ import annotations

import copy
import fnmatch
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nern.errors import NernError, unknown_name
from nern.files import load_into, load_state_dict
from nern.registry import ORIGINALS

FeatureMaps = list[Tensor]
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def register_original(name: str) -> Callable[[Any], Any]:
    """Class decorator: make an `OriginalNetwork` available as `task.original_model_name`."""
    return ORIGINALS.register(name)


class OriginalNetwork(nn.Module):
    """Base of networks that a config can name. Every method has a default that fits most networks.

    Override `get_learnable_weights` to choose what the NeRN represents, `get_feature_maps` to choose what the
    feature-map loss compares, `load` for another file format.
    """

    def get_learnable_weights(self) -> list[Tensor]:
        """The weights that the NeRN represents, four-dimensional. Default: those of all 2-d convolutions, in order."""
        return [m.weight for m in self.modules() if isinstance(m, nn.Conv2d)]

    def feature_map_modules(self) -> list[str]:
        """Names of the modules whose outputs are the feature maps. Default: the normalisation layers (outputs before
        the activation); the convolutions where there are none."""
        named = list(self.named_modules())
        norms = [name for name, m in named if isinstance(m, _NORMS)]
        return norms or [name for name, m in named if isinstance(m, nn.Conv2d)]

    def get_feature_maps(self, batch: Tensor) -> tuple[Tensor, FeatureMaps]:
        """Output and feature maps (before the activation) of a batch. Default: outputs of `feature_map_modules`."""
        return tapped_forward(self, self.feature_map_modules(), batch)

    def load(self, path: str, device: torch.device) -> None:
        """Load weights from a state-dict file; NernError if they do not fit."""
        load_into(self, load_state_dict(path, "original network's weights"), f"original network's weights {path}")
        self.to(device)

    @classmethod
    def infer_kwargs(cls, state: dict[str, Tensor]) -> dict[str, Any]:
        """Constructor arguments that the weights themselves tell (used where no JSON file does). Default: none."""
        return {}


class ModuleNetwork(OriginalNetwork):
    """Any `nn.Module` as an original network."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Tensor) -> Tensor:
        """The module's own output."""
        output: Tensor = self.module(batch)
        return output

    def load(self, path: str, device: torch.device) -> None:
        """Load the module's own state dict."""
        load_into(
            self.module, load_state_dict(path, "original network's weights"), f"original network's weights {path}"
        )
        self.to(device)


def tapped_forward(network: nn.Module, names: Sequence[str], batch: Tensor) -> tuple[Tensor, FeatureMaps]:
    """Run `network` and return its output and the outputs of the named modules, in the order of `names`.

    A name may occur twice. If the network changes a recorded output in place later on, the pass is repeated with copies.
    """
    for clone in (False, True):
        outputs: dict[str, list[tuple[Tensor, int]]] = {name: [] for name in names}
        with _hooks(network, outputs, clone):
            result = network(batch)
        if all(t._version == version for taps in outputs.values() for t, version in taps):
            break
    return result, [tensor for name in names for tensor, _ in outputs[name]]


@contextmanager
def _hooks(network: nn.Module, outputs: dict[str, list[tuple[Tensor, int]]], clone: bool) -> Iterator[None]:
    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise NernError(f"module {name!r} gives {type(output).__name__}, not a tensor: no feature map")
            kept = output.clone() if clone else output
            outputs[name].append((kept, kept._version))

        return hook

    handles = [network.get_submodule(name).register_forward_hook(record(name)) for name in outputs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Original:
    """An original network, frozen and in eval mode, with the ways to run it on other weights.

    Args:
        network: taken over: put in eval mode, gradients switched off. Pass a copy of what you still need.
        feature_maps: names or globs of modules to compare in place of the network's own choice.

    Raises:
        NernError: no learnable weights, one that is no parameter of the network, values that are not finite, or a glob
            that matches nothing.
    """

    def __init__(self, network: OriginalNetwork, feature_maps: Sequence[str] | None = None) -> None:
        self.network = network.eval().requires_grad_(False)
        names = {id(p): name for name, p in network.named_parameters()}
        weights = list({id(weight): weight for weight in network.get_learnable_weights()}.values())  # tied ones once
        for index, weight in enumerate(weights):
            if id(weight) not in names:
                raise NernError(
                    f"learnable weight {index} is not a parameter of {self.name}, but computed from some (by weight_norm, "
                    "say): make it one (torch.nn.utils.parametrize.remove_parametrizations)"
                )
            if not weight.is_floating_point() or weight.is_meta:
                raise NernError(
                    f"{names[id(weight)]} holds {weight.dtype} on device {weight.device}; real numbers are needed"
                )
        if not weights:
            raise NernError(f"{self.name} has no convolutions: there is nothing for a NeRN to represent")
        self.weight_names = [names[id(weight)] for weight in weights]
        for name, value in network.state_dict().items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise NernError(f"{name} of {self.name} holds values that are not finite (NaN or infinity)")
        self._taps = None if feature_maps is None else _match(network, feature_maps)

    @property
    def name(self) -> str:
        """Name of the architecture."""
        network = self.network.module if isinstance(self.network, ModuleNetwork) else self.network
        return type(network).__name__

    @property
    def weights(self) -> list[Tensor]:
        """The learnable weights."""
        return [self.network.get_parameter(name) for name in self.weight_names]

    @property
    def num_parameters(self) -> int:
        """All parameters of the network."""
        return sum(p.numel() for p in self.network.parameters())

    def kept(self) -> dict[str, Tensor]:
        """Everything the NeRN does not represent: other parameters and buffers, by name."""
        represented = {id(weight) for weight in self.weights}  # by identity: a tied weight has several names
        state = self.network.state_dict(keep_vars=True)
        return {name: value.detach() for name, value in state.items() if id(value) not in represented}

    def digest(self) -> str:
        """Digest of all parameters and buffers."""
        digest = hashlib.sha256()
        for name, value in self.network.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def classifier(self) -> dict[str, Tensor]:
        """Weight and bias of the last fully connected layer, by name. Raises NernError if there is none."""
        linears = [name for name, m in self.network.named_modules() if isinstance(m, nn.Linear)]
        if not linears:
            raise NernError(f"learn_fc_layer: {self.name} has no fully connected layer")
        return {f"{linears[-1]}.{n}": p for n, p in self.network.get_submodule(linears[-1]).named_parameters()}

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        """Output of the original network, without gradient."""
        output: Tensor = self.network(batch)
        return output

    @torch.no_grad()
    def features(self, batch: Tensor) -> tuple[Tensor, FeatureMaps]:
        """Output and feature maps of the original network, without gradient."""
        return self._with_maps(self.network, batch)

    def run(
        self,
        weights: Sequence[Tensor],
        batch: Tensor,
        extra: dict[str, Tensor] | None = None,
        with_maps: bool = False,
    ) -> tuple[Tensor, FeatureMaps]:
        """The architecture run with other learnable weights (and `extra` parameters); nothing in it is changed.

        Gradients flow to `weights` and `extra`. Without `with_maps` the list of maps is empty.
        """
        replaced = dict(zip(self.weight_names, weights, strict=True)) | (extra or {})
        call = _Call(self.network, self._with_maps if with_maps else None)
        own = self.network.get_parameter
        replaced = {f"network.{name}": value.to(own(name).dtype) for name, value in replaced.items()}
        output: tuple[Tensor, FeatureMaps] = functional_call(call, replaced, (batch,))
        return output

    def rebuild(self, weights: Sequence[Tensor], extra: dict[str, Tensor] | None = None) -> nn.Module:
        """A copy of the network with these learnable weights (and `extra` parameters), in eval mode."""
        replaced = dict(zip(self.weight_names, weights, strict=True)) | (extra or {})
        network = copy.deepcopy(self.network)
        with torch.no_grad():
            for name, value in replaced.items():
                network.get_parameter(name).copy_(value)
        return network.module if isinstance(network, ModuleNetwork) else network

    def _with_maps(self, network: OriginalNetwork, batch: Tensor) -> tuple[Tensor, FeatureMaps]:
        return network.get_feature_maps(batch) if self._taps is None else tapped_forward(network, self._taps, batch)


class _Call(nn.Module):
    """What `functional_call` runs: the network, plain or with its feature maps."""

    def __init__(self, network: OriginalNetwork, with_maps: Callable[..., Any] | None) -> None:
        super().__init__()
        self.network = network
        self._with_maps = with_maps

    def forward(self, batch: Tensor) -> tuple[Tensor, FeatureMaps]:
        if self._with_maps is None:
            return self.network(batch), []
        output: tuple[Tensor, FeatureMaps] = self._with_maps(self.network, batch)
        return output


def _match(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    names = [name for name, _ in network.named_modules() if name]
    matched = []
    for pattern in patterns:
        found = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise unknown_name("module (nern.feature_maps)", pattern, names)
        matched += found
    return matched


def as_original(network: nn.Module, feature_maps: Sequence[str] | None = None) -> Original:
    """A frozen copy of a network of the user's; the network itself is not touched.

    Raises:
        NernError: it cannot be copied (uninitialised lazy modules, scripted modules, old-style weight_norm), or see
            `Original`.
    """
    try:
        copied = copy.deepcopy(network)
        copied.state_dict()
        shapes = [p.shape for p in copied.parameters()]
    except Exception as error:
        raise NernError(f"{type(network).__name__} cannot be copied: {' '.join(str(error).split())[:200]}") from error
    del shapes  # asked for because a lazy module has none yet
    return Original(copied if isinstance(copied, OriginalNetwork) else ModuleNetwork(copied), feature_maps)


def kwargs_file(path: str | Path) -> Path:
    """The JSON file with constructor arguments that may lie beside a weights file: same name, suffix `.json`."""
    return Path(path).with_suffix(".json")
