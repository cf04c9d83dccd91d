"""The sweep file: which runs a sweep is made of, each with a checked config."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nern.config import Config, check_key, checked_keys, nested, parse_yaml, read_config_file
from nern.config.yaml_files import nested_value, over
from nern.errors import NernError, unknown_name
from nern.files import load_yaml

KEYS = ("config", "settings", "runs", "grid", "seeds")
RUN_KEYS = ("name", "series", "config", "settings")
SIZE = "nern.hidden_layer_size"
ORDER = "nern.embeddings.permutations.permute_mode"
OWN = {"logging.exp_name": "the name of the run", "logging.log_dir": "the sweep's folder (--out)"}
_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+=-]{0,150}")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: of its run folder; ends with the seed.
        series: what it belongs to in tables and pictures, beside its ordering: runs of a series differ in size and seed.
        config: checked; `logging` names the run folder.
    """

    name: str
    series: str
    config: Config


def load_sweep(path: str | Path, folder: str | Path, options: Mapping[str, Any] | None = None) -> list[PlannedRun]:
    """The runs of a sweep file, in its order: each of `runs`, at each point of `grid`, with each of `seeds`.

    Args:
        path: the file (docs/many-runs.md).
        folder: of the sweep; run folders lie in its `runs`.
        options: dotted keys and values that win over the file in all runs; `seed` takes the place of `seeds`.

    Raises:
        NernError: the file is missing or malformed; a key is unknown; two runs have one name; a config cannot work.
    """
    path, options = Path(path), options or {}
    values = _mapping(load_yaml(path, "sweep file", parse_yaml), str(path), KEYS, "key of a sweep file")
    typed, common = _settings(options, "command line"), _settings(values.get("settings", {}), f"{path}: settings")
    grid, seeds = _grid(values.get("grid"), str(path)), _seeds(values.get("seeds"), str(path))
    if both := [key for key in grid if key in options]:
        raise NernError(f"{path}: grid varies {both[0]}, --{both[0]} sets it for all runs; drop one of the two")
    if "seed" in options:
        seeds = [typed.pop("seed")]
    planned: list[PlannedRun] = []
    for run in _runs(values.get("runs"), str(path)):
        own = _settings(run.get("settings", {}), f"{path}, run {run.get('name')}: settings")
        if seeds and "seed" in own:
            raise NernError(
                f"{path}, run {run['name']}: settings has seed, and there are seeds (={seeds}); drop one of the two"
            )
        base = over(over(_config_file(run.get("config", values.get("config")), path), common), own)
        for point in itertools.product(*grid.values()):
            at = dict(zip(grid, point, strict=True))
            variant = "-".join([*filter(None, [run.get("name")]), *(_text(key, value) for key, value in at.items())])
            variant = variant or re.sub(r"[^A-Za-z0-9_+-]", "-", path.stem)
            where = f"{path}, run {variant}"
            if not _NAME.fullmatch(variant):
                raise NernError(f"{where}: its name is empty, too long or cannot be a folder's; set name under runs")
            merged = over(over(base, nested(at)), typed)
            logging = {"exp_name": variant, "log_dir": str(Path(folder) / "runs")}
            try:
                config = Config.from_dict(over(merged, {"logging": logging} | ({"seed": seeds[0]} if seeds else {})))
            except NernError as error:
                raise NernError(f"{where}: {error}") from error
            for seed in seeds or [config.seed]:
                own_config = copy.deepcopy(config)
                own_config.seed, own_config.logging.exp_name = seed, f"{variant}-s{seed}"
                planned.append(PlannedRun(own_config.logging.exp_name, _series(run, at, config), own_config))
    names = [run.name for run in planned]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise NernError(f"{path}: several runs are named {', '.join(twice)}; give runs names that differ")
    return planned


def _mapping(values: Any, where: str, keys: Sequence[str], kind: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise NernError(f"{where} holds {values!r}; keys and values are expected, of {', '.join(keys)}")
    for key in values:
        if key not in keys:
            raise NernError(f"{where}: {unknown_name(kind, key, keys)}")
    return values


def _settings(values: Any, where: str) -> dict[str, Any]:
    """Settings, nested, their keys checked."""
    if not isinstance(values, Mapping):
        raise NernError(f"{where}: settings are config keys with values, not {values!r}")
    values = checked_keys(nested(values, where), Config, where)
    for key, what in OWN.items():
        if nested_value(values, key, None) is not None:
            raise NernError(f"{where}: {key} is set by the sweep itself: {what}; drop it")
    return values


def _config_file(name: Any, sweep: Path) -> dict[str, Any]:
    """Values of a config file that is named relative to the sweep file; null: none."""
    if not isinstance(name, str | None):
        raise NernError(f"{sweep}: config names a config file, not {name!r}")
    return {} if name is None else read_config_file(sweep.parent / Path(name).expanduser(), Config)


def _grid(values: Any, where: str) -> dict[str, list[Any]]:
    if not isinstance(values, dict | None):
        raise NernError(f"{where}: grid maps dotted config keys to lists of values, not {values!r}")
    for key, choices in (values or {}).items():
        check_key(str(key), Config, f"{where}: grid", more=Config.sections())
        if key in OWN or key == "seed":
            raise NernError(f"{where}: grid: {key} is set by the sweep itself: {OWN.get(key, 'see seeds')}; drop it")
        if not isinstance(choices, list) or not choices or any(isinstance(choice, dict) for choice in choices):
            raise NernError(f"{where}: grid: {key} needs a list of values, not {choices!r}")
    return values or {}


def _seeds(values: Any, where: str) -> list[int]:
    if values is None:
        return []
    good = isinstance(values, list) and values and all(type(v) is int and v >= 0 for v in values)
    if not good or len(set(values)) < len(values):
        what = "seeds is a list of different whole numbers from 0 on, such as [0, 1, 2]"
        raise NernError(f"{where}: {what}, not {values!r}")
    return values


def _runs(values: Any, where: str) -> list[dict[str, Any]]:
    if values is None:
        return [{}]
    if not isinstance(values, list) or not values:
        raise NernError(f"{where}: runs is a list of entries with {', '.join(RUN_KEYS)}, not {values!r}")
    for number, run in enumerate(values, 1):
        here = f"{where}: entry {number} of runs"
        name, series = (_mapping(run, here, RUN_KEYS, "key of a run").get(key, "") for key in ("name", "series"))
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            what = "must be a text of letters, digits and . _ + = - (quote numbers)"
            raise NernError(f"{here}: name (={run.get('name')!r}) {what}")
        if not isinstance(series, str):
            raise NernError(f"{here}: series (={series!r}) must be a text")
    return values


def _text(key: str, value: Any) -> str:
    """A value of the grid as part of a name."""
    if isinstance(value, bool):
        return f"{key.rpartition('.')[2]}={str(value).lower()}"
    if isinstance(value, list):
        return "_".join(_text(key, v) for v in value)
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", "none" if value is None else str(value)).strip("-") or "empty"


def _series(run: Mapping[str, Any], at: Mapping[str, Any], config: Config) -> str:
    """The series of a run at a point of the grid."""
    named = run.get("series") or run.get("name")
    told = (SIZE, ORDER) if named else (SIZE, ORDER, "recipe")
    others = []
    for key, value in at.items():
        if key not in told:
            text = _text(key, value)
            others.append(text if isinstance(value, bool) else f"{key.rpartition('.')[2]} {text}")
    return ", ".join([named or f"{config.recipe} recipe", *others])
