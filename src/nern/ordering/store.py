"""Orderings on disk: our file, the published framework's folders, and a cache keyed by content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nern.errors import NernError, NernWarning
from nern.files import cache_dir, existing_file, load_safetensors, load_torch, save_safetensors
from nern.ordering.order import Ordering, PathCost, Shapes, solve_ordering
from nern.registry import ORDERINGS

FILE_NAME = "ordering.safetensors"
SOLVER_VERSION = 1  # raise it when a solver's results change: cached orderings of older versions are left aside


def content_key(weights: Sequence[Tensor], mode: str) -> str:
    """Digest of everything the greedy ordering by cosine depends on: mode, solver, and each weight's shape and values."""
    digest = hashlib.sha256(f"{mode}/{SOLVER_VERSION}".encode())
    for weight in weights:
        array = weight.detach().cpu().float().contiguous().numpy()
        digest.update(repr(array.shape).encode())
        digest.update(array.astype("<f4").tobytes())
    return digest.hexdigest()


def cache_key(key: str, improve_seconds: float, metric: str = "cosine") -> str:
    """Digest of everything a cached ordering depends on: the weights' `content_key`, the time for improvement, and the
    metric; that of version 0.1.0."""
    if metric != "cosine":
        key = hashlib.sha256(f"{key}/{metric}".encode()).hexdigest()
    if not improve_seconds:
        return key
    return hashlib.sha256(f"{key}/[]/0.3/{float(improve_seconds)!r}".encode()).hexdigest()


def get_ordering(
    weights: Sequence[Tensor],
    mode: str,
    path: str | Path | None = None,
    num_workers: int = 1,
    improve_seconds: float = 0.0,
    metric: str = "cosine",
) -> tuple[Ordering, str]:
    """The ordering of these weights, and where it came from, in words.

    Read from the folder (or file) `path` if it holds one, with a warning if it was solved for other weights; else from the
    cache; else solved (see `solve_ordering`), and written to `path` and the cache.

    Raises:
        NernError: the stored ordering is of another mode or metric, does not fit the shapes, or is damaged.
    """
    shapes = [tuple(w.shape) for w in weights]
    if mode == "none":
        return ORDERINGS[mode].from_layers([], []), "kernels as they lie"
    key = content_key(weights, mode)
    if path is not None and holds_ordering(Path(path)):
        ordering = load_ordering(path, mode, shapes, metric)  # type: ignore[arg-type]
        warn_if_of_other_weights(Path(path), key)
        return ordering, f"read from {path}"
    name = cache_key(key, improve_seconds, metric)
    cached = cache_dir() / "orderings" / f"{name}.safetensors"
    found = _cached(cached, mode, shapes, metric, key)  # type: ignore[arg-type]
    source = f"from the cache ({cached})"
    if found is None:
        ordering = solve_ordering(weights, mode, num_workers, improve_seconds, metric)
        source = "solved now"
        try:
            save_ordering(cached, ordering, key)
        except OSError as error:
            warnings.warn(f"the ordering cannot be cached ({error})", NernWarning, stacklevel=2)
    else:
        ordering = found
    if path is not None:
        save_ordering(Path(path) / FILE_NAME, ordering, key)
        source += f", written to {path}"
    return ordering, source


def _cached(file: Path, mode: str, shapes: Shapes, metric: str, key: str) -> Ordering | None:
    """The ordering in a file of the cache; None: there is none. What is damaged is removed, with a warning."""
    if not os.path.lexists(file):
        return None
    try:
        ordering = load_ordering(existing_file(file, "cached ordering"), mode, shapes, metric)
        if load_safetensors(file, "cached ordering")[1].get("content_key") != key:
            raise NernError("it is of other weights")
        return ordering
    except (NernError, OSError) as error:
        warnings.warn(f"the cached ordering {file} is damaged and made anew ({error})", NernWarning, stacklevel=3)
    with contextlib.suppress(OSError):  # whoever writes the new one tells of it
        shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
    return None


def warn_if_of_other_weights(path: Path, key: str) -> None:
    """An ordering of other weights of the same shapes works, but not as well; published folders do not tell."""
    file = path / FILE_NAME if path.is_dir() else path
    stored = load_safetensors(file, "ordering file")[1].get("content_key") if file.is_file() else None
    if stored and stored != key:
        warnings.warn(f"the ordering in {file} was solved for other weights than these", NernWarning, stacklevel=3)


def save_ordering(path: str | Path, ordering: Ordering, key: str = "") -> None:
    """Write an ordering as safetensors, in the smallest integers that hold it; `key`: the weights' `content_key`."""
    tensors = ordering.tensors()
    largest = max((int(t.max()) for t in tensors.values() if t.numel()), default=0)
    dtype = next(d for d in (torch.uint8, torch.uint16, torch.int64) if largest <= torch.iinfo(d).max)
    metadata = {"mode": ordering.mode, "metric": ordering.metric, "content_key": key}
    if ordering.cost is not None:
        metadata["path_cost"] = ordering.cost.to_json()
    save_safetensors(path, {name: t.to(dtype) for name, t in tensors.items()}, metadata)


def load_ordering(path: str | Path, mode: str, shapes: Shapes, metric: str = "cosine") -> Ordering:
    """An ordering of `mode` by `metric` for layers of `shapes`, from our file, a folder that holds it, or a published
    folder, which does not tell its metric.

    Raises:
        NernError: missing, damaged, of another mode or metric, or not permutations of these layers' kernels.
    """
    path, cost = Path(path), None
    if path.is_dir() and not (path / FILE_NAME).is_file():
        layers = _load_published(path, mode, shapes)
    else:
        tensors, cost = read_ordering(path, mode, metric)
        layers = [{} for _ in shapes]
        for name, tensor in tensors.items():
            kind, _, index = name.rpartition(".")
            if not is_number(index) or int(index) >= len(shapes):
                raise NernError(f"ordering file {path} has a tensor {name!r}, but the network has {len(shapes)} layers")
            layers[int(index)][kind] = tensor
    try:
        ordering: Ordering = ORDERINGS[mode].from_layers(layers, shapes)
    except KeyError as error:
        raise NernError(f"ordering {path} lacks {error} for some layer: it is of another network or mode") from error
    except NernError as error:
        raise NernError(f"ordering {path} does not fit the network: {error}") from error
    ordering.metric, ordering.cost = metric, cost
    return ordering


def read_ordering(path: str | Path, mode: str, metric: str) -> tuple[dict[str, Tensor], PathCost | None]:
    """Tensors and path cost of our file, or of the one in a folder. Raises NernError: missing, damaged, of another mode or
    metric."""
    path = Path(path)
    tensors, metadata = load_safetensors(path / FILE_NAME if path.is_dir() else path, "ordering file")
    if any(_integers(tensor) is None for tensor in tensors.values()):
        raise NernError(f"ordering file {path} holds numbers that are not whole")
    if metadata.get("mode") != mode:
        raise NernError(
            f"ordering file {path} is of mode {metadata.get('mode')!r}, but "
            f"nern.embeddings.permutations.permute_mode is {mode!r}"
        )
    if (found := metadata.get("metric", "cosine")) != metric:  # older files have none
        raise NernError(
            f"ordering file {path} is of metric {found!r}, but nern.embeddings.permutations.metric is {metric!r}; "
            "set that, or another path"
        )
    return tensors, PathCost.from_json(metadata["path_cost"], metric) if "path_cost" in metadata else None


def is_number(text: str) -> bool:
    """Whether it is a small number from 0 on, written as we write it: other scripts' digits are refused, and `00`."""
    return re.fullmatch(r"0|[1-9][0-9]{0,8}", text) is not None


def holds_ordering(path: Path) -> bool:
    """Whether it is a file, or a folder with our file or published ones."""
    return path.is_file() or (path / FILE_NAME).is_file() or bool(_published_files(path))


def _published_files(path: Path) -> dict[int, Path]:
    if not path.is_dir():
        return {}
    matches = {p: re.fullmatch(r"layer_([0-9]{1,9})\.pt", p.name) for p in path.iterdir()}
    return {int(m.group(1)): p for p, m in matches.items() if m}


def _load_published(path: Path, mode: str, shapes: Shapes) -> list[dict[str, Tensor]]:
    """A folder of `layer_{i}.pt`: a cross-filter path is one list of integers; an in-filter order is a pair of the
    filter path and each filter's channel path, in either order. Lists, tuples, tensors and NumPy arrays are taken."""
    files = _published_files(path)
    if sorted(files) != list(range(len(shapes))):
        raise NernError(
            f"folder {path} needs {FILE_NAME} or layer_0.pt to layer_{len(shapes) - 1}.pt; it has "
            f"{', '.join(p.name for _, p in sorted(files.items())) or 'neither'}"
        )
    layers: list[dict[str, Tensor]] = []
    for index, shape in enumerate(shapes):
        content = load_torch(files[index], "ordering file", _numpy_kinds())
        layers.append(_published_layer(content, mode, shape, files[index]))
    return layers


def _published_layer(content: Any, mode: str, shape: tuple[int, ...], path: Path) -> dict[str, Tensor]:
    filters, channels = shape[:2]
    if isinstance(content, dict):
        content = list(content.values())
    if mode == "crossfilter":
        order = _integers(content)
        if order is not None and order.numel() == filters * channels:
            return {"order": order.flatten()}
    elif isinstance(content, list | tuple) and len(content) == 2:
        first, second = (_integers(part) for part in content)
        for filter_order, channel_order in ((first, second), (second, first)):
            if filter_order is None or channel_order is None:
                continue
            if filter_order.numel() == filters and tuple(channel_order.shape) == (filters, channels):
                return {"filter_order": filter_order.flatten(), "channel_order": channel_order}
    raise NernError(f"ordering file {path} does not hold a {mode} order of {filters} filters and {channels} channels")


def _integers(value: Any) -> Tensor | None:
    """`value` as an int64 tensor if it is whole numbers in a regular arrangement."""
    try:
        if isinstance(value, list | tuple) and value and all(isinstance(v, Tensor | np.ndarray) for v in value):
            value = torch.stack([torch.as_tensor(v) for v in value])
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return None if tensor.is_floating_point() or tensor.is_complex() else tensor.long()


class _Kind:
    """A kind of NumPy's numbers in a pickle."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def numbers(self, data: bytes) -> np.ndarray:
        """The whole numbers that these bytes are."""
        if re.fullmatch(r"[biu][1248]", self.code) is None or getattr(self, "order", "|") not in "<>=|":
            raise ValueError("an array that is not of whole numbers")
        return np.frombuffer(data, getattr(self, "order", "|") + self.code)


class _Array(list[Any]):
    """A NumPy array in a pickle, as lists. NumPy itself would trust what the file says of where its numbers are."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_column, data = state
        self[:] = kind.numbers(data).reshape(shape, order="F" if by_column else "C").tolist()


def _numpy_kinds() -> dict[str, Any]:
    """What a pickled integer array names."""
    kinds: dict[str, Any] = {"numpy.ndarray": _Array, "numpy.dtype": _Kind}
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        kinds[f"{module}._reconstruct"] = _Array
        kinds[f"{module}.scalar"] = lambda kind, data: kind.numbers(data)[0].item()
    return kinds
