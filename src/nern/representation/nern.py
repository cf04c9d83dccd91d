"""The NeRN: coordinates in, weights out.

   coordinates            encodings                predictions               weights
(rows, num_idxs) --encoding--> (rows, e) --predictor--> (rows, K, K) --sampling--> (filters, channels, h, w) a layer
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nern.config import EmbeddingsConfig, NernConfig
from nern.ordering.order import Ordering
from nern.registry import ENCODINGS
from nern.representation.encoding import EncodedRows, Encoding
from nern.representation.kernels import KernelTable
from nern.representation.predictor import build_predictor, parameters_of


class NeRN(nn.Module):
    """A predictor with the coordinates it is asked about.

    Args:
        table: geometry of the learnable weights.
        predictor: maps encodings to kernels.
        encoded: encodings of the table's rows.
        sampling_mode: how predictions are reduced to smaller kernels.
        chunk: rows in one forward call of the predictor; None: all. It bounds memory and changes no value (but for
            batch norm while training, whose statistics are those of a chunk).
    """

    def __init__(
        self,
        table: KernelTable,
        predictor: nn.Module,
        encoded: EncodedRows,
        sampling_mode: str = "center",
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.table = table
        self.predictor = predictor
        self.encoded = encoded
        self.sampling_mode = sampling_mode
        self.chunk = chunk or table.rows

    @property
    def num_parameters(self) -> int:
        """Parameters of the predictor."""
        return parameters_of(self.predictor)

    def forward(self, rows: Int[Tensor, " r"] | None = None) -> Float[Tensor, "r k k"]:
        """Predictions of `rows`; None: of all rows."""
        count = self.table.rows if rows is None else len(rows)
        starts = range(0, count, self.chunk)
        pieces = [slice(s, min(s + self.chunk, count)) if rows is None else rows[s : s + self.chunk] for s in starts]
        return torch.cat([self.predictor(self.encoded(piece)) for piece in pieces])

    def weights(self, predictions: Float[Tensor, "rows k k"] | None = None) -> list[Tensor]:
        """The weight tensors of all layers, from predictions of all rows (None: predicted here)."""
        return self.table.to_weights(self() if predictions is None else predictions, self.sampling_mode)

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


def build_encoding(config: EmbeddingsConfig) -> Encoding:
    """The encoding that `config` describes."""
    encoding: Encoding = ENCODINGS[config.type](
        num_idxs=config.num_idxs,
        enc_levels=config.enc_levels,
        base=config.base,
        fusion_mode=config.fusion_mode,
        gauss_scale=config.gauss_scale,
    )
    return encoding


def predictor_arguments(config: NernConfig) -> dict[str, Any]:
    """Arguments of the predictor that `config` describes."""
    return {
        "input_size": build_encoding(config.embeddings).size,
        "output_size": config.output_size,
        "hidden_layer_size": config.hidden_layer_size,
        "num_blocks": config.num_blocks,
        "act_layer": config.act_layer,
        "norm_layer": config.norm_layer,
    }


def build_nern(
    config: NernConfig, table: KernelTable, ordering: Ordering | None, seed: int, device: torch.device | str = "cpu"
) -> NeRN:
    """The NeRN that `config` describes for the weights of `table`.

    Raises:
        NernError: a kernel larger than `output_size`; a checkpoint that does not fit.
    """
    device = torch.device(device)
    table.check_output_size(config.output_size)
    predictor = build_predictor(config.method, seed, config.init, config.checkpoint_path, **predictor_arguments(config))
    coordinates = table.coordinates(ordering.positions(table.shapes) if ordering else None)
    normalized = table.normalize(coordinates, config.embeddings.normalization_mode or "none")
    encoded = build_encoding(config.embeddings).prepare(normalized, device)
    return NeRN(table, predictor.to(device), encoded, config.sampling_mode, config.weights_batch_size)
