"""Pack a run into one file: choose how its tensors are held, and write it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nern.artifact import SUFFIX, Artifact, Holding, NetworkParts, described_anew, to_sections, write_artifact
from nern.artifact.table import artifact_table
from nern.errors import NernError
from nern.experiment import Experiment, build_experiment
from nern.files import check_writable
from nern.jobs.artifacts import tested
from nern.jobs.evaluating import config_of_run
from nern.jobs.report import check_original, restore_outliers
from nern.naming import joint_name
from nern.originals.base import Original
from nern.registry import ORIGINALS
from nern.representation.grid import StepChooser, quantised_names
from nern.representation.predictor import SCALES
from nern.training.effects import KEPT, PREDICTOR, Effects, under
from nern.training.members import Member
from nern.training.run_folder import RunFolder, load_steps

DEFAULT_BITS = 8.0


@dataclass(frozen=True)
class PackOptions:
    """How a run is packed.

    Attributes:
        checkpoint: of the run: 'best', 'last', ...; None: 'best'.
        bits: of a number of the predictor, on average; None: what it was trained to be rounded to, else 8, or what `size`
            leaves.
        size: most bytes of the file; None: what comes of `bits`.
        lossless: everything as it is, in 32 bits.
        images: training images on which it is measured what rounding does; 0: it is measured on the weights.
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
        if self.bits is not None and not 1 <= self.bits <= 24:
            raise NernError(f"bits (={self.bits}) must be from 1 to 24, for each number of the predictor")
        if self.lossless and (self.bits is not None or self.size is not None):
            raise NernError("lossless keeps every number as it is; bits and bytes have no part in it, drop one of them")
        if self.bits is not None and self.size is not None:
            raise NernError("bits and bytes both say how large the file becomes; give one of them")
        if self.size is not None and self.size < 1:
            raise NernError(f"bytes (={self.size}) must be at least 1")
        if self.images < 0:
            raise NernError(f"images (={self.images}) must be 0 or more")


def pack(
    run: str | Path,
    out: str | Path | None = None,
    options: PackOptions | None = None,
    console: Console | None = None,
) -> Artifact:
    """Write the NeRN of a run, with all that its networks have besides, into one file.

    Args:
        run: the run folder.
        out: the file; None: RUN.nern, beside the folder.
        options: how.

    Returns:
        What a reader of the file gets.

    Raises:
        NernError: no run there, its original has changed, its images are not to be had (`images` 0 needs none), the file
            cannot be written, or not within so many bytes.
    """
    options, console = options or PackOptions(), console or Console()
    options.check()
    run = Path(run)
    out = Path(out) if out is not None else run.with_name(run.resolve().name + SUFFIX)
    check_writable(out, "pack")
    experiment = open_experiment(run, options)
    sections, artifact = sections_of(experiment, options)
    if options.evaluate:
        sections, artifact = _with_figures(experiment, artifact, sections)
    write_artifact(out, sections)
    console.print(artifact_table(artifact))
    console.print(f"file: {out}", highlight=False, soft_wrap=True)
    return artifact


def open_experiment(run: str | Path, options: PackOptions) -> Experiment:
    """The run's experiment, with its predictor and what was trained beside it."""
    folder = RunFolder.open(run)
    config = config_of_run(run, options.checkpoint or "best")
    config.no_cuda = True
    config.evaluation.test_images = config.evaluation.test_images if options.evaluate else 0
    if options.evaluate and config.evaluation.test_images == 0:
        raise NernError(f"there are no test images to evaluate on: evaluation.test_images of {folder.root} is 0")
    images = options.images > 0 and not options.lossless
    experiment = build_experiment(config, train=images)
    check_original(experiment, folder)
    restore_outliers(experiment, folder)
    return experiment


def sections_of(experiment: Experiment, options: PackOptions) -> tuple[dict[str, bytes], Artifact]:
    """The sections of the file, and what a reader makes of them; the experiment's networks are changed for it."""
    _put_in_place(experiment, fold=not options.lossless)
    nern, config, count = experiment.nern, experiment.config.nern, len(experiment.members)
    parts = [network_parts(member, experiment, number) for number, member in enumerate(experiment.members)]

    def write(predictor: Holding, kept: Holding) -> tuple[dict[str, bytes], Artifact]:
        return to_sections(nern, config, experiment.ordering, parts, predictor, kept, options.metadata)

    if options.lossless:
        return write(Holding(), Holding())
    predictor = {n: t for n, t in nern.predictor.state_dict().items() if n != SCALES}
    kept = {joint_name(name, i, count): t for i, part in enumerate(parts) for name, t in part.kept.items()}
    effects, of_kept = Effects(nern, experiment.members, options.images), {KEPT + n: t for n, t in kept.items()}
    trained = load_steps(experiment.config.nern.checkpoint_path or "")
    if trained is not None and options.bits is None and options.size is None:
        steps = StepChooser(of_kept, effects).steps(trained.level)
        return write(Holding(trained.steps, "f16"), Holding(under(steps, KEPT), "f16"))
    chooser = StepChooser({PREDICTOR + n: t for n, t in predictor.items()} | of_kept, effects)
    counted = [PREDICTOR + name for name in quantised_names(predictor)]

    def at(bits: float) -> tuple[dict[str, bytes], Artifact]:
        steps = chooser.steps(chooser.level_of_bits(bits, counted))
        return write(*(Holding(under(steps, start), "f16") for start in (PREDICTOR, KEPT)))

    return at(options.bits or DEFAULT_BITS) if options.size is None else _within(at, options.size)


def network_parts(member: Member, experiment: Experiment, number: int) -> NetworkParts:
    """What an artifact holds of one network."""
    task = experiment.config.members()[number].task
    name, original = task.original_model_name, member.original
    state = original.network.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    for key, value in state.items():
        first.setdefault(id(value), key)
    aliases = {key: first[id(value)] for key, value in state.items() if first[id(value)] != key}
    represented = {first[id(weight)]: weight for weight in original.weights}
    kept = {key: value for key, value in original.kept().items() if key not in aliases}
    source = name.rpartition(":")[0]
    known = source in ("torchvision", "timm") or (not source and name in ORIGINALS)
    arguments = dict(getattr(original.network, "built_with", {})) if known else {}
    about: dict[str, Any] = {"task": task.task_name} | ({} if known else {"built_by": Path(name).name})
    return NetworkParts(Path(name).name, name if known else None, arguments, represented, kept, aliases, about)


@torch.no_grad()
def _put_in_place(experiment: Experiment, fold: bool) -> None:
    """Give the originals what was trained beside the predictor; `fold`: and norms without statistics."""
    for number, member in enumerate(experiment.members):
        for name, value in experiment.beside(number).items():
            member.original.network.get_parameter(name).copy_(value)
        if fold:
            member.original.absorb_statistics()


def _with_figures(
    experiment: Experiment, artifact: Artifact, sections: Mapping[str, bytes]
) -> tuple[dict[str, bytes], Artifact]:
    """The same file, with the accuracy of each network that it gives."""
    networks = []
    for number, (member, described) in enumerate(zip(experiment.members, artifact.description.networks, strict=True)):
        assert member.task is not None
        assert member.task.test is not None
        state = artifact.state_dict(number)
        network = copy.deepcopy(member.original.network)
        network.load_state_dict(state)
        figures = tested(Original(network, include=member.original.weight_names), member.task.test)
        networks.append(replace(described, about=described.about | {"test": figures}))
    return described_anew(sections, replace(artifact.description, networks=networks))


def _within(at: Callable[[float], tuple[dict[str, bytes], Artifact]], size: int) -> tuple[dict[str, bytes], Artifact]:
    """The most bits with which the file has at most `size` bytes, up to a hundredth of a bit."""
    low, high = 1.0, 16.0
    found = at(low)
    if found[1].size > size:
        raise NernError(
            f"even at one bit for each number of the predictor the file has {found[1].size:,} bytes, "
            f"more than {size:,}: take a smaller predictor, or an ordering that needs less"
        )
    while high - low > 0.01:
        middle = (low + high) / 2
        tried = at(middle)
        if tried[1].size <= size:
            low, found = middle, tried
        else:
            high = middle
    return found
