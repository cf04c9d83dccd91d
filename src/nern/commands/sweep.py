"""The command sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console

from nern.commands.line import Command, add_option, command_parser, json_option, option_names
from nern.config import Config
from nern.config.settings import item_class, known_keys
from nern.errors import NernError
from nern.files import write_json
from nern.processes import check_alone
from nern.sweeps.run import sweep

SWEEP_HELP = """Train the runs of a sweep file and compare them: one table (results.csv) and one picture (results.png) in the
sweep's folder. After Ctrl-C or a crash the same command goes on; finished runs are not repeated.

  nern sweep experiments/sweeps/digits.yaml --jobs 2
  nern sweep FILE --task.data_dir DIR                dotted options win over the file in all runs

docs/many-runs.md describes the file."""


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


COMMANDS = {"sweep": Command(_sweep_parser, _run_sweep, Config, writes=("json",))}
