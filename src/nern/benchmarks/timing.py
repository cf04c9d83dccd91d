"""Seconds a call, and how much they spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing: their median and quartiles."""

    values: tuple[float, ...]

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return Spread(tuple(float(value) for value in values))

    @staticmethod
    def ratio(values: Sequence[float], to: Sequence[float]) -> Spread:
        """Of the ratios of what was measured in the same round, which drift of the machine changes alike."""
        return Spread(tuple(a / b for a, b in zip(values, to, strict=True)))

    @property
    def median(self) -> float:
        """The middle value."""
        return self._quantile(0.5)

    def _quantile(self, share: float) -> float:
        return float(np.quantile(self.values, share))

    def to_dict(self) -> dict[str, Any]:
        """Median, quartiles, n and the values themselves."""
        return {
            "median": self.median,
            "quartiles": [self._quantile(0.25), self._quantile(0.75)],
            "n": len(self.values),
            "values": list(self.values),
        }

    def cells(self, unit: Callable[[float], str]) -> list[str]:
        """Median and quartiles, as two cells of a table."""
        low, high = unit(self._quantile(0.25)), unit(self._quantile(0.75))
        shared = low.rpartition(" ")[2] == high.rpartition(" ")[2] and " " in low
        return [unit(self.median), f"{low.rpartition(' ')[0] if shared else low} to {high}"]


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(call: Callable[[], object], device: torch.device, count: int = 1) -> float:
    """Mean time of `count` calls in a row, the device's work included."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(count):
        call()
    synchronize(device)
    return (time.perf_counter() - began) / count


def repeat(call: Callable[[], object], device: torch.device, repeats: int, warmup: int) -> list[float]:
    """Seconds of each of `repeats` calls, after `warmup` that are not timed."""
    for _ in range(warmup):
        call()
    return [seconds_per_call(call, device) for _ in range(repeats)]


def seconds_text(seconds: float) -> str:
    """A time for people: 850 µs, 12.3 ms, 4.56 s, 12.3 min, 5.67 h."""
    for least, unit, digits in ((3600, "h", 2), (120, "min", 1), (1, "s", 2)):
        if seconds >= least:
            return f"{seconds / {'h': 3600, 'min': 60, 's': 1}[unit]:,.{digits}f} {unit}"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.{3 - len(str(int(seconds * 1e3)))}f} ms"
    return f"{seconds * 1e6:.0f} µs"


def ratio_text(ratio: float) -> str:
    """A ratio for people: 0.52, 1.07, 12.3, 1,230."""
    return f"{ratio:,.{2 if ratio < 10 else 1 if ratio < 100 else 0}f}"
