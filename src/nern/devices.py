"""Which device a run uses."""

from __future__ import annotations

import sys
import warnings
from typing import Protocol

import torch

from nern.errors import NernWarning


class Run(Protocol):
    """What a configuration says of devices."""

    no_cuda: bool
    num_gpus: int


def select_device(config: Run) -> torch.device:
    """The first GPU, or the CPU; warns where `num_gpus` asks for more than is used."""
    available = 0 if config.no_cuda or config.num_gpus == 0 else torch.cuda.device_count()
    device = torch.device("cuda", 0) if available else torch.device("cpu")
    used = "one GPU" if available else "the CPU"
    if config.num_gpus > 1:
        there = f"{available} of them available" if available else "none available"
        warnings.warn(f"num_gpus is {config.num_gpus}, {there}: the run uses {used}", NernWarning, stacklevel=2)
    return device


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: of the process (CPU), or of tensors on the GPU; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB
