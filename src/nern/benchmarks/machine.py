"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import nern


def machine() -> dict[str, Any]:
    """Hardware: CPU name, cores that this process may use, GPU name, driver."""
    gpu = None
    if torch.cuda.is_available():
        gpu = {
            "name": torch.cuda.get_device_name(0),
            "driver": _driver(),
            "memory_bytes": torch.cuda.get_device_properties(0).total_memory,
        }
    return {"cpu": _cpu_name(), "cores": cores(), "architecture": platform.machine(), "gpu": gpu}


def versions() -> dict[str, str | None]:
    """Of nern and what it computes with."""
    import numba
    import numpy

    cudnn = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return {
        "nern": nern.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "numba": numba.__version__,
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "system": platform.platform(),
    }


def machine_text(hardware: dict[str, Any], software: dict[str, Any], threads: int) -> str:
    """One line for people."""
    gpu = hardware["gpu"]
    return (
        (f"{gpu['name']}, driver {gpu['driver']}; " if gpu else "")
        + f"{hardware['cpu']}, {hardware['cores']} cores, {threads} threads; torch {software['torch']}, "
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


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.partition("\n")[0].strip() or None
    return None
