"""The sweep file: which runs a sweep is made of, each with a checked config."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nern.config import Config
from nern.config.settings import built, check_key, check_keys, checked_keys, read_config_file
from nern.config.yaml_files import nested, nested_value, over, parse_yaml
from nern.errors import NernError
from nern.files import load_yaml

SIZE = "nern.hidden_layer_size"
ORDER = "nern.embeddings.permutations.permute_mode"
OWN = {"logging.exp_name": "the name of the run", "logging.log_dir": "the sweep's folder (--out)", "seed": "see seeds"}
_NAME = re.compile(r"[A-Za-z0-9_+][A-Za-z0-9._+=-]{0,150}")


@dataclass
class SweepRun:
    """An entry of `runs`; see docs/many-runs.md."""

    name: str = ""
    series: str = ""
    config: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class SweepFile:
    """The keys of a sweep file; see docs/many-runs.md."""

    config: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    runs: list[SweepRun] = field(default_factory=list)
    grid: dict[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    name: str  # of its run folder; ends with the seed
    series: str  # in tables and pictures, beside the ordering: runs of a series differ in size and seed
    config: Config  # checked; `logging` names the run folder


def load_sweep(path: str | Path, folder: str | Path, options: Mapping[str, Any] | None = None) -> list[PlannedRun]:
    """The runs of a sweep file, in its order: each of `runs`, at each point of `grid`, with each of `seeds`.

    Args:
        folder: of the sweep; run folders lie in its `runs`.
        options: dotted keys and values that win over the file in all runs; `seed` takes the place of `seeds`.

    Raises:
        NernError: the file is missing or malformed; a key is unknown; two runs have one name; a config cannot work.
    """
    path, options = Path(path), options or {}
    file = _read(path)
    typed, common = (
        _settings(options, "command line", ("seed",)),
        _settings(file.settings, f"{path}: settings", ("seed",)),
    )
    seeds = [typed.pop("seed")] if "seed" in options else file.seeds
    if both := [key for key in file.grid if key in options]:
        raise NernError(f"{path}: grid varies {both[0]}, --{both[0]} sets it for all runs; drop one of the two")
    planned: list[PlannedRun] = []
    for run in file.runs or [SweepRun()]:
        own = _settings(run.settings, f"{path}, run {run.name}: settings", () if seeds else ("seed",))
        of_file = run.config or file.config
        base = {} if of_file is None else read_config_file(path.parent / Path(of_file).expanduser(), Config)
        for point in itertools.product(*file.grid.values()):
            at = dict(zip(file.grid, point, strict=True))
            variant = "-".join(filter(None, [run.name, *(_text(key, value) for key, value in at.items())]))
            variant = variant or re.sub(r"[^A-Za-z0-9_+-]", "-", path.stem)
            where = f"{path}, run {variant}"
            if not _NAME.fullmatch(variant):
                raise NernError(f"{where}: its name is empty, too long or cannot be a folder's; set name under runs")
            logging = {"exp_name": variant, "log_dir": str(Path(folder) / "runs")}
            always = {"logging": logging} | ({"seed": seeds[0]} if seeds else {})
            values = base
            for above in (common, own, nested(at), typed, always):
                values = over(values, above)
            try:
                config = Config.from_dict(values)
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


def _read(path: Path) -> SweepFile:
    """The file, its keys and the types of their values checked."""
    values = load_yaml(path, "sweep file", parse_yaml)
    if not isinstance(values, dict):
        raise NernError(f"{path} holds {values!r}; keys and values are expected")
    check_keys(values, SweepFile, where=str(path))
    try:
        file: SweepFile = built(SweepFile, {key: value for key, value in values.items() if value is not None})
    except NernError as error:
        raise NernError(f"{path}: {error}") from error
    if len(set(file.seeds)) < len(file.seeds) or min(file.seeds, default=0) < 0:
        raise NernError(f"{path}: seeds (={file.seeds}) must be different whole numbers from 0 on")
    for run in file.runs:
        if not _NAME.fullmatch(run.name):
            raise NernError(f"{path}: runs: name (={run.name!r}) must be of letters, digits and . _ + = -")
    for key, choices in file.grid.items():
        check_key(str(key), Config, f"{path}: grid", more=Config.sections())
        if key in OWN:
            raise NernError(f"{path}: grid: {key} is set by the sweep itself: {OWN[key]}; drop it")
        if not isinstance(choices, list) or not choices or any(isinstance(choice, dict) for choice in choices):
            raise NernError(f"{path}: grid: {key} needs a list of values, not {choices!r}")
    return file


def _settings(values: Mapping[str, Any], where: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    """Settings, nested, their keys checked; of those that the sweep sets itself only what is `allowed`."""
    found = checked_keys(nested(values, where), Config, where)
    for key, what in OWN.items():
        if key not in allowed and nested_value(found, key, None) is not None:
            raise NernError(f"{where}: {key} is set by the sweep itself: {what}; drop it")
    return found


def _text(key: str, value: Any) -> str:
    """A value of the grid as part of a name."""
    if isinstance(value, bool):
        return f"{key.rpartition('.')[2]}={str(value).lower()}"
    if isinstance(value, list):
        return "_".join(_text(key, v) for v in value)
    text = "none" if value is None else str(value)
    if isinstance(value, int | float):
        text = re.sub("^-", "minus", text)
    return re.sub(r"[^A-Za-z0-9._+=-]+", "-", text).strip("-") or "empty"


def _series(run: SweepRun, at: Mapping[str, Any], config: Config) -> str:
    """The series of a run at a point of the grid."""
    named = run.series or run.name
    others = []
    for key, value in at.items():
        if key not in (SIZE, ORDER) and (named or key != "recipe"):
            text = _text(key, value)
            others.append(text if isinstance(value, bool) else f"{key.rpartition('.')[2]} {text}")
    return ", ".join([named or f"{config.recipe} recipe", *others])
