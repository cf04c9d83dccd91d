"""The commands about artifacts: pack, unpack, info, verify; and report, which is about runs, too."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jsonargparse import ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console

from nern.artifact import LIMIT, Artifact
from nern.commands.line import (
    Command,
    add_option,
    command_parser,
    flag_option,
    json_option,
    network_of,
    task_of,
    task_option,
)
from nern.files import check_free, write_json
from nern.jobs.artifacts import info, unpack, verify
from nern.jobs.packing import PackOptions, pack
from nern.jobs.report import report
from nern.jobs.report_content import IMAGES
from nern.shipped import NERN, SHIPPED

PACK_HELP = """Write a network, or the NeRN of a run, into one small file (.nern) that rebuilds the network anywhere.

A network is rounded without training, on images of its task. Without a task it is rounded on made-up images:

  nern pack net.pth -o net.nern --bytes 60000 --task.original_model_name ResNet20 --task.task_name cifar10 \\
    --task.data_dir data
  nern pack net.pth -o net.nern --gap 0.5 --task.original_model_name timm:resnet18   at most 0.5 % other classes
  nern pack net.pth -o net.nern --bits 2 --task.original_model_name timm:resnet18    2 bits a weight

The NeRN of a run:

  nern pack outputs/my-run -o net.nern                  8 bits for each number of the predictor
  nern pack outputs/my-run -o net.nern --bits 6
  nern pack outputs/my-run -o net.nern --bytes 100000   the best file of at most 100,000 bytes
  nern pack outputs/my-run -o net.nern --lossless       every number in 32 bits

Without -o the file is SOURCE.nern, and an existing file is not replaced."""

UNPACK_HELP = """Write the weights of the network in a .nern file. The suffix of the output says its format.

  nern unpack net.nern -o weights.safetensors
  nern unpack net.nern -o weights.pt                    a state dict of PyTorch; also .pth, .th"""

INFO_HELP = """Show what is in a .nern file, where its bytes are, and how each layer is held.

  nern info net.nern"""

VERIFY_HELP = """Check a .nern file: every checksum; that this machine predicts the same weights as the writer's; and, if a
task is named, the accuracy.

  nern verify net.nern
  nern verify net.nern --task.task_name cifar10 --task.data_dir data
  nern verify mine.nern --task.task_name cifar10 --task.original_model_name mine.py:make   a network of your own code"""


REPORT_HELP = """Write an HTML page with figures about a run, or about a .nern file: accuracies and sizes, where the
reconstruction errs, how smooth the order is, which kernels matter, what changes for each class. The page needs no other
file. Its figures also lie beside it as PNG.

  nern report outputs/quickstart                     writes outputs/quickstart/report.html
  nern report RUN_FOLDER -o PAGE.html --images null  measured on all test images
  nern report net.nern                               writes net_report.html, from the file alone
  nern report net.nern --original_model_path net.pt --task.task_name cifar10 --task.data_dir data

docs/study.md tells how to read it."""


def _file_parser(text: str, usage: str, *options: Callable[[ArgumentParser], None]) -> ArgumentParser:
    parser = command_parser(text, usage)
    parser.add_argument("file", type=str, help="the .nern file, or pretrained:NAME.nern")
    add_option(parser, "limit", int, LIMIT, "N", "refuse a file with more numbers than this")
    for option in options:
        option(parser)
    return parser


def _network_option(parser: ArgumentParser) -> None:
    add_option(parser, "network", int, 0, "N", "number of the network in a file of several, from 0")


def _pack_parser() -> ArgumentParser:
    usage = (
        "nern pack WEIGHTS [-o FILE] [--bits N | --bytes N | --gap N] --task.original_model_name NAME [--task.KEY ...]\n"
        "       nern pack RUN_FOLDER [-o FILE] [--bits N | --bytes N | --lossless] [--checkpoint NAME]"
    )
    parser = command_parser(PACK_HELP, usage)
    about = "weights of a network (as original_model_path: a file, pretrained:NAME, timm, torchvision), or a run folder"
    parser.add_argument("source", type=str, help=about)
    add_option(parser, "out", str | None, None, "FILE", "the file to write; null: SOURCE.nern")
    add_option(parser, "bytes", int | None, None, "N", "largest size of the file")
    parser.add_class_arguments(PackOptions, skip={"size", "lossless", "evaluate"})
    flag_option(parser, "lossless", "for a run: keep every number in 32 bits")
    flag_option(parser, "evaluate", "evaluate the file on the task's test images, and keep the accuracy in it")
    json_option(parser)
    task_option(parser)
    return parser


def _run_pack(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    own = ("checkpoint", "bits", "gap", "lossless", "images", "evaluate", "metadata")
    options = PackOptions(size=given["bytes"], **{name: given[name] for name in own})
    task = task_of(given, argv, nameless=True)
    _write(given["json"], pack(given["source"], given["out"], options, console, task))


def _write(path: str | None, artifact: Artifact) -> None:
    """What a file is made of, as JSON."""
    if path is not None:
        networks = [dataclasses.asdict(network) for network in artifact.description.networks]
        write_json(path, {"bytes": artifact.size, "sections": artifact.sizes, "networks": networks})


def _unpack_parser() -> ArgumentParser:
    parser = _file_parser(UNPACK_HELP, "nern unpack FILE [-o WEIGHTS] [--network N]", _network_option)
    add_option(parser, "out", str | None, None, "FILE", "the file to write; null: FILE.safetensors")
    return parser


def _run_unpack(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    out = given["out"]
    if out is None:
        out = f"{given['file'].removeprefix(SHIPPED).removesuffix(NERN)}.safetensors"
        check_free(out, "-o")
    unpack(given["file"], out, given["network"], given["limit"], console)


def _run_info(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    _write(given["json"], info(given["file"], given["limit"], console))


def _verify_parser() -> ArgumentParser:
    usage = "nern verify FILE [--task.task_name NAME] [--task.data_dir DIR] [--json FILE]"
    return _file_parser(VERIFY_HELP, usage, _network_option, json_option, task_option)


def _run_verify(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    task = task_of(given, argv)
    found = verify(given["file"], task, network_of(given, argv), given["limit"], console)
    if given["json"] is not None:
        write_json(given["json"], found)


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
    add_option(parser, "out", str | None, None, "PAGE", about)
    about = (
        "number of test images to measure on, drawn by the run's seed; null: all; 0: none, and no part that needs them"
    )
    add_option(parser, "images", int | None, IMAGES, "N", about)
    about = "for a .nern file: weights of the original (a file, pretrained:NAME, torchvision, timm)"
    add_option(parser, "original_model_path", str | None, None, "WEIGHTS", about)
    about = "for a .nern file of several networks: number of the one that is compared, from 0"
    add_option(parser, "network", int | None, None, "N", about)
    add_option(parser, "limit", int, LIMIT, "N", "for a .nern file: refuse it if it has more numbers than this")
    json_option(parser)
    task_option(parser)
    return parser


def _run_report(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    own = {name: given[name] for name in ("source", "out", "images", "original_model_path", "limit")}
    report(**own, console=console, json_path=given["json"], task=task_of(given, argv), network=network_of(given, argv))


COMMANDS = {
    "pack": Command(_pack_parser, _run_pack),
    "unpack": Command(_unpack_parser, _run_unpack),
    "info": Command(partial(_file_parser, INFO_HELP, "nern info FILE [--json FILE]", json_option), _run_info),
    "verify": Command(_verify_parser, _run_verify),
    "report": Command(_report_parser, _run_report),
}
