"""Sections of a report: what each shows, in words and figures, or why it shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from nern.analysis import style
from nern.analysis.content import NO_ORIGINAL, Content, Evaluation, NetworkContent
from nern.analysis.measures import (
    RANDOM,
    SMALLEST,
    UNRELATED,
    WORST,
    class_changes,
    drop_curves,
    kernel_errors,
    mean_step,
)
from nern.analysis.plots import draw_training, last_step
from nern.evaluation import layer_errors

ROW = 21  # CSS pixels of a bar and what is between
MOST_MAPS, MOST_LAYERS, OF_EACH = 20, 4, 8  # maps; layers whose kernels are shown, and kernels at each place
MOST_CLASSES = 24
PLACES = ("best", "median", "worst")
RANKINGS = {
    WORST: ("worst reconstructed first", style.BLUE, "o"),
    SMALLEST: ("smallest first", style.ORANGE, "s"),
    RANDOM: ("at random (mean and range)", style.MUTED, "D"),
}


@dataclass(frozen=True)
class Section:
    """What came out: in words, in figures by their names, each with its caption, and the numbers behind these, for JSON."""

    lead: str
    figures: Mapping[str, tuple[Figure, str]]
    numbers: Mapping[str, Any] = field(default_factory=dict)


class LeftOutError(Exception):
    """Why a section is left out: the end of a sentence."""


def training_section(content: Content) -> Section:
    """Accuracy and losses over time."""
    history = content.history
    if history is None:
        raise LeftOutError("nothing is known of how the weights were trained")
    originals = {
        network.name: {name: pair["original"] for name, pair in network.figures.items() if "original" in pair}
        for network in content.networks
    }
    lead = f"{last_step(history):,} steps."
    if content.best_step is not None:
        lead += f" Everything below is about the checkpoint of step {content.best_step:,}."
    caption = "Dashed: the original on the same images. Losses are those before weighting."
    figure = draw_training(history, originals, content.phases, content.best_step)
    return Section(lead, {"training": (figure, caption)})


def errors_section(network: NetworkContent, content: Content) -> Section:
    """Relative errors of layers, as bars, and of kernels, as maps."""
    original = _original(network)
    found, names = layer_errors(network.layers, original, network.weights), style.plain_names(network.layers)
    layers = style.canvas(style.WIDE, ROW * len(names) + 78)
    axes = layers.subplots()
    bars = axes.barh(range(len(names)), [error.relative for error in found], height=0.66)
    axes.bar_label(bars, fmt="%.3g", padding=3, size=style.SMALL)
    axes.set_xlabel("relative error of the layer (norm of the error / norm of the weights)")
    style.rows_of(axes, names)
    about_layers = "From the input at the top to the output. 0 is exact; 1 is no better than predicting zeros."
    about_maps = (
        "Each point is a kernel, dark where it is reconstructed badly. Kernels near zero have large relative errors."
    )
    worst = max(found, key=lambda error: error.relative)
    return Section(
        f"Largest relative error of a layer: {worst.relative:.3f}, of {worst.name.removesuffix('.weight')}.",
        {
            "layers": (layers, about_layers),
            "kernels": (_maps(names, kernel_errors(original, network.weights)), about_maps),
        },
        {"layers": [vars(error) for error in found]},
    )


def _maps(names: Sequence[str], errors: Sequence[Float[Tensor, "filters channels"]]) -> Figure:
    """A map of filters and channels for each layer; of many layers some, spread over the depth. One kernel in fifty is
    beyond the colours."""
    shown = _spread_over(range(len(names)), MOST_MAPS)
    values = np.concatenate([errors[index].flatten() for index in shown])
    finite = values[np.isfinite(values)]
    top = (float(np.quantile(finite, 0.98)) if len(finite) else 0.0) or 1.0
    columns = min(len(shown), 5)
    lines = -(-len(shown) // columns)
    figure = style.canvas(style.WIDE, 190 * lines + 70)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.ravel()[len(shown) :]:
        axes.set_axis_off()
    for axes, index in zip(grid.ravel(), shown, strict=False):
        of_layer = errors[index].clamp(max=1.001 * top)  # what is beyond the scale must not blur the rest
        axes.imshow(of_layer.numpy(), cmap="Blues", vmin=0, vmax=top, aspect="auto")
        axes.set_title(names[index], size=style.SMALL)
        for axis, size in zip((axes.yaxis, axes.xaxis), of_layer.shape, strict=True):
            ends = sorted({0, size - 1})
            axis.set_ticks(ends, [str(end + 1) for end in ends])
        axes.grid(False)
    grid[0, 0].set(xlabel="channel", ylabel="filter")
    _colour_bar(figure, ScalarMappable(Normalize(0, top), "Blues"), "relative error of a kernel", extend="max")
    return figure


def order_section(network: NetworkContent, content: Content) -> Section:
    """Mean steps from kernel to kernel in each layer."""
    original = _original(network)
    natural, ordered = [mean_step(weight) for weight in original], None
    if all(step is None for step in natural):
        raise LeftOutError("no layer has two kernels to compare")
    steps = {"order of the network": natural}
    lead = "The NeRN has no ordering: its kernels stand where they stand in the network."
    if network.ordered is not None:
        ordered = [mean_step(weight, walk) for weight, walk in zip(original, network.ordered, strict=True)]
        ratios = [o / n for n, o in zip(natural, ordered, strict=True) if n and o is not None]
        steps[f"order of the NeRN ({content.ordering})"] = ordered
        mean = sum(ratios) / len(ratios) if ratios else 1.0
        lead = f"Steps from kernel to kernel are {mean:.0%} as long as in the order of the network (mean over layers)."
    figure = style.canvas(style.WIDE, ROW * len(natural) + 105)
    axes = figure.subplots()
    for (text, of_layers), colour in zip(steps.items(), (style.BEFORE, style.AFTER), strict=False):
        dots = [(step, row) for row, step in enumerate(of_layers) if step is not None]
        axes.scatter([step for step, _ in dots], [row for _, row in dots], s=34, color=colour, zorder=3, label=text)
    axes.axvline(UNRELATED, color=style.INK, lw=1, ls="--", label="kernels without any likeness")
    axes.set(xlabel="mean step from kernel to kernel (unit: the layer's root-mean-square kernel norm)")
    axes.set_xlim(left=0)
    style.rows_of(axes, style.plain_names(network.layers))
    style.legend(figure)
    caption = "Shorter steps: a smoother signal for the predictor."
    numbers = {"layers": list(network.layers), "natural": natural, "ordered": ordered}
    return Section(lead, {"smoothness": (figure, caption)}, numbers)


def importance_section(network: NetworkContent, content: Content) -> Section:
    """Accuracy over the share of kernels dropped, a curve of each ranking."""
    original, (evaluation, images) = _original(network), _evaluation(network)
    curves = drop_curves(evaluation.accuracy, original, network.weights, content.seed)
    count, accuracy = len(evaluation.labels), evaluation.accuracy()
    figure = style.canvas(style.WIDE, 420)
    axes = figure.subplots()
    for curve in curves:
        text, colour, marker = RANKINGS[curve["ranking"]]
        shares, accuracies = 100 * np.array(curve["shares"]), np.array(curve["accuracies"])
        axes.fill_between(shares, accuracies.min(0), accuracies.max(0), color=colour, alpha=0.18, lw=0)
        axes.plot(shares, accuracies.mean(0), color=colour, marker=marker, ms=5, lw=1.8, label=text)
    axes.axhline(accuracy, color=style.INK, lw=1, ls="--", label="original network, nothing dropped")
    axes.axhline(100 / evaluation.classes, color=style.MUTED, lw=1, ls=":", label="guessing")
    axes.set(xlabel="kernels dropped (% of all)", ylabel=f"accuracy, {count:,} test images (%)")
    axes.set_ylim(bottom=0)
    style.legend(figure)
    return Section(
        f"Kernels are set to zero, and nothing is trained again. Measured on {images}.",
        {"importance": (figure, "A curve that stays up drops kernels that the network does not need.")},
        {"images": count, "original": accuracy, "curves": curves},
    )


def gallery_section(network: NetworkContent, content: Content) -> Section:
    """The best, median and worst reconstructed kernels of some layers, as tiles."""
    original, weights = _original(network), network.weights
    layers = _spread_over([i for i, weight in enumerate(original) if weight[0, 0].numel() > 1], MOST_LAYERS)
    if not layers:
        raise LeftOutError("kernels of a single entry have nothing to look at")
    errors, names = kernel_errors(original, weights), style.plain_names(network.layers)
    figure = style.canvas(style.WIDE, 135 * len(layers) + 70)
    grid = figure.subplots(len(layers), len(PLACES), squeeze=False)
    colours = ScalarMappable(Normalize(-1, 1), colormaps["RdBu_r"].with_extremes(bad=style.RULE))
    for line, layer in zip(grid, layers, strict=True):
        of_layer = errors[layer].flatten()
        order = of_layer.argsort(stable=True)
        count = max(min(OF_EACH, len(order) // len(PLACES)), 1)
        middle = (len(order) - count) // 2
        parts = order[:count], order[middle : middle + count], order[-count:]
        for axes, place, chosen in zip(line, PLACES, parts, strict=True):
            picture = _tiles(original[layer], weights[layer], chosen).numpy()
            axes.imshow(picture, colours.cmap, colours.norm, interpolation="nearest")
            axes.set_anchor("NW")
            axes.set_xticks([])
            axes.set_yticks([len(picture) * share - 0.5 for share in (0.25, 0.75)], ["original", "NeRN"])
            axes.spines[:].set_visible(False)
            axes.grid(False)
            first, last = (float(of_layer[chosen[end]]) for end in (0, -1))
            axes.set_title(f"{place}: relative error {first:.2f} to {last:.2f}", size=style.SMALL)
        line[0].set_title(f"{names[layer]}\n{line[0].get_title('left')}", size=style.SMALL)
    _colour_bar(figure, colours, "weight / largest magnitude in the original kernel")
    caption = "Each tile is a kernel: the original above, the NeRN's below. Each pair has a colour scale of its own."
    return Section("The best, median and worst reconstructed kernels of some layers.", {"gallery": (figure, caption)})


def _tiles(original: Tensor, weights: Tensor, numbers: Int[Tensor, " n"]) -> Float[Tensor, "rows columns"]:
    """Kernels of a layer side by side, originals above, reconstructions below, in units of the original kernel's largest
    magnitude (of a kernel of zeros, of the reconstruction's); nan: between them."""
    pair = torch.stack([w.flatten(0, 1)[numbers].double() for w in (original, weights)])
    largest = pair.abs().amax((2, 3), keepdim=True)
    pair = (pair / torch.where(largest[0] > 0, largest[0], largest[1])).nan_to_num(0.0)
    pair = F.pad(pair, (0, 1, 0, 1), value=torch.nan)
    return pair.transpose(1, 2).flatten(2).flatten(0, 1)[:-1, :-1]


def classes_section(network: NetworkContent, content: Content) -> Section:
    """Of each class, the shares of images that became right and wrong, and the difference."""
    evaluation, images = _evaluation(network)
    before, after = evaluation.predicted(), evaluation.predicted(network.weights)
    changes = class_changes(evaluation.labels, before, after, evaluation.classes)
    gained, lost = sum(c.gained for c in changes), sum(c.lost for c in changes)
    points = signed(100 * (gained - lost) / len(evaluation.labels))
    shown = list(changes)
    if len(shown) > MOST_CLASSES:
        shown.sort(key=lambda change: change.change)
        shown = shown[: MOST_CLASSES // 2] + shown[-MOST_CLASSES // 2 :]
    rows, figure = range(len(shown)), style.canvas(style.WIDE, ROW * len(shown) + 110)
    axes = figure.subplots()
    names, broken, mended = network.class_names, "right before, wrong now", "wrong before, right now"
    axes.barh(rows, [-100 * c.lost / c.images for c in shown], color=style.ORANGE, label=broken)
    axes.barh(rows, [100 * c.gained / c.images for c in shown], color=style.BLUE, label=mended)
    axes.scatter([c.change for c in shown], rows, color=style.INK, ec="white", zorder=4, label="change of the accuracy")
    axes.axvline(0, color=style.INK, lw=0.9)
    style.rows_of(axes, [str(c.label) if names is None else names[c.label] for c in shown])
    axes.set(xlabel="share of the class's images (%), and change of its accuracy (points)", ylabel="class")
    style.legend(figure)
    return Section(
        f"Of {images} {lost:,} became wrong and {gained:,} became right: {points} points of accuracy.",
        {"classes": (figure, "Of many classes those that change most.")},
        {"classes": [vars(change) for change in changes]},
    )


OF_NETWORK: dict[str, tuple[str, Callable[[NetworkContent, Content], Section]]] = {
    "errors": ("Where the reconstruction errs", errors_section),
    "smoothness": ("How smooth the order makes the kernels", order_section),
    "importance": ("Which kernels matter", importance_section),
    "gallery": ("Kernels, original and reconstructed", gallery_section),
    "classes": ("What changes for each class", classes_section),
}


def signed(value: float) -> str:
    """A number with its sign, as print has it."""
    return f"{value:+,.2f}".replace("-", "\N{MINUS SIGN}")


def _original(network: NetworkContent) -> Sequence[Tensor]:
    if network.original is None:
        raise LeftOutError(NO_ORIGINAL)
    return network.original


def _evaluation(network: NetworkContent) -> tuple[Evaluation, str]:
    """The network on test images, and which these are, in words."""
    if isinstance(network.evaluation, str):
        raise LeftOutError(network.evaluation)
    count = len(network.evaluation.labels)
    in_all = int(network.figures.get("test", {}).get("reconstructed", {}).get("images", count))
    return network.evaluation, f"{count:,} test images" + (f" (drawn from {in_all:,})" if count < in_all else "")


def _spread_over(candidates: Sequence[int], count: int) -> list[int]:
    """At most `count` (two or more) of the candidates, the first, the last and others evenly between."""
    if len(candidates) <= count:
        return list(candidates)
    return [candidates[round(place * (len(candidates) - 1) / (count - 1))] for place in range(count)]


def _colour_bar(figure: Figure, colours: ScalarMappable, text: str, extend: str = "neither") -> None:
    """A colour scale below all axes."""
    bar = figure.colorbar(colours, ax=figure.axes, location="bottom", shrink=0.4, aspect=30, extend=extend)
    bar.set_label(text)
