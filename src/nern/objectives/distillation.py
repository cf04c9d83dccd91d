"""Output distillation losses, means over the batch: Kullback-Leibler divergence of the outputs (NeRN, equation 4), or its
limit at high temperature, squared errors of the logits (Ba & Caruana 2014, arXiv 1312.6184)."""

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


@DISTILLATION_LOSSES.register("LogitsL2Loss", by_image=True)
def logits_l2_loss(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Half the mean square of the differences of logits, each image's mean over classes taken away: what the divergence at
    temperature T, times T^2, tends to (Hinton et al. 2015, section 2.1). Images of which the original is sure count as much
    as others."""
    errors = reconstructed - original
    return (errors - errors.mean(1, keepdim=True)).square().mean() / 2


@DISTILLATION_LOSSES.register("OutputsL2Loss", by_image=True)
def outputs_l2_loss(original: Tensor, reconstructed: Tensor) -> Tensor:
    """Half the mean square of the differences of outputs, which may be any numbers."""
    return (reconstructed - original).square().mean() / 2
