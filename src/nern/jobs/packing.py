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
from nern.artifact.table import accuracy_text, artifact_table
from nern.calibration.network import Calibrated, measured, vector_steps
from nern.config import NernConfig, TaskConfig
from nern.console import PLAIN, CleanConsole
from nern.devices import return_memory
from nern.errors import NernError, plain_errors
from nern.files import check_free, check_writable
from nern.inputs import joined
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
    """How `nern.pack` and `nern.save` write a network, or the NeRN of a run. Give one of `bits`, `size` (on the command
    line --bytes) and `gap`, or none.

    Attributes:
        checkpoint: for a run: the checkpoint, 'best', 'last', 'step_N' or the name of a phase. None: 'best'.
        bits: for a network: bits of a weight, on average; None: a file near the original. For a NeRN: bits of a number of
            the predictor, on average; None: what it was trained to be rounded to, else 8. Above 0, at most 24.
        size: largest size of the file, in bytes; None: no limit. If a predictor was trained to be rounded, the other
            tensors are rounded more coarsely first.
        gap: for a network: largest share of calibration images, in percent, that may get another class than from the
            original.
        lossless: for a NeRN: every number as it is, in 32 bits.
        images: number of images on which the effect of rounding is measured; None: 128 for a NeRN, up to 1,024 for a
            network. 0: no images are needed; the weights alone are looked at. Batch norms and biases are fitted on these
            images to the rounded weights, unless the predictor was trained to be rounded.
        evaluate: whether to evaluate the file's network on the test images, and to keep the figures in the file.
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
        """Check the options.

        Raises:
            NernError: one is out of its range, or two exclude each other.
        """
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
    """Write a network, rounded without training, or the NeRN of a run into one file.

    Args:
        source: a module; a file of weights, whose network `task.original_model_name` names; or a run folder.
        out: the file to write; an older one is replaced. None: SOURCE.nern beside the source; it must not exist yet.
        options: how; None: the defaults of `PackOptions`.
        console: where to print the table of bytes; None: standard output.
        task: for a network: the task whose training images it is calibrated on; with `task_name` '' images are made up.
        images: for a network: the calibration images in place of the task's: a tensor (images, ...) of its inputs; or a
            DataLoader, a Dataset or an iterable of batches, as for `nern.fit`. The first samples are taken, so let a
            DataLoader shuffle.
        forward: (network, batch) -> outputs, in place of the usual call with a batch of `images`.

    Returns:
        What a reader of the file gets.

    Raises:
        NernError: there is no run, or its original has changed; the images cannot be had, or do not fit the network (with
            `images` 0 of the options none are needed); options contradict each other or cannot be met; the file cannot be
            written, or exists although `out` is None.
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
    tests = [(member.original, member.sets["test"]) for member in packable.members] if options.evaluate else []
    made = _with_figures(lambda size: artifact_of(packable, replace(options, size=size)), options.size, tests)
    return _written(made, out, console)


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
    if options.lossless or options.checkpoint is not None:
        option = "lossless" if options.lossless else "checkpoint"
        raise NernError(f"{option} is of runs; {'a module' if isinstance(source, nn.Module) else source} is a network")
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
    coder = Coder(original, name, task_name, seen, SEED, options.metadata, console)
    of_task = "made-up images" if known is None else f"training images of {task_name}"
    whose = "images" if seen is None or images is not None else of_task
    console.print(f"calibrated on {0 if seen is None else len(seen):,} {whose}", **PLAIN)
    found: list[Calibrated] = []

    def made(size: int | None) -> Artifact:
        artifact, calibrated = coded_network(coder, Wanted(size, options.bits, options.gap), console)
        found.append(calibrated)
        return artifact

    tests = [(original, images_of(known, original))] if options.evaluate and known is not None else []
    artifact = _with_figures(made, options.size, tests)
    if found[-1].agreement is not None:
        console.print(f"agreement with the original on the calibration images: {found[-1].agreement:.2f} %", **PLAIN)
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


@plain_errors()
def save(fitted: Fitted, path: str | Path, options: PackOptions | None = None) -> Artifact:
    """Write what `nern.fit` returned, and everything else of its network, into one file. `nern.load(path).network(module)`
    is a copy of `module`, which has the same architecture, with the weights of the file.

    Args:
        fitted: what `nern.fit` returned.
        path: the file to write; an older one is replaced.
        options: how; None: the defaults of `PackOptions`. `images` are taken from the data that it was fitted on; `evaluate`
            is not allowed, use `Fitted.evaluate`.

    Returns:
        What a reader of the file gets.

    Raises:
        NernError: options contradict each other or cannot be met; the file cannot be written.
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
    parts = []
    for member, task in zip(members, packable.tasks, strict=True):
        known = (None, None) if task is None else (task.original_model_name, task.task_name)
        parts.append(network_parts(member.original, *known))
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
    """The parts with the norms and biases that go with the predictor rounded to these steps, where there are images."""
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


def _with_figures(
    made: Callable[[int | None], Artifact], size: int | None, tests: Sequence[tuple[Original, EvalSet]]
) -> Artifact:
    """A file of at most `size` bytes with the accuracies that its networks have, where there are `tests`: of each network
    the original and test images. `made` makes a file of at most so many bytes."""
    room = size
    while True:
        artifact = made(room)
        networks = list(artifact.description.networks)
        for number, (original, data) in enumerate(tests):
            network = copy.deepcopy(original.network)
            network.load_state_dict(artifact.state_dict(number))
            figures = tested(Original(network, names=original.weight_names), data)
            networks[number] = replace(networks[number], about=networks[number].about | {"test": figures})
        if tests:
            artifact = described_anew(artifact, replace(artifact.description, networks=networks))
        if size is None or room is None or artifact.size <= size:
            return artifact
        room -= artifact.size - size  # figures need bytes, too


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
