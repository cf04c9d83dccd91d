"""What there is: networks, tasks and every other registered choice; what a NeRN of a network would represent."""

from __future__ import annotations

import fnmatch
import html
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text
from torch import nn

from nern import registry
from nern.config.checks import CHOICES, TERMS
from nern.config.phases import KNOWN
from nern.config.yaml_files import RECIPES
from nern.errors import EXTRAS, NernWarning, plain_errors, unknown_name
from nern.ordering.order import ordering_bits
from nern.originals.base import Original, as_original
from nern.originals.build import build_original
from nern.originals.selection import ParameterChoice
from nern.originals.sources import source_names
from nern.representation.kernels import kernel_shape
from nern.shipped import shipped_nerns, shipped_networks
from nern.terminal import bytes_text, share_text

SECTIONS: dict[str, Iterable[str]] = {
    "networks": registry.ORIGINALS,
    "tasks": registry.TASKS,
    "random-data": registry.RANDOM_IMAGES,
    "orderings": registry.ORDERINGS,
    "encodings": registry.ENCODINGS,
    "predictors": registry.PREDICTORS,
    "activations": registry.ACTIVATIONS,
    "norm-layers": registry.NORM_LAYERS,
    "inits": registry.INITS,
    "sampling-modes": registry.SAMPLING_MODES,
    "losses": TERMS,
    "loss-terms": registry.LOSS_TERMS,
    "reconstruction-losses": registry.RECONSTRUCTION_LOSSES,
    "feature-map-losses": registry.FEATURE_MAP_LOSSES,
    "distillation-losses": registry.DISTILLATION_LOSSES,
    "task-losses": registry.TASK_LOSSES,
    "smoothness": registry.SMOOTHNESS,
    "weight-batches": registry.WEIGHT_BATCHES,
    "recipes": RECIPES,
    "phases": KNOWN,
    "optimizers": registry.OPTIMIZERS,
    "schedules": registry.SCHEDULES,
    "trackers": registry.TRACKERS,
    **{key: choices for key, choices in CHOICES.items() if isinstance(choices, tuple)},
}  # what `nern list` knows: kinds of things by name, and keys whose values are fixed


SOURCES = ("torchvision", "timm")


def names_of(what: str) -> list[str]:
    """All names of a section, of 'torchvision', 'timm' or 'pretrained'. Raises NernError for anything else."""
    if what in SOURCES:
        return [f"{what}:{name}" for name in source_names(what)]
    if what == "pretrained":
        return [*shipped_networks(), *shipped_nerns()]
    if what not in SECTIONS:
        raise unknown_name("list", what, [*SECTIONS, *SOURCES, "pretrained"])
    return list(SECTIONS[what])


def list_networks(pattern: str = "*") -> list[str]:
    """Names of networks that nern builds: registered ones, and all of torchvision and timm.

    Args:
        pattern: a glob that names match, upper and lower case alike, with or without 'torchvision:' and 'timm:'.

    Returns:
        Names for `task.original_model_name` and `nern.inspect`.
    """
    names = [*registry.ORIGINALS, *(name for source in SOURCES for name in names_of(source))]
    wanted = pattern.lower()
    return [n for n in names if any(fnmatch.fnmatch(part.lower(), wanted) for part in (n, n.partition(":")[2]) if part)]


@dataclass(frozen=True, repr=False)
class Inspection:
    """Which weights of a network a NeRN represents.

    Attributes:
        name: of the network.
        original: a frozen copy of it.
    """

    name: str
    original: Original

    @property
    def choices(self) -> list[ParameterChoice]:
        """What becomes of each parameter: taken or kept, and why."""
        return self.original.choices

    @property
    def represented(self) -> int:
        """Number of weights that are represented."""
        return sum(weight.numel() for weight in self.original.weights)

    @property
    def ordering_bytes(self) -> dict[str, float]:
        """The least bytes that each kind of ordering of the kernels takes, by name."""
        shapes = kernel_shapes(self.original)
        return {mode: ordering_bits(mode, shapes) / 8 for mode in registry.ORDERINGS}

    def __repr__(self) -> str:
        return f"{self.name}: {totals(self)}"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"


@plain_errors()
def inspect(
    network: nn.Module | str,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    weights: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Inspection:
    """Which weights of a network a NeRN represents.

    Args:
        network: a module, which is not changed; or a name as `task.original_model_name` has it.
        include: weights to represent, as for `nern.fit`.
        exclude: weights to keep, as for `nern.fit`.
        weights: for a named network: its weights, as `original_model_path`; None: random ones.
        kwargs: for a named network: arguments to build it with.

    Returns:
        What becomes of each parameter.

    Raises:
        NernError: no such network; nothing to represent.
    """
    if isinstance(network, nn.Module):
        return Inspection(type(network).__name__, as_original(network, None, include, exclude))
    with warnings.catch_warnings():
        if weights is None:
            warnings.filterwarnings("ignore", "original_model_path is not set", NernWarning)
        return Inspection(
            network, build_original(network, weights, dict(kwargs or {}), include=include, exclude=exclude)
        )


def networks_and_tasks() -> str:
    """The networks and tasks there are, as Markdown tables (the README holds this text)."""
    lines = ["| `task.original_model_name` | what |", "|---|---|"]
    alike: dict[str, list[str]] = {}
    for name in registry.ORIGINALS:
        alike.setdefault(registry.ORIGINALS.info(name).get("about", ""), []).append(f"`{name}`")
    lines += [f"| {', '.join(names)} | {about} |" for about, names in alike.items()]
    for source in SOURCES:
        try:
            networks = f"any of the {len(source_names(source)):,} networks of {source}; classifiers can be evaluated"
        except ModuleNotFoundError:
            networks = f"any network of {source}, once it is installed: pip install 'nern[{EXTRAS[source]}]'"
        lines.append(f"| `{source}:NAME` | {networks} |")
    lines += ["| `package.module:function`, `file.py:function` | what the function returns |", ""]
    lines += ["| `task.task_name` | what | images | classes |", "|---|---|---|---|"]
    for name in registry.TASKS:
        info = registry.TASKS.info(name)
        shape, classes = info["input_shape"], info["num_classes"]
        size = "x".join(str(n) for n in shape) if shape else "what the network expects"
        about = (registry.TASKS[name].__doc__ or "").strip().partition("\n")[0].rstrip(".")
        lines.append(f"| `{name}` | {about} | {size} | {'counted' if callable(classes) else classes} |")
    return "\n".join(lines)


def parameter_table(name: str, original: Original, every: bool = True) -> Table:
    """What is taken and what is kept of a network, one row a parameter; `every` False: of the kept only tensors with two
    or more dimensions."""
    table = Table(title=name, title_justify="left", title_style="bold")
    for heading, justify in (
        ("parameter", "left"),
        ("shape", "left"),
        ("kernel", "left"),
        ("kernels", "right"),
        ("", "left"),
    ):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for choice in original.choices:
        if not choice.taken and not every and len(choice.shape) < 2:
            continue
        fate = Text("taken", style="green") if choice.taken else Text(f"kept: {choice.reason}")
        kernels = f"{choice.kernels:,}" if choice.kernels else "-"
        table.add_row(choice.name, "x".join(map(str, choice.shape)), choice.kernel_size, kernels, fate)
    return table


def totals(inspection: Inspection) -> str:
    """The sums of `parameter_table`, in words."""
    original, weights = inspection.original, inspection.represented
    taken = [choice for choice in original.choices if choice.taken]
    sizes: dict[str, list[int]] = {}
    for choice in taken:
        sizes.setdefault(choice.kernel_size, []).append(choice.kernels)
    parts: Sequence[str] = [f"{sum(n):,} of {size} in {len(n)} tensors" for size, n in sizes.items()]
    return (
        f"{len(taken)} of {len(original.choices)} parameter tensors taken: {weights:,} of {original.num_parameters:,} "
        f"parameters ({share_text(weights / original.num_parameters)})\nkernels: {'; '.join(parts)}\n"
        f"an ordering of them takes at least: {_orderings(inspection)} of the weights' {bytes_text(4 * weights)} in float32"
    )


def _orderings(inspection: Inspection) -> str:
    """What each kind of ordering takes."""
    sizes, weights = inspection.ordering_bytes, inspection.represented
    return ", ".join(f"{mode} {bytes_text(n)} ({share_text(n / (4 * weights))})" for mode, n in sizes.items() if n)


def kernel_shapes(original: Original) -> list[tuple[int, int, int, int]]:
    """Of each represented weight (filters, channels, height, width)."""
    return [kernel_shape(weight.shape) for weight in original.weights]
