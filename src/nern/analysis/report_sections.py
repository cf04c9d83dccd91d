"""Sections of a report: what each shows of a subject, in words and figures, or why it shows nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from nern.analysis.canvas import NARROW, WIDE, plain_names, png
from nern.analysis.class_changes import class_changes
from nern.analysis.gallery import shelves
from nern.analysis.importance import RANDOM, SMALLEST, WORST, DropCurve, drop_curves
from nern.analysis.kernel_errors import kernel_errors
from nern.analysis.kernel_plots import draw_gallery, draw_maps, maps_shown
from nern.analysis.report_plots import (
    MOST_CLASSES,
    MOST_ROWS,
    SETS,
    draw_bits,
    draw_classes,
    draw_drops,
    draw_layers,
    draw_steps,
    draw_training,
    has_shares,
)
from nern.analysis.smoothness import mean_steps
from nern.analysis.subject import NO_ORIGINAL, Reconstructed, Subject
from nern.evaluation import layer_errors

TELLING_DROP = 0.2  # share of the kernels that the words below the curves speak of


@dataclass(frozen=True)
class Picture:
    """A figure as PNG files, one for screens and one for phones; `alt` says in words what it shows. Texts are plain."""

    slug: str
    alt: str
    caption: str
    wide: bytes
    narrow: bytes


@dataclass(frozen=True)
class Section:
    """A heading with figures below, or with the reason (the end of a sentence) why there are none. Texts are plain.

    Attributes:
        slug: its name in links and files.
        heading, lead: what it is about, and what came out.
        pictures: in their order.
        missing: why there are none; empty: nothing is missing.
        numbers: behind the figures, for JSON.
    """

    slug: str
    heading: str
    lead: str = ""
    pictures: Sequence[Picture] = ()
    missing: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)


def picture(slug: str, alt: str, caption: str, draw: Callable[[int], Figure]) -> Picture:
    """A figure, drawn for both widths."""
    return Picture(slug, alt, caption, png(draw(WIDE)), png(draw(NARROW)))


def training_section(subject: Subject) -> Section:
    """Accuracy and losses over time."""
    slug, heading, history = "training", "Training", subject.history
    if history is None or not (has_shares(history) or history.losses):
        return Section(slug, heading, missing="nothing is known of how the weights were trained")
    originals = {
        network.name: {of_set: pair["original"] for of_set, pair in network.figures.items() if "original" in pair}
        for network in subject.networks
    }
    draw = partial(
        draw_training,
        history=history,
        originals=originals,
        phases=subject.phases,
        best_step=subject.best_step,
    )
    last = max(r["step"] for r in [*history.evaluations, *history.losses])
    lead = f"{last:,} steps"
    if len(subject.phases) > 1:
        lead += " in " + words([f"a phase of {name}" for name, _ in subject.phases])
    if subject.best_step is not None:
        lead += f"; everything below is about the checkpoint of step {subject.best_step:,}"
    left = "Left (above on a phone): share of images that the reconstructed network gets right."
    right = "Right (below): each term of the loss before it is weighted, on a logarithmic scale."
    caption = "Each term of the loss before it is weighted, on a logarithmic scale; the run looked at no images."
    if has_shares(history):
        labelled = any("top1" in record.get(name, {}) for record in history.evaluations for name in SETS)
        left = left if labelled else left.replace("gets right", "classifies as the original does")
        dashed = " Dashed: the original on the same images." if labelled and any(originals.values()) else ""
        caption = f"{left}{dashed} {right}"
    return Section(
        slug, heading, lead + ".", [picture(slug, "accuracy and losses over the training steps", caption, draw)]
    )


def predictor_section(subject: Subject) -> Section:
    """Bits in which each of the predictor's tensors is held."""
    slug, heading, bits = "predictor", "How the predictor is held", subject.bits
    numbers, total = (sum(of) for of in zip(*bits.values(), strict=True))
    each = {name: held / count if count else 0.0 for name, (count, held) in bits.items()}
    lead = f"{numbers:,} numbers in {total / numbers if numbers else 0.0:.2f} bits each, on average."
    caption = (
        "Each bar is one of the predictor's tensors, and how many bits the file spends on each of its numbers: fewer where "
        "rounding does little to the network's outputs. The code is counted in whole words of 32 bits."
    )
    draw = partial(draw_bits, names=list(each), bits=list(each.values()))
    shown = picture(slug, f"bits for each number of the predictor's {len(bits)} tensors", caption, draw)
    tensors = [{"name": name, "numbers": count, "bits": held} for name, (count, held) in bits.items()]
    return Section(slug, heading, lead, [shown], numbers={"tensors": tensors})


def error_section(network: Reconstructed, prefix: str = "") -> Section:
    """Errors of layers and of kernels."""
    slug, heading = f"{prefix}errors", "Where the reconstruction errs"
    if network.original is None:
        return Section(slug, heading, missing=NO_ORIGINAL)
    found = layer_errors(network.layers, network.original, network.weights)
    relative = [error.relative for error in found]
    order = sorted(found, key=lambda e: e.relative or 0.0)
    best, worst = order[0], order[-1]
    name = {error.name: plain for error, plain in zip(found, plain_names(network.layers), strict=True)}
    lead = f"Least exactly reconstructed: {name[worst.name]}, relative error {worst.relative or 0.0:.3f}."
    lead += f" Most exactly: {name[best.name]}, {best.relative or 0.0:.3f}." if len(found) > 1 else ""
    layers = picture(
        f"{prefix}layers",
        f"relative error of each of the {len(found)} layers",
        "Each bar is one layer"
        + (
            " (from the input on the left to the output)"
            if len(found) > MOST_ROWS
            else ", from the input at the top to the output"
        )
        + "; 0 is exact, 1 is no better than predicting zeros.",
        partial(draw_layers, names=network.layers, errors=relative),
    )
    errors = kernel_errors(network.original, network.weights)
    shown = maps_shown(errors)
    which = (
        f"{len(shown)} of the {len(errors)} layers, spread over the depth: each" if len(shown) < len(errors) else "Each"
    )
    maps = picture(
        f"{prefix}kernels",
        "relative error of each kernel, as maps of filters and channels",
        f"{which} map has a row for every filter and a column for every input channel, so that one point is one kernel, "
        "dark where it is reconstructed badly; lines that are dark throughout are mostly filters or channels of weights "
        "near zero, beside which any error is large.",
        partial(draw_maps, names=[network.layers[i] for i in shown], errors=[errors[i] for i in shown]),
    )
    return Section(slug, heading, lead, [layers, maps], numbers={"layers": [vars(error) for error in found]})


def order_section(network: Reconstructed, subject: Subject, prefix: str = "") -> Section:
    """How alike consecutive kernels of one of the subject's networks are."""
    slug, heading = f"{prefix}smoothness", "How smooth the order makes the kernels"
    if network.original is None:
        return Section(slug, heading, missing=NO_ORIGINAL)
    natural = mean_steps(network.original)
    ordered = None if network.ordered is None else mean_steps(network.original, network.ordered)
    if all(step is None for step in natural):
        return Section(slug, heading, missing="no layer has two kernels to compare")
    if ordered is None:
        lead = f"The {subject.source} has no ordering: its kernels stand where they stand in the network."
    else:
        ratios = [o / n for n, o in zip(natural, ordered, strict=True) if n and o is not None]
        change = 100 * (sum(ratios) / len(ratios) - 1) if ratios else 0.0
        how = f"{abs(change):.0f} % {'shorter' if change < 0 else 'longer'}"
        lead = (
            f"Along the {subject.source}'s order a step from kernel to kernel is {how} than in the natural order (mean over "
            "layers)."
        )
    caption = (
        "How far it is from one kernel to the next: the shorter the steps, the smoother the signal that the predictor has "
        "to learn; the dashed line is where kernels that have nothing in common would be."
    ) + (f" The {subject.source}'s order: {subject.ordering}." if subject.ordering else "")
    draw = partial(draw_steps, names=network.layers, natural=natural, ordered=ordered, source=subject.source)
    shown = picture(slug, "mean distance of consecutive kernels in each layer", caption, draw)
    numbers = {"layers": list(network.layers), "natural": natural, "ordered": ordered}
    return Section(slug, heading, lead, [shown], numbers=numbers)


def importance_section(
    network: Reconstructed, seed: int, prefix: str = "", on_step: Callable[[], None] | None = None
) -> Section:
    """Accuracy when kernels are dropped. `on_step` is called after each measurement."""
    slug, heading = f"{prefix}importance", "Which kernels matter"
    if network.original is None or network.trial is None:
        return Section(slug, heading, missing=NO_ORIGINAL if network.original is None else network.without_images)
    trial = network.trial

    def accuracy(weights: Sequence[Tensor]) -> float:
        found = trial.metrics(weights).top1
        assert found is not None
        if on_step is not None:
            on_step()
        return found

    curves = drop_curves(accuracy, network.original, network.weights, seed)
    original = trial.metrics().top1
    assert original is not None
    draw = partial(draw_drops, curves=curves, images=len(trial.labels), original=original, chance=100 / trial.classes)
    caption = (
        f"Measured on {_images_text(network)}. "
        "Kernels of the reconstructed network are set to zero, more and more of them, and nothing is trained again: the "
        "longer a curve stays up, the less the kernels that it drops first are needed."
    )
    shown = picture(slug, "accuracy over the share of kernels dropped", caption, draw)
    numbers = {"images": len(trial.labels), "original": original, "curves": [vars(curve) for curve in curves]}
    return Section(slug, heading, _told(curves), [shown], numbers=numbers)


def _told(curves: Sequence[DropCurve]) -> str:
    at = {curve.ranking: dict(zip(curve.shares, curve.means(), strict=True)) for curve in curves}
    if not all(TELLING_DROP in of for of in at.values()):
        return ""
    figures = {name: f"{of[TELLING_DROP]:.1f} %" for name, of in at.items()}
    return (
        f"Without the {TELLING_DROP:.0%} of kernels".replace("%", " %")
        + f" that are reconstructed worst the network is right on {figures[WORST]} of the images, without as many of the "
        f"smallest on {figures[SMALLEST]}, without as many at random on {figures[RANDOM]}."
    )


def gallery_section(network: Reconstructed, prefix: str = "") -> Section:
    """Kernels side by side."""
    slug, heading = f"{prefix}gallery", "Kernels, original and reconstructed"
    if network.original is None:
        return Section(slug, heading, missing=NO_ORIGINAL)
    shown = shelves(network.original, network.weights)
    if not shown:
        return Section(slug, heading, missing="kernels of a single entry have nothing to look at")
    draw = partial(
        draw_gallery, names=network.layers, original=network.original, weights=network.weights, shelves=shown
    )
    layers = "a layer" if len(shown) == 1 else f"{len(shown)} layers"
    lead = f"The kernels of {layers} that came out best, in the middle, and worst."
    caption = (
        "Each tile is a kernel, the original above and what the NeRN makes of it below, with a colour scale of its own for "
        "each pair (deepest where a reconstruction is larger still): look for the same pattern in both."
    )
    return Section(slug, heading, lead, [picture(slug, "kernels and their reconstructions as tiles", caption, draw)])


def class_section(network: Reconstructed, prefix: str = "") -> Section:
    """Change of accuracy of each class."""
    slug, heading = f"{prefix}classes", "What changes for each class"
    if network.trial is None:
        return Section(slug, heading, missing=network.without_images)
    trial = network.trial
    changes = class_changes(trial.labels, trial.predicted(), trial.predicted(network.weights), trial.classes)
    gained, lost, count = sum(c.gained for c in changes), sum(c.lost for c in changes), len(trial.labels)
    lead = (
        f"Of {_images_text(network)} {lost:,} became wrong and {gained:,} became right: "
        f"{signed(100 * (gained - lost) / count, 2)} points of accuracy."
    )
    most = f"The {MOST_CLASSES} classes that change most: shares" if len(changes) > MOST_CLASSES else "Shares"
    caption = (
        f"{most} of a class's images that the reconstruction breaks (left) or mends (right), and the dot is the change of "
        "the class's accuracy; where both bars are alike, images change sides and the class as a whole does not suffer."
    )
    draw = partial(draw_classes, changes=changes, names=network.class_names)
    shown = picture(slug, "images gained and lost in each class", caption, draw)
    return Section(slug, heading, lead, [shown], numbers={"classes": [vars(change) for change in changes]})


def _images_text(network: Reconstructed) -> str:
    """Which images the network is tried on."""
    assert network.trial is not None
    count = len(network.trial.labels)
    all_ = int(network.figures.get("test", {}).get("reconstructed", {}).get("images", count))
    return f"{count:,} test images" + (f" (drawn from {all_:,})" if count < all_ else "")


def signed(value: float, digits: int) -> str:
    """A number with its sign, as print has it."""
    text = f"{value:+,.{digits}f}"
    return f"±{0:.{digits}f}" if float(text.replace(",", "")) == 0 else text.replace("-", "\N{MINUS SIGN}")


def words(items: Sequence[str]) -> str:
    """A list in words: a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
