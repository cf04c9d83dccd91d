"""Pack a run into one file: choose how its tensors are held, and write it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from nern.api import Fitted
from nern.artifact import (
    SUFFIX,
    Artifact,
    Holding,
    NetworkParts,
    described_anew,
    encoded,
    probed,
    size_of,
    write_artifact,
)
from nern.artifact.description import NetworkDescription, represented_as
from nern.artifact.table import accuracy_text, artifact_table
from nern.config import NernConfig, TaskConfig
from nern.console import PLAIN, CleanConsole
from nern.errors import NernError, plain_errors
from nern.files import check_free, check_writable, tensors_of
from nern.jobs.artifacts import tested
from nern.jobs.evaluating import config_of_run
from nern.jobs.results import experiment_of_run
from nern.naming import joint_name
from nern.ordering.order import Ordering
from nern.originals.base import Original
from nern.originals.norm_fitting import fitted_norms
from nern.registry import ORIGINALS
from nern.representation.grid import Quantised, StepChooser, on_grid, quantised_names
from nern.representation.nern import NeRN
from nern.representation.predictor import SCALES
from nern.training.effects import KEPT, PREDICTOR, Effects, under
from nern.training.members import Member, split_by_network
from nern.training.run_folder import RunFolder, load_steps

DEFAULT_BITS, MOST_BITS = 8.0, 24.0
KEPT_SHARE = 1 / 16  # of the level of a predictor that was trained to be rounded: the other tensors were not
COARSER = 6  # times that the level of the other tensors is doubled, half a bit each, to fit them into so many bytes


@dataclass(frozen=True)
class PackOptions:
    """How a run is packed.

    Attributes:
        checkpoint: of the run: 'best', 'last', ...; None: 'best'.
        bits: of a number of the predictor, on average; None: what it was trained to be rounded to, else 8, or what `size`
            leaves.
        size: most bytes of the file; None: what comes of `bits`. A predictor that was trained to be rounded stays as it
            was, as long as coarser steps of the other tensors are enough.
        lossless: everything as it is, in 32 bits.
        images: training images on which it is measured what rounding does; 0: it is measured on the weights. Where the
            predictor was not trained to be rounded, batch norms are fitted on them to what rounding makes of the weights.
        evaluate: also evaluate what the file gives on the test images, and keep the figures in the file.
        metadata: text by name, kept in the file.
    """

    checkpoint: str | None = None
    bits: float | None = None
    size: int | None = None
    lossless: bool = False
    images: int = 128
    evaluate: bool = False
    metadata: Mapping[str, str] | None = None

    def check(self) -> None:
        """Raise NernError for what cannot be asked for."""
        if self.bits is not None and not 1 <= self.bits <= MOST_BITS:
            raise NernError(f"bits (={self.bits}) must be from 1 to {MOST_BITS:g}, for each number of the predictor")
        if self.lossless and (self.bits is not None or self.size is not None):
            raise NernError("lossless keeps every number as it is; bits and bytes have no part in it, drop one of them")
        if self.bits is not None and self.size is not None:
            raise NernError("bits and bytes both say how large the file becomes; give one of them")
        if self.size is not None and self.size < 1:
            raise NernError(f"bytes (={self.size}) must be at least 1")
        if self.images < 0:
            raise NernError(f"images (={self.images}) must be 0 or more")


@dataclass(frozen=True)
class Packable:
    """What is packed.

    Attributes:
        nern: the representation.
        config: that it was built by.
        ordering: of its kernels.
        members: the networks, which packing changes.
        tasks: of each network, where its architecture is named; None: it is not.
        trained: what the predictor was trained to be rounded to.
    """

    nern: NeRN
    config: NernConfig
    ordering: Ordering
    members: list[Member]
    tasks: list[TaskConfig | None]
    trained: Quantised | None = None


@plain_errors()
def pack(
    run: str | Path,
    out: str | Path | None = None,
    options: PackOptions | None = None,
    console: Console | None = None,
) -> Artifact:
    """Write the NeRN of a run, with all that its networks have besides, into one file.

    Args:
        run: the run folder.
        out: the file, in place of one that is there; None: RUN.nern beside the folder, unless there is one.
        options: how.
        console: where the table of bytes goes; None: standard output.

    Returns:
        What a reader of the file gets.

    Raises:
        NernError: no run there, its original has changed, its images are not to be had (`images` 0 needs none), the file
            cannot be written, not within so many bytes, or is there without having been named.
    """
    options, console = options or PackOptions(), console or CleanConsole()
    options.check()
    run = Path(run)
    named, out = out is not None, Path(out) if out is not None else run.with_name(run.resolve().name + SUFFIX)
    check_writable(out, "pack")
    if not named:
        check_free(out, "-o (in Python `out`)")
    packable = _of_run(run, options)
    artifact, room = artifact_of(packable, options), options.size or 0
    if options.evaluate:
        artifact = _with_figures(packable.members, artifact)
        while options.size is not None and artifact.size > options.size:  # figures need bytes, too
            room -= artifact.size - options.size
            artifact = _with_figures(packable.members, artifact_of(packable, replace(options, size=room)))
    write_artifact(out, artifact.sections)
    console.print(artifact_table(artifact))
    for network in artifact.description.networks:
        if accuracy := accuracy_text(network):
            console.print(f"{network.name}: accuracy {accuracy}, by what the file gives", **PLAIN)
    console.print(f"file: {out}", **PLAIN)
    return artifact


@plain_errors()
def save(fitted: Fitted, path: str | Path, options: PackOptions | None = None) -> Artifact:
    """Write what `nern.fit` gave, with all that the network has besides, into one file: `nern.load(path).network(MODULE)`
    puts the weights into a copy of a module of the same architecture.

    Args:
        fitted: the NeRN of a network.
        path: the file, in place of one that is there.
        options: how; there are no images: `images` and `evaluate` have no part.

    Returns:
        What a reader of the file gets.

    Raises:
        NernError: options that cannot be met; the file cannot be written.
    """
    options = replace(options or PackOptions(), images=0)
    options.check()
    if options.evaluate:
        raise NernError("evaluate needs test images, and what nern.fit gave has none")
    check_writable(path, "save")
    original = Original(copy.deepcopy(fitted.original.network), names=fitted.original.weight_names)
    packable = Packable(fitted.nern, fitted.config, fitted.ordering, [Member(original)], [None])
    artifact = artifact_of(packable, options)
    write_artifact(path, artifact.sections)
    return artifact


def _of_run(run: str | Path, options: PackOptions) -> Packable:
    """A run with its predictor, and with what was trained beside it in its place."""
    folder = RunFolder.open(run)
    config = config_of_run(run, options.checkpoint or "best")
    config.num_gpus = 0
    config.evaluation.test_images = config.evaluation.test_images if options.evaluate else 0
    if options.evaluate and config.evaluation.test_images == 0:
        raise NernError(f"there are no test images to evaluate on: evaluation.test_images of {folder.root} is 0")
    images = options.images > 0 and not options.lossless
    experiment = experiment_of_run(config, folder, train=images)
    with torch.no_grad():
        for number, member in enumerate(experiment.members):
            for name, value in experiment.beside(number).items():
                member.original.network.get_parameter(name).copy_(value)
    tasks: list[TaskConfig | None] = [network.task for network in config.members()]
    trained = load_steps(config.nern.checkpoint_path or "")
    return Packable(experiment.nern, config.nern, experiment.ordering, experiment.members, tasks, trained)


def artifact_of(packable: Packable, options: PackOptions) -> Artifact:
    """What a reader makes of the file, whose sections it has; figures aside."""
    nern, members, count = packable.nern, packable.members, len(packable.members)
    if not options.lossless:
        for member in members:
            member.original.absorb_statistics()
    parts = [network_parts(member.original, task) for member, task in zip(members, packable.tasks, strict=True)]
    every = partial(encoded, nern, packable.config, packable.ordering, metadata=options.metadata)
    if options.lossless:
        return probed(every(parts))
    own = [dict(member.original.network.named_parameters(remove_duplicate=False)) for member in members]
    kept: dict[str, Tensor] = {}
    buffers: dict[str, str] = {}  # they may hold any values
    for number, (part, parameters) in enumerate(zip(parts, own, strict=True)):
        for name, tensor in part.kept.items():
            if name in parameters:
                kept[joint_name(name, number, count)] = tensor
            else:
                buffers[joint_name(name, number, count)] = "as"

    def write(
        of_predictor: Mapping[str, int], of_kept: Mapping[str, int], of: Sequence[NetworkParts]
    ) -> dict[str, bytes]:
        return every(of, Holding(of_predictor, "f16"), Holding({**of_kept, **buffers}, "f16"))

    predictor = {n: t for n, t in nern.predictor.state_dict().items() if n != SCALES}
    effects, of_kept = Effects(nern, members, options.images), {KEPT + n: t for n, t in kept.items()}
    if packable.trained is not None and options.bits is None:
        trained, kept_chooser = packable.trained, StepChooser(of_kept, effects)
        for halving in range(COARSER + 1 if options.size is not None else 1):
            steps = kept_chooser.steps(trained.level * KEPT_SHARE * 2**halving)
            sections = write(trained.steps, under(steps, KEPT), parts)
            if options.size is None or size_of(sections) <= options.size:
                return probed(sections)
    chooser = StepChooser({PREDICTOR + n: t for n, t in predictor.items()} | of_kept, effects)
    counted = [PREDICTOR + name for name in quantised_names(predictor)]

    def at(bits: float, fit: bool = True) -> dict[str, bytes]:
        steps = chooser.steps(chooser.level_of_bits(bits, counted))
        of = _with_norms_fitted(packable, effects, under(steps, PREDICTOR), parts) if fit else parts
        return write(under(steps, PREDICTOR), under(steps, KEPT), of)

    return probed(at(options.bits or DEFAULT_BITS) if options.size is None else _within(at, options.size))


def _with_norms_fitted(
    packable: Packable, effects: Effects, steps: Mapping[str, int], parts: Sequence[NetworkParts]
) -> list[NetworkParts]:
    """The parts with the batch norms that go with the predictor rounded to these steps, where there are images."""
    state, members = packable.nern.predictor.state_dict(), packable.members
    if all(images is None for images in effects.images):
        return list(parts)
    rounded = effects.predicted({name: on_grid(state[name], step) for name, step in steps.items()})
    before, after = (split_by_network(members, weights) for weights in (effects.weights, rounded))
    found = []
    for number, (member, part, images) in enumerate(zip(members, parts, effects.images, strict=True)):
        norms = {} if images is None else fitted_norms(member.original, after[number], images, like=before[number])
        found.append(replace(part, kept={**part.kept, **norms}))
    return found


def network_parts(original: Original, task: TaskConfig | None) -> NetworkParts:
    """What an artifact holds of one network; `task` names its architecture, if that is known."""
    name = original.name if task is None else task.original_model_name
    state = tensors_of(original.network)
    first: dict[int, str] = {}
    for key, value in state.items():
        first.setdefault(id(value), key)
    aliases = {key: first[id(value)] for key, value in state.items() if first[id(value)] != key}
    represented = represented_as({first[id(weight)]: weight for weight in original.weights})
    kept = {key: value for key, value in original.kept().items() if key not in aliases}
    source = name.rpartition(":")[0]
    known = task is not None and (source in ("torchvision", "timm") or (not source and name in ORIGINALS))
    arguments = dict(getattr(original.network, "built_with", {})) if known else {}
    about: dict[str, Any] = {} if task is None else {"task": task.task_name}
    built_as = name if known else None
    return NetworkParts(NetworkDescription(Path(name).name, built_as, arguments, represented, aliases, about), kept)


def _with_figures(members: Sequence[Member], artifact: Artifact) -> Artifact:
    """The same file, with the accuracy of each network that it gives."""
    networks = []
    for number, (member, described) in enumerate(zip(members, artifact.description.networks, strict=True)):
        network = copy.deepcopy(member.original.network)
        network.load_state_dict(artifact.state_dict(number))
        figures = tested(Original(network, names=member.original.weight_names), member.sets["test"])
        networks.append(replace(described, about=described.about | {"test": figures}))
    return described_anew(artifact, replace(artifact.description, networks=networks))


def _within(at: Callable[[float, bool], dict[str, bytes]], size: int) -> dict[str, bytes]:
    """The most bits with which the file has at most `size` bytes, to a hundredth of a bit. Norms are fitted at the end."""
    low, high = 1.0, MOST_BITS
    least = size_of(at(low, False))
    if least > size:
        raise NernError(
            f"even at one bit for each number of the predictor the file has {least:,} bytes, "
            f"more than {size:,}: take a smaller predictor, or an ordering that needs less"
        )
    while high - low > 0.01:
        middle = (low + high) / 2
        if size_of(at(middle, False)) <= size:
            low = middle
        else:
            high = middle
    while size_of(found := at(low, True)) > size and low > 1:  # fitted norms may take some bytes more
        low = max(low - 0.01, 1.0)
    return found if size_of(found) <= size else at(low, False)
