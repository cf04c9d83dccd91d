"""Speed and memory, measured on the user's own machine: the jobs of `nern bench`."""

from nern.benchmarks.command import bench
from nern.benchmarks.settings import KINDS, OPTIONS, BenchSettings, check_kind

__all__ = ["KINDS", "OPTIONS", "BenchSettings", "bench", "check_kind"]
