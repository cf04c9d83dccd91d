"""Which device a run uses, and how it computes there."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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


def lower_precision(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Within it, what may be computed in 16 bits is, if `precision` is 'bf16'."""
    # without the cache: a weight cast without gradient must not be taken for one with
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Within it, a GPU multiplies float32 numbers as such, or, if `precision` is 'tf32', with 10 bits of their mantissa;
    always by algorithms that give the same result each time. No effect on a CPU."""
    if device.type != "cuda":
        yield
        return
    tf32, before = precision == "tf32", torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def keep_memory() -> None:
    """Let the process keep memory that tensors give back, for the next ones (glibc on Linux; elsewhere nothing).

    By default large tensors are returned to the system at once, and every page of their successors is handed out anew:
    half of the time of what only reads and writes.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 << 20)
