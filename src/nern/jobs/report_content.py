"""What a report tells: of a run folder, of a `.nern` file, of what `nern.fit` gave."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from nern.analysis.content import NO_ORIGINAL, Content, Evaluation, NetworkContent, Part
from nern.api import Fitted
from nern.artifact import Artifact
from nern.artifact.description import NetworkDescription
from nern.artifact.table import part_sizes
from nern.config import Config, TaskConfig
from nern.errors import NernError
from nern.experiment import Experiment, check_outputs, data_settings
from nern.files import tensors_of
from nern.jobs.artifacts import BATCH, images_of, named_for, predicted, reconstructed, tested
from nern.jobs.evaluating import config_of_run
from nern.jobs.results import experiment_of_run
from nern.ordering.order import Ordering
from nern.originals.base import Original
from nern.originals.build import build_network, build_original, resolve_weights
from nern.originals.checked import DTYPES, copy_of
from nern.randomness import generator
from nern.representation.kernels import kernel_shape
from nern.representation.nern import NeRN
from nern.tasks.base import build_task, classes_of
from nern.tasks.image_folder import SplitFolders
from nern.tasks.images import ImageTensors
from nern.tasks.loaders import LoaderSet
from nern.tasks.own import BatchesSet
from nern.tasks.streams import EvalSet
from nern.training.loop import History
from nern.training.run_folder import RunFolder
from nern.untrusted import read_json
from nern.weights_file import load_weights, plain_state_dicts

IMAGES = 2000
NO_IMAGES = "no test images were asked for (--images 0)"
NO_TASK = "no test images were given (--task.task_name)"
TOLD = ("images", "top1", "top5", "loss")  # figures that a file may hold
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PREDICTED, ORDER, REST = (
    "represented weights, by the predictor",
    "order of the kernels",
    "all other parameters and buffers",
)
# Of each part of a run, its name, and the keys of metrics.json of the original's bytes (None: it has none) and the run's.
RUN_PARTS = (
    (PREDICTED, "represented_bytes", "predictor_bytes"),
    (ORDER, None, "ordering_bytes"),
    (REST, "original_kept_bytes", "kept_bytes"),
)


def build_content(
    nern: NeRN,
    ordering: Ordering,
    weights: Sequence[Tensor],
    networks: Sequence[NetworkContent],
    images: int | None,
    seed: int = 0,
    **told: Any,
) -> Content:
    """What a page tells of a NeRN with these reconstructed weights.

    Args:
        networks: of each what is known of it; weights and order are added here, and accuracies where they lack and
            there are images. Originals' weights may have any shape.
        images: number of test images on which kernels are dropped and classes compared; None: all.
        told: more of `Content`.
    """
    views = [weight.detach().cpu() for weight in nern.table.views(weights)]
    walks = None if ordering.mode == "none" else list(map(torch.argsort, ordering.positions(nern.table.shapes)))
    found, first = [], 0
    for network in networks:
        own = slice(first, first + len(network.layers))
        first = own.stop
        evaluation, figures, original = network.evaluation, network.figures, network.original
        if isinstance(evaluation, Evaluation):
            if "original" not in figures.get("test", {}):
                figures = {**figures, "test": evaluation.metrics(views[own])}
            evaluation = replace(evaluation, images=drawn(evaluation.images, images, seed))
        if original is not None:
            original = [w.detach().cpu().float().reshape(kernel_shape(w.shape)) for w in original]
        added: dict[str, Any] = {"weights": views[own], "ordered": None if walks is None else walks[own]}
        found.append(replace(network, original=original, evaluation=evaluation, figures=figures, **added))
    return Content(
        networks=found,
        represented=nern.table.num_weights,
        predictor=nern.num_parameters,
        ordering="" if walks is None else f"{ordering.mode}{f', {ordering.cost}' if ordering.cost else ''}",
        seed=seed,
        **told,
    )


def class_names(task: TaskConfig) -> Sequence[str] | None:
    """Of the classes of a task whose test images are there, by their numbers; None: they have numbers only."""
    if task.task_name == "imagefolder":
        return SplitFolders(task.data_dir, "task.data_dir").classes
    if task.task_name == "imagenet":
        return SplitFolders(task.imagenet_path, "task.imagenet_path").classes
    return CIFAR10 if task.task_name == "cifar10" else None


def drawn(images: EvalSet, count: int | None, seed: int) -> EvalSet:
    """So many of a test set's images, drawn without repetition, in their order; all, if there are no more, or for None. Of
    a user's own batches the first."""
    if isinstance(images, BatchesSet):
        return replace(images, limit=count)
    if count is None or count >= len(images) or not isinstance(images, ImageTensors | LoaderSet):
        return images
    chosen = torch.randperm(len(images), generator=generator(seed, "images of a report"))[:count].sort().values
    return images.subset(chosen)


@torch.no_grad()
def content_of_fit(fitted: Fitted, images: int | None) -> Content:
    """What a page tells of a fitted NeRN. Errors: see `nern.report`."""
    original, nern, ordering = fitted.original, fitted.nern, fitted.ordering
    test = None if fitted.task is None else fitted.task.test
    figures: dict[str, Any] = {} if test is None else {"test": fitted.evaluate()}
    evaluation: Evaluation | str = "nern.fit was given no `test`"
    if test is not None and "top1" not in figures["test"]["original"]:
        evaluation, figures = "it gives no scores of classes, or the data have no labels", {}
    elif images == 0:
        evaluation = NO_IMAGES
    elif test is not None:
        first, _ = next(iter(test.batches(1)))
        evaluation = Evaluation(original, test, original(first).shape[1], 1, dict(fitted.beside))
    layers, weights = original.weight_names, original.weights
    network = NetworkContent(
        name=original.name, layers=layers, original=weights, figures=figures, evaluation=evaluation
    )
    represented = sum(weight.nbytes for weight in weights)
    rest = sum(tensor.nbytes for tensor in tensors_of(original.network).values()) - represented
    sizes = [
        Part(PREDICTED, represented, 4 * nern.num_parameters),
        Part(ORDER, None, ordering.bits() / 8),
        Part(REST, rest, rest),
    ]
    about = "Bytes in float32, before any rounding, and of the ordering the least that any code takes."
    told: dict[str, Any] = {"title": original.name, "sizes": sizes, "sizes_about": about, "best_step": fitted.steps}
    return build_content(nern, ordering, nern.reconstruct(), [network], images, **told)


# --- runs ------------------------------------------------------------------------------------------------------------


def content_of_run(folder: RunFolder, images: int | None) -> Content:
    """What a page tells of a run. Arguments and errors: see `nern.report`."""
    remedy, metrics = f"; nern train --resume {folder.root} writes it again", {}
    if folder.metrics.is_file():
        metrics = read_json(folder.metrics, dict, remedy)
    checkpoint = _checkpoint(folder)
    state = folder.load_state() if folder.state.is_file() else {}  # the page can do without
    config = config_of_run(folder.root, checkpoint)
    wanted, config.evaluation.test_images = config.evaluation.test_images, 0
    experiment = experiment_of_run(config, folder)
    config.evaluation.test_images = wanted
    sizes = metrics.get("sizes")
    best = folder.record("best") or (metrics or state).get("best") or {}  # runs of earlier versions have no such record
    at = f"it has come to step {state['step']:,}" if "step" in state else "it has no metrics.json"
    unfinished = f"This run is not finished: {at}. Continue with: nern train --resume {folder.root}"
    networks = []
    for number, member in enumerate(experiment.members):
        evaluation = _evaluation(experiment, number, config, images)
        network = NetworkContent(
            name=member.name,
            layers=member.original.weight_names,
            original=member.original.weights,
            figures=_figures(metrics, best, member.name),
            evaluation=evaluation,
            class_names=None if isinstance(evaluation, str) else class_names(config.members()[number].task),
        )
        networks.append(network)
    return build_content(
        experiment.nern,
        experiment.ordering,
        experiment.nern.reconstruct(),
        networks,
        images,
        config.seed,
        title=config.logging.exp_name,
        sizes=None if sizes is None else [Part(name, sizes.get(o), sizes.get(own, 0)) for name, o, own in RUN_PARTS],
        sizes_about="Bytes of the original's tensors, and of the files in the run folder that take their place.",
        history=History(state["losses"], state["evaluations"]) if "losses" in state else None,
        phases=[(phase["name"], phase["ends"]) for phase in metrics.get("phases", [])],
        best_step=best.get("step") if checkpoint == "best" else state.get("step"),
        notes=[] if metrics else [unfinished],
    )


def _checkpoint(folder: RunFolder) -> str:
    """The checkpoint to show: the best, else the last."""
    for name in ("best", "last"):
        if folder.checkpoint(name).is_file():
            return name
    again = f"nothing was saved; train it again: nern train --config_path {folder.config}"
    if folder.state.is_file():
        again = f"go on with: nern train --resume {folder.root}"
    raise NernError(f"run {folder.root} was stopped before its first checkpoint: there is nothing to show. {again}")


def _figures(metrics: Mapping[str, Any], best: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """Metrics of one network by set, original and reconstructed, as far as they were measured."""
    both = {"original": metrics.get("original", {}), "reconstructed": best}
    own = {of: figures.get("networks", {name: figures}).get(name, {}) for of, figures in both.items()}
    return {s: {of: figures[s] for of, figures in own.items() if s in figures} for s in ("test", "held_out")}


def _evaluation(experiment: Experiment, number: int, config: Config, images: int | None) -> Evaluation | str:
    """A network on all the run's test images; or why there is none: the end of a sentence."""
    if config.evaluation.test_images == 0:
        return "the run was made without test images (evaluation.test_images is 0)"
    if images == 0:
        return NO_IMAGES
    original, task = experiment.members[number].original, config.members()[number].task
    try:
        data = build_task(task, data_settings(config), experiment.device, False, original).test
    except NernError as error:
        return f"the test images cannot be had ({error})"
    assert data is not None
    return Evaluation(original, data, classes_of(task), config.evaluation.batch_size, experiment.beside(number))


# --- files -----------------------------------------------------------------------------------------------------------


def content_of_file(
    artifact: Artifact,
    title: str,
    images: int | None,
    original_model_path: str | Path | None,
    task: TaskConfig | None,
    network: int | nn.Module | None,
    console: Console,
) -> Content:
    """What a page tells of an artifact; weights are predicted after everything that was given has been checked. Arguments
    and errors: see `nern.report`."""
    description = artifact.description
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
    predictions = predicted(artifact, console).weights
    networks = []
    for place, of_network in enumerate(description.networks, 1):
        told = {key: value for key, value in of_network.about.get("test", {}).items() if key in TOLD}
        alone = NetworkContent(
            name=of_network.name + (f" ({place})" if len(description.networks) > 1 else ""),
            layers=[name for name, _, _ in of_network.represented],
            figures={"test": {"reconstructed": told}} if told else {},
            evaluation=NO_IMAGES if images == 0 else NO_TASK,
        )
        networks.append(alone)
    found = replace(networks[number], original=weights)
    if evaluated is not None:
        rebuilt = reconstructed(artifact, chosen)
        if original is None or data is None:
            figures = tested(rebuilt, _images(evaluated, described, rebuilt))
            found = replace(found, figures={"test": {"reconstructed": figures}}, evaluation=NO_ORIGINAL)
        else:
            whole = Evaluation(original, data, classes_of(evaluated), BATCH, reconstructed=rebuilt)
            found = replace(found, figures={}, evaluation=whole, class_names=class_names(evaluated))
    networks[number] = found
    return build_content(
        artifact.nern,
        artifact.ordering,
        predictions,
        networks,
        images,
        title=title,
        sizes=file_parts(artifact),
        sizes_about=f"Bytes of the original's tensors, and of the parts of the file: {artifact.size:,} in all.",
        notes=["Accuracies are those that the file tells."] if evaluated is None else [],
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
        tensors = [
            state.tensors for state in plain_state_dicts(resolve_weights(str(path)), "original network's weights")
        ]
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


def file_parts(artifact: Artifact) -> list[Part]:
    """Where a file's bytes are: parts that add up to its size, beside the bytes of the original's tensors."""
    description = artifact.description
    represented = sum(
        math.prod(shape) * DTYPES[dtype].itemsize for n in description.networks for _, shape, dtype in n.represented
    )
    kept = sum(code.count * DTYPES[code.dtype].itemsize for code in description.kept)
    told: dict[str, tuple[str, float | None]] = {
        "predictor": (PREDICTED, represented),
        "ordering": (ORDER, None),
        "outliers": ("weights kept apart (outliers)", None),
        "kept": (REST, kept),
        "description": ("description of networks and tensors", None),
        "header": ("header, checksums, probes", None),
    }
    return [Part(*told[part], size) for part, (_, size) in part_sizes(artifact).items()]
