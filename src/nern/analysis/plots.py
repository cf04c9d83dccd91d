"""The picture of a run: losses and accuracy over time, reconstruction error of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nern.evaluation import LayerError
from nern.files import atomic_path
from nern.training.loop import History

INK, MUTED = "#222222", "#8a8a8a"
COLOURS = {
    "reconstruction": "#0072b2",
    "feature_maps": "#d55e00",
    "distillation": "#009e73",
    "task": "#cc79a7",
    "total": "#222222",
}


def plot_run(
    path: str | Path,
    title: str,
    history: History,
    errors: Sequence[LayerError],
    original_top1: float | None = None,
    warmup: int = 0,
) -> None:
    """Write the picture (PNG) of a run.

    Args:
        path: the file.
        title: over the picture.
        history: of the trainer.
        errors: of each layer, of the final predictor.
        original_top1: accuracy of the original, drawn as a line.
        warmup: steps without images, shaded.
    """
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    figure.suptitle(title, color=INK, fontsize=12, parse_math=False)
    _losses(left, history.losses)
    _accuracy(middle, history.evaluations, original_top1)
    _layers(right, errors)
    last = max([r["step"] for r in history.losses] + [r["step"] for r in history.evaluations] + [1])
    for axes in (left, middle):
        axes.set_xlim(0, last)
        axes.set_xlabel("training step")
        if 0 < warmup < last:
            axes.axvspan(0, warmup, color=MUTED, alpha=0.12, lw=0, label="without images")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            for text in axes.legend(frameon=False, fontsize=8).get_texts():
                text.set_parse_math(False)  # names of files: a $ is a dollar
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def plot_original(path: str | Path, title: str, history: History) -> None:
    """Write the picture (PNG) of the training of an original: losses, and accuracy on the test images."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    figure.suptitle(title, color=INK, fontsize=12, parse_math=False)
    _losses(left, history.losses)
    _accuracy(right, history.evaluations, None)
    right.set_title("Accuracy", color=INK, fontsize=10)
    for axes in (left, right):
        axes.set_xlabel("training step")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, alpha=0.25)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _losses(axes: Any, records: Sequence[dict[str, float]]) -> None:
    axes.set_title("Losses, unweighted", color=INK, fontsize=10)
    for name, colour in COLOURS.items():
        points = [(r["step"], r[name]) for r in records if r.get(name, 0) > 0]
        if points and name != "total":
            axes.plot(*zip(*points, strict=True), color=colour, lw=1.2, label=name.replace("_", " "))
    if axes.lines:
        axes.set_yscale("log")


def _accuracy(axes: Any, records: Sequence[dict[str, Any]], original_top1: float | None) -> None:
    axes.set_title("Accuracy of the reconstructed network", color=INK, fontsize=10)
    axes.set_ylabel("top-1 (%)")
    for name, label, colour in (
        ("test", "test images", "#0072b2"),
        ("held_out", "held-out training images", "#e69f00"),
    ):
        points = [(r["step"], r[name]["top1"]) for r in records if name in r and "top1" in r[name]]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, lw=1.2, marker="o", ms=3, label=label)
    for name in next((r["networks"] for r in records if "networks" in r), {}):
        points = [(r["step"], r["networks"][name]["test"]["top1"]) for r in records if "test" in r["networks"][name]]
        if points:
            axes.plot(*zip(*points, strict=True), lw=0.9, ls=":", marker=".", ms=3, label=name)
    if original_top1 is not None:
        axes.axhline(original_top1, color=INK, lw=1, ls="--", label=f"original, test: {original_top1:.2f}")


def _layers(axes: Any, errors: Sequence[LayerError]) -> None:
    axes.set_title("Reconstruction error of each layer", color=INK, fontsize=10)
    axes.set_ylabel("error norm / weight norm")
    axes.bar(range(len(errors)), [e.relative or 0.0 for e in errors], color="#0072b2")
    axes.set_ylim(bottom=0)
    if len(errors) <= 24:
        names = [e.name.removesuffix(".weight") for e in errors]
        axes.set_xticks(range(len(errors)), names, rotation=90, fontsize=7, parse_math=False)
    else:
        axes.set_xlabel("layer")
