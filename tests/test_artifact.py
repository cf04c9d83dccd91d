"""Artifacts: each part of the coding gives back what went in, and a file gives back the network."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import nern
from artifact_parts import make, nern_config, random_ordering, same_tensor, save, with_description
from nern import DamagedFileError, NernError, PackOptions, verify
from nern.artifact import Artifact, container, load, write_artifact
from nern.artifact.entropy import AT_ONCE, MOST_ADAPTIVE, MOST_UNIFORM, Decoder, Encoder
from nern.artifact.orderings import (
    SHORT,
    decode_ordering,
    decode_permutations,
    encode_ordering,
    encode_permutations,
    least_bits,
)
from nern.artifact.reading import TOLERANCE
from nern.artifact.table import about
from nern.artifact.tensors import TensorCode, decode_tensors, encode_tensors, tensor_bits
from nern.config import TaskConfig
from nern.originals.build import build_network
from nern.originals.checked import DTYPES
from nern.registry import ORDERINGS
from nern.representation.grid import step_size
from runs import quiet

MODES = list(ORDERINGS)
MANY = settings(max_examples=100)


def adaptive(values: np.ndarray, symbols: int) -> bytes:
    """The code of one sequence."""
    encoder = Encoder()
    encoder.adaptive(values, symbols)
    return encoder.finish()


def permuted(orders: np.ndarray) -> bytes:
    """The code of permutations."""
    encoder = Encoder()
    encode_permutations(encoder, orders)
    return encoder.finish()


# --- entropy coder --------------------------------------------------------------------------------------------------


@st.composite
def sequences(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    """An alphabet, and numbers of it: spread or concentrated, its ends among them."""
    some = st.sampled_from([1023, 1024, 1025, 2048, 65_536])
    symbols = draw(st.one_of(st.integers(1, 40), some, st.integers(1, 70_000)))
    count, seed, spread = draw(st.integers(0, 400)), draw(st.integers(0, 99)), draw(st.sampled_from([0.0, 0.01, 1.0]))
    rng = np.random.default_rng(seed)
    values = np.minimum((rng.random(count) * symbols * spread).astype(np.int64), symbols - 1)
    values[: min(count, 2)] = [0, symbols - 1][: min(count, 2)]
    return symbols, values


@MANY
@given(st.lists(sequences(), max_size=4))
def test_adaptive_sequences_come_back(parts: list[tuple[int, np.ndarray]]) -> None:
    encoder = Encoder()
    for symbols, values in parts:
        encoder.adaptive(values, symbols)
    code = encoder.finish()
    decoder = Decoder(code)
    for symbols, values in parts:
        assert np.array_equal(decoder.adaptive(len(values), symbols), values)
    decoder.finish()
    says = any(symbols > 1 and len(values) for symbols, values in parts)
    assert (len(code) > 0) == says
    assert len(code) % 4 == 0


@MANY
@given(st.lists(st.one_of(st.integers(1, 5), st.integers(1, MOST_UNIFORM)), max_size=60), st.integers(0, 99))
def test_uniform_numbers_come_back(sizes: list[int], seed: int) -> None:
    of = np.array(sizes, np.int64)
    values = np.random.default_rng(seed).integers(0, of) if len(of) else of
    encoder = Encoder()
    encoder.uniform(values, of)
    decoder = Decoder(encoder.finish())
    assert np.array_equal(decoder.uniform(of), values)
    decoder.finish()


def test_codes_are_pinned() -> None:
    encoder = Encoder()
    encoder.adaptive(np.arange(100) ** 2 % 17, 17)
    encoder.adaptive(np.arange(60) * 37 % 3001, 3001)
    encoder.uniform(np.array([0, 4, 99]), np.array([1, 5, 100]))
    assert encoder.finish().hex() == (
        "b1f21f016536b9ba96d0c25cee4a1e9d7ad79ac2ad3df6ffef645d09a2f33ef6a447d3d79e757ba20c57597df7a73da4edfce8f2a1d952e0"
        "6f60e99f90b040177adbeacbbdf9f27e241db051dcc598ca1e702f8f75192b25594c5b9745b222cf4d045fe59d6110522bf01bfce609ccf4"
        "ade7256dd21f4ab9f9f9b90df9f9f9f907faf9f9f8ecdb77"
    )
    assert permuted(np.array([[3, 0, 2, 1, 4], [4, 3, 2, 1, 0]])).hex() == "4472fb9f"


def test_very_large_alphabets_and_long_sequences_come_back() -> None:
    values = np.array([0, 1, 2**31, 2**32 - 7, 2**32 - 1], np.int64)
    assert np.array_equal(Decoder(adaptive(values, MOST_ADAPTIVE)).adaptive(5, MOST_ADAPTIVE), values)
    with pytest.raises(NernError, match="too large"):
        Decoder(b"").adaptive(5, MOST_ADAPTIVE + 1)
    symbols, count = 5000, AT_ONCE + 4097
    values = np.random.default_rng(0).integers(0, symbols, count)
    code = adaptive(values, symbols)
    assert np.array_equal(Decoder(code).adaptive(count, symbols), values)
    assert 8 * len(code) / count < math.log2(symbols) + 0.02


def test_codes_that_no_encoder_writes_are_an_error() -> None:
    code = adaptive(np.arange(100), 100)
    longer = Decoder(code + bytes(8))
    longer.adaptive(100, 100)
    with pytest.raises(NernError, match="longer"):
        longer.finish()
    with pytest.raises(NernError, match="longer"):
        Decoder(b"\1\0\0\0").finish()
    with pytest.raises(NernError, match="whole number of 32-bit words"):
        Decoder(code[:-1])
    with pytest.raises(NernError, match="no encoder writes such bytes"):
        Decoder(b"\xff" * 16).adaptive(3, 7)
    code = adaptive(np.full(50, 1025), 1026)  # 1025 = 512 * 2 + 1: of 1025 symbols the lowest bit would not occur
    with pytest.raises(NernError, match="beyond its 1,025 symbols"):
        Decoder(code).adaptive(50, 1025)


# --- permutations ---------------------------------------------------------------------------------------------------


@MANY
@given(n=st.integers(0, 300) | st.sampled_from([SHORT, SHORT + 1]), rows=st.integers(0, 4), seed=st.integers(0, 999))
def test_permutations_come_back(n: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(n) for _ in range(rows)]) if rows else np.empty((0, n), np.int64)
    code = permuted(orders)
    decoder = Decoder(code)
    assert np.array_equal(decode_permutations(decoder, rows, n), orders)
    decoder.finish()
    assert 8 * len(code) <= rows * math.lgamma(n + 1) / math.log(2) + 0.001 * rows * n + 64
    assert rows * least_bits(n) <= 8 * len(code) + 1e-6


# --- tensors --------------------------------------------------------------------------------------------------------


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any kind, shape and size of numbers."""
    dtype = draw(st.sampled_from(list(DTYPES.values())))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if dtype.is_floating_point:
        scale = draw(st.sampled_from([1e-3, 1.0, 50.0]))
        return (torch.randn(shape, generator=rng, dtype=torch.float64) * scale).to(dtype)
    if dtype == torch.bool:
        return torch.rand(shape, generator=rng) > 0.5
    most = torch.iinfo(dtype).max
    low = max(torch.iinfo(dtype).min, -draw(st.sampled_from([3, 300, 2**31, 2**62])))
    return torch.randint(low, min(most, -low if low else 255), shape, generator=rng, dtype=torch.int64).to(dtype)


@MANY
@given(
    group=st.lists(tensors(), max_size=5),
    hows=st.lists(st.one_of(st.integers(-80, 24), st.sampled_from(["as", "f16"])), min_size=5, max_size=5),
)
def test_tensors_come_back(group: list[Tensor], hows: list[int | str]) -> None:
    named = {str(number): tensor for number, tensor in enumerate(group)}
    held = dict(zip(named, hows, strict=False))
    codes, code, raw = encode_tensors(named, held)
    described = [TensorCode.from_json(json.loads(json.dumps(c.to_json()))) for c in codes]
    assert described == codes
    found = decode_tensors(described, code, raw)
    assert list(found) == list(named)
    for (name, tensor), c in zip(named.items(), codes, strict=True):
        own = found[name]
        if not tensor.is_floating_point() or c.held == "as":
            assert same_tensor(own, tensor), c
        elif c.held == "f16":
            assert same_tensor(own, tensor.half().to(tensor.dtype)), c
        else:
            size = step_size(c.step)
            assert same_tensor(own, ((tensor.double() / size).round() * size).to(tensor.dtype) + 0), c
            assert own.dtype == tensor.dtype


@pytest.mark.parametrize("how", ["as", "f16", -8])
def test_numbers_that_need_all_their_bits_get_them(how: int | str) -> None:
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-42, 3e38])
    extremes = torch.tensor([torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max, 0])
    for tensor in (extremes,) if how == -8 else (special, extremes):
        codes, code, raw = encode_tensors({"t": tensor}, {"t": how})
        assert codes[0].held == "as"
        assert same_tensor(decode_tensors(codes, code, raw)["t"], tensor)


def test_tensors_that_cannot_be_held() -> None:
    with pytest.raises(NernError, match="take a larger step"):
        encode_tensors({"t": torch.tensor([0.0, 1.0])}, {"t": -240})
    with pytest.raises(NernError, match="complex64, which an artifact cannot"):
        encode_tensors({"t": torch.zeros(2, dtype=torch.complex64)}, {})
    with pytest.raises(NernError, match="is not from -800 to 800"):
        encode_tensors({"t": torch.zeros(2)}, {"t": 801})


# --- orderings and outliers -----------------------------------------------------------------------------------------

LAYERS = st.lists(st.tuples(*[st.integers(1, 7)] * 2, st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=4)


@pytest.mark.parametrize("mode", MODES)
@given(shapes=LAYERS, seed=st.integers(0, 99))
def test_orderings_come_back(mode: str, shapes: list[tuple[int, int, int, int]], seed: int) -> None:
    ordering = random_ordering(mode, shapes, torch.Generator().manual_seed(seed))
    code = encode_ordering(ordering, shapes)
    found = decode_ordering(mode, code, shapes)
    assert found.mode == mode
    expected, own = ordering.tensors(), found.tensors()
    assert own.keys() == expected.keys()
    assert all(torch.equal(own[name], tensor.long()) for name, tensor in expected.items())
    assert 8 * len(code) <= ordering.bits() + 65 + 0.01 * sum(co * ci for co, ci, _, _ in shapes)


def test_orderings_a_file_does_not_hold() -> None:
    shapes = [(2, 3, 1, 1)]
    for mode in ("channels", "best", "\x1b[2J" * 100):
        with pytest.raises(NernError, match="is unknown") as caught:
            decode_ordering(mode, b"", shapes)
        assert str(caught.value).isprintable()
    with pytest.raises(NernError, match="longer"):
        decode_ordering("none", bytes(4), shapes)
    with pytest.raises(NernError, match=r"needs .* bytes at least, 4 are there"):
        decode_ordering("crossfilter", bytes(4), [(2**11, 2**11, 1, 1)])
    with pytest.raises(NernError, match="permutations; at most"):
        decode_ordering("infilter", bytes(4), [(2**21, 1, 1, 1)])
    with pytest.raises(NernError, match="too long for an artifact"):
        decode_permutations(Decoder(b""), 1, MOST_UNIFORM + 1)


def test_a_file_of_the_version_that_wrote_outliers_opens() -> None:
    found = load(Path(__file__).parent / "data" / "outliers-0.1.0.nern")
    assert found.nern.outliers is not None
    assert found.nern.outliers[0].tolist() == [7, 45, 59, 69, 89, 97, 122]
    flat = torch.cat([w.flatten() for w in found.weights])[found.nern.outliers[0]]
    expected = [-2.1152193546, 2.3022053242, 3.4105026722, 2.5672328472, 2.3025164604, -2.4350652695, -1.9003453255]
    assert flat.tolist() == pytest.approx(expected, rel=1e-9)


def test_codes_of_version_2_are_read() -> None:
    path = Path(__file__).parent / "data" / "codes-version-2.nern"
    found = verify(path, TaskConfig(task_name="digits"), console=quiet())
    assert found["test"]["top1"] == pytest.approx(99.50, abs=0.2)
    artifact = load(path)
    assert {code.held for code in artifact.description.predictor} == {"codes", "f16", "grid"}
    bits = tensor_bits(artifact.description.predictor, artifact.nern.predictor.state_dict())
    assert sum(used for _, used in bits.values()) == 8 * (artifact.sizes["CODE"] + artifact.sizes["PRAW"])


# --- container and description --------------------------------------------------------------------------------------


NAMES = st.text("ABCDEFGHIJ", min_size=4, max_size=4)


@given(sections=st.dictionaries(NAMES, st.binary(max_size=50), min_size=1, max_size=10))
def test_containers_come_back(sections: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = save(tmp_path_factory.getbasetemp() / "sections.nern", sections)
    assert container.read_container(path) == sections
    assert path.stat().st_size == container.header_size(len(sections)) + sum(map(len, sections.values()))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NernError, match="no such file"):
        load(tmp_path / "missing.nern")
    with pytest.raises(NernError, match="is a folder"):
        load(tmp_path)
    for data in (b"", b"\x89NERN", b"PK\3\4" + bytes(99)):
        (tmp_path / "x.nern").write_bytes(data)
        with pytest.raises(DamagedFileError, match=r"not a .nern file|truncated"):
            load(tmp_path / "x.nern")
    (tmp_path / "x.nern").write_bytes(container.to_bytes({"META": bytes(100)}))
    with pytest.raises(DamagedFileError, match="at most 10 are read"):
        container.read_container(tmp_path / "x.nern", 10)


def test_descriptions_that_json_cannot_hold() -> None:
    for arguments in ({"dtype": torch.float32}, {"x": math.nan}):
        with pytest.raises(NernError, match="JSON, which cannot hold"):
            make(architecture="ResNet8", arguments=arguments)


# --- whole files ----------------------------------------------------------------------------------------------------


OF_WEIGHTS = [(6, 5, 3, 3), (7, 3, 1, 1), (4, 2, 5, 5), (5, 9), (3, 4, 7), (8, 1, 3, 3), (2, 3, 1, 2, 3), (1, 1)]


@settings(max_examples=20)
@given(data=st.data(), shapes=st.lists(st.sampled_from(OF_WEIGHTS), min_size=1, max_size=4))
def test_files_come_back(
    data: st.DataObject, shapes: list[tuple[int, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    step, seed = data.draw(st.one_of(st.none(), st.integers(-60, -8))), data.draw(st.integers(0, 99))
    mode, scales = data.draw(st.sampled_from(MODES)), data.draw(st.sampled_from(["none", "per_layer", "per_size"]))
    networks, outliers = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([0.0, 0.1]))
    config = nern_config(output_scales=scales)
    sections, made, original = make(shapes, mode, step, config=config, networks=networks, seed=seed, outliers=outliers)
    path = tmp_path_factory.mktemp("files") / "net.nern"
    assert write_artifact(path, sections) == path.stat().st_size == made.size
    found = load(path)
    assert found.sizes == made.sizes
    assert all(same_tensor(a, b) for a, b in zip(found.weights, made.weights, strict=True))
    for number in range(networks):
        state = found.state_dict(number)
        assert [tuple(state[f"w{i}"].shape) for i in range(len(shapes))] == shapes
        assert same_tensor(state["steps"], torch.tensor(41))
    if step is None:
        assert all(same_tensor(a, b) for a, b in zip(found.weights, original.reconstruct(), strict=True))
    else:
        named = found.nern.predictor.state_dict()
        for name, tensor in original.predictor.state_dict().items():
            most = max(step_size(step) / 2, 2**-10 * float(tensor.abs().max()))
            assert (named[name] - tensor).abs().max() <= 1.01 * most


ENCODINGS: dict[str, dict[str, Any]] = {
    "basic": {"embeddings": {"type": "basic", "enc_levels": 4, "normalization_mode": "local"}},
    "basic, 5": {"method": "basic", "embeddings": {"type": "basic", "enc_levels": 4, "num_idxs": 5}},
    "ffn": {"embeddings": {"type": "ffn", "enc_levels": 4}},
    "order_random": {"embeddings": {"type": "order_random"}},
    "nerf": {"method": "kxk_nerf", "num_blocks": 5},
    "residual": {"method": "kxk_residual", "num_blocks": 5, "norm_layer": "ln"},
    "bn": {"norm_layer": "bn", "act_layer": "hardswish"},
    "shared": {"heads": "shared", "output_size": 5, "sampling_mode": "average"},
    "per_layer": {"heads": "per_layer", "act_layer": "gelu"},
}


@pytest.mark.parametrize("given_", ENCODINGS.values(), ids=ENCODINGS)
def test_every_kind_of_predictor_comes_back(given_: dict[str, Any], tmp_path: Path) -> None:
    settings_ = {key: value for key, value in given_.items() if key != "embeddings"}
    sections, _, original = make(step=None, config=nern_config(given_.get("embeddings"), **settings_), networks=2)
    found = load(save(tmp_path / "net.nern", sections))
    assert all(same_tensor(a, b) for a, b in zip(found.weights, original.reconstruct(), strict=True))


def test_several_networks_are_told_apart(tmp_path: Path) -> None:
    artifact = load(save(tmp_path / "net.nern", make(networks=3)[0]))
    states = [artifact.state_dict(number) for number in range(3)]
    assert all(state.keys() == states[0].keys() for state in states)
    for a, b in itertools.combinations(states, 2):
        assert not torch.equal(a["w0"], b["w0"])
    assert not any(key[0].isdigit() for key in states[0])
    for number in (-1, 3):
        with pytest.raises(NernError, match="must be below 3"):
            artifact.state_dict(number)


def test_probes_notice_other_weights(tmp_path: Path) -> None:
    sections, artifact, _ = make([(4, 3, 3, 3)], "none", config=nern_config())
    other = "differ from the writer's"
    assert artifact.check(artifact.weights) == 0
    with pytest.raises(DamagedFileError, match=other):
        artifact.check([w + 20 * TOLERANCE for w in artifact.weights])
    with pytest.raises(DamagedFileError, match=f"{other} by nan"):
        artifact.check([w * math.nan for w in artifact.weights])
    probes = np.frombuffer(sections["PROB"], "<f4")
    for place, value in itertools.product(range(16), (3e38, -1.0, math.nan, math.inf)):
        changed = np.where(np.arange(16) == place, value, probes).astype("<f4")
        with pytest.raises(DamagedFileError, match=other):
            Artifact(sections | {"PROB": changed.tobytes()}).check(artifact.weights)
    with pytest.raises(DamagedFileError, match=f"{other} by inf"):
        load(save(tmp_path / "x.nern", sections | {"PROB": (probes * 0).tobytes()})).predict()
    with pytest.raises(DamagedFileError, match="what its writer predicted"):
        load(save(tmp_path / "x.nern", {name: data for name, data in sections.items() if name != "PROB"}))


def test_what_a_file_says_cannot_command_a_terminal(tmp_path: Path) -> None:
    sections = with_description(make()[0], lambda d: d.update(metadata={"note\x07": "one\n\x1b[2Jtwo\u202e"}))
    lines = about(load(save(tmp_path / "net.nern", sections)))
    assert all(line.isprintable() for line in lines)
    assert lines[-1] == r"note\x07: one\n\x1b[2Jtwo\u202e"


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ResNet8", {"num_classes": 7, "in_channels": 2}),
        ("torchvision:shufflenet_v2_x0_5", {"num_classes": 5}),
        ("timm:test_convnext", {"num_classes": 3}),
    ],
)
def test_networks_are_built_from_the_file_alone(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    network = build_network(name, arguments).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    task = TaskConfig(task_name="cifar10", original_model_name=name, original_model_kwargs=arguments)
    nern.pack(tmp_path / "w.pt", tmp_path / "a.nern", PackOptions(images=0), quiet(), task=task)
    artifact = load(tmp_path / "a.nern")
    built, state = artifact.network(), artifact.state_dict()
    assert (type(built), built.training) == (type(network), False)
    own = built.state_dict()
    assert own.keys() == network.state_dict().keys() == state.keys()
    assert all(same_tensor(own[key], value) for key, value in state.items())


def test_a_state_dict_goes_into_a_module_of_yours(small_cnn: Callable[..., nn.Module], tmp_path: Path) -> None:
    nern.save(nern.fit(small_cnn(), ratio=3.0, iterations=1, progress=False), tmp_path / "net.nern")
    artifact, mine = load(tmp_path / "net.nern"), small_cnn(5)
    before = copy.deepcopy(mine.state_dict())
    built = artifact.network(mine).state_dict()
    assert all(same_tensor(built[key], value) for key, value in artifact.state_dict().items())
    assert all(same_tensor(mine.state_dict()[key], value) for key, value in before.items())
    with pytest.raises(NernError, match=r"network\(MODULE\)"):
        artifact.network()
    with pytest.raises(NernError, match="does not fit"):
        artifact.network(nn.Linear(2, 2))


@pytest.mark.usefixtures("rng_untouched")
def test_reading_and_building_draw_nothing_of_yours(tmp_path: Path) -> None:
    sections = make([(4, 3, 3, 3)], config=nern_config({"type": "ffn"}), architecture="ResNet8")[0]
    artifact = load(save(tmp_path / "net.nern", sections))
    assert artifact.weights[0].shape == (4, 3, 3, 3)
    with pytest.raises(NernError, match="does not fit"):
        artifact.network()
