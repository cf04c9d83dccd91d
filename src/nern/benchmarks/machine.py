"""What a benchmark or a run of a sweep ran on."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import nern


def machine() -> dict[str, Any]:
    """Hardware: `cpu` (its name), `cores` that this process may use, `architecture`, `gpu` (`name`, `memory_bytes`; None:
    there is none)."""
    gpu = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        gpu = {"name": properties.name, "memory_bytes": properties.total_memory}
    return {"cpu": _cpu_name(), "cores": cores(), "architecture": platform.machine(), "gpu": gpu}


def versions() -> dict[str, str | None]:
    """Of nern and what it computes with."""
    import numba
    import numpy

    return {
        "nern": nern.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "numba": numba.__version__,
        "cuda": torch.version.cuda,
        "system": platform.platform(),
    }


def machine_text(hardware: dict[str, Any], software: dict[str, Any], threads: int) -> str:
    """One line for people."""
    gpu = f"{hardware['gpu']['name']}; " if hardware["gpu"] else ""
    return (
        f"{gpu}{hardware['cpu']}, {hardware['cores']} cores, {threads} threads; torch {software['torch']}, "
        f"Python {software['python']}, nern {software['nern']}"
    )


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
