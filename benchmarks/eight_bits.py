"""Files of codes without images beside rounding to 8 bits: networks of timm with random weights, at the bytes of 8 bits.

    python benchmarks/eight_bits.py timm:vit_tiny_patch16_224 timm:convnext_atto

Prints a Markdown table. Rounding takes one scale for each tensor, its largest absolute value over 127, and no bytes for the
scales. The relative error is the norm of the errors of all parameters over their norm.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console

import nern
from nern.originals import build_original_network


def main() -> None:
    """Print a row for each network named."""
    print("| network | 8 bits, bytes | relative error | codes, bytes | relative error |\n|---|---:|---:|---:|---:|")
    for name in sys.argv[1:]:
        network = build_original_network(name, None, seed=0)
        parameters = {key: p.detach() for key, p in network.named_parameters()}
        count, scales = (
            sum(p.numel() for p in parameters.values()),
            {k: p.abs().max() / 127 for k, p in parameters.items()},
        )
        rounded = {k: (p / scales[k]).round() * scales[k] if scales[k] > 0 else p for k, p in parameters.items()}
        with tempfile.TemporaryDirectory() as folder:
            options = nern.PackOptions(size=count, images=0)
            file = nern.pack(network, Path(folder) / "net.nern", options, Console(quiet=True))
        held = file.state_dict()
        norm = torch.stack([p.square().sum() for p in parameters.values()]).sum()
        errors = (
            float((torch.stack([(of[k] - p).square().sum() for k, p in parameters.items()]).sum() / norm).sqrt())
            for of in (rounded, held)
        )
        plain, ours = (f"{100 * error:.2f} %" for error in errors)
        print(f"| `{name}` | {count:,} | {plain} | {file.size:,} | {ours} |", flush=True)


if __name__ == "__main__":
    main()
