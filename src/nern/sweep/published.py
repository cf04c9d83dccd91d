"""Published results to compare with: published.csv."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

ORDERS = {"crossfilter": "cross-filter", "infilter": "in-filter", "none": "no ordering"}
ABOUT = 0.05  # predictors whose numbers of parameters differ by no more than this share are of one size


@dataclass(frozen=True)
class PublishedPoint:
    """A published result.

    Attributes:
        source: the paper that tells it.
        method: what was done, in a word or two.
        network, task: as in configs.
        order: 'crossfilter', 'infilter' or '' where the source does not tell.
        hidden: hidden size; None where the source does not tell.
        parameters: of the predictor.
        accuracy, original: top-1 in percent, reconstructed and original.
        note: what else is to know.
    """

    source: str
    method: str
    network: str
    task: str
    order: str
    hidden: int | None
    parameters: int
    accuracy: float
    original: float
    note: str = ""

    @property
    def gap(self) -> float:
        """Points from the original's accuracy."""
        return self.accuracy - self.original

    @property
    def label(self) -> str:
        """Method, ordering and source."""
        order = f", {ORDERS.get(self.order, self.order)}" if self.order else ""
        return f"{self.method}{order} ({self.source})"


@cache
def published_points() -> tuple[PublishedPoint, ...]:
    """All of the file."""
    text = (resources.files("nern") / "sweep" / "published.csv").read_text(encoding="utf-8")
    return tuple(
        PublishedPoint(
            **{key: row[key] for key in ("source", "method", "network", "task", "order", "note")},
            hidden=int(row["hidden"]) if row["hidden"] else None,
            parameters=int(row["parameters"]),
            accuracy=float(row["accuracy"]),
            original=float(row["original"]),
        )
        for row in csv.DictReader(text.splitlines())
    )


def published_of(network: str, task: str) -> list[PublishedPoint]:
    """Of one network on one task, by parameters."""
    found = [point for point in published_points() if (point.network, point.task) == (network, task)]
    return sorted(found, key=lambda point: point.parameters)


def best_published(network: str, task: str, parameters: float) -> PublishedPoint | None:
    """The smallest gap among points of about so many parameters; None where nothing was published at this size."""
    near = [p for p in published_of(network, task) if abs(p.parameters - parameters) <= ABOUT * parameters]
    return max(near, key=lambda point: point.gap, default=None)
