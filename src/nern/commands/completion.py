"""What a shell completes: the commands of nern, and the options of each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

SCRIPT = """_nern() {{
  local words=
  case $COMP_CWORD:${{COMP_WORDS[1]}}:$2 in
    1:*) words="{commands}" ;;
{options}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$2"))
}}
complete -o default -F _nern nern"""


def completion_script(modules: Mapping[str, str]) -> str:
    """A bash script that completes commands and options, and files elsewhere.

    Args:
        modules: of each command its module in `nern.commands`.
    """
    lines = []
    for name, module in modules.items():
        command = importlib.import_module(f"nern.commands.{module}").COMMANDS[name]
        found = {option for action in command.parser()._actions for option in action.option_strings}
        options = {option for option in found if option.startswith("--") and not option.endswith("+")}
        sections = [] if command.settings is None else command.settings.sections()
        for option in {option for option in options if option.startswith("--PHASE")}:
            options.remove(option)
            options.update(option.replace("PHASE", section) for section in sections)
        lines.append(f'    *:{name}:-*) words="{" ".join(sorted(options))}" ;;')
    return SCRIPT.format(commands=" ".join(modules), options="\n".join(lines))
