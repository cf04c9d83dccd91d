"""What the commands of the command line share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, NamedTuple

from jsonargparse import (  # type: ignore[attr-defined]
    ArgumentParser,
    DefaultHelpFormatter,
    set_parsing_settings,
)
from rich.console import Console

from nern.config import TaskConfig
from nern.config.imports import import_modules
from nern.config.settings import Settings
from nern.errors import NernError
from nern.originals.build import build_network
from nern.tasks.base import network_arguments

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class MissingError(NernError):
    """Something that a command needs was not typed; `usage` says what it takes."""

    usage = ""


class Command(NamedTuple):
    """A command of the command line."""

    parser: Callable[[], ArgumentParser]  # makes the parser of its options, but for keys of settings
    run: Callable[[dict[str, Any], Sequence[str], Console], None]  # takes what was given, the arguments, where to print
    settings: type[Settings] | None = None  # whose keys are among the options
    default_file: Callable[[Sequence[str]], str | None] | None = None  # to take for these arguments where none is given
    writes: Sequence[str] = ("json", "figure", "out")  # options that name a file to write, where it has them

    def help_parser(self) -> ArgumentParser:
        """The parser with the keys of `settings` among its options; `run_command` reads these by itself."""
        parser = self.parser()
        if self.settings is not None:
            parser.add_class_arguments(self.settings)
            for section in dict.fromkeys(self.settings.sections().values()):
                parser.add_class_arguments(section, "PHASE", skip={"name", "optim"})
        for action in parser._actions:  # `--key+`, which adds to a list, is not among what is read
            action.option_strings = [name for name in action.option_strings if not name.endswith("+")]
        return parser


class Formatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):  # type: ignore[misc, valid-type]
    """Keeps the line breaks of the description."""


def command_parser(text: str, usage: str | None = None) -> ArgumentParser:
    """A parser whose help begins with `text`, line by line."""
    return ArgumentParser(description=text, usage=usage, formatter_class=Formatter)


def add_option(parser: ArgumentParser, name: str, kind: Any, default: Any, metavar: str | None, about: str) -> None:
    """Add --NAME; --out also as -o."""
    names = ["-o"] * (name == "out") + [f"--{name}"]
    parser.add_argument(*names, type=kind, default=default, metavar=metavar, help=about)


def json_option(parser: ArgumentParser) -> None:
    """Add --json."""
    add_option(parser, "json", str, None, "FILE", "also write the results to this JSON file")


def imports_option(parser: ArgumentParser) -> None:
    """Add --imports."""
    about = "modules or files of yours that are imported first; they register networks and tasks"
    parser.add_argument("--imports", type=str, nargs="+", default=[], metavar="MODULE", help=about)


def flag_option(parser: ArgumentParser, name: str, about: str) -> None:
    """Add --NAME, which is off unless it is typed, by itself or with a value (`true`, `false`)."""
    parser.add_argument(f"--{name}", type=bool, nargs="?", const=True, default=False, help=about)


def option_names(argv: Sequence[str]) -> list[str]:
    """Names of the options typed, without dashes."""
    return [a[2:].partition("=")[0] for a in argv if a.startswith("--")]


def typed_values(argv: Sequence[str]) -> dict[str, str]:
    """The text typed last for each option; empty where there is none."""
    following = [*argv[1:], ""]
    pairs = [(a[2:].partition("="), b) for a, b in zip(argv, following[: len(argv)], strict=True) if a.startswith("--")]
    return {name: value if equals else after for (name, equals, value), after in pairs}


def config_options(parser: ArgumentParser) -> None:
    """Add what belongs to a config, but for its keys: --config_path, --print_config."""
    about = "YAML file of settings; if given several times, later files win"
    add_option(parser, "config_path", str, None, "FILE", about)
    about = "print all keys of the config with their values, and stop"
    parser.add_argument("--print_config", action="store_true", help=about)


def own_config(name: str) -> str:
    """Path of a config that ships with the package."""
    return str(resources.files("nern") / "configs" / f"{name}.yaml")


def task_option(parser: ArgumentParser) -> None:
    """Add --imports, --task.task_name and the other keys of a task."""
    imports_option(parser)
    parser.add_class_arguments(TaskConfig, "task")


def task_of(given: dict[str, Any], argv: Sequence[str], nameless: bool = False) -> TaskConfig | None:
    """The task that was typed; None: none was. Raises NernError where its name was not, unless it may be `nameless`: ''."""
    names = [name for name in option_names(argv) if name.startswith("task.")]
    named = "task.task_name" in names
    if names and not named and not nameless:
        raise NernError(
            "options of a task need --task.task_name, the task whose images are taken, such as cifar10 or digits"
        )
    import_modules(given["imports"])
    own = dict(given["task"]) | ({} if named else {"task_name": ""})
    return TaskConfig(**own) if names else None


def network_of(given: dict[str, Any], argv: Sequence[str]) -> Any:
    """What --network says: a number; or the network that --task.original_model_name has built, where a file does not say
    how. Raises NernError for both."""
    if "task.original_model_name" not in option_names(argv):
        return given["network"]
    if "network" in option_names(argv):
        raise NernError("--network chooses a network that the file describes; drop it, or --task.original_model_name")
    task = TaskConfig(**dict(given["task"]))
    return build_network(task.original_model_name, task.original_model_kwargs, network_arguments(task))
