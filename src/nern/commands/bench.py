"""The command bench."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace
from typing import Any

import torch
from jsonargparse import ArgumentParser  # type: ignore[attr-defined]
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console
from rich.table import Table

from nern.benchmarks.machine import machine, machine_text, versions
from nern.benchmarks.measure import table_rows
from nern.benchmarks.parts import bench_order, bench_reconstruct, bench_scaling
from nern.benchmarks.step import bench_step
from nern.commands.line import (
    Command,
    MissingError,
    command_parser,
    config_options,
    json_option,
    option_names,
    own_config,
)
from nern.config import Config
from nern.console import PLAIN
from nern.errors import NernError, unknown_name
from nern.files import write_json

BENCHMARKS = {
    "order": (bench_order, "greedy orderings of random 3x3 kernels and of the config's network"),
    "step": (bench_step, "a training step, beside plain PyTorch doing the same work"),
    "reconstruct": (bench_reconstruct, "all weights of the config's network from its predictor"),
    "scaling": (bench_scaling, "building, ordering and a step for networks of growing size"),
}
PRECISIONS = ("float32", "tf32", "bf16")
# Options, each with the one benchmark that has it ('': all), its type, default and help.
OPTIONS: dict[str, tuple[str, Any, Any, str]] = {
    "repeats": ("", PositiveInt, 7, "number of measurements of each thing"),
    "warmup": ("", NonNegativeInt, 3, "number of calls or steps before the first measurement"),
    "threads": ("", PositiveInt | None, None, "number of PyTorch's threads; null: PyTorch's own choice"),
    "kernels": ("order", PositiveInt, 16384, "order: number of random kernels to order"),
    "precisions": ("step", str, None, "step: precisions to compare; null: that of the config"),
    "most_steps": ("step", PositiveInt, 200, "step: largest number of steps in a round of half a second"),
    "smallest": ("scaling", PositiveFloat, 1e4, "scaling: represented weights of the smallest network"),
    "largest": ("scaling", PositiveFloat, 1e8, "scaling: represented weights of the largest network"),
    "figure": ("scaling", str | None, None, "scaling: PNG file for a picture"),
}
BENCH_HELP = """Measure speed and memory on this machine: medians and quartiles, each after a warm-up.

{kinds}

  nern bench step --config_path FILE --precisions float32 bf16
  nern bench scaling --largest 1e7 --figure scaling.png

Settings come from a YAML file and dotted options, as for `nern train`. Without a file they are those of the quickstart
(scaling: those of nern.fit, with hidden layers of 128). Orderings are not read from the cache. Things that are compared
are measured by turns."""


def _bench_parser() -> ArgumentParser:
    usage = (
        f"nern bench {{{' | '.join(BENCHMARKS)}}} [--repeats N] [--warmup N] [--threads N] [--json FILE]\n"
        "       [options of its own] [--config_path FILE] [--dotted.key VALUE ...]"
    )
    kinds = "\n".join(f"  {name:<12} {about}" for name, (_, about) in BENCHMARKS.items())
    parser = command_parser(BENCH_HELP.format(kinds=kinds), usage)
    parser.add_argument("what", type=str, nargs="?", default=None, help="the benchmark: one of the list above")
    for name, (_, kind, default, about) in OPTIONS.items():
        several: dict[str, Any] = {"nargs": "+", "choices": PRECISIONS} if name == "precisions" else {}
        parser.add_argument(f"--{name}", type=kind, default=default, help=about, **several)
    json_option(parser)
    config_options(parser)
    return parser


def _settings(given: dict[str, Any], argv: Sequence[str]) -> dict[str, Any]:
    """The options that the benchmark has. Raises NernError for the first name or number that cannot work."""
    what = given["what"]
    if what is None:
        raise MissingError(f"the name of a benchmark is required: {', '.join(BENCHMARKS)}")
    if what not in BENCHMARKS:
        raise unknown_name("benchmark", what, BENCHMARKS)
    settings = {name: given[name] for name, (of, *_) in OPTIONS.items() if of in ("", what)}
    for name in option_names(argv):
        if name in OPTIONS and name not in settings:
            raise NernError(f"--{name} belongs to nern bench {OPTIONS[name][0]}; {what} has {', '.join(settings)}")
    if not given["smallest"] <= given["largest"]:
        raise NernError(f"--largest (={given['largest']:g}) must be at least --smallest (={given['smallest']:g})")
    return settings


def _run_bench(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    settings, what = _settings(given, argv), given["what"]
    config, command = Config.from_dict(given["settings"]), shlex.join(["nern", "bench", *argv])
    with console.status(f"nern bench {what}") as status:
        measure, _ = BENCHMARKS[what]
        try:
            measured, note = measure(
                config, SimpleNamespace(**settings), lambda text: status.update(f"nern bench {what}: {text}")
            )
        except BrokenProcessPool as error:
            raise NernError("a measuring process ended early (often for lack of memory)") from error
    settings["threads"] = settings["threads"] or torch.get_num_threads()
    hardware, software = machine(), versions()
    repeats = settings["repeats"]
    about = f"n = {repeats}, seed {config.seed}; {machine_text(hardware, software, settings['threads'])}"
    rows, table = table_rows(measured), Table()
    for number, (heading, _) in enumerate(rows[0]):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*(text for _, text in row))
    console.print(table)
    console.print(note, style="dim", highlight=False)
    console.print(about, style="dim", **PLAIN)
    if given["json"] is not None:
        facts = {
            "benchmark": what,
            "command": command,
            "settings": settings,
            "seed": config.seed,
            "n": repeats,
            "machine": hardware,
            "versions": software,
            "config": config.to_dict(),
            "results": {"measured": measured},
            "tables": [{"title": BENCHMARKS[what][1], "rows": rows, "note": note}],
            "about": about,
        }
        write_json(given["json"], facts)


COMMANDS = {
    "bench": Command(
        _bench_parser, _run_bench, Config, lambda argv: own_config("scaling" if "scaling" in argv else "quickstart")
    )
}
