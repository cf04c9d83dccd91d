"""The jobs behind the commands: train, resume, evaluate."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import nern
from nern.config import Config, parse_yaml
from nern.devices import peak_memory_bytes, select_device
from nern.errors import NernError
from nern.evaluation import Evaluator, LayerError, layer_errors
from nern.experiment import Experiment, build_checked_original, build_experiment, data_settings, member_names
from nern.files import check_writable, load_safetensors, load_state_dict, save_safetensors, write_json
from nern.ordering.store import content_key, save_ordering
from nern.representation.nern import NeRN
from nern.tasks.base import build_task
from nern.terminal import ProgressDisplay, metrics_table, result_table
from nern.training.interrupt import Interrupted
from nern.training.run_folder import RunFolder
from nern.training.tracking import build_tracker, check_tracker
from nern.training.trainer import Member, Trainer


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
    folder = RunFolder.create(config.logging)
    try:
        config.with_absolute_paths().save(folder.config)
        _save_ordering(experiment, folder)
        save_safetensors(folder.kept, _kept(experiment), {"original": _digest(experiment)})
        return _run(experiment, trainer, folder, console, json_path)
    except BaseException:
        if not folder.state.is_file():  # nothing was trained: leave nothing behind
            shutil.rmtree(folder.root, ignore_errors=True)
        raise


def _kept(experiment: Experiment) -> dict[str, torch.Tensor]:
    """What is not represented; with several networks each one's names begin with its number."""
    if len(experiment.members) == 1:
        return experiment.members[0].original.kept()
    parts = enumerate(member.original.kept() for member in experiment.members)
    return {f"{number}.{name}": value for number, part in parts for name, value in part.items()}


def _digest(experiment: Experiment) -> str:
    return " ".join(member.original.digest() for member in experiment.members)


def _save_ordering(experiment: Experiment, folder: RunFolder) -> None:
    if experiment.ordering.mode != "none":
        weights = [weight for member in experiment.members for weight in member.original.weights]
        key = content_key(experiment.nern.table.views(weights), experiment.ordering.mode)
        save_ordering(folder.ordering, experiment.ordering, key)


def _check_original(experiment: Experiment, folder: RunFolder) -> None:
    """Raise NernError if the weights of the original are no longer those the run was trained on."""
    stored = load_safetensors(folder.kept, "kept parameters of the run")[1].get("original")
    if stored != _digest(experiment):
        paths = [str(network.original_model_path) for network in experiment.config.members()]
        raise NernError(f"the original network of run {folder.root} had other weights than {', '.join(paths)} now")


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
    changed = changed_keys(parse_yaml(str(state.get("config"))), parse_yaml(folder.config.read_text(encoding="utf-8")))
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


def changed_keys(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return [] if before == after else [prefix[:-1] or "everything"]
    keys = [*after, *(key for key in before if key not in after)]
    return [name for key in keys for name in changed_keys(before.get(key), after.get(key), f"{prefix}{key}.")]


def all_layer_errors(members: Sequence[Member], weights: Sequence[Sequence[torch.Tensor]]) -> list[LayerError]:
    """Reconstruction error of every layer; with several networks a layer's name begins with its network's."""
    errors = []
    for member, own in zip(members, weights, strict=True):
        prefix = f"{member.name}: " if len(members) > 1 else ""
        names = [prefix + name for name in member.original.weight_names]
        errors += layer_errors(names, member.original.weights, own)
    return errors


def _trainer(experiment: Experiment) -> Trainer:
    return Trainer(experiment.config, experiment.members, experiment.nern, experiment.extra)


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
    warmup = config.loss_warmup_iterations if trainer.needs_images else trainer.total_steps
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
    nern_, start = experiment.nern, f", from step {trainer.step}" if trainer.step else ""
    kept = sum(len(m.original.choices) - len(m.original.weight_names) for m in experiment.members)
    console.print(
        f"{', '.join(m.name for m in experiment.members)}: {nern_.table.num_weights:,} weights in "
        f"{len(nern_.table.shapes)} layers ({_sizes_text(nern_)}), represented by {nern_.num_parameters:,} parameters "
        f"({nern_.num_parameters / nern_.table.num_weights:.1%}); {kept} tensors are kept as they are\n"
        f"ordering: {experiment.ordering.mode}, {experiment.ordering_source}\n"
        f"{trainer.total_steps:,} steps{start} on {experiment.device}; run folder {folder.root}",
        highlight=False,
        soft_wrap=True,
    )


def _sizes_text(nern_: NeRN) -> str:
    sizes = [shape[2:] for shape in nern_.table.shapes]
    counts = {size: sizes.count(size) for size in sizes}
    return ", ".join(f"{count} of {height}x{width}" for (height, width), count in counts.items())


def _finish(experiment: Experiment, trainer: Trainer, folder: RunFolder) -> dict[str, Any]:
    """Metrics of the finished run, written as metrics.json, and the picture."""
    from nern.analysis.plots import plot_run  # matplotlib takes a second to import

    config, nern_ = experiment.config, experiment.nern
    last = {name: value.clone() for name, value in nern_.predictor.state_dict().items()}
    nern_.predictor.load_state_dict(load_state_dict(folder.checkpoint("best")))  # figures and picture are of the best
    errors = all_layer_errors(experiment.members, trainer.split(nern_.reconstruct()))
    nern_.predictor.load_state_dict(last)
    originals = trainer.original_metrics()
    metrics: dict[str, Any] = {
        "original": originals[0] if len(originals) == 1 else {},
        "best": {k: v for k, v in (trainer.best or {}).items() if k != "score"},
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
    if len(originals) > 1:
        names = [member.name for member in experiment.members]
        metrics["original"] = {"networks": dict(zip(names, originals, strict=True))}
    skipped = {m.name: m.task.skipped() for m in experiment.members if m.task is not None and m.task.skipped()}
    if skipped:
        metrics["skipped_images"] = skipped
    write_json(folder.metrics, metrics)
    top1 = metrics["original"].get("test", {}).get("top1")
    warmup = config.loss_warmup_iterations if trainer.needs_images else 0
    plot_run(folder.curves, f"{config.logging.exp_name}", trainer.history, errors, top1, warmup)
    return metrics


def _sizes(experiment: Experiment, folder: RunFolder) -> dict[str, Any]:
    """Parameters, and bytes: of the originals' tensors, and of the run's files on disk."""
    originals, nern_ = [member.original for member in experiment.members], experiment.nern
    represented, parameters = nern_.table.num_weights, sum(o.num_parameters for o in originals)
    return {
        "represented_parameters": represented,
        "original_parameters": parameters,
        "predictor_parameters": nern_.num_parameters,
        "reconstructed_parameters": parameters - represented + nern_.num_parameters,
        "predictor_share": nern_.num_parameters / represented,
        "original_bytes": sum(_bytes(o.network.state_dict().values()) for o in originals),
        "represented_bytes": sum(_bytes(o.weights) for o in originals),
        "original_kept_bytes": sum(_bytes(o.kept().values()) for o in originals),
        "predictor_bytes": folder.checkpoint("best").stat().st_size,
        "ordering_bytes": folder.ordering.stat().st_size if folder.ordering.is_file() else 0,
        "ordering_bytes_at_least": experiment.ordering.bits() / 8,
        "kept_bytes": folder.kept.stat().st_size,
    }


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


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
    metrics = _evaluate_originals(config) if original else _evaluate_nern(config, run)
    if json_path is not None:
        write_json(json_path, metrics)
    for name, of_network in metrics.get("networks", {"": metrics}).items():
        rows: dict[str, dict[str, float]] = {n: of_network[n] for n in ("original", "reconstructed") if n in of_network}
        console.print(metrics_table(name or member_names(config.members())[0], rows))
        report_skipped(console, of_network.get("skipped_images"))
    if "layers" in metrics:
        worst = max(metrics["layers"], key=lambda e: e["relative"] or 0.0)
        console.print(
            f"largest reconstruction error: {worst['relative'] or 0.0:.3f} of the weights' norm, in {worst['name']}",
            highlight=False,
            soft_wrap=True,
        )
    return metrics


def _evaluate_originals(config: Config) -> dict[str, Any]:
    config.check()
    device, found = select_device(config), {}
    networks = config.members()
    for network, name in zip(networks, member_names(networks), strict=True):
        original = build_checked_original(network, config.seed, device)
        task = build_task(network.task, data_settings(config), device, False, original)
        assert task.test is not None
        figures = Evaluator(original, config.evaluation.batch_size)(task.test).to_dict()
        found[name] = {"original": figures} | ({"skipped_images": task.skipped()} if task.skipped() else {})
    return found[name] if len(found) == 1 else {"networks": found}


def _evaluate_nern(config: Config, run: str | Path | None) -> dict[str, Any]:
    if config.nern.init != "checkpoint":
        raise NernError(
            "evaluating a NeRN needs its weights: set nern.init to 'checkpoint' and nern.checkpoint_path, or name a run "
            "folder with --run; --original true evaluates the original network"
        )
    experiment = build_experiment(config, train=False)
    if run is not None:
        _check_original(experiment, RunFolder.open(run))
    parts, found = _split(experiment, experiment.nern.reconstruct()), {}
    for member, weights in zip(experiment.members, parts, strict=True):
        assert member.task is not None
        assert member.task.test is not None
        evaluator, test = Evaluator(member.original, config.evaluation.batch_size), member.task.test
        found[member.name] = {
            "original": evaluator(test).to_dict(),
            "reconstructed": evaluator(test, weights, experiment.extra).to_dict(),
        } | ({"skipped_images": member.task.skipped()} if member.task.skipped() else {})
    metrics = found[member.name] if len(found) == 1 else {"networks": found}
    return metrics | {"layers": [vars(e) for e in all_layer_errors(experiment.members, parts)]}


def _split(experiment: Experiment, weights: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The weights of all layers, by network."""
    rest = iter(weights)
    return [[next(rest) for _ in member.original.weight_names] for member in experiment.members]


def report_skipped(console: Console, skipped: list[str] | None) -> None:
    """Say how many images could not be read, and name some."""
    if skipped:
        more = ", ..." if len(skipped) > 3 else ""
        console.print(
            f"{len(skipped)} images could not be read and were skipped: {', '.join(skipped[:3])}{more}",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


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


def load_run(path: str | Path, checkpoint: str = "best", network: int = 0) -> torch.nn.Module:
    """The reconstructed network of a run, ready to use, in eval mode, on the CPU.

    Args:
        path: the run folder.
        checkpoint: 'best', 'last' or 'step_N'.
        network: which of several, counted from 0.

    Raises:
        NernError: no run there, no such checkpoint or network, or files that do not fit.
    """
    config = config_of_run(path, checkpoint)
    config.no_cuda, config.evaluation.test_images = True, 0
    experiment = build_experiment(config, train=False)
    _check_original(experiment, RunFolder.open(path))
    if not 0 <= network < len(experiment.members):
        raise NernError(
            f"network (={network}) must be below {len(experiment.members)}, the number of networks in {path}"
        )
    weights = _split(experiment, experiment.nern.reconstruct())[network]
    return experiment.members[network].original.rebuild(weights, experiment.extra)
