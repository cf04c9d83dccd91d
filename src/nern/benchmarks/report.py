"""What a benchmark found: tables for the terminal and for Markdown, figures for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nern.console import PLAIN
from nern.files import write_json, write_text


@dataclass(frozen=True)
class Sheet:
    """One table: a title, headings, rows of texts, and a note on how to read it."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for number, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a Markdown file."""
        lines = [f"**{self.title}**", "", _line(self.headings), "|---" + "|---:" * (len(self.headings) - 1) + "|"]
        return "\n".join([*lines, *map(_line, self.rows), *(["", self.note] if self.note else [])])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


@dataclass
class Report:
    """Everything a benchmark found.

    Attributes:
        sheets: what people read.
        figures: what JSON holds: medians, quartiles, and every single value.
    """

    sheets: list[Sheet] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def show(self, console: Console, about: str) -> None:
        """Print all tables; `about`: the machine, in a line."""
        for sheet in self.sheets:
            console.print(sheet.rich())
            if sheet.note:
                console.print(sheet.note, style="dim", highlight=False)
        console.print(about, style="dim", **PLAIN)

    def write_markdown(self, path: str | Path, command: str, about: str) -> None:
        """Write the command, all tables and the machine."""
        parts = [f"`{command}`", *(sheet.markdown() for sheet in self.sheets), about]
        write_text(path, "\n\n".join(parts) + "\n")

    def write_json(self, path: str | Path, facts: dict[str, Any]) -> None:
        """Write `facts` (settings, machine, versions) and all figures."""
        write_json(path, facts | {"results": self.figures})
