"""What a report tells of an artifact: the file alone, or beside the original's weights and a task's images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from nern.analysis.content import NO_ORIGINAL, Content, Evaluation, NetworkContent, Part
from nern.artifact import Artifact
from nern.artifact.description import NetworkDescription
from nern.artifact.table import part_sizes
from nern.artifact.tensors import tensor_bits
from nern.config import TaskConfig
from nern.errors import NernError
from nern.experiment import check_outputs
from nern.jobs.artifacts import BATCH, images_of, named_for, predicted, reconstructed, tested
from nern.jobs.report_inputs import NO_IMAGES_ASKED_FOR, as_kernels, class_names, drawn, walks
from nern.originals.base import Original
from nern.originals.build import build_network, build_original, resolve_weights
from nern.originals.checked import DTYPES, copy_of
from nern.tasks.base import classes_of
from nern.tasks.streams import EvalSet
from nern.weights_file import load_weights, plain_state_dicts

SEED = 0  # of what is drawn
NO_TASK = "no test images were asked for (--task.task_name says whose to take)"
TOLD = ("images", "top1", "top5", "loss")  # figures that a file may hold


def content_of_file(
    artifact: Artifact,
    title: str,
    images: int | None,
    original_model_path: str | Path | None,
    task: TaskConfig | None,
    network: int | nn.Module | None,
    console: Console,
) -> Content:
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
    described, chosen = description.networks[number], number if module is None else module
    if task is not None and described.architecture is None and module is None:
        reconstructed(artifact, number)  # says what is missing
    evaluated = None if images == 0 else task
    weights, original, data = None, None, None
    if original_model_path is not None:
        weights, original = _original(artifact, number, original_model_path, module)
        if original is not None and evaluated is not None:
            data = _images(evaluated, described, original)
    layers = list(
        zip(table.views(predicted(artifact, console).weights), walks(artifact.ordering, table.shapes), strict=True)
    )
    networks = []
    for name, of_network in zip(_names(description.networks), description.networks, strict=True):
        own, layers = layers[: len(of_network.represented)], layers[len(of_network.represented) :]
        told = {key: value for key, value in of_network.about.get("test", {}).items() if key in TOLD}
        alone = NetworkContent(
            name=name,
            layers=[of_weight for of_weight, _, _ in of_network.represented],
            weights=[weight for weight, _ in own],
            ordered=[walk for _, walk in own if walk is not None] or None,
            figures={"test": {"reconstructed": told}} if told else {},
            measured="as the file says" if told else "",
            evaluation=NO_IMAGES_ASKED_FOR if images == 0 else NO_TASK,
        )
        networks.append(alone)
    found = replace(networks[number], original=None if weights is None else as_kernels(weights))
    if evaluated is not None:
        rebuilt, found = reconstructed(artifact, chosen), replace(found, measured="")
        if original is None or data is None:
            figures = tested(rebuilt, _images(evaluated, described, rebuilt))
            found = replace(found, figures={"test": {"reconstructed": figures}}, evaluation=NO_ORIGINAL)
        else:
            whole = Evaluation(original, data, classes_of(evaluated), BATCH, reconstructed=rebuilt)
            some = replace(whole, images=drawn(data, images, SEED))
            figures = {"test": whole.metrics(found.weights)}
            found = replace(found, figures=figures, evaluation=some, class_names=class_names(evaluated))
    networks[number] = found
    notes = [_more(described, weights is not None, task is not None, module is not None), _far(found)]
    return Content(
        title=title,
        source="file",
        networks=networks,
        represented=table.num_weights,
        predictor=artifact.nern.num_parameters,
        sizes=file_parts(artifact),
        sizes_about=(
            "Bytes of the original's tensors, and of the parts of the file that take their place; these add up to its "
            f"{artifact.size:,} bytes."
        ),
        packed=packed_file(artifact, title),
        bits=tensor_bits(description.predictor, artifact.nern.predictor.state_dict()),
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
        original = Original(network, names=names)
    elif described.architecture is not None:
        artifact.build(number, build_network)  # refuses what a file may not ask for
        original = build_original(described.architecture, str(path), dict(described.arguments), names=names)
    else:
        states = plain_state_dicts(resolve_weights(str(path)), "original network's weights")
        tensors = [state.tensors for state in states]
        state = max(tensors, key=lambda found: sum(name in found for name in names), default={})
        for name, shape, _ in described.represented:
            found = f"has the shape {tuple(state[name].shape)}" if name in state else "is not there"
            if name not in state or tuple(state[name].shape) != shape:
                raise NernError(f"original network's weights {path} do not fit {described.name}: {name} {found}")
        return [state[name] for name in names], None
    return original.weights, original


def _images(task: TaskConfig, described: NetworkDescription, network: Original) -> EvalSet:
    """The task's test images. Raises NernError where they cannot be had, or the network has other classes."""
    named = named_for(task, described)
    check_outputs(network, named, network.input_format, torch.device("cpu"))
    return images_of(named, network)


def _names(networks: Sequence[NetworkDescription]) -> list[str]:
    """Of the networks, told apart."""
    names = [f"{n.name} on {n.about['task']}" if "task" in n.about else n.name for n in networks]
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]


def _more(described: NetworkDescription, original: bool, task: bool, module: bool) -> str:
    """Which options tell more; empty: none does."""
    options = [] if original else ["--original_model_path WEIGHTS compares with the original's weights"]
    if not task:
        build = "" if described.architecture or module else ", and --task.original_model_name how to build the network"
        options.append(f"--task.task_name NAME (and --task.data_dir DIR) tests on images{build}")
    if not options:
        return ""
    known = ["the file", *["the original's weights"] * original, *["the images"] * task]
    return f"This page is made of {' and '.join(known)} alone. There is more to see: {'; '.join(options)}."


def _far(network: NetworkContent) -> str:
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


def file_parts(artifact: Artifact) -> list[Part]:
    """Where a file's bytes are: parts that add up to its size, beside the bytes of the original's tensors."""
    description = artifact.description
    represented = sum(
        math.prod(shape) * DTYPES[dtype].itemsize for n in description.networks for _, shape, dtype in n.represented
    )
    kept = sum(code.count * DTYPES[code.dtype].itemsize for code in description.kept)
    told: dict[str, tuple[str, float | None]] = {
        "predictor": ("represented weights, by the predictor", represented),
        "ordering": ("order of the kernels", None),
        "outliers": ("weights kept apart (outliers)", None),
        "kept": ("all other parameters and buffers", kept),
        "description": ("description of networks and tensors", None),
        "header": ("header, checksums, probes", None),
    }
    return [Part(*told[part], size, numbers) for part, (numbers, size) in part_sizes(artifact).items()]


def packed_file(artifact: Artifact, name: str) -> Part:
    """The file as a whole."""
    return Part(name, sum(part.before or 0 for part in file_parts(artifact)), artifact.size)
