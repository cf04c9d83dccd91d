"""`nern bench scaling`: how time and memory grow with the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from nern.benchmarks.measure import CPU, PeakMemory, repeat, seconds_per_call
from nern.benchmarks.parts import endless
from nern.benchmarks.report import Cells, Report, Sheet, seconds_text, spread
from nern.benchmarks.settings import BenchSettings
from nern.benchmarks.worker import in_process
from nern.config import Config
from nern.ordering import solve_ordering
from nern.originals.base import Original
from nern.randomness import forked_rng
from nern.representation.kernels import KernelTable
from nern.representation.nern import build_nern
from nern.terminal import bytes_text
from nern.training import Member, Trainer

SMALL = 30_000  # weights of a network to warm up with: some hundred kernels a layer
WIDEST, LAYERS = 512, 8  # channels, as in ResNet18; layers of the networks that are narrower
PARTS = ("order", "build", "step")


def sizes_between(smallest: float, largest: float) -> list[int]:
    """From the largest down in steps of ten, rising; at least the largest."""
    sizes = [largest]
    while sizes[-1] / 10 >= smallest * 0.999:
        sizes.append(sizes[-1] / 10)
    return [round(size) for size in reversed(sizes)]


def stack_of(weights: int, seed: int) -> nn.Sequential:
    """Equal 3 x 3 convolutions with random weights, about so many in all."""
    channels = min(WIDEST, max(round(math.sqrt(weights / 9 / LAYERS)), 1))
    layers = max(round(weights / (9 * channels**2)), 1)
    with forked_rng(seed, "benchmark network"):
        return nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(layers)))


def bench_scaling(config: Config, settings: BenchSettings, say: Callable[[str], None]) -> Report:
    """Networks of growing size, each in a process of its own, on the CPU."""
    found = []
    for size in sizes_between(settings.smallest, settings.largest):
        say(f"{size:,} weights")
        arguments = config, size, settings.repeats, settings.warmup
        found.append(in_process(_measure, *arguments, threads=settings.threads))
    mode = config.nern.embeddings.permutations.permute_mode
    if settings.figure is not None:
        from nern.analysis.scaling_plot import plot_scaling  # matplotlib takes a second to import

        plot_scaling(settings.figure, found, f"Stacks of 3 x 3 convolutions, ordering {mode}")
    note = (
        f"Ordering {mode}, once; build, once: coordinates, encodings, predictor, trainer; step: reconstruction of "
        f"{config.nern.weights_batch_size} drawn rows, hidden layers of {config.nern.hidden_layer_size}, median. Memory: "
        "highest growth of the process while it orders, builds, and takes its first steps; the last column is the highest "
        "point of all over the weights' own bytes, which are not counted in it."
    )
    sheet = Sheet("Over the size of the network", [_row(of) for of in found], note)
    return [sheet], {"measured": found, "mode": mode}


def _row(of: dict[str, Any]) -> Cells:
    return [
        ("weights", f"{of['weights']:,}"),
        ("layers of channels", f"{of['layers']} of {of['channels']}"),
        *((f"{part}: time", seconds_text(of["seconds"][part]["median"])) for part in PARTS),
        *((f"{part}: memory", bytes_text(of["peak_memory_bytes"][part])) for part in PARTS),
        ("weights' bytes", bytes_text(of["weight_bytes"])),
        ("memory over weights", f"{of['memory_over_weights']:,.1f}"),
    ]


def _measure(config: Config, size: int, repeats: int, warmup: int) -> dict[str, Any]:
    config = endless(config, False)
    config.nern.reconstruction_rows = "drawn"
    config.nern.include, config.nern.exclude = None, []
    _job(config, stack_of(SMALL, config.seed), 1, 1)  # compiles, and brings in code that later counts as memory
    network = stack_of(size, config.seed)
    found = _job(config, network, repeats, warmup)
    return found | {"channels": network[0].in_channels, "asked_for": size}


def _job(config: Config, network: nn.Module, repeats: int, warmup: int) -> dict[str, Any]:
    original, permutations = Original(network), config.nern.embeddings.permutations
    weights, mode = original.weights, permutations.permute_mode or "none"
    table = KernelTable.of(weights)
    held = whole = PeakMemory(CPU).held
    peaks, seconds = {}, {}

    def watched(part: str, call: Callable[[], Any]) -> Any:
        nonlocal whole
        made: list[Any] = []
        memory = PeakMemory(CPU)
        seconds[part] = [seconds_per_call(lambda: made.append(call()), CPU)]
        peaks[part] = memory.growth()
        whole = max(whole, memory.held + peaks[part])
        return made[0]

    def build() -> Trainer:
        return Trainer(config, [Member(original)], build_nern(config.nern, table, ordering, config.seed))

    ordering = watched("order", lambda: solve_ordering(table.views(weights), mode, permutations.num_workers))
    trainer = watched("build", build)
    watched("step", lambda: [trainer.do_step() for _ in range(max(warmup, 1))])
    seconds["step"] = repeat(trainer.do_step, CPU, repeats, 0)
    own = sum(w.numel() * w.element_size() for w in weights)
    return {
        "weights": table.num_weights,
        "kernels": table.rows,
        "layers": len(weights),
        "weight_bytes": own,
        "seconds": {part: spread(values) for part, values in seconds.items()},
        "peak_memory_bytes": peaks | {"all": whole - held},
        "memory_over_weights": (whole - held) / own,
    }
