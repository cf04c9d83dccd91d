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

NO_TERMS = ("step", "lr", "total", "phase")  # what records of losses hold besides
SETS = {"test": "test images", "held_out": "held-out training images"}
MOST_NAMES = 24  # layers with their names in the picture of a run


@style.styled
def plot_run(
    path: str | Path,
    title: str,
    history: History,
    errors: Sequence[LayerError] = (),
    originals: Mapping[str, Sets] | None = None,
) -> None:
    """Write the picture (PNG) of a run: see `draw_training`."""
    figure = draw_training(history, originals or {}, errors=errors)
    figure.suptitle(title)
    style.write_png(path, figure)


def draw_training(
    history: History,
    originals: Mapping[str, Sets],
    phases: Sequence[tuple[str, int]] = (),
    best_step: int | None = None,
    errors: Sequence[LayerError] = (),
) -> Figure:
    """Accuracy and losses over the steps.

    Args:
        history: of the run.
        originals: metrics of the original networks by name and set; drawn where they are of as many images as the curves.
        phases: name and last step of each.
        best_step: to be marked.
        errors: of each layer of the final predictor, drawn beside; none (of an original network): nothing is.
    """
    figure = style.canvas(1400 if errors else style.WIDE, 420)
    shares, losses, *beside = figure.subplots(1, 3 if errors else 2)
    _draw_shares(shares, history.evaluations, originals)
    _draw_losses(losses, history.losses)
    if best_step is not None:
        shares.axvline(best_step, color=style.INK, lw=0.9, ls=":", label="checkpoint shown here")
    starts = [0, *(end for _, end in phases)]
    for axes in (shares, losses):
        axes.set(xlabel="training step", xlim=(0, last_step(history) * 1.01))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        for (name, _), start in zip(phases if len(phases) > 1 else (), starts, strict=False):
            axes.axvline(start, color=style.MUTED, lw=0.6)
            place = axes.get_xaxis_transform()
            axes.text(start, 1, name, transform=place, rotation=90, va="top", color=style.MUTED, size=style.SMALL)
    for axes in beside:
        axes.set(title="Reconstruction error of each layer", ylabel="error norm / weight norm")
        axes.bar(range(len(errors)), [error.relative for error in errors])
        if len(errors) <= MOST_NAMES:
            names = style.plain_names([error.name for error in errors])
            axes.set_xticks(range(len(errors)), names, rotation=90)
    style.legend(figure, 4)
    return figure


def last_step(history: History) -> int:
    """The last step that something was measured at, at least 1."""
    return max([record["step"] for record in [*history.losses, *history.evaluations]] + [1])


def _draw_losses(axes: Any, records: Records) -> None:
    numbers = [name for record in records for name, value in record.items() if isinstance(value, float)]
    for name in dict.fromkeys(name for name in numbers if name not in NO_TERMS):
        points = [(record["step"], record[name]) for record in records if record.get(name, 0) > 0]
        if points:
            axes.plot(*zip(*points, strict=True), lw=1.3, label=f"loss: {name.replace('_', ' ')}")
    if axes.lines:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set(title="Losses", ylabel="loss, unweighted")


def _draw_shares(axes: Any, records: Records, originals: Mapping[str, Sets]) -> None:
    """Curves of accuracies, of agreements where no image has a label. Dashed: the original's on the same images. Of several
    networks a curve each for test images, and the mean of those held out."""
    networks = next((list(record["networks"]) for record in records if "networks" in record), [])
    curves: list[tuple[str, str, list[Any], Sets]] = []  # what it is, the set, evaluations, the original's metrics
    for name in networks:
        points = [(record["step"], record["networks"][name]) for record in records if "networks" in record]
        curves.append((f"{name}, {SETS['test']}", "test", points, originals.get(name, {})))
    means, only = [(record["step"], record) for record in records], next(iter(originals.values()), {})
    if networks:
        curves.append((f"{SETS['held_out']}, mean", "held_out", means, {}))
    else:
        curves += [(text, of_set, means, only) for of_set, text in SETS.items()]
    labelled = any("top1" in of.get(of_set, {}) for _, of_set, points, _ in curves for _, of in points)
    key, what = ("top1", "Accuracy") if labelled else ("agreement", "Agreement")
    for text, of_set, points, original in curves:
        found = [(step, of[of_set]) for step, of in points if key in of.get(of_set, {})]
        if not found:
            continue
        (line,) = axes.plot([step for step, _ in found], [of[key] for _, of in found], marker="o", ms=3.5, label=text)
        before = original.get(of_set, {})
        if labelled and key in before and before.get("images") == found[-1][1].get("images"):
            axes.axhline(before[key], color=line.get_color(), lw=1, ls="--", label=f"original, {text}")
    axes.set(title=what, ylabel=f"{what.lower()} (%)")
    axes.set_visible(bool(axes.lines))
