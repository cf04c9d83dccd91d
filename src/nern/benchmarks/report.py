"""What a benchmark found: figures for JSON, tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

Cells = list[tuple[str, str]]  # a row of a table: headings, each with its text
Report = tuple[list["Sheet"], dict[str, Any]]  # what people read; every single value


@dataclass(frozen=True)
class Sheet:
    """One table: a title, rows with the same headings, and a note on how to read it."""

    title: str
    rows: Sequence[Cells]
    note: str

    def rich(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for number, (heading, _) in enumerate(self.rows[0]):
            table.add_column(heading, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*(text for _, text in row))
        return table


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Repeated measurements of one thing: `median`, `quartiles`, `n` and the `values` themselves."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "quartiles": [low, high], "n": len(values), "values": list(values)}


def seconds_text(seconds: float) -> str:
    """A time for people: 850 µs, 12.3 ms, 4.56 s, 12.3 min, 5.67 h."""
    for least, length, unit, digits in ((3600, 3600, "h", 2), (120, 60, "min", 1), (1, 1, "s", 2)):
        if seconds >= least:
            return f"{seconds / length:,.{digits}f} {unit}"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.{3 - len(str(int(seconds * 1e3)))}f} ms"
    return f"{seconds * 1e6:.0f} µs"


def ratio_text(ratio: float) -> str:
    """A ratio for people: 0.52, 1.07, 12.3, 1,230."""
    return f"{ratio:,.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"


def spread_cells(heading: str, of: dict[str, Any], text: Callable[[float], str] = seconds_text) -> Cells:
    """Median and quartiles of a `spread`; a unit that both quartiles have is written once."""
    low, high = map(text, of["quartiles"])
    number, _, unit = low.rpartition(" ")
    return [(heading, text(of["median"])), ("quartiles", f"{number if high.endswith(f' {unit}') else low} to {high}")]
