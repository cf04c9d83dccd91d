"""The command quickstart."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console

from nern.artifact import SUFFIX, load
from nern.artifact.table import accuracy_text
from nern.commands.line import Command, add_option, command_parser, json_option, own_config
from nern.config import Config
from nern.console import PLAIN, CleanConsole
from nern.jobs.packing import PackOptions, pack
from nern.jobs.report import report
from nern.jobs.training import train
from nern.shipped import shipped_nerns
from nern.terminal import bytes_text

QUICKSTART_HELP = """Turn a small pretrained network for scikit-learn's digits into a NeRN and back, in about a minute on two
CPU cores. Nothing is downloaded. The command ends with a table of accuracies and sizes, a page and two files."""


def _quickstart_parser() -> ArgumentParser:
    parser = command_parser(QUICKSTART_HELP)
    add_option(parser, "log_dir", str, "outputs", None, "folder in which the run folder is made")
    add_option(parser, "seed", int, 0, None, "seed of the run")
    json_option(parser)
    return parser


def _run_quickstart(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    config = Config.load(own_config("quickstart"))
    config.logging.log_dir, config.seed = given["log_dir"], given["seed"]
    metrics = train(config, console, given["json"])
    run = metrics["run_folder"]
    file = _free_name(run)
    artifact = pack(run, file, PackOptions(evaluate=True), CleanConsole(quiet=True))
    page = report(run, console=CleanConsole(quiet=True))
    accuracy, whole = accuracy_text(artifact.description.networks[0]), metrics["sizes"]["original_bytes"]
    console.print(
        f"one file: {file} ({bytes_text(artifact.size)} in place of {bytes_text(whole)}, accuracy {accuracy}; see "
        "nern info)\n"
        f"page: {page}\n"
        f"picture: {run}/curves.png\n"
        f"again, from the files: nern evaluate --run {run}\n"
        f"over time: tensorboard --logdir {config.logging.log_dir}",
        **PLAIN,
    )
    coded = _free_name(f"{run}-codes")
    options, quiet = PackOptions(evaluate=True), CleanConsole(quiet=True)
    artifact = pack(str(config.original_model_path), coded, options, quiet, config.task)
    console.print(
        f"without training, its kernels as codes: {coded} ({bytes_text(artifact.size)}, accuracy "
        f"{accuracy_text(artifact.description.networks[0])})",
        **PLAIN,
    )
    for name in shipped_nerns():
        console.print(_shipped(name), **PLAIN)


def _free_name(run: str) -> Path:
    """RUN.nern, or RUN-2.nern, ... if there is one: of an earlier run whose folder was deleted."""
    names = (f"{run}{SUFFIX}" if number == 1 else f"{run}-{number}{SUFFIX}" for number in itertools.count(1))
    return next(path for path in map(Path, names) if not path.exists())


def _shipped(name: str) -> str:
    """A NeRN that ships with nern, loaded and built into its network, in a line."""
    start = time.perf_counter()
    artifact = load(name)
    network = artifact.network()
    seconds = time.perf_counter() - start
    whole = sum(tensor.nbytes for tensor in network.state_dict().values())
    return (
        f'ships with nern: nern.load("{name}").network() ({bytes_text(artifact.size)} in place of {bytes_text(whole)}, '
        f"accuracy {accuracy_text(artifact.description.networks[0])}; took {seconds:.1f} s)"
    )


COMMANDS = {
    "quickstart": Command(_quickstart_parser, _run_quickstart),
}
