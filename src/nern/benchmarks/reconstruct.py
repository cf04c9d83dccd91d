"""`nern bench reconstruct`: all weights of a network from its predictor."""

from __future__ import annotations

from typing import Any

from nern.benchmarks.memory import PeakMemory
from nern.benchmarks.parts import build_trainer, endless
from nern.benchmarks.processes import in_process
from nern.benchmarks.report import Report, Sheet
from nern.benchmarks.settings import BenchSettings, Say
from nern.benchmarks.timing import Spread, repeat, seconds_per_call, seconds_text
from nern.config import Config
from nern.terminal import bytes_text


def bench_reconstruct(config: Config, settings: BenchSettings, say: Say) -> Report:
    """Time and memory of `NeRN.reconstruct`, with the predictor untrained."""
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
    return Report([Sheet("Reconstruction of all weights", headings, [row], note)], {"measured": of})


def _measure(config: Config, repeats: int, warmup: int) -> dict[str, Any]:
    config = endless(config, False)
    config.nern.embeddings.permutations.permute_mode = "none"  # has no part in the time
    trainer = build_trainer(config, False)
    nern, device = trainer.nern, trainer.device
    memory = PeakMemory(device).start()
    first = seconds_per_call(nern.reconstruct, device)
    peak = memory.growth()
    seconds = repeat(nern.reconstruct, device, repeats, max(warmup - 1, 0))
    return {
        "seconds": Spread.of(seconds).to_dict(),
        "first_seconds": first,
        "peak_memory_bytes": peak,
        "weight_bytes": 4 * nern.table.num_weights,
        "represented_weights": nern.table.num_weights,
        "kernels": nern.table.rows,
        "layers": len(nern.table.shapes),
        "predictor_parameters": nern.num_parameters,
        "device": str(device),
    }
