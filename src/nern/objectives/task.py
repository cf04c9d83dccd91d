"""Task losses: the reconstructed network's outputs against labels. The published training never uses one.

Labels are class numbers (n,) or, of mixed images, shares of the classes (n, classes).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nern.registry import TASK_LOSSES

STABLE = 1e-3


def _likelihood_loss(log_p: Tensor, labels: Tensor) -> Tensor:
    """Mean negative log likelihood; labels are class numbers (n,) or shares of the classes (n, classes)."""
    return F.nll_loss(log_p, labels) if labels.dim() == 1 else -(labels * log_p).sum(1).mean()


@TASK_LOSSES.register("CELoss", by_image=True)
def ce_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of logits."""
    return F.cross_entropy(outputs, labels)


@TASK_LOSSES.register("StableCELoss", by_image=True)
def stable_ce_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with log(softmax + 1e-3)."""
    return _likelihood_loss((outputs.softmax(1) + STABLE).log(), labels)


@TASK_LOSSES.register("NLLLoss", by_image=True)
def nll_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Negative log likelihood; outputs must be log-probabilities already."""
    return _likelihood_loss(outputs, labels)


@TASK_LOSSES.register("NoLoss", by_image=True)
def no_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Zero, without a gradient."""
    return outputs.new_zeros(())
