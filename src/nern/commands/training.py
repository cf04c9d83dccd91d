"""The commands train, train-original, evaluate, sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console

from nern.commands.line import (
    Command,
    MissingError,
    add_option,
    command_parser,
    config_options,
    flag_option,
    json_option,
    option_names,
    typed_values,
)
from nern.config import Config, OriginalConfig
from nern.config.settings import item_class, known_keys
from nern.config.yaml_files import is_length
from nern.console import PLAIN
from nern.devices import processes_to_start
from nern.errors import NernError
from nern.files import write_json
from nern.jobs.evaluating import config_of_run, evaluate
from nern.jobs.original import resume_original, train_original
from nern.jobs.training import dry_run, resume, train
from nern.processes import check_alone, launched, process_number, restart
from nern.sweeps.run import sweep
from nern.training.run_folder import RunFolder

TRAIN_HELP = """Train a NeRN: represent the convolution kernels of a pretrained network by a small predictor.

Settings come from a YAML file (--config_path) and from dotted options. Dotted options win over the file:

  nern train --config_path FILE --nern.hidden_layer_size 180 --epochs 400

The run is written to the folder logging.log_dir/logging.exp_name: config, checkpoints, results, picture, TensorBoard
events. --resume goes on with a run that was stopped.

For several GPUs set num_gpus, or start with torchrun --nproc-per-node 2 -m nern train ... (docs/speed.md)."""

ORIGINAL_HELP = """Train an original network on a task from scratch. A factor under `smoothness` makes neighbouring kernels
alike, so that a NeRN represents them better.

  nern train-original --config_path FILE --epochs 60

The run folder gets network.safetensors (weights), network.json (arguments) and network.md (card). --resume goes on with
a run that was stopped."""

SILENT = (
    "The config names no recipe: keys that are left out have the published defaults. recipe: nern has better ones "
    "(ResNet20 at 35 % of its weights: +0.11 points, published -1.30; docs/results.md)."
)

EVALUATE_HELP = """Evaluate a NeRN on the test images, beside its original network.

  nern evaluate --run RUN_FOLDER                     the best checkpoint of a run
  nern evaluate --config_path FILE                   a config with nern.init: checkpoint and nern.checkpoint_path
  nern evaluate --config_path FILE --original   the original network alone"""


SWEEP_HELP = """Train the runs of a sweep file and compare them: one table (results.csv) and one picture (results.png) in the
sweep's folder. After Ctrl-C or a crash the same command goes on; finished runs are not repeated.

  nern sweep experiments/sweeps/digits.yaml --jobs 2
  nern sweep FILE --task.data_dir DIR                dotted options win over the file in all runs

docs/many-runs.md describes the file."""


def _job_parser(command: str, text: str) -> ArgumentParser:
    """Of a command that trains what a config describes, or goes on with it."""
    usage = (
        f"nern {command} --config_path FILE [--dotted.key VALUE ...] [--json FILE]\n"
        f"       nern {command} --resume RUN_FOLDER"
    )
    parser = command_parser(text, usage)
    about = "go on with a stopped run; with a new length, such as --epochs 400, make a finished run longer"
    add_option(parser, "resume", str, None, "RUN_FOLDER", about)
    json_option(parser)
    config_options(parser)
    return parser


def _train_parser() -> ArgumentParser:
    parser = _job_parser("train", TRAIN_HELP)
    flag_option(parser, "dry_run", "print what would be trained and how long it takes on this machine; write nothing")
    return parser


def _original_parser() -> ArgumentParser:
    return _job_parser("train-original", ORIGINAL_HELP)


def _evaluate_parser() -> ArgumentParser:
    usage = (
        "nern evaluate --run RUN_FOLDER [--checkpoint NAME] [--json FILE]\n"
        "       nern evaluate --config_path FILE [--dotted.key VALUE ...] [--original] [--json FILE]"
    )
    parser = command_parser(EVALUATE_HELP, usage)
    add_option(parser, "run", str, None, "RUN_FOLDER", "the run to evaluate")
    about = "with --run: 'best', 'last', 'step_N' or the name of a phase; null: best"
    add_option(parser, "checkpoint", str | None, None, "NAME", about)
    flag_option(parser, "original", "evaluate the original network alone")
    json_option(parser)
    config_options(parser)
    return parser


def _resumed_config(argv: Sequence[str]) -> str | None:
    """The config of the run to be resumed, whose lengths may be changed."""
    run = typed_values(argv).get("resume")
    return str(RunFolder.open(run).config) if run else None


def _lengths(given: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """What was typed beside --resume: new lengths."""
    others = [name for name in option_names(argv) if name not in ("resume", "json") and not is_length(name)]
    if others:
        raise NernError(f"--resume keeps the settings of the run, except its lengths; drop --{', --'.join(others)}")
    options: dict[str, Any] = given["options"]
    return options


def _check_given(argv: Sequence[str]) -> None:
    """Raise MissingError where no setting at all was typed."""
    if set(option_names(argv)) <= {"json"}:
        raise MissingError("no settings were given; name a file of them: --config_path FILE")


def _run_train(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    _check_given(argv)
    resumes = given["resume"] is not None
    lengths = _lengths(given, argv) if resumes else {}
    config = Config.from_dict(given["settings"])  # of the run that is resumed, with its new lengths
    count = processes_to_start(config.num_gpus)
    if count > 1 and given["may_restart"] and not launched():
        config.check()
        restart(count, ["train", *argv])
    if resumes:
        resume(given["resume"], console, given["json"], lengths)
        return
    if process_number() == 0:
        console.print(f"recipe {config.recipe}{config.changes_text()}", style="dim", **PLAIN)
        if "recipe" not in given["settings"]:
            console.print(SILENT, style="dim", **PLAIN)
    if given["dry_run"]:
        dry_run(config, console)
        return
    train(config, console, given["json"])


def _run_original(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    _check_given(argv)
    if given["resume"] is not None:
        resume_original(given["resume"], console, given["json"], _lengths(given, argv))
        return
    config = OriginalConfig.from_dict(given["settings"])
    console.print(f"defaults{config.changes_text()}", style="dim", **PLAIN)
    train_original(config, console, given["json"])


def _run_evaluate(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    _check_given(argv)
    check_alone("nern evaluate")
    if given["run"] is None:
        if given["checkpoint"] is not None:
            raise NernError(
                "--checkpoint needs --run; without a run set nern.init: checkpoint and nern.checkpoint_path"
            )
        evaluate(Config.from_dict(given["settings"]), given["original"], given["json"], console)
        return
    rest = [a for a in option_names(argv) if a not in ("run", "checkpoint", "original", "json")]
    if rest:
        raise NernError(f"--run keeps the settings of the run; drop --{', --'.join(rest)}")
    config = config_of_run(given["run"], given["checkpoint"] or "best")
    evaluate(config, given["original"], given["json"], console, given["run"])


def _sweep_parser() -> ArgumentParser:
    usage = "nern sweep FILE [--out FOLDER] [--jobs N] [--shard I/N] [--json FILE] [--dotted.key VALUE ...]"
    parser = command_parser(SWEEP_HELP, usage)
    parser.add_argument("file", type=str, metavar="FILE", help="the sweep file")
    about = "folder of the sweep; null: outputs/NAME for a file NAME.yaml"
    add_option(parser, "out", str | None, None, "FOLDER", about)
    about = "number of runs at a time; null: one on each GPU, or one on the CPU"
    add_option(parser, "jobs", int | None, None, "N", about)
    add_option(parser, "shard", str | None, None, "I/N", "train only every Nth run, beginning with run I")
    json_option(parser)
    return parser


def _run_sweep(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    check_alone("nern sweep")
    known = known_keys(Config) | Config.sections()
    for key in option_names(argv):
        if key.endswith("+") or dataclasses.is_dataclass(known.get(key)) or item_class(known.get(key)):
            raise NernError(
                f"--{key}: on the command line nern sweep takes single keys only; write this one under settings in the file"
            )
    rows = sweep(given["file"], given["out"], given["jobs"], given["options"], console, given["shard"])
    if given["json"] is not None:
        write_json(given["json"], rows)


COMMANDS = {
    "train": Command(_train_parser, _run_train, Config, _resumed_config),
    "train-original": Command(_original_parser, _run_original, OriginalConfig, _resumed_config),
    "evaluate": Command(_evaluate_parser, _run_evaluate, Config),
    "sweep": Command(_sweep_parser, _run_sweep, Config, writes=("json",)),
}
