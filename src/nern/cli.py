"""The command line: `nern COMMAND`; COMMANDS lists them."""

from __future__ import annotations

import json
import signal
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser  # type: ignore[attr-defined]
from rich.console import Console

import nern
from nern.commands import bench, files, listing, quickstart, report, sweep, training
from nern.commands.line import PLAIN, Command, option_names
from nern.config import Settings, check_key, item_class, known_keys, read_config_file
from nern.errors import NernError, NernWarning, unknown_name
from nern.processes import process_number
from nern.training.interrupt import Interrupted

COMMANDS: dict[str, Command] = {
    **training.COMMANDS,
    **files.COMMANDS,
    **report.COMMANDS,
    **listing.COMMANDS,
    **sweep.COMMANDS,
    **bench.COMMANDS,
    **quickstart.COMMANDS,
}


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
    layers = [cls.beneath(given | _typed(rest, "recipe")), *contents]
    return [argument for values in layers if values for argument in ("--config_path", json.dumps(values))] + rest


def _typed(argv: Sequence[str], name: str) -> dict[str, str]:
    """The value typed for option `name`, if it was."""
    following = [*argv[1:], ""]
    pairs = [(a.partition("="), b) for a, b in zip(argv, following[: len(argv)], strict=True)]
    values = [value if equals else after for (option, equals, value), after in pairs if option == f"--{name}"]
    return {name: values[-1]} if values else {}


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
            check_key(name.rstrip("+"), cls)


def _usage() -> str:
    lines = [f"  nern {name:<15} {command.about}" for name, command in COMMANDS.items()]
    return (
        f"nern {nern.__version__}: neural representations of neural networks\n\n"
        + "\n".join(lines)
        + "\n\n`nern COMMAND --help` explains a command."
    )


def main(argv: Sequence[str] | None = None, may_restart: bool = False) -> int:
    """Run a command; returns the exit status: 0, 2 for what a user can mend, 128 + signal when stopped.

    Args:
        argv: the command's name and options; None: this process's own.
        may_restart: whether this process is the command's own, and may become several where `num_gpus` asks for them.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(nern.__version__)
        return 0
    errors = Console(stderr=True)
    with warnings.catch_warnings():
        warnings.simplefilter("always", NernWarning)
        number = process_number()  # of several, the first one talks; others only of what is their own
        warnings.showwarning = lambda message, *_, **__: (
            errors.print(f"warning: {message}", style="yellow", **PLAIN) if number == 0 else None
        )
        try:
            _dispatch(arguments[0], arguments[1:], may_restart or argv is None)
        except Interrupted as error:
            if number == 0:
                errors.print(str(error), style="yellow", **PLAIN)
            return 128 + error.signal_number
        except NernError as error:
            errors.print(f"{f'process {number}: ' * (number > 0)}error: {error}", style="red", **PLAIN)
            return 2
        except KeyboardInterrupt:
            errors.print("stopped; nothing since the last save was kept", style="yellow", **PLAIN)
            return 128 + signal.SIGINT
    return 0


def _dispatch(name: str, rest: Sequence[str], may_restart: bool) -> None:
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    typed = list(rest)
    command = COMMANDS[name]
    parser, cls = command.parser(), command.settings
    parser.prog = f"nern {name}"
    parser.exit_on_error = False
    _check_options(parser, rest, cls)
    if command.default_file is not None and "config_path" not in option_names(rest):
        rest = [*rest, "--config_path", command.default_file(rest)]
    rest = _config_first(rest, cls) if cls is not None and "config_path" in known_options(parser) else list(rest)
    try:
        given = parser.parse_args(rest, env=False).as_dict()
    except Exception as error:  # jsonargparse's ArgumentError: key, expected type, value
        raise NernError(f"{' '.join(str(error).split())} (see nern {name} --help)") from error
    command.run(given | {"typed": typed, "may_restart": may_restart}, rest, Console())


if __name__ == "__main__":
    sys.exit(main())
