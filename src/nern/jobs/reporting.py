"""The job behind `nern report`: what a run folder holds, made into a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import Subset

from nern.config import Config, NetworkConfig
from nern.errors import NernError
from nern.experiment import Experiment, data_settings
from nern.files import check_writable, write_json
from nern.jobs.evaluating import config_of_run
from nern.jobs.report import experiment_of_run
from nern.jobs.session import check_kind
from nern.ordering import ChannelOrdering
from nern.processes import check_alone
from nern.randomness import generator
from nern.representation.kernels import kernel_shape
from nern.tasks.base import build_task, classes_of
from nern.tasks.images import ImageTensors
from nern.tasks.streams import EvalSet, LoaderSet
from nern.training.loop import History
from nern.training.members import split_by_network
from nern.training.run_folder import RunFolder

if TYPE_CHECKING:  # matplotlib takes a second to import
    from nern.analysis.subject import Reconstructed, Subject
    from nern.analysis.trial import Trial

IMAGES = 2000
PAGE = "report.html"
CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def report(
    run: str | Path,
    out: str | Path | None = None,
    images: int | None = IMAGES,
    console: Console | None = None,
    json_path: str | Path | None = None,
) -> Path:
    """Write a page about a run: accuracies, sizes, errors of layers and kernels, smoothness of the order, which kernels
    matter, what changes for each class. It needs no other file; its figures lie beside it, too, in NAME_figures.

    Args:
        run: the run folder of `nern train` or `nern quickstart`; a run that was stopped is shown as far as it went.
        out: the page, HTML; None: report.html in the run folder.
        images: test images on which kernels are dropped and classes compared, drawn by the run's seed; None: all that the
            run uses; 0: none, these parts are left out.
        console: for progress; None: standard output.
        json_path: also write the numbers behind the figures here.

    Returns:
        The page.

    Raises:
        NernError: no run there, nothing saved in it yet, files that do not fit, or the page cannot be written.
    """
    check_alone("nern report")
    if images is not None and images < 0:
        raise NernError(f"--images (={images}) must be 0 (none) or more; null means all test images")
    folder = RunFolder.open(run)
    check_kind(folder, Config)
    page = folder.root / PAGE if out is None else Path(out).expanduser()
    check_writable(page, "--out")
    check_writable(json_path, "--json")
    from nern.analysis.report_page import figures_folder, steps, write_report

    check_writable(figures_folder(page) / "figure.png", "--out")
    console = console or Console()
    subject = subject_of_run(folder, images)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("measuring and drawing", total=steps(subject))
        numbers = write_report(page, subject, lambda: bar.advance(task))
    if json_path is not None:
        write_json(json_path, numbers)
    console.print(f"page: {page}\nfigures: {figures_folder(page)}", markup=False, highlight=False, soft_wrap=True)
    return page


def subject_of_run(folder: RunFolder, images: int | None) -> Subject:
    """What a page tells of a run. Arguments and errors: see `report`."""
    from nern.analysis.subject import Subject

    metrics, state = _metrics(folder), _state(folder)
    checkpoint = _checkpoint(folder)
    config = config_of_run(folder.root, checkpoint)
    wanted, config.evaluation.test_images = config.evaluation.test_images, 0
    experiment = experiment_of_run(config, folder)
    config.evaluation.test_images = wanted
    best = (metrics or state).get("best") or {}
    history = History(state["losses"], state["evaluations"]) if "losses" in state else None
    cost = experiment.ordering.cost
    described = [experiment.ordering.mode, *([] if cost is None else [str(cost)])]
    return Subject(
        title=config.logging.exp_name,
        networks=_networks(experiment, config, metrics, best, images),
        represented=experiment.nern.table.num_weights,
        predictor=experiment.nern.num_parameters,
        sizes=(metrics or {}).get("sizes"),
        ordering="" if experiment.ordering.mode == "none" else ", ".join(described),
        history=history,
        phases=[(phase["name"], phase["ends"]) for phase in (metrics or {}).get("phases", [])],
        best_step=best.get("step") if checkpoint == "best" else state.get("step"),
        notes=[] if metrics else [_unfinished(folder, state)],
        seed=config.seed,
    )


def _metrics(folder: RunFolder) -> dict[str, Any] | None:
    """The results; None of a run that has not come to its end."""
    if not folder.metrics.is_file():
        return None
    try:
        metrics = json.loads(folder.metrics.read_text(encoding="utf-8"))
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
    from nern.analysis.smoothness import walk_of
    from nern.analysis.subject import Reconstructed

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
        natural = None
        if isinstance(ordering, ChannelOrdering):
            axes = ordering.orders[number]
            natural = [_natural(axes, name, w) for name, w in zip(original.weight_names, own, strict=True)]
        trial, reason = _trial(experiment, number, network, config, images)
        figures = _figures(metrics, best, member.name, len(members))
        if trial is not None and "original" not in figures.get("test", {}):
            pair = {"original": trial.metrics(), "reconstructed": trial.metrics(split[number])}
            figures["test"] = {name: of.to_dict() for name, of in pair.items()}
        found.append(
            Reconstructed(
                name=member.name,
                layers=original.weight_names,
                weights=split[number],
                original=own,
                natural=natural,
                ordered=None if walks is None else walks[number],
                figures=figures,
                trial=trial,
                without_images=reason,
                class_names=CLASS_NAMES.get(network.task.task_name),
            )
        )
    return found


def _natural(axes: Mapping[tuple[str, int], Tensor], name: str, weight: Tensor) -> Tensor:
    """Numbers of a layer's kernels in the order in which they lay before whole channels were permuted."""
    filters, channels = weight.shape[:2]
    back = [
        torch.argsort(axes[name, axis]) if (name, axis) in axes else torch.arange(size)
        for axis, size in enumerate((filters, channels))
    ]
    return (back[0][:, None] * channels + back[1]).flatten()


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
    """The network on test images; or None, and the reason: the end of a sentence."""
    from nern.analysis.trial import Trial

    if config.evaluation.test_images == 0:
        return None, "the run was made without test images (evaluation.test_images is 0)"
    if images == 0:
        return None, "no test images were asked for (--images 0)"
    original = experiment.members[number].original
    try:
        task = build_task(network.task, data_settings(config), experiment.device, False, original)
    except NernError as error:
        return None, f"the test images cannot be had ({error})"
    assert task.test is not None
    test = task.test if images is None else drawn(task.test, images, config.seed)
    size, classes = config.evaluation.batch_size, classes_of(network.task)
    return Trial(original, test, size, classes, experiment.beside(number)), ""


def drawn(images: EvalSet, count: int, seed: int) -> EvalSet:
    """So many of a test set's images, drawn without repetition, in their order; all, if there are no more."""
    if count >= len(images) or not isinstance(images, ImageTensors | LoaderSet):
        return images
    chosen = torch.randperm(len(images), generator=generator(seed, "images of a report"))[:count].sort().values
    if isinstance(images, ImageTensors):
        return images.subset(chosen)
    return LoaderSet(images.loader, Subset(images.items.dataset, chosen.tolist()), images.device, images.skipped)
