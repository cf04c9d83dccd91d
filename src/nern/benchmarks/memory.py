"""Peak memory of a piece of work."""

from __future__ import annotations

import ctypes
import gc
import sys
from contextlib import suppress
from pathlib import Path

import torch

from nern.devices import peak_memory_bytes

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """By how much the memory held rose, at its highest, over what was held at `start`.

    On a GPU: of tensors. On a CPU: resident memory of the process, on Linux from a peak that is set back at the start;
    elsewhere by how much the peak of the whole process rose, 0 where the work stayed below an earlier one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.held = 0

    def start(self) -> PeakMemory:
        """Begin here; returns itself."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.held = torch.cuda.memory_allocated(self.device)
        else:
            _trim()
            with suppress(OSError):
                _CLEAR.write_text("5")  # sets the peak back
            self.held = peak_memory(self.device)
        return self

    def growth(self) -> int:
        """Bytes at the highest point since `start`, less those held then."""
        return max(peak_memory(self.device) - self.held, 0)


def peak_memory(device: torch.device) -> int:
    """Bytes held at the highest point: of tensors on a GPU; else resident memory of the process."""
    if device.type == "cuda":
        return peak_memory_bytes(device)
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        lines = []
    kib = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    return peak_memory_bytes(device) if kib is None else 1024 * kib


def _trim() -> None:
    """Give back to the system what the C library holds of freed memory (glibc): work that took it again would not show."""
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
