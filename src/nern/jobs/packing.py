"""Pack a run into one file: choose how its tensors are held, and write it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

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
from nern.training.members import Member, split_by_network
from nern.training.run_folder import RunFolder

PREDICTOR, KEPT = "predictor/", "kept/"
DEFAULT_BITS = 8.0


@dataclass(frozen=True)
class PackOptions:
    """How a run is packed.

    Attributes:
        checkpoint: of the run: 'best', 'last', ...; None: 'best'.
        bits: of a number of the predictor, on average; None: 8, or what `size` leaves.
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
    predictor = {n: t for n, t in nern.predictor.state_dict().items() if n != "output_scales"}
    kept = {joint_name(name, i, count): t for i, part in enumerate(parts) for name, t in part.kept.items()}
    tensors = {PREDICTOR + n: t for n, t in predictor.items()} | {KEPT + n: t for n, t in kept.items()}
    chooser = StepChooser(tensors, Effects(experiment, options.images))
    counted = [PREDICTOR + name for name in quantised_names(predictor)]

    def at(bits: float) -> tuple[dict[str, bytes], Artifact]:
        steps = chooser.steps(chooser.level_of_bits(bits, counted))
        return write(*(Holding(_under(steps, start), "f16") for start in (PREDICTOR, KEPT)))

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


class Effects:
    """How much changing some tensors changes the reconstructed networks.

    Args:
        experiment: with the tensors in their places.
        images: of the training stream: the effect is the mean divergence of the outputs on them; 0, or where there are no
            images: the squared relative error of weights, a mean over layers.
    """

    def __init__(self, experiment: Experiment, images: int) -> None:
        self.experiment, self.count = experiment, len(experiment.members)
        self._state = {name: t.clone() for name, t in experiment.nern.predictor.state_dict().items()}
        self._weights = experiment.nern.reconstruct()
        streams = [None if member.task is None else member.task.train for member in experiment.members]
        self._images = [None if stream is None or not images else _images(stream.batch, images) for stream in streams]
        self._outputs = [
            None if batch is None else self._run(number, self._weights, {}) for number, batch in enumerate(self._images)
        ]

    @torch.no_grad()
    def __call__(self, changed: Mapping[str, Tensor]) -> float:
        """The mean over networks; names begin with PREDICTOR or KEPT."""
        predictor, kept = _under(changed, PREDICTOR), _under(changed, KEPT)
        weights = self._predicted(predictor) if predictor else self._weights
        found = [self._of_network(number, weights, kept) for number in range(self.count)]
        return sum(found) / self.count

    def _predicted(self, changed: Mapping[str, Tensor]) -> list[Tensor]:
        predictor = self.experiment.nern.predictor
        predictor.load_state_dict(self._state | dict(changed))
        try:
            return self.experiment.nern.reconstruct()
        finally:
            predictor.load_state_dict(self._state)

    def _of_network(self, number: int, weights: list[Tensor], kept: Mapping[str, Tensor]) -> float:
        own = {k: v for k, v in kept.items() if self._is_of(k, number)}
        if self._images[number] is not None:
            log_p, log_q = self._outputs[number], self._run(number, weights, own)
            assert log_p is not None
            return float(F.kl_div(log_q, log_p, reduction="batchmean", log_target=True))
        before, after = (split_by_network(self.experiment.members, w)[number] for w in (self._weights, weights))
        pairs = [*zip(before, after, strict=True), *((self._kept(number)[k], v) for k, v in own.items())]
        ratios = [float((b - a).square().sum() / b.square().sum().clamp_min(1e-30)) for b, a in pairs]
        return sum(ratios) / len(before)

    def _is_of(self, name: str, number: int) -> bool:
        return self.count == 1 or name.startswith(f"{number}.")

    def _kept(self, number: int) -> dict[str, Tensor]:
        original = self.experiment.members[number].original
        return {joint_name(name, number, self.count): value for name, value in original.kept().items()}

    def _run(self, number: int, weights: list[Tensor], kept: Mapping[str, Tensor]) -> Tensor:
        """Log-probabilities of a network with these weights and kept tensors."""
        original: Original = self.experiment.members[number].original
        images, start = self._images[number], joint_name("", number, self.count)
        assert images is not None
        own = split_by_network(self.experiment.members, weights)[number]
        buffers = {name for name, _ in original.network.named_buffers()}
        extra = {name.removeprefix(start): value for name, value in kept.items()}
        if any(
            name in buffers for name in extra
        ):  # statistics of a norm without weights: no way but the network itself
            outputs = torch.func.functional_call(
                original.network, dict(zip(original.weight_names, own, strict=True)) | extra, (images,)
            )
        else:
            outputs, _ = original.run(own, images, extra)
        return outputs.double().log_softmax(1)


def _images(batch: Callable[[int], Any], count: int) -> Tensor:
    """So many images, from the first batches of a stream."""
    parts: list[Tensor] = []
    while sum(map(len, parts)) < count:
        parts.append(batch(len(parts))[0])
    return torch.cat(parts)[:count]


def _under(values: Mapping[str, Any], start: str) -> dict[str, Any]:
    return {name.removeprefix(start): value for name, value in values.items() if name.startswith(start)}


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
