"""Configuration files: YAML with inheritance (`base`), written back without loss; nothing in one is executed."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from nern.config.phases import LENGTHS, section_names, sections_of, without_sections
from nern.errors import NernError, unknown_name
from nern.files import load_yaml
from nern.untrusted import check_yaml

BASE = "base"
RECIPES = ("published", "nern", "codes")
Check = Callable[[dict[str, Any], str, dict[str, Any]], dict[str, Any]]


def parse_yaml(text: str) -> Any:
    """What a YAML text holds. Numbers such as 5e-3 are numbers; nothing in it is executed.

    Raises:
        NernError: it is no YAML, or nested too deeply; it holds too long a number, or too much with its aliases written out.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        check_yaml(node)
        return None if node is None else loader.construct_document(node)
    except NernError:
        raise
    except RecursionError as error:
        raise NernError("it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise NernError(" ".join(str(error).split())) from error


def dump_yaml(values: Mapping[str, Any]) -> str:
    """The text that `parse_yaml` reads back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=100)


def read_yaml(path: str | Path, check: Check, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The nested dict in a YAML file, dotted keys unfolded, over what its `base` holds.

    `base: FILE` or `base: [FILE, ...]` names files, relative to this one, whose keys it starts from; later ones win, and
    its own keys win over all, key by key. Lists are replaced whole. `check(values, name, beneath)` gives what counts of each
    file, over its bases.

    Raises:
        NernError: a file is missing, no YAML, or no mapping; a key given twice; a value that is no text, number, list or
            mapping; bases in a circle; what `check` raises.
    """
    here = Path(path).expanduser().resolve()
    if here in _seen:
        circle = " -> ".join(str(p) for p in (*_seen[_seen.index(here) :], here))
        raise NernError(f"configuration files name each other as {BASE} in a circle: {circle}")
    what = "configuration file" if not _seen else f"configuration file ({BASE} of {_seen[-1]})"
    values = load_yaml(path, what, parse_yaml)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise NernError(f"{what} {path} holds {type(values).__name__}, not keys and values")
    bases = values.pop(BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise NernError(f"{path}: {BASE} must be a file name or a list of them, not {bases!r}")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = over(merged, read_yaml(here.parent / Path(base).expanduser(), check, (*_seen, here)))
    _check_plain(values, str(path))
    return over(merged, check(nested(values, where=str(path)), str(path), merged))


def _check_plain(value: Any, where: str, key: str = "") -> None:
    """Raise NernError for what only YAML knows: dates, sets, binary data."""
    if isinstance(value, dict):
        for name, entry in value.items():
            _check_plain(entry, where, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for entry in value:
            _check_plain(entry, where, key)
    elif not isinstance(value, str | int | float | None):
        raise NernError(f"{where}: {key} holds a {type(value).__name__}; quote it if text is meant ('{value}')")


LENGTHS_OF_RUN = {"epochs": "num_iterations", "num_iterations": "epochs"}  # lengths of a run, where its phases set none
_BY_DEFAULT = "epochs"  # the only length whose default is not null


def over(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` over `base`, key by key; a list of phases takes the place of all phases of `base`; see `replaced`."""
    merged = _over(without_sections(base) if values.get("phases") is not None else base, values)
    for key in replaced(base, values):
        merged = _over(merged, nested({key: None}))
    return merged


def replaced(base: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """Dotted keys of `base`, or of a default, that a length in `values` takes the place of: a run has one length, and so has
    each phase. Keys that `values` has itself are not among them."""
    names = section_names(base, values)
    given, there = sections_of(values, names), sections_of(base, names)
    found = [own for other, own in LENGTHS_OF_RUN.items() if values.get(other) is not None]
    if any(section.get(key) is not None for section in given.values() for key in LENGTHS):
        found += list(LENGTHS_OF_RUN)
    found = [key for key in dict.fromkeys(found) if key == _BY_DEFAULT or base.get(key) is not None]
    result = [key for key in found if key not in values]
    for name, section in given.items():
        for key, other in (LENGTHS, LENGTHS[::-1]):
            is_there = there.get(name, {}).get(other) is not None
            if section.get(key) is not None and other not in section and is_there:
                result.append(f"{name}.{other}")
    return result


def _over(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        there = merged.get(key)
        both = (
            isinstance(value, dict)
            and isinstance(there, dict)
            and value.get("name", there.get("name")) == there.get("name")
        )
        merged[key] = _over(merged[key], value) if both else value
    return merged


def recipe_values(name: object) -> dict[str, Any]:
    """What keys that are not given mean in recipe `name`: a nested dict, from a file of the package. Raises NernError, with
    the choices, if there is none of that name."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return {} if name == "published" else copy.deepcopy(_recipe(str(name)))  # published: the defaults of the schema


@cache  # every check of a config asks
def _recipe(name: str) -> dict[str, Any]:
    text = (resources.files("nern") / "configs" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    return nested(parse_yaml(text))


def nested(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """`values` with dotted keys ("nern.init") unfolded into sections. Raises NernError for one that is given twice."""
    unfolded: dict[str, Any] = {}

    def put(target: dict[str, Any], key: str, value: Any, path: str) -> None:
        first, _, rest = key.partition(".")
        if rest or isinstance(value, Mapping):
            section = target.setdefault(first, {})
            if not isinstance(section, dict):
                raise NernError(f"{at(where)}{path} is given twice")
            for name, entry in {rest: value}.items() if rest else value.items():
                put(section, str(name), entry, f"{path}.{name}" if not rest else path)
        elif first in target:
            raise NernError(f"{at(where)}{path} is given twice")
        elif isinstance(value, list):
            target[first] = [nested(v, where) if isinstance(v, Mapping) else v for v in value]
        else:
            target[first] = value

    for key, value in values.items():
        put(unfolded, str(key), value, str(key))
    return unfolded


def is_length(key: str) -> bool:
    """Whether a dotted key sets the length of a run or of a phase."""
    return key in LENGTHS_OF_RUN or (key.count(".") == 1 and key.rpartition(".")[2] in LENGTHS)


def nested_value(values: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """What a nested dict holds under a dotted key."""
    for name in key.split("."):
        if not isinstance(values, Mapping) or name not in values:
            return default
        values = values[name]
    return values


def at(where: str) -> str:
    """`where` as the beginning of a message."""
    return f"{where}: " if where else ""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 plus numbers without a dot in the mantissa (5e-3), as users write them; a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value in seen and key_node.value != "<<":
                raise NernError(f"key {key_node.value!r} is given twice, again in line {key_node.start_mark.line + 1}")
            seen.add(key_node.value if isinstance(key_node, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back: a name such as '1e3' is quoted."""


_NUMBER = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
for _reader_or_writer in (_Loader, _Dumper):  # add_implicit_resolver copies the inherited table first
    _reader_or_writer.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789"))
