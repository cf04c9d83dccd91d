"""What a finished NeRN leaves and tells: kept tensors, ordering, metrics, sizes, picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from nern.config import Config
from nern.errors import NernError
from nern.evaluation import LayerError, layer_errors
from nern.experiment import Experiment, build_experiment, solved_by_the_clock
from nern.files import load_safetensors, tensors_of, write_json
from nern.jobs.session import common_metrics
from nern.naming import joint_name
from nern.ordering.store import content_key, save_ordering
from nern.representation.nern import share_of
from nern.training.members import Member, split_by_network
from nern.training.run_folder import RunFolder
from nern.training.trainer import Trainer
from nern.weights_file import load_weights


def kept_tensors(experiment: Experiment) -> dict[str, torch.Tensor]:
    """What is not represented, by `joint_name`."""
    parts, count = enumerate(member.original.kept() for member in experiment.members), len(experiment.members)
    return {joint_name(name, number, count): value for number, part in parts for name, value in part.items()}


def digests(members: Sequence[Member]) -> dict[str, str]:
    """Of the originals, and of the teacher if there is one."""
    originals = [member.original.digest() for member in members]
    teachers = [member.teacher.digest() for member in members if member.teacher is not None]
    return {"original": " ".join(originals)} | ({"teacher": " ".join(teachers)} if teachers else {})


def store_ordering(experiment: Experiment, folder: RunFolder) -> None:
    """Write the ordering into the run folder, unless it is 'none'."""
    if experiment.ordering.mode != "none":
        weights = [weight for member in experiment.members for weight in member.original.weights]
        key = content_key(experiment.nern.table.views(weights), experiment.ordering.mode)
        save_ordering(folder.ordering, experiment.ordering, key)


def take_ordering(config: Config, folder: RunFolder) -> None:
    """Have the run's ordering read from its folder. Raises NernError if it is gone and, solved again, might be another."""
    if folder.ordering.is_file():
        config.nern.embeddings.permutations.path = str(folder.ordering)
    elif solved_by_the_clock(config):
        raise NernError(
            f"{folder.ordering} is missing: the run's checkpoints belong to that order of kernels, which is not found a "
            "second time"
        )


def check_original(members: Sequence[Member], folder: RunFolder) -> None:
    """Raise NernError if the weights of the original, or of the teacher where it is needed, are no longer those the run was
    trained with."""
    _, stored = load_safetensors(folder.kept, "kept parameters of the run")
    for what, digest in digests(members).items():
        if stored.get(what, digest if what == "teacher" else None) != digest:
            raise NernError(f"the {what} of run {folder.root} had other weights than now; start another run for these")


def experiment_of_run(config: Config, folder: RunFolder, train: bool = False) -> Experiment:
    """What a run's config describes, its original checked; `train`: with the training sets. Errors: see
    `build_experiment`, `check_original`."""
    experiment = build_experiment(config, train=train)
    check_original(experiment.members, folder)
    return experiment


def all_layer_errors(members: Sequence[Member], weights: Sequence[Sequence[torch.Tensor]]) -> list[LayerError]:
    """Reconstruction error of every layer; with several networks a layer's name begins with its network's."""
    errors = []
    for member, own in zip(members, weights, strict=True):
        prefix = f"{member.name}: " if len(members) > 1 else ""
        names = [prefix + name for name in member.original.weight_names]
        errors += layer_errors(names, member.original.weights, own)
    return errors


def finish(
    experiment: Experiment,
    trainer: Trainer,
    folder: RunFolder,
    originals: Sequence[dict[str, dict[str, float]]],
    skipped: dict[str, list[str]],
) -> dict[str, Any]:
    """Metrics of the finished run, written as metrics.json, and the picture. `originals`: `Assessment.of_originals`."""
    from nern.analysis.plots import plot_run  # matplotlib takes a second to import

    config, nern_ = experiment.config, experiment.nern
    of_originals = {member.name: sets for member, sets in zip(experiment.members, originals, strict=True)}
    last = {name: value.clone() for name, value in nern_.predictor.state_dict().items()}
    load_weights(nern_.predictor, folder.checkpoint("best"), "predictor checkpoint")  # figures and picture are of it
    errors = all_layer_errors(experiment.members, split_by_network(experiment.members, nern_.reconstruct()))
    nern_.predictor.load_state_dict(last)
    at_step = {record["step"]: record for record in trainer.history.evaluations}
    phases = [{"name": p.name, "steps": p.steps} | at_step.get(p.ends, {}) | {"ends": p.ends} for p in trainer.phases]
    metrics: dict[str, Any] = {
        "original": originals[0] if len(originals) == 1 else {},
        "best": {k: v for k, v in (trainer.assessment.best or {}).items() if k != "score"},
        "last": trainer.history.evaluations[-1],
        "layers": [vars(e) for e in errors],
        "sizes": _sizes(experiment, folder, _bytes(trainer.extra.values())),
        "phases": phases,
    } | common_metrics(trainer, experiment.device, config.seed, folder)
    if len(originals) > 1:
        metrics["original"] = {"networks": of_originals}
    if trainer.processes.several:
        metrics["processes"] = trainer.processes.count
    if skipped:
        metrics["skipped_images"] = skipped
    write_json(folder.metrics, metrics)
    plot_run(folder.curves, config.logging.exp_name, trainer.history, errors, of_originals)
    return metrics


def _sizes(experiment: Experiment, folder: RunFolder, beside: int) -> dict[str, Any]:
    """Parameters, and bytes: of the originals' tensors, and of the run's files on disk. `beside`: bytes of what is trained
    beside the predictor, which lies in its file, and is counted among what is kept."""
    originals, nern_ = [member.original for member in experiment.members], experiment.nern
    represented, parameters = nern_.table.num_weights, sum(o.num_parameters for o in originals)
    return {
        "represented_parameters": represented,
        "original_parameters": parameters,
        "predictor_parameters": nern_.num_parameters,
        "reconstructed_parameters": parameters - represented + nern_.num_parameters,
        "predictor_share": nern_.num_parameters / represented,
        "share": share_of(nern_.num_parameters, experiment.ordering.bits(), represented),
        "original_bytes": sum(_bytes(tensors_of(o.network).values()) for o in originals),
        "represented_bytes": sum(_bytes(o.weights) for o in originals),
        "original_kept_bytes": sum(_bytes(o.kept().values()) for o in originals),
        "predictor_bytes": folder.checkpoint("best").stat().st_size - beside,
        "ordering_bytes": folder.ordering.stat().st_size if folder.ordering.is_file() else 0,
        "ordering_bytes_at_least": experiment.ordering.bits() / 8,
        "kept_bytes": folder.kept.stat().st_size,
    }


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
