"""What a report tells of a run: what its folder holds, measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nern.analysis.smoothness import walk_of
from nern.analysis.subject import PackedFile, Part, Reconstructed, Subject
from nern.analysis.trial import Trial
from nern.artifact import SUFFIX, load
from nern.config import Config, NetworkConfig
from nern.errors import NernError
from nern.experiment import Experiment, data_settings
from nern.jobs.evaluating import config_of_run
from nern.jobs.file_subject import packed_file
from nern.jobs.report import experiment_of_run
from nern.jobs.report_images import NO_IMAGES_ASKED_FOR, class_names, drawn
from nern.representation.kernels import kernel_shape
from nern.tasks.base import build_task, classes_of
from nern.terminal import bytes_text
from nern.training.loop import History
from nern.training.members import split_by_network
from nern.training.run_folder import RunFolder
from nern.untrusted import parse_json

FAR = 0.25  # squared error of a predictor to its square, from which on it is another one
# Of what has a size: its name, and keys of metrics.json of the original's bytes (None: it has no such part) and the run's.
PARTS = (
    ("represented weights, by the predictor", "represented_bytes", "predictor_bytes"),
    ("order of the kernels", None, "ordering_bytes"),
    ("all the rest, kept as it is", "original_kept_bytes", "kept_bytes"),
)


def subject_of_run(folder: RunFolder, images: int | None) -> Subject:
    """What a page tells of a run. Arguments and errors: see `nern.report`."""
    metrics, state = _metrics(folder), _state(folder)
    checkpoint = _checkpoint(folder)
    config = config_of_run(folder.root, checkpoint)
    wanted, config.evaluation.test_images = config.evaluation.test_images, 0
    experiment = experiment_of_run(config, folder)
    config.evaluation.test_images = wanted
    best = folder.record("best") or (metrics or state).get("best") or {}  # runs of earlier versions have no such record
    history = History(state["losses"], state["evaluations"]) if "losses" in state else None
    cost = experiment.ordering.cost
    described = [experiment.ordering.mode, *([] if cost is None else [str(cost)])]
    sizes = (metrics or {}).get("sizes")
    return Subject(
        title=config.logging.exp_name,
        networks=_networks(experiment, config, metrics, best, images),
        represented=experiment.nern.table.num_weights,
        predictor=experiment.nern.num_parameters,
        sizes=None if sizes is None else _parts(sizes),
        sizes_about=_about_sizes(sizes or {}),
        packed=_packed(folder, experiment),
        ordering="" if experiment.ordering.mode == "none" else ", ".join(described),
        history=history,
        phases=[(phase["name"], phase["ends"]) for phase in (metrics or {}).get("phases", [])],
        best_step=best.get("step") if checkpoint == "best" else state.get("step"),
        notes=[] if metrics else [_unfinished(folder, state)],
        seed=config.seed,
    )


def _packed(folder: RunFolder, experiment: Experiment) -> PackedFile | None:
    """The file RUN.nern beside the run folder, if it holds this run's predictor, as far as rounding leaves it."""
    root = folder.root.resolve()
    path = root.with_name(root.name + SUFFIX)
    if not path.is_file():
        return None
    try:
        artifact = load(path)
    except NernError:  # whatever it is, the page is of the run
        return None
    held, own = (nern.predictor.state_dict() for nern in (artifact.nern, experiment.nern))
    if {name: tensor.shape for name, tensor in held.items()} != {name: tensor.shape for name, tensor in own.items()}:
        return None
    pairs = [(held[name].double(), own[name].cpu().double()) for name in own]
    off, whole = (sum(float(t.square().sum()) for t in of) for of in ([h - o for h, o in pairs], [o for _, o in pairs]))
    return packed_file(artifact, path.name) if off < FAR * whole else None


def _parts(sizes: Mapping[str, Any]) -> list[Part]:
    return [
        Part(name, None if before is None else sizes.get(before), sizes.get(after, 0)) for name, before, after in PARTS
    ]


def _about_sizes(sizes: Mapping[str, Any]) -> str:
    least = sizes.get("ordering_bytes_at_least", 0)
    more = f" No code writes any such order in less than {bytes_text(least)}." if least else ""
    return f"Bytes of the original's tensors, and of the files in the run folder that take their place.{more}"


def _metrics(folder: RunFolder) -> dict[str, Any] | None:
    """The results; None of a run that has not come to its end."""
    if not folder.metrics.is_file():
        return None
    try:
        metrics = parse_json(folder.metrics.read_bytes())
        if isinstance(metrics, dict) and all(isinstance(metrics[key], dict) for key in ("original", "best", "sizes")):
            return metrics
        reason = "it has not what nern train writes"
    except (ValueError, KeyError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise NernError(f"{folder.metrics} is damaged ({reason}); nern train --resume {folder.root} writes it again")


def _state(folder: RunFolder) -> dict[str, Any]:
    """What was saved to continue the run; empty if that is gone, as the page can do without."""
    return folder.load_state() if folder.state.is_file() else {}


def _checkpoint(folder: RunFolder) -> str:
    """The checkpoint to show: the best, else the last."""
    for name in ("best", "last"):
        if folder.checkpoint(name).is_file():
            return name
    again = (
        f"go on with: nern train --resume {folder.root}"
        if folder.state.is_file()
        else f"nothing was saved; train it again: nern train --config_path {folder.config}"
    )
    raise NernError(f"run {folder.root} was stopped before its first checkpoint: there is nothing to show. {again}")


def _unfinished(folder: RunFolder, state: Mapping[str, Any]) -> str:
    at = f"it has come to step {state['step']:,}" if "step" in state else "it has no metrics.json"
    return f"This run is not finished: {at}. Continue with: nern train --resume {folder.root}"


def _networks(
    experiment: Experiment,
    config: Config,
    metrics: Mapping[str, Any] | None,
    best: Mapping[str, Any],
    images: int | None,
) -> list[Reconstructed]:
    members, table, ordering = experiment.members, experiment.nern.table, experiment.ordering
    with torch.no_grad():
        weights = experiment.nern.reconstruct()
    views = [w.detach().cpu() for w in table.views(weights)]
    ordered: list[Tensor] | None = [walk_of(positions) for positions in ordering.positions(table.shapes)]
    if ordering.mode == "none":
        ordered = None
    split = split_by_network(members, views)
    walks = None if ordered is None else split_by_network(members, ordered)
    found = []
    for number, (member, network) in enumerate(zip(members, config.members(), strict=True)):
        original = member.original
        own = [w.detach().cpu().reshape(kernel_shape(w.shape)) for w in original.weights]
        whole, reason = _trial(experiment, number, network, config, images)
        trial = whole
        if whole is not None and images is not None:
            trial = whole.on(drawn(whole.images, images, config.seed))
        figures = _figures(metrics, best, member.name, len(members))
        if whole is not None and "original" not in figures.get("test", {}):
            pair = {"original": whole.metrics(), "reconstructed": whole.metrics(split[number])}
            figures["test"] = {name: of.to_dict() for name, of in pair.items()}
        found.append(
            Reconstructed(
                name=member.name,
                layers=original.weight_names,
                weights=split[number],
                original=own,
                ordered=None if walks is None else walks[number],
                figures=figures,
                trial=trial,
                without_images=reason,
                class_names=None if trial is None else class_names(network.task),
            )
        )
    return found


def _figures(
    metrics: Mapping[str, Any] | None, best: Mapping[str, Any], name: str, networks: int
) -> dict[str, dict[str, Any]]:
    """Metrics of one network by set, original and reconstructed, as far as they were measured."""

    def own(figures: Mapping[str, Any]) -> Mapping[str, Any]:
        return figures if networks == 1 else figures.get("networks", {}).get(name, {})

    pair = {"original": own((metrics or {}).get("original", {})), "reconstructed": own(best)}
    return {s: {of: figures[s] for of, figures in pair.items() if s in figures} for s in ("test", "held_out")}


def _trial(
    experiment: Experiment, number: int, network: NetworkConfig, config: Config, images: int | None
) -> tuple[Trial | None, str]:
    """The network on all the run's test images; or None, and the reason: the end of a sentence."""
    if config.evaluation.test_images == 0:
        return None, "the run was made without test images (evaluation.test_images is 0)"
    if images == 0:
        return None, NO_IMAGES_ASKED_FOR
    original = experiment.members[number].original
    try:
        task = build_task(network.task, data_settings(config), experiment.device, False, original)
    except NernError as error:
        return None, f"the test images cannot be had ({error})"
    assert task.test is not None
    size, classes = config.evaluation.batch_size, classes_of(network.task)
    return Trial(original, task.test, size, classes, experiment.beside(number)), ""
