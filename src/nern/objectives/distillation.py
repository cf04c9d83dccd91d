"""Output distillation losses: Kullback-Leibler divergence of the outputs, mean over the batch (NeRN, equation 4)."""

from __future__ import annotations

from torch import Tensor

from nern.registry import DISTILLATION_LOSSES

STABLE = 1e-4  # added to probabilities before the logarithm, as published
TEMPERATURE = 2.0


def _divergence(p: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    return (p * (log_p - log_q)).sum() / len(p)


@DISTILLATION_LOSSES.register("KLDivLoss", by_image=True)
def kl_div_loss(original: Tensor, reconstructed: Tensor) -> Tensor:
    """KL(p || q) of the softmaxes of the logits (n, classes)."""
    log_p = original.log_softmax(1)
    return _divergence(log_p.exp(), log_p, reconstructed.log_softmax(1))


@DISTILLATION_LOSSES.register("StableKLDivLoss", by_image=True)
def stable_kl_div_loss(original: Tensor, reconstructed: Tensor) -> Tensor:
    """log(q + 1e-4) in place of log q; the minimum lies slightly below zero."""
    log_p = original.log_softmax(1)
    return _divergence(log_p.exp(), log_p, (reconstructed.softmax(1) + STABLE).log())


@DISTILLATION_LOSSES.register("MultiStableKLDivLoss", by_image=True)
def multi_stable_kl_div_loss(original: Tensor, reconstructed: Tensor) -> Tensor:
    """p + 1e-4 and q + 1e-4 in place of p and q."""
    p = original.softmax(1) + STABLE
    return _divergence(p, p.log(), (reconstructed.softmax(1) + STABLE).log())


@DISTILLATION_LOSSES.register("TempStableKLDivLoss", by_image=True)
def temp_stable_kl_div_loss(original: Tensor, reconstructed: Tensor) -> Tensor:
    """StableKLDivLoss at temperature 2: logits halved, the result multiplied by 4."""
    return stable_kl_div_loss(original / TEMPERATURE, reconstructed / TEMPERATURE) * TEMPERATURE**2
