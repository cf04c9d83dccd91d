"""Networks and pretrained weights of other libraries: `torchvision:NAME`, `timm:NAME`, `package.module:function`; and
torchvision's networks of the published experiments under names of their own."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nern.compat import import_torchvision
from nern.config.imports import import_module
from nern.errors import NernError
from nern.originals.base import register_original
from nern.originals.input_format import InputFormat
from nern.weights_file import load_into

Builder = Callable[..., nn.Module]


def find_builder(name: str) -> Builder:
    """The function that builds the network `SOURCE:NAME`. Raises NernError, with the nearest names, where the source has no
    such network."""
    source, _, what = name.rpartition(":")
    if source == "torchvision":
        return _torchvision_builder(what)
    if source == "timm":
        return _timm_builder(what)
    module = import_module(source, "task.original_model_name")
    builder = getattr(module, what, None)
    if not callable(builder):
        there = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise NernError(
            f"task.original_model_name {name!r}: {source} has no function or class {what!r}; it has: "
            f"{', '.join(there[:30]) or 'none'}"
        )
    return builder


def source_names(source: str) -> list[str]:
    """All network names of 'torchvision' or 'timm'."""
    if source == "torchvision":
        return sorted(import_torchvision().models.list_models())
    return sorted(_timm().list_models())


def _unknown(source: str, name: str) -> NernError:
    names = source_names(source)
    near = difflib.get_close_matches(name.lower(), names, n=5, cutoff=0.4)
    hint = f"; the nearest are: {', '.join(near)}" if near else ""
    return NernError(f"{source} has no network {name!r}{hint} (`nern list {source}` shows all {len(names)})")


def _torchvision_builder(name: str) -> Builder:
    models = import_torchvision().models
    if name not in models.list_models():
        raise _unknown("torchvision", name)
    function = models.get_model_builder(name)

    def build(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> nn.Module:
        if in_channels != 3:
            raise NernError(f"torchvision's {name} takes images of 3 channels, not {in_channels}")
        if name in ("googlenet", "inception_v3"):
            kwargs.setdefault("init_weights", True)  # they warn where it is left open
        if "weights_backbone" in inspect.signature(function).parameters:
            kwargs.setdefault("weights_backbone", None)  # its default would be downloaded
        network: nn.Module = function(weights=None, num_classes=num_classes, **kwargs)
        network.input_format = _torchvision_format(_torchvision_weights(name).get("DEFAULT"))  # type: ignore[assignment]
        return network

    return build


def _torchvision_format(weights: Any) -> InputFormat | None:
    """Of pretrained weights; None where there are none, or where they describe other than image crops."""
    transforms: Any = None if weights is None else weights.transforms()
    if type(transforms).__name__ != "ImageClassification":
        return None
    side, resized = transforms.crop_size[0], transforms.resize_size[0]
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    return InputFormat((3, side, side), mean, std, transforms.interpolation.value, side / resized, own=False)


def _torchvision_weights(name: str) -> Mapping[str, Any]:
    """Pretrained weights of a network by their names, 'DEFAULT' among them if there are any."""
    return import_torchvision().models.get_model_weights(name).__members__


def load_torchvision(network: nn.Module, name: str, entry: str) -> None:
    """Load torchvision's pretrained weights `entry` ('DEFAULT' for the best) of its network `name`, downloaded if need be.

    Raises:
        NernError: no such weights; no network connection (the message tells where to put the file); weights of other
            shapes.
    """
    choices = _torchvision_weights(name)
    if entry not in choices:
        raise NernError(f"torchvision has no weights {entry!r} for {name}; it has: {', '.join(choices) or 'none'}")
    weights = choices[entry]
    file = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(weights.url)
    try:
        state = torch.hub.load_state_dict_from_url(weights.url, progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # URLError, a wrong hash, no space: all need the same remedy
        raise NernError(
            f"torchvision's weights {entry} of {name} could not be downloaded ({error}). Put {weights.url} at {file} "
            "yourself, or give the file as original_model_path."
        ) from error
    load_into(network, state, f"torchvision's weights {entry} of {name}")
    network.input_format = _torchvision_format(weights)  # type: ignore[assignment]
    if hasattr(network, "transform_input"):
        network.transform_input = True  # type: ignore[assignment]  # GoogLeNet's and Inception's weights expect it


def _timm() -> Any:
    import_torchvision()
    import timm

    return timm


def _timm_builder(name: str) -> Builder:
    timm = _timm()
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise _unknown("timm", name)
    if tag and name not in timm.list_pretrained():
        raise NernError(f"timm has no {name!r}; {_tags(base)}")

    def build(num_classes: int | None = None, in_channels: int = 3, **kwargs: Any) -> nn.Module:
        kwargs = {"in_chans": in_channels} | kwargs | ({} if num_classes is None else {"num_classes": num_classes})
        network: nn.Module = timm.create_model(name, pretrained=False, **kwargs)
        metadata = getattr(network, "pretrained_cfg", None)
        if isinstance(metadata, dict) and metadata.get("input_size"):  # of the pretrained weights, not of this network
            _, *size = metadata["input_size"]
            size = [kwargs["img_size"]] * 2 if isinstance(kwargs.get("img_size"), int) else size
            network.pretrained_cfg = metadata | {"input_size": (kwargs["in_chans"], *size)}  # type: ignore[assignment]
        return network

    return build


def _tags(base: str) -> str:
    tags = sorted(n.partition(".")[2] for n in _timm().list_pretrained(f"{base}.*"))
    return f"pretrained tags of {base}: {', '.join(tags) or 'none'}"


def load_timm(network: nn.Module, name: str, tag: str) -> None:
    """Load timm's pretrained weights `tag` (empty for the default, or the tag in `name`) of its network `name`. Errors:
    as for `load_torchvision`."""
    timm = _timm()
    base, _, own_tag = name.partition(".")
    full = f"{base}.{tag or own_tag}".rstrip(".")
    cfg = timm.get_pretrained_cfg(full, allow_unregistered=False) if timm.is_model_pretrained(full) else None
    if cfg is None:
        raise NernError(f"timm has no pretrained weights {full!r}; {_tags(base)}")
    try:
        loaded = timm.create_model(full, pretrained=True, num_classes=cfg.num_classes)
    except Exception as error:
        source = f"https://huggingface.co/{cfg.hf_hub_id}" if cfg.hf_hub_id else cfg.url
        raise NernError(
            f"timm's weights {full} could not be downloaded ({' '.join(str(error).split())[:200]}). Get model.safetensors "
            f"from {source} and give the file as original_model_path."
        ) from error
    load_into(network, loaded.state_dict(), f"timm's weights {full}")
    network.pretrained_cfg = loaded.pretrained_cfg


# --- registered networks, with the published choice of represented layers ---------------------------------------------


def _build(theirs: str, num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> nn.Module:
    return find_builder(f"torchvision:{theirs}")(num_classes=num_classes, in_channels=in_channels, **kwargs)


# The stem, the 1x1 shortcuts and the classifier are kept. Feature maps are what goes into every ReLU, that is after the
# first norm, and in each block after bn1 and after the addition; and bn2.
register_original(
    "ResNet18",
    torchvision="resnet18",
    represents=["layer?.?.conv?.weight"],
    feature_maps=["relu:input", "layer?.?.relu:input", "layer?.?.bn2"],
    about="torchvision's; represented: the two 3x3 convolutions of each block",
)(partial(_build, "resnet18"))

for _version in ("1.0", "1.1"):
    _theirs = f"squeezenet{_version.replace('.', '_')}"
    register_original(
        f"SqueezeNet{_version}",
        torchvision=_theirs,
        represents=["features.*.squeeze.weight", "features.*.expand*.weight"],
        about="torchvision's; represented: the 1x1 and 3x3 convolutions of the Fire modules",
    )(partial(_build, _theirs))
