"""Pickles written by hand: nothing in them is executed, and none takes more time or room than goes with its bytes."""

from __future__ import annotations

import pickle
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from nern import NernError
from nern.weights_file import load_weights, state_dicts


def number(n: int) -> bytes:
    data = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def text(s: str) -> bytes:
    return b"X" + struct.pack("<I", len(s.encode())) + s.encode()


def named(name: str) -> bytes:
    module, _, what = name.rpartition(".")
    return f"c{module}\n{what}\n".encode()


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def call(name: str, *arguments: bytes) -> bytes:
    return named(name) + tuple_of(*arguments) + b"R"


def put(place: int) -> bytes:
    return b"r" + struct.pack("<I", place)


def get(place: int) -> bytes:
    return b"j" + struct.pack("<I", place)


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], stored: int = 4) -> bytes:
    kept = tuple_of(text("storage"), named("torch.FloatStorage"), text("0"), text("cpu"), number(stored)) + b"Q"
    sizes = [tuple_of(*map(number, axes)) for axes in (shape, strides)]
    return call("torch._utils._rebuild_tensor_v2", kept, number(0), *sizes, b"\x89", call("collections.OrderedDict"))


def dict_of(key: bytes, value: bytes = b"N") -> bytes:
    return b"}" + key + value + b"s"


def calls(name: str, *arguments: bytes, times: int = 2000) -> bytes:
    """The same call many times over: its arguments are written once."""
    kept = named(name) + put(0) + tuple_of(*arguments) + put(1)
    return tuple_of(kept, (get(0) + get(1) + b"R") * times)


RUN = text("touch executed")
NUMPY = "numpy._core.multiarray"
RANGE = call("builtins.range", number(10**10))
PAIRS = b")" + put(0) + b"".join(get(k) * 2 + b"\x86" + put(k + 1) for k in range(40))  # the last one: 2**40 within it
SPARSE = tuple_of(tensor((1, 1), (1, 1)), tensor((1,), (1,)), tuple_of(number(2**40)))
OBJECT_FIELD = call("numpy.dtype", text("V8")) + tuple_of(
    number(3), text("|"), b"N", tuple_of(text("a")),
    dict_of(text("a"), tuple_of(call("numpy.dtype", text("O8")), number(0))), number(8), number(1), number(0),
) + b"b"  # fmt: skip
GROWN = call("_codecs.encode", text("x" * 1000), text("latin1"))
for _ in range(28):
    GROWN = call("_codecs.encode", GROWN, text("hex"))
CODE, COST, OPCODE = "they could run code and are refused", "far more time and room", "which torch.save does not write"
STATE, KEYS, NONE, EXPANDED = "sets the state of", "keys that no weights need", "holds no state dict", "was expanded"
ATTACKS: dict[str, tuple[bytes, str]] = {
    "a command": (call("os.system", RUN), CODE),
    "eval": (call("builtins.eval", RUN), CODE),
    "an attribute": (call("builtins.getattr", named("builtins.list"), text("__class__")), CODE),
    "a dotted name": (b"ccollections\nOrderedDict.fromkeys\n" + tuple_of(RANGE) + b"R", CODE),
    "a text that is called": (text("x") + b")R", CODE),
    "with a type": (call("torch._tensor._rebuild_from_type_v2", named("os.system"), b"N", tuple_of(RUN), b"}"), CODE),
    "a name from the stack": (b"\x80\x04" + text("os") + text("system") + b"\x93" + tuple_of(RUN) + b"R", OPCODE),
    "NEWOBJ_EX": (b"\x80\x04" + named("builtins.dict") + b")}\x92", OPCODE),
    "INST": (b"(" + RUN + b"ios\nsystem\n", OPCODE),
    "OBJ": (b"(" + named("os.system") + RUN + b"o", OPCODE),
    "EXT1": (b"\x82\x01", OPCODE),
    "an id in a line": (b"Pstorage\n", OPCODE),
    "an id of another kind": (tuple_of(text("module"), named("os.system")) + b"Q", "tells of None numbers"),
    "the state of a function": (named("torch._utils._rebuild_tensor_v2") + b"N}\x86b", STATE),
    "the state of a class": (named("builtins.set") + dict_of(text("__call__")) + b"b", STATE),
    "methods in a mapping": (call("collections.OrderedDict") + dict_of(text("items")) + b"b", STATE),
    "attributes of a parameter": (
        call("torch._utils._rebuild_parameter_with_state", tensor((4,), (1,)), b"\x89", b"}", dict_of(text("shape"))),
        "cannot be read",
    ),
    "bytes": (call("builtins.bytearray", number(2**34)), CODE),
    "a new tensor": (named("torch.Tensor") + tuple_of(number(2**33)) + b"\x81", CODE),
    "a storage": (call("torch.storage.UntypedStorage", number(2**34)), CODE),
    "text that grows": (GROWN, "encodes text"),
    "a list of a range": (call("builtins.list", RANGE), NONE),
    "a counter of a range": (call("collections.Counter", RANGE), "cannot be read"),
    "a scalar of NumPy": (call(f"{NUMPY}.scalar", call("numpy.dtype", text("V2147483647"))), NONE),
    "an array of NumPy": (call(f"{NUMPY}._reconstruct", named("numpy.ndarray"), tuple_of(number(2**33)), text("O")), NONE),
    "bytes as an object": (dict_of(call(f"{NUMPY}.scalar", OBJECT_FIELD, text("AAAAAAAA"))), NONE),
    "a key that holds itself": (tuple_of(PAIRS, dict_of(get(40))), KEYS),
    "a deep key": (dict_of(b")" + b"\x85" * 20_000), KEYS),
    "a deep member": (call("builtins.set", b"](" + b")" + b"\x85" * 20_000 + b"e"), KEYS),
    "deep lists": (b"]" * 20_000 + b"a" * 19_999, NONE),
    "numbers of one hash": (b"}(" + b"".join(number(k * (2**61 - 1)) + b"N" for k in range(1, 5000)) + b"u", KEYS),
    "a set over and over": (calls("builtins.set", b"](" + b"N" * 5000 + b"e"), COST),
    "text over and over": (calls("_codecs.encode", text("x" * 10**6), text("latin1")), COST),
    "an object over and over": (calls("builtins.range", b"N" * 5000), COST),
    "a far place in the memo": (b"N" + put(2**32 - 1) + get(2**32 - 1), NONE),
    "mappings that hold each other": (
        tuple_of(*(b"}(" + b"".join(text(f"k{j}") + (get(k - 1) if k else b"N") for j in range(300)) + b"u" + put(k)
                   for k in range(5))), NONE),
    "a list in itself": (b"]" + put(0) + get(0) + b"a", NONE),
    "an expanded tensor": (dict_of(text("weight"), tensor((2**40,), (0,))), EXPANDED),
    "a storage that is not there": (dict_of(text("weight"), tensor((2**30,), (1,), 2**30)), "tells of 1073741824 numbers"),
    "a storage that is short": (dict_of(text("weight"), tensor((5,), (1,), 5)), "cannot be read"),
    "a sparse tensor": (
        dict_of(text("weight"), call("torch._utils._rebuild_sparse_tensor",
                                     call("torch.serialization._get_layout", text("torch.sparse_coo")), SPARSE)),
        "1 of another shape",
    ),
    "nothing": (b"", "cannot be read"),
    "a longer text than the file": (b"X\xff\xff\xff\xffabc", "cannot be read"),
}  # fmt: skip


def write(path: Path, body: bytes, old: bool) -> Path:
    """A file as torch.save writes it, with this pickle in it and a storage of 4 numbers."""
    values, key = b"\x80\x02" + body + b".", b"storage" in body
    if old:
        heads = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        data = struct.pack("<q", 4) + bytes(16) if key else b""
        values = values.replace(b"tQ", b"NtQ")  # it is no view of another storage
        path.write_bytes(b"".join(heads) + values + pickle.dumps(["0"] if key else [], 2) + data)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", values), ("version", b"3\n"), ("data/0", bytes(16))):
            archive.writestr(f"w/{name}", data)
    return path


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
@pytest.mark.parametrize(("body", "message"), ATTACKS.values(), ids=ATTACKS)
def test_hostile_pickles_are_one_error(
    body: bytes, message: str, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    with pytest.raises(NernError, match=message) as caught:
        load_weights(nn.Linear(2, 2, bias=False), write(tmp_path / "w.pt", body, old))
    assert time.process_time() - start < 5
    assert len(str(caught.value)) < 1000
    assert {path.name for path in tmp_path.iterdir()} == {"w.pt"}


def test_what_is_written_by_hand_is_read(tmp_path: Path) -> None:
    body = dict_of(text("weight"), tensor((2, 2), (2, 1)))
    for old in (False, True):
        (found,) = state_dicts(write(tmp_path / "w.pt", body, old))
        assert torch.equal(found.tensors["weight"], torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("entries", "packed", "message"),
    [
        ({"w/data/0": bytes(2**24)}, zipfile.ZIP_DEFLATED, "unpacks to 16,"),
        ({"w/DATA.PKL": b"N."}, zipfile.ZIP_STORED, "cannot be read"),
        ({"v/data.pkl": b"N."}, zipfile.ZIP_STORED, "cannot be read"),
    ],
)
def test_hostile_archives_are_one_error(entries: dict[str, bytes], packed: int, message: str, tmp_path: Path) -> None:
    values = b"\x80\x02" + dict_of(text("weight"), tensor((2, 2), (2, 1))) + b"."
    with zipfile.ZipFile(tmp_path / "w.pt", "w", packed) as archive:
        for name, data in {"w/data.pkl": values, "w/version": b"3\n", **entries}.items():
            archive.writestr(name, data)
    with pytest.raises(NernError, match=message):
        state_dicts(tmp_path / "w.pt")
