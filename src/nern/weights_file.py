"""Weights files of others: every state dict in a file is looked at, and the one that fits the network is taken.

What a file is follows from its content, not from its suffix: safetensors, a PyTorch file (zip, or the pickle of old
versions), or the index of a file in parts. Nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import itertools
import re
import types
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nern.errors import NernError, NernWarning
from nern.files import existing_file, load_safetensors, load_torch, some_names, tensors_of
from nern.untrusted import parse_json

KEY = "#"  # FILE#KEY: the state dict of that name in the file
INDEX = ".index.json"  # of a file in parts
DEPTH = 4  # of the mappings and lists that are looked into
_NEAR = 32  # state dicts among which the nearest is looked for
WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
COUNTERS = ("num_batches_tracked", "n_averaged", "_extra_state")  # last parts of names that a network can do without
STATISTICS = ("running_mean", "running_var")  # buffers that must be finite; others may hold anything
AVERAGES = re.compile(r"ema|average|swa|teacher|momentum", re.IGNORECASE)  # names of second weights in a file
OTHER_FILES = {
    b"GGUF": "a GGUF file (quantised)",
    b"\x89HDF": "an HDF5 file (Keras)",
    b"\x89NERN": "a .nern file: `nern unpack` writes the weights in it",
    b"\x93NUMPY": "a NumPy file",
}


class Beside:
    """Stands for an object beside the weights. Nothing is made of what the file says of it: NumPy's arrays, for one, take
    its word for where in memory their values are."""

    def __new__(cls, *_: Any) -> Beside:
        """Whatever it is made of."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Takes nothing."""


def _harmless() -> dict[str, Any]:
    """What a pickle may name besides tensors and plain containers, and what is called for it."""
    modules = {
        "builtins": "list dict tuple int float bool str slice range frozenset",
        "pathlib": "Path PosixPath PurePosixPath WindowsPath PureWindowsPath",
        "datetime": "datetime date time timedelta timezone",
        "numpy": "ndarray dtype",
        "numpy.core.multiarray": "scalar _reconstruct",
        "numpy.dtypes": " ".join({type(np.dtype(kind)).__name__ for kind in np.sctypeDict.values()}),
    }
    modules["pathlib._local"], modules["numpy._core.multiarray"] = modules["pathlib"], modules["numpy.core.multiarray"]
    beside = {f"{module}.{name}": Beside for module, names in modules.items() for name in names.split()}
    # PyTorch fills plain containers only; these are looked into.
    containers: dict[str, Any] = {"collections.deque": lambda *_: [], "collections.defaultdict": lambda *_: {}}
    spaces = {"argparse.Namespace": argparse.Namespace, "types.SimpleNamespace": types.SimpleNamespace}
    return beside | containers | spaces


HARMLESS = _harmless()


@dataclass(frozen=True)
class StateDict:
    """A mapping of names to tensors in a file.

    Attributes:
        key: where it is in the file, dotted; empty: it is the file.
        tensors: by name.
        left_out: name of a tied tensor that was not written, and of the one that it equals (safetensors says so).
    """

    key: str
    tensors: dict[str, Tensor]
    left_out: dict[str, str] = field(default_factory=dict)


def split_key(path: str | Path) -> tuple[str, str | None]:
    """The file and the key in `FILE#KEY`; a file whose own name holds the sign is taken as it is."""
    text = str(path)
    file, sign, key = text.rpartition(KEY)
    return (file, key) if sign and not Path(text).expanduser().exists() else (text, None)


def state_dicts(path: str | Path, what: str = "weights file") -> list[StateDict]:
    """Every state dict in a file, in its order, outer ones first.

    Raises:
        NernError: no such file; truncated, or no weights file; it names an object that could run code; or it holds no
            state dict.
    """
    file = existing_file(split_key(path)[0], what)
    if file.name.endswith(INDEX):
        return [StateDict("", _parts(file, what))]
    with file.open("rb") as stream:
        start = stream.read(16)
    if kind := next((kind for begins, kind in OTHER_FILES.items() if start.startswith(begins)), None):
        raise NernError(f"{what} {file} is {kind}; a state dict is needed")
    if start[8:9] == b"{" or file.suffix.lower() == ".safetensors":
        tensors, metadata = load_safetensors(file, what)
        return [StateDict("", tensors, {k: v for k, v in metadata.items() if v in tensors and k not in tensors})]
    _refuse_scripts(file, what)
    found = list(_mappings(loaded := load_torch(file, what, HARMLESS), "", 0, set()))
    if not found:
        holds = f"; it holds {_told(loaded)}"
        raise NernError(f"{what} {file} holds no state dict, a mapping of names to tensors{holds}")
    return found


def _parts(index: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a file in parts, by its index."""
    try:
        places = parse_json(index.read_bytes())["weight_map"]
        files = sorted(set(places.values()))
        plain = all(isinstance(name, str) and Path(name).name == name for name in files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NernError(
            f"{what} {index} is not the index of a file in parts: it has no weight_map ({error})"
        ) from error
    if not plain:
        raise NernError(f"{what} {index} names files outside its folder; that is refused")
    parts: dict[str, Tensor] = {}
    for name in files:
        for found in state_dicts(index.parent / name, what)[:1]:
            parts |= found.tensors
    if missing := [name for name in places if name not in parts]:
        raise NernError(f"{what} {index}: {missing[0]} is not in {places[missing[0]]}, where the index says it is")
    return {name: parts[name] for name in places}


def _refuse_scripts(file: Path, what: str) -> None:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            raise NernError(
                f"{what} {file} is a TorchScript file, which holds code. Save its weights instead: "
                "torch.save(torch.jit.load(path).state_dict(), new_path)"
            )
        if any(
            name.endswith("/serialized_exported_program.json") or name.endswith("/models/model.json") for name in names
        ):
            raise NernError(f"{what} {file} is an exported program (torch.export), which holds code; save a state dict")


def _mappings(value: Any, key: str, depth: int, seen: set[int]) -> Iterator[StateDict]:
    """The state dicts in a value, outer ones first, each once; `seen`: by id, what was looked into."""
    if isinstance(value, argparse.Namespace | types.SimpleNamespace):
        value = vars(value)
    if not isinstance(value, Mapping | list | tuple) or depth > DEPTH or id(value) in seen:
        return
    seen.add(id(value))
    entries = [*(value.items() if isinstance(value, Mapping) else enumerate(value))]
    tensors = {k: torch.detach(e) for k, e in entries if isinstance(k, str) and isinstance(e, Tensor)}  # without hooks
    if tensors:
        yield StateDict(key, tensors)
    for name, entry in entries:
        if isinstance(name, str | int):
            yield from _mappings(entry, f"{key}.{name}".lstrip("."), depth + 1, seen)


def _told(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"the entries {', '.join(map(str, list(value)[:10]))}" if value else "nothing"
    return f"one {type(value).__name__}"


# --- which of them fits ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """A state dict as a network might name it: the tensors under one prefix, without names of wrappers.

    Attributes:
        state, prefix: what it is of.
        tensors: by the network's names.
        under: names of the state dict that have the prefix.
    """

    state: StateDict
    prefix: str
    tensors: dict[str, Tensor]
    under: list[str]

    @property
    def label(self) -> str:
        """What FILE#KEY names."""
        return f"{self.state.key}.{self.prefix}".strip(".")

    def left_out(self, name: str) -> str:
        """The tensor that the file has in place of one; empty: it tells of none."""
        return self.state.left_out.get(self.prefix + name, "").removeprefix(self.prefix)


def load_weights(
    network: nn.Module, path: str | Path, what: str = "original network's weights", remedy: str = ""
) -> None:
    """Copy the state dict in a file that fits `network` into it.

    Names are compared as they are first; then without a common prefix (`model.`, `module.`), then without the names that
    wrappers put between them (`_orig_mod.`). Of tied tensors one is enough. Where several state dicts fit, the first one
    whose name does not speak of an average is taken, and a warning says so; FILE#KEY takes another.

    Args:
        network: to fill.
        path: of the file.
        what: what it should hold, in words, for errors.
        remedy: a sentence for the error where nothing fits.

    Raises:
        NernError: see `state_dicts`; none fits: what is missing, not expected or of another shape in the nearest one; a
            tensor is sparse, quantised, or of another kind of number than the network's; a parameter is not finite.
    """
    file, key = split_key(path)
    own = _Own(network)
    views = [view for found in state_dicts(path, what) for view in _views(found, own)]
    fitting = [view for view in views if own.fits(view)]
    if key is not None:
        chosen = [view for view in fitting if view.label == key]
        if not chosen:
            labels = dict.fromkeys(view.label for view in fitting or views)
            raise NernError(f"{what} {file}: {key!r} is no state dict that fits; choose one of: {some_names(labels)}")
        own.take(chosen[0], f"{what} {path}")
        return
    if not fitting:
        near = sorted(views, key=lambda view: abs(len(view.tensors) - len(own.tensors)))[:_NEAR]
        nearest = min(near, key=own.distance)
        where = f" ({nearest.label})" if nearest.label else ""
        hints = [own.problems(nearest), _hint(nearest.tensors, own.tensors, file), remedy]
        raise NernError(f"{what} {file}{where} does not fit {own.name}: {'. '.join(hint for hint in hints if hint)}")
    chosen = sorted(fitting, key=lambda view: bool(AVERAGES.search(view.label)))  # the first in the file comes first
    taken = chosen[0]
    own.take(taken, f"{what} {file}")
    others = {view.label: view for view in chosen[1:] if not _equal(view.tensors, taken.tensors)}
    if others:
        choices = some_names([f"{file}{KEY}{label}" for label in others])
        which = f"{taken.label!r} was taken" if taken.label else "the outermost was taken"
        warnings.warn(f"{file} holds several weights that fit: {which}. To take others: {choices}", NernWarning, 2)
    known = {name for view in fitting for name in view.under}
    if rest := [name for name in taken.state.tensors if name not in known and not _counter(name)]:
        left = f"{file}: {len(rest)} tensors beside {taken.label!r} were left out: {some_names(rest)}"
        warnings.warn(left, NernWarning, stacklevel=2)


def plain_state_dicts(path: str | Path, what: str = "weights file") -> list[dict[str, Tensor]]:
    """Every state dict in a file without names of wrappers and without a prefix that all its names share, then as it is:
    what they tell before there is a network to compare with. Of FILE#KEY those that the key may mean."""
    key = split_key(path)[1]
    found = []
    for state in state_dicts(path, what):
        if key is not None and not key.startswith(state.key):
            continue
        tensors = {WRAPPERS.sub("", name): tensor for name, tensor in state.tensors.items() if not _counter(name)}
        for _ in range(DEPTH):
            found.append(tensors)
            heads = {name.partition(".")[0] for name in tensors}
            if len(heads) != 1 or not all("." in name for name in tensors):
                break
            tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
        if any(WRAPPERS.search(name) for name in state.tensors):  # a network's own names, perhaps
            found.append(state.tensors)
    return found


def _counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _views(state: StateDict, own: _Own) -> Iterator[_View]:
    """The state dict as it is; then under each prefix after which a name of the network follows; then without wrappers."""
    for stripped in (False, True):
        names = {name: WRAPPERS.sub("", name) if stripped else name for name in state.tensors}
        if stripped and (all(a == b for a, b in names.items()) or len(set(names.values())) < len(names)):
            return
        ends = [(name, anchor) for name in names.values() for anchor in own.anchors if name.endswith(anchor)]
        prefixes = {name.removesuffix(anchor) for name, anchor in ends}
        under: dict[str, list[str]] = {prefix: [] for prefix in sorted(prefixes, key=len) if prefix.endswith(".")}
        for old, new in names.items() if under else ():
            for dot in re.finditer(r"\.", new):
                if new[: dot.end()] in under:
                    under[new[: dot.end()]].append(old)
        for prefix, olds in itertools.chain([("", list(names))], under.items()):
            yield _View(state, prefix, {names[old][len(prefix) :]: state.tensors[old] for old in olds}, olds)


class _Own:
    """The names, shapes and kinds that a network has."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.name = network, type(network).__name__
        self.tensors = tensors_of(network)
        self.needed = [name for name in self.tensors if not _counter(name)]
        self.anchors = self.needed[:3]  # one of them may be tied and left out
        self.parameters = {id(p) for p in network.parameters()}
        self.tied: dict[int, list[str]] = {}
        for name, tensor in self.tensors.items():
            self.tied.setdefault(id(tensor), []).append(name)
        self.least = len({id(self.tensors[name]) for name in self.needed})

    def source(self, view: _View, name: str) -> str | None:
        """The name in a view whose tensor belongs to `name`: its own, or one that it is tied to."""
        ties = [name, view.left_out(name), *self.tied[id(self.tensors[name])]]
        return next((tie for tie in ties if tie in view.tensors), None)

    def _lists(self, view: _View) -> tuple[list[str], list[str], list[str]]:
        sources = {name: self.source(view, name) for name in self.tensors}
        missing = [name for name, source in sources.items() if source is None and not _counter(name)]
        unexpected = [name for name in view.tensors if name not in self.tensors and not _counter(name)]
        shapes = [
            f"{name}: expected {tuple(self.tensors[name].shape)}, found {tuple(view.tensors[source].shape)}"
            for name, source in sources.items()
            if source is not None and view.tensors[source].shape != self.tensors[name].shape
        ]
        return missing, unexpected, shapes

    def fits(self, view: _View) -> bool:
        """Whether it holds what the network has, and nothing else."""
        return len(view.tensors) + len(view.state.left_out) >= self.least and not any(self._lists(view))

    def problems(self, view: _View) -> str:
        """Why a view does not fit."""
        labels = ("missing", "not expected", "of another shape")
        parts = zip(labels, self._lists(view), strict=True)
        return "; ".join(f"{len(names)} {label}: {some_names(names)}" for label, names in parts if names)

    def distance(self, view: _View) -> tuple[int, int]:
        """How far a view is from fitting: what it lacks, then what is wrong in it; of those that have nothing in common with
        the network the largest is nearest."""
        missing, unexpected, shapes = self._lists(view)
        common = len(missing) < len(self.needed)
        return len(missing), len(unexpected) + len(shapes) if common else -len(view.tensors)

    def take(self, view: _View, what: str) -> None:
        """Copy the tensors of a view that fits. Raises NernError for what the network's numbers cannot stand for."""
        values = {}
        for name, own in self.tensors.items():
            source = self.source(view, name)
            given = own if source is None else view.tensors[source]
            if _counter(name) and _kind(given.dtype) != _kind(own.dtype):  # rounded with the weights; nothing reads it
                given = own
            values[name] = self._checked(name, given, own, what)
        self.network.load_state_dict(values, strict=False)  # extra state that is no tensor stays the network's own

    def _checked(self, name: str, given: Tensor, own: Tensor, what: str) -> Tensor:
        if given.is_quantized:
            raise NernError(f"{what}: {name} is quantised ({given.dtype}); weights as they were before are needed")
        if given.layout != torch.strided:
            raise NernError(f"{what}: {name} is sparse; a dense tensor is needed")
        if _kind(given.dtype) != _kind(own.dtype):
            raise NernError(f"{what}: {name} holds {given.dtype}, the network has {own.dtype} there; convert it first")
        if own.is_floating_point() and (id(own) in self.parameters or name.endswith(STATISTICS)):
            if not torch.isfinite(given.double()).all():
                raise NernError(f"{what}: {name} holds values that are not finite (NaN or infinity)")
            if not torch.isfinite(given.to(own.dtype).double()).all():
                raise NernError(f"{what}: {name} holds numbers too large for the network's {own.dtype}")
        return given


def _kind(dtype: torch.dtype) -> str:
    """Kinds of number that stand for each other: floating ones of 16 bits and more, whole ones, else each type itself."""
    if dtype.is_floating_point and dtype.itemsize >= 2:
        return "floating"
    return "whole" if not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool else str(dtype)


def _equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    named, other = ({n: t for n, t in of.items() if not _counter(n)} for of in (first, second))
    return named.keys() == other.keys() and all(_alike(t, other[n]) for n, t in named.items())


def _alike(first: Tensor, second: Tensor) -> bool:
    plain = all(t.layout == torch.strided and not t.is_quantized for t in (first, second))
    return plain and first.dtype == second.dtype and torch.equal(first, second)


def _hint(tensors: Iterable[str], own: Iterable[str], file: str) -> str:
    """What a file may be instead; empty: nothing known."""
    of_predictor = [any(name.startswith("final_linear_layer") for name in names) for names in (tensors, own)]
    if of_predictor == [True, False]:
        return "These are the weights of a NeRN's predictor: nern.init 'checkpoint' takes them"
    if re.search(r"-\d+-of-\d+\.", file):
        return f"This is one part of several: give the index, NAME{INDEX}"
    return ""
