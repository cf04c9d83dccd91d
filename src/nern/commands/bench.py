"""The command bench."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console

from nern.benchmarks import KINDS, OPTIONS, BenchSettings, bench, check_kind
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

BENCH_HELP = """Measure speed and memory on this machine: medians and quartiles, each after a warm-up.

{kinds}

  nern bench step --config_path FILE --precisions float32 bf16
  nern bench scaling --largest 1e7 --figure scaling.png

Settings come from a YAML file and dotted options, as for `nern train`; without a file from that of the quickstart (scaling:
nern.fit's, hidden layers of 128). Orderings are solved anew; what is compared is measured by turns."""


def _bench_parser() -> ArgumentParser:
    usage = (
        f"nern bench {{{' | '.join(KINDS)}}} [--repeats N] [--warmup N] [--threads N] [--json FILE] [--markdown FILE]\n"
        "       [options of its own] [--config_path FILE] [--dotted.key VALUE ...]"
    )
    text = BENCH_HELP.format(kinds="\n".join(f"  {name:<12} {about}" for name, about in KINDS.items()))
    parser = command_parser(text, usage)
    parser.add_argument("what", type=str, nargs="?", default=None, help="the benchmark")
    for name, hint in get_type_hints(BenchSettings).items():
        option, default = OPTIONS[name], getattr(BenchSettings, name)
        about = f"{option.of}: {option.about}" if option.of else option.about
        several: dict[str, Any] = {"nargs": "+"} if name == "precisions" else {}
        kind = str if several else hint
        parser.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=about, **several)
    json_option(parser)
    parser.add_argument("--markdown", type=str, default=None, metavar="FILE", help="also write the tables here")
    config_options(parser)
    return parser


def _bench_file(argv: Sequence[str]) -> str:
    return own_config("scaling" if "scaling" in argv else "quickstart")


def _run_bench(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    if given["what"] is None:
        raise MissingError(f"the name of a benchmark is required: {', '.join(KINDS)}")
    what = check_kind(given["what"], option_names(argv))
    settings = BenchSettings(**{name: given[name] for name in OPTIONS})
    command = shlex.join(["nern", "bench", *given["typed"]])
    bench(
        what,
        config_given(given, Config),
        settings,
        console,
        given["json"],
        given["markdown"],
        command,
    )


COMMANDS = {
    "bench": Command(_bench_parser, _run_bench, Config, _bench_file),
}
