"""`nern bench reconstruct`: a NeRN built, and all weights of a network from its predictor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nern.benchmarks.measure import first_and_repeated
from nern.benchmarks.parts import build_trainer, endless
from nern.benchmarks.report import Report, Sheet, spread, spread_cells
from nern.benchmarks.settings import BenchSettings
from nern.benchmarks.worker import in_process
from nern.config import Config
from nern.ordering.order import CrossFilterOrdering
from nern.randomness import generator
from nern.representation.nern import build_nern
from nern.terminal import bytes_text


def bench_reconstruct(config: Config, settings: BenchSettings, say: Callable[[str], None]) -> Report:
    """Time and memory of building coordinates, encodings and predictor, and of `NeRN.reconstruct`."""
    names = ", ".join(network.task.original_model_name for network in config.members())
    say(names)
    of = in_process(_measure, config, settings.repeats, settings.warmup, threads=settings.threads)
    weights = of["represented_weights"]
    reconstruction = [
        ("", names),
        ("weights in layers", f"{weights:,} in {of['layers']}"),
        ("predictor", f"{of['predictor_parameters']:,}"),
        *spread_cells("median time", of["seconds"]),
        ("million weights a second", f"{weights / of['seconds']['median'] / 1e6:,.1f}"),
        ("peak memory", bytes_text(of["peak_memory_bytes"])),
        ("weights", bytes_text(of["weight_bytes"])),
    ]
    note = f"On {of['device']}; peak memory holds the reconstructed weights themselves."
    building = [
        ("", names),
        ("kernels", f"{of['kernels']:,}"),
        *spread_cells("median time", of["build_seconds"]),
        ("peak memory", bytes_text(of["build_memory_bytes"])),
    ]
    about = "With an ordering across filters, which is there already."
    sheets = [
        Sheet("Reconstruction of all weights", [reconstruction], note),
        Sheet("Building of coordinates, encodings and predictor", [building], about),
    ]
    return sheets, {"measured": of}


def _measure(config: Config, repeats: int, warmup: int) -> dict[str, Any]:
    config = endless(config, False)
    config.nern.embeddings.permutations.permute_mode = "none"  # has no part in the time
    trainer = build_trainer(config, False)
    nern, device = trainer.nern, trainer.device
    orders = [torch.randperm(co * ci, generator=generator(config.seed, "order")) for co, ci, _, _ in nern.table.shapes]
    ordering = CrossFilterOrdering([{"order": order} for order in orders])

    def build() -> None:
        build_nern(config.nern, nern.table, ordering, config.seed, device)

    first_build, build_peak, building = first_and_repeated(build, device, max(repeats - 1, 1), 1)
    first, peak, seconds = first_and_repeated(nern.reconstruct, device, repeats, warmup)
    return {
        "seconds": spread(seconds),
        "first_seconds": first,
        "build_seconds": spread([first_build, *building]),
        "build_memory_bytes": build_peak,
        "peak_memory_bytes": peak,
        "weight_bytes": 4 * nern.table.num_weights,
        "represented_weights": nern.table.num_weights,
        "kernels": nern.table.rows,
        "layers": len(nern.table.shapes),
        "predictor_parameters": nern.num_parameters,
        "device": str(device),
    }
