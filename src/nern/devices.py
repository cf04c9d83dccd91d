"""Which device a run uses, and how it computes there."""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from nern.errors import NernError, NernWarning
from nern.processes import ALONE, Processes

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -2, -3, -4, -8  # of glibc's mallopt, malloc.h


def available_gpus(num_gpus: int) -> int:
    """GPUs of this machine that a run with this key may use."""
    return 0 if num_gpus == 0 else torch.cuda.device_count()


def processes_to_start(num_gpus: int) -> int:
    """How many processes `num_gpus` asks for on this machine, as far as there are GPUs."""
    can_start = os.name == "posix" and torch.distributed.is_available()
    return max(min(num_gpus, available_gpus(num_gpus)), 1) if can_start else 1


def select_device(num_gpus: int, processes: Processes = ALONE) -> torch.device:
    """The first GPU (of several processes, to each its own), or the CPU; warns where `num_gpus` asks for more than is used.
    Raises NernError for more processes on this machine than GPUs."""
    available = available_gpus(num_gpus)
    if 0 < available < processes.local_count:
        raise NernError(
            f"{processes.local_count} processes were started on a machine with {available} GPUs; start {available}, or set "
            "num_gpus to 0"
        )
    device = torch.device("cuda", processes.local_rank) if available else torch.device("cpu")
    if processes.several and available:
        torch.cuda.set_device(device)  # NCCL's, too
    used = ("one GPU" if processes.count == 1 else f"{processes.count} GPUs") if available else "the CPU"
    if num_gpus > (processes.count if available else 1) and processes.main:
        there = f"{available} of them available" if available else "none available"
        more = "" if min(available, num_gpus) <= processes.count else " (torchrun starts a process for each)"
        warnings.warn(f"num_gpus is {num_gpus}, {there}: the run uses {used}{more}", NernWarning, stacklevel=2)
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


def precision_of(precision: str, device: torch.device) -> str:
    """`precision`, with what 'auto' means on this device: 'bf16' where it computes in 16 bits natively, else 'float32'."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
    return "bf16" if native else "float32"


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


def send(values: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`, without waiting for what runs there."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def keep_memory() -> None:
    """Let the process keep memory that tensors give back, for the next ones (glibc on Linux; elsewhere nothing).

    By default large tensors are returned to the system at once, and every page of their successors is handed out anew:
    half of the time of what only reads and writes.
    """
    _set_malloc({MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1, TOP_PAD: 64 << 20})


def return_memory() -> None:
    """Let the process return the memory of each large tensor to the system at once (glibc on Linux; elsewhere nothing).

    By default glibc raises the size from which it does so, up to 32 MB, and keeps memory for each thread.
    """
    _set_malloc({MMAP_THRESHOLD: 2**20, TRIM_THRESHOLD: 2**20, ARENA_MAX: 1})


def _set_malloc(options: Mapping[int, int]) -> None:
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    for option, value in options.items():
        mallopt(option, value)
