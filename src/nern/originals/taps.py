"""Feature maps by hooks: outputs, or inputs, of named modules, unharmed by what the network does in place later."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nern.errors import NernError
from nern.inputs import Images, call
from nern.originals.selection import globbed

FeatureMaps = list[Tensor]
INPUT = ":input"  # 'NAME:input' taps what goes into a module
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def default_taps(network: nn.Module) -> list[str]:
    """The normalisation layers' outputs, before the activation; the convolutions' where there are none, the fully
    connected layers' where there are none of these either.

    Layers that apply the activation themselves (timm's BatchNormAct2d) are tapped at the input of their `act`.
    """
    named = list(network.named_modules())
    norms = [f"{n}.act{INPUT}" if _acts(m) else n for n, m in named if isinstance(m, NORMS)]
    convolutions = [name for name, m in named if isinstance(m, _ConvNd)]
    return norms or convolutions or [name for name, m in named if isinstance(m, nn.Linear)]


def _acts(norm: nn.Module) -> bool:
    act = getattr(norm, "act", None)
    return isinstance(act, nn.Module) and not isinstance(act, nn.Identity)


def matching_taps(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Taps that the patterns name: globs on module names, `:input` after them kept (a module whose own name ends so:
    '[:]input'). Raises NernError for one that matches nothing."""
    names = [name for name, _ in network.named_modules() if name]
    matched = []
    for pattern in patterns:
        glob = pattern.removesuffix(INPUT)
        matched += [name + pattern[len(glob) :] for name in globbed(glob, names, "module (nern.feature_maps)")]
    return matched


def tapped(network: nn.Module, name: str) -> tuple[nn.Module, bool]:
    """The module that a tap names, and whether its input is meant. A module of that very name comes first."""
    modules = dict(network.named_modules(remove_duplicate=False))
    if name not in modules and name.endswith(INPUT):
        return network.get_submodule(name.removesuffix(INPUT)), True
    return network.get_submodule(name), False


class Taps:
    """Runs a network and returns its output and the tapped maps, in the order of `names`.

    A name may occur twice, a module that runs several times gives several maps. If a network changes a recorded map in
    place, that pass is repeated with copies, and later passes take copies at once.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._clone = False

    def __call__(self, network: nn.Module, batch: Images) -> tuple[Tensor, FeatureMaps]:
        """Output and maps of `batch`."""
        while True:
            maps: dict[str, list[tuple[Tensor, int]]] = {name: [] for name in self.names}
            with ExitStack() as hooks:
                for name, found in maps.items():
                    module, of_input = tapped(network, name)
                    register = module.register_forward_pre_hook if of_input else module.register_forward_hook
                    hooks.enter_context(register(partial(self._keep, name, found)))
                result = call(network, batch)
            if self._clone or all(t._version == version for found in maps.values() for t, version in found):
                return result, [tensor for name in self.names for tensor, _ in maps[name]]
            self._clone = True

    def _keep(
        self, name: str, found: list[tuple[Tensor, int]], module: nn.Module, inputs: tuple[Any, ...], *output: Any
    ) -> None:
        value = output[0] if output else inputs[0] if inputs else None
        if not isinstance(value, Tensor):
            raise NernError(f"module {name!r} gives {type(value).__name__}, not a tensor: no feature map")
        kept = value.clone() if self._clone else value
        found.append((kept, kept._version))
