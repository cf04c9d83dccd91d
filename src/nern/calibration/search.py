"""The quality with which a file has the size that was asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

FINEST = 2**14  # times the first quality: steps are nowhere smaller
SLOPE = 0.8  # bits that a weight loses where the quality doubles, before two sizes tell it
FURTHEST = 4.0  # doublings between two tries


def nearest_below(
    measure: Callable[[float], float], quality: float, goal: float, per_bit: float, tolerance: float, passes: int
) -> tuple[float, float]:
    """The quality whose size is nearest to the goal from below, and the size; from above where none below was found. Sizes
    fall nearly in proportion to the logarithm of the quality.

    Args:
        measure: the size at a quality.
        quality: to begin with.
        goal: the size that is wanted.
        per_bit: sizes that a bit more for each weight makes.
        tolerance: share of the goal by which the size may fall short of it.
        passes: sizes that are measured at most.
    """
    tried: list[tuple[float, float]] = []
    aim, finest = goal * (1 - tolerance / 2), quality / FINEST
    for _ in range(passes):
        tried.append((quality, measure(quality)))
        below = [item for item in tried if item[1] <= goal]
        if below and (max(size for _, size in below) >= goal * (1 - tolerance) or quality == finest):
            break
        nearest = sorted(tried, key=lambda item: abs(item[1] - aim))[:2]
        slope = SLOPE * per_bit
        if len(nearest) == 2 and nearest[0][0] != nearest[1][0]:
            (a, of_a), (b, of_b) = nearest
            found = (of_a - of_b) / math.log2(b / a)
            slope = found if found > slope / 20 else slope
        at, size = nearest[0]
        doublings = max(-FURTHEST, min(FURTHEST, (size - aim) / slope))
        quality = max(at * 2**doublings, finest)
    below = [item for item in tried if item[1] <= goal]
    return max(below, key=lambda item: item[1]) if below else min(tried, key=lambda item: item[1])
