"""Weights files of others: whatever a file is called and however its names are wrapped, what fits is taken."""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import pathlib
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from nern.config import EmbeddingsConfig, NernConfig
from nern.errors import NernError, NernWarning
from nern.originals.build import build_original_network
from nern.representation.kernels import KernelTable
from nern.representation.nern import build_nern
from nern.weights_file import load_weights, state_dicts

State = dict[str, Any]


class Net(nn.Module):
    """A convolution, a norm with its counter, and a layer whose weight is tied to another's."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.head, self.tied = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.tied.weight = self.head.weight
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=rng))


@pytest.fixture
def source() -> Net:
    return Net(1)


def loaded(path: Path | str) -> Net:
    network = Net(0)
    load_weights(network, path)
    return network


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(t, b.state_dict()[n]) for n, t in a.state_dict().items())


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: value for name, value in state.items()}


def save_legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def save_safe(value: State, path: Path) -> None:
    save_file({n: t.clone() for n, t in value.items()}, path)


@pytest.mark.parametrize("name", ["w.pth.tar", "w.PTH", "w", "w#1.pt", "w.safetensors"])
@pytest.mark.parametrize("save", [torch.save, save_legacy, save_safe])
def test_the_suffix_says_nothing(name: str, save: Callable[[Any, Path], None], source: Net, tmp_path: Path) -> None:
    save(source.state_dict(), tmp_path / name)
    assert equal(loaded(tmp_path / name), source)


def write_script(source: Net, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Sequential(nn.Linear(2, 2))).save(str(path))


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (write_script, "is a TorchScript file, which holds code. Save its weights instead"),
        (lambda source, path: path.write_bytes(b"GGUF" + b"\0" * 40), "is a GGUF file"),
        (lambda source, path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 40), "is an HDF5 file"),
        (lambda source, path: path.write_bytes(b"\x89NERN\r\n\x1a" + b"\0" * 40), "is a .nern file: `nern unpack`"),
        (lambda source, path: path.write_text("<!DOCTYPE html>"), "cannot be read: truncated, or not a PyTorch file"),
        (lambda source, path: torch.save([source.conv.weight.data], path), "holds no state dict.*it holds list"),
        (lambda source, path: torch.save({"epoch": 3}, path), "holds no state dict.*the entries epoch"),
        (lambda source, path: torch.save({"state_dict": None, "args": {}}, path), "the entries state_dict, args"),
    ],
)  # fmt: skip
def test_what_is_no_state_dict_is_told_by_its_name(
    write: Callable[[Net, Path], Any], says: str, source: Net, tmp_path: Path
) -> None:
    write(source, tmp_path / "w.pt")
    with pytest.raises(NernError, match=says):
        loaded(tmp_path / "w.pt")


@pytest.mark.parametrize("key", ["net", "state_dict", "ema", "module", "a.b.c.d.e"])
def test_a_state_dict_under_any_key_is_found(key: str, source: Net, tmp_path: Path) -> None:
    state: Any = source.state_dict()
    for part in reversed(key.split(".")):
        state = {part: state}
    optimizer = torch.optim.SGD(source.parameters(), momentum=0.9)
    torch.save({"epoch": 7, "optimizer": optimizer.state_dict(), **state}, tmp_path / "w.pt")
    assert equal(loaded(tmp_path / "w.pt"), source)


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda first, second: ({"epoch": 1}, first, (second,)), "2.0"),
        (lambda first, second: {"nets": {7: [first, second]}, "losses": [0.5, 0.25], (1, 2): 3}, "nets.7.1"),
    ],
    ids=["tuple", "numbers"],
)
def test_state_dicts_in_lists_and_under_numbers_are_found(wrap: Callable[..., Any], key: str, tmp_path: Path) -> None:
    first, second = Net(1), Net(2)
    torch.save(wrap(first.state_dict(), second.state_dict()), tmp_path / "w.pt")
    with pytest.warns(NernWarning, match=rf"several weights that fit: .* was taken\. To take others: .*w\.pt#{key}"):
        assert equal(loaded(tmp_path / "w.pt"), first)
    assert equal(loaded(f"{tmp_path}/w.pt#{key}"), second)


@pytest.mark.parametrize(
    "wrap", [prefixed("predictor._orig_mod."), lambda state: [{"lr": 0.1}, {"epoch": 3, "model_state_dict": state}]]
)
def test_predictors_read_whatever_networks_do(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    table, own = KernelTable(((4, 3, 3, 3),)), {"embeddings": EmbeddingsConfig(type="order", enc_levels=3)}
    written = build_nern(NernConfig(hidden_layer_size=6, **own), table, None, 1)
    torch.save(wrap(dict(written.predictor.state_dict())), tmp_path / "p.ckpt")
    config = NernConfig(hidden_layer_size=6, init="checkpoint", checkpoint_path=str(tmp_path / "p.ckpt"), **own)
    assert equal(build_nern(config, table, None, 2).predictor, written.predictor)


@pytest.mark.parametrize(
    "wrap",
    [
        prefixed("module."),
        prefixed("model._orig_mod."),
        prefixed("encoder."),
        lambda state: {name.replace("conv.", "conv._orig_mod."): value for name, value in state.items()},
        lambda state: prefixed("model.")({name.replace(".", ".module.", 1): value for name, value in state.items()}),
        lambda state: {"n_averaged": torch.tensor(9), **prefixed("module.")(state)},  # AveragedModel
        lambda state: {**state, "norm._extra_state": None},
        lambda state: {**state, "epoch": 3, "note": "text"},
        lambda state: {n: v for n, v in state.items() if "num_batches" not in n},
        lambda state: {n: v for n, v in state.items() if n != "tied.weight"},
        lambda state: {n: v for n, v in state.items() if n != "head.weight"},
        lambda state: {n: v.int() if "num_batches" in n else v for n, v in state.items()},
    ],
)  # fmt: skip
def test_names_are_unwrapped_until_they_fit(wrap: Callable[[State], State], source: Net, tmp_path: Path) -> None:
    torch.save(wrap(dict(source.state_dict())), tmp_path / "w.pt")
    assert equal(loaded(tmp_path / "w.pt"), source)


@pytest.mark.parametrize("prefix", ["ema", "a.ema_model"])
def test_weights_beside_a_copy_under_a_prefix(prefix: str, tmp_path: Path) -> None:
    first, average = Net(1), Net(2)
    torch.save(dict(first.state_dict()) | prefixed(f"{prefix}.")(average.state_dict()), tmp_path / "w.pt")
    with pytest.warns(NernWarning, match=r"the outermost was taken\. .*#"):
        assert equal(loaded(tmp_path / "w.pt"), first)
    assert equal(loaded(f"{tmp_path}/w.pt#"), first)
    assert equal(loaded(f"{tmp_path}/w.pt#{prefix}"), average)


def test_of_several_that_fit_the_weights_go_before_their_average_and_the_others_have_a_key(tmp_path: Path) -> None:
    first, average = Net(1), Net(2)
    torch.save({"model_ema": average.state_dict(), "model": first.state_dict()}, tmp_path / "w.pt")
    with pytest.warns(NernWarning, match=r"holds several weights that fit: 'model' was taken.*w.pt#model_ema"):
        assert equal(loaded(tmp_path / "w.pt"), first)
    assert equal(loaded(f"{tmp_path}/w.pt#model_ema"), average)
    assert equal(loaded(f"{tmp_path}/w.pt#model"), first)
    with pytest.raises(NernError, match=r"'ema' is no state dict that fits; choose one of: model_ema, model"):
        loaded(f"{tmp_path}/w.pt#ema")


@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_harmless_kinds_beside_the_weights_are_read(
    save: Callable[[Any, Path], None], source: Net, tmp_path: Path
) -> None:
    beside: list[Any] = [np.float64(91.7), np.float32(0.5), np.int64(3), np.bool_(True), np.arange(4), np.dtype("f4")]
    beside += [Path("here"), pathlib.PureWindowsPath("c:/runs"), datetime.timedelta(3), range(3), frozenset({1})]
    beside += [collections.defaultdict(list, a=[1]), collections.OrderedDict(a=1), collections.deque([1, 2])]
    beside += [argparse.Namespace(lr=0.1, data=Path("data")), types.SimpleNamespace(lr=0.1)]
    beside += [datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC), torch.Size([2]), torch.device("cpu"), torch.float16]
    save({"state_dict": source.state_dict(), "list": beside, "beside": dict(enumerate(beside))}, tmp_path / "w.pt")
    assert equal(loaded(tmp_path / "w.pt"), source)


class Custom:
    """A class of a training script."""


@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_any_other_object_is_refused_by_its_name(
    save: Callable[[Any, Path], None], source: Net, tmp_path: Path
) -> None:
    save({"state_dict": source.state_dict(), "config": Custom()}, tmp_path / "w.pt")
    says = r"Python objects besides tensors \(.*test_weights_file\.Custom\); they could run"
    with pytest.raises(NernError, match=says):
        loaded(tmp_path / "w.pt")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_files_in_parts_are_read_by_their_index(kind: str, source: Net, tmp_path: Path) -> None:
    state = {n: t for n, t in source.state_dict().items() if n != "tied.weight"}
    save = save_safe if kind == "safetensors" else torch.save
    places = {name: f"model-{number % 2 + 1:05}-of-00002.{kind}" for number, name in enumerate(state)}
    for part in set(places.values()):
        save({n: state[n] for n, of in places.items() if of == part}, tmp_path / part)
    index = tmp_path / f"model.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert equal(loaded(index), source)
    with pytest.raises(NernError, match=r"missing: .*This is one part of several: give the index"):
        loaded(tmp_path / f"model-00001-of-00002.{kind}")


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({"weight_map": {"conv.weight": "../w.safetensors"}}, "outside its folder, or another index; that is refused"),
        ({"weight_map": {"conv.weight": "none.safetensors"}}, "no such file"),
        ({"weight_map": {"other": "w.safetensors"}}, "other is not in w.safetensors"),
        ([], "is not the index of a file in parts"),
    ],
)
def test_bad_indices(index: Any, says: str, source: Net, tmp_path: Path) -> None:
    save_safe({"conv.weight": source.conv.weight.data}, tmp_path / "w.safetensors")
    (tmp_path / "m.index.json").write_text(json.dumps(index))
    with pytest.raises(NernError, match=says):
        loaded(tmp_path / "m.index.json")


def test_tied_tensors_that_safetensors_left_out_are_filled_in(source: Net, tmp_path: Path) -> None:
    save_model(source, str(tmp_path / "w.safetensors"))
    assert len(state_dicts(tmp_path / "w.safetensors")[0].tensors) == len(source.state_dict()) - 1
    assert equal(loaded(tmp_path / "w.safetensors"), source)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_numbers_are_converted(dtype: torch.dtype, source: Net, tmp_path: Path) -> None:
    torch.save({n: t.to(dtype) for n, t in source.state_dict().items()}, tmp_path / "w.pt")
    found = loaded(tmp_path / "w.pt")
    assert torch.equal(found.conv.weight, source.conv.weight.to(dtype).float())
    assert found.norm.num_batches_tracked == 0


ONES = torch.ones(3, 1, 3, 3)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (ONES.to(torch.int8), r"conv.weight holds torch.int8, the network has torch.float32 there"),
        (ONES.to(torch.float8_e4m3fn), r"holds torch.float8_e4m3fn"),
        (ONES.to_sparse(), r"conv.weight is sparse"),
        (ONES.double() * 1e300, r"conv.weight holds values that are not finite \(NaN or infinity\) in torch.float32"),
    ],
)
def test_one_kind_of_number_never_stands_for_another(value: Tensor, says: str, source: Net, tmp_path: Path) -> None:
    torch.save(source.state_dict() | {"conv.weight": value}, tmp_path / "w.pt")
    with pytest.raises(NernError, match=says):
        loaded(tmp_path / "w.pt")


def test_tied_tensors_that_differ_in_the_file_are_refused(source: Net, tmp_path: Path) -> None:
    torch.save(source.state_dict() | {"tied.weight": torch.zeros(3, 3)}, tmp_path / "w.pt")
    with pytest.raises(NernError, match=r"head\.weight and tied\.weight are one tensor in Net, and differ in the file"):
        loaded(tmp_path / "w.pt")


def test_the_nearest_state_dict_is_described(source: Net, tmp_path: Path) -> None:
    state = prefixed("module.")({n: t for n, t in source.state_dict().items() if n != "conv.bias"})
    torch.save({"other": {"a": torch.zeros(1)}, "net": state}, tmp_path / "w.pt")
    with pytest.raises(NernError, match=r"w.pt \(net.module\) does not fit Net: 1 missing: conv.bias$"):
        loaded(tmp_path / "w.pt")


def test_a_part_of_a_deeper_network_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    torch.save(build_original_network("ResNet20", "pretrained:resnet20-cifar10").state_dict(), tmp_path / "deep.pt")
    with pytest.raises(NernError, match=r"does not fit CifarResNet: \d+ not expected: layer1.1.conv1.weight"):
        build_original_network("ResNet8", str(tmp_path / "deep.pt"))


@pytest.mark.parametrize("wrap", [dict, prefixed("module."), lambda state: {"net": state}])
@pytest.mark.parametrize("option", ["A", "B"])
def test_what_weights_tell_need_not_be_said(wrap: Callable[[State], State], option: str, tmp_path: Path) -> None:
    arguments = {"option": option, "num_classes": 13, "in_channels": 2, "widths": [4, 8, 10]}
    source = build_original_network("ResNet8", None, arguments)
    torch.save(wrap(dict(source.state_dict())), tmp_path / "w.pth.tar")
    assert equal(build_original_network("ResNet8", str(tmp_path / "w.pth.tar")), source)


pytestmark = pytest.mark.filterwarnings("ignore:original_model_path is not set")
