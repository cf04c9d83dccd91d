"""Sections of a report: what each shows, in words and figures, or why it shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from nern.analysis.content import NO_ORIGINAL, Content, Evaluation, NetworkContent
from nern.analysis.dropping import RANDOM, SMALLEST, WORST, drop_curves
from nern.analysis.figures import (
    MOST_CLASSES,
    MOST_ROWS,
    draw_bits,
    draw_classes,
    draw_drops,
    draw_layers,
    draw_steps,
)  # fmt: skip
from nern.analysis.kernel_figures import draw_gallery, draw_maps, maps_shown, shelves
from nern.analysis.measures import class_changes, kernel_errors, mean_step
from nern.analysis.plots import SETS, draw_training, has_shares, last_step
from nern.analysis.style import plain_names
from nern.evaluation import layer_errors

TELLING_DROP = 0.2  # share of the kernels that the words above the curves speak of


@dataclass(frozen=True)
class Picture:
    """A figure: its name, what it shows in a few words, its caption, and how it is drawn so many CSS pixels wide."""

    slug: str
    alt: str
    caption: str
    draw: Callable[[int], Figure]


@dataclass(frozen=True)
class Section:
    """What came out, in words and in figures, and the numbers behind these, for JSON. Texts are plain."""

    lead: str
    pictures: Sequence[Picture]
    numbers: Mapping[str, Any] = field(default_factory=dict)


class LeftOutError(Exception):
    """Why a section is left out: the end of a sentence."""


def predictor_section(content: Content) -> Section:
    """Bits in which each of the predictor's tensors is held."""
    bits = content.bits
    numbers, total = (sum(of) for of in zip(*bits.values(), strict=True))
    each = [held / count if count else 0.0 for count, held in bits.values()]
    caption = (
        "Each bar is one of the predictor's tensors, and how many bits the file spends on each of its numbers: fewer where "
        "rounding does little to the network's outputs. The code is counted in whole words of 32 bits."
    )
    alt = f"bits for each number of the predictor's {len(bits)} tensors"
    return Section(
        f"{numbers:,} numbers in {total / numbers if numbers else 0.0:.2f} bits each, on average.",
        [Picture("predictor", alt, caption, partial(draw_bits, names=list(bits), bits=each))],
        {"tensors": [{"name": name, "numbers": count, "bits": held} for name, (count, held) in bits.items()]},
    )


def training_section(content: Content) -> Section:
    """Accuracy and losses over time."""
    history, phases = content.history, content.phases
    if history is None or not (has_shares(history) or history.losses):
        raise LeftOutError("nothing is known of how the weights were trained")
    originals = {
        network.name: {of_set: pair["original"] for of_set, pair in network.figures.items() if "original" in pair}
        for network in content.networks
    }
    lead = f"{last_step(history):,} steps"
    if len(phases) > 1:
        lead += " in " + words([f"a phase of {name}" for name, _ in phases])
    if content.best_step is not None:
        lead += f"; everything below is about the checkpoint of step {content.best_step:,}"
    losses = "each term of the loss before it is weighted, on a logarithmic scale"
    caption = f"E{losses[1:]}; the run looked at no images."
    if has_shares(history):
        labelled = any("top1" in record.get(name, {}) for record in history.evaluations for name in SETS)
        what = "gets right" if labelled else "classifies as the original does"
        caption = f"Left (above on a phone): share of images that the reconstructed network {what}."
        if labelled and any(originals.values()):
            caption += " Dashed: the original on the same images."
        caption += f" Right (below): {losses}."
    draw = partial(draw_training, history=history, originals=originals, phases=phases, best_step=content.best_step)
    return Section(f"{lead}.", [Picture("training", "accuracy and losses over the training steps", caption, draw)])


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


def _errors(network: NetworkContent, content: Content) -> Section:
    original = _original(network)
    found, names = layer_errors(network.layers, original, network.weights), plain_names(network.layers)
    ranked = sorted(zip(names, found, strict=True), key=lambda pair: pair[1].relative)
    lead = f"Least exactly reconstructed: {ranked[-1][0]}, relative error {ranked[-1][1].relative:.3f}."
    if len(found) > 1:
        lead += f" Most exactly: {ranked[0][0]}, {ranked[0][1].relative:.3f}."
    order = "from the input at the top to the output"
    order = f" ({order.replace('at the top', 'on the left')})" if len(found) > MOST_ROWS else f", {order}"
    layers = Picture(
        "layers",
        f"relative error of each of the {len(found)} layers",
        f"Each bar is one layer{order}; 0 is exact, 1 is no better than predicting zeros.",
        partial(draw_layers, names=network.layers, errors=[error.relative for error in found]),
    )
    errors = kernel_errors(original, network.weights)
    shown = maps_shown(errors)
    some = len(shown) < len(errors)
    which = f"{len(shown)} of the {len(errors)} layers, spread over the depth: each" if some else "Each"
    maps = Picture(
        "kernels",
        "relative error of each kernel, as maps of filters and channels",
        f"{which} map has a row for every filter and a column for every input channel, so that one point is one kernel, "
        "dark where it is reconstructed badly; lines that are dark throughout are mostly filters or channels of weights "
        "near zero, beside which any error is large.",
        partial(draw_maps, names=[network.layers[i] for i in shown], errors=[errors[i] for i in shown]),
    )
    return Section(lead, [layers, maps], {"layers": [vars(error) for error in found]})


def _order(network: NetworkContent, content: Content) -> Section:
    original, this = _original(network), content.source
    natural, ordered = [mean_step(weight) for weight in original], None
    if all(step is None for step in natural):
        raise LeftOutError("no layer has two kernels to compare")
    lead = f"The {this} has no ordering: its kernels stand where they stand in the network."
    if network.ordered is not None:
        ordered = [mean_step(weight, walk) for weight, walk in zip(original, network.ordered, strict=True)]
        ratios = [o / n for n, o in zip(natural, ordered, strict=True) if n and o is not None]
        change = 100 * (sum(ratios) / len(ratios) - 1) if ratios else 0.0
        how = f"{abs(change):.0f} % {'shorter' if change < 0 else 'longer'}"
        step = "a step from kernel to kernel"
        lead = f"Along the {this}'s order {step} is {how} than in the natural order (mean over layers)."
    caption = (
        "How far it is from one kernel to the next: the shorter the steps, the smoother the signal that the predictor has "
        "to learn; the dashed line is where kernels that have nothing in common would be."
    ) + (f" The {this}'s order: {content.ordering}." if content.ordering else "")
    draw = partial(draw_steps, names=network.layers, natural=natural, ordered=ordered, source=this)
    picture = Picture("smoothness", "mean distance of consecutive kernels in each layer", caption, draw)
    return Section(lead, [picture], {"layers": list(network.layers), "natural": natural, "ordered": ordered})


def _importance(network: NetworkContent, content: Content) -> Section:
    original, (evaluation, images) = _original(network), _evaluation(network)
    curves = drop_curves(evaluation.accuracy, original, network.weights, content.seed)
    count, accuracy = len(evaluation.labels), evaluation.accuracy()
    at = {curve.ranking: dict(zip(curve.shares, curve.means(), strict=True)) for curve in curves}
    lead = ""
    if all(TELLING_DROP in of for of in at.values()):
        shares = {name: f"{of[TELLING_DROP]:.1f} %" for name, of in at.items()}
        lead = (
            f"Without the {100 * TELLING_DROP:.0f} % of kernels that are reconstructed worst the network is right on "
            f"{shares[WORST]} of the images, without as many of the smallest on {shares[SMALLEST]}, without as many at "
            f"random on {shares[RANDOM]}."
        )
    caption = (
        f"Measured on {images}. Kernels of the reconstructed network are set to zero, more and more of them, and nothing is "
        "trained again: the longer a curve stays up, the less the kernels that it drops first are needed."
    )
    draw = partial(draw_drops, curves=curves, images=count, original=accuracy, chance=100 / evaluation.classes)
    picture = Picture("importance", "accuracy over the share of kernels dropped", caption, draw)
    return Section(
        lead, [picture], {"images": count, "original": accuracy, "curves": [vars(curve) for curve in curves]}
    )


def _gallery(network: NetworkContent, content: Content) -> Section:
    original = _original(network)
    shown = shelves(original, network.weights)
    if not shown:
        raise LeftOutError("kernels of a single entry have nothing to look at")
    layers = "a layer" if len(shown) == 1 else f"{len(shown)} layers"
    caption = (
        "Each tile is a kernel, the original above and what the NeRN makes of it below, with a colour scale of its own for "
        "each pair (deepest where a reconstruction is larger still): look for the same pattern in both."
    )
    draw = partial(draw_gallery, names=network.layers, original=original, weights=network.weights, shown=shown)
    picture = Picture("gallery", "kernels and their reconstructions as tiles", caption, draw)
    return Section(f"The kernels of {layers} that came out best, in the middle, and worst.", [picture])


def _classes(network: NetworkContent, content: Content) -> Section:
    evaluation, images = _evaluation(network)
    before, after = evaluation.predicted(), evaluation.predicted(network.weights)
    changes = class_changes(evaluation.labels, before, after, evaluation.classes)
    gained, lost = sum(c.gained for c in changes), sum(c.lost for c in changes)
    points = signed(100 * (gained - lost) / len(evaluation.labels), 2)
    most = f"The {MOST_CLASSES} classes that change most: shares" if len(changes) > MOST_CLASSES else "Shares"
    caption = (
        f"{most} of a class's images that the reconstruction breaks (left) or mends (right), and the dot is the change of "
        "the class's accuracy; where both bars are alike, images change sides and the class as a whole does not suffer."
    )
    draw = partial(draw_classes, changes=changes, names=network.class_names)
    return Section(
        f"Of {images} {lost:,} became wrong and {gained:,} became right: {points} points of accuracy.",
        [Picture("classes", "images gained and lost in each class", caption, draw)],
        {"classes": [vars(change) for change in changes]},
    )


OF_NETWORK: dict[str, tuple[str, Callable[[NetworkContent, Content], Section]]] = {
    "errors": ("Where the reconstruction errs", _errors),
    "smoothness": ("How smooth the order makes the kernels", _order),
    "importance": ("Which kernels matter", _importance),
    "gallery": ("Kernels, original and reconstructed", _gallery),
    "classes": ("What changes for each class", _classes),
}


def signed(value: float, digits: int) -> str:
    """A number with its sign, as print has it."""
    text = f"{value:+,.{digits}f}"
    return f"±{0:.{digits}f}" if float(text.replace(",", "")) == 0 else text.replace("-", "\N{MINUS SIGN}")


def words(items: Sequence[str]) -> str:
    """A list in words: a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
