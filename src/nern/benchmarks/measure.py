"""Seconds and memory of a piece of work."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from nern.devices import peak_memory_bytes

CPU = torch.device("cpu")
_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def seconds_per_call(call: Callable[[], object], device: torch.device, count: int = 1) -> float:
    """Mean time of `count` calls in a row, the device's work included. (`torch.utils.benchmark` makes two more calls for
    each measurement, which an ordering of minutes does not bear.)"""
    _synchronize(device)
    began = time.perf_counter()
    for _ in range(count):
        call()
    _synchronize(device)
    return (time.perf_counter() - began) / count


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def repeat(call: Callable[[], object], device: torch.device, repeats: int, warmup: int) -> list[float]:
    """Seconds of each of `repeats` calls, after `warmup` that are not timed."""
    for _ in range(warmup):
        call()
    return [seconds_per_call(call, device) for _ in range(repeats)]


def first_and_repeated(
    call: Callable[[], object], device: torch.device, repeats: int, warmup: int
) -> tuple[float, int, list[float]]:
    """Seconds of the first call, by how many bytes memory grew in it, and seconds of `repeats` more; the first call is one
    of `warmup`."""
    memory = PeakMemory(device)
    first = seconds_per_call(call, device)
    return first, memory.growth(), repeat(call, device, repeats, max(warmup - 1, 0))


class PeakMemory:
    """By how much the memory held rose, at its highest, over what was held when this was made.

    On a GPU: of tensors. On a CPU: resident memory of the process, on Linux from a peak that is set back at the start;
    elsewhere by how much the peak of the whole process rose, 0 where the work stayed below an earlier one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.held = torch.cuda.memory_allocated(device)
            return
        if sys.platform.startswith("linux"):
            with suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what is freed: work that took it again would not show
        with suppress(OSError):
            _CLEAR.write_text("5")  # sets the peak back
        self.held = peak_memory(device)

    def growth(self) -> int:
        """Bytes at the highest point since the start, less those held then."""
        return max(peak_memory(self.device) - self.held, 0)


def peak_memory(device: torch.device) -> int:
    """Bytes held at the highest point: of tensors on a GPU; else resident memory of the process."""
    if device.type == "cpu":
        with suppress(OSError):
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM"):
                    return 1024 * int(line.split()[1])
    return peak_memory_bytes(device)
