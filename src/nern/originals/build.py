"""Originals by name: architecture, its arguments, its weights."""

from __future__ import annotations

import inspect
import json
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nern.errors import NernError, NernWarning, unknown_name
from nern.files import existing_file, load_state_dict
from nern.originals.base import ModuleNetwork, OriginalNetwork, kwargs_file
from nern.randomness import forked_rng
from nern.registry import ORIGINALS

PRETRAINED = "pretrained:"


def pretrained_names() -> list[str]:
    """Names of the networks that ship with nern."""
    folder = resources.files("nern") / "pretrained"
    return sorted(f.name.removesuffix(".safetensors") for f in folder.iterdir() if f.name.endswith(".safetensors"))


def resolve_weights(path: str) -> Path:
    """The file that `original_model_path` means. Raises NernError where there is none."""
    if path.startswith(PRETRAINED):
        name = path.removeprefix(PRETRAINED)
        if name not in pretrained_names():
            raise unknown_name("pretrained network (original_model_path)", name, pretrained_names())
        return Path(str(resources.files("nern") / "pretrained" / f"{name}.safetensors"))
    return existing_file(path, "original network's weights (original_model_path)")


def build_original_network(
    name: str,
    path: str | None,
    kwargs: dict[str, Any] | None = None,
    task_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> OriginalNetwork:
    """The network registered as `name` with the weights in `path` (None: random, from `seed`, with a warning).

    Its arguments: `task_kwargs`, those of them that it takes; over them what the weights tell; over that the JSON file
    beside the weights; over all `kwargs`.

    Raises:
        NernError: no such file, weights or arguments that do not fit.
    """
    device = torch.device(device)
    build = ORIGINALS[name]
    file = None if path is None else resolve_weights(path)
    arguments = dict(task_kwargs or {})
    if file is not None:
        if hasattr(build, "infer_kwargs") and getattr(build, "load", None) in (None, OriginalNetwork.load):
            arguments |= build.infer_kwargs(load_state_dict(file, "original network's weights"))
        if kwargs_file(file).is_file():
            arguments |= _read_kwargs(kwargs_file(file))
    given = arguments | (kwargs or {})
    with forked_rng(seed, "original"):
        built = _call(build, name, given, optional=set(task_kwargs or {}))
    if not isinstance(built, nn.Module):
        raise NernError(f"the registered network {name!r} is {type(built).__name__}, not a torch.nn.Module")
    network = built if isinstance(built, OriginalNetwork) else ModuleNetwork(built)
    if file is None:
        warnings.warn(f"original_model_path is not set: {name} has random weights", NernWarning, stacklevel=2)
        return network.to(device)
    network.load(str(file), device)
    return network


def _read_kwargs(path: Path) -> dict[str, Any]:
    try:
        kwargs = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NernError(f"arguments of the original network: {path} is not valid JSON ({error})") from error
    if not isinstance(kwargs, dict):
        raise NernError(f"arguments of the original network: {path} holds {type(kwargs).__name__}, not an object")
    return kwargs


def _call(build: Any, name: str, kwargs: dict[str, Any], optional: set[str]) -> Any:
    parameters = inspect.signature(build).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        kwargs = {k: v for k, v in kwargs.items() if k in parameters or k not in optional}
        for key in kwargs:
            if key not in parameters:
                raise unknown_name(f"argument of {name}", key, parameters)
    try:
        return build(**kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, NernError):
            raise
        raise NernError(f"{name} cannot be built with {kwargs}: {error}") from error
