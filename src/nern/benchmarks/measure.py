"""Seconds and memory of a piece of work."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nern.devices import peak_memory_bytes

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


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
        return float(np.median(self.values))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The values a quarter and three quarters of the way up."""
        low, high = np.quantile(self.values, (0.25, 0.75))
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """Median, quartiles, n and the values themselves."""
        quartiles, values = list(self.quartiles), list(self.values)
        return {"median": self.median, "quartiles": quartiles, "n": len(values), "values": values}

    def cells(self, unit: Callable[[float], str]) -> list[str]:
        """Median and quartiles, as two cells of a table."""
        low, high = map(unit, self.quartiles)
        shared = low.rpartition(" ")[2] == high.rpartition(" ")[2] and " " in low
        return [unit(self.median), f"{low.rpartition(' ')[0] if shared else low} to {high}"]


def seconds_per_call(call: Callable[[], object], device: torch.device, count: int = 1) -> float:
    """Mean time of `count` calls in a row, the device's work included. (`torch.utils.benchmark` makes two more calls for
    each measurement, which an ordering of minutes does not bear.)"""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(count):
        call()
    synchronize(device)
    return (time.perf_counter() - began) / count


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def repeat(call: Callable[[], object], device: torch.device, repeats: int, warmup: int) -> list[float]:
    """Seconds of each of `repeats` calls, after `warmup` that are not timed."""
    for _ in range(warmup):
        call()
    return [seconds_per_call(call, device) for _ in range(repeats)]


class PeakMemory:
    """By how much the memory held rose, at its highest, over what was held when this was made or `restart`ed.

    On a GPU: of tensors. On a CPU: resident memory of the process, on Linux from a peak that is set back at the start;
    elsewhere by how much the peak of the whole process rose, 0 where the work stayed below an earlier one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.restart()

    def restart(self) -> None:
        """Begin here."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.held = torch.cuda.memory_allocated(self.device)
            return
        if sys.platform.startswith("linux"):
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what is freed: work that took it again would not show
        with suppress(OSError):
            _CLEAR.write_text("5")  # sets the peak back
        self.held = peak_memory(self.device)

    def growth(self) -> int:
        """Bytes at the highest point since the start, less those held then."""
        return max(peak_memory(self.device) - self.held, 0)


def peak_memory(device: torch.device) -> int:
    """Bytes held at the highest point: of tensors on a GPU; else resident memory of the process."""
    if device.type == "cuda":
        return peak_memory_bytes(device)
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    return peak_memory_bytes(device)


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
