"""`nern bench reconstruct`: a NeRN built, and all weights of a network from its predictor."""

from __future__ import annotations

from typing import Any

import torch

from nern.benchmarks.measure import PeakMemory, Spread, repeat, seconds_per_call, seconds_text
from nern.benchmarks.parts import build_trainer, endless
from nern.benchmarks.report import Report, Sheet
from nern.benchmarks.settings import BenchSettings, Say
from nern.benchmarks.worker import in_process
from nern.config import Config
from nern.ordering.order import CrossFilterOrdering
from nern.randomness import generator
from nern.representation.nern import build_nern
from nern.terminal import bytes_text


def bench_reconstruct(config: Config, settings: BenchSettings, say: Say) -> Report:
    """Time and memory of building coordinates, encodings and predictor, and of `NeRN.reconstruct`."""
    names = ", ".join(network.task.original_model_name for network in config.members())
    say(names)
    of = in_process(_measure, config, settings.repeats, settings.warmup, threads=settings.threads)
    seconds = Spread.of(of["seconds"]["values"])
    row = [
        names,
        f"{of['represented_weights']:,} in {of['layers']}",
        f"{of['predictor_parameters']:,}",
        *seconds.cells(seconds_text),
        f"{of['represented_weights'] / seconds.median / 1e6:,.1f}",
        bytes_text(of["peak_memory_bytes"]),
        bytes_text(of["weight_bytes"]),
    ]
    headings = (
        "", "weights in layers", "predictor", "median time", "quartiles", "million weights a second", "peak memory",
        "weights",
    )  # fmt: skip
    note = f"On {of['device']}; peak memory holds the reconstructed weights themselves."
    building = Spread.of(of["build_seconds"]["values"])
    built = [names, f"{of['kernels']:,}", *building.cells(seconds_text), bytes_text(of["build_memory_bytes"])]
    sheets = [
        Sheet("Reconstruction of all weights", headings, [row], note),
        Sheet(
            "Building of coordinates, encodings and predictor",
            ("", "kernels", "median time", "quartiles", "peak memory"),
            [built],
            "With an ordering across filters, which is there already.",
        ),
    ]
    return Report(sheets, {"measured": of})


def _measure(config: Config, repeats: int, warmup: int) -> dict[str, Any]:
    config = endless(config, False)
    config.nern.embeddings.permutations.permute_mode = "none"  # has no part in the time
    trainer = build_trainer(config, False)
    nern, device = trainer.nern, trainer.device
    orders = [torch.randperm(co * ci, generator=generator(config.seed, "order")) for co, ci, _, _ in nern.table.shapes]
    ordering = CrossFilterOrdering([{"order": order} for order in orders])

    def build() -> None:
        build_nern(config.nern, nern.table, ordering, config.seed, device)

    memory = PeakMemory(device)
    first_build = seconds_per_call(build, device)
    build_peak = memory.growth()
    building = [first_build, *repeat(build, device, max(repeats - 1, 1), 0)]
    memory.restart()
    first = seconds_per_call(nern.reconstruct, device)
    peak = memory.growth()
    seconds = repeat(nern.reconstruct, device, repeats, max(warmup - 1, 0))
    return {
        "seconds": Spread.of(seconds).to_dict(),
        "first_seconds": first,
        "build_seconds": Spread.of(building).to_dict(),
        "build_memory_bytes": build_peak,
        "peak_memory_bytes": peak,
        "weight_bytes": 4 * nern.table.num_weights,
        "represented_weights": nern.table.num_weights,
        "kernels": nern.table.rows,
        "layers": len(nern.table.shapes),
        "predictor_parameters": nern.num_parameters,
        "device": str(device),
    }
