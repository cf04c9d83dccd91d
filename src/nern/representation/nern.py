"""The NeRN: coordinates in, weights out.

   coordinates            encodings                predictions               weights
(rows, num_idxs) --encoding--> (rows, e) --predictor--> (rows, h, w) a head --> (filters, channels, h, w) a layer
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nern.config import EmbeddingsConfig, NernConfig
from nern.ordering.order import Ordering
from nern.registry import ENCODINGS, PREDICTORS
from nern.representation.coordinates import TableCoordinates
from nern.representation.encoding import Encoded, Encoding, Encodings
from nern.representation.heads import Heads
from nern.representation.kernels import KernelTable
from nern.representation.predictor import build_predictor, parameters_of

# Rows in one forward call on a CPU, where there are more than FEW_ROWS: what lies between the layers stays in its cache.
CACHED_ROWS, FEW_ROWS = 2048, 4096


def share_of(parameters: int, ordering_bits: float, weights: int) -> float:
    """Bytes of a predictor in float32 and of an ordering, over those of the represented weights in float32."""
    return (parameters + ordering_bits / 32) / weights


class NeRN(nn.Module):
    """A predictor with the coordinates it is asked about.

    Args:
        heads: of the predictor, with the table of kernels that they give.
        predictor: maps encodings to kernels.
        encoded: encodings of the table's rows.
        chunk: rows in one forward call of the predictor; None: all. It bounds memory and changes no value (but for
            batch norm while training, whose statistics are those of a chunk).
        scales: what the predictor's `output_scales`, if it has some, belong to: 'per_layer' or 'per_size'.

    Attributes:
        outliers: weights that are kept, not predicted (see `keep_outliers`); None: there are none.
        by_batch: what is predicted while training depends on the rows beside it: the predictor has batch norms.
    """

    outliers: tuple[Tensor, Tensor] | None = None
    _ends: Tensor
    _scale_of: Tensor

    def __init__(
        self,
        heads: Heads,
        predictor: nn.Module,
        encoded: Encoded,
        chunk: int | None = None,
        scales: str = "none",
    ) -> None:
        super().__init__()
        self.heads, self.table = heads, heads.table
        self.predictor = predictor
        self.encoded = encoded
        self.chunk = chunk or self.table.rows
        several = len(heads.sizes) > 1
        devices = [p.device for p in predictor.parameters()]  # one of the user's may have no parameters
        device = devices[0] if devices else torch.device("cpu")
        self.register_buffer("_ends", torch.tensor(self.table.starts[1:], device=device), persistent=False)
        groups = torch.tensor(scale_groups(self.table, scales), device=device)
        self.register_buffer("_scale_of", groups, persistent=False)
        on_cpu = all(p.device.type == "cpu" for p in predictor.parameters())
        self._cached = min(self.chunk, CACHED_ROWS) if on_cpu else self.chunk
        self.by_batch = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in predictor.modules())
        self._rows = [heads.rows(head) for head in range(len(heads.sizes))] if several else None

    @property
    def num_parameters(self) -> int:
        """Parameters of the predictor."""
        return parameters_of(self.predictor)

    def forward(self, rows: Int[Tensor, " r"] | None = None) -> list[Float[Tensor, "r h w"]]:
        """Predictions, one tensor a head: of its share of `rows`, in their order; None: of all rows."""
        if rows is not None:
            parts: list[Tensor | None] = [of_head for of_head, _ in self.heads.split(rows)]
        else:
            parts = [None] if self._rows is None else list(self._rows)
        return [self._predict(part, head) for head, part in enumerate(parts)]

    def _predict(self, rows: Tensor | None, head: int) -> Tensor:
        count = self.table.rows if rows is None else len(rows)
        if hasattr(self.predictor, "rows"):  # it holds something of each kernel
            of_kernels: Any = self.predictor
            held: Tensor = of_kernels.rows(rows, head)
            return held
        if count == 0:
            return next(self.predictor.parameters()).new_zeros(0, *self.heads.sizes[head])
        whole_batch = count <= FEW_ROWS or (self.by_batch and self.training)
        size = self.chunk if whole_batch else self._cached
        starts = range(0, count, size)
        pieces = [slice(s, min(s + size, count)) if rows is None else rows[s : s + size] for s in starts]
        whole = not getattr(self.predictor, "takes_encodings", False)
        inputs = (self.encoded(piece) if whole else Encodings(self.encoded, piece) for piece in pieces)
        predicted = [self.predictor(of_piece, head) for of_piece in inputs]
        joined: Tensor = predicted[0] if len(predicted) == 1 else torch.cat(predicted)
        return self._scaled(joined, rows)

    def _scaled(self, predicted: Float[Tensor, "r h w"], rows: Int[Tensor, " r"] | None) -> Float[Tensor, "r h w"]:
        """Predictions of these rows times the scales they belong to."""
        scales = getattr(self.predictor, "output_scales", None)
        if scales is None:
            return predicted
        rows = torch.arange(self.table.rows, device=scales.device) if rows is None else rows.to(scales.device)
        layers = torch.bucketize(rows, self._ends, right=True)
        return predicted * scales[self._scale_of[layers]][:, None, None]

    def weights(self, predictions: Sequence[Float[Tensor, "r h w"]] | None = None) -> list[Tensor]:
        """The weight tensors of all layers, from predictions of all rows, one tensor a head (None: predicted here)."""
        predictions = self() if predictions is None else predictions
        return [self.weight(self.heads.part(predictions, index), index) for index in range(len(self.table.shapes))]

    def weight(self, predicted: Float[Tensor, "r h w"], index: int) -> Tensor:
        """The weight tensor of layer `index` from the predictions of its rows: sampled to its size, outliers in their
        places. Differentiable."""
        weight = self.table.to_weight(self.heads.sampled(predicted, index), index)
        if self.outliers is None:
            return weight
        places, values = getattr(self, f"places_{index}"), getattr(self, f"values_{index}")
        return weight.flatten().scatter(0, places, values.to(weight.dtype)).view_as(weight)

    def keep_outliers(self, positions: Int[Tensor, " n"], values: Float[Tensor, " n"]) -> None:
        """Keep these weights from now on in place of what is predicted for them, by their numbers among all weights."""
        self.outliers, device, start = (positions, values), next(self.predictor.parameters()).device, 0
        for index, shape in enumerate(self.table.shapes):
            inside = (positions >= start) & (positions < start + math.prod(shape))
            self.register_buffer(f"places_{index}", (positions[inside] - start).to(device), persistent=False)
            self.register_buffer(f"values_{index}", values[inside].to(device), persistent=False)
            start += math.prod(shape)

    @torch.no_grad()
    def reconstruct(self) -> list[Tensor]:
        """The weight tensors of all layers, without gradient, the predictor in eval mode."""
        with self.evaluating():
            return self.weights()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode within, the former mode after."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)


def build_encoding(config: EmbeddingsConfig, table: KernelTable) -> Encoding:
    """The encoding that `config` describes, for the coordinates of `table`."""
    scales, networks = list(config.gauss_scale), bool(table.networks)
    encoding: Encoding = ENCODINGS[config.type](
        num_idxs=config.num_idxs + networks,
        enc_levels=config.enc_levels,
        base=config.base,
        fusion_mode=config.fusion_mode,
        gauss_scale=[scales[0], *scales] if networks and scales else scales,
        layers=len(table.shapes),
        bandwidth=config.bandwidth,
    )
    return encoding


def build_heads(config: NernConfig, table: KernelTable) -> Heads:
    """The heads that `config` asks for. Raises NernError for a kernel larger than a shared head's."""
    return Heads.build(table, config.kind_of_heads, config.output_size, config.sampling_mode)


def predictor_arguments(config: NernConfig, heads: Heads) -> dict[str, Any]:
    """Arguments of the predictor that `config` describes."""
    if PREDICTORS.info(config.method)["of_kernels"]:
        return {"heads": heads}
    scales = 0 if config.output_scales == "none" else max(scale_groups(heads.table, config.output_scales)) + 1
    return {
        "input_size": build_encoding(config.embeddings, heads.table).size,
        "kernel_sizes": heads.sizes,
        "hidden_layer_size": config.hidden_layer_size,
        "num_blocks": config.num_blocks,
        "act_layer": config.act_layer,
        "norm_layer": config.norm_layer,
        "head_names": heads.names,
        "output_scales": scales,
    }


def build_nern(
    config: NernConfig,
    table: KernelTable,
    ordering: Ordering | None,
    seed: int,
    device: torch.device | str = "cpu",
    weights: Sequence[Tensor] | None = None,
) -> NeRN:
    """The NeRN that `config` describes for the kernels of `table` in this order (None: as they are).

    Args:
        weights: the originals', to which output scales are set; None: scales stay as they are (a checkpoint's, or 1).

    Raises:
        NernError: a kernel larger than `output_size`; a checkpoint that does not fit.
    """
    device = torch.device(device)
    heads = build_heads(config, table)
    arguments = predictor_arguments(config, heads)
    of_kernels = PREDICTORS.info(config.method)["of_kernels"]
    init = "default" if of_kernels and config.init != "checkpoint" else config.init
    predictor: Any = build_predictor(config.method, seed, init, config.checkpoint_path, **arguments)
    if of_kernels and weights is not None and config.init != "checkpoint":
        predictor.fit(weights)
    if config.output_scales != "none" and weights is not None and config.init != "checkpoint":
        with torch.no_grad():
            predictor.output_scales.copy_(output_scales(weights, scale_groups(table, config.output_scales)))
    positions = ordering.positions(table.shapes) if ordering and ordering.mode != "none" else None
    coordinates = TableCoordinates(table, positions, config.embeddings.normalization_mode or "none", device)
    encoded = build_encoding(config.embeddings, table).prepare(coordinates)
    return NeRN(heads, predictor.to(device), encoded, config.weights_batch_size, config.output_scales)


def scale_groups(table: KernelTable, kind: str) -> list[int]:
    """Of each layer, the number of its output scale: its own ('per_layer'), or that of its kernel size ('per_size')."""
    if kind != "per_size":
        return list(range(len(table.shapes)))
    sizes = [shape[2:] for shape in table.shapes]
    distinct = list(dict.fromkeys(sizes))
    return [distinct.index(size) for size in sizes]


def output_scales(weights: Sequence[Tensor], groups: Sequence[int]) -> Float[Tensor, " scales"]:
    """Root mean square of the weights of each group of layers. It is 0 where all are zero, or so small that their squares
    are: these layers are predicted as exactly zero, and take no part in the errors of others."""
    joined: list[list[Tensor]] = [[] for _ in range(max(groups) + 1)]
    for weight, group in zip(weights, groups, strict=True):
        joined[group].append(weight.detach().flatten())
    return torch.stack([torch.cat(group).float().square().mean().sqrt() for group in joined]).cpu()
