"""The command line: `nern COMMAND`; COMMANDS lists them."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

import nern
from nern.stopping import stopped_by_signals

# Of each command its module in nern.commands, imported when it is run (torch alone takes seconds), and what it is for.
COMMANDS = {
    "quickstart": ("quickstart", "the whole job on a small network; nothing is downloaded"),
    "pack": ("files", "write a network, or the NeRN of a run, into one small file"),
    "unpack": ("files", "write the weights of such a file as a state dict"),
    "info": ("files", "show what is in such a file, and where its bytes are"),
    "verify": ("files", "check such a file: checksums, predicted weights, accuracy"),
    "train": ("training", "train a NeRN"),
    "evaluate": ("training", "evaluate a NeRN, or the original network"),
    "train-original": ("training", "train an original network from scratch"),
    "report": ("files", "write a page with figures about a run or a file"),
    "inspect": ("listing", "show which weights of a network are represented"),
    "list": ("listing", "list networks, tasks and other choices"),
    "sweep": ("training", "train many NeRNs and compare them"),
    "bench": ("bench", "measure speed and memory on this machine"),
}


def _usage() -> str:
    lines = [f"  nern {name:<15} {about}" for name, (_, about) in COMMANDS.items()]
    return (
        f"nern {nern.__version__}: write a network in few bytes; represent its weights by a small network (a NeRN)\n\n"
        + "\n".join(lines)
        + "\n\n`nern COMMAND --help` explains a command; `nern --completion` prints a script for the shell."
    )


SCRIPT = """_nern() {{
  local words=
  case $COMP_CWORD:${{COMP_WORDS[1]}}:$2 in
    1:*) words="{commands}" ;;
{options}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$2"))
}}
complete -o default -F _nern nern"""


def _completion_script() -> str:
    """A bash script that completes commands and options, and files elsewhere."""
    lines = []
    for name, (module, _) in COMMANDS.items():
        command = importlib.import_module(f"nern.commands.{module}").COMMANDS[name]
        found = {option for action in command.help_parser()._actions for option in action.option_strings}
        options = {option for option in found if option.startswith("--") and not option.endswith("+")}
        sections = [] if command.settings is None else command.settings.sections()
        for option in [option for option in options if option.startswith("--PHASE")]:
            options.remove(option)
            options.update(option.replace("PHASE", section) for section in sections)
        lines.append(f'    *:{name}:-*) words="{" ".join(sorted(options))}" ;;')
    return SCRIPT.format(commands=" ".join(COMMANDS), options="\n".join(lines))


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
    if arguments[0] == "--completion":
        print(_completion_script())
        return 0
    with stopped_by_signals():
        try:
            from nern.errors import NernError, plain_errors  # from here on, so that signals are heard early

            with plain_errors():
                return _run(arguments[0], arguments[1:], may_restart or argv is None)
        except KeyboardInterrupt as error:  # a Stopped says by which signal
            _say(f"{str(error) or 'stopped'}; nothing since the last save was kept")
            return 128 + int(getattr(error, "signal_number", signal.SIGINT))
        except NernError as error:
            _say(f"error: {error}")
            return 2


def _say(text: str) -> None:
    with suppress(OSError):  # the terminal may be gone, or the disk of a log full
        print(text, file=sys.stderr)


def _run(name: str, typed: Sequence[str], may_restart: bool) -> int:
    import warnings

    from nern.commands.line import MissingError
    from nern.commands.running import run_command
    from nern.console import PLAIN, CleanConsole
    from nern.errors import NernError, NernWarning, unknown_name
    from nern.processes import process_number
    from nern.stopping import Interrupted

    errors, number = CleanConsole(stderr=True), process_number()  # of several processes, the first one talks

    def say(text: str, style: str = "") -> None:
        with suppress(OSError):
            errors.print(text, style=style, **PLAIN)

    with warnings.catch_warnings():
        warnings.simplefilter("always", NernWarning)
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}", "yellow") if number == 0 else None
        try:
            if name not in COMMANDS:
                raise unknown_name("command", name, COMMANDS)
            run_command(COMMANDS[name][0], name, typed, may_restart)
        except Interrupted as error:
            if number == 0:
                say(str(error), "yellow")
            return 128 + error.signal_number
        except MissingError as error:
            say(error.usage)
            say(f"error: {error}", "red")
            return 2
        except NernError as error:
            say(f"{f'process {number}: ' * (number > 0)}error: {error}", "red")
            return 2
    return 0
