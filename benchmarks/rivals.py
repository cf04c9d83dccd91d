"""Files of codes and of NeRNs beside rivals: bytes on disk and accuracy, in one table.

    pip install nncodec==2.1.3
    python benchmarks/rivals.py --original_model_name ResNet20 --original_model_path resnet20.th --data_dir DIR \
        --bytes 88500 72000 57000 45000 --files trained.nern predictor.nern

Prints a Markdown table. At each of `--bytes` it writes, without training, files of codes (`nern pack`) and of what codes
consist of, each with a part left out: each weight by itself (no basis), no images (rounded to the nearest, steps by each
layer's deviation); and tells what the same codes need where nothing is known of their places. Beside them stand the files of
`--files`, and NNCodec (ISO/IEC 15938-17): it gets all parameters and buffers of the network as float32 (but counters of
batches) and codes them without data, at its defaults (trellis-coded quantisation, DeepCABAC) but for the quantisation
parameter: those in --qp, and for each file the finest one whose bitstream is no larger than the file. Every file is read
again and its network evaluated on the test images. The test images choose nothing: they only report.

With `--pictures DIR` a network of ImageNet is judged by a folder of pictures without labels: what is called accuracy is the
share of them to which the file's network gives the class that the original gives. Calibration images are the pictures of
`--calibration DIR`, or made-up ones:

    python benchmarks/rivals.py --original_model_name torchvision:squeezenet1_0 --original_model_path WEIGHTS \
        --input_size 227 --pictures DIR --bytes 470000 300000

Where NNCodec is not installed, its rows are missing.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from nern.artifact import load, write_artifact
from nern.artifact.container import codes_section
from nern.artifact.tensors import encode_tensors
from nern.benchmarks.machine import machine, machine_text, versions
from nern.compat import import_torchvision
from nern.config import TaskConfig
from nern.jobs.artifacts import images_of, tested
from nern.jobs.coding import IMAGES, Coder, Wanted, calibration_images, coded_network, coded_original
from nern.originals import build_original_network
from nern.originals.base import Original
from nern.originals.input_format import InputFormat
from nern.representation.codes import UNIT
from nern.tasks.image_folder import evaluation_transform, read_image
from nern.tasks.streams import EvalSet

FINEST, COARSEST = -40, -8  # quantisation parameters searched
SHOWN = list(range(-32, -13, 2))


def coded_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """What is coded of a network: all but counters of batches."""
    return {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}


class Codec:
    """NNCodec on one network; bitstreams are made once for each quantisation parameter.

    Args:
        network: whose parameters and buffers are coded.
        options: of the codec, in place of its defaults.
    """

    def __init__(self, network: nn.Module, options: dict[str, Any]) -> None:
        from nern.compat import import_torchvision

        import_torchvision()  # which the codec imports
        import nncodec.nn

        self._codec = nncodec.nn
        # The network will change.
        self._state = {name: tensor.detach().clone().float() for name, tensor in coded_state(network).items()}
        self._options = options
        self._streams: dict[int, tuple[bytearray, float]] = {}

    @property
    def bytes(self) -> int:
        """Of what is coded, before."""
        return sum(tensor.nbytes for tensor in self._state.values())

    def encoded(self, qp: int) -> tuple[bytearray, float]:
        """The bitstream, and seconds to make it."""
        if qp not in self._streams:
            arrays = {name: tensor.numpy() for name, tensor in self._state.items()}
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                options = {**self._options, "qp": qp, "verbose": False, "results": folder}
                stream = bytearray(self._codec.encode(arrays, options))  # the one type that it decodes
                self._streams[qp] = stream, time.perf_counter() - start
        return self._streams[qp]

    def decoded(self, qp: int) -> dict[str, torch.Tensor]:
        """The state that the bitstream gives."""
        arrays = self._codec.decode(self.encoded(qp)[0])
        return {name: torch.from_numpy(arrays[name]).reshape(own.shape) for name, own in self._state.items()}

    def within(self, size: int) -> int | None:
        """The finest quantisation parameter whose bitstream has at most `size` bytes; sizes fall as it grows."""
        fine, coarse = FINEST, COARSEST
        if len(self.encoded(coarse)[0]) > size:
            return None
        while fine < coarse:
            middle = (fine + coarse) // 2
            if len(self.encoded(middle)[0]) <= size:
                coarse = middle
            else:
                fine = middle + 1
        return fine


def codec_rows(
    codec: Codec, network: nn.Module, data: EvalSet, qps: list[int], console: Console
) -> list[dict[str, Any]]:
    """Figures of the codec at each quantisation parameter."""
    rows = []
    for qp in qps:
        stream, seconds = codec.encoded(qp)
        network.load_state_dict(codec.decoded(qp), strict=False)
        test = tested(Original(network), data)
        rows.append(
            {"what": "NNCodec", "detail": f"QP {qp}", "qp": qp, "bytes": len(stream), "seconds": seconds} | test
        )
        console.print(f"NNCodec, QP {qp}: {len(stream):,} bytes, {test['top1']:.2f} %")
    return rows


@dataclass(frozen=True)
class Judged:
    """Images with the classes that a network gives them."""

    images: torch.Tensor
    classes: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, batch_size: int, share: Any = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All batches, in order."""
        yield from zip(self.images.split(batch_size), self.classes.split(batch_size), strict=True)


def pictures(folder: Path, images: InputFormat) -> torch.Tensor:
    """The pictures of a folder, and of those in it, in the order of their names, as a network takes them."""
    transform = evaluation_transform(images)
    suffixes = import_torchvision().datasets.folder.IMG_EXTENSIONS
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    return torch.stack([transform(read_image(str(path), images.shape[0])) for path in files])


def file_row(path: Path, data: EvalSet) -> dict[str, Any]:
    """Figures of one .nern file."""
    start = time.perf_counter()
    network = load(path).network()
    seconds = time.perf_counter() - start
    test = tested(Original(network), data)
    return {"what": "nern", "detail": path.name, "bytes": path.stat().st_size, "unpacked_in": seconds} | test


class PlainCoder(Coder):
    """Codes that are the kernels themselves."""

    def fit(self) -> Any:
        """The codes of the original's weights, in no basis."""
        codes = super().fit()
        with torch.no_grad():
            for basis in codes.bases:
                basis.copy_(torch.eye(len(basis)))
            for code, weight in zip(codes.codes, self.original.weights, strict=True):
                code.copy_(weight.reshape(code.shape) * UNIT)
        return codes


def coded_rows(
    network: nn.Module, name: str, images: torch.Tensor, data: EvalSet, size: int, console: Console
) -> list[dict[str, Any]]:
    """Figures of files of codes of at most so many bytes, and of those without a part."""
    rows = []
    kinds: list[tuple[str, type[Coder], Any]] = [
        ("codes", Coder, images), ("codes, no basis", PlainCoder, images), ("codes, no images", Coder, None),
    ]  # fmt: skip
    for what, kind, seen in kinds:
        start = time.perf_counter()
        coder = kind(coded_original(network), name, None, seen, 0, None, Console(quiet=True))
        artifact, found = coded_network(coder, Wanted(size=size), Console(quiet=True))
        seconds = time.perf_counter() - start
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.nern"
            write_artifact(path, artifact.sections)
            test = tested(Original(load(path).network()), data)
        whole = {f"{n}": layer.multiples.float() for n, layer in enumerate(found.layers)}
        placeless = (
            len(encode_tensors(whole, dict.fromkeys(whole, 0))[1]) - artifact.sizes[codes_section(artifact.sections)]
        )
        rows.append(
            {"what": what, "detail": "", "bytes": artifact.size, "seconds": seconds, "placeless": placeless} | test
        )
        console.print(
            f"{what}: {artifact.size:,} bytes, {test['top1']:.2f} %, {seconds:.0f} s; without places {placeless:+,}"
        )
    return rows


def markdown(rows: list[dict[str, Any]], original: dict[str, Any], size: int) -> str:
    """The table; behind each file the codec that fits its bytes, and the least that the codec needs for its accuracy."""
    lines = [
        "| what | bytes | of float32 | accuracy, % | gap, points | the codec in as many bytes, % "
        "| bytes the codec needs for this accuracy |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| original, float32 | {size:,} | | {original['top1']:.2f} | | | |",
    ]
    codecs = [row for row in rows if row["what"] == "NNCodec"]
    for row in sorted(rows, key=lambda row: -row["bytes"]):
        beside = needed = ""
        name = f"NNCodec, {row['detail']}"
        if row["what"].startswith("codes"):
            name = f"{row['what']} ({row['seconds']:.0f} s; not knowing places {row['placeless']:+,} bytes)"
        if row["what"] in ("nern", "codes"):
            name = f"**{row['detail'] or name}**"
            fitting = [c for c in codecs if c["bytes"] <= row["bytes"]]
            enough = [c for c in codecs if c["top1"] >= row["top1"]]
            best = max(fitting, key=lambda c: c["top1"], default=None)
            least = min(enough, key=lambda c: c["bytes"], default=None)
            beside = "none fits" if best is None else f"{best['top1']:.2f} ({best['bytes']:,} bytes)"
            needed = "more than were tried" if least is None else f"{least['bytes']:,}"
        lines.append(
            f"| {name} | {row['bytes']:,} | {100 * row['bytes'] / size:.1f} % | {row['top1']:.2f} "
            f"| {row['top1'] - original['top1']:+.2f} | {beside} | {needed} |"
        )
    return "\n".join(lines)


def draw(path: Path, name: str, rows: list[dict[str, Any]], original: float) -> None:
    """Accuracy over bytes, of the codec and of the files."""
    from nern.analysis.style import BEFORE, BLUE, GREEN, ORANGE, canvas, png

    figure = canvas(900, 440)
    axes = figure.subplots()
    axes.grid(True)
    best = max([original, *(row["top1"] for row in rows)])
    shown = [row for row in rows if row["top1"] > best - 5]

    def plot(what: str, colour: str, marker: str) -> list[tuple[float, float]]:
        points = sorted((row["bytes"] / 1000, row["top1"]) for row in shown if row["what"] == what)
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=6, lw=1.6)
        return points

    of_codec = plot("NNCodec", ORANGE, "o")
    x, y = of_codec[len(of_codec) // 2]
    axes.text(x * 1.02, y - 0.12, "NNCodec (ISO/IEC 15938-17)", color=ORANGE, ha="left", va="top")
    if of_codes := plot("codes", BLUE, "D"):
        axes.text(of_codes[0][0] * 1.02, of_codes[0][1], "codes, no training", color=BLUE, ha="left", va="top")
    if files := plot("nern", GREEN, "s"):
        axes.text(files[0][0] * 0.985, files[0][1], "trained", color=GREEN, ha="right", va="bottom")
    axes.axhline(original, color=BEFORE, lw=1.2, ls=(0, (4, 3)))
    sizes = [row["bytes"] / 1000 for row in shown]
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) * 0.72, max(sizes) * 1.08)
    ticks = [
        t
        for t in (20, 30, 40, 50, 60, 80, 100, 120, 150, 200, 250, 300, 400, 500, 700)
        if min(sizes) * 0.72 < t < max(sizes) * 1.1
    ]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.text(min(sizes) * 0.73, original + 0.03, f"{name} in float32, {original:.2f} %", color="#6b747d", va="bottom")
    axes.set(xlabel="size of the file, kB", ylabel="accuracy on the test images, %")
    path.write_bytes(png(figure))


def judged(network: nn.Module, given: argparse.Namespace) -> tuple[EvalSet, torch.Tensor]:
    """The images that judge a network, and those that it is calibrated on."""
    original = Original(copy.deepcopy(network))
    if given.pictures is None:
        kwargs = {"data_dir": given.data_dir} if given.data_dir else {}
        task = TaskConfig(task_name=given.task_name, original_model_name=given.original_model_name, **kwargs)
        data, task_or_none = images_of(task, original), task
    else:
        known = original.input_format or replace(InputFormat().having(given.input_size), crop=given.input_size / 256)
        original.input_format = known
        shown = pictures(given.pictures, known)
        classes = torch.cat([original(part).argmax(1) for part in shown.split(32)])
        data, task_or_none = Judged(shown, classes), None
    of_network = original.input_format or InputFormat()
    own = None if given.calibration is None else pictures(given.calibration, of_network)
    images = calibration_images(original, task_or_none, IMAGES, 0, own)
    assert images is not None
    return data, images


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original_model_name", required=True)
    parser.add_argument("--original_model_path", required=True)
    parser.add_argument("--task_name", default="cifar10")
    parser.add_argument("--data_dir", default=None)
    parser.add_argument("--pictures", type=Path, default=None, help="a folder; in place of a task's test images")
    parser.add_argument("--calibration", type=Path, default=None, help="a folder; unless given, made-up images")
    parser.add_argument("--input_size", type=int, default=224, help="side of pictures in pixels")
    parser.add_argument("--files", nargs="*", type=Path, default=[], help="of this network")
    parser.add_argument("--bytes", nargs="*", type=int, default=[], help="of files to make")
    parser.add_argument("--qp", nargs="*", type=int, default=SHOWN, help="to be shown besides")
    parser.add_argument("--codec", nargs="*", default=[], metavar="OPTION=VALUE", help="of the codec, values in JSON")
    parser.add_argument("--figure", type=Path, default=None, help="draw accuracy over bytes, PNG")
    parser.add_argument(
        "--json",
        type=Path,
        default=None,
        help="write every figure; the codec's that are there already are not measured again",
    )
    given = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    options = {name: json.loads(value) for name, _, value in (text.partition("=") for text in given.codec)}

    network = build_original_network(given.original_model_name, given.original_model_path).eval()
    data, images = judged(network, given)
    original = tested(Original(network), data)
    codec = Codec(network, options) if find_spec("nncodec") else None
    size_before = sum(4 * tensor.numel() for tensor in coded_state(network).values())
    rows = [file_row(path, data) for path in given.files]
    for size in given.bytes:
        rows += coded_rows(network, given.original_model_name, images, data, size, console)
    if codec is None:
        print(markdown(rows, original, size_before))
        print(f"\n{original['images']:,} images; {machine_text(machine(), versions(), torch.get_num_threads())}")
        return
    fitting = {codec.within(row["bytes"]) for row in rows} - {None}
    known = json.loads(given.json.read_text(encoding="utf-8")) if given.json and given.json.is_file() else {}
    same = known.get("original") == original | {"bytes": codec.bytes} and known["about"]["options"] == options
    wanted = sorted({*given.qp, *fitting})
    measured = {row["qp"]: row for row in known["rows"] if "qp" in row} if same else {}
    left = [qp for qp in wanted if qp not in measured]
    rows += [measured[qp] for qp in wanted if qp in measured] + codec_rows(codec, network, data, left, console)

    print(markdown(rows, original, codec.bytes))
    hardware, software = machine(), versions()
    about = {"nncodec": version("nncodec"), "options": options, **software, **hardware}
    text = machine_text(hardware, software, torch.get_num_threads())
    print(
        f"\n{original['images']:,} test images; NNCodec {about['nncodec']} at its defaults but QP{' and ' * bool(options)}"
        f"{', '.join(given.codec)}; {text}"
    )
    if given.figure:
        from nern.analysis.style import styled

        styled(draw)(given.figure, given.original_model_name, rows, original["top1"])
    if given.json:
        kept = [row for qp, row in measured.items() if qp not in wanted]
        found = {"original": original | {"bytes": codec.bytes}, "rows": rows + kept, "about": about}
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
