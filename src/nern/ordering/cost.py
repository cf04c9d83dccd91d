"""How far the kernels along the paths of an ordering are apart, in a form to tell and to store."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from nern.errors import NernError
from nern.untrusted import parse_json

METRICS = ("cosine", "distance")


@dataclass(frozen=True)
class PathCost:
    """Cost of all paths (see `path_cost`): of the greedy ones, and of those that were kept, by the same metric."""

    greedy: float
    final: float
    metric: str = "cosine"

    def __str__(self) -> str:
        if self.final >= self.greedy:
            return f"path cost ({self.metric}) {self.final:,.1f}"
        change = self.final / self.greedy - 1
        return f"path cost ({self.metric}) {self.final:,.1f}, improved from {self.greedy:,.1f} ({change:+.1%})".replace(
            "%", " %"
        )

    def to_json(self) -> str:
        """As a file's metadata keep it, beside the metric."""
        return json.dumps([self.greedy, self.final])

    @staticmethod
    def from_json(text: str, metric: str = "cosine") -> PathCost:
        """Raises NernError for what `to_json` does not write."""
        try:
            greedy, final = (float(value) for value in parse_json(text))
        except (ValueError, TypeError) as error:
            raise NernError(f"{text[:40]!r} is not a path cost ({error})") from error
        if not (math.isfinite(greedy) and math.isfinite(final)):
            raise NernError(f"{text!r} is not a path cost (two finite numbers)")
        return PathCost(greedy, final, metric)
