"""Evaluation: a network's outputs on a set of images, against labels and against the original network's outputs."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nern.devices import computing_in
from nern.errors import NernError
from nern.inputs import batches_of, gives_scores
from nern.originals.base import Original
from nern.processes import ALONE, Processes
from nern.tasks.streams import EvalSet

TOP = 5


@dataclass(frozen=True)
class Metrics:
    """Figures of one network on one set. Shares are in percent; those that need class scores or labels are None where there
    are none."""

    images: int
    agreement: float | None = None  # images on which the prediction is the original's
    divergence: float | None = None  # mean KL(original || this) of the softmaxed outputs, in nats
    top1: float | None = None  # images whose label is the prediction
    top5: float | None = None  # or among the five largest outputs
    loss: float | None = None  # mean cross entropy of the logits, in nats
    # norm of what outputs other than class scores are off by, over that of the original's, in percent
    error: float | None = None

    def to_dict(self) -> dict[str, float]:
        """The figures there are, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def score(self) -> float:
        """What 'best' means: top-1 where there are labels, else the lower divergence or error. Among equals the latest is
        best."""
        if self.top1 is not None:
            return self.top1
        return -(self.divergence if self.divergence is not None else self.error or 0.0)


def mean_metrics(parts: Sequence[Metrics]) -> Metrics:
    """Means over several networks, each on its own set; `images` is their sum. A figure that one lacks is None."""
    if len(parts) == 1:
        return parts[0]

    def mean(name: str) -> float | None:
        values = [getattr(part, name) for part in parts]
        return None if None in values else sum(values) / len(values)

    figures = {name: mean(name) for name in ("agreement", "divergence", "top1", "top5", "loss", "error")}
    return Metrics(images=sum(part.images for part in parts), **figures)  # type: ignore[arg-type]


class Evaluator:
    """Evaluates weights of an original's architecture; the original's own outputs are computed once for each set.

    Args:
        batch_size: images in one batch; large ones go through the network in several parts.
        processes: each evaluates a share of the batches; all call at the same time, and get the figures of all images.
        reconstructed: the network in which other weights are run; None: the original.
    """

    def __init__(
        self,
        original: Original,
        batch_size: int,
        processes: Processes = ALONE,
        reconstructed: Original | None = None,
    ) -> None:
        self.original, self.batch_size, self.processes = original, batch_size, processes
        self._reconstructed = reconstructed or original
        self._reference: weakref.WeakKeyDictionary[EvalSet, list[Tensor]] = weakref.WeakKeyDictionary()

    @torch.no_grad()
    def __call__(
        self, data: EvalSet, weights: Sequence[Tensor] | None = None, extra: dict[str, Tensor] | None = None
    ) -> Metrics:
        """Metrics on `data` of the architecture with `weights` (and `extra` parameters); None: of the original."""
        known, repeats = self._reference.get(data), getattr(data, "repeats", True)
        outputs: list[Tensor] = []
        # agreement, divergence, top-1, top-5, loss; squares of errors and of outputs; images, labelled ones
        sums, scores = torch.zeros(9, dtype=torch.float64), True
        share = self.processes.share if self.processes.several else None

        def rebuilt(part: Any) -> Tensor:
            return self._reconstructed.run(weights or (), part, extra)[0]

        for number, (images, labels) in enumerate(data.batches(self.batch_size, share)):
            with computing_in("float32", images.device):
                target = _in_parts(self.original, images) if known is None else known[number]
                result = target if weights is None else _in_parts(rebuilt, images)
            if repeats:
                outputs.append(target)
            sums[7] += len(images)
            scores = gives_scores(images)
            if not scores:
                squares = [(result.double() - target).square().sum(), target.double().square().sum()]
                sums[5:7] += torch.stack(squares).cpu()
                continue
            predicted = result.argmax(1)
            log_p, log_q = target.double().log_softmax(1), result.double().log_softmax(1)
            figures = [(predicted == target.argmax(1)).sum(), (log_p.exp() * (log_p - log_q)).sum()]
            if labels is not None:
                sums[8] += len(images)
                top = result.topk(min(TOP, result.shape[1]), dim=1).indices
                figures += [(predicted == labels).sum(), (top == labels[:, None]).any(1).sum()]
                figures += [F.nll_loss(log_q, labels, reduction="sum")]
            sums[: len(figures)] += torch.stack([f.double() for f in figures]).cpu()
        if known is None and repeats:
            self._reference[data] = outputs
        self.processes.add_up([sums])
        *totals, errors, squares_of_all, count, labelled = sums.tolist()
        if not count:
            raise NernError("none of the images to evaluate on can be read")
        if not scores:
            return Metrics(int(count), error=100 * (errors / squares_of_all) ** 0.5 if squares_of_all else None)
        agreement, divergence, top1, top5, loss = (total / count for total in totals)
        if not labelled:
            return Metrics(int(count), 100 * agreement, divergence)
        return Metrics(int(count), 100 * agreement, divergence, 100 * top1, 100 * top5, loss)

    def both(
        self, data: EvalSet, weights: Sequence[Tensor], extra: dict[str, Tensor] | None = None
    ) -> dict[str, dict[str, float]]:
        """Figures of the 'original' network and of the 'reconstructed' one, by name."""
        return {"original": self(data).to_dict(), "reconstructed": self(data, weights, extra).to_dict()}


def _in_parts(run: Callable[[Any], Tensor], images: Any) -> Tensor:
    """Outputs for a batch; of large images for a part at a time, as their activations take gigabytes."""
    return torch.cat([run(part) for part in batches_of(images)]) if isinstance(images, Tensor) else run(images)


@torch.no_grad()
def accuracy(network: nn.Module, data: EvalSet, batch_size: int) -> dict[str, float]:
    """Top-1 accuracy (percent), cross entropy (nats) and number of images of a network in eval mode on labelled `data`."""
    right, loss, count = 0, 0.0, 0
    for images, labels in data.batches(batch_size):
        assert labels is not None
        outputs = _in_parts(network, images)
        right += int((outputs.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(outputs, labels, reduction="sum"))
        count += len(images)
    return {"images": count, "top1": 100 * right / count, "loss": loss / count}


@dataclass(frozen=True)
class LayerError:
    """Reconstruction error of one layer: root mean squared error, and error norm over weight norm (finite; where all weights
    are zero 0 if they are predicted so, else 1)."""

    name: str
    weights: int
    rmse: float
    relative: float


def layer_errors(names: Sequence[str], original: Iterable[Tensor], weights: Iterable[Tensor]) -> list[LayerError]:
    """`LayerError` of every layer."""
    errors = []
    for name, o, r in zip(names, original, weights, strict=True):
        error, size = _norm(r - o), _norm(o)
        relative = min(error / size, sys.float_info.max) if size else float(error > 0)
        errors.append(LayerError(name, o.numel(), error / o.numel() ** 0.5, relative))
    return errors


def _norm(values: Tensor) -> float:
    """The Euclidean norm in float64, also of numbers whose squares it cannot hold."""
    values = values.double()
    largest = values.abs().max().item()
    scale = 1.0 if largest == 0 or 1e-100 < largest < 1e100 else largest
    return scale * (values / scale).norm().item()
