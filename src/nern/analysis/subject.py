"""What a report is about, whatever it was read from: networks, and what stands in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor

from nern.analysis.trial import Trial
from nern.training.loop import History

Kernels = Float[Tensor, "filters channels height width"]
Figures = Mapping[str, Mapping[str, Mapping[str, float]]]

NO_ORIGINAL = "the original's weights are not at hand to compare with"  # why something is left out


@dataclass(frozen=True, eq=False, kw_only=True)
class Reconstructed:
    """One network and its reconstruction. All tensors are on the CPU.

    Attributes:
        name: of the network.
        layers: names of the represented weights.
        weights: the reconstructed ones, each as (filters, channels, height, width).
        original: the original's; None: they are not at hand, and whatever compares with them is left out.
        ordered: of each layer, the numbers (filter * channels + channel) of the kernels in the order in which the
            coordinates walk through them; None: the run has no ordering.
        figures: by set ('test', 'held_out') and network ('original', 'reconstructed'), what `Metrics.to_dict` gives.
        trial: the network on test images; None: see `without_images`.
        measured: by whom the figures were measured, where that is to be said; a few words.
        without_images: why there is no trial: the end of a sentence.
        class_names: of the classes; None: they have numbers only.
    """

    name: str
    layers: Sequence[str]
    weights: Sequence[Kernels]
    original: Sequence[Kernels] | None = None
    ordered: Sequence[Int[Tensor, " kernels"]] | None = None
    figures: Figures = field(default_factory=dict)
    measured: str = ""
    trial: Trial | None = None
    without_images: str = "there are none"
    class_names: Sequence[str] | None = None


@dataclass(frozen=True)
class Part:
    """Bytes of one part of what a report is about.

    Attributes:
        name: in words.
        before: bytes of the original's tensors in whose place it is; None: the original has no such part.
        after: its bytes.
        numbers: how many numbers it holds; None: that is not told.
    """

    name: str
    before: float | None
    after: float
    numbers: int | None = None


@dataclass(frozen=True)
class PackedFile:
    """A .nern file: its name, its bytes, and those of the original's tensors, for which it stands."""

    name: str
    size: int
    original: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """What a report is about.

    Attributes:
        title: of the page.
        source: what it was read from, 'run' or 'file', as the page's texts say it.
        networks: that one NeRN represents.
        represented: number of the weights that it represents.
        predictor: number of the predictor's parameters.
        sizes: where the bytes are; they add up to all there are. None: unknown.
        sizes_about: what these bytes are; a sentence or two.
        bits: of each of the predictor's tensors, by name, how many numbers it has, and the bits that hold all of them;
            empty: that is not told.
        packed: the file that it is, or that it was packed into; None: there is none.
        ordering: in a few words; empty: there is none.
        history: losses and evaluations over the steps; None: unknown.
        phases: name and last step of each phase.
        best_step: whose weights are shown; None: unknown.
        notes: sentences to begin with.
        seed: of what is drawn.
    """

    title: str
    source: str = "run"
    networks: Sequence[Reconstructed]
    represented: int
    predictor: int
    sizes: Sequence[Part] | None = None
    sizes_about: str = ""
    bits: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    packed: PackedFile | None = None
    ordering: str = ""
    history: History | None = None
    phases: Sequence[tuple[str, int]] = ()
    best_step: int | None = None
    notes: Sequence[str] = ()
    seed: int = 0
