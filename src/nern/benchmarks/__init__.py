"""Speed and memory, measured on the user's own machine: the jobs of `nern bench`."""

from nern.benchmarks.command import bench
from nern.benchmarks.options import KINDS, OPTIONS, OWN_OPTIONS, check_kind
from nern.benchmarks.settings import BenchSettings

__all__ = ["KINDS", "OPTIONS", "OWN_OPTIONS", "BenchSettings", "bench", "check_kind"]
