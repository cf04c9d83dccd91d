"""The command bench."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any, get_type_hints

import torch
from jsonargparse import ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console

from nern.benchmarks.machine import machine, machine_text, versions
from nern.benchmarks.order import bench_order
from nern.benchmarks.reconstruct import bench_reconstruct
from nern.benchmarks.scaling import bench_scaling
from nern.benchmarks.settings import BenchSettings
from nern.benchmarks.step import bench_step
from nern.commands.line import (
    Command,
    MissingError,
    command_parser,
    config_given,
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
OF = {f.name: f.metadata["of"] for f in fields(BenchSettings)}  # the benchmark that has an option; None: all
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
    hints = get_type_hints(BenchSettings)
    for f in fields(BenchSettings):
        kind: dict[str, Any] = {"type": str, "nargs": "+"} if f.name == "precisions" else {"type": hints[f.name]}
        metavar = {"precisions": "PRECISION", "figure": "FILE"}.get(f.name, "N")
        parser.add_argument(f"--{f.name}", default=f.default, metavar=metavar, help=f.metadata["about"], **kind)
    json_option(parser)
    config_options(parser)
    return parser


def _bench_file(argv: Sequence[str]) -> str:
    return own_config("scaling" if "scaling" in argv else "quickstart")


def _check(what: str | None, given: Sequence[str]) -> str:
    """The name of a benchmark, if it is one that has all options given."""
    if what is None:
        raise MissingError(f"the name of a benchmark is required: {', '.join(BENCHMARKS)}")
    if what not in BENCHMARKS:
        raise unknown_name("benchmark", what, BENCHMARKS)
    for name in given:
        if OF.get(name) not in (None, what):
            own = ", ".join(f"--{option}" for option, of in OF.items() if of == what)
            raise NernError(f"--{name} belongs to nern bench {OF[name]}; {what} has {own or 'no options of its own'}")
    return what


def _run_bench(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    what = _check(given["what"], option_names(argv))
    settings = BenchSettings(**{name: given[name] for name in OF}).check()
    config, command = config_given(given, Config), shlex.join(["nern", "bench", *argv])
    with console.status(f"nern bench {what}") as status:
        measure, _ = BENCHMARKS[what]
        sheets, results = measure(config, settings, lambda text: status.update(f"nern bench {what}: {text}"))
    threads = settings.threads or torch.get_num_threads()
    hardware, software = machine(), versions()
    about = f"n = {settings.repeats}, seed {config.seed}; {machine_text(hardware, software, threads)}"
    for sheet in sheets:
        console.print(sheet.rich())
        console.print(sheet.note, style="dim", highlight=False)
    console.print(about, style="dim", **PLAIN)
    if given["json"] is not None:
        facts = {
            "benchmark": what,
            "command": command,
            "settings": {name: given[name] for name, of in OF.items() if of in (None, what)} | {"threads": threads},
            "seed": config.seed,
            "n": settings.repeats,
            "machine": hardware,
            "versions": software,
            "config": config.to_dict(),
        }
        tables = {"tables": [asdict(sheet) for sheet in sheets], "about": about}
        write_json(given["json"], facts | {"results": results} | tables)


COMMANDS = {"bench": Command(_bench_parser, _run_bench, Config, _bench_file)}
