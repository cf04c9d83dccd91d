"""What the commands of the command line share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter  # type: ignore[attr-defined]

PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}


class Formatter(DefaultHelpFormatter):  # type: ignore[misc, valid-type]
    """Keeps the line breaks of the description."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())


def command_parser(text: str, usage: str | None = None) -> ArgumentParser:
    """A parser whose help begins with `text`, line by line."""
    return ArgumentParser(description=text, usage=usage, formatter_class=Formatter)


def json_option(parser: ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", type=str, default=None, metavar="FILE", help="also write the metrics here, as JSON")


def option_names(argv: Sequence[str]) -> list[str]:
    """Names of the options typed, without dashes."""
    return [a[2:].partition("=")[0] for a in argv if a.startswith("--")]
