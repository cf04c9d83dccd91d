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


def names_of(network: nn.Module, weights: Sequence[Tensor]) -> list[str]:
    """Names of these weights, each once. Raises NernError for one that is no parameter of the network."""
    names = {id(p): name for name, p in network.named_parameters()}
    for index, weight in enumerate(weights):
        if id(weight) not in names:
            raise NernError(
                f"learnable weight {index} is not a parameter of {type(network).__name__}, but computed from some (by "
                "weight_norm, say): make it one (torch.nn.utils.parametrize.remove_parametrizations)"
            )
    return [names[key] for key in dict.fromkeys(id(weight) for weight in weights)]


def checked_names(network: nn.Module, names: Iterable[str]) -> list[str]:
    """These exact names of parameters. Raises NernError for one that the network does not have, or has twice."""
    own, found = dict(network.named_parameters(remove_duplicate=False)), dict[int, Tensor]()
    for name in names:
        if name not in own:
            raise unknown_name(f"parameter of {type(network).__name__}", name, own, limit=40)
        if id(own[name]) in found:
            raise NernError(
                f"{name} of {type(network).__name__} is one parameter with another; two of their own are needed"
            )
        found[id(own[name])] = own[name]
    return names_of(network, list(found.values()))


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
    network: nn.Module, own: Sequence[str], include: Sequence[str] | None, exclude: Sequence[str]
) -> list[ParameterChoice]:
    """What becomes of every parameter (tied ones appear once); `own`: names of the network's own choice, where `include` is
    None. Raises NernError where a glob matches nothing, `include` nothing of two or more dimensions, or `own` holds a
    vector."""
    parameters = dict(network.named_parameters())
    chosen = list(own) if include is None else matching(network, include, "nern.include")
    vectors = [name for name in chosen if parameters[name].dim() < 2]
    if include is None and vectors:
        raise NernError(f"{vectors[0]} is a vector and cannot be represented; choose weights of two or more dimensions")
    dropped, of_choice = set(matching(network, exclude, "nern.exclude")), set(chosen)
    taken = "chosen" if include is None else "included"
    choices = []
    for name in [*chosen, *(name for name in parameters if name not in of_choice)]:
        parameter = parameters[name]
        reasons = {
            "excluded": name in dropped,
            f"not {taken}": name not in of_choice,
            "a vector": parameter.dim() < 2,
            "empty": not parameter.numel(),
        }
        reason = next((reason for reason, holds in reasons.items() if holds), taken)
        choices.append(ParameterChoice(name, tuple(parameter.shape), reason == taken, reason))
    if not any(choice.taken for choice in choices):
        if dropped & of_choice:
            raise NernError(f"nern.exclude {list(exclude)} leaves nothing to represent")
        if include is not None:
            raise NernError(
                f"nern.include {list(include)} matches vectors only; weights of two or more dimensions are needed"
            )
    return choices
