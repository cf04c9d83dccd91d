"""Rows of tables, brought together: runs that differ in nothing but their seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nern.errors import NernError
from nern.sweep.published import ORDERS
from nern.sweep.table import Row


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None: of a single value) of n values."""

    mean: float
    deviation: float | None
    n: int

    @staticmethod
    def of(values: Iterable[float | None]) -> Spread | None:
        """Of the values there are; None: there is none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))

    def text(self, digits: int, sign: bool = False) -> str:
        """`91.29 ± 0.10`, or without ± of a single value."""
        shown = f"{self.mean:{'+' if sign else ''}.{digits}f}"
        return shown if self.deviation is None else f"{shown} ± {self.deviation:.{digits}f}"


@dataclass(frozen=True)
class Group:
    """Runs of one series, ordering and size, of one network and task."""

    rows: Sequence[Row]

    @property
    def label(self) -> str:
        """Series and ordering, in words."""
        row = self.rows[0]
        return f"{row['series']}, {ORDERS.get(row['order'], row['order'])}"

    @property
    def parameters(self) -> int:
        """Of the predictor."""
        return int(self.rows[0]["parameters"])

    def spread(self, column: str) -> Spread | None:
        """Of a column, over the seeds."""
        return Spread.of(row[column] for row in self.rows)


def groups_of(rows: Iterable[Row]) -> dict[tuple[str, str], list[Group]]:
    """Groups of each network and task; both in the order of rows, groups of a series and ordering by parameters.

    Raises:
        NernError: a group holds a seed twice: its runs differ in more than the seed, a mean of them says nothing.
    """
    panels: dict[tuple[str, str], dict[tuple, list[Row]]] = {}
    for row in rows:
        key = (row["series"], row["order"], row["parameters"], row["hidden"], row["steps"])
        panels.setdefault((row["network"], row["task"]), {}).setdefault(key, []).append(row)
    found = {}
    for panel, groups in panels.items():
        first: dict[tuple, int] = {}
        for number, key in enumerate(groups):
            first.setdefault(key[:2], number)
        in_order = sorted(groups, key=lambda key: (first[key[:2]], key[2]))
        for group in groups.values():
            _check_seeds(group)
        found[panel] = [Group(groups[key]) for key in in_order]
    return found


def _check_seeds(rows: Sequence[Row]) -> None:
    by_seed: dict[int, str] = {}
    for row in rows:
        if row["seed"] in by_seed:
            raise NernError(
                f"runs {by_seed[row['seed']]} and {row['name']} are both of series {row['series']!r}, ordering "
                f"{row['order']}, {row['parameters']:,} parameters and seed {row['seed']}: they cannot be averaged as if "
                "they differed in the seed alone. Give them different series: in the sweep file, whose command then "
                "writes the table anew and trains nothing again, or in the table."
            )
        by_seed[row["seed"]] = row["name"]
