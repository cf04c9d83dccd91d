"""Seconds and memory of a piece of work, in a process of its own; and tables of them."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nern.devices import peak_memory_bytes
from nern.errors import NernWarning
from nern.terminal import bytes_text

CPU = torch.device("cpu")
Report = tuple[dict[str, dict[str, Any]], str]  # by what was measured, its figures; a note on how to read them


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Repeated measurements of one thing: `median`, `quartiles`, `n` and the `values` themselves."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {"median": median, "quartiles": [low, high], "n": len(values), "values": list(values)}


def table_rows(measured: dict[str, dict[str, Any]]) -> list[list[tuple[str, str]]]:
    """What was measured as rows of texts, each with its heading: of a `spread` in seconds the median in milliseconds, then
    the quartiles; all rows have the headings of all."""
    rows: list[dict[str, str]] = []
    for name, figures in measured.items():
        row = {"": name}
        for key, value in figures.items():
            heading = key.replace("_", " ").replace("seconds", "ms").removesuffix(" bytes")
            if isinstance(value, dict):
                unit = 1000 if key.endswith("seconds") else 1
                row[heading] = _number(unit * value["median"])
                row[f"{heading}: quartiles"] = " to ".join(_number(unit * quartile) for quartile in value["quartiles"])
            else:
                row[heading] = bytes_text(value) if key.endswith("bytes") else _number(value)
        rows.append(row)
    headings = dict.fromkeys(heading for row in rows for heading in row)
    return [[(heading, row.get(heading, "")) for heading in headings] for row in rows]


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.{max(3 - len(str(int(value))), 0)}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def seconds_per_call(call: Callable[[], object], device: torch.device = CPU, count: int = 1) -> float:
    """Mean time of `count` calls in a row, the device's work included. (`torch.utils.benchmark` makes two more calls for
    each measurement, which an ordering of minutes does not bear.)"""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(count):
        call()
    wait()
    return (time.perf_counter() - began) / count


def measured(call: Callable[[], object], device: torch.device, repeats: int, warmup: int) -> dict[str, Any]:
    """`seconds` of `repeats` calls (a `spread`) after `warmup` others, and `peak_memory_bytes`: by how much memory grew in
    the first of all."""
    held = held_memory(device)
    seconds = [seconds_per_call(call, device)]
    peak = max(peak_memory(device) - held, 0)
    seconds += [seconds_per_call(call, device) for _ in range(repeats + warmup - 1)]
    return {"seconds": spread(seconds[-repeats:]), "peak_memory_bytes": peak}


def held_memory(device: torch.device) -> int:
    """Bytes that are held now, from which on `peak_memory` counts: of tensors on a GPU; on Linux resident memory of the
    process. Elsewhere the peak of the process cannot be set back, and is what this gives."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what is freed: work that took it again would not show
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    return peak_memory(device)


def peak_memory(device: torch.device = CPU) -> int:
    """Bytes held at the highest point: of tensors on a GPU; else resident memory of the process."""
    if device.type == "cpu":
        with suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    return 1024 * int(line.split()[1])
    return peak_memory_bytes(device)


def process(threads: int | None = None) -> ProcessPoolExecutor:
    """A process in which to measure: what is switched on there (allocator, precision, memory held) others do not see.
    `threads`: of PyTorch there; None: its own choice."""
    # a forked process cannot use a GPU that its parent has looked at
    forks = "forkserver" in multiprocessing.get_all_start_methods() and not torch.cuda.is_available()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(["nern.benchmarks.step", "torch._dynamo"])  # imported once for all of them
    return ProcessPoolExecutor(1, context, _begin, (threads,))


def _begin(threads: int | None) -> None:
    warnings.simplefilter("ignore", NernWarning)  # every process of a benchmark would repeat them
    if threads is not None:
        torch.set_num_threads(threads)


def in_process(function: Callable[..., Any], *arguments: Any, threads: int | None = None) -> Any:
    """What `function` gives in a process of its own."""
    with process(threads) as pool:
        return pool.submit(function, *arguments).result()
