"""The jobs behind the commands: train, resume, evaluate."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import nern
from nern.config import Config, parse_yaml
from nern.devices import peak_memory_bytes, select_device
from nern.errors import NernError
from nern.evaluation import Evaluator, layer_errors
from nern.experiment import Experiment, build_experiment, build_original
from nern.files import check_writable, load_safetensors, load_state_dict, save_safetensors, write_json
from nern.ordering.store import content_key, save_ordering
from nern.tasks.base import build_task
from nern.terminal import ProgressDisplay, metrics_table, result_table
from nern.training.interrupt import Interrupted
from nern.training.run_folder import RunFolder
from nern.training.tracking import build_tracker, check_tracker
from nern.training.trainer import Trainer


def train(config: Config, console: Console | None = None, json_path: str | Path | None = None) -> dict[str, Any]:
    """Train the NeRN that `config` describes, in a new run folder; returns (and writes) its metrics.

    Args:
        config: a checked config.
        console: where messages and progress go; None: standard output.
        json_path: also write the metrics here.

    Raises:
        NernError: before anything is written, if the config cannot work; later, if a loss is not finite.
        Interrupted: on Ctrl-C or SIGTERM, after saving.
    """
    console = console or Console()
    check_writable(json_path, "--json")
    check_tracker(config.logging)
    experiment = build_experiment(config)
    trainer = _trainer(experiment)
    folder = RunFolder.create(config)
    try:
        config.with_absolute_paths().save(folder.config)
        _save_ordering(experiment, folder)
        save_safetensors(folder.kept, experiment.original.kept(), {"original": experiment.original.digest()})
        return _run(experiment, trainer, folder, console, json_path)
    except BaseException:
        if not folder.state.is_file():  # nothing was trained: leave nothing behind
            shutil.rmtree(folder.root, ignore_errors=True)
        raise


def _save_ordering(experiment: Experiment, folder: RunFolder) -> None:
    if experiment.ordering.mode != "none":
        key = content_key(experiment.original.weights, experiment.ordering.mode)
        save_ordering(folder.ordering, experiment.ordering, key)


def _check_original(experiment: Experiment, folder: RunFolder) -> None:
    """Raise NernError if the weights of the original are no longer those the run was trained on."""
    stored = load_safetensors(folder.kept, "kept parameters of the run")[1].get("original")
    if stored != experiment.original.digest():
        raise NernError(
            f"the original network of run {folder.root} had other weights than "
            f"{experiment.config.original_model_path} has now"
        )


def resume(path: str | Path, console: Console | None = None, json_path: str | Path | None = None) -> dict[str, Any]:
    """Continue the run in folder `path` to its end, with the result that an uninterrupted run would have had.

    Raises:
        NernError: no run there, nothing saved, or its state is damaged.
        Interrupted: as for `train`.
    """
    console = console or Console()
    check_writable(json_path, "--json")
    folder = RunFolder.open(path)
    config = Config.load(folder.config)
    state = folder.load_state()
    changed = _differences(parse_yaml(str(state.get("config"))), parse_yaml(folder.config.read_text(encoding="utf-8")))
    if changed:
        raise NernError(
            f"{folder.config} is not what the saved state was trained with: {', '.join(changed)} changed. A resumed run "
            "keeps its settings; start a new one for others."
        )
    if folder.ordering.is_file():
        config.nern.embeddings.permutations.path = str(folder.ordering)
    if config.nern.init == "checkpoint":  # the state holds the weights; the file may be gone
        config.nern.init, config.nern.checkpoint_path = "default", None
    experiment = build_experiment(config)
    _check_original(experiment, folder)
    if not folder.ordering.is_file():
        _save_ordering(experiment, folder)
    trainer = _trainer(experiment)
    try:
        trainer.load_state(state)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise NernError(f"saved state {folder.state} is damaged: {' '.join(str(error).split())[:200]}") from error
    return _run(experiment, trainer, folder, console, json_path)


def _differences(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return [] if before == after else [prefix[:-1] or "everything"]
    keys = [*after, *(key for key in before if key not in after)]
    return [name for key in keys for name in _differences(before.get(key), after.get(key), f"{prefix}{key}.")]


def _trainer(experiment: Experiment) -> Trainer:
    return Trainer(experiment.config, experiment.original, experiment.nern, experiment.task, extra=experiment.extra)


def _run(
    experiment: Experiment, trainer: Trainer, folder: RunFolder, console: Console, json_path: str | Path | None
) -> dict[str, Any]:
    with folder.locked():
        return _run_locked(experiment, trainer, folder, console, json_path)


def _run_locked(
    experiment: Experiment, trainer: Trainer, folder: RunFolder, console: Console, json_path: str | Path | None
) -> dict[str, Any]:
    config, trainer.folder = experiment.config, folder
    trainer.rehearse()
    _announce(console, experiment, trainer, folder)
    trainer.tracker = build_tracker(config, folder.root, first_step=trainer.step)
    warmup = config.loss_warmup_iterations if trainer.objective.needs_images else trainer.total_steps
    display = ProgressDisplay(console, trainer.total_steps, warmup, trainer.step, config.logging.progress)
    trainer.on_step, trainer.on_evaluation = display.on_step, display.on_evaluation
    try:
        with display:
            trainer.fit()
    except Interrupted as error:
        message = f"{error}; saved. Continue with: nern train --resume {folder.root}"
        raise Interrupted(error.signal_number, message) from None
    finally:
        trainer.tracker.close()
    metrics = _finish(experiment, trainer, folder)
    if json_path is not None:
        write_json(json_path, metrics)
    console.print(result_table(metrics))
    console.print(f"run folder: {folder.root}", highlight=False, soft_wrap=True)
    return metrics


def _announce(console: Console, experiment: Experiment, trainer: Trainer, folder: RunFolder) -> None:
    original, nern_ = experiment.original, experiment.nern
    share = nern_.num_parameters / nern_.table.num_weights
    start = f", from step {trainer.step}" if trainer.step else ""
    console.print(
        f"{experiment.config.task.original_model_name} on {experiment.task.name}: {nern_.table.num_weights:,} weights in "
        f"{len(original.weights)} layers, represented by {nern_.num_parameters:,} parameters ({share:.1%})\n"
        f"ordering: {experiment.ordering.mode}, {experiment.ordering_source}\n"
        f"{trainer.total_steps:,} steps{start} on {experiment.device}; run folder {folder.root}",
        highlight=False,
        soft_wrap=True,
    )


def _finish(experiment: Experiment, trainer: Trainer, folder: RunFolder) -> dict[str, Any]:
    """Metrics of the finished run, written as metrics.json, and the picture."""
    from nern.analysis.plots import plot_run  # matplotlib takes a second to import

    config, original, nern_ = experiment.config, experiment.original, experiment.nern
    last = {name: value.clone() for name, value in nern_.predictor.state_dict().items()}
    nern_.predictor.load_state_dict(load_state_dict(folder.checkpoint("best")))  # figures and picture are of the best
    errors = layer_errors(original.weight_names, original.weights, nern_.reconstruct())
    nern_.predictor.load_state_dict(last)
    sets = {"held_out": experiment.task.held_out, "test": experiment.task.test}
    original_metrics = {n: trainer.evaluator(data).to_dict() for n, data in sets.items() if data is not None}
    best = {k: v for k, v in (trainer.best or {}).items() if k != "score"}
    metrics = {
        "original": original_metrics,
        "best": best,
        "last": trainer.history.evaluations[-1],
        "layers": [vars(e) for e in errors],
        "sizes": _sizes(experiment, folder),
        "steps": trainer.step,
        "seconds": trainer.seconds,
        "seconds_per_step": trainer.step_seconds / max(trainer.step, 1),
        "peak_memory_bytes": peak_memory_bytes(experiment.device),
        "device": str(experiment.device),
        "versions": {"nern": nern.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "seed": config.seed,
        "run_folder": str(folder.root),
    }
    write_json(folder.metrics, metrics)
    top1 = original_metrics.get("test", {}).get("top1")
    warmup = config.loss_warmup_iterations if trainer.objective.needs_images else 0
    plot_run(folder.curves, f"{config.logging.exp_name}", trainer.history, errors, top1, warmup)
    return metrics


def _sizes(experiment: Experiment, folder: RunFolder) -> dict[str, Any]:
    """Parameters, and bytes: of the original's tensors, and of the run's files on disk."""
    original, nern_ = experiment.original, experiment.nern
    represented = nern_.table.num_weights
    state_bytes = sum(t.numel() * t.element_size() for t in original.network.state_dict().values())
    return {
        "represented_parameters": represented,
        "original_parameters": original.num_parameters,
        "predictor_parameters": nern_.num_parameters,
        "reconstructed_parameters": original.num_parameters - represented + nern_.num_parameters,
        "predictor_share": nern_.num_parameters / represented,
        "original_bytes": state_bytes,
        "represented_bytes": sum(w.numel() * w.element_size() for w in original.weights),
        "original_kept_bytes": sum(t.numel() * t.element_size() for t in original.kept().values()),
        "predictor_bytes": folder.checkpoint("best").stat().st_size,
        "ordering_bytes": folder.ordering.stat().st_size if folder.ordering.is_file() else 0,
        "ordering_bytes_at_least": experiment.ordering.bits() / 8,
        "kept_bytes": folder.kept.stat().st_size,
    }


def evaluate(
    config: Config,
    original: bool = False,
    json_path: str | Path | None = None,
    console: Console | None = None,
    run: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate the NeRN of `config` (its checkpoint), or the original network itself, on the test images.

    With `run`, the folder that `config_of_run` was given, the original must still be the one of the run.

    Returns:
        {"original": {...}} and, unless `original`, {"reconstructed": {...}, "layers": [...]}.

    Raises:
        NernError: no test images, no checkpoint, or one that does not fit.
    """
    console = console or Console()
    check_writable(json_path, "--json")
    if config.evaluation.test_images == 0:
        raise NernError("there is nothing to evaluate on: evaluation.test_images is 0")
    if original:
        device = select_device(config)
        network = build_original(config, device)
        test = build_task(config, device, train=False).test
        assert test is not None
        metrics: dict[str, Any] = {"original": Evaluator(network, config.evaluation.batch_size)(test).to_dict()}
    else:
        if config.nern.init != "checkpoint":
            raise NernError(
                "evaluating a NeRN needs its weights: set nern.init to 'checkpoint' and nern.checkpoint_path, or name a run "
                "folder with --run; --original true evaluates the original network"
            )
        experiment = build_experiment(config, train=False)
        if run is not None:
            _check_original(experiment, RunFolder.open(run))
        test = experiment.task.test
        assert test is not None
        evaluator = Evaluator(experiment.original, config.evaluation.batch_size)
        weights = experiment.nern.reconstruct()
        errors = layer_errors(experiment.original.weight_names, experiment.original.weights, weights)
        metrics = {
            "original": evaluator(test).to_dict(),
            "reconstructed": evaluator(test, weights, experiment.extra).to_dict(),
            "layers": [vars(e) for e in errors],
        }
    if json_path is not None:
        write_json(json_path, metrics)
    rows: dict[str, dict[str, float]] = {n: metrics[n] for n in ("original", "reconstructed") if n in metrics}
    console.print(metrics_table(f"{config.task.original_model_name} on {config.task.task_name}", rows))
    if "layers" in metrics:
        worst = max(metrics["layers"], key=lambda e: e["relative"] or 0.0)
        console.print(
            f"largest reconstruction error: {worst['relative'] or 0.0:.3f} of the weights' norm, in {worst['name']}",
            highlight=False,
            soft_wrap=True,
        )
    return metrics


def config_of_run(path: str | Path, checkpoint: str = "best") -> Config:
    """The config that evaluates checkpoint 'best', 'last' or 'step_N' of the run in folder `path`."""
    folder = RunFolder.open(path)
    config = Config.load(folder.config)
    file = folder.checkpoint(checkpoint)
    if not file.is_file():
        names = sorted(p.stem for p in file.parent.glob("*.pt"))
        raise NernError(f"run {path} has no checkpoint {checkpoint!r}; it has: {', '.join(names) or 'none'}")
    config.nern.init, config.nern.checkpoint_path = "checkpoint", str(file)
    if folder.ordering.is_file():
        config.nern.embeddings.permutations.path = str(folder.ordering)
    return config


def load_run(path: str | Path, checkpoint: str = "best") -> torch.nn.Module:
    """The reconstructed network of a run, ready to use, in eval mode, on the CPU.

    Raises:
        NernError: no run there, no such checkpoint, or files that do not fit.
    """
    config = config_of_run(path, checkpoint)
    config.no_cuda, config.evaluation.test_images = True, 0
    experiment = build_experiment(config, train=False)
    _check_original(experiment, RunFolder.open(path))
    return experiment.original.rebuild(experiment.nern.reconstruct(), experiment.extra)
