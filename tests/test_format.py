"""docs/format.md is exact: a reader written from it finds in files what ours does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

import another_reader
from another_reader import DTYPES, STEPS, Coder, normal_numbers
from artifact_parts import SHAPES, make, nern_config, save
from nern.artifact import Holding, container, load, reading
from nern.artifact.entropy import Encoder
from nern.artifact.tensors import NAMES
from nern.config import NernConfig
from nern.originals.checked import DTYPES as TORCH_DTYPES
from nern.representation.grid import step_size

FORMAT = Path(__file__).parents[1] / "docs" / "format.md"
RELU = {"act_layer": "relu", "init": "fmod"}
CODES = NernConfig(method="codes")
SMALL = ((4, 3, 3, 3), (5, 4, 3, 3))
FILES: dict[str, dict[str, Any]] = {
    "quantised": {},
    "lossless": {"step": None},
    "kept in 16 bits": {"kept": Holding({}, "f16")},
    "kept on a grid": {"kept": Holding({"norm.weight": -30})},
    "no ordering": {"mode": "none"},
    "crossfilter": {"mode": "crossfilter", "shapes": SMALL},
    "infilter": {"mode": "infilter"},
    "one size of kernels": {"shapes": SMALL},
    "several networks": {"networks": 3, "shapes": SMALL},
    "many outliers": {"outliers": 0.7},
    "a thousand symbols and more": {"step": -120, "config": nern_config(hidden_layer_size=40)},
    "sixteen bits": {"dtype": torch.float16, "kept": Holding({"norm.weight": -50})},
    "bfloat16": {"dtype": torch.bfloat16, "kept": Holding({"norm.weight": -41})},
    "64 bits": {"dtype": torch.float64, "kept": Holding({"norm.weight": -90})},
    "relu": {"config": nern_config(**RELU)},
    "deep": {"config": nern_config(num_blocks=6, output_scales="per_size")},
    "codes": {"config": CODES, "mode": "none"},
    "codes, a basis for each layer": {"config": NernConfig(method="codes", heads="per_layer"), "mode": "none"},
    "codes of several networks": {"config": CODES, "mode": "none", "networks": 2, "shapes": ((33, 4, 3, 3), (5, 24))},
    "codes, outliers": {"config": CODES, "mode": "none", "outliers": 0.3},
    "heads of layers": {"config": nern_config(heads="per_layer"), "shapes": SMALL},
    "one frequency": {"config": nern_config({"enc_levels": 1})},
    "order_random": {"config": nern_config({"type": "order_random", "enc_levels": 5})},
    "order_random, 20 frequencies": {"config": nern_config({"type": "order_random", "enc_levels": 20})},
    "basic": {"config": nern_config({"type": "basic", "enc_levels": 4}, **RELU)},
    "basic, sum": {"config": nern_config({"type": "basic", "fusion_mode": "sum", "base": 1.7})},
    "basic, local": {"config": nern_config({"type": "basic", "normalization_mode": "local"}), "networks": 2},
    "basic, global": {"config": nern_config({"type": "basic", "normalization_mode": "global"})},
    "ffn": {"config": nern_config({"type": "ffn", "enc_levels": 4}, **RELU)},
    "ffn, few": {"config": nern_config({"type": "ffn", "enc_levels": 1})},
    "ffn, networks": {"config": nern_config({"type": "ffn", "normalization_mode": "local"}), "networks": 2},
}


def as_numpy(tensor: Tensor) -> np.ndarray:
    """As the other reader gives it."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.view(torch.uint8).numpy() if tensor.dtype == torch.bool else tensor.numpy()


def assert_same(found: dict[str, np.ndarray], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        array = as_numpy(tensor)
        assert found[name].shape == array.shape, name
        assert found[name].dtype == np.dtype(DTYPES[NAMES[tensor.dtype]]), name
        assert found[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("settings", FILES.values(), ids=FILES)
def test_another_reader_reads_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    sections, _, _ = make(**settings)
    path = save(tmp_path / "net.nern", sections)
    ours, other = load(path), another_reader.read(path)
    predictor = ours.nern.predictor.state_dict()
    described = [c.name for c in ours.description.predictor]
    assert_same(other.predictor, {name: predictor[name] for name in described})
    assert_same(other.kept, ours.kept)
    table = ours.nern.table
    for place, expected in zip(other.places, ours.ordering.positions(table.shapes), strict=True):
        assert np.array_equal(place, expected.numpy())
    outliers = ours.nern.outliers
    assert (outliers is None) == (len(other.outliers[0]) == 0)
    if outliers is not None:
        assert np.array_equal(other.outliers[0], outliers[0].numpy())
        assert other.outliers[1].tobytes() == outliers[1].numpy().tobytes()
    weights = other.weights()
    flat, own = np.concatenate([w.ravel() for w in weights]), torch.cat([w.flatten() for w in ours.weights]).numpy()
    scale = np.sqrt(np.mean(other.probes.astype(np.float64) ** 2))
    assert len(flat) == table.num_weights
    assert np.abs(flat - own).max() < 1e-5 * scale
    places = np.arange(16) * len(flat) // 16
    assert np.abs(flat[places] - other.probes).max() < reading.TOLERANCE * scale


@example(data=[(41, 20_000)], sizes=[], seed=0)  # through all lengths of blocks
@given(
    data=st.lists(st.tuples(st.sampled_from([2, 3, 1000, 1024, 1025, 70_000, 2**20]), st.integers(0, 300)), max_size=4),
    sizes=st.lists(st.integers(1, 2**23), max_size=20),
    seed=st.integers(0, 99),
)
def test_the_other_coder_decodes_what_ours_coded(data: list[tuple[int, int]], sizes: list[int], seed: int) -> None:
    rng, encoder = np.random.default_rng(seed), Encoder()
    sequences = [(n, np.minimum(rng.geometric(2 / n, count) - 1, n - 1)) for n, count in data]
    below = rng.integers(0, sizes or [1])
    for n, values in sequences:
        encoder.adaptive(values, n)
        encoder.uniform(below, np.array(sizes or [1]))
    coder = Coder(encoder.finish())
    for n, values in sequences:
        assert np.array_equal(coder.adaptive(len(values), n), values)
        assert [coder.uniform(size) for size in sizes or [1]] == below.tolist()
    coder.finish()


@pytest.mark.parametrize("count", [1, 2, 9, 15, 16, 17, 40])
def test_normal_numbers(count: int) -> None:
    for seed in (0, 1881531232):
        generator = torch.Generator().manual_seed(seed)
        exact = torch.randn(count, generator=generator, dtype=torch.float64).numpy()
        assert np.allclose(normal_numbers(seed, count, np.float64), exact, rtol=0, atol=1e-14)
        single = torch.randn(count, generator=torch.Generator().manual_seed(seed)).numpy()
        assert np.allclose(normal_numbers(seed, count, np.float32), single, rtol=0, atol=2e-6)


def test_steps_are_the_same() -> None:
    numbers = range(-800, 801)
    assert [another_reader.step_size(number) for number in numbers] == [step_size(number) for number in numbers]
    assert all(abs(step_size(number) / 2 ** (number / 8) - 1) < 1e-7 for number in numbers)


def test_what_the_page_says_of_constants() -> None:
    text = FORMAT.read_text(encoding="utf-8")
    for bits in STEPS:
        assert f"`{bits}`" in text
    assert " ".join(f"{byte:02X}" for byte in container.MAGIC) in text
    assert f"versions {container.VERSIONS[0]} to {container.VERSIONS[-1]}\n" in text.splitlines(keepends=True)[0]
    for name in reading.SECTIONS:
        assert f"`{name}`" in text
    for name in TORCH_DTYPES:
        assert f"`{name}`" in text


def test_every_key_is_on_the_page(tmp_path: Path) -> None:
    text = FORMAT.read_text(encoding="utf-8")
    about = {"task": "digits", "test": {"images": 1, "top1": 50.0, "top5": 90.0, "loss": 1.0}}
    settings = {"architecture": "ResNet8", "arguments": {"depth": 8}, "aliases": {"tied": "w0"}, "about": about}
    path = save(tmp_path / "net.nern", make(SHAPES, **settings)[0])
    description = another_reader.read(path).description

    def keys(value: dict[str, Any]) -> set[str]:
        return {key for key in value if key not in ("metadata", "arguments", "aliases")} | {
            key for item in value.values() if isinstance(item, dict) for key in keys(item) if item is not value
        }

    found = keys(description | {"metadata": {}}) | keys(description["networks"][0] | {"arguments": {}, "aliases": {}})
    assert {"writer", "nern", "embeddings", "bandwidth", "about", "top5"} <= found
    assert [key for key in found if not re.search(rf"`{key}`", text)] == []
