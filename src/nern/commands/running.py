"""Running a command of the command line: what was typed, parsed and checked."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from jsonargparse import ArgumentParser  # type: ignore[attr-defined]

from nern.commands.line import Command, MissingError, option_names
from nern.config.published import RETIRED, TRANSLATED
from nern.config.settings import Settings, check_key, checked_keys, item_class, known_keys
from nern.config.yaml_files import nested, nested_value, over, parse_yaml, read_yaml
from nern.console import CleanConsole
from nern.errors import NernError, unknown_name
from nern.files import check_writable

PRINT = "--print_config"


def run_command(module: str, name: str, typed: Sequence[str], may_restart: bool) -> None:
    """Run the command `name` of a module of this package.

    Raises:
        MissingError: something that it needs was not typed.
        NernError: a mistake in what was typed, or of the job.
    """
    command: Command = importlib.import_module(f"nern.commands.{module}").COMMANDS[name]
    cls, rest, configs = command.settings, list(typed), list[str]()
    wants_help = not {"-h", "--help"}.isdisjoint(rest)
    parser = command.help_parser() if wants_help else command.parser()
    parser.prog = f"nern {name}"
    parser.exit_on_error = False
    settings, options = dict[str, Any](), dict[str, Any]()
    try:
        if cls is not None and not wants_help:
            make_default = None if "config_path" in option_names(rest) else command.default_file
            if make_default is not None and (default := make_default(rest)) is not None:
                rest = [*rest, "--config_path", default]
            settings, options, rest = _settings(parser, rest, cls, configs)
            if PRINT in rest and PRINT.removeprefix("--") in known_options(parser):
                print(cls.from_dict(settings).to_yaml(), end="")
                return
            _check_options(parser, rest, cls)
        given = _parsed(parser, name, rest)
        _check_writes(command.writes, given, [*configs, settings])
        own = {"settings": settings, "options": options, "may_restart": may_restart}
        command.run(given | own, list(typed), CleanConsole())
    except MissingError as error:
        error.usage = parser.format_usage().strip()
        raise


def _check_writes(writes: Sequence[str], given: dict[str, Any], read: Sequence[Any]) -> None:
    """Raise NernError where a file to write cannot be written, or is in use: `read`, or named by another option or in the
    config of a run that is."""
    others = {name: value for name, value in given.items() if name not in writes}
    runs = [Path(value).expanduser() / "config.yaml" for value in others.values() if isinstance(value, str)]
    of_runs = [read_yaml(file, lambda values, *_: values) for file in runs if file.is_file()]
    for option in writes:
        check_writable(given.get(option), f"--{option}", read, others, of_runs)


def _parsed(parser: ArgumentParser, name: str, argv: Sequence[str]) -> dict[str, Any]:
    try:
        return parser.parse_args(argv, env=False).as_dict()
    except Exception as error:  # jsonargparse's ArgumentError: key, expected type, value
        text = f"{' '.join(str(error).split())} (see nern {name} --help)"
        raise (MissingError if "arguments are required" in text else NernError)(text) from error


def _settings(
    parser: ArgumentParser, argv: Sequence[str], cls: type[Settings], configs: list[str]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The config that was typed: files (named in `configs`), and over them dotted options, wherever they stand; these
    options by themselves, each with its value; and all other arguments."""
    typed, files, rest = list[tuple[str, str | None]](), list[dict[str, Any]](), list[str]()
    own, arguments = known_options(parser), list(argv)

    def note(values: dict[str, Any], file: str, beneath: dict[str, Any]) -> dict[str, Any]:
        configs.append(file)
        return checked_keys(values, cls, file, beneath)

    while arguments:
        argument = arguments.pop(0)
        name, equals, given = argument.removeprefix("--").partition("=")
        text: str | None = given
        if not argument.startswith("--") or (name in own and name != "config_path"):
            rest.append(argument)
            continue
        if not equals:
            text = arguments.pop(0) if arguments and not arguments[0].startswith("--") else None
        if name == "config_path" and name in own:
            if text is None:
                raise NernError("--config_path needs a file")
            files.append(read_yaml(text, note))
        else:
            typed.append((name, text))
    beneath: dict[str, Any] = functools.reduce(over, files, {})
    known: dict[str, Any] = known_keys(cls) | cls.sections(beneath, dict(typed)) | TRANSLATED | dict.fromkeys(RETIRED)
    values = dict[str, Any]()
    for name, text in typed:
        first = name.partition(".")[0]
        if first not in known:
            rest.append(f"--{name}")  # a mistake; see `_check_options`
            continue
        if first != name and item_class(known[first]):
            raise NernError(
                f"--{name}: {first} is a list of sections, and the option does not say which one; write it in a file"
            )
        if text is None:
            raise NernError(f"--{name} needs a value")
        key = name.removesuffix("+")
        if key == name:
            values[key] = _value(text, known.get(key))
        else:
            held = values.get(key, nested_value(beneath, key)) or nested_value(cls().to_dict(), key)
            values[key] = [*(held or []), *_entries(text, known.get(key))]
    return over(beneath, checked_keys(nested(values), cls, "", beneath)), values, rest


def _value(text: str, hint: Any) -> Any:
    """What is typed for a key of this type: text stays text where text is allowed, but for null and {a mapping}."""
    stays = str in (hint, *get_args(hint)) and text != "null" and not text.startswith("{")
    return text if stays else parse_yaml(text)


def _entries(text: str, hint: Any) -> list[Any]:
    """What is typed to be added to a list of this type: one entry, or [several]."""
    if text.startswith("["):
        found: list[Any] = parse_yaml(text)
        return found
    of_text = any(str in get_args(option) for option in (hint, *get_args(hint)))
    return [text if of_text else parse_yaml(text)]


def known_options(parser: ArgumentParser) -> set[str]:
    """Names of a parser's options, without dashes."""
    return {option.lstrip("-") for action in parser._actions for option in action.option_strings}


def _check_options(parser: ArgumentParser, argv: Sequence[str], cls: type[Settings]) -> None:
    """Name unknown keys and their nearest before jsonargparse sees them."""
    own = known_options(parser)
    for name in option_names(argv):
        if name not in own and "." in name:
            check_key(name.rstrip("+"), cls, more=cls.sections())
        elif name not in own:
            keys = {key.partition(".")[0] for key in known_keys(cls)} | cls.sections().keys()
            raise unknown_name("option", name, keys | {option for option in own if len(option) > 1})
