"""Damaged and hostile artifacts: one error that says so, in bounded time and memory, or what the file says."""

from __future__ import annotations

import copy
import functools
import json
import math
import random
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifact_parts import Sections, blake, make, nern_config, raw_container, save, with_description
from nern import DamagedFileError, NernError
from nern.artifact import Artifact, Holding, load
from nern.artifact.container import to_bytes
from nern.artifact.entropy import Encoder
from nern.artifact.reading import SECTIONS
from nern.artifact.table import about, artifact_table, layer_table
from nern.config import NernConfig
from nern.originals.checked import DTYPES

LIMIT = 2**18  # of the files that are read here
SECONDS, BYTES = 15.0, 400_000_000  # of reading one of them, at most


@pytest.fixture(scope="module")
def files() -> list[Sections]:
    """Files that have all sections, with one network and with two, quantised and not."""
    tensors = Holding({"norm.weight": -30}, "as")
    shapes = ((5, 4, 3, 3), (4, 6, 1, 1), (3, 4))
    made = (
        make(shapes, kept=tensors),
        make(shapes, "crossfilter", None, tensors, networks=2, aliases={"tied": "w1"}, about={"test": {"top1": 1.0}}),
        make(shapes, "infilter", -40, tensors, nern_config({"type": "ffn"}), outliers=0.1, architecture="ResNet8"),
        make(shapes, "none", -9, tensors, nern_config({"type": "basic"}, heads="shared", output_scales="per_size")),
        make(shapes, "none", kept=tensors, config=NernConfig(method="codes"), about={"errors": [120, 40, 7]}),
    )
    return [sections for sections, *_ in made]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Of a file to write, in memory where there is such a folder: it is written thousands of times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder) / "x.nern"


@contextmanager
def bounded(seconds: float = SECONDS, most: int = BYTES) -> Iterator[None]:
    """Asserts that what is within takes no longer, and no more memory."""
    before, start, peak = _memory("VmRSS"), time.monotonic(), Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")  # it begins anew
    yield
    assert time.monotonic() - start < seconds
    assert _memory("VmHWM") - before < most


def _memory(what: str) -> int:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else [f"{what}: 0 kB"]  # where there is no Linux
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def one_line(error: Exception, part: str = "") -> None:
    """Asserts that an error says this, in one line that can be shown."""
    assert part in str(error)
    assert str(error).isprintable()
    assert len(str(error)) < 1500


def consistent(artifact: Artifact, limit: int) -> None:
    """Asserts that an artifact is what it says; its weights are predicted, or are none."""
    description = artifact.description
    assert description.values <= limit
    for line in about(artifact):
        assert line.isprintable()
    assert int(str(list(artifact_table(artifact).columns[3].cells)[-1]).replace(",", "")) == artifact.size
    layer_table(artifact)
    for code in description.kept:
        tensor = artifact.kept[code.name]
        assert tuple(tensor.shape) == code.shape
        assert tensor.dtype == DTYPES[code.dtype]
    for place in artifact.ordering.positions(artifact.nern.table.shapes):
        assert sorted(place.tolist()) == list(range(len(place)))
    try:
        weights = artifact.predict()
    except DamagedFileError as error:
        one_line(error, "differ from the writer's")
        return
    assert all(torch.isfinite(w).all() for w in weights)
    for number, network in enumerate(description.networks):
        state = artifact.state_dict(number)
        for name, shape, dtype in network.represented:
            assert tuple(state[name].shape) == shape
            assert state[name].dtype == DTYPES[dtype]
        assert set(network.aliases) <= set(state)
        with pytest.raises(NernError):
            artifact.network(number)


def tried(path: Path, limit: int = LIMIT) -> bool:
    """Whether a file is read; what is read is consistent, and what is not gives one line."""
    try:
        artifact = load(path, limit)
    except DamagedFileError as error:
        one_line(error)
        return False
    consistent(artifact, limit)
    return True


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The same bytes with some damage."""
    at, end = rng.randrange(len(data)), rng.randrange(len(data) + 1)
    some = rng.randbytes(rng.choice([1, 1, 2, 4, 28, 100]))
    return rng.choice([
        lambda: data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
        lambda: data[:at] + some + data[at + len(some) :],
        lambda: data[:at] + some + data[at:],
        lambda: data[:end],
        lambda: data[:at] + data[at + len(some) :],
        lambda: data + some,
        lambda: data[at:] + data[:at],
        lambda: data[:at] + data[min(at, end) : max(at, end)] + data[at:],
        lambda: data[:at] + bytes(len(some)) + data[at + len(some) :],
    ])()  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_found(files: list[Sections], seed: int, path: Path) -> None:
    data, rng = to_bytes(files[seed]), random.Random(seed)
    with bounded(60):
        for _ in range(400):
            other = damaged(data, rng)
            path.write_bytes(other)
            assert tried(path) == (other == data)


def test_every_byte_of_the_header_and_every_length_is_looked_at(files: list[Sections], path: Path) -> None:
    data = to_bytes(files[0])
    for byte in range(40 + 28 * len(files[0])):
        changed = bytearray(data)
        changed[byte] ^= 1 << byte % 7
        path.write_bytes(changed)
        assert not tried(path)
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedFileError, match=r"truncated|not a .nern file"):
            load(path)


def test_headers_that_lie(files: list[Sections], path: Path) -> None:
    entries = [(name.encode(), data) for name, data in files[0].items()]
    whole = raw_container(entries)
    path.write_bytes(whole)
    assert tried(path)
    huge = struct.pack("<4sQ16s", b"META", 2**64 - 1, bytes(16))
    lies = [raw_container(entries, version=v) for v in (0, 2, 3, 2**16 - 1)]
    lies += [raw_container(entries, count=c) for c in (0, 1, len(entries) + 1, 65, 2**16 - 1)]
    lies += [raw_container(entries, zero=1), raw_container(entries, total=2**64 - 1), raw_container(entries, total=0)]
    others = [[*entries, entries[0]], [], [(b"\xff\x00\x1b[", b"x"), *entries], [*entries, (b"MORE", b"x")]]
    others += [[(b"PRED", b"")] * 65, entries[1:], [entry for entry in entries if entry[0] != b"PROB"]]
    lies += [raw_container(other) for other in others]
    for count in (1, 2):  # sections that are larger than any file
        fields = (b"\x89NERN\r\n\x1a", 1, count, 0, 40 + 28 * count)
        table = huge + huge.replace(b"META", b"PRED")
        digest = blake(struct.pack("<8sHHIQ16s", *fields, bytes(16)) + table[: 28 * count])
        lies.append(struct.pack("<8sHHIQ16s", *fields, digest) + table[: 28 * count])
    with bounded():
        for data in lies:
            path.write_bytes(data)
            assert not tried(path)
    path.write_bytes(raw_container(entries[::-1]))  # the order of sections is free
    assert tried(path)


@pytest.mark.parametrize("seed", range(4))
def test_sections_of_other_bytes(files: list[Sections], seed: int, path: Path) -> None:
    sections, rng, kept = files[seed], random.Random(100 + seed), 0
    with bounded(60):
        for _ in range(60):
            name = rng.choice([name for name in SECTIONS if name != "META"])
            data = damaged(sections[name], rng) if sections.get(name) else rng.randbytes(rng.choice([1, 4, 8, 12, 64]))
            kept += tried(save(path, sections | {name: data}))
        names = [name for name in sections if name != "META"]
        for one, other in zip(names, names[1:] + names[:1], strict=True):  # each in the place of another one
            tried(save(path, sections | {one: sections[other], other: sections[one]}))
    assert kept < 60  # some are read: a code is what it is


@pytest.mark.parametrize("seed", range(4))
def test_descriptions_of_other_bytes(files: list[Sections], seed: int, path: Path) -> None:
    sections, rng = files[seed], random.Random(200 + seed)
    text = zlib.decompress(sections["META"])
    with bounded(60):
        for number in range(80):
            packed = damaged(sections["META"], rng) if number % 2 else zlib.compress(damaged(text, rng))
            tried(save(path, sections | {"META": packed}))


HOSTILE: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 5, 7, 63, 64, 255, 1000, 2**14, 2**16, 2**20, 2**24, 2**24 + 1, 2**31 - 1, 2**31,
    2**40, 2**63, 2**64, -(2**63), 10**300, 10**4000, 0.5, -0.5, 1e300, 5e-324, 3.0, "", "x", "none", "per_layer",
    "shared", "basic", "order", "ffn", "kxk_nerf", "bn", "crossfilter", "infilter", "channels", "f64", "i8", "b", "grid",
    "as", "f16", "os:system", "timm:resnet18", "../../etc/passwd", "\x00", "\x1b[2J", "\ud800", "\u202e", "é" * 300,
    "x" * 100_000, [], {}, [[]], [None], [[], []], [1, 2, 3], [-1, 2], [2**30, 2**30], [0, 2**30], {"a": 1}, {"": {}},
    [1] * 1000, ["w0", [1, 1], "f32"], ["x", [3], "f32", "as"], ["x", [2**20], "f32", "grid", 0, 0, 1],
    ["x", [3], "i8", "grid", 0, 0, 2**24], ["x", [3], "f32", "grid", 800, -(2**24), 2**24],
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values are, in JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def at(value: Any, path: Iterable[Any]) -> Any:
    """What is in JSON at a place."""
    return functools.reduce(lambda inside, key: inside[key], path, value)


def put(value: Any, path: Sequence[Any], item: Any) -> None:
    """Put something in the place of what is there."""
    at(value, path[:-1])[path[-1]] = item


def changed_value(value: Any, rng: random.Random) -> None:
    """Change a random place of JSON."""
    *path, last = rng.choice(list(places(value)))
    inside = at(value, path)
    found = inside[last]
    number = isinstance(found, int | float) and not isinstance(found, bool)
    how = rng.randrange(8)
    if how == 0:
        del inside[last]
    elif how == 1 and isinstance(inside, list):
        inside.insert(last, copy.deepcopy(found))
    elif how == 2 and isinstance(inside, list):
        inside[last], inside[0] = inside[0], found
    elif how <= 4 and number:
        inside[last] = rng.choice([found + 1, found - 1, -found, found * 2, found * 1000, found + 2**10])
    else:
        inside[last] = copy.deepcopy(rng.choice(HOSTILE))


@pytest.mark.parametrize("seed", range(4))
def test_descriptions_of_other_values(files: list[Sections], seed: int, path: Path) -> None:
    sections, rng, kept = files[seed], random.Random(300 + seed), 0
    with bounded(60):
        for _ in range(150):
            times = rng.choice([1, 1, 1, 2, 5])
            changed = with_description(sections, lambda d, n=times: [changed_value(d, rng) for _ in range(n)])
            kept += tried(save(path, changed))
    assert 0 < kept < 100  # what means nothing, such as the writer's name, may be anything


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:24])
def test_every_key_of_any_value(files: list[Sections], value: Any, path: Path) -> None:
    tops = ("nern", "ordering", "writer", "outliers")
    every = [*places(json.loads(zlib.decompress(files[0]["META"])))]
    keys = [at for at in every if len(at) == 1 or at[0] in tops or (at[0] == "networks" and len(at) < 5)]
    assert len(keys) > 20
    with bounded(30):
        for key in keys:
            tried(save(path, with_description(files[0], lambda d, key=key: put(d, key, value))))


def nern_of(**values: Any) -> Callable[[dict[str, Any]], object]:
    """Sets keys of the section `nern`; of its embeddings too."""

    def change(description: dict[str, Any]) -> None:
        for key, value in values.items():
            section = description["nern"]
            (section if key in section else section["embeddings"])[key] = value

    return change


def layers_of(*shapes: list[int], **values: Any) -> Callable[[dict[str, Any]], object]:
    """Other predicted weights."""

    def change(description: dict[str, Any]) -> None:
        description["networks"][0]["represented"] = [[f"w{i}", shape, "f32"] for i, shape in enumerate(shapes)]
        description.pop("outliers", None)
        nern_of(**values)(description)

    return change


def network_of(**values: Any) -> Callable[[dict[str, Any]], object]:
    """Sets keys of the first network."""
    return lambda description: description["networks"][0].update(values)


FIRST = ("networks", 0, "represented", 0)  # where the first predicted weight is described


def tensor_of(group: str, *tensor: Any) -> Callable[[dict[str, Any]], object]:
    """One more tensor."""
    return lambda description: description[group].append(list(tensor))


BOMBS: dict[str, Callable[[dict[str, Any]], object]] = {
    "weights": layers_of([2**30, 2**30]),
    "weights within the limit": layers_of([2**27, 1], ordering="none"),
    "many layers": layers_of(*[[1, 1]] * (2**14 + 1)),
    "many sizes of kernels": layers_of(*[[1, 1, i + 1, 1] for i in range(10_000)]),
    "a head for each layer": layers_of(*[[1, 1, i + 1, 1] for i in range(10_000)], heads="per_layer"),
    "shared heads": layers_of([2**10, 2**10], heads="shared", output_size=2**14),
    "wide": nern_of(hidden_layer_size=2**14),
    "deep": nern_of(num_blocks=2**30),
    "frequencies": nern_of(enc_levels=2**13),
    "coordinates": layers_of([2**26, 1], type="basic", enc_levels=2**13),
    "a tensor of one value": tensor_of("kept", "x", [2**30], "f32", "grid", 0, 0, 1),
    "an empty tensor of huge axes": tensor_of("kept", "x", [0, *[2**30] * 4], "f32", "as"),
    "a predictor that is empty and wide": tensor_of("predictor", "x", [0, 2**14], "f32", "as"),
    "many tensors": lambda d: d["kept"].extend([f"t{i}", [1], "f32", "grid", 0, 0, 1] for i in range(2**16)),
    "symbols": tensor_of("kept", "x", [2**16], "f32", "grid", 0, 0, 2**40),
    "outliers": lambda d: d.update(outliers=[2**39, 2**39]),
    "metadata": lambda d: d.update(metadata={str(i): "x" * 100 for i in range(100_000)}),
}


def test_bombs_of_zlib_and_json(files: list[Sections], path: Path) -> None:
    whole = zlib.decompress(files[0]["META"])
    texts = [
        b"{}", b"", b"[]", b"null", b"1" * 5000, b"[" * 10**5, b'{"a":' * 10**5, b'{"writer":"x","writer":"y"}',
        b"\xef\xbb\xbf" + whole, whole + b" x", whole.decode().encode("utf-16"), b"\xff" + whole, b" " * 10**7,
        b"[" + b"[]," * 10**5 + b"1]", b'{"writer":' + b"9" * 5000 + b"}", b'{"writer": 1e999}', b'{"writer": NaN}',
        b'{"writer": -Infinity}', whole[:-1] + b',"metadata":{"a":"b"}}', whole[:-1] + b',"about":[1e400]}',
    ]  # fmt: skip
    with bounded(20):
        for text in texts:
            assert not tried(save(path, files[0] | {"META": zlib.compress(text, 1)}))
    packed = files[0]["META"]
    raw = zlib.compressobj(wbits=-15)
    for data in (b"", packed[:-1], packed + b"x", packed + packed, packed[2:], raw.compress(whole) + raw.flush()):
        assert not tried(save(path, files[0] | {"META": data}))


def test_orderings_that_are_not_there_take_no_room(path: Path) -> None:
    for mode, shape in (
        ("crossfilter", [2**11, 2**11]),
        ("infilter", [2**16, 2**8]),
        ("infilter_path", [2**12, 2**12]),
    ):
        sections = make([(6, 5)], mode, config=nern_config())[0]
        save(path, with_description(sections, layers_of(shape)))
        with bounded(), pytest.raises(DamagedFileError, match="ordering needs"):
            load(path)


@pytest.mark.parametrize(("symbols", "low"), [(1, 7), (2, -5), (1000, 0), (70_000, -3), (2**24, -(2**23))])
def test_numbers_within_the_limit_take_bounded_room(symbols: int, low: int, path: Path) -> None:
    count = 2**22
    sections = make([(6, 5)], "none", config=nern_config())[0]
    encoder = Encoder()  # of a few numbers; what is beyond the end reads as zeros
    encoder.adaptive(np.zeros(40, np.int64), symbols)
    sections |= {"KEPT": encoder.finish()}

    def change(description: dict[str, Any]) -> None:
        description["kept"] = [["x", [count], "f32", "grid", 0, low, symbols]]

    changed = with_description(sections, change)
    save(path, {name: data for name, data in changed.items() if name != "KRAW"})
    with bounded(10, 40 * count + 50_000_000):
        try:
            kept = load(path, 2**23).kept["x"]
        except DamagedFileError:
            return
    assert kept.shape == (count,)
    assert low <= float(kept.min()) <= float(kept.max()) < low + symbols


def test_what_would_be_predicted_for_years_is_refused(path: Path) -> None:
    width = 2**12
    predictor = [
        ["layers.0.weight", [width, 7], "f32", "grid", 0, 0, 1], ["layers.0.bias", [width], "f32", "grid", 0, 0, 1],
        ["layers.1.weight", [width, width], "f32", "grid", 0, 0, 1], ["layers.1.bias", [width], "f32", "grid", 0, 0, 1],
        ["final_linear_layer.weight", [1, width], "f32", "grid", 0, 0, 1],
        ["final_linear_layer.bias", [1], "f32", "grid", 0, 0, 1],
    ]  # fmt: skip
    sections = make([(6, 5)], "none", config=nern_config())[0]

    def change(description: dict[str, Any]) -> None:
        layers_of([2**13, 2**14], hidden_layer_size=width)(description)
        description["predictor"] = predictor

    changed = with_description(sections, change)
    path = save(path, {name: changed[name] for name in ("META", "PROB", "KRAW", "KEPT") if name in changed})
    with bounded(), pytest.raises(DamagedFileError, match="products; more than"):
        load(path)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "base that is no number": (nern_of(base=math.nan), "holds NaN"),
    "negative base": (nern_of(base=-1.0), "has base"),
    "true width": (nern_of(hidden_layer_size=True), "has hidden_layer_size"),
    "another width": (nern_of(hidden_layer_size=8), "does not fit its description"),
    "one block": (nern_of(num_blocks=1), "has num_blocks"),
    "unknown method": (nern_of(method="kxl"), "has method = 'kxl'"),
    "unknown encoding": (nern_of(type="x" * 10**6), "has type"),
    "unknown normalisation": (nern_of(normalization_mode=["none"]), "has normalization_mode"),
    "random features of two indices": (nern_of(type="ffn", gauss_scale=[1.0, 0.1]), "2 numbers in gauss_scale"),
    "unknown ordering": (lambda d: d.update(ordering="best"), "ordering 'best' is unknown"),
    "no network": (lambda d: d.update(networks=[]), "names no network"),
    "a tensor twice": (lambda d: d["kept"].append(d["kept"][0]), "twice"),
    "a weight that is kept": (tensor_of("kept", "w0", [], "f32", "grid", 0, 0, 1), "twice"),
    "another name of nothing": (network_of(aliases={"a": "nothing"}), "does not hold"),
    "another name that is taken": (network_of(aliases={"w1": "w0"}), "twice"),
    "a weight of whole numbers": (lambda d: put(d, (*FIRST, 2), "i64"), "whole numbers"),
    "an empty weight": (lambda d: put(d, (*FIRST, 1), [0, 4, 3, 3]), "has no kernels"),
    "a name that commands": (network_of(name="\x1b[2J"), "no name of a network"),
    "figures that are none": (network_of(about={"test": {"top1": "99"}}), "is no number"),
    "metadata of numbers": (lambda d: d.update(metadata={"a": 1}), "not all text"),
    "a negative number of outliers": (lambda d: d.update(outliers=[-1, 3]), "no two numbers"),
    "a tensor of no shape": (tensor_of("kept", "x", [-1], "f32", "as"), "has the shape"),
    "a tensor of unknown numbers": (tensor_of("kept", "x", [2], "f8", "as"), "neither is known"),
    "a tensor held in no known way": (tensor_of("kept", "x", [2], "f32", "zip"), "neither is known"),
    "a predictor that is not finite": (lambda d: _infinite(d["predictor"]), "not finite"),
}


def _infinite(codes: list[list[Any]]) -> None:
    """The first tensor on a grid as 16-bit numbers, of which the largest multiples are infinite."""
    code = next(code for code in codes if code[3] == "grid")
    code[2], code[4] = "f16", 200


@pytest.mark.parametrize(
    ("change", "message"), [*((bomb, "") for bomb in BOMBS.values()), *REFUSED.values()], ids=[*BOMBS, *REFUSED]
)
def test_what_a_description_must_not_say(
    change: Callable[[dict[str, Any]], object], message: str, files: list[Sections], path: Path
) -> None:
    save(path, with_description(files[0], change))
    with bounded(), pytest.raises(DamagedFileError) as caught:
        load(path)
    one_line(caught.value, message)


def test_tensors_of_several_networks_are_of_one_of_them(files: list[Sections], path: Path) -> None:
    for name in ("x", "2.x", "-1.x", "00.x", ".x", "1.w0"):
        change = tensor_of("kept", name, [], "f32", "grid", 0, 0, 1)
        save(path, with_description(files[1], change))
        with pytest.raises(DamagedFileError, match=r"twice, or of no network"):
            load(path)


def test_unknown_keys_are_passed_over(files: list[Sections], path: Path) -> None:
    def change(description: dict[str, Any]) -> None:
        description["later"] = {"a": [1]}
        description["networks"][0]["later"] = 3
        description["nern"]["later"] = None

    found = load(save(path, with_description(files[0], change)))
    expected = load(save(path, files[0]))
    assert all(torch.equal(a, b) for a, b in zip(found.weights, expected.weights, strict=True))
