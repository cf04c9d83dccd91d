"""What a report tells of a run: what its folder holds, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from nern.analysis.content import Content, Evaluation, NetworkContent, Part
from nern.artifact import SUFFIX, load
from nern.config import Config
from nern.errors import NernError
from nern.experiment import Experiment, data_settings
from nern.jobs.evaluating import config_of_run
from nern.jobs.report_inputs import NO_IMAGES_ASKED_FOR, as_kernels, class_names, drawn, walks
from nern.jobs.report_of_file import packed_file
from nern.jobs.results import experiment_of_run
from nern.tasks.base import build_task, classes_of
from nern.terminal import bytes_text
from nern.training.loop import History
from nern.training.members import split_by_network
from nern.training.run_folder import RunFolder
from nern.untrusted import parse_json

OTHER = 0.25  # squared error of a predictor over its square, from which on it is another one
# Of what has a size: its name, and keys of metrics.json of the original's bytes (None: it has no such part) and the run's.
PARTS = (
    ("represented weights, by the predictor", "represented_bytes", "predictor_bytes"),
    ("order of the kernels", None, "ordering_bytes"),
    ("all the rest, kept as it is", "original_kept_bytes", "kept_bytes"),
)


def content_of_run(folder: RunFolder, images: int | None) -> Content:
    """What a page tells of a run. Arguments and errors: see `nern.report`."""
    metrics, checkpoint = _metrics(folder), _checkpoint(folder)
    state = folder.load_state() if folder.state.is_file() else {}  # the page can do without
    config = config_of_run(folder.root, checkpoint)
    wanted, config.evaluation.test_images = config.evaluation.test_images, 0
    experiment = experiment_of_run(config, folder)
    config.evaluation.test_images = wanted
    ordering, sizes = experiment.ordering, metrics.get("sizes")
    best = folder.record("best") or (metrics or state).get("best") or {}  # runs of earlier versions have no such record
    at = f"it has come to step {state['step']:,}" if "step" in state else "it has no metrics.json"
    unfinished = f"This run is not finished: {at}. Continue with: nern train --resume {folder.root}"
    return Content(
        title=config.logging.exp_name,
        networks=_networks(experiment, config, metrics, best, images),
        represented=experiment.nern.table.num_weights,
        predictor=experiment.nern.num_parameters,
        sizes=None if sizes is None else [Part(name, sizes.get(o), sizes.get(own, 0)) for name, o, own in PARTS],
        sizes_about=_about_sizes(sizes or {}),
        packed=_packed(folder, experiment),
        ordering=""
        if ordering.mode == "none"
        else ", ".join([ordering.mode, *([str(ordering.cost)] if ordering.cost else [])]),
        history=History(state["losses"], state["evaluations"]) if "losses" in state else None,
        phases=[(phase["name"], phase["ends"]) for phase in metrics.get("phases", [])],
        best_step=best.get("step") if checkpoint == "best" else state.get("step"),
        notes=[] if metrics else [unfinished],
        seed=config.seed,
    )


def _about_sizes(sizes: Mapping[str, Any]) -> str:
    least = sizes.get("ordering_bytes_at_least", 0)
    more = f" No code writes any such order in less than {bytes_text(least)}." if least else ""
    return f"Bytes of the original's tensors, and of the files in the run folder that take their place.{more}"


def _metrics(folder: RunFolder) -> dict[str, Any]:
    """The results; empty of a run that has not come to its end."""
    if not folder.metrics.is_file():
        return {}
    try:
        metrics = parse_json(folder.metrics.read_bytes())
        if isinstance(metrics, dict) and all(isinstance(metrics[key], dict) for key in ("original", "best", "sizes")):
            return metrics
        reason = "it has not what nern train writes"
    except (ValueError, KeyError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise NernError(f"{folder.metrics} is damaged ({reason}); nern train --resume {folder.root} writes it again")


def _checkpoint(folder: RunFolder) -> str:
    """The checkpoint to show: the best, else the last."""
    for name in ("best", "last"):
        if folder.checkpoint(name).is_file():
            return name
    again = f"nothing was saved; train it again: nern train --config_path {folder.config}"
    if folder.state.is_file():
        again = f"go on with: nern train --resume {folder.root}"
    raise NernError(f"run {folder.root} was stopped before its first checkpoint: there is nothing to show. {again}")


def _packed(folder: RunFolder, experiment: Experiment) -> Part | None:
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
    if {name: value.shape for name, value in held.items()} != {name: value.shape for name, value in own.items()}:
        return None
    off = sum(float((held[name] - value.cpu()).double().square().sum()) for name, value in own.items())
    whole = sum(float(value.double().square().sum()) for value in own.values())
    return packed_file(artifact, path.name) if off < OTHER * whole else None


def _networks(
    experiment: Experiment, config: Config, metrics: Mapping[str, Any], best: Mapping[str, Any], images: int | None
) -> list[NetworkContent]:
    members, table = experiment.members, experiment.nern.table
    with torch.no_grad():
        weights = [w.detach().cpu() for w in table.views(experiment.nern.reconstruct())]
    layers = split_by_network(members, list(zip(weights, walks(experiment.ordering, table.shapes), strict=True)))
    found = []
    for number, (member, own) in enumerate(zip(members, layers, strict=True)):
        reconstructed = [weight for weight, _ in own]
        figures = _figures(metrics, best, member.name, len(members))
        content = NetworkContent(
            name=member.name,
            layers=member.original.weight_names,
            weights=reconstructed,
            original=as_kernels(member.original.weights),
            ordered=[walk for _, walk in own if walk is not None] or None,
            figures=figures,
            evaluation=_evaluation(experiment, number, config, images),
        )
        whole = content.evaluation
        if isinstance(whole, Evaluation):
            if "original" not in figures["test"]:
                figures["test"] = whole.metrics(reconstructed)
            some = replace(whole, images=drawn(whole.images, images, config.seed))
            content = replace(content, evaluation=some, class_names=class_names(config.members()[number].task))
        found.append(content)
    return found


def _figures(
    metrics: Mapping[str, Any], best: Mapping[str, Any], name: str, networks: int
) -> dict[str, dict[str, Any]]:
    """Metrics of one network by set, original and reconstructed, as far as they were measured."""

    def own(figures: Mapping[str, Any]) -> Mapping[str, Any]:
        return figures if networks == 1 else figures.get("networks", {}).get(name, {})

    pair = {"original": own(metrics.get("original", {})), "reconstructed": own(best)}
    return {s: {of: figures[s] for of, figures in pair.items() if s in figures} for s in ("test", "held_out")}


def _evaluation(experiment: Experiment, number: int, config: Config, images: int | None) -> Evaluation | str:
    """A network on all the run's test images; or why there is none: the end of a sentence."""
    if config.evaluation.test_images == 0:
        return "the run was made without test images (evaluation.test_images is 0)"
    if images == 0:
        return NO_IMAGES_ASKED_FOR
    original, task = experiment.members[number].original, config.members()[number].task
    try:
        data = build_task(task, data_settings(config), experiment.device, False, original).test
    except NernError as error:
        return f"the test images cannot be had ({error})"
    assert data is not None
    return Evaluation(original, data, classes_of(task), config.evaluation.batch_size, experiment.beside(number))
