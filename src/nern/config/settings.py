"""What every configuration can do: from and to YAML, keys and types checked against its dataclass."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from nern.config.imports import import_modules
from nern.config.published import RETIRED, current, retired_key
from nern.config.yaml_files import at, dump_yaml, is_length, nested, over, parse_yaml, read_yaml
from nern.errors import NernError, unknown_name
from nern.files import write_text
from nern.typed import Least, hints_of, options_of, typed


class Settings:
    """Base of a configuration: a dataclass whose fields are its keys, and whose dataclass fields are its sections."""

    imports: list[str]

    def check(self) -> Self:
        """Raise NernError for the first name, number or combination that cannot work; return self otherwise."""
        raise NotImplementedError

    @classmethod
    def beneath(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """What lies beneath the keys of `values`, in place of the defaults of those that are not given."""
        return {}

    @classmethod
    def sections(cls, *layers: Mapping[str, Any]) -> dict[str, Any]:
        """Keys beside the fields, each with the dataclass of the section that it is, or of the items of a list."""
        return {}

    @classmethod
    def complete(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values`, merged, with fields alone as keys."""
        return dict(values)

    def may_change(self, key: str) -> bool:
        """Whether a run that has begun may go on with another value of this dotted key: a length."""
        return is_length(key)

    def with_absolute_paths(self) -> Self:
        """A copy whose input files and folders are named from the root: it works from any working directory."""
        config = copy.deepcopy(self)
        _make_absolute(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, keys as in a configuration file."""
        return plain(dataclasses.asdict(self))  # type: ignore[call-overload]

    def to_yaml(self) -> str:
        """The configuration file that reproduces this one."""
        return dump_yaml(self.to_dict())

    def changes(self) -> dict[str, Any]:
        """Dotted keys whose values are other than those that lie beneath (see `beneath`), with their values; 'none' in place
        of null is no other."""
        own = self.to_dict()
        beneath = dict(leaves(built(type(self), self.complete(nested(self.beneath(own)))).to_dict()))
        return {k: v for k, v in leaves(own) if v != beneath.get(k) and (v, beneath.get(k)) != ("none", None)}

    def changes_text(self) -> str:
        """`changes` in a line; empty: there are none."""
        parts = [f"{key}={json.dumps(value)}" for key, value in self.changes().items() if key != "recipe"]
        return f"; set: {', '.join(parts)}" if parts else ""

    def __repr__(self) -> str:
        recipe = getattr(self, "recipe", None)
        return f"{type(self).__name__}{f' of recipe {recipe}' if recipe else ''}{self.changes_text()}"

    def save(self, path: str | Path) -> None:
        """Write `to_yaml()` to `path`."""
        write_text(path, self.to_yaml())

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From a nested dict, keys as in a file. Raises NernError for unknown keys, wrong types and bad values."""
        values = checked_keys(nested(values), cls)
        config: Self = built(cls, cls.complete(over(cls.beneath(values), values)))
        import_modules(config.imports)
        return config.check()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """From a YAML file; NernError as in `from_dict`."""
        return cls.from_dict(read_config_file(path, cls))


WEIGHT_SOURCES = ("pretrained", "torchvision", "timm")  # original_model_path: SOURCE or SOURCE:NAME
_FILES = ("checkpoint_path", "path", "data_dir", "imagenet_path")  # keys of what is read, in any section
_WEIGHTS = ("original_model_path", "initial_weights")  # these may name a source


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _make_absolute(section: Any) -> None:
    """Name the files and folders of a section, and of those within it, from the root."""
    for name, value in vars(section).items():
        if value is None:
            continue
        if name in _FILES or (name in _WEIGHTS and value.partition(":")[0] not in WEIGHT_SOURCES):
            setattr(section, name, _absolute(value))
        elif name == "imports":
            setattr(section, name, [_absolute(entry) if entry.endswith(".py") else entry for entry in value])
        elif name == "original_model_name" and ".py:" in value:
            file, _, function = value.rpartition(":")
            setattr(section, name, f"{_absolute(file)}:{function}")
        for part in value if isinstance(value, list) else [value]:
            if dataclasses.is_dataclass(part):
                _make_absolute(part)


def read_config_file(path: str | Path, cls: type[Settings]) -> dict[str, Any]:
    """The nested dict in a YAML file and its bases, its keys checked and dotted ones unfolded."""
    return read_yaml(path, lambda values, where, beneath: checked_keys(values, cls, where, beneath))


def item_class(hint: Any) -> Any:
    """The dataclass that a list of sections holds; None for any other type."""
    arguments = typing.get_args(hint) if typing.get_origin(hint) is list else ()
    return arguments[0] if arguments and dataclasses.is_dataclass(arguments[0]) else None


def known_keys(cls: Any, prefix: str = "") -> dict[str, Any]:
    """Every dotted key with its field type, sections included (their type is the dataclass); of a list of sections
    `name.key` stands for the key in any of them."""
    hints = hints_of(cls)
    keys: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        keys[prefix + f.name] = hints[f.name]
        section = hints[f.name] if dataclasses.is_dataclass(hints[f.name]) else item_class(hints[f.name])
        if section:
            keys |= known_keys(section, f"{prefix}{f.name}.")
    return keys


def check_key(key: str, cls: Any, where: str = "", before: str = "", more: Mapping[str, Any] | None = None) -> None:
    """Raise NernError if the dotted `key` is none of the dataclass `cls`, nor of `more` sections beside its own, naming the
    section's keys and the nearest. For the message: `where`, the file; and what stands `before` the key."""
    known = known_keys(cls)
    for name, section in (more or {}).items():
        known[name] = section
        known |= known_keys(section, f"{name}.")
    if key in known:
        return
    if before + key in RETIRED:
        raise retired_key(before + key, where=where)
    section = key.rpartition(".")[0]
    if any(typing.get_origin(option) is dict for option in options_of(known.get(section))):
        return  # a free mapping, or the name of a component with settings of its own
    while section and not dataclasses.is_dataclass(known.get(section)) and not item_class(known.get(section)):
        section = section.rpartition(".")[0]
    choices = [before + name for name in known if name.rpartition(".")[0] == section]
    same = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    elsewhere = ", ".join(before + name for name in same if not name.startswith("phases."))
    hint = f" (there is {elsewhere})" if elsewhere else ""
    error = unknown_name("configuration key", before + key, choices)
    raise NernError(f"{at(where)}{error}{hint}")


def checked_keys(
    values: Mapping[str, Any], cls: type[Settings], where: str = "", beneath: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A nested mapping in keys of today, every other one checked (`check_keys`), over another mapping."""
    values = current(values, where)
    check_keys(values, cls, where=where, more=cls.sections(beneath or {}, values))
    return values


def check_keys(
    values: Mapping[str, Any], cls: Any, prefix: str = "", where: str = "", more: Mapping[str, Any] | None = None
) -> None:
    """`check_key` for every key of a nested mapping; a section must hold a mapping, a list of sections mappings. `more`:
    sections beside those of `cls`."""
    known, more = known_keys(cls), more or {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name in more:
            _check_section(value, more[name], key, where)
            continue
        check_key(name, cls, where, prefix, more)
        if item := item_class(known[name]) if name in known else None:
            if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
                raise NernError(f"{at(where)}{key} is a list of sections; each needs keys, not {value!r}")
            if not all(value):
                raise NernError(f"{at(where)}{key} holds an empty section; each needs keys")
            for entry in value:
                check_keys(entry, item, f"{key}.", where)
        elif dataclasses.is_dataclass(known.get(name)):
            _check_section(value, known[name], key, where)


def _check_section(value: Any, cls: Any, key: str, where: str) -> None:
    if not isinstance(value, Mapping):
        raise NernError(f"{at(where)}{key} is a section; it needs keys, not {value!r}")
    check_keys(value, cls, f"{key}.", where)


def choose(key: str, given: object, choices: Collection[str]) -> None:
    """Raise NernError if `given` is not one of `choices`."""
    if given not in choices:
        raise unknown_name(key, given, choices)


def check_numbers(section: Any, prefix: str = "") -> None:
    """Raise NernError for the first number of a section, or of those within it, that is below what its type says; null
    passes. `prefix` stands before the keys in messages; phases, which have names of their own, are left out."""
    cls: Any = type(section)
    for name, hint in limits_of(cls).items():
        value, key = getattr(section, name), f"{prefix}{name}"
        if isinstance(hint, Least) and value is not None and not hint.allows(value):
            raise NernError(f"{key} (={value}) must be {hint}")
        for part in value if isinstance(value, list) and name != "phases" else [value]:
            if dataclasses.is_dataclass(part):
                check_numbers(part, f"{key}.")


@functools.cache
def limits_of(cls: Any) -> dict[str, Least | None]:
    """Of each field of a dataclass, the limit that its type names."""
    hints = typing.get_type_hints(cls, include_extras=True)
    options = {name: (hint, *typing.get_args(hint)) for name, hint in hints.items()}
    found = {name: [m for o in of for m in getattr(o, "__metadata__", ())] for name, of in options.items()}
    return {f.name: next(iter(found[f.name]), None) for f in dataclasses.fields(cls)}


def nested_attribute(section: Any, key: str) -> Any:
    """What a dotted key holds."""
    return functools.reduce(getattr, key.split("."), section)


def built(cls: Any, values: Mapping[str, Any], prefix: str = "", default: Any = None) -> Any:
    """The dataclass of these values, sections within it included; keys that are not given have their defaults.

    Args:
        values: nested; all keys are known.
        prefix: what stands before the keys in messages.
        default: has the values of keys that are not given; None: the dataclass's own.

    Raises:
        NernError: a value of another type than its key's.
    """
    hints, found, default = hints_of(cls), {}, cls() if default is None and not _required(cls) else default
    for name, value in values.items():
        hint, key = hints[name], f"{prefix}{name}"
        if dataclasses.is_dataclass(hint):
            found[name] = value if isinstance(value, hint) else built(hint, value, f"{key}.", getattr(default, name))  # type: ignore[arg-type]
        elif (item := item_class(hint)) is not None:
            found[name] = [v if isinstance(v, item) else built(item, v, f"{key}.") for v in value]
        else:
            found[name] = typed(value, hint, key, parse_yaml)
    return cls(**found) if default is None else dataclasses.replace(default, **found)


def _required(cls: Any) -> bool:
    """Whether a dataclass has fields without defaults."""
    missing = dataclasses.MISSING
    return any(f.default is missing and f.default_factory is missing for f in dataclasses.fields(cls))


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested sections, of named items of a list by their names; what is empty, or another list, is
    a value."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
            for item in value:
                yield from leaves({key: v for key, v in item.items() if key != "name"}, f"{prefix}{item['name']}.")
        else:
            yield f"{prefix}{name}", value


def plain(value: Any) -> Any:
    """A value as a file holds it: tuples as lists, at any depth."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
