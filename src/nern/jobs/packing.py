"""Pack a run, or a network, into one file: choose how its tensors are held, and write it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

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
from nern.artifact.description import NetworkDescription
from nern.artifact.table import accuracy_text, artifact_table
from nern.calibration.network import measured, vector_steps
from nern.config import NernConfig, TaskConfig
from nern.console import PLAIN, CleanConsole
from nern.devices import return_memory
from nern.errors import NernError, plain_errors
from nern.files import check_free, check_writable
from nern.inputs import Images, joined
from nern.jobs.artifacts import images_of, tested
from nern.jobs.coding import IMAGES, Coder, Wanted, calibration_images, coded_network, coded_original, coded_sections
from nern.jobs.evaluating import config_of_run
from nern.jobs.parts import network_parts
from nern.jobs.results import experiment_of_run
from nern.naming import joint_name
from nern.ordering.order import Ordering
from nern.originals.base import Original
from nern.originals.build import build_original_network
from nern.originals.input_format import InputFormat
from nern.originals.norm_fitting import fitted_norms
from nern.registry import PREDICTORS
from nern.representation.grid import Quantised, StepChooser, on_grid, quantised_names
from nern.representation.nern import NeRN
from nern.representation.predictor import SCALES
from nern.shipped import SHIPPED
from nern.tasks.base import network_arguments
from nern.tasks.own import Forward
from nern.tasks.streams import EvalSet, first_images
from nern.training.effects import KEPT, PREDICTOR, Effects, under
from nern.training.members import Member, split_by_network
from nern.training.run_folder import RunFolder, load_steps

DEFAULT_BITS, MOST_BITS = 8.0, 24.0
RUN_IMAGES = 128  # on which the effect of rounding is measured
SEED = 0  # of what is drawn
KEPT_SHARE = 1 / 16  # of the level of a predictor that was trained to be rounded: the other tensors were not
COARSER = 6  # times that the level of the other tensors is doubled, half a bit each, to fit them into so many bytes


@dataclass(frozen=True)
class PackOptions:
    """How a run, or a network, is packed.

    Attributes:
        checkpoint: of the run: 'best', 'last', ...; None: 'best'.
        bits: of a number of the predictor, on average; None: what it was trained to be rounded to, else 8, or what `size`
            leaves. Of a network: of each of its weights; None: as many as keep it near the original.
        size: most bytes of the file; None: what comes of `bits`. A predictor that was trained to be rounded stays as it
            was, as long as coarser steps of the other tensors are enough.
        gap: of a network: most images, in percent, of which the file's network may give another class than the original.
        lossless: of a run: everything as it is, in 32 bits.
        images: training images on which it is measured what rounding does; 0: it is measured on the weights; None: 128 for
            a run, up to 1,024 for a network, as many as its layers leave room for. Where the predictor was not trained to
            be rounded, batch norms are fitted on them to what rounding makes of the weights.
        evaluate: also evaluate what the file gives on the test images, and keep the figures in the file.
        metadata: text by name, kept in the file.
    """

    checkpoint: str | None = None
    bits: float | None = None
    size: int | None = None
    gap: float | None = None
    lossless: bool = False
    images: int | None = None
    evaluate: bool = False
    metadata: Mapping[str, str] | None = None

    def check(self) -> None:
        """Raise NernError for what cannot be asked for."""
        if self.bits is not None and not 0 < self.bits <= MOST_BITS:
            raise NernError(f"bits (={self.bits}) must be above 0, and at most {MOST_BITS:g}")
        if self.lossless and (self.bits is not None or self.size is not None):
            raise NernError("lossless keeps every number as it is; bits and bytes have no part in it, drop one of them")
        if sum(value is not None for value in (self.bits, self.size, self.gap)) > 1:
            raise NernError("bits, bytes and gap each say how large the file becomes; give one of them")
        if self.gap is not None and not 0 <= self.gap < 100:
            raise NernError(f"gap (={self.gap}) is a share of the images in percent, from 0 to 100")
        if self.size is not None and self.size < 1:
            raise NernError(f"bytes (={self.size}) must be at least 1")
        if self.images is not None and self.images < 0:
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
    source: str | Path | nn.Module,
    out: str | Path | None = None,
    options: PackOptions | None = None,
    console: Console | None = None,
    task: TaskConfig | None = None,
    images: Any = None,
    forward: Forward | None = None,
) -> Artifact:
    """Write into one file: the NeRN of a run, or a network, rounded without training.

    Args:
        source: a run folder; a network; or a file of weights, whose network `task.original_model_name` names.
        out: the file, in place of one that is there; None: SOURCE.nern beside the source, unless there is one.
        options: how.
        console: where the table of bytes goes; None: standard output.
        task: of a network: whose training images it is calibrated on (`task_name` '': made-up ones).
        images: of a network: the images themselves, as it takes them: a tensor (images, ...); or a DataLoader, a Dataset, or
            an iterable of batches as `nern.fit` takes them, whose first samples are taken.
        forward: (network, batch) -> outputs, in place of the usual call of the network with a batch of `images`.

    Returns:
        What a reader of the file gets.

    Raises:
        NernError: no run there, its original has changed, its images are not to be had (`images` 0 needs none) or do not
            fit, the file cannot be written, not within so many bytes, or is there without having been named.
    """
    options, console = options or PackOptions(), console or CleanConsole()
    options.check()
    if isinstance(source, nn.Module) or not Path(source).is_dir():
        return _pack_network(source, out, options, console, task, images, forward)
    if options.gap is not None:
        raise NernError("gap is of a network; of a run say bits or bytes")
    if options.bits is not None and options.bits < 1:
        raise NernError(f"bits (={options.bits}) must be at least 1, for each number of the predictor")
    if task is not None or images is not None or forward is not None:
        raise NernError("a run knows its task and its images; leave task, images and forward out")
    run = Path(source)
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
    return _written(artifact, out, console)


def _written(artifact: Artifact, out: Path, console: Console) -> Artifact:
    write_artifact(out, artifact.sections)
    console.print(artifact_table(artifact))
    for network in artifact.description.networks:
        if accuracy := accuracy_text(network):
            console.print(f"{network.name}: accuracy {accuracy}, by what the file gives", **PLAIN)
    console.print(f"file: {out}", **PLAIN)
    return artifact


def _pack_network(
    source: str | Path | nn.Module,
    out: str | Path | None,
    options: PackOptions,
    console: Console,
    task: TaskConfig | None,
    images: Any,
    forward: Forward | None,
) -> Artifact:
    """`pack`, of a network."""
    return_memory()
    refused = {"lossless": options.lossless, "checkpoint": options.checkpoint is not None}
    for option, given in refused.items():
        if given:
            raise NernError(
                f"{option} is of runs; {source if isinstance(source, str | Path) else 'a module'} is a network"
            )
    task_name = task.task_name if task is not None and task.task_name else None
    if options.evaluate and task_name is None:
        raise NernError("evaluate needs test images: --task.task_name says whose")
    if forward is not None and images is None:
        raise NernError("forward says how the network is called with `images`; give these, too")
    name, network = _network(source, task)
    if isinstance(source, nn.Module) and out is None:
        raise NernError("a network in memory has no name; say `out`, the file to write")
    place = Path("") if isinstance(source, nn.Module) else Path(str(source).removeprefix(SHIPPED)).with_suffix(SUFFIX)
    target = place if out is None else Path(out)
    check_writable(target, "pack")
    if out is None:
        check_free(target, "-o (in Python `out`)")
    original = coded_original(network)
    size = task.input_size if task is not None else None
    if size is not None or (original.input_format is None and (name or "").startswith("torchvision:")):
        original.input_format = (original.input_format or InputFormat()).having(size)  # torchvision does not tell
    known = task if task_name is not None else None
    count = options.images if options.images is not None else IMAGES
    seen = calibration_images(original, known, count, SEED, images, forward)
    told = Wanted(options.size, options.bits, options.gap)
    coder = Coder(original, name, task_name, seen, SEED, options.metadata, console)
    console.print(f"calibrated on {0 if seen is None else len(seen):,} {_whose(known, images, seen)}", **PLAIN)
    artifact, found = coded_network(coder, told, console)
    if options.evaluate:
        assert known is not None
        data = images_of(known, original)
        artifact = _with_test(artifact, original, data)
        while options.size is not None and artifact.size > options.size:  # figures need bytes, too
            room = options.size - (artifact.size - options.size)
            artifact, found = coded_network(coder, replace(told, size=room), console)
            artifact = _with_test(artifact, original, data)
    if found.agreement is not None:
        console.print(f"agreement with the original on the calibration images: {found.agreement:.2f} %", **PLAIN)
    return _written(artifact, target, console)


def _network(source: str | Path | nn.Module, task: TaskConfig | None) -> tuple[str | None, nn.Module]:
    """A network, and how it is built, if that is known."""
    if isinstance(source, nn.Module):
        return None, source
    if task is None:
        raise NernError(f"{source} is no run folder; of a file of weights, --task.original_model_name says the network")
    arguments = network_arguments(task) if task.task_name else {}
    name = task.original_model_name
    return name, build_original_network(name, str(source), task.original_model_kwargs, arguments)


def _whose(task: TaskConfig | None, images: Any, seen: Images | None) -> str:
    if seen is None or images is not None:
        return "images"
    return "made-up images" if task is None else f"training images of {task.task_name}"


def _with_test(artifact: Artifact, original: Original, data: EvalSet) -> Artifact:
    """The same file, with the accuracy of the network that it gives."""
    described = _tested(artifact, 0, artifact.description.networks[0], original, data)
    return described_anew(artifact, replace(artifact.description, networks=[described]))


@plain_errors()
def save(fitted: Fitted, path: str | Path, options: PackOptions | None = None) -> Artifact:
    """Write what `nern.fit` gave, with all that the network has besides, into one file: `nern.load(path).network(MODULE)`
    puts the weights into a copy of a module of the same architecture.

    Args:
        fitted: the NeRN of a network.
        path: the file, in place of one that is there.
        options: how; `images` of the data that it was fitted on, if there were any, and `evaluate` has no part.

    Returns:
        What a reader of the file gets.

    Raises:
        NernError: options that cannot be met; the file cannot be written.
    """
    options = options or PackOptions()
    options.check()
    if options.evaluate:
        raise NernError("evaluate has no part in what nern.fit gave: its own `evaluate` does that")
    check_writable(path, "save")
    original = Original(copy.deepcopy(fitted.original.network), names=fitted.original.weight_names)
    with torch.no_grad():
        for name, value in fitted.beside.items():
            original.network.get_parameter(name).copy_(value)
    members = [Member(original, fitted.task, original.name)]
    packable = Packable(fitted.nern, fitted.config, fitted.ordering, members, [None], fitted.quantised)
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
    images = options.images != 0 and not options.lossless
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
    parts = [
        network_parts(member.original, *_named(task)) for member, task in zip(members, packable.tasks, strict=True)
    ]
    every = partial(encoded, nern, packable.config, packable.ordering, metadata=options.metadata)
    if options.lossless:
        return probed(every(parts))
    count_images = RUN_IMAGES if options.images is None else options.images
    if PREDICTORS.info(packable.config.method)["of_kernels"]:
        return _of_codes(packable, parts[0], options, count_images)
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
    effects, of_kept = Effects(nern, members, count_images), {KEPT + n: t for n, t in kept.items()}
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


def _of_codes(packable: Packable, parts: NetworkParts, options: PackOptions, count: int) -> Artifact:
    """A run whose predictor holds codes, as they were trained to be rounded."""
    member, trained = packable.members[0], packable.trained
    if trained is None:
        raise NernError(
            "its codes were not trained to be rounded: give the run a phase with `bits` (recipe 'codes' has one), or pack "
            "the network itself"
        )
    if options.bits is not None:
        raise NernError(
            "its codes were trained at the bits that they have; bits and what is trained go together, drop it"
        )
    seen = None if member.stream is None or not count else joined(first_images(member.stream, count))
    sensitivity = {} if seen is None else measured(member.original, seen, SEED)
    steps = vector_steps(member.original, sensitivity, trained.level)
    sections = coded_sections(member.original, packable.nern, packable.config, parts, steps, options.metadata)
    if options.size is not None and size_of(sections) > options.size:
        raise NernError(
            f"the file has {size_of(sections):,} bytes, more than {options.size:,}: train the run with fewer bits"
        )
    return probed(sections)


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


def _named(task: TaskConfig | None) -> tuple[str | None, str | None]:
    """How a network is built, and whose images it takes; None: it is not known."""
    return (None, None) if task is None else (task.original_model_name, task.task_name)


def _with_figures(members: Sequence[Member], artifact: Artifact) -> Artifact:
    """The same file, with the accuracy of each network that it gives."""
    networks = []
    for number, (member, described) in enumerate(zip(members, artifact.description.networks, strict=True)):
        networks.append(_tested(artifact, number, described, member.original, member.sets["test"]))
    return described_anew(artifact, replace(artifact.description, networks=networks))


def _tested(
    artifact: Artifact, number: int, described: NetworkDescription, original: Original, data: EvalSet
) -> NetworkDescription:
    """What is said of a network, with the accuracy that the file gives it."""
    network = copy.deepcopy(original.network)
    network.load_state_dict(artifact.state_dict(number))
    figures = tested(Original(network, names=original.weight_names), data)
    return replace(described, about=described.about | {"test": figures})


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
