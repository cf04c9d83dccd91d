"""The commands about artifacts: pack, unpack, info, verify."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console

from nern.artifact import LIMIT, Artifact
from nern.commands.line import (
    Command,
    command_parser,
    json_option,
    network_of,
    task_of,
    task_option,
)
from nern.files import check_free, write_json
from nern.jobs.artifacts import info, unpack, verify
from nern.jobs.packing import PackOptions, pack
from nern.shipped import NERN, SHIPPED

PACK_HELP = """Write a network, or the NeRN of a run, into one small file (.nern) that rebuilds the network anywhere.

A network is rounded without training, on images of its task (or made-up ones, where no task is named):

  nern pack net.pth -o net.nern --bytes 60000 --task.original_model_name ResNet20 --task.task_name cifar10 \\
    --task.data_dir data
  nern pack net.pth -o net.nern --gap 0.5 --task.original_model_name timm:resnet18   0.5 % other classes at most
  nern pack net.pth -o net.nern --bits 2 --task.original_model_name timm:resnet18

The NeRN of a run:

  nern pack outputs/my-run -o net.nern                  8 bits for each number of the predictor
  nern pack outputs/my-run -o net.nern --bits 6
  nern pack outputs/my-run -o net.nern --bytes 100000   the best file of at most so many bytes
  nern pack outputs/my-run -o net.nern --lossless true  every number as it is

Without -o the file is RUN.nern, and one that is there is left alone."""

UNPACK_HELP = """Write the weights of the network in an artifact, in the format that the suffix says.

  nern unpack net.nern -o weights.safetensors
  nern unpack net.nern -o weights.pt                    a state dict of PyTorch; also .pth, .th"""

INFO_HELP = """Show what is in an artifact, and where its bytes are.

  nern info net.nern"""

VERIFY_HELP = """Check an artifact: every checksum, that this machine predicts the weights that the writer did, and
with a task the accuracy.

  nern verify net.nern
  nern verify net.nern --task.task_name cifar10 --task.data_dir data
  nern verify mine.nern --task.task_name cifar10 --task.original_model_name mine.py:make   a network of your own code"""


def _file_parser(text: str, usage: str, *options: Callable[[ArgumentParser], None]) -> ArgumentParser:
    parser = command_parser(text, usage)
    parser.add_argument("file", type=str, help="the artifact, or pretrained:NAME.nern")
    parser.add_argument(
        "--limit", type=int, default=LIMIT, metavar="N", help="most numbers (weights, parameters) that are read"
    )
    for option in options:
        option(parser)
    return parser


def _network_option(parser: ArgumentParser) -> None:
    parser.add_argument("--network", type=int, default=0, metavar="N", help="which of several, counted from 0")


def _pack_parser() -> ArgumentParser:
    usage = (
        "nern pack WEIGHTS [-o FILE] [--bits N | --bytes N | --gap N] --task.original_model_name NAME [--task.KEY ...]\n"
        "       nern pack RUN_FOLDER [-o FILE] [--bits N | --bytes N | --lossless true] [--checkpoint NAME]"
    )
    parser = command_parser(PACK_HELP, usage)
    about = "a file of weights as original_model_path (also pretrained:NAME, timm, torchvision), or a run folder"
    parser.add_argument("source", type=str, help=about)
    parser.add_argument("-o", "--out", type=str | None, default=None, metavar="FILE", help="null: SOURCE.nern")
    about = "of a weight, or of a number of a run's predictor, on average; null: near the original, of a run 8"
    parser.add_argument("--bits", type=float | None, default=None, metavar="N", help=about)
    parser.add_argument("--bytes", type=int | None, default=None, metavar="N", help="most bytes of the file")
    about = "of a network: most calibration images, in percent, with another class than the original gives"
    parser.add_argument("--gap", type=float | None, default=None, metavar="N", help=about)
    parser.add_argument("--checkpoint", type=str | None, default=None, metavar="NAME", help="of a run; null: its best")
    parser.add_argument("--lossless", type=bool, default=False, help="of a run: keep every number as it is")
    about = "on which the effect of rounding is measured; 0: none are needed; null: 128 of a run, else up to 1,024"
    parser.add_argument("--images", type=int | None, default=None, metavar="N", help=about)
    about = "evaluate what the file gives, and keep the accuracy in it"
    parser.add_argument("--evaluate", type=bool, default=False, help=about)
    parser.add_argument("--metadata", type=dict[str, str] | None, default=None, help="text to keep, yours")
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
    parser.add_argument("-o", "--out", type=str | None, default=None, metavar="FILE", help="null: FILE.safetensors")
    return parser


def _run_unpack(given: dict[str, Any], argv: Sequence[str], console: Console) -> None:
    out = given["out"]
    if out is None:
        out = f"{given['file'].removeprefix(SHIPPED).removesuffix(NERN)}.safetensors"
        check_free(out, "-o")
    unpack(given["file"], out, given["network"], given["limit"], console)


def _info_parser() -> ArgumentParser:
    return _file_parser(INFO_HELP, "nern info FILE [--json FILE]", json_option)


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


COMMANDS = {
    "pack": Command(_pack_parser, _run_pack),
    "unpack": Command(_unpack_parser, _run_unpack),
    "info": Command(_info_parser, _run_info),
    "verify": Command(_verify_parser, _run_verify),
}
