"""Fast ways to compute equal the plain ones: products of feature maps, encodings that are never made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nern.objectives.feature_maps import EPSILON
from nern.registry import ACTIVATIONS, FEATURE_MAP_LOSSES, NORM_LAYERS, PREDICTORS
from nern.representation.coordinates import TableCoordinates
from nern.representation.encoding import BasicEncoding, EncodedRows, Encodings, FourierEncoding
from nern.representation.kernels import KernelTable
from nern.representation.predictor import build_predictor

pytestmark = pytest.mark.usefixtures("rng_untouched")

CPU_TYPES = (torch.float32, torch.bfloat16)


def randoms(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def plain_loss(original: Sequence[Tensor], reconstructed: Sequence[Tensor]) -> Tensor:
    """Normalise, subtract, square, add up: as the paper says it."""
    total = original[0].new_zeros(())
    for o, r in zip(original, reconstructed, strict=True):
        rows = [m.reshape(len(m), -1) for m in (o, r)]
        norms = [torch.linalg.vector_norm(m, dim=1, keepdim=True) for m in rows]
        difference = rows[0] / (norms[0] + EPSILON) - rows[1] / (norms[1] + EPSILON)
        total = total + difference.square().sum()
    return total / len(original[0])


def loss_and_gradients(
    loss: Callable[..., Tensor], original: Sequence[Tensor], reconstructed: Sequence[Tensor], factor: float = 1.0
) -> tuple[Tensor, list[Tensor]]:
    leaves = [r.detach().clone(memory_format=torch.preserve_format).requires_grad_() for r in reconstructed]
    value = loss(original, leaves)
    (factor * value).backward()
    return value.detach(), [leaf.grad for leaf in leaves]


FAST = FEATURE_MAP_LOSSES["L2BatchedAttentionLoss"]
MAP_SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def arranged(maps: Tensor, how: str) -> Tensor:
    if maps.dim() == 4 and how == "channels last":
        return maps.contiguous(memory_format=torch.channels_last)
    if maps.dim() > 2 and how == "strided":
        return maps.transpose(1, 2).contiguous().transpose(1, 2)
    return maps


LAYOUTS = st.sampled_from(["contiguous", "channels last", "strided"])


@given(
    st.integers(1, 4),
    st.lists(st.tuples(MAP_SHAPES, LAYOUTS, LAYOUTS, st.sampled_from([1e-3, 1.0, 50.0])), min_size=1, max_size=3),
    st.integers(0, 999),
)
@settings(max_examples=60)
def test_the_loss_of_maps_and_its_gradient_are_the_plain_ones(
    rows: int, of_maps: list[tuple[list[int], str, str, float]], seed: int
) -> None:
    original, reconstructed = [], []
    for index, (shape, how, other, scale) in enumerate(of_maps):
        o, r = (scale * randoms(rows, *shape, seed=seed + 2 * index + i) for i in range(2))
        original.append(arranged(o, how))
        reconstructed.append(arranged(r, other))
    value, gradients = loss_and_gradients(FAST, original, reconstructed, 3.0)
    expected, wanted = loss_and_gradients(
        plain_loss, [o.double() for o in original], [r.double() for r in reconstructed], 3.0
    )
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=2e-6)
    for r, gradient, of_plain in zip(reconstructed, gradients, wanted, strict=True):
        assert gradient.shape == r.shape
        size = 3 / (float(r.norm()) / rows + EPSILON)
        torch.testing.assert_close(gradient.double(), of_plain, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize("zero", ["original", "reconstructed", "both", "one row of each"])
def test_maps_of_zeros_have_the_plain_loss_and_gradient(zero: str) -> None:
    o, r = randoms(3, 2, 4, 4), randoms(3, 2, 4, 4, seed=1)
    if zero == "one row of each":
        o[0], r[2] = 0, 0
    o, r = o * (zero not in ("original", "both")), r * (zero not in ("reconstructed", "both"))
    value, (gradient,) = loss_and_gradients(FAST, [o], [r])
    expected, (wanted,) = loss_and_gradients(plain_loss, [o.double()], [r.double()])
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", CPU_TYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-3, 1e3, 1e17, 1e30])
def test_maps_of_any_size_have_the_plain_loss_and_gradient(scale: float, dtype: torch.dtype) -> None:
    o, r = randoms(4, 3, 9, 9, dtype=dtype), (scale * randoms(4, 3, 9, 9, seed=1)).to(dtype)
    value, (gradient,) = loss_and_gradients(FAST, [o], [r])
    expected, (wanted,) = loss_and_gradients(plain_loss, [o.double()], [r.double()])
    assert torch.isfinite(gradient).all()
    small = 1e-3 if scale < 1e18 else 1.1  # beyond, squares overflow: finite is all that can be asked for
    assert float(value) == pytest.approx(float(expected), rel=small)
    assert float((gradient.double() - wanted).norm()) <= max(1e-2, small) * float(wanted.norm())


def all_close(found: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> None:
    """Equal up to the rounding of float32, measured by the largest entry of all."""
    scale = max(float(t.detach().abs().max()) for t in expected if t is not None)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5 * scale)


def gradients(output: Tensor, leaves: Sequence[Tensor]) -> list[Tensor | None]:
    cotangent = randoms(*output.shape, seed=9).to(output.dtype)
    return list(torch.autograd.grad((output * cotangent).sum(), leaves, allow_unused=True))


TABLES = {
    ("one network", 3): KernelTable(((4, 3, 3, 3), (6, 4, 3, 3), (2, 6, 1, 1))),
    ("one network", 5): KernelTable(((4, 3, 3, 3), (3, 4, 2, 3), (2, 3, 1, 1)), num_idxs=5),
    ("several networks", 3): KernelTable(((4, 3, 3, 3), (6, 4, 3, 3), (2, 6, 3, 3)), networks=(0, 1, 1)),
    ("several networks", 5): KernelTable(((4, 3, 3, 3), (3, 4, 2, 3)), 5, networks=(0, 1)),
}


def encoded_rows(kind: str, table: KernelTable, fusion: str = "concat", levels: int = 6) -> EncodedRows:
    size = table.num_idxs + bool(table.networks)
    encoding: Any = (
        FourierEncoding(size, levels, gauss_scale=[1.0, *[0.1] * (size - 1)])
        if kind == "ffn"
        else BasicEncoding(size, levels, 1.25, fusion)
    )
    return encoding.prepare(TableCoordinates(table))


ENCODED = [("basic", "concat"), ("basic", "sum"), ("ffn", "concat")]


METHODS = sorted(name for name in PREDICTORS if not PREDICTORS.info(name)["of_kernels"])
REPEATED = torch.randint(36, (60,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "settings_",
    [
        *({"act_layer": name} for name in sorted(ACTIVATIONS)),
        *({"norm_layer": norm, "act_layer": name} for norm in sorted(NORM_LAYERS) for name in ("relu", "elu")),
        *({"num_blocks": blocks} for blocks in (2, 3, 5, 6)),
        *({"kind": kind, "fusion": fusion, "rows": REPEATED} for kind, fusion in ENCODED),
        *({"kind": kind, "fusion": fusion, "table": "several networks"} for kind, fusion in ENCODED),
        {"rows": slice(3, 17)},
    ],
    ids=lambda given_: " ".join(str(value) for value in given_.values() if value is not REPEATED),
)
@pytest.mark.parametrize("method", METHODS)
def test_predictors_need_no_dense_encodings(method: str, settings_: dict[str, Any]) -> None:
    usual = {"num_blocks": 4, "kind": "basic", "fusion": "concat", "rows": slice(None), "table": "one network"}
    own = usual | settings_
    which, table = own.pop("rows"), TABLES[own.pop("table"), PREDICTORS.info(method)["num_idxs"]]
    encoded = encoded_rows(own.pop("kind"), table, own.pop("fusion"))
    dense = encoded(which)
    predictor = build_predictor(method, 0, input_size=dense.shape[1], hidden_layer_size=9, **own)
    found, expected = predictor(Encodings(encoded, which)), predictor(dense)
    assert expected.numel()
    all_close([found], [expected])
    parameters = list(predictor.parameters())
    all_close(gradients(found, parameters), gradients(expected, parameters))
