"""Evaluate a NeRN or its originals; open a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nern.config import Config
from nern.console import PLAIN, CleanConsole
from nern.devices import keep_memory, select_device
from nern.errors import NernError, plain_errors
from nern.evaluation import Evaluator
from nern.experiment import build_checked_original, build_experiment, data_settings, member_names
from nern.files import check_writable, write_json
from nern.jobs.results import all_layer_errors, experiment_of_run, take_ordering
from nern.jobs.session import check_kind
from nern.originals.base import Original
from nern.tasks.base import Task, build_task
from nern.terminal import metrics_table
from nern.training.members import split_by_network
from nern.training.run_folder import RunFolder


@plain_errors()
def evaluate(
    config: Config,
    original: bool = False,
    json_path: str | Path | None = None,
    console: Console | None = None,
    run: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate a NeRN, or the original network itself, on the test images.

    Args:
        config: of the NeRN: its `nern.init` is 'checkpoint', its `nern.checkpoint_path` the predictor's file.
        original: evaluate the original network alone.
        json_path: also write the figures to this file.
        console: where to print; None: standard output.
        run: the run folder that the config is of; the original must still be that of the run. None: not checked.

    Returns:
        'original' and, unless `original`, 'reconstructed': figures by name, as `Fitted.evaluate` gives them; and 'layers':
        'name', 'weights' (their number), 'rmse' and 'relative' error of each layer.

    Raises:
        NernError: there are no test images, no checkpoint, or one that does not fit.
    """
    console = console or CleanConsole()
    check_writable(json_path, "--json")
    if config.evaluation.test_images == 0:
        raise NernError("there is nothing to evaluate on: evaluation.test_images is 0")
    keep_memory()
    metrics = _evaluate_originals(config) if original else _evaluate_nern(config, run)
    if json_path is not None:
        write_json(json_path, metrics)
    for name, of_network in metrics.get("networks", {"": metrics}).items():
        rows: dict[str, dict[str, float]] = {n: of_network[n] for n in ("original", "reconstructed") if n in of_network}
        console.print(metrics_table(name or member_names(config.members())[0], rows))
        if skipped := of_network.get("skipped_images"):
            names = ", ".join([*skipped[:3], *["..."] * (len(skipped) > 3)])
            text = f"{len(skipped)} images could not be read and were skipped: {names}"
            console.print(text, style="yellow", **PLAIN)
    if "layers" in metrics:
        worst = max(metrics["layers"], key=lambda e: e["relative"])
        console.print(
            f"largest reconstruction error: {worst['relative']:.3f} of the weights' norm, in {worst['name']}",
            **PLAIN,
        )
    return metrics


def _evaluate_originals(config: Config) -> dict[str, Any]:
    config.check()
    device, found = select_device(config.num_gpus), {}
    networks = config.members()
    for network, name in zip(networks, member_names(networks), strict=True):
        original = build_checked_original(network, config.seed, device)
        task = build_task(network.task, data_settings(config), device, False, original)
        found[name] = _figures(config, original, task)
    return found[name] if len(found) == 1 else {"networks": found}


def _evaluate_nern(config: Config, run: str | Path | None) -> dict[str, Any]:
    if config.nern.init != "checkpoint":
        raise NernError(
            "evaluating a NeRN needs its weights: set nern.init to 'checkpoint' and nern.checkpoint_path, or name a run "
            "folder with --run; --original evaluates the original network"
        )
    experiment = (
        build_experiment(config, train=False) if run is None else experiment_of_run(config, RunFolder.open(run))
    )
    parts, found = split_by_network(experiment.members, experiment.nern.reconstruct()), {}
    for number, (member, weights) in enumerate(zip(experiment.members, parts, strict=True)):
        found[member.name] = _figures(config, member.original, member.task, weights, experiment.beside(number))
    metrics = found[member.name] if len(found) == 1 else {"networks": found}
    return metrics | {"layers": [vars(e) for e in all_layer_errors(experiment.members, parts)]}


def _figures(
    config: Config,
    original: Original,
    task: Task | None,
    weights: Sequence[torch.Tensor] | None = None,
    beside: dict[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Of an original on its test images, and of its architecture with other weights, if there are any."""
    assert task is not None  # with test images, as is checked before
    assert task.test is not None
    evaluator = Evaluator(original, config.evaluation.batch_size)
    alone = {"original": evaluator(task.test).to_dict()}
    found = alone if weights is None else evaluator.both(task.test, weights, beside)
    return found | ({"skipped_images": task.skipped()} if task.skipped() else {})


def config_of_run(path: str | Path, checkpoint: str = "best") -> Config:
    """The config that evaluates a checkpoint of the run in folder `path`: 'best', 'last', 'step_N' or that of a phase."""
    folder = RunFolder.open(path)
    check_kind(folder, Config)
    config = Config.load(folder.config)
    file = folder.checkpoint(checkpoint)
    if not file.is_file():
        names = sorted(p.stem for p in file.parent.glob("*.pt"))
        raise NernError(f"run {path} has no checkpoint {checkpoint!r}; it has: {', '.join(names) or 'none'}")
    config.nern.init, config.nern.checkpoint_path = "checkpoint", str(file)
    take_ordering(config, folder)
    return config


@plain_errors()
def load_run(path: str | Path, checkpoint: str = "best", network: int = 0) -> torch.nn.Module:
    """The reconstructed network of a run, ready to use, in eval mode, its parameters trainable, on the CPU.

    Args:
        path: the run folder.
        checkpoint: 'best', 'last', 'step_N', or of a run by phases the name of one, such as 'refinement'.
        network: number of the network in a run of several, from 0.

    Returns:
        A module of the original's architecture.

    Raises:
        NernError: no run there, no such checkpoint or network, or files that do not fit.
    """
    config = config_of_run(path, checkpoint)
    config.num_gpus, config.evaluation.test_images = 0, 0
    experiment = experiment_of_run(config, RunFolder.open(path))
    if not 0 <= network < len(experiment.members):
        raise NernError(
            f"network (={network}) must be below {len(experiment.members)}, the number of networks in {path}"
        )
    weights = split_by_network(experiment.members, experiment.nern.reconstruct())[network]
    return experiment.members[network].original.rebuild(weights, experiment.beside(network))
