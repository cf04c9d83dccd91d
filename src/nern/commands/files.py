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
    flag_option,
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


def _file_parser(text: str, usage: str, *options: Callable[[ArgumentParser], None]) -> ArgumentParser:
    parser = command_parser(text, usage)
    parser.add_argument("file", type=str, help="the .nern file, or pretrained:NAME.nern")
    parser.add_argument(
        "--limit", type=int, default=LIMIT, metavar="N", help="refuse a file with more numbers than this"
    )
    for option in options:
        option(parser)
    return parser


def _network_option(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--network", type=int, default=0, metavar="N", help="number of the network in a file of several, from 0"
    )


def _pack_parser() -> ArgumentParser:
    usage = (
        "nern pack WEIGHTS [-o FILE] [--bits N | --bytes N | --gap N] --task.original_model_name NAME [--task.KEY ...]\n"
        "       nern pack RUN_FOLDER [-o FILE] [--bits N | --bytes N | --lossless] [--checkpoint NAME]"
    )
    parser = command_parser(PACK_HELP, usage)
    about = "weights of a network (as original_model_path: a file, pretrained:NAME, timm, torchvision), or a run folder"
    parser.add_argument("source", type=str, help=about)
    parser.add_argument(
        "-o", "--out", type=str | None, default=None, metavar="FILE", help="the file to write; null: SOURCE.nern"
    )
    about = (
        "average bits of a weight; for a run of a number of the predictor. null: a file near the original; for a run the "
        "bits that it was trained for, else 8"
    )
    parser.add_argument("--bits", type=float | None, default=None, metavar="N", help=about)
    parser.add_argument("--bytes", type=int | None, default=None, metavar="N", help="largest size of the file")
    about = "for a network: largest share, in percent, of calibration images that may get another class"
    parser.add_argument("--gap", type=float | None, default=None, metavar="N", help=about)
    parser.add_argument(
        "--checkpoint", type=str | None, default=None, metavar="NAME", help="for a run: the checkpoint; null: best"
    )
    flag_option(parser, "lossless", "for a run: keep every number in 32 bits")
    about = (
        "number of images on which the effect of rounding is measured; 0: none are needed; null: for a network up to 1,024, "
        "for a run 128"
    )
    parser.add_argument("--images", type=int | None, default=None, metavar="N", help=about)
    about = "evaluate the file on the task's test images, and keep the accuracy in it"
    flag_option(parser, "evaluate", about)
    parser.add_argument(
        "--metadata",
        type=dict[str, str] | None,
        default=None,
        help="text of yours by name, kept in the file: {key: text}",
    )
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
    parser.add_argument(
        "-o", "--out", type=str | None, default=None, metavar="FILE", help="the file to write; null: FILE.safetensors"
    )
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
