"""Originals by name: architecture, its arguments, its weights."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nern.errors import NernError, NernWarning, unknown_name
from nern.files import existing_file
from nern.originals.base import Original, OriginalNetwork
from nern.originals.checked import check_network
from nern.originals.sources import find_builder, load_timm, load_torchvision
from nern.randomness import forked_rng
from nern.registry import ORIGINALS
from nern.shipped import NETWORK, shipped_file
from nern.untrusted import read_json
from nern.weights_file import KEY, load_weights, plain_state_dicts, split_key


def resolve_weights(path: str) -> Path:
    """The file that `original_model_path` means, with the key of a state dict in it, if one is named. Raises NernError where
    there is no such file."""
    if shipped := shipped_file(path, NETWORK, "pretrained network (original_model_path)"):
        return shipped
    name, key = split_key(path)
    file = existing_file(name, "original network's weights (original_model_path)")
    return file if key is None else file.with_name(f"{file.name}{KEY}{key}")


def kwargs_file(path: Path) -> Path:
    """The JSON file with constructor arguments that may lie beside a weights file: same name, suffix `.json`."""
    return Path(split_key(path)[0]).with_suffix(".json")


def builder_of(name: str) -> Any:
    """What builds the network that `task.original_model_name` names. Raises NernError where there is none."""
    return find_builder(name) if ":" in name else ORIGINALS[name]


def build_network(
    name: str, kwargs: dict[str, Any] | None = None, optional: dict[str, Any] | None = None, seed: int = 0
) -> nn.Module:
    """The network `name` with random weights from `seed`.

    Args:
        kwargs: its arguments.
        optional: arguments that are left out where it takes none of the name.

    Raises:
        NernError: no such network; arguments that do not fit; or see `check_network`.
    """
    build, kwargs = builder_of(name), kwargs or {}
    try:
        parameters: Mapping[str, Any] = inspect.signature(build).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    except (TypeError, ValueError):  # of a builtin: it does not tell
        parameters, takes_any = kwargs, True
    for key in kwargs:
        if key not in parameters and not takes_any:
            raise unknown_name(f"argument of {name}", key, parameters)
    taken = {key: value for key, value in (optional or {}).items() if key in parameters} | kwargs
    try:
        with forked_rng(seed, "original"):
            built = build(**taken)
    except NernError:
        raise
    except Exception as error:  # whatever it raises
        detail = " ".join(str(error).split())[:400]
        if not isinstance(error, TypeError | ValueError | RuntimeError) or not detail:  # their text alone says little
            detail = f"{type(error).__name__}{f': {detail}' if detail else ''}"
        raise NernError(f"{name} cannot be built with {repr(taken)[:400]}: {detail}") from error
    if not isinstance(built, nn.Module):
        raise NernError(f"the network {name!r} is {type(built).__name__}, not a torch.nn.Module")
    check_network(built)
    built.built_with = taken  # type: ignore[assignment]
    return built


def build_original_network(
    name: str,
    path: str | None,
    kwargs: dict[str, Any] | None = None,
    task_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The network `name` with the weights in `path` (None: random, from `seed`, with a warning).

    Its arguments: `task_kwargs`, those of them that it takes; over them what the weights tell; over that the JSON file
    beside the weights; over all `kwargs`.

    Raises:
        NernError: no such file, weights or arguments that do not fit.
    """
    source, _, entry = (path or "").partition(":")
    if source in ("torchvision", "timm"):
        network = build_network(name, kwargs, seed=seed)  # with the classes it was trained on
        _load_pretrained(network, name, source, entry)
        return network.to(device)
    file = None if path is None else resolve_weights(path)
    of_task, beside = task_kwargs or {}, dict[str, Any]()
    told = dict[str, Any]()  # by the weights and the file beside them
    if file is not None:
        build = builder_of(name)
        if hasattr(build, "infer_kwargs") and getattr(build, "load", None) in (None, OriginalNetwork.load):
            # Of several state dicts the one that tells most, of as many the first.
            states = plain_state_dicts(file, "original network's weights")
            told = max((build.infer_kwargs(state.tensors) for state in states), key=len, default={})
        if kwargs_file(file).is_file():
            beside = read_json(kwargs_file(file), dict, "; it is read as the arguments of the original network")
            told |= beside
    known = {key: value for key, value in told.items() if key not in of_task} | (kwargs or {})
    optional = {key: told.get(key, value) for key, value in of_task.items()}
    try:
        network = build_network(name, known, optional, seed)
    except NernError as error:
        if not beside:
            raise
        raise NernError(
            f"{error} ({', '.join(beside)} come from {kwargs_file(file or Path())}, read as the arguments of the network; "
            "rename that file if it is meant for something else)"
        ) from error
    if file is None:
        warnings.warn(f"original_model_path is not set: {name} has random weights", NernWarning, stacklevel=2)
    elif isinstance(network, OriginalNetwork):
        network.load(str(file), torch.device(device))
    else:
        load_weights(network, file)
    return network.to(device)


def _load_pretrained(network: nn.Module, name: str, source: str, entry: str) -> None:
    """Weights that another library publishes, into the network `name`."""
    its_source, _, its_name = name.rpartition(":")
    if not its_source:
        its_source, its_name = "torchvision", ORIGINALS.info(name).get("torchvision", "")
    if its_source != source or not its_name:
        raise NernError(
            f"original_model_path {source!r} means pretrained weights of a {source} network; {name!r} is none. Give a file, "
            f"or set task.original_model_name to {source}:NAME."
        )
    if source == "torchvision":
        load_torchvision(network, its_name, entry or "DEFAULT")
    else:
        load_timm(network, its_name, entry)


def build_original(
    name: str,
    path: str | None,
    kwargs: dict[str, Any] | None = None,
    task_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    feature_maps: Sequence[str] | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    names: Sequence[str] | None = None,
) -> Original:
    """The network of `build_original_network`, frozen; what it is registered with says what is represented and compared,
    unless `include` (globs) or `names` (exact), and `feature_maps` do."""
    network = build_original_network(name, path, kwargs, task_kwargs, seed, device)
    info = ORIGINALS.info(name) if name in ORIGINALS else {}
    taps = info.get("feature_maps") if feature_maps is None else feature_maps
    return Original(network, taps, include, exclude, info.get("represents"), names)
