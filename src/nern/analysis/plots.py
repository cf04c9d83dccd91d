"""Figures of training: losses and accuracies over the steps, as pictures of their own and in reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from nern.analysis import style
from nern.evaluation import LayerError
from nern.training.loop import History

Records = Sequence[Mapping[str, Any]]
Sets = Mapping[str, Mapping[str, float]]  # of each set, what `Metrics.to_dict` gives

COLOURS = {
    "reconstruction": style.BLUE,
    "feature_maps": style.ORANGE,
    "distillation": style.GREEN,
    "task": style.SERIES[4],
}
NO_TERMS = ("step", "lr", "total", "phase")  # what records of losses hold besides
SETS = {"test": "test images", "held_out": "held-out training images"}
ROW, GAP = 11, 4  # of the names of phases: points of a row, pixels between names
MOST_NAMES = 24  # layers with their names in the picture of a run


def plot_run(
    path: str | Path,
    title: str,
    history: History,
    errors: Sequence[LayerError],
    originals: Mapping[str, Sets] | None = None,
    warmup: int = 0,
) -> None:
    """Write the picture (PNG) of a run.

    Args:
        path: the file.
        title: over the picture.
        history: of the trainer.
        errors: of each layer, of the final predictor.
        originals: see `draw_training`.
        warmup: steps without images, shaded.
    """
    figure = style.canvas(1300, 420)
    losses, shares, layers = figure.subplots(1, 3)
    _draw_losses(losses, history.losses)
    _draw_shares(shares, history.evaluations, originals or {})
    last = last_step(history)
    for axes in (losses, shares):
        if 0 < warmup < last:
            axes.axvspan(0, warmup, color=style.MUTED, alpha=0.12, lw=0, label="without images")
        _over_steps(axes, last)
        style.legend(axes, 1, below=True)
    style.heading(layers, "Reconstruction error of each layer")
    layers.bar(range(len(errors)), [error.relative for error in errors], color=style.AFTER)
    style.tidy(layers)
    style.label(layers, "" if len(errors) <= MOST_NAMES else "layer", "error norm / weight norm")
    if len(errors) <= MOST_NAMES:
        names = style.plain_names([error.name for error in errors])
        layers.set_xticks(range(len(errors)), names, rotation=90, fontsize=7, parse_math=False)
    style.write_png(path, figure, title)


def plot_original(path: str | Path, title: str, history: History) -> None:
    """Write the picture (PNG) of the training of an original: losses, and accuracy on the test images."""
    figure = style.canvas(900, 420)
    losses, shares = figure.subplots(1, 2)
    _draw_losses(losses, history.losses)
    _draw_shares(shares, history.evaluations, {})
    style.heading(shares, "Accuracy")
    for axes in (losses, shares):
        _over_steps(axes, last_step(history))
        style.legend(axes, 1, below=True)
    style.write_png(path, figure, title)


def draw_training(
    width: int,
    history: History,
    originals: Mapping[str, Sets],
    phases: Sequence[tuple[str, int]] = (),
    best_step: int | None = None,
) -> Figure:
    """Accuracy and losses over the steps.

    Args:
        width: of the figure, in CSS pixels.
        history: of the run.
        originals: metrics of the original networks by name and set; drawn where they are of as many images as the curves.
        phases: name and last step of each.
        best_step: to be marked.
    """
    there = {"share": has_shares(history), "loss": bool(history.losses)}
    parts = [part for part, is_there in there.items() if is_there]
    narrow, last = width == style.NARROW, last_step(history)
    figure = style.canvas(width, 310 * len(parts) if narrow else 360)
    grid = figure.subplots(len(parts) if narrow else 1, 1 if narrow else len(parts), squeeze=False)
    for axes, part in zip(grid.ravel(), parts, strict=True):
        if part == "share":
            _draw_shares(axes, history.evaluations, originals)
        else:
            _draw_losses(axes, history.losses)
        _over_steps(axes, last)
        if best_step is not None and part == "share":
            axes.axvline(best_step, color=style.INK, lw=0.9, ls=style.DOTTED, label="checkpoint shown here")
        style.legend(axes, 1 if narrow else 2, below=True)
    if len(phases) > 1:
        rows = _name_phases(figure, phases, last)
        figure.set_figheight(figure.get_figheight() + len(grid) * rows * ROW / 72)
    return figure


def has_shares(history: History) -> bool:
    """Whether any evaluation was on images."""
    return any(name in record for record in history.evaluations for name in SETS)


def last_step(history: History) -> int:
    """The last step that something was measured at, at least 1."""
    return max([record["step"] for record in [*history.losses, *history.evaluations]] + [1])


def _over_steps(axes: Any, last: int) -> None:
    style.tidy(axes)
    axes.set_xlabel("training step", fontsize=style.TEXT, color=style.INK, labelpad=6)
    axes.set_xlim(0, last * 1.01)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=5)


def _draw_losses(axes: Any, records: Records) -> None:
    style.heading(axes, "Losses")
    style.label(axes, y="loss, unweighted (log scale)")
    numbers = [name for record in records for name, value in record.items() if isinstance(value, float)]
    terms = dict.fromkeys(name for name in numbers if name not in NO_TERMS)
    others = iter(style.SERIES[5:] * len(terms))  # of terms that users register
    for name in terms:
        colour = COLOURS.get(name) or next(others)
        points = [(record["step"], record[name]) for record in records if record.get(name, 0) > 0]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, lw=1.3, label=name.replace("_", " "))
    if axes.lines:
        axes.set_yscale("log")


def _draw_shares(axes: Any, records: Records, originals: Mapping[str, Sets]) -> None:
    """Curves of accuracies, of agreements where no image has a label. Dashed: the original's on the same images."""
    networks = next((list(record["networks"]) for record in records if "networks" in record), [])
    curves: list[tuple[str, str, list[Any], Sets]] = []  # what it is, the set, evaluations, the original's metrics
    for of_set, text in SETS.items():
        means = [(record["step"], record) for record in records]
        if not networks:
            curves.append((text, of_set, means, next(iter(originals.values()), {})))
        elif of_set == "test":
            for name in networks:
                points = [(record["step"], record["networks"][name]) for record in records if "networks" in record]
                curves.append((f"{name}, {text}", of_set, points, originals.get(name, {})))
        else:
            curves.append((f"{text}, mean", of_set, means, {}))
    key = (
        "top1"
        if any("top1" in of.get(of_set, {}) for _, of_set, points, _ in curves for _, of in points)
        else "agreement"
    )
    for colour, (text, of_set, points, original) in zip(style.SERIES * 9, curves, strict=False):
        found = [(step, of[of_set]) for step, of in points if key in of.get(of_set, {})]
        if not found:
            continue
        count, before = found[-1][1].get("images"), original.get(of_set, {})
        shown = text if count is None else f"{text} ({int(count):,})"
        line = [(step, of[key]) for step, of in found]
        axes.plot(*zip(*line, strict=True), color=colour, lw=1.6, marker="o", ms=3.5, label=shown)
        if key == "top1" and key in before and before.get("images") == count:
            axes.axhline(before[key], color=colour, lw=1, ls=style.DASHED, label=f"original, {text}")
    what = "Accuracy" if key == "top1" else "Agreement"
    style.heading(axes, f"{what} of the reconstructed network")
    style.label(axes, y=f"{what.lower()} (%)")


def _name_phases(figure: Figure, phases: Sequence[tuple[str, int]], last: int) -> int:
    """A line at the start of each phase in all axes of the figure, its name above, in as many rows as keep names apart;
    returns the number of rows."""
    starts = [0, *(end for _, end in phases)]
    begun = [(name, start) for (name, _), start in zip(phases, starts, strict=False) if start < last]
    drawn = [[_phase_name(axes, name, start, 0) for name, start in begun] for axes in figure.axes]
    figure.draw_without_rendering()  # says how wide the names are
    most = 0
    for axes, texts in zip(figure.axes, drawn, strict=True):
        boxes = [text.get_window_extent() for text in texts]
        rows: list[int] = []  # from the last phase to the first, so that no line crosses a name
        for number in reversed(range(len(begun))):
            below = zip(boxes[number + 1 :], reversed(rows), strict=True)
            rows.append(1 + max((row for box, row in below if box.x0 < boxes[number].x1 + GAP), default=-1))
        for text, (name, start), row in zip(texts, begun, reversed(rows), strict=True):
            text.remove()
            _phase_name(axes, name, start, row)
            if start:
                axes.axvline(start, color=style.FAINT, lw=0.9)
        style.heading(axes, axes.get_title("left"), pad=9 + ROW * (max(rows) + 1))
        most = max(most, max(rows) + 1)
    return most


def _phase_name(axes: Any, name: str, start: int, row: int) -> Any:
    line = {"arrowstyle": "-", "color": style.FAINT, "lw": 0.9, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0)}
    return axes.annotate(
        f" {name}", (start, 1), (0, 2 + ROW * row), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
        fontsize=style.SMALL, color=style.MUTED, parse_math=False, va="bottom", annotation_clip=False, arrowprops=line,
    )  # fmt: skip
