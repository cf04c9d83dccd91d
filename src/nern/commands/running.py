"""Running a command of the command line: what was typed, parsed and checked."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser  # type: ignore[attr-defined]

from nern.commands.line import Command, MissingError, option_names, typed_values
from nern.config import Settings, check_key, checked_keys, item_class, known_keys, nested, parse_yaml, read_config_file
from nern.config.yaml_files import LENGTHS_OF_RUN, over, replaced
from nern.console import CleanConsole
from nern.errors import NernError, unknown_name
from nern.files import check_writable

WRITES = ("json", "markdown", "figure")  # options of several commands that name a file to write


def run_command(module: str, name: str, typed: Sequence[str], may_restart: bool) -> None:
    """Run the command `name` of a module of this package.

    Raises:
        MissingError: something that it needs was not typed.
        NernError: a mistake in what was typed, or of the job.
    """
    command: Command = importlib.import_module(f"nern.commands.{module}").COMMANDS[name]
    parser, cls, rest = command.parser(), command.settings, list(typed)
    parser.prog = f"nern {name}"
    parser.exit_on_error = False
    try:
        if command.default_file is not None and "config_path" not in option_names(rest):
            rest = [*rest, "--config_path", command.default_file(rest)]
        if cls is not None and "config_path" in known_options(parser):
            rest = _config_first(rest, cls)
        _check_options(parser, rest, cls)
        given = _parsed(parser, name, rest)
        for option in WRITES:
            check_writable(given.get(option), f"--{option}", given.get("file"))
        command.run(given | {"typed": list(typed), "may_restart": may_restart}, rest, CleanConsole())
    except MissingError as error:
        error.usage = parser.format_usage().strip()
        raise


def _parsed(parser: ArgumentParser, name: str, argv: Sequence[str]) -> dict[str, Any]:
    try:
        return parser.parse_args(argv, env=False).as_dict()
    except Exception as error:  # jsonargparse's ArgumentError: key, expected type, value
        text = f"{' '.join(str(error).split())} (see nern {name} --help)"
        raise (MissingError if "arguments are required" in text else NernError)(text) from error


def _config_first(argv: Sequence[str], cls: type[Settings]) -> list[str]:
    """Move --config_path to the front, so that dotted options win over the file wherever they stand. Files are read here,
    with the reader of `Config.load`; jsonargparse gets their content. One without keys is left out."""
    contents: list[dict[str, Any]] = []
    rest, arguments = [], list(argv)
    while arguments:
        argument = arguments.pop(0)
        name, equals, path = argument.partition("=")
        if name != "--config_path" or not (equals or arguments):
            rest.append(argument)
            continue
        path = path if equals else arguments.pop(0)
        if values := read_config_file(path, cls):
            contents.append(values)
    given: dict[str, Any] = {name: value for values in contents for name, value in values.items()}
    typed = typed_values(rest)
    layers = [cls.beneath(given | {name: value for name, value in typed.items() if name == "recipe"}), *contents]
    of_phases, rest = _of_sections(rest, cls, layers)
    merged = functools.reduce(over, [*layers, of_phases])
    lengths = {name: parse_yaml(value) for name, value in typed.items() if name in LENGTHS_OF_RUN}
    unset = [f"--{key}=null" for key in replaced(merged, nested(lengths))]
    merged = cls.complete(merged)
    return [*(["--config_path", json.dumps(merged)] if merged else []), *rest, *unset]


def _of_sections(
    argv: Sequence[str], cls: type[Settings], layers: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """What is typed of sections that are no fields of `cls` (phases, by name), nested and checked; and all else."""
    sections = {*cls.sections(*layers)}
    values, rest, arguments = dict[str, Any](), list[str](), list(argv)
    while arguments:
        argument = arguments.pop(0)
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not (name == "phases" or name.partition(".")[0] in sections):
            rest.append(argument)
            continue
        if not equals:
            if not arguments or arguments[0].startswith("--"):
                raise NernError(f"--{name} needs a value")
            text = arguments.pop(0)
        values[name] = parse_yaml(text)
    return checked_keys(nested(values), cls, "", functools.reduce(over, map(dict, layers))), rest


def known_options(parser: ArgumentParser) -> set[str]:
    """Names of a parser's options, without dashes."""
    return {option.lstrip("-") for action in parser._actions for option in action.option_strings}


def _check_options(parser: ArgumentParser, argv: Sequence[str], cls: type[Settings] | None) -> None:
    """Name unknown keys and their nearest before jsonargparse sees them."""
    if cls is None:
        return
    own = known_options(parser)
    for name in option_names(argv):
        if name not in own and "." not in name and name not in known_keys(cls):
            choices = {option for option in own if "." not in option and not option.endswith("+") and len(option) > 1}
            raise unknown_name("option", name, choices)
        section = name.partition(".")[0]
        if section != name and section in known_keys(cls) and item_class(known_keys(cls)[section]):
            raise NernError(
                f"{section} is a list of sections, to be written in a file; --{name} does not say which is meant"
            )
        if name not in own:
            check_key(name.rstrip("+"), cls, more=cls.sections())
