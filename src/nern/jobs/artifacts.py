"""What is done with an artifact: unpack it, tell what is in it, verify it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from nern.artifact import LIMIT, Artifact, load
from nern.artifact.description import NetworkDescription
from nern.artifact.reading import TOLERANCE
from nern.artifact.table import about, accuracy_text, artifact_table, layer_table
from nern.config import TaskConfig
from nern.console import PLAIN, CleanConsole
from nern.errors import NernError, plain_errors
from nern.evaluation import Evaluator
from nern.files import check_weights_suffix, check_writable, save_state_dict
from nern.originals.base import Original
from nern.tasks.base import DataSettings, build_task
from nern.tasks.streams import EvalSet
from nern.terminal import shows_bars

_LARGE = 5_000_000  # weights from which on a bar is shown
BATCH = 500  # images in one evaluation batch
_POINTS = 0.2  # by which rounding may change an accuracy; of few images, one image


@plain_errors()
def info(file: str | Path, limit: int = LIMIT, console: Console | None = None) -> Artifact:
    """Print what is in a file, where its bytes are, and how each layer is held.

    Args:
        file: the `.nern` file, or 'pretrained:NAME.nern'.
        limit: largest number of numbers to read (see `nern.load`).
        console: where to print; None: standard output.

    Returns:
        What is in the file.

    Raises:
        NernError: it is no such file, or damaged.
    """
    console, artifact = console or CleanConsole(), load(file, limit)
    for line in about(artifact):
        console.print(line, **PLAIN)
    console.print(artifact_table(artifact))
    if (layers := layer_table(artifact)) is not None:
        console.print(layers)
    return artifact


@plain_errors()
def unpack(
    file: str | Path,
    out: str | Path,
    network: int = 0,
    limit: int = LIMIT,
    console: Console | None = None,
) -> Artifact:
    """Write all parameters and buffers of the network in a file, by name: as safetensors, or as a state dict of PyTorch.

    Args:
        file: the `.nern` file, or 'pretrained:NAME.nern'.
        out: the file to write; an older one is replaced. Its suffix says the format: .safetensors, .pt, .pth, .th.
        network: number of the network in a file of several, from 0.
        limit: largest number of numbers to read (see `nern.load`).
        console: where to print; None: standard output.

    Returns:
        What is in the file.

    Raises:
        NernError: it is no such file, or damaged; there is no such network; the suffix is another one; the file cannot be
            written.
    """
    console = console or CleanConsole()
    check_weights_suffix(out, "unpack")
    check_writable(out, "unpack", file)
    artifact = load(file, limit)
    state = predicted(artifact, console).state_dict(network)
    name = artifact.described(network).name
    save_state_dict(out, state, {"network": name, "from": Path(file).name})
    numbers = sum(tensor.numel() for tensor in state.values())
    console.print(f"{name}: {len(state)} tensors, {numbers:,} numbers, in {out}", **PLAIN)
    return artifact


def predicted(artifact: Artifact, console: Console) -> Artifact:
    """The artifact with its weights predicted; of a large network a bar is shown meanwhile."""
    total = artifact.nern.table.num_weights
    with Progress(console=console, disable=total < _LARGE or not shows_bars(console), transient=True) as bar:
        task = bar.add_task("predicting weights", total=total)
        artifact.predict(lambda done: bar.update(task, completed=done))
    return artifact


def tested(original: Original, data: EvalSet) -> dict[str, Any]:
    """Figures of a network on labelled images."""
    metrics = Evaluator(original, BATCH)(data).to_dict()
    return {name: metrics[name] for name in ("images", "top1", "top5", "loss")}


def named_for(task: TaskConfig, described: NetworkDescription) -> TaskConfig:
    """The task with a network of an artifact."""
    return replace(task, original_model_name=described.architecture or described.name)


def images_of(task: TaskConfig, original: Original, count: int | None = None) -> EvalSet:
    """The test images of a task, as its network takes them, or the first `count` of them. Raises NernError where they
    cannot be had."""
    settings = DataSettings(batch_size=1, eval_batch_size=BATCH, num_workers=0, seed=0, test_images=count)
    data = build_task(task, settings, torch.device("cpu"), train=False, original=original).test
    assert data is not None
    return data


def reconstructed(artifact: Artifact, network: int | torch.nn.Module) -> Original:
    """A network of a file, or the file's weights in a copy of one of the user's. Raises NernError where it is not known how
    to build it."""
    described = artifact.described(network)
    if described.architecture is None and isinstance(network, int):
        raise NernError(
            f"{described.name} is held as a state dict only: the file does not tell how to build it. "
            "--task.original_model_name FILE.py:FUNCTION does, or in Python a module given as `network`"
        )
    return Original(artifact.network(network), names=[name for name, _, _ in described.represented])


@plain_errors()
def verify(
    file: str | Path,
    task: TaskConfig | None = None,
    network: int | torch.nn.Module = 0,
    limit: int = LIMIT,
    console: Console | None = None,
) -> dict[str, Any]:
    """Check a file: every checksum; that this machine predicts the same weights as the writer's; and, with `task`, the
    accuracy.

    Args:
        file: the `.nern` file, or 'pretrained:NAME.nern'.
        task: the task on whose test images the file's network is evaluated. If the file tells its accuracy on this task,
            the same images are taken, and the two accuracies are compared.
        network: number of the network in a file of several, from 0; or a network of yours, of the same architecture, to put
            the weights in.
        limit: largest number of numbers to read (see `nern.load`).
        console: where to print; None: standard output.

    Returns:
        'bytes' of the file; number of its 'sections'; 'difference', the largest between predicted weights here and there,
        over their root mean square; with `task` also 'test': 'images', 'top1' and 'top5' (percent), 'loss' (nats).

    Raises:
        NernError: the file is damaged, or something is not as the file says; the test images cannot be had.
    """
    console, artifact = console or CleanConsole(), load(file, limit)
    difference = artifact.check(predicted(artifact, console).weights)
    found: dict[str, Any] = {"bytes": artifact.size, "sections": len(artifact.sizes) - 1, "difference": difference}
    console.print(
        f"{file}: {artifact.size:,} bytes, {found['sections']} sections, every checksum holds\n"
        f"predicted weights: within {difference:.1e} of the writer's (root mean squares; allowed: {TOLERANCE:g})",
        **PLAIN,
    )
    if task is None:
        return found
    described = artifact.described(network)
    said, of_task = described.about.get("test", {}), described.about.get("task") == task.task_name
    told = accuracy_text(described)
    count = said["images"] if told and of_task and isinstance(said["images"], int) and said["images"] > 0 else None
    original = reconstructed(artifact, network)
    test = found["test"] = tested(original, images_of(named_for(task, described), original, count))
    here, alike = f"{test['top1']:.2f} % of {test['images']:,} test images of {task.task_name}", test["images"] == count
    so = "the same images" if alike else "fewer are here, not compared" if of_task else "another task, not compared"
    console.print(
        f"{described.name}: {here}; the file {f'says {told} ({so})' if told else 'tells of no accuracy'}", **PLAIN
    )
    if alike and abs(said["top1"] - test["top1"]) > max(_POINTS, 100 / test["images"]) + 1e-9:
        raise NernError(
            f"{file} says {told}, but it is right on {here}: are these the images that it was measured on, and is this "
            "the network?"
        )
    return found
