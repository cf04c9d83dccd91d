"""Weights files of others: every state dict in a file is looked at, and the one that fits the network is taken.

What a file is follows from its content, not from its suffix: safetensors, a PyTorch file (zip, or the pickle of old
versions), or the index of a file in parts. Nothing in a file is executed.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
DEPTH = 8  # of the mappings and lists that are looked into
NEAR = 32  # state dicts among which the nearest is looked for
PREFIXES = 64  # of names in a state dict that are looked under, the shortest ones
WRAPPERS = re.compile(  # what these put into names is taken out; a network may have a part named `module` itself
    r"(?:^|(?<=\.))(?:module|_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
COUNTERS = ("num_batches_tracked", "n_averaged", "_extra_state")  # last parts of names that a network can do without
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
        "argparse": "Namespace",
        "types": "SimpleNamespace",
        "numpy": "ndarray dtype",
        "numpy.core.multiarray": "scalar _reconstruct",
        "numpy.dtypes": " ".join({type(np.dtype(kind)).__name__ for kind in np.sctypeDict.values()}),
    }
    modules["pathlib._local"], modules["numpy._core.multiarray"] = modules["pathlib"], modules["numpy.core.multiarray"]
    beside = {f"{module}.{name}": Beside for module, names in modules.items() for name in names.split()}
    # PyTorch fills plain containers only; these are looked into.
    containers: dict[str, Any] = {"collections.deque": lambda *_: [], "collections.defaultdict": lambda *_: {}}
    return beside | containers


HARMLESS = _harmless()


@dataclass(frozen=True)
class StateDict:
    """A mapping of names to tensors in a file."""

    key: str  # where it is in the file, dotted; empty: it is the file
    tensors: dict[str, Tensor]


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
        return [StateDict("", load_safetensors(file, what)[0])]
    _refuse_scripts(file, what)
    found = list(_mappings(loaded := load_torch(file, what, HARMLESS), "", 0, set()))
    if not found:
        entries = (
            f"the entries {some_names(map(str, loaded), 10)}" if isinstance(loaded, Mapping) else type(loaded).__name__
        )
        raise NernError(f"{what} {file} holds no state dict, a mapping of names to tensors; it holds {entries}")
    return found


def _parts(index: Path, what: str) -> dict[str, Tensor]:
    """The tensors of a file in parts, by its index."""
    try:
        places = parse_json(index.read_bytes())["weight_map"]
        files = sorted(set(places.values()))
        plain = all(Path(name).name == name and not name.endswith(INDEX) for name in files)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NernError(
            f"{what} {index} is not the index of a file in parts: it has no weight_map ({error})"
        ) from error
    if not plain:
        raise NernError(f"{what} {index} names files outside its folder, or another index; that is refused")
    parts: dict[str, Tensor] = {}
    for name in files:
        parts |= state_dicts(index.parent / name, what)[0].tensors
    if missing := [name for name in places if name not in parts]:
        raise NernError(f"{what} {index}: {missing[0]} is not in {places[missing[0]]}, where the index says it is")
    return {name: parts[name] for name in places}


def _refuse_scripts(file: Path, what: str) -> None:
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist()):
            raise NernError(
                f"{what} {file} is a TorchScript file, which holds code. Save its weights instead: "
                "torch.save(torch.jit.load(path).state_dict(), new_path)"
            )


def _mappings(value: Any, key: str, depth: int, seen: set[int]) -> Iterator[StateDict]:
    """The state dicts in a value, outer ones first, each once; `seen`: by id, what was looked into."""
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


def plain_state_dicts(path: str | Path, what: str = "weights file") -> list[StateDict]:
    """Every state dict in a file without names of wrappers and without the prefixes that all its names share, then as it is:
    what they tell before there is a network to compare with; averages last. Of FILE#KEY those that the key may mean."""
    key = split_key(path)[1]
    found = []
    for state in state_dicts(path, what):
        if key is not None and not key.startswith(state.key):
            continue
        tensors = {WRAPPERS.sub("", name): tensor for name, tensor in state.tensors.items() if not _counter(name)}
        found.append(StateDict(state.key, tensors))
        while len({name.partition(".")[0] for name in tensors}) == 1 and all("." in name for name in tensors):
            tensors = {name.partition(".")[2]: tensor for name, tensor in tensors.items()}
            found.append(StateDict(state.key, tensors))
        found.append(state)
    return sorted(found, key=lambda state: bool(AVERAGES.search(state.key)))


def _counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


# --- which of them fits ----------------------------------------------------------------------------------------------


def load_weights(
    network: nn.Module, path: str | Path, what: str = "original network's weights", remedy: str = ""
) -> None:
    """Copy the state dict in a file that fits `network` into it: that has its names and shapes and no others.

    Names are compared as they are; then without a common prefix (`model.`, `module.`), then without the names that wrappers
    put between them (`_orig_mod.`). Of tied tensors one is enough, counters need not be there. Where several state dicts
    fit, the first one whose name does not speak of an average is taken, and a warning says so; FILE#KEY takes another.

    Args:
        what: what the file should hold, in words, for errors.
        remedy: a sentence for the error where nothing fits.

    Raises:
        NernError: see `state_dicts`; none fits: what is missing, not expected or of another shape in the nearest one; a
            tensor is sparse, quantised, or of another kind of number than the network's; a parameter is not finite.
    """
    file, key = split_key(path)
    own = _Own(network)
    views = [view for state in state_dicts(path, what) for view in own.views(state)]
    fitting = [view for view in views if own.fits(view)]
    if key is not None:
        chosen = [view for view in fitting if view.key == key]
        if not chosen:
            keys = dict.fromkeys(view.key for view in fitting or views)
            raise NernError(f"{what} {file}: {key!r} is no state dict that fits; choose one of: {some_names(keys)}")
        own.take(chosen[0].tensors, f"{what} {path}")
        return
    if not fitting:
        nearest = min(sorted(views, key=own.difference)[:NEAR], key=own.distance)
        where = f" ({nearest.key})" if nearest.key else ""
        part = f"This is one part of several: give the index, NAME{INDEX}" if re.search(r"-\d+-of-\d+\.", file) else ""
        reasons = ". ".join(reason for reason in (own.problems(nearest), part, remedy) if reason)
        raise NernError(f"{what} {file}{where} does not fit {type(network).__name__}: {reasons}")
    # Sorting keeps the order of the file.
    taken, *others = sorted(fitting, key=lambda view: bool(AVERAGES.search(view.key)))
    own.take(taken.tensors, f"{what} {file}")
    those = {id(tensor) for tensor in taken.tensors.values()}
    if keys := dict.fromkeys(view.key for view in others if those.isdisjoint(map(id, view.tensors.values()))):
        which = f"{taken.key!r} was taken" if taken.key else "the outermost was taken"
        choices = some_names([f"{file}{KEY}{key}" for key in keys])
        warnings.warn(f"{file} holds several weights that fit: {which}. To take others: {choices}", NernWarning, 2)


def load_into(network: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Copy `state` into a network, names and shapes checked first. Raises NernError listing what does not fit."""
    own, given = _Own(network), StateDict("", dict(state))
    if not own.fits(given):
        raise NernError(f"{what} does not fit {type(network).__name__}: {own.problems(given)}")
    network.load_state_dict(given.tensors, strict=False)


class _Own:
    """The names, shapes and kinds that a network has."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.tensors = network, tensors_of(network)
        self.needed = [name for name in self.tensors if not _counter(name)]
        self.tied: dict[int, list[str]] = {}
        for name, tensor in self.tensors.items():
            self.tied.setdefault(id(tensor), []).append(name)
        self.least = len({id(self.tensors[name]) for name in self.needed})  # an optimizer holds many small state dicts

    def views(self, state: StateDict) -> Iterator[StateDict]:
        """The state dict, and its parts under each prefix after which a name of the network follows, the outermost first:
        with names as they are, then without wrappers. A part that fits is no part of what is around it."""
        anchors = self.needed[:3]  # one of them may be tied and left out
        plain = {WRAPPERS.sub("", name): tensor for name, tensor in state.tensors.items()}
        for names in [state.tensors, plain] if plain.keys() != state.tensors.keys() else [plain]:
            ends = [(name, f".{anchor}") for name in names for anchor in anchors if name.endswith(f".{anchor}")]
            prefixes = {"", *(f"{name.removesuffix(end)}." for name, end in ends)}
            views, rest = list[StateDict](), dict(names)
            for prefix in reversed(sorted(prefixes, key=len)[:PREFIXES]):
                part = {name: tensor for name, tensor in rest.items() if name.startswith(prefix)}
                tensors = {name.removeprefix(prefix): tensor for name, tensor in part.items()}
                views.append(StateDict(f"{state.key}.{prefix}".strip("."), tensors))
                if prefix and self.fits(views[-1]):
                    rest = {name: tensor for name, tensor in rest.items() if name not in part}
            yield from reversed(views)

    def _source(self, tensors: Mapping[str, Tensor], name: str) -> Tensor | None:
        """What belongs to a name of the network: the tensor of that name, or of one that it is tied to."""
        return next((tensors[tie] for tie in (name, *self.tied[id(self.tensors[name])]) if tie in tensors), None)

    def _lists(self, view: StateDict) -> tuple[list[str], list[str], list[str]]:
        """Names that are missing, names that are not expected, and what has another shape."""
        missing, shapes = [], []
        for name, own in self.tensors.items():
            given = self._source(view.tensors, name)
            if given is None and not _counter(name):
                missing.append(name)
            elif given is not None and given.shape != own.shape:
                shapes.append(f"{name}: expected {tuple(own.shape)}, found {tuple(given.shape)}")
        return missing, [name for name in view.tensors if name not in self.tensors and not _counter(name)], shapes

    def fits(self, view: StateDict) -> bool:
        """Whether it holds what the network has, and nothing else."""
        return len(view.tensors) >= self.least and not any(self._lists(view))

    def problems(self, view: StateDict) -> str:
        """Why a state dict does not fit."""
        parts = zip(("missing", "not expected", "of another shape"), self._lists(view), strict=True)
        return "; ".join(f"{len(names)} {label}: {some_names(names)}" for label, names in parts if names)

    def difference(self, view: StateDict) -> int:
        """Of the numbers of tensors."""
        return abs(len(view.tensors) - len(self.tensors))

    def distance(self, view: StateDict) -> tuple[int, int]:
        """How far a state dict is from fitting: what it lacks, then what is wrong in it; of those that have nothing in
        common with the network the largest is nearest."""
        missing, unexpected, shapes = self._lists(view)
        return len(missing), len(unexpected) + len(shapes) if len(missing) < len(self.needed) else -len(view.tensors)

    def take(self, tensors: Mapping[str, Tensor], what: str) -> None:
        """Copy tensors that fit. Raises NernError for what the network's numbers cannot stand for."""
        values, parameters = {}, {id(p) for p in self.network.parameters()}
        for name, own in self.tensors.items():
            given = self._source(tensors, name)
            if given is None or (_counter(name) and _kind(given.dtype) != _kind(own.dtype)):  # rounded with the weights
                continue
            values[name] = _converted(given, own, f"{what}: {name}")
            finite = not own.is_floating_point() or values[name].isfinite().all()
            if not finite and (id(own) in parameters or statistic(name)):
                raise NernError(f"{what}: {name} holds values that are not finite (NaN or infinity) in {own.dtype}")
        for first, *rest in self.tied.values():
            for name in rest:
                if first in values and not torch.equal(values[first], values[name]):
                    raise NernError(
                        f"{what}: {first} and {name} are one tensor in {type(self.network).__name__}, and differ in the file"
                    )
        self.network.load_state_dict(values, strict=False)


def statistic(name: str) -> bool:
    """Whether a buffer is one of a norm's that must be finite; others may hold anything."""
    return name.rpartition(".")[2] in ("running_mean", "running_var")


def _converted(given: Tensor, own: Tensor, what: str) -> Tensor:
    """A tensor as the network's kind of number. Raises NernError where that cannot stand for it."""
    if given.layout != torch.strided:
        raise NernError(f"{what} is sparse; a dense tensor is needed")
    if _kind(given.dtype) != _kind(own.dtype):
        raise NernError(f"{what} holds {given.dtype}, the network has {own.dtype} there; convert it first")
    converted = given.to(own.dtype)
    if _kind(own.dtype) == "whole" and not torch.equal(converted.to(given.dtype), given):
        raise NernError(f"{what} holds numbers beyond the network's {own.dtype}")
    return converted


def _kind(dtype: torch.dtype) -> str:
    """Kinds of number that stand for each other: floating ones of 16 bits and more, whole ones, else each type itself."""
    if dtype.is_floating_point and dtype.itemsize >= 2:
        return "floating"
    return "whole" if not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool else str(dtype)
