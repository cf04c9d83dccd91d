"""Keys that version 0.1.0 had and this one has not: configurations written by it hold them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nern.config.yaml_files import at
from nern.errors import NernError

VERSION = "0.1.0"  # the last one with these keys

_WEIGHTING = "refinement weights errors better"
# of each key: the value that means "off", and in whose favour it was removed
RETIRED: dict[str, tuple[object, str]] = {
    "nern.weighting": ("none", _WEIGHTING),
    "nern.weighting_power": (0.5, _WEIGHTING),
    "nern.weighting_images": (512, _WEIGHTING),
    "nern.frequency_loss_weight": (0, "it did not help"),
    "nern.outliers": (0, "it did not help"),
    "reconstruction.rounds": (1, "they did not help"),
    "reconstruction.round_share": (1, "they did not help"),
}


def without_retired(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """A nested dict of keys without the retired ones that are off.

    Raises:
        NernError: one of them asks for what was removed.
    """
    current = dict(values)
    for key, (off, _) in RETIRED.items():
        section, _, name = key.partition(".")
        keys = current.get(section)
        if isinstance(keys, Mapping) and name in keys:
            if keys[name] != off:
                raise retired_key(key, keys[name], where)
            current[section] = {other: value for other, value in keys.items() if other != name}
    return current


def retired_key(key: str, value: object = None, where: str = "") -> NernError:
    """The error for a retired key."""
    given = key if value is None else f"{key} (={value})"
    return NernError(f"{at(where)}{given} was removed: {RETIRED[key][1]} (docs/tried.md). Version {VERSION} has it")
