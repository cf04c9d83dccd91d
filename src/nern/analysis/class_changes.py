"""Which classes gain and which lose by the reconstruction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class ClassChange:
    """Images of one class: how many there are, and how many are right only after, or only before."""

    label: int
    images: int
    gained: int
    lost: int

    @property
    def change(self) -> float:
        """Of the accuracy, in points."""
        return 100 * (self.gained - self.lost) / self.images


def class_changes(
    labels: Int[Tensor, " images"], before: Int[Tensor, " images"], after: Int[Tensor, " images"], classes: int
) -> list[ClassChange]:
    """Of every class that has images, in the order of their numbers.

    Args:
        labels: right classes.
        before, after: predicted classes.
        classes: number of classes.
    """
    was, is_ = before == labels, after == labels
    counts = [torch.bincount(labels[of], minlength=classes).tolist() for of in (labels >= 0, is_ & ~was, was & ~is_)]
    return [ClassChange(label, *found) for label, found in enumerate(zip(*counts, strict=True)) if found[0]]
