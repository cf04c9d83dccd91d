"""Figures of a report: training, errors of layers, smoothness, dropped kernels, classes. Each is drawn for one width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from nern.analysis.canvas import (
    AFTER,
    BEFORE,
    BLUE,
    GREEN,
    NARROW,
    ORANGE,
    SMALL,
    YELLOW,
    canvas,
    heading,
    label,
    legend,
    plain_names,
    rows_of,
    say,
    tidy,
)
from nern.analysis.class_changes import ClassChange
from nern.analysis.importance import RANDOM, SMALLEST, WORST, DropCurve
from nern.analysis.plots import COLOURS, INK, MUTED
from nern.analysis.smoothness import UNRELATED
from nern.training.loop import History

ROW = 21  # CSS pixels of a bar and what is between
MOST_ROWS = 40  # layers with a row each; more get a column each, without names
MOST_CLASSES = 24
PHASE, PHASE_ROW, PHASE_GAP = "#b8bec5", 11, 4  # colour; points of a row of names; pixels between names
MINUS = "\N{MINUS SIGN}"
LOST, GAINED = "right before, wrong now", "wrong before, right now"
SERIES = (BLUE, YELLOW, GREEN, ORANGE, "#cc79a7", "#56b4e9", "#7f3c8d")
SETS = {"test": "test images", "held_out": "held-out training images"}
RANKINGS = {
    WORST: ("worst reconstructed first", BLUE, "o"),
    SMALLEST: ("smallest first", ORANGE, "s"),
    RANDOM: ("at random", MUTED, "D"),
}


def draw_training(
    width: int,
    history: History,
    originals: Mapping[str, Mapping[str, Mapping[str, float]]],
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
    narrow = width == NARROW
    figure = canvas(width, 310 * len(parts) if narrow else 360)
    grid = figure.subplots(len(parts), 1, squeeze=False) if narrow else figure.subplots(1, len(parts), squeeze=False)
    last = max([r["step"] for r in [*history.losses, *history.evaluations]] + [1])
    for axes, part in zip(grid.ravel(), parts, strict=True):
        if part == "share":
            what = _shares(axes, history.evaluations, originals)
            heading(axes, f"{what} of the reconstructed network")
            label(axes, "training step", f"{what.lower()} (%)")
        else:
            _losses(axes, history.losses)
            heading(axes, "Losses")
            label(axes, "training step", "loss, unweighted (log scale)")
        tidy(axes)
        axes.set_xlim(0, last * 1.01)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        if best_step is not None and part == "share":
            axes.axvline(best_step, color=INK, lw=0.9, ls=(0, (1, 2)), label="checkpoint shown here")
        legend(axes, 1 if narrow else 2, below=True)
    if len(phases) > 1:
        rows = name_phases(figure, phases, last)
        figure.set_figheight(figure.get_figheight() + len(grid) * rows * PHASE_ROW / 72)
    return figure


def has_shares(history: History) -> bool:
    """Whether any evaluation was on images."""
    return any(name in record for record in history.evaluations for name in SETS)


def _shares(
    axes: Any, records: Sequence[Mapping[str, Any]], originals: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> str:
    """Lines of accuracies, or of agreements where no image has a label; which of the two. Dashed: the
    original's accuracy on the same images."""
    several = next((list(r["networks"]) for r in records if "networks" in r), [])
    lines = []  # of each: what it is, the set, evaluations, the original's metrics
    for set_name, text in SETS.items():
        for name in several if set_name == "test" else []:
            points = [(r["step"], r["networks"][name]) for r in records]
            lines.append((f"{name}, {text}", set_name, points, originals.get(name, {})))
        if not several:
            own = next(iter(originals.values()), {})
            lines.append((text, set_name, [(r["step"], r) for r in records], own))
        elif set_name != "test":
            lines.append((f"{text}, mean", set_name, [(r["step"], r) for r in records], {}))
    figures = [of[s] for _, s, points, _ in lines for _, of in points if s in of]
    key = "top1" if any("top1" in of for of in figures) else "agreement"
    for colour, (text, set_name, points, original) in zip(SERIES * 9, lines, strict=False):
        found = [(step, of[set_name]) for step, of in points if key in of.get(set_name, {})]
        if not found:
            continue
        count, before = found[-1][1].get("images"), original.get(set_name, {})
        label = text if count is None else f"{text} ({int(count):,})"
        line = [(step, of[key]) for step, of in found]
        axes.plot(*zip(*line, strict=True), color=colour, lw=1.6, marker="o", ms=3.5, label=label)
        if key == "top1" and key in before and before.get("images") == count:
            axes.axhline(before[key], color=colour, lw=1, ls=(0, (5, 3)), label=f"original, {text}")
    return "Accuracy" if key == "top1" else "Agreement"


def _losses(axes: Any, records: Sequence[Mapping[str, Any]]) -> None:
    for name, colour in COLOURS.items():
        points = [(r["step"], r[name]) for r in records if name != "total" and r.get(name, 0) > 0]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, lw=1.3, label=name.replace("_", " "))
    if axes.lines:
        axes.set_yscale("log")


def name_phases(figure: Figure, phases: Sequence[tuple[str, int]], last: int) -> int:
    """A line at the start of each phase in all axes of the figure, its name above, in as many rows as keep names apart.

    Returns:
        The number of rows.
    """
    starts = [0, *(end for _, end in phases)]
    begun = [(name, start) for (name, _), start in zip(phases, starts, strict=False) if start < last]
    names = [[_phase_name(axes, name, start, 0) for name, start in begun] for axes in figure.axes]
    figure.draw_without_rendering()  # says how wide the names are
    most = 0
    for axes, of_axes in zip(figure.axes, names, strict=True):
        boxes = [text.get_window_extent() for text in of_axes]
        rows: list[int] = []  # from the last phase to the first, so that no line crosses a name
        for number in reversed(range(len(begun))):
            below = zip(boxes[number + 1 :], reversed(rows), strict=True)
            rows.append(1 + max((row for box, row in below if box.x0 < boxes[number].x1 + PHASE_GAP), default=-1))
        for text, (name, start), row in zip(of_axes, begun, reversed(rows), strict=True):
            text.remove()
            _phase_name(axes, name, start, row)
            if start:
                axes.axvline(start, color=PHASE, lw=0.9)
        heading(axes, axes.get_title("left"), pad=9 + PHASE_ROW * (max(rows) + 1))
        most = max(most, max(rows) + 1)
    return most


def _phase_name(axes: Any, name: str, start: int, row: int) -> Any:
    line = {"arrowstyle": "-", "color": PHASE, "lw": 0.9, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0)}
    return axes.annotate(
        f" {name}", (start, 1), (0, 2 + PHASE_ROW * row), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
        fontsize=SMALL, color=MUTED, parse_math=False, va="bottom", annotation_clip=False, arrowprops=line,
    )  # fmt: skip


def draw_layers(width: int, names: Sequence[str], errors: Sequence[float | None]) -> Figure:
    """Relative error of each layer, bars."""
    axis = "relative error of the layer"
    if width != NARROW:
        axis += " (norm of the error / norm of the weights)"
    values = [error or 0.0 for error in errors]
    texts = [f"{value:.3f}" if value < 9.9995 else f"{value:.3g}" for value in values]
    return _bars(width, plain_names(names), values, texts, axis, "layer, counted from the input", "relative error")


def draw_bits(width: int, names: Sequence[str], bits: Sequence[float]) -> Figure:
    """Bits for each number of the predictor's tensors, bars."""
    texts = [f"{value:.2f}" for value in bits]
    return _bars(
        width, names, bits, texts, "bits for each number of the tensor", "tensor, by number", "bits for each number"
    )


def _bars(
    width: int,
    names: Sequence[str],
    values: Sequence[float],
    texts: Sequence[str],
    axis: str,
    column: str,
    short: str,
) -> Figure:
    """A bar for each name, and its value as text.

    Args:
        axis: what the values are.
        column, short: of many names, which get a column each: what a column is, and what the values are.
    """
    narrow = width == NARROW
    if len(names) > MOST_ROWS:
        figure = canvas(width, 300)
        axes = figure.subplots()
        axes.bar(range(1, len(values) + 1), values, color=AFTER, width=0.8)
        tidy(axes)
        label(axes, column, short)
        axes.set_xlim(0, len(values) + 1)
        return figure
    figure = canvas(width, ROW * len(names) + 78)
    axes = figure.subplots()
    axes.barh(range(len(names)), values, color=AFTER, height=0.66)
    tidy(axes, "x")
    rows_of(axes, names, narrow)
    top = max(values, default=0.0) or 1.0
    axes.set_xlim(0, top * (1.16 if narrow else 1.06))
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        say(axes, value + 0.008 * top, row, text)
    label(axes, axis)
    return figure


def draw_steps(
    width: int,
    names: Sequence[str],
    natural: Sequence[float | None],
    ordered: Sequence[float | None] | None,
    source: str = "run",
) -> Figure:
    """Mean step from kernel to kernel in each layer: as they lay, and in the order of the `source` (None: it has none)."""
    names, narrow = plain_names(names), width == NARROW
    rows, there = range(len(names)), [index for index, step in enumerate(natural) if step is not None]
    unit = "unit: the layer's root-mean-square kernel norm"
    axis = ("\n" if narrow else " ").join(["mean step from kernel to kernel", f"({unit})"])
    flat = len(names) > MOST_ROWS
    at = [index + 1 for index in there] if flat else there
    figure = canvas(width, 330 if flat else ROW * len(names) + (155 if narrow else 105))
    axes = figure.subplots()
    pairs = {"natural order": (natural, BEFORE)}
    if ordered is not None:
        pairs[f"the {source}'s order"] = (ordered, AFTER)
        for index in there:
            ends, place = [natural[index], ordered[index]], [index + flat, index + flat]
            axes.plot(
                *((place, ends) if flat else (ends, place)), color="#cfd8e0", lw=2.4, zorder=1, solid_capstyle="round"
            )
    for text, (steps, colour) in pairs.items():
        points = [steps[index] for index in there]
        pair = (at, points) if flat else (points, at)
        dots: dict[str, Any] = {"s": 16 if flat else 34, "color": colour, "lw": 0, "zorder": 3}
        axes.scatter(*pair, **dots, label=text)
    line: dict[str, Any] = {
        "color": INK,
        "lw": 1,
        "ls": (0, (5, 3)),
        "label": "kernels without any likeness",
        "zorder": 0,
    }
    shown = [step for steps, _ in pairs.values() for step in steps if step is not None]
    top = max([*shown, UNRELATED]) * 1.05
    if flat:
        axes.axhline(UNRELATED, **line)
        tidy(axes)
        label(axes, "layer, counted from the input", "mean step\n(root-mean-square kernel norms)")
        axes.set_ylim(0, top)
        axes.set_xlim(0, len(rows) + 1)
    else:
        axes.axvline(UNRELATED, **line)
        tidy(axes, "x")
        rows_of(axes, names, narrow)
        label(axes, axis)
        axes.set_xlim(0, top)
    legend(axes, 1 if narrow else 3)
    return figure


def draw_drops(
    width: int, curves: Sequence[DropCurve], images: int, original: float, chance: float | None = None
) -> Figure:
    """Accuracy over the share of kernels dropped.

    Args:
        curves: one of each ranking.
        images: number of images.
        original: accuracy of the original on them (percent).
        chance: accuracy of guessing (percent); None: not drawn.
    """
    narrow = width == NARROW
    figure = canvas(width, 400 if narrow else 420)
    axes = figure.subplots()
    for curve in curves:
        text, colour, marker = RANKINGS[curve.ranking]
        shares, means = [100 * share for share in curve.shares], curve.means()
        draws = len(curve.accuracies)
        text += f" (mean and range of {draws})" if draws > 1 else ""
        if draws > 1:
            columns = list(zip(*curve.accuracies, strict=True))
            axes.fill_between(
                shares, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.18, lw=0
            )
        axes.plot(shares, means, color=colour, marker=marker, ms=5, lw=1.8, label=text)
    axes.axhline(original, color=INK, lw=1, ls=(0, (5, 3)), label="original network, nothing dropped")
    if chance is not None:
        axes.axhline(chance, color=MUTED, lw=1, ls=(0, (1, 2)), label="guessing")
    tidy(axes)
    label(axes, "kernels dropped (% of all)", f"accuracy, {images:,} test images (%)")
    axes.set_xticks([100 * share for share in curves[0].shares if share not in (0.02,)])
    axes.set_xlim(-0.8, 100 * max(curves[0].shares) + 1)
    axes.set_ylim(bottom=0)
    legend(axes, 1 if narrow else 3, below=True)
    return figure


def classes_shown(changes: Sequence[ClassChange]) -> list[ClassChange]:
    """All of a few classes; of many, those that change most: losses first, gains last."""
    if len(changes) <= MOST_CLASSES:
        return list(changes)
    ranked = sorted(changes, key=lambda c: c.change)
    return ranked[: MOST_CLASSES // 2] + ranked[-(MOST_CLASSES // 2) :]


def draw_classes(width: int, changes: Sequence[ClassChange], names: Sequence[str] | None) -> Figure:
    """Of each class, the shares of images that became right and wrong, and the difference."""
    shown, narrow = classes_shown(changes), width == NARROW
    rows = range(len(shown))
    figure = canvas(width, ROW * len(shown) + (150 if narrow else 110))
    axes = figure.subplots()
    gained = [100 * c.gained / c.images for c in shown]
    lost = [100 * c.lost / c.images for c in shown]
    axes.barh(rows, [-value for value in lost], color=ORANGE, height=0.62, label=LOST)
    axes.barh(rows, gained, color=BLUE, height=0.62, label=GAINED)
    dots: dict[str, Any] = {"s": 26, "color": INK, "zorder": 4, "lw": 0.8, "ec": "white"}
    axes.scatter([c.change for c in shown], rows, **dots, label="change of the accuracy")
    axes.axvline(0, color=INK, lw=0.9)
    tidy(axes, "x")
    rows_of(axes, [str(c.label) if names is None else names[c.label] for c in shown], narrow)
    most = max([*gained, *lost, 0.5]) * 1.12
    axes.set_xlim(-most, most)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.3g}".replace("-", MINUS) if abs(value) > 1e-9 else "0")
    long = "share of the class's images (%), and change of its accuracy (points)"
    label(axes, "images of the class (%), change (points)" if narrow else long, "class")
    legend(axes, 1 if narrow else 3, first=[LOST, GAINED])
    return figure
