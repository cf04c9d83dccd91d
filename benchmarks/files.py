"""Time and memory of `nern unpack`, each time in a process of its own, imports and all.

    python benchmarks/files.py net.nern other.nern
    python benchmarks/files.py --large     # and a ResNet18's, its predictor 1256 wide; made here, minutes

Prints a Markdown table: medians over the repeats, and the highest resident memory of any.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import nern
from nern.benchmarks.machine import machine, machine_text, versions
from nern.originals.build import build_original_network

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
PUBLISHED = EXPERIMENTS / "resnet18" / "imagenet" / "imagenet_resnet18_smoothpes_permute_crossfilter_1256.yaml"

# `nern unpack`, then the peak: the process's own; what the system counts for a child begins with its parent's
UNPACK = """
import sys, torch
from nern.cli import main
from nern.benchmarks.measure import peak_memory
status = main(sys.argv[1:])
print(peak_memory(torch.device("cpu")))
sys.exit(status)
"""


def unpacked(file: str, folder: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of a process that unpacks a file."""
    command = [sys.executable, "-c", UNPACK, "unpack", file, "-o", str(folder / "weights.safetensors")]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, int(done.stdout.split()[-1])


def large_file(folder: Path) -> Path:
    """A NeRN of a ResNet18 with random weights, trained for a step, every number as it is: the largest file it can make."""
    config = nern.fit_config(1)
    config.nern = nern.Config.load(PUBLISHED).nern
    config.nern.embeddings.permutations.path = None
    config.nern.weights_batch_method, config.nern.weights_batch_size = "random_batch", 4096
    fitted = nern.fit(build_original_network("ResNet18", None), config=config)
    nern.save(fitted, folder / "resnet18.nern", nern.PackOptions(lossless=True))
    return folder / "resnet18.nern"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", default=["pretrained:resnet20-cifar10.nern"])
    parser.add_argument("--large", action="store_true", help="also a ResNet18's file, made here")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [*given.files, *([str(large_file(folder))] if given.large else [])]
        print("| file | bytes | weights | seconds | peak memory |\n|---|---:|---:|---:|---:|")
        for file in files:
            artifact = nern.load(file)
            weights = sum(t.numel() for t in artifact.state_dict().values())
            found = [unpacked(file, folder) for _ in range(given.repeats)]
            seconds, memory = statistics.median(s for s, _ in found), max(m for _, m in found)
            print(f"| {Path(file).name} | {artifact.size:,} | {weights:,} | {seconds:.2f} | {memory / 1e6:,.0f} MB |")
    print(f"\nn = {given.repeats}; {machine_text(machine(), versions(), torch.get_num_threads())}")


if __name__ == "__main__":
    main()
