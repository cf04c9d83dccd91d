"""The commands about what there is: inspect, list."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console

from nern.catalog import (
    SECTIONS,
    SOURCES,
    inspect,
    kernel_shapes,
    names_of,
    networks_and_tasks,
    parameter_table,
    totals,
)
from nern.commands.line import Command, add_option, command_parser, flag_option, imports_option
from nern.config.imports import import_modules
from nern.console import PLAIN
from nern.errors import NernWarning
from nern.terminal import ordering_warning

INSPECT_HELP = """Show which weights of a network a NeRN represents: each parameter, its kernels, taken or kept.

  nern inspect ResNet20
  nern inspect timm:vit_tiny_patch16_224 --include '*.weight' --exclude 'head.*'"""

LIST_HELP = """List what can be chosen: networks and tasks as tables, or the names of one kind.

  nern list                networks and tasks
  nern list timm           names of one kind, one a line
  nern list pretrained     weights and files that ship with nern

Kinds: {kinds}"""


def _inspect_parser() -> ArgumentParser:
    usage = "nern inspect NETWORK [--include GLOB ...] [--exclude GLOB ...] [--weights FILE] [--vectors]"
    parser = command_parser(INSPECT_HELP, usage)
    parser.add_argument("network", type=str, help="the architecture, as task.original_model_name")
    about = "weights to represent, as nern.include"
    parser.add_argument("--include", type=str, nargs="+", default=None, metavar="GLOB", help=about)
    about = "weights to keep, as nern.exclude"
    parser.add_argument("--exclude", type=str, nargs="+", default=[], metavar="GLOB", help=about)
    add_option(parser, "weights", str | None, None, "FILE", "weights, as original_model_path; null: random weights")
    about = "arguments of the architecture, as task.original_model_kwargs"
    add_option(parser, "kwargs", dict[str, Any], {}, None, about)
    flag_option(parser, "vectors", "also list biases and other vectors")
    imports_option(parser)
    return parser


def _run_inspect(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    import_modules(given["imports"])
    found = inspect(given["network"], given["include"], given["exclude"], given["weights"], given["kwargs"])
    table = parameter_table(given["network"], found.original, given["vectors"])
    widest = console.measure(table, options=console.options.update_width(10_000)).maximum
    console.width = max(console.width, widest)  # names stay whole in a narrow terminal
    console.print(table)
    console.print(totals(found), **PLAIN)
    if text := ordering_warning("crossfilter", kernel_shapes(found.original)):  # that of recipe nern, and of nern.fit
        warnings.warn(text, NernWarning, stacklevel=2)


def _list_parser() -> ArgumentParser:
    kinds = textwrap.fill(", ".join([*SECTIONS, *SOURCES, "pretrained"]), 110, break_on_hyphens=False)
    parser = command_parser(LIST_HELP.format(kinds=kinds), "nern list [KIND] [--imports MODULE ...]")
    about = "the kind of names to list; without it networks and tasks as tables"
    parser.add_argument("what", type=str, nargs="?", default=None, metavar="KIND", help=about)
    imports_option(parser)
    return parser


def _run_list(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    import_modules(given["imports"])
    text = networks_and_tasks() if given["what"] is None else "\n".join(names_of(given["what"]))
    if text:
        console.print(text, **PLAIN)


COMMANDS = {
    "inspect": Command(_inspect_parser, _run_inspect),
    "list": Command(_list_parser, _run_list),
}
