"""Codes: kernels as coordinates in a basis that all kernels of one size share.

`kernel = basis @ code * step`, with a step for each layer. With the identity as basis a code is the kernel itself; with the
kernels' principal axes (their Karhunen-Loeve transform) the numbers of a code are uncorrelated, and most of them small.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nern.registry import PREDICTORS
from nern.representation.grid import on_grid, step_size
from nern.representation.heads import Heads

PRUNED = 0.2  # share of zeros from which on kernels are pruned ones
BASIS_STEP = -48  # number of the step on which a basis lies: 1/64
UNIT_STEP = -32  # of codes, 1/16: of this size they learn at the rate of other parameters
UNIT = step_size(UNIT_STEP)
MOST_AXES = 32  # numbers of a kernel from which on its basis would need more bytes than it saves


@PREDICTORS.register("codes", of_kernels=True)
class Codes(nn.Module):
    """A code for each kernel, and a basis for each size of kernels.

    Args:
        heads: whose kernels they are.

    Attributes:
        codes: of each layer, (filters, channels, entries of a kernel); multiples of `UNIT` once they are rounded.
        steps: of each layer, what a `UNIT` of its codes is; not trained.
        bases: of each head, (entries, entries); not trained.
    """

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        shapes = heads.table.shapes
        self.codes = nn.ParameterList(torch.zeros(co, ci, kh * kw) for co, ci, kh, kw in shapes)
        self.steps = nn.Parameter(torch.ones(len(shapes)), requires_grad=False)
        bases = [torch.zeros(h * w, h * w).fill_diagonal_(1) for h, w in heads.sizes]  # on 'meta', eye is slow
        self.bases = nn.ParameterList(nn.Parameter(basis, requires_grad=False) for basis in bases)

    def rows(self, rows: Int[Tensor, " r"] | None, head: int) -> Float[Tensor, "r h w"]:
        """Kernels of these rows of a head, in their order; None: of all its rows."""
        layers, size = self.heads.layers(head), self.heads.sizes[head]
        scales = self.steps / UNIT
        codes = [self.codes[layer].flatten(0, 1) * scales[layer] for layer in layers]
        if rows is not None:
            starts = self.heads.table.starts
            held = torch.bucketize(rows, torch.tensor(starts[1:], device=rows.device), right=True)
            runs, counts = (found.tolist() for found in held.unique_consecutive(return_counts=True))
            parts = zip(runs, rows.split(counts), strict=True)
            codes = [codes[layers.index(run)][part - starts[run]] for run, part in parts] or [codes[0][:0]]
        return (torch.cat(codes) @ self.bases[head].T).unflatten(1, size)

    @torch.no_grad()
    def fit(self, weights: Sequence[Tensor]) -> None:
        """Take the bases that fit these weights of all layers, and their codes, whose steps become 1."""
        kernels = [rows.flatten(1) for rows in self.heads.table.to_rows(weights)]
        for head in range(len(self.heads.sizes)):
            self.bases[head].copy_(principal_axes([kernels[layer] for layer in self.heads.layers(head)]))
        for layer, rows in enumerate(kernels):
            basis = self.bases[self.heads.of_layer[layer]]
            self.codes[layer].copy_(torch.linalg.solve(basis, rows.float().T).T.view_as(self.codes[layer]))
            self.codes[layer].mul_(UNIT)
        self.steps.fill_(1)

    @torch.no_grad()
    def values(self, layer: int) -> Float[Tensor, "filters channels k"]:
        """Codes of a layer, on the scale of its kernels."""
        return self.codes[layer].detach() * (self.steps[layer] / UNIT)

    @torch.no_grad()
    def kernels(self, layer: int) -> Float[Tensor, "r h w"]:
        """Kernels of a layer."""
        head = self.heads.of_layer[layer]
        return (self.values(layer).flatten(0, 1) @ self.bases[head].T).unflatten(1, self.heads.sizes[head])

    @torch.no_grad()
    def take(self, multiples: Sequence[Tensor], steps: Sequence[float]) -> None:
        """Take these codes: of each layer whole multiples of a step."""
        for code, whole in zip(self.codes, multiples, strict=True):
            code.copy_(whole * UNIT)
        self.steps.copy_(torch.tensor(steps))


def is_identity(basis: Float[Tensor, "k k"]) -> bool:
    """Whether codes in this basis are the kernels themselves."""
    return torch.equal(basis, torch.eye(len(basis)))


def principal_axes(kernels: Sequence[Float[Tensor, "r k"]]) -> Float[Tensor, "k k"]:
    """The principal axes of kernels of several layers, each layer at a scale of its own, as columns, the largest first, on
    the grid of `BASIS_STEP`; the identity for kernels of one entry, or of more than `MOST_AXES`, and for pruned ones, whose
    zeros would be none in another basis."""
    size = kernels[0].shape[1]
    zeros, count = sum(int((rows == 0).sum()) for rows in kernels), sum(rows.numel() for rows in kernels)
    if size == 1 or size > MOST_AXES or zeros > PRUNED * count:
        return torch.eye(size)
    moments = torch.zeros(size, size, dtype=torch.float64)
    for rows in kernels:
        exact = rows.detach().cpu().double()
        moments += exact.T @ exact / exact.square().mean().clamp_min(1e-60)
    axes = torch.linalg.eigh(moments)[1].flip(1)
    axes = axes * torch.where(axes.sum(0) < 0, -1.0, 1.0)  # the signs of eigenvectors are arbitrary
    return on_grid(axes.float(), BASIS_STEP)
