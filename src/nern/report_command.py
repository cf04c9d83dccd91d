"""The command about pages: report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console

from nern.command_line import command_parser, json_option
from nern.jobs.reporting import IMAGES, report

REPORT_HELP = """Write one page about a run, with figures: accuracies and sizes, where the reconstruction errs, how smooth
the order is, which kernels matter, what changes for each class. The page needs no other file; its figures lie beside it,
too, as PNG.

  nern report outputs/quickstart                     writes outputs/quickstart/report.html
  nern report RUN_FOLDER -o PAGE.html --images null  measured on all test images

docs/report.md tells how to read it."""


def report_parser() -> ArgumentParser:
    """Of `nern report`."""
    parser = command_parser(REPORT_HELP, "nern report RUN_FOLDER [-o PAGE.html] [--images N] [--json FILE]")
    parser.add_argument("run", type=str, metavar="RUN_FOLDER", help="folder of a run, finished or not")
    about = "the page; null: report.html in the run folder"
    parser.add_argument("-o", "--out", type=str | None, default=None, metavar="PAGE", help=about)
    about = "test images to measure on, drawn by the run's seed; null: all; 0: none, what needs them is left out"
    parser.add_argument("--images", type=int | None, default=IMAGES, metavar="N", help=about)
    json_option(parser)
    return parser


def run_report(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    """`nern report`."""
    report(given["run"], given["out"], given["images"], console, given["json"])
