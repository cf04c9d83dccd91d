"""Figures of a report over layers, kernels dropped and classes. Each is drawn for one width, in CSS pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from nern.analysis import style
from nern.analysis.dropping import RANDOM, SMALLEST, WORST, DropCurve
from nern.analysis.measures import UNRELATED, ClassChange

ROW = 21  # CSS pixels of a bar and what is between
MOST_ROWS = 40  # layers with a row each; more get a column each, without names
MOST_CLASSES = 24
LOST, GAINED = "right before, wrong now", "wrong before, right now"
RANKINGS = {
    WORST: ("worst reconstructed first", style.BLUE, "o"),
    SMALLEST: ("smallest first", style.ORANGE, "s"),
    RANDOM: ("at random", style.MUTED, "D"),
}


def draw_layers(width: int, names: Sequence[str], errors: Sequence[float]) -> Figure:
    """Relative error of each layer, bars."""
    axis = "relative error of the layer"
    if width != style.NARROW:
        axis += " (norm of the error / norm of the weights)"
    texts = [f"{value:.3f}" if value < 9.9995 else f"{value:.3g}" for value in errors]
    return _bars(
        width, style.plain_names(names), errors, texts, axis, ("layer, counted from the input", "relative error")
    )


def draw_bits(width: int, names: Sequence[str], bits: Sequence[float]) -> Figure:
    """Bits for each number of the predictor's tensors, bars."""
    texts, axis = [f"{value:.2f}" for value in bits], "bits for each number of the tensor"
    return _bars(width, names, bits, texts, axis, ("tensor, by number", "bits for each number"))


def _bars(
    width: int,
    names: Sequence[str],
    values: Sequence[float],
    texts: Sequence[str],
    axis: str,
    axes_of_many: tuple[str, str],
) -> Figure:
    """A bar for each name, and its value as text; `axis`: what the values are. Many have a column each, and other axes."""
    if len(names) > MOST_ROWS:
        figure = style.canvas(width, 300)
        axes = figure.subplots()
        axes.bar(range(1, len(values) + 1), values, color=style.AFTER, width=0.8)
        style.tidy(axes)
        style.label(axes, *axes_of_many)
        axes.set_xlim(0, len(values) + 1)
        return figure
    figure, narrow = style.canvas(width, ROW * len(names) + 78), width == style.NARROW
    axes = figure.subplots()
    axes.barh(range(len(names)), values, color=style.AFTER, height=0.66)
    style.tidy(axes, "x")
    style.rows_of(axes, names, narrow)
    top = max(values, default=0.0) or 1.0
    axes.set_xlim(0, top * (1.16 if narrow else 1.06))
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        style.say(axes, value + 0.008 * top, row, text)
    style.label(axes, axis)
    return figure


def draw_steps(
    width: int,
    names: Sequence[str],
    natural: Sequence[float | None],
    ordered: Sequence[float | None] | None,
    source: str = "run",
) -> Figure:
    """Mean step from kernel to kernel in each layer: as they lie, and in the order of the `source` (None: it has none)."""
    narrow, many = width == style.NARROW, len(names) > MOST_ROWS
    there = [index for index, step in enumerate(natural) if step is not None]
    figure = style.canvas(width, 330 if many else ROW * len(names) + (155 if narrow else 105))
    axes = figure.subplots()

    def turned(places: Sequence[int], steps: Sequence[Any]) -> tuple[Any, Any]:
        return ([place + 1 for place in places], steps) if many else (steps, places)

    series = {"natural order": (natural, style.BEFORE)}
    if ordered is not None:
        series[f"the {source}'s order"] = (ordered, style.AFTER)
        for index in there:
            pair = turned([index, index], [natural[index], ordered[index]])
            axes.plot(*pair, color="#cfd8e0", lw=2.4, zorder=1, solid_capstyle="round")
    for text, (steps, colour) in series.items():
        dots = turned(there, [steps[index] for index in there])
        axes.scatter(*dots, s=16 if many else 34, color=colour, lw=0, zorder=3, label=text)
    top = max([step for steps, _ in series.values() for step in steps if step is not None] + [UNRELATED]) * 1.05
    line = axes.axhline if many else axes.axvline
    line(UNRELATED, color=style.INK, lw=1, ls=style.DASHED, label="kernels without any likeness", zorder=0)
    if many:
        style.tidy(axes)
        style.label(axes, "layer, counted from the input", "mean step\n(root-mean-square kernel norms)")
        axes.set_ylim(0, top)
        axes.set_xlim(0, len(names) + 1)
    else:
        style.tidy(axes, "x")
        style.rows_of(axes, style.plain_names(names), narrow)
        between = "\n" if narrow else " "
        style.label(axes, f"mean step from kernel to kernel{between}(unit: the layer's root-mean-square kernel norm)")
        axes.set_xlim(0, top)
    style.legend(axes, 1 if narrow else 3)
    return figure


def draw_drops(width: int, curves: Sequence[DropCurve], images: int, original: float, chance: float) -> Figure:
    """Accuracy over the share of kernels dropped, a curve of each ranking.

    Args:
        width: of the figure.
        curves: one of each ranking.
        images: number of images.
        original, chance: accuracy of the original on them, and of guessing (percent).
    """
    narrow = width == style.NARROW
    figure = style.canvas(width, 400 if narrow else 420)
    axes = figure.subplots()
    for curve in curves:
        text, colour, marker = RANKINGS[curve.ranking]
        shares = [100 * share for share in curve.shares]
        if len(curve.accuracies) > 1:
            text += f" (mean and range of {len(curve.accuracies)})"
            least, most = (list(map(end, zip(*curve.accuracies, strict=True))) for end in (min, max))
            axes.fill_between(shares, least, most, color=colour, alpha=0.18, lw=0)
        axes.plot(shares, curve.means(), color=colour, marker=marker, ms=5, lw=1.8, label=text)
    axes.axhline(original, color=style.INK, lw=1, ls=style.DASHED, label="original network, nothing dropped")
    axes.axhline(chance, color=style.MUTED, lw=1, ls=style.DOTTED, label="guessing")
    style.tidy(axes)
    style.label(axes, "kernels dropped (% of all)", f"accuracy, {images:,} test images (%)")
    axes.set_xticks([100 * share for share in curves[0].shares if share != 0.02])
    axes.set_xlim(-0.8, 100 * max(curves[0].shares) + 1)
    axes.set_ylim(bottom=0)
    style.legend(axes, 1 if narrow else 3, below=True)
    return figure


def classes_shown(changes: Sequence[ClassChange]) -> list[ClassChange]:
    """All of a few classes; of many, those that change most: losses first, gains last."""
    if len(changes) <= MOST_CLASSES:
        return list(changes)
    ranked = sorted(changes, key=lambda c: c.change)
    return ranked[: MOST_CLASSES // 2] + ranked[-(MOST_CLASSES // 2) :]


def draw_classes(width: int, changes: Sequence[ClassChange], names: Sequence[str] | None) -> Figure:
    """Of each class, the shares of images that became right and wrong, and the difference."""
    shown, narrow = classes_shown(changes), width == style.NARROW
    rows = range(len(shown))
    figure = style.canvas(width, ROW * len(shown) + (150 if narrow else 110))
    axes = figure.subplots()
    gained = [100 * c.gained / c.images for c in shown]
    lost = [100 * c.lost / c.images for c in shown]
    axes.barh(rows, [-value for value in lost], color=style.ORANGE, height=0.62, label=LOST)
    axes.barh(rows, gained, color=style.BLUE, height=0.62, label=GAINED)
    text = "change of the accuracy"
    axes.scatter([c.change for c in shown], rows, s=26, color=style.INK, zorder=4, lw=0.8, ec="white", label=text)
    axes.axvline(0, color=style.INK, lw=0.9)
    style.tidy(axes, "x")
    style.rows_of(axes, [str(c.label) if names is None else names[c.label] for c in shown], narrow)
    most = max([*gained, *lost, 0.5]) * 1.12
    axes.set_xlim(-most, most)
    axes.xaxis.set_major_formatter(
        lambda value, _: f"{value:+.3g}".replace("-", "\N{MINUS SIGN}") if abs(value) > 1e-9 else "0"
    )
    long = "share of the class's images (%), and change of its accuracy (points)"
    style.label(axes, "images of the class (%), change (points)" if narrow else long, "class")
    style.legend(axes, 1 if narrow else 3, first=[LOST, GAINED])
    return figure
