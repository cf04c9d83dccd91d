"""What there is: networks, tasks and every other registered choice; what a NeRN of a network would represent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from nern import registry
from nern.config import RECIPES
from nern.config.checks import CHOICES, TERMS
from nern.config.phases import KNOWN
from nern.errors import unknown_name
from nern.ordering import ordering_bits
from nern.originals import source_names
from nern.originals.base import Original
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


def networks_and_tasks() -> str:
    """The networks and tasks there are, as Markdown tables (the README holds this text)."""
    lines = ["| `task.original_model_name` | what |", "|---|---|"]
    alike: dict[str, list[str]] = {}
    for name in registry.ORIGINALS:
        alike.setdefault(registry.ORIGINALS.info(name).get("about", ""), []).append(f"`{name}`")
    lines += [f"| {', '.join(names)} | {about} |" for about, names in alike.items()]
    for source in SOURCES:
        count = len(source_names(source))
        lines.append(f"| `{source}:NAME` | any of the {count:,} networks of {source}; classifiers can be evaluated |")
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


def totals(original: Original) -> str:
    """The sums of `parameter_table`, in words."""
    taken = [choice for choice in original.choices if choice.taken]
    weights = sum(w.numel() for w in original.weights)
    sizes: dict[str, list[int]] = {}
    for choice in taken:
        sizes.setdefault(choice.kernel_size, []).append(choice.kernels)
    parts: Sequence[str] = [f"{sum(n):,} of {size} in {len(n)} tensors" for size, n in sizes.items()]
    return (
        f"{len(taken)} of {len(original.choices)} parameter tensors taken: {weights:,} of {original.num_parameters:,} "
        f"parameters ({share_text(weights / original.num_parameters)})\nkernels: {'; '.join(parts)}\n"
        f"an ordering of them takes at least: {_orderings(original)} of the weights' {bytes_text(4 * weights)} in float32"
    )


def _orderings(original: Original) -> str:
    """What each kind of ordering takes."""
    shapes, weights = kernel_shapes(original), sum(w.numel() for w in original.weights)
    bits = {mode: ordering_bits(mode, shapes) for mode in registry.ORDERINGS}
    return ", ".join(f"{mode} {bytes_text(n / 8)} ({share_text(n / (32 * weights))})" for mode, n in bits.items() if n)


def kernel_shapes(original: Original) -> list[tuple[int, int, int, int]]:
    """Of each represented weight (filters, channels, height, width)."""
    return [kernel_shape(weight.shape) for weight in original.weights]
