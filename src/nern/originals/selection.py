"""Which weights of a network a NeRN represents: by the network's own rule, by globs of the user, or by exact names."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from nern.errors import NernError, unknown_name


@dataclass(frozen=True)
class ParameterChoice:
    """One parameter of a network: taken into the NeRN, or kept, and why."""

    name: str
    shape: tuple[int, ...]
    taken: bool
    reason: str

    @property
    def kernels(self) -> int:
        """Kernels it holds: filters times channels."""
        return self.shape[0] * self.shape[1] if len(self.shape) > 1 else 0

    @property
    def kernel_size(self) -> str:
        """'3x3', '7', '1x1' (Linear, too); '-' for a vector."""
        return "-" if len(self.shape) < 2 else "x".join(str(n) for n in self.shape[2:]) or "1x1"


def convolution_weights(network: nn.Module) -> list[Tensor]:
    """Weights of all convolutions, in order; transposed ones, and of one to three dimensions."""
    return [m.weight for m in network.modules() if isinstance(m, _ConvNd)]


def named_weights(network: nn.Module, names: Iterable[str]) -> list[Tensor]:
    """The parameters of these exact names. Raises NernError for one that the network does not have, or has twice."""
    own, found = dict(network.named_parameters(remove_duplicate=False)), dict[int, Tensor]()
    for name in names:
        if name not in own:
            raise unknown_name(f"parameter of {type(network).__name__}", name, own, limit=40)
        if id(own[name]) in found:
            raise NernError(
                f"{name} of {type(network).__name__} is one parameter with another; two of their own are needed"
            )
        found[id(own[name])] = own[name]
    return list(found.values())


def globbed(pattern: str, names: Iterable[str], kind: str) -> list[str]:
    """Those of the names that a glob of the user's matches. Raises NernError where there is none."""
    names = list(names)
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found and pattern in names:
        raise NernError(
            f"{kind}: {pattern!r} is a name, but as a glob it does not match itself: write {glob.escape(pattern)!r}"
        )
    if not found:
        raise unknown_name(kind, pattern, names, limit=40)
    return found


def matching(network: nn.Module, patterns: Sequence[str], key: str) -> list[str]:
    """Names of parameters that any of the globs matches, in the network's order. Raises NernError for a glob that
    matches none."""
    first = {id(p): name for name, p in network.named_parameters()}
    names = {name: first[id(p)] for name, p in network.named_parameters(remove_duplicate=False)}  # tied ones: all names
    found: set[str] = set()
    for pattern in patterns:
        found |= {names[name] for name in globbed(pattern, names, f"parameter ({key})")}
    return [name for name in first.values() if name in found]


def choose_parameters(
    network: nn.Module, own: Sequence[Tensor], include: Sequence[str] | None, exclude: Sequence[str]
) -> list[ParameterChoice]:
    """What becomes of every parameter (tied ones appear once).

    Args:
        network: owns the parameters.
        own: the network's own choice, where `include` is None.
        include, exclude: globs on names.

    Raises:
        NernError: a glob matches nothing, `include` nothing of two or more dimensions; `own` holds what is no parameter.
    """
    parameters = dict(network.named_parameters())
    chosen = own_names(network, own) if include is None else matching(network, include, "nern.include")
    vectors = [name for name in chosen if parameters[name].dim() < 2]
    if include is None and vectors:
        raise NernError(f"the network wants {vectors[0]} represented, a vector; weights need two or more dimensions")
    dropped = set(matching(network, exclude, "nern.exclude"))
    choices = []
    for name in [*chosen, *(n for n in parameters if n not in set(chosen))]:
        parameter = parameters[name]
        if name in dropped:
            taken, reason = False, "excluded"
        elif name not in chosen:
            taken, reason = False, "not included" if include is not None else "not chosen"
        elif parameter.dim() < 2:
            taken, reason = False, "a vector"
        elif not parameter.numel():
            taken, reason = False, "empty"
        else:
            taken, reason = True, "included" if include is not None else "chosen"
        choices.append(ParameterChoice(name, tuple(parameter.shape), taken, reason))
    if any(c.taken for c in choices):
        return choices
    if any(name in dropped for name in chosen):
        raise NernError(f"nern.exclude {list(exclude)} leaves nothing to represent")
    if include is not None:
        raise NernError(
            f"nern.include {list(include)} matches vectors only; weights of two or more dimensions are needed"
        )
    return choices


def own_names(network: nn.Module, own: Sequence[Tensor]) -> list[str]:
    """Names of the weights `own`, each once. Raises NernError for one that is no parameter of the network."""
    names = {id(p): name for name, p in network.named_parameters()}
    for index, weight in enumerate(own):
        if id(weight) not in names:
            raise NernError(
                f"learnable weight {index} is not a parameter of {type(network).__name__}, but computed from some (by "
                "weight_norm, say): make it one (torch.nn.utils.parametrize.remove_parametrizations)"
            )
    return [names[key] for key in dict.fromkeys(id(weight) for weight in own)]
