"""The command report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console

from nern.artifact import LIMIT
from nern.commands.line import Command, command_parser, json_option, network_of, task_of, task_option
from nern.jobs.report import report
from nern.jobs.report_content import IMAGES

REPORT_HELP = """Write an HTML page with figures about a run, or about a .nern file: accuracies and sizes, where the
reconstruction errs, how smooth the order is, which kernels matter, what changes for each class. The page needs no other
file. Its figures also lie beside it as PNG.

  nern report outputs/quickstart                     writes outputs/quickstart/report.html
  nern report RUN_FOLDER -o PAGE.html --images null  measured on all test images
  nern report net.nern                               writes net_report.html, from the file alone
  nern report net.nern --original_model_path net.pt --task.task_name cifar10 --task.data_dir data

docs/study.md tells how to read it."""


def _report_parser() -> ArgumentParser:
    usage = (
        "nern report RUN_FOLDER [-o PAGE.html] [--images N] [--json FILE]\n"
        "       nern report FILE.nern [-o PAGE.html] [--original_model_path WEIGHTS] [--task.task_name NAME "
        "[--task.data_dir DIR]]\n"
        "                   [--network N] [--images N] [--json FILE]"
    )
    parser = command_parser(REPORT_HELP, usage)
    about = "folder of a run, finished or not, or a .nern file"
    parser.add_argument("source", type=str, metavar="RUN_OR_FILE", help=about)
    about = "the page to write; null: report.html in the run folder, NAME_report.html beside NAME.nern"
    parser.add_argument("-o", "--out", type=str | None, default=None, metavar="PAGE", help=about)
    about = (
        "number of test images to measure on, drawn by the run's seed; null: all; 0: none, and no part that needs them"
    )
    parser.add_argument("--images", type=int | None, default=IMAGES, metavar="N", help=about)
    about = "for a .nern file: weights of the original (a file, pretrained:NAME, torchvision, timm)"
    parser.add_argument("--original_model_path", type=str | None, default=None, metavar="WEIGHTS", help=about)
    about = "for a .nern file of several networks: number of the one that is compared, from 0"
    parser.add_argument("--network", type=int | None, default=None, metavar="N", help=about)
    about = "for a .nern file: refuse it if it has more numbers than this"
    parser.add_argument("--limit", type=int, default=LIMIT, metavar="N", help=about)
    json_option(parser)
    task_option(parser)
    return parser


def _run_report(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    task = task_of(given, argv)
    report(
        given["source"],
        given["out"],
        given["images"],
        console,
        given["json"],
        given["original_model_path"],
        task,
        network_of(given, argv),
        given["limit"],
    )


COMMANDS = {"report": Command(_report_parser, _run_report)}
