"""Write a network into one file without training: its weights as codes, rounded on some images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from nern.artifact import Artifact, Holding, NetworkParts, encoded, probed, size_of
from nern.artifact.container import codes_section
from nern.artifact.tensors import Coded
from nern.calibration import Calibrated, calibrate
from nern.calibration.network import measured, usual_quality
from nern.calibration.search import nearest_below
from nern.config import NernConfig, TaskConfig
from nern.console import PLAIN
from nern.errors import NernError
from nern.evaluation import layer_errors
from nern.experiment import kernel_table
from nern.inputs import Images, call, first_of, joined, samples_within
from nern.jobs.parts import network_parts
from nern.objectives.curvature import shapes_taken
from nern.ordering.order import Ordering
from nern.originals.base import Original
from nern.originals.checked import copy_of
from nern.randomness import generator
from nern.registry import RANDOM_IMAGES
from nern.representation.codes import BASIS_STEP, UNIT_STEP
from nern.representation.nern import NeRN, build_nern
from nern.tasks.base import DataSettings, build_task
from nern.tasks.own import Forward, OwnData, described
from nern.tasks.streams import first_images
from nern.terminal import shows_bars

IMAGES = 1024  # that a network is calibrated on, unless fewer fill MOST_NUMBERS
MOST_NUMBERS = 2**24  # of all images together
MOST_ENTRIES = 4096  # of a kernel; larger ones are none, and are held in 16 bits
FEW = 8  # the first passes of a search take so many times fewer images
NEAR = 0.99  # of the bytes that were asked for, that the file has at least
PASSES = 6  # with all images, of a search
DRAWN = 32  # made-up images at a time
KIND = "scenes"  # of made-up images


@dataclass(frozen=True)
class Wanted:
    """What a file should be like: at most so many bytes, so many bits a weight, or so many points of agreement lost. All
    None: near the original."""

    size: int | None = None
    bits: float | None = None
    gap: float | None = None


def coded_original(network: nn.Module) -> Original:
    """A frozen copy of a network, all of whose matrices and kernels (of at most 4,096 entries) are to be coded.

    Raises:
        NernError: see `Original`; it has none.
    """
    copied = copy_of(network)
    names = [
        name
        for name, p in copied.named_parameters()
        if p.dim() > 1 and p.is_floating_point() and p.numel() and p[0, 0].numel() <= MOST_ENTRIES
    ]
    if not names:
        raise NernError(f"{type(network).__name__} has no parameters of two or more axes: there is nothing to code")
    return Original(copied, names=names)


def calibration_images(
    original: Original,
    task: TaskConfig | None,
    count: int,
    seed: int,
    given: Any = None,
    forward: Forward | None = None,
) -> Images | None:
    """Images on which a network is calibrated: those given, of a task's training set, or made-up ones.

    Args:
        original: the network.
        task: None: made-up images are taken.
        count: how many at most; 0: none.
        seed: of their order.
        given: a tensor of them; or a DataLoader, a Dataset, or batches of nested tensors, whose first samples are taken.
        forward: (network, batch) -> outputs, in place of the usual call.

    Raises:
        NernError: the task's images cannot be had, or those given do not fit the network; nothing is known of the images
            that it takes.
    """
    if count == 0:
        return None
    if given is not None and (forward is not None or not isinstance(given, Tensor)):
        own = OwnData(original.network, forward, original.weights[0].device, DRAWN, seed)
        samples = own.task(None, given)[0].test
        assert samples is not None
        images = joined(first_of((batch for batch, _ in samples.batches(DRAWN)), count))
    elif given is not None:
        images = given[:count]
    elif task is not None:
        images = _of_task(original, task, count, seed)
    else:
        shape = next(shapes_taken(original), None)
        if shape is None:
            raise NernError(
                f"nothing is known of the images that {original.name} takes; give some (--task.task_name, in Python "
                "`images`), or none (--images 0)"
            )
        rng = generator(seed, "calibration images")
        images = torch.empty(min(count, samples_within(MOST_NUMBERS, torch.empty(1, *shape))), *shape)
        for part in images.split(DRAWN):  # drawing needs several times what it gives
            if len(shape) == 3:
                part.copy_(
                    RANDOM_IMAGES[KIND](shape, TaskConfig(), seed, torch.device("cpu"), original)(len(part), rng)
                )
            else:
                part.normal_(generator=rng)
    if not len(images):
        raise NernError("there are no calibration images; give some, or say --images 0")
    try:
        with torch.no_grad():
            call(original.network, images[:1])
    except (RuntimeError, ValueError, TypeError) as error:
        raise NernError(
            f"the calibration images, {described(getattr(images[:1], 'batch', images[:1]))}, do not fit {original.name}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    return images[: samples_within(MOST_NUMBERS, images)]


def _of_task(original: Original, task: TaskConfig, count: int, seed: int) -> Images:
    """Training images of a task: as they are, and where the tenth that is set aside is too few, augmented ones."""
    settings = DataSettings(
        batch_size=256, eval_batch_size=256, num_workers=0, seed=seed, held_out_images=count, test_images=0
    )
    built = build_task(task, settings, torch.device("cpu"), original=original)
    assert built.train is not None
    held_out = [] if built.held_out is None else built.held_out.batches(256)
    parts = [images for images, _ in held_out]
    if (left := count - sum(map(len, parts))) > 0:
        parts.append(joined(first_images(built.train, left)))
    return joined(parts)[:count]


def coded_sections(
    original: Original,
    nern: NeRN,
    config: NernConfig,
    parts: NetworkParts,
    steps: Mapping[str, int],
    metadata: Mapping[str, str] | None,
) -> dict[str, bytes]:
    """The sections of a file of codes, but for its probes.

    Args:
        original: the network.
        nern: with the codes, which are rounded to whole multiples.
        config: that it was built by.
        parts: what the file says of the network, and has beside the codes; parameters that have no step are held in 16
            bits, buffers as they are.
        steps: of parameters, the number of their step.
        metadata: text by name.
    """
    predictor: Any = nern.predictor
    held: dict[str, Any] = {f"codes.{n}": Coded(UNIT_STEP) for n in range(len(predictor.codes))}
    held |= {f"bases.{n}": BASIS_STEP for n in range(len(predictor.bases))}
    parameters = dict(original.network.named_parameters(remove_duplicate=False))
    of_kept: dict[str, Any] = {name: "f16" if name in parameters else "as" for name in parts.kept}
    weights = (nern.weight(predictor.kernels(n), n) for n in range(len(predictor.codes)))
    errors = layer_errors(original.weight_names, original.weights, weights)
    about = parts.description.about | {"errors": [round(1000 * error.relative) for error in errors]}
    described = NetworkParts(replace(parts.description, about=about), parts.kept)
    return encoded(nern, config, Ordering(), [described], Holding(held), Holding(of_kept | dict(steps)), metadata)


class Coder:
    """Rounds a network to codes and writes them, at any quality.

    Args:
        original: the network, whose norms absorb their statistics.
        name: how it is built; None: it is not known.
        task_name: of the images that it was trained on; None: it is not known.
        images: on which it is calibrated; None: none.
        seed: of what is drawn.
        metadata: text by name, kept in the file.
        console: for the progress bar.
    """

    def __init__(
        self,
        original: Original,
        name: str | None,
        task_name: str | None,
        images: Images | None,
        seed: int,
        metadata: Mapping[str, str] | None,
        console: Console,
    ) -> None:
        self.original = original
        original.absorb_statistics()
        self.images, self.seed, self.metadata, self.console = images, seed, metadata, console
        self.parts = network_parts(self.original, name, task_name)
        self.config = NernConfig(method="codes")
        table = kernel_table(self.config, [self.original])
        self.nern = build_nern(self.config, table, None, seed)
        self.weights = table.num_weights
        self.known = None if images is None else measured(self.original, images, seed)
        self.passes = 0

    @property
    def usual(self) -> float:
        """The quality unless a size is asked for, and where a search begins."""
        return usual_quality(self.original, self.images, self.weights)

    def fit(self) -> Any:
        """The codes of the original's weights, not rounded."""
        codes: Any = self.nern.predictor
        codes.fit(self.original.weights)
        return codes

    def at(self, quality: float, few: bool = False) -> tuple[dict[str, bytes], Calibrated]:
        """The sections of a file at this quality. `few`: calibrated on fewer images."""
        images = self.images
        if images is not None and few:
            images = images[: max(1, len(images) // FEW)]
        codes = self.fit()
        self.passes += 1
        layers = len(self.original.weights)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, disable=not shows_bars(self.console), transient=True) as bar:
            shown = bar.add_task(f"rounding, pass {self.passes}", total=layers)
            found = calibrate(
                self.original,
                self.nern,
                images,
                quality,
                self.seed,
                lambda n: bar.update(shown, completed=n),
                self.known,
            )
        codes.take([layer.multiples for layer in found.layers], [layer.step for layer in found.layers])
        return self._sections(found), found

    def _sections(self, found: Calibrated) -> dict[str, bytes]:
        parts = NetworkParts(self.parts.description, {**self.parts.kept, **found.vectors})
        return coded_sections(self.original, self.nern, self.config, parts, found.steps, self.metadata)

    def bits(self, sections: Mapping[str, bytes]) -> float:
        """Bits of codes for each weight."""
        return 8 * len(sections[codes_section(sections)]) / self.weights


def coded_network(coder: Coder, wanted: Wanted, console: Console) -> tuple[Artifact, Calibrated]:
    """The best file that is as wanted.

    Raises:
        NernError: no file is; the message tells of the nearest.
    """
    if wanted.gap is not None:
        sections, found = _within_gap(coder, wanted.gap)
    elif wanted.size is not None or wanted.bits is not None:
        sections, found = _of_size(coder, wanted, console)
    else:
        sections, found = coder.at(coder.usual)
    return probed(sections), found


def _of_size(coder: Coder, wanted: Wanted, console: Console) -> tuple[dict[str, bytes], Calibrated]:
    """The file that comes nearest to so many bytes, or bits a weight, from below."""
    in_bytes = wanted.size is not None
    goal = float(wanted.size if wanted.size is not None else wanted.bits or 0)

    def measure(sections: Mapping[str, bytes]) -> float:
        return float(size_of(sections)) if in_bytes else coder.bits(sections)

    def missed(sections: Mapping[str, bytes]) -> NernError:
        least = f"{size_of(sections):,} bytes" if in_bytes else f"{coder.bits(sections):.2f} bits a weight"
        asked = f"{wanted.size:,} bytes" if in_bytes else f"{wanted.bits} bits"
        return NernError(f"the network cannot be held in {asked}: the smallest file that was found has {least}")

    per_bit = coder.weights / 8 if in_bytes else 1.0
    quality = coder.usual
    if coder.images is not None:  # few images tell the size nearly as well
        few = nearest_below(lambda q: measure(coder.at(q, few=True)[0]), quality, goal, per_bit, 0.01, 8)
        quality = few[0]
        if in_bytes:
            console.print(f"expected: {few[1]:,.0f} bytes", **PLAIN)
    kept: dict[float, tuple[dict[str, bytes], Calibrated]] = {}  # the best so far, by its size

    def whole(q: float) -> float:
        found = coder.at(q)
        size, best = measure(found[0]), next(iter(kept), math.inf)
        if (best < size <= goal) or (best > goal and size < best):
            kept.clear()
            kept[size] = found
        return size

    _, reached = nearest_below(whole, quality, goal, per_bit, 1 - NEAR, PASSES)
    if reached > goal:
        raise missed(kept[reached][0])
    return kept[reached]


def _within_gap(coder: Coder, gap: float) -> tuple[dict[str, bytes], Calibrated]:
    """The smallest file whose network agrees with the original on the calibration images, but for `gap` percent."""
    low, high = None, coder.usual  # fine enough, not yet tried
    best: tuple[dict[str, bytes], Calibrated] | None = None
    failed: float | None = None
    for _ in range(PASSES + 2):
        sections, found = coder.at(high)
        if found.agreement is None:
            raise NernError(
                "gap is of classes on calibration images; this network gives no classes, or there are no images"
            )
        if found.agreement >= 100 - gap:
            low, best = high, (sections, found)
        else:
            failed = high
        if low is not None and failed is not None:
            if failed / low < 1.06:
                break
            high = math.sqrt(low * failed)
        else:
            high = high * 1.5 if low is not None else high / 2
    if best is None:
        raise NernError(f"no file was found whose network agrees with the original on {100 - gap:g} % of the images")
    return best
