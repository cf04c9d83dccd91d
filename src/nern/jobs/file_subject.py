"""What a report tells of an artifact: the file alone, or beside the original's weights and a task's images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from nern.analysis.smoothness import walk_of
from nern.analysis.subject import NO_ORIGINAL, Figures, PackedFile, Part, Reconstructed, Subject
from nern.analysis.trial import Trial
from nern.artifact import Artifact
from nern.artifact.description import NetworkDescription
from nern.artifact.tensors import tensor_bits
from nern.config import TaskConfig
from nern.errors import NernError
from nern.experiment import check_outputs
from nern.jobs.artifacts import BATCH, images_of, named_for, predicted, reconstructed, tested
from nern.jobs.report_images import NO_IMAGES_ASKED_FOR, class_names, drawn
from nern.originals.base import Original
from nern.originals.build import build_network, build_original, resolve_weights
from nern.originals.checked import DTYPES, copy_of
from nern.representation.kernels import kernel_shape
from nern.tasks.base import classes_of
from nern.tasks.streams import EvalSet
from nern.weights_file import load_weights, plain_state_dicts

SEED = 0  # of what is drawn
NO_TASK = "no test images were asked for (--task.task_name says whose to take)"
TOLD = ("images", "top1", "top5", "loss")  # figures that a file may hold


@dataclass(frozen=True, eq=False)
class _Given:
    """What was given besides the file, for one of its networks.

    Attributes:
        weights: the original's represented weights; None: not given.
        original: the network; None: not given, or known by its weights alone.
        task: with images to be tested on; None: not given, or no images were asked for.
        data: these images, where there is an original to say in which form.
    """

    weights: Sequence[Tensor] | None = None
    original: Original | None = None
    task: TaskConfig | None = None
    data: EvalSet | None = None


def subject_of_file(
    artifact: Artifact,
    title: str,
    images: int | None,
    original_model_path: str | Path | None,
    task: TaskConfig | None,
    network: int | nn.Module | None,
    console: Console,
) -> Subject:
    """What a page tells of an artifact; weights are predicted after everything that was given has been checked.

    Args:
        artifact: that was read.
        title: of the page.
        images, original_model_path, task, network: see `nern.report`.
        console: for progress.

    Raises:
        NernError: see `nern.report`.
    """
    description, table = artifact.description, artifact.nern.table
    if task is not None:
        classes_of(task)  # an unknown one is told of at once
    module = network if isinstance(network, nn.Module) else None
    asked = 0 if isinstance(network, nn.Module) else network
    number = _number(asked, len(description.networks), original_model_path is not None or task is not None)
    described = description.networks[number]
    if task is not None and described.architecture is None and module is None:
        reconstructed(artifact, number)  # says what is missing
    given = _Given(task=task if images != 0 else None)
    if original_model_path is not None:
        weights, original = _original(artifact, number, original_model_path, module)
        data = None if original is None or given.task is None else _images(given.task, described, original)
        given = replace(given, weights=weights, original=original, data=data)
    layers = iter(zip(table.views(predicted(artifact, console).weights), _ordered(artifact), strict=True))
    networks = []
    for index, (name, of_network) in enumerate(zip(_names(description.networks), description.networks, strict=True)):
        own_layers = [next(layers) for _ in of_network.represented]
        beside = given if index == number else _Given()
        asked_for = NO_IMAGES_ASKED_FOR if images == 0 else NO_TASK
        networks.append(_network(artifact, index, name, own_layers, beside, images, asked_for, module))
    notes = [_more(described, given.weights is not None, task is not None, module is not None), _far(networks[number])]
    return Subject(
        title=title,
        source="file",
        networks=networks,
        represented=table.num_weights,
        predictor=artifact.nern.num_parameters,
        sizes=file_parts(artifact),
        packed=packed_file(artifact, title),
        sizes_about=(
            "Bytes of the original's tensors, and of the parts of the file that take their place; these add up to its "
            f"{artifact.size:,} bytes."
        ),
        bits=tensor_bits(artifact.description.predictor, artifact.nern.predictor.state_dict()),
        ordering="" if artifact.ordering.mode == "none" else artifact.ordering.mode,
        notes=[note for note in notes if note],
        seed=SEED,
    )


def _number(network: int | None, count: int, needed: bool) -> int:
    """Which network it is that something was given for."""
    if network is not None and not 0 <= network < count:
        raise NernError(f"--network (={network}) must be below {count}, the number of networks in the file")
    if network is None and count > 1 and needed:
        raise NernError(
            f"the file holds {count} networks: --network N says which one, counted from 0, the original's weights and the "
            "task are of"
        )
    return network or 0


def _original(
    artifact: Artifact, number: int, path: str | Path, module: nn.Module | None
) -> tuple[list[Tensor], Original | None]:
    """The original's represented weights, and the network: `module`, or where the file tells how to build it."""
    described = artifact.description.networks[number]
    names = [name for name, _, _ in described.represented]
    if module is not None:
        network = copy_of(module)
        load_weights(network, resolve_weights(str(path)))
        own = Original(network, names=names)
        return own.weights, own
    if described.architecture is None:
        states = plain_state_dicts(resolve_weights(str(path)), "original network's weights")
        state = max(states, key=lambda found: sum(name in found for name in names))
        for name, shape, _ in described.represented:
            found = f"has the shape {tuple(state[name].shape)}" if name in state else "is not there"
            if name not in state or tuple(state[name].shape) != shape:
                raise NernError(f"original network's weights {path} do not fit {described.name}: {name} {found}")
        return [state[name] for name in names], None
    artifact.build(number, build_network)  # refuses what a file may not ask for
    original = build_original(described.architecture, str(path), dict(described.arguments), names=names)
    return original.weights, original


def _images(task: TaskConfig, described: NetworkDescription, network: Original) -> EvalSet:
    """The task's test images. Raises NernError where they cannot be had, or the network has other classes."""
    named = named_for(task, described)
    check_outputs(network, named, network.input_format, torch.device("cpu"))
    return images_of(named, network)


def _ordered(artifact: Artifact) -> list[Tensor | None]:
    """Of each layer, its kernels in the order in which the coordinates walk through them; None: there is no ordering."""
    shapes = artifact.nern.table.shapes
    if artifact.ordering.mode == "none":
        return [None] * len(shapes)
    return [walk_of(positions) for positions in artifact.ordering.positions(shapes)]


def _names(networks: Sequence[NetworkDescription]) -> list[str]:
    """Of the networks, told apart."""
    names = [f"{n.name} on {n.about['task']}" if "task" in n.about else n.name for n in networks]
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]


def _network(
    artifact: Artifact,
    number: int,
    name: str,
    layers: Sequence[tuple[Tensor, Tensor | None]],
    given: _Given,
    images: int | None,
    no_task: str,
    module: nn.Module | None,
) -> Reconstructed:
    """One network of the file. Layers are the predicted weights, and the order of their kernels."""
    described = artifact.description.networks[number]
    told = {key: value for key, value in described.about.get("test", {}).items() if key in TOLD}
    figures: Figures = {"test": {"reconstructed": told}} if told else {}
    weights, walks = [w for w, _ in layers], [walk for _, walk in layers if walk is not None]
    found = Reconstructed(
        name=name,
        layers=[own for own, _, _ in described.represented],
        weights=weights,
        original=None if given.weights is None else [_kernels(w) for w in given.weights],
        ordered=walks or None,
        figures=figures,
        measured="as the file says" if told else "",
        without_images=no_task,
    )
    if given.task is None:
        return found
    rebuilt = reconstructed(artifact, number if module is None else module)
    data = given.data or _images(given.task, described, rebuilt)
    if given.original is None:
        figures = {"test": {"reconstructed": tested(rebuilt, data)}}
        return replace(found, figures=figures, measured="", without_images=NO_ORIGINAL)
    trial_on = partial(Trial, given.original, classes=classes_of(given.task), batch_size=BATCH, reconstructed=rebuilt)
    whole = trial_on(data)
    pair = {"original": whole.metrics(), "reconstructed": whole.metrics(weights)}
    some = data if images is None else drawn(data, images, SEED)
    return replace(
        found,
        figures={"test": {of: metrics.to_dict() for of, metrics in pair.items()}},
        measured="",
        trial=whole if some is data else trial_on(some),
        class_names=class_names(given.task),
    )


def _kernels(weight: Tensor) -> Tensor:
    return weight.detach().cpu().float().reshape(kernel_shape(weight.shape))


def _more(described: NetworkDescription, original: bool, task: bool, module: bool) -> str:
    """Which options tell more; empty: none does."""
    compare = "--original_model_path WEIGHTS compares with the original's weights"
    try_out = "--task.task_name NAME (and --task.data_dir DIR) tests on images"
    options = [] if original else [compare]
    if not task:
        build = "" if described.architecture or module else ", and --task.original_model_name how to build the network"
        options.append(f"{try_out}{build}")
    if not options:
        return ""
    known = ["the file", *["the original's weights"] * original, *["the images"] * task]
    return f"This page is made of {' and '.join(known)} alone. There is more to see: {'; '.join(options)}."


def _far(network: Reconstructed) -> str:
    """A word where the original is hardly the one of the file."""
    if network.original is None:
        return ""
    pairs = list(zip(network.weights, network.original, strict=True))
    if sum(_squares(w - o) for w, o in pairs) < sum(_squares(o) for _, o in pairs):
        return ""
    return (
        "The reconstructed weights are no nearer to the original's than zeros are. Are these the weights that the file was "
        "made of?"
    )


def _squares(weight: Tensor) -> float:
    return float(weight.double().square().sum())


def packed_file(artifact: Artifact, name: str) -> PackedFile:
    """What there is to say of the file as a whole."""
    return PackedFile(name, artifact.size, sum(part.before or 0 for part in file_parts(artifact)))


def file_parts(artifact: Artifact) -> list[Part]:
    """Where a file's bytes are: parts that add up to its size, beside the bytes of the original's tensors."""
    description = artifact.description
    represented = sum(
        math.prod(shape) * _bytes(dtype) for n in description.networks for _, shape, dtype in n.represented
    )
    kept = sum(code.count * _bytes(code.dtype) for code in description.kept)
    of_kept, of_predictor = (sum(code.count for code in codes) for codes in (description.kept, description.predictor))
    kernels = sum(tensor.numel() for tensor in artifact.ordering.tensors().values())
    rows: list[tuple[str, float | None, tuple[str, ...], int | None]] = [
        ("represented weights, by the predictor", represented, ("PRED", "PRAW"), of_predictor),
        ("order of the kernels", None, ("ORDR",), kernels),
        ("weights kept apart (outliers)", None, ("OUTL", "ORAW"), description.outliers[0]),
        ("all other parameters and buffers", kept, ("KEPT", "KRAW"), of_kept),
        ("description of networks and tensors", None, ("META",), None),
        ("header, checksums, probes", None, ("header", "PROB"), None),
    ]
    return [
        Part(name, before, sum(artifact.sizes.get(section, 0) for section in sections), numbers or None)
        for name, before, sections, numbers in rows
    ]


def _bytes(dtype: str) -> int:
    return DTYPES[dtype].itemsize
