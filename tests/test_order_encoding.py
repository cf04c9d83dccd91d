"""Encodings by place along the order, sines, output scales, and a head for each layer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nern.config import EmbeddingsConfig, NernConfig
from nern.ordering.order import CrossFilterOrdering, Ordering
from nern.randomness import generator
from nern.representation.coordinates import TableCoordinates
from nern.representation.encoding import OrderRows
from nern.representation.kernels import KernelTable
from nern.representation.nern import NeRN, build_encoding, build_nern

pytestmark = pytest.mark.usefixtures("rng_untouched")

SHAPES = ((4, 3, 3, 3), (5, 4, 1, 1), (1, 1, 3, 3), (6, 5, 3, 3))
KINDS = ["order", "order_random"]


def random_weights() -> list[Tensor]:
    rng = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=rng) * (index + 1) for index, shape in enumerate(SHAPES)]


def embeddings(kind: str = "order") -> EmbeddingsConfig:
    return EmbeddingsConfig(type=kind, enc_levels=7, bandwidth=0.4)


def encoded(kind: str, table: KernelTable, ordering: Ordering | None = None) -> OrderRows:
    positions = None if ordering is None else ordering.positions(table.shapes)
    rows = build_encoding(embeddings(kind), table).prepare(TableCoordinates(table, positions))
    assert isinstance(rows, OrderRows)
    return rows


def half_turns(kind: str, kernels: int, levels: int = 7, bandwidth: float = 0.4) -> list[float]:
    """Frequencies of a layer of so many kernels, by the plain formulas."""
    if kind == "order":
        highest = max(bandwidth * kernels, 1.0)
        return [highest ** (level / (levels - 1)) for level in range(levels)]
    draws = torch.randn(levels, generator=generator(0, "order encoding"), dtype=torch.float64)
    return sorted(abs(float(draw)) * bandwidth * kernels for draw in draws)


def by_hand(kind: str, places: list[list[int]]) -> Tensor:
    rows = []
    for layer, of_layer in enumerate(places):
        frequencies = half_turns(kind, len(of_layer))
        one_hot = [float(other == layer) for other in range(len(places))]
        for place in of_layer:
            phases = [math.pi * g * place / len(of_layer) for g in frequencies]
            rows.append([math.sin(p) for p in phases] + [math.cos(p) for p in phases] + one_hot)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_long_layers_are_exact_too(kind: str) -> None:
    table = KernelTable(((200, 100, 3, 3),))
    found = encoded(kind, table)(torch.tensor([0, 19_999, 12_345]))
    frequencies = half_turns(kind, 20_000)
    assert max(frequencies) * math.pi > 2000
    for row, place in zip(found.tolist(), (0, 19_999, 12_345), strict=True):
        phases = [math.pi * g * place / 20_000 for g in frequencies]
        assert row == pytest.approx([*map(math.sin, phases), *map(math.cos, phases), 1.0], abs=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_at_each_position_of_a_cross_filter_path_has_that_place(kind: str) -> None:
    rng, start, places = torch.Generator().manual_seed(6), 0, [list(range(co * ci)) for co, ci, _, _ in SHAPES]
    ordering = CrossFilterOrdering([{"order": torch.randperm(len(layer), generator=rng)} for layer in places])
    values, wanted = encoded(kind, KernelTable(SHAPES), ordering)(slice(None)), by_hand(kind, places)
    for order in ordering.tensors().values():
        visited = values[start + order]  # kernel order[p] is visited at position p
        torch.testing.assert_close(visited.double(), wanted[start : start + len(order)], rtol=0, atol=1e-6)
        start += len(order)


def test_siren_widens_the_hidden_layers_alone() -> None:
    sizes = {"hidden_layer_size": 64, "num_blocks": 4, "embeddings": embeddings()}
    plain, siren = (
        build_nern(NernConfig(init=init, act_layer="sine", **sizes), KernelTable(SHAPES), None, 3).predictor
        for init in ("default", "siren")
    )
    for (name, one), other in zip(plain.named_parameters(), siren.parameters(), strict=True):
        if name.startswith("layers.") and name.endswith(".weight"):
            bound = math.sqrt(6 / one.shape[1])
            assert 0.97 * bound < float(other.detach().abs().max()) <= bound * (1 + 1e-6)
            torch.testing.assert_close(other, one * math.sqrt(6))
        else:
            assert torch.equal(one, other)


def scaled(kind: str, heads: str | None = None, weights: list[Tensor] | None = None) -> NeRN:
    config = NernConfig(output_scales=kind, heads=heads, hidden_layer_size=6, embeddings=embeddings())
    return build_nern(config, KernelTable(SHAPES), None, 0, weights=weights)


def rms(*weights: Tensor) -> float:
    return math.sqrt(sum(float(w.double().square().sum()) for w in weights) / sum(w.numel() for w in weights))


@pytest.mark.parametrize(
    ("kind", "heads"),
    [("per_layer", "per_size"), ("per_layer", "shared"), ("per_layer", "per_layer"), ("per_size", "per_size")],
)
def test_predictions_are_multiplied_by_the_scale_of_their_layer(kind: str, heads: str) -> None:
    """The same predictor without scales, times them."""
    weights = random_weights()
    plain, with_scales = scaled("none", heads), scaled(kind, heads, weights)
    assert not hasattr(plain.predictor, "output_scales") or plain.predictor.output_scales is None
    scales = with_scales.predictor.output_scales.tolist()  # type: ignore[union-attr]
    a, b, c, d = weights
    assert scales == pytest.approx([rms(a, c, d), rms(b)] if kind == "per_size" else [rms(w) for w in weights])
    of_layer = [0, 1, 0, 0] if kind == "per_size" else [0, 1, 2, 3]
    for index, (one, other) in enumerate(zip(plain.reconstruct(), with_scales.reconstruct(), strict=True)):
        torch.testing.assert_close(other, one * scales[of_layer[index]])
    rows = torch.tensor([60, 3, 32, 13, 3, 31])
    whole = with_scales()
    for part, everything, (_, local) in zip(with_scales(rows), whole, with_scales.heads.split(rows), strict=True):
        torch.testing.assert_close(part, everything[local])


@pytest.mark.parametrize("heads", ["per_size", "per_layer"])
def test_a_checkpoint_restores_scales_and_heads(heads: str, tmp_path: Path) -> None:
    written = scaled("per_layer", heads, random_weights())
    torch.save(written.predictor.state_dict(), tmp_path / "predictor.pt")
    start = {"init": "checkpoint", "checkpoint_path": str(tmp_path / "predictor.pt"), "hidden_layer_size": 6}
    config = NernConfig(output_scales="per_layer", heads=heads, embeddings=embeddings(), **start)
    others = [w * 9 for w in random_weights()]  # scales are the checkpoint's, not those of other weights
    read = build_nern(config, KernelTable(SHAPES), None, 1, weights=others)
    assert all(torch.equal(a, b) for a, b in zip(written.reconstruct(), read.reconstruct(), strict=True))
