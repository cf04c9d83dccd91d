"""Keys of the published framework, and of our versions before this one, made into those of today.

Nothing else in the package knows them.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

from nern.config.yaml_files import at, nested_value, parse_yaml
from nern.errors import NernError, NernWarning
from nern.typed import typed

VERSION = "0.1.0"  # the last one with the retired keys

_WEIGHTING = "refinement weights errors better"
_INVERSION = "images of random_data 'leaves' are as good"
# of each key: the values that ask for nothing, and in whose favour it was removed
RETIRED: dict[str, tuple[tuple[object, ...], str]] = {
    "nern.weighting": (("none",), _WEIGHTING),
    "nern.weighting_power": ((0.5,), _WEIGHTING),
    "nern.weighting_images": ((512,), _WEIGHTING),
    "nern.frequency_loss_weight": ((0,), "it did not help"),
    "nern.outliers": ((0,), "it did not help"),
    "nern.embeddings.permutations.exact_limit": ((1_000_000, None), "all orderings are exact"),
    "reconstruction.rounds": ((1,), "they did not help"),
    "reconstruction.round_share": ((1,), "they did not help"),
    "task.inversion_images": ((512,), _INVERSION),
    "task.inversion_steps": ((150,), _INVERSION),
    "task.in_memory": ((None, True, False), "up to 512 MB of images are held in memory"),
    "cuda_graph": ((False, True), "no step is captured"),  # no result depended on it
}
# keys that others have taken the place of, and what they may hold
TRANSLATED: dict[str, Any] = {
    "no_cuda": bool,
    "logging.disable_logging": bool,
    "logging.use_tensorboard": bool | None,
    "from_run": str | None,
}


def current(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """A nested dict of keys, in those of today; retired ones that are off are left out.

    Raises:
        NernError: a retired key asks for what was removed; a translated one contradicts the key in its place.
    """
    found, parts = dict(values), list[dict[str, Any]]()
    if isinstance(found.get("networks"), list):
        found["networks"] = [dict(n) if isinstance(n, Mapping) else n for n in found["networks"]]
        parts = [n for n in found["networks"] if isinstance(n, dict)]
    for part in [found, *parts]:
        for key, (off, _) in RETIRED.items():
            given = _taken(part, key)
            if given is not _MISSING and given not in off:
                raise retired_key(key, given, where)
    if _taken(found, "no_cuda") is True:
        found["num_gpus"] = 0
    _from_run(found, where)
    _tracker(found, where)
    return found


def retired_key(key: str, value: object = None, where: str = "") -> NernError:
    """The error for a retired key."""
    given = key if value is None else f"{key} (={value})"
    return NernError(f"{at(where)}{given} was removed: {RETIRED[key][1]} (docs/tried.md). Version {VERSION} has it")


def clearml_installed() -> bool:
    """Whether the clearml extra is there."""
    return importlib.util.find_spec("clearml") is not None


_MISSING = object()


def _taken(values: dict[str, Any], key: str) -> Any:
    """What a dotted key holds, which is removed; `_MISSING`: it is not there."""
    *sections, name = key.split(".")
    for section in sections:
        if not isinstance(values.get(section), Mapping):
            return _MISSING
        values[section] = dict(values[section])  # what was given stays as it is
        values = values[section]
    return typed(values.pop(name), TRANSLATED.get(key, Any), key, parse_yaml) if name in values else _MISSING


def _from_run(values: dict[str, Any], where: str) -> None:
    """`from_run` as the checkpoint to start from."""
    run = _taken(values, "from_run")
    if run is _MISSING or run is None:
        return
    if nested_value(values, "nern.init") == "checkpoint" or nested_value(values, "nern.checkpoint_path") is not None:
        raise NernError(f"{at(where)}from_run and nern.checkpoint_path both say what to start from; drop one")
    values["nern"] = {**values.get("nern", {}), "init": "checkpoint", "checkpoint_path": run}


def _tracker(values: dict[str, Any], where: str) -> None:
    """`disable_logging` and `use_tensorboard` as `tracker`: ClearML where TensorBoard is not wanted, if it is installed."""
    disabled, tensorboard = _taken(values, "logging.disable_logging"), _taken(values, "logging.use_tensorboard")
    named = nested_value(values, "logging.tracker")
    if tensorboard is True and named not in (None, "tensorboard"):
        raise NernError(f"{at(where)}logging.use_tensorboard is true but logging.tracker is {named!r}; drop one")
    tracker = {True: "tensorboard", False: "clearml"}.get(tensorboard) if isinstance(tensorboard, bool) else None
    if tracker == "clearml" and disabled is not True and not clearml_installed():
        text = "logging.use_tensorboard is false, but ClearML is not installed: TensorBoard is used"
        warnings.warn(text, NernWarning, stacklevel=2)
        tracker = "tensorboard"
    tracker = "none" if disabled is True else tracker
    if tracker is not None:
        values["logging"] = {**values["logging"], "tracker": tracker}
