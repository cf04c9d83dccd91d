"""The job behind `nern train-original`: train a network from scratch, leave weights, arguments and card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nern.config import OriginalConfig
from nern.console import PLAIN, CleanConsole
from nern.devices import select_device
from nern.errors import plain_errors
from nern.experiment import check_outputs
from nern.files import check_writable, save_safetensors, tensors_of, write_json, write_text
from nern.jobs.session import common_metrics, continue_from, resumable, run_loop, saved_run
from nern.originals.base import own_names
from nern.originals.build import build_network, build_original_network
from nern.originals.input_format import input_format
from nern.processes import check_alone
from nern.registry import ORIGINALS
from nern.tasks.base import DataSettings, build_task, network_arguments
from nern.terminal import original_table
from nern.training.original_trainer import OriginalTrainer
from nern.training.run_folder import RunFolder
from nern.training.tracking import check_tracker


@plain_errors()
def train_original(
    config: OriginalConfig, console: Console | None = None, json_path: str | Path | None = None
) -> dict[str, Any]:
    """Train the network that `config` describes, in a new run folder; returns (and writes) its metrics.

    The folder ends up with `network.safetensors`, `network.json` (its arguments) and `network.md` (its card).

    Args:
        config: a checked config.
        console: where to print; None: standard output.
        json_path: also write the metrics to this file.

    Raises:
        NernError: before anything is written, if the config cannot work; later, if a loss is not finite, or disk or memory
            run out (`ResourceError`).
        Interrupted: on Ctrl-C, SIGTERM or SIGHUP, after saving.
    """
    console = _console(console, json_path)
    check_tracker(config.logging)
    trainer = _build(config)
    with RunFolder.claimed(config.logging) as folder:
        config.with_absolute_paths().save(folder.config)
        return _run(config, trainer, folder, console, json_path)


@plain_errors()
def resume_original(
    path: str | Path,
    console: Console | None = None,
    json_path: str | Path | None = None,
    lengths: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Continue the run in folder `path` to its end, with the result that an uninterrupted run would have had; returns (and
    writes) its metrics.

    Args:
        path: the run folder.
        console: where to print; None: standard output.
        json_path: also write the metrics to this file.
        lengths: {'epochs': n} for another end; None: the config's.

    Raises:
        NernError: no run there, nothing saved, or its state is damaged.
        Interrupted: as for `train_original`.
    """
    console = _console(console, json_path)
    folder = RunFolder.open(path)
    with folder.locked():
        saved = saved_run(folder, OriginalConfig, lengths)
        trainer = _build(saved.config)
        continue_from(trainer, saved.state, folder)
        if saved.config != saved.before:
            saved.config.save(folder.config)
        return _run(saved.config, trainer, folder, console, json_path)


def _console(given: Console | None, json_path: str | Path | None) -> Console:
    """Where this process prints, which has to be the only one."""
    check_alone("nern train-original")
    check_writable(json_path, "--json")
    return given or CleanConsole()


def _build(config: OriginalConfig) -> OriginalTrainer:
    config.check()
    device, task = select_device(config.num_gpus), config.task
    name, kwargs, optional = task.original_model_name, task.original_model_kwargs, network_arguments(task)
    if config.initial_weights is None:
        network = build_network(name, kwargs, optional, config.seed)
    else:
        network = build_original_network(name, config.initial_weights, kwargs, optional, config.seed)
    network = network.to(device).eval()
    with torch.no_grad():
        check_outputs(network, task, input_format(network), device)
    info = ORIGINALS.info(name) if name in ORIGINALS else {}
    smooth = own_names(network, info.get("represents"))
    settings = DataSettings(
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        num_workers=config.num_workers,
        seed=config.seed,
    )
    trainer = OriginalTrainer(
        config, network, smooth, build_task(task, settings, device, expected=input_format(network))
    )
    trainer.rehearse()
    return trainer


def _run(
    config: OriginalConfig, trainer: OriginalTrainer, folder: RunFolder, console: Console, json_path: str | Path | None
) -> dict[str, Any]:
    with resumable(folder, "nern train-original"):
        parameters = sum(p.numel() for p in trainer.network.parameters())
        start = f", from step {trainer.step}" if trainer.step else ""
        console.print(
            f"{config.task.original_model_name} on {trainer.task.name}: {parameters:,} parameters\n"
            f"{trainer.total_steps:,} steps{start} on {trainer.device}; run folder {folder.root}",
            **PLAIN,
        )
        run_loop(trainer, config, folder, console, "nern train-original")
        metrics = _finish(config, trainer, folder)
    if json_path is not None:
        write_json(json_path, metrics)
    console.print(original_table(metrics))
    console.print(f"network: {metrics['network']}", **PLAIN)
    return metrics


def _finish(config: OriginalConfig, trainer: OriginalTrainer, folder: RunFolder) -> dict[str, Any]:
    """Network, arguments, card, metrics and picture of the finished run."""
    from nern.analysis.plots import plot_run  # matplotlib takes a second to import

    file, network = folder.root / "network.safetensors", trainer.network
    save_safetensors(file, tensors_of(network))
    kwargs: dict[str, Any] = network.built_with  # type: ignore[assignment]
    write_json(file.with_suffix(".json"), kwargs)
    last = trainer.history.evaluations[-1]
    metrics = {
        "test": last.get("test"),
        "neighbour_cosine": last["weights"]["neighbour_cosine"],
        "parameters": sum(p.numel() for p in network.parameters()),
        "epochs": config.epochs,
        "network": str(file),
    } | common_metrics(trainer, trainer.device, config.seed, folder)
    write_json(folder.metrics, metrics)
    write_text(file.with_suffix(".md"), _card(config, metrics, kwargs))
    plot_run(folder.curves, config.logging.exp_name, trainer.history)
    return metrics


def _card(config: OriginalConfig, metrics: dict[str, Any], kwargs: dict[str, Any]) -> str:
    """What the network is, how good and how made, in Markdown."""
    test = metrics["test"]
    name = config.logging.exp_name
    accuracy = f"{test['top1']:.2f} % on {test['images']:,} test images" if test else "not measured"
    smoothness = {k: v for k, v in vars(config.smoothness).items() if k.endswith("factor") and v}
    of_weights = f"{config.smoothness.type} {smoothness}" if smoothness else "none"
    return (
        f"# {name}\n\n"
        f"{config.task.original_model_name} ({metrics['parameters']:,} parameters) trained on {config.task.task_name}.\n\n"
        f"- accuracy: {accuracy} (of the last step; nothing was chosen by it)\n"
        f"- mean cosine similarity of neighbouring kernels: {metrics['neighbour_cosine']:.4f}; smoothness regularisation: "
        f"{of_weights}\n"
        f"- made by: `nern train-original` with the config.yaml of its run: {config.epochs} epochs, seed {config.seed}, "
        f"{config.precision}, torch {torch.__version__}, {metrics['seconds'] / 60:.0f} minutes on {metrics['device']} "
        f"({metrics['threads']} threads)\n"
        f"- arguments: `{json.dumps(kwargs)}`\n"
    )
