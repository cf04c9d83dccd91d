"""Weights files of others: every state dict in a file is looked at, and the one that fits the network is taken.

What a file is follows from its content, not from its suffix: safetensors, a PyTorch file (zip, or the pickle of old
versions), or the index of a file in parts. Nothing in a file is executed.
"""

from __future__ import annotations

import argparse
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
from torch.optim.swa_utils import AveragedModel

from nern.errors import NernError, NernWarning
from nern.files import existing_file, load_safetensors, load_torch, some_names, tensors_of
from nern.untrusted import parse_json

KEY = "#"  # FILE#KEY: the state dict of that name in the file
INDEX = ".index.json"  # of a file in parts
DEPTH = 8  # of the mappings and lists that are looked into
_NEAR = 32  # state dicts among which the nearest is looked for
_INNER = "_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module"
_NOTHING, _ODD, WRAPPERS = (  # what is taken out of names; a network may have a part named `module` itself
    re.compile(rf"(?:^|(?<=\.))(?:{names})\.") for names in ("(?!)", _INNER, f"module|{_INNER}")
)
COUNTERS = ("num_batches_tracked", "n_averaged", "_extra_state")  # last parts of names that a network can do without
STATISTICS = ("running_mean", "running_var")  # buffers of norms that must be finite; others may hold anything
AVERAGES = re.compile(  # whole words, of snake_case and camelCase, in names of second weights in a file
    r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))(?i:ema|averaged?|averages|swa|teacher|momentum)(?![a-z])"
)
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
    called_safe = file.suffix.lower() == ".safetensors" and not start.startswith((b"PK", b"\x80"))  # zip, pickle
    if start[8:9] == b"{" or called_safe:
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
    if any(name.endswith(INDEX) for name in files):
        raise NernError(f"{what} {index} names an index as one of its parts; that is refused")
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
    others = {view.label: view for view in chosen[1:] if not own.equal(view, taken)}
    if others:
        choices = some_names([f"{file}{KEY}{label}" for label in others])
        which = f"{taken.label!r} was taken" if taken.label else "the outermost was taken"
        warnings.warn(f"{file} holds several weights that fit: {which}. To take others: {choices}", NernWarning, 2)
    known = {name for view in fitting for name in view.under}
    if rest := [name for name in taken.state.tensors if name not in known and not _counter(name)]:
        left = f"{file}: {len(rest)} tensors beside {taken.label!r} were left out: {some_names(rest)}"
        warnings.warn(left, NernWarning, stacklevel=2)


def norm_buffers(network: nn.Module, *names: str) -> set[str]:
    """Full names of those of these buffers that a network's batch norms have, told by their running means and variances."""
    norms = [
        (path, module._buffers)
        for path, module in network.named_modules(remove_duplicate=False)
        if module._buffers.keys() >= set(STATISTICS)
    ]
    return {f"{path}.{name}".lstrip(".") for path, buffers in norms for name in names if name in buffers}


def plain_state_dicts(path: str | Path, what: str = "weights file") -> list[StateDict]:
    """Every state dict in a file without names of wrappers and without a prefix that all its names share, then as it is:
    what they tell before there is a network to compare with; averages last. Of FILE#KEY those that the key may mean."""
    key = split_key(path)[1]
    found = []
    for state in state_dicts(path, what):
        if key is not None and not key.startswith(state.key):
            continue
        tensors = {WRAPPERS.sub("", name): tensor for name, tensor in state.tensors.items() if not _counter(name)}
        for _ in range(DEPTH):
            found.append(StateDict(state.key, tensors))
            heads = {name.partition(".")[0] for name in tensors}
            if len(heads) != 1 or not all("." in name for name in tensors):
                break
            tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
        if any(WRAPPERS.search(name) for name in state.tensors):  # a network's own names, perhaps
            found.append(state)
    return sorted(found, key=lambda state: bool(AVERAGES.search(state.key)))


def _counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _views(state: StateDict, own: _Own) -> Iterator[_View]:
    """The state dict as it is; then under each prefix after which a name of the network follows; then without wrappers.
    Where all parameters are there again under a further prefix, as an average of them is, those are left out."""
    done: list[dict[str, str]] = []
    for wrappers in (_NOTHING, _ODD, WRAPPERS):
        names = {name: wrappers.sub("", name) for name in state.tensors}
        if names in done or len(set(names.values())) < len(names):
            continue
        done.append(names)
        ends = [(name, anchor) for name in names.values() for anchor in own.anchors if name.endswith(anchor)]
        prefixes = {name.removesuffix(anchor) for name, anchor in ends}
        under: dict[str, list[str]] = {p: [] for p in sorted(prefixes | {""}, key=len) if not p or p.endswith(".")}
        copies: set[str] = set()
        for _ in range(2):  # with all names; without those of copies
            found: dict[str, list[str]] = {prefix: [] for prefix in under}
            for old, new in names.items():
                heads = [head for head in _heads(new) if head in under]
                for number, head in enumerate(heads):
                    further = copies.intersection(heads[number + 1 :])
                    if all(copy[len(head) :] in own.heads for copy in further):
                        found[head].append(old)
            views = [
                _View(state, prefix, {names[old][len(prefix) :]: state.tensors[old] for old in olds}, olds)
                for prefix, olds in found.items()
            ]
            copies = {view.prefix for view in views if view.prefix and own.has_parameters(view)}
            if not copies:
                break
        yield from views


def _heads(name: str) -> list[str]:
    """The beginnings of a name that end with a dot, and the empty one, the shortest first."""
    return ["", *(name[: dot.end()] for dot in re.finditer(r"\.", name))]


class _Own:
    """The names, shapes and kinds that a network has."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.name = network, type(network).__name__
        self.tensors = tensors_of(network)
        named = {
            name for of in (network.named_parameters, network.named_buffers) for name, _ in of(remove_duplicate=False)
        }
        averaged = [path for path, module in network.named_modules() if isinstance(module, AveragedModel)]
        self.optional = {name for name in self.tensors if name not in named}  # extra state
        self.optional |= {f"{path}.n_averaged".lstrip(".") for path in averaged}
        self.optional |= norm_buffers(network, "num_batches_tracked")
        self.statistics = norm_buffers(network, *STATISTICS)
        self.needed = [name for name in self.tensors if name not in self.optional]
        self.anchors = self.needed[:3]  # one of them may be tied and left out
        self.heads = {head for name in self.tensors for head in _heads(name)}
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
        missing = [name for name, source in sources.items() if source is None and name not in self.optional]
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

    def has_parameters(self, view: _View) -> bool:
        """Whether it holds at least all parameters, in their shapes."""
        if len(view.tensors) < len(self.parameters):
            return False
        missing, _, shapes = self._lists(view)
        return not shapes and not any(id(self.tensors[name]) in self.parameters for name in missing)

    def equal(self, first: _View, second: _View) -> bool:
        """Whether two views that fit hold the same weights."""
        sources = [(self.source(first, name) or "", self.source(second, name) or "") for name in self.needed]
        return all(_alike(first.tensors[one], second.tensors[other]) for one, other in sources)

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
            if name in self.optional and _kind(given.dtype) != _kind(own.dtype):  # rounded with the weights
                given = own  # nothing reads it
            values[name] = self._checked(name, given, own, what)
        for first, *rest in self.tied.values():
            for name in rest:
                if not _alike(*(values[one].to(self.tensors[one].dtype) for one in (first, name))):
                    raise NernError(f"{what}: {first} and {name} are one tensor in {self.name}, and differ in the file")
        self.network.load_state_dict(values, strict=False)  # extra state that is no tensor stays the network's own

    def _checked(self, name: str, given: Tensor, own: Tensor, what: str) -> Tensor:
        if given.is_quantized:
            raise NernError(f"{what}: {name} is quantised ({given.dtype}); weights as they were before are needed")
        if given.layout != torch.strided:
            raise NernError(f"{what}: {name} is sparse; a dense tensor is needed")
        if _kind(given.dtype) != _kind(own.dtype):
            raise NernError(f"{what}: {name} holds {given.dtype}, the network has {own.dtype} there; convert it first")
        lost = torch.zeros(given.shape, dtype=torch.bool)
        if own.is_floating_point():
            finite = given.double().isfinite()
            lost = finite & ~given.to(own.dtype).double().isfinite()
            if not finite.all() and (id(own) in self.parameters or name in self.statistics):
                raise NernError(f"{what}: {name} holds values that are not finite (NaN or infinity)")
        elif _kind(own.dtype) == "whole":
            limits, numbers = torch.iinfo(own.dtype), given.long()
            lost = (numbers < limits.min) | (numbers > limits.max)
        if lost.any():
            raise NernError(f"{what}: {name} holds {given[lost][0].item()}, beyond the network's {own.dtype}")
        return given


def _kind(dtype: torch.dtype) -> str:
    """Kinds of number that stand for each other: floating ones of 16 bits and more, whole ones, else each type itself."""
    if dtype.is_floating_point and dtype.itemsize >= 2:
        return "floating"
    return "whole" if not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool else str(dtype)


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same numbers; NaN is like itself."""
    if first is second:
        return True
    plain = all(t.layout == torch.strided and not t.is_quantized for t in (first, second))
    if not plain or first.dtype != second.dtype or first.shape != second.shape:
        return False
    if first.is_floating_point():
        first, second = first.double(), second.double()
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


def _hint(tensors: Iterable[str], own: Iterable[str], file: str) -> str:
    """What a file may be instead; empty: nothing known."""
    of_predictor = [any(name.startswith("final_linear_layer") for name in names) for names in (tensors, own)]
    if of_predictor == [True, False]:
        return "These are the weights of a NeRN's predictor: nern.init 'checkpoint' takes them"
    if any(name.rpartition(".")[2] == "zero_point" for name in tensors):
        return "It is of a quantised module: weights as they were before are needed"
    if re.search(r"-\d+-of-\d+\.", file):
        return f"This is one part of several: give the index, NAME{INDEX}"
    return ""
