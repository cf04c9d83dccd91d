"""`nern bench order`, `reconstruct` and `scaling`: the parts of a NeRN, each measured alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nern.benchmarks.measure import (
    CPU,
    Report,
    held_memory,
    in_process,
    measured,
    peak_memory,
    seconds_per_call,
    spread,
)
from nern.benchmarks.step import endless, endless_trainer
from nern.config import Config
from nern.experiment import build_checked_original
from nern.ordering.order import path_cost, solve_ordering
from nern.originals.base import Original
from nern.randomness import forked_rng, generator
from nern.registry import PREDICTORS
from nern.representation.kernels import KernelTable
from nern.representation.nern import build_nern
from nern.training.members import Member
from nern.training.trainer import Trainer

SMALL = 30_000  # weights of a network to warm up with: some hundred kernels a layer
WIDEST, LAYERS = 512, 8  # channels, as in ResNet18; layers of the networks that are narrower
PARTS = {"order": "ordering", "build": "building the NeRN", "step": "one step, drawn rows"}


def bench_order(config: Config, settings: Any, say: Callable[[str], None]) -> Report:
    """Orderings of random kernels and of the config's network, each in a process of its own; no cache has a part."""
    p = config.nern.embeddings.permutations
    mode = "crossfilter" if p.permute_mode in (None, "none") else p.permute_mode
    originals = [build_checked_original(network, config.seed, CPU) for network in config.members()]
    weights = [weight for original in originals for weight in original.weights]
    table = KernelTable.of_networks([weights], PREDICTORS.info(config.nern.method)["num_idxs"])
    subjects = {
        f"{settings.kernels:,} random 3x3 kernels": [
            torch.randn(settings.kernels, 1, 3, 3, generator=generator(config.seed, "benchmark kernels"))
        ],
        _names(config): [weight.detach() for weight in table.views(weights)],
    }
    found = {}
    for name, subject in subjects.items():
        say(name)
        solve = mode, p.num_workers, p.improve_seconds, p.metric
        arguments = [weight.numpy() for weight in subject], solve, settings.repeats, settings.warmup
        found[name] = in_process(_measure_order, *arguments, threads=settings.threads)
    note = (
        f"{mode} by {p.metric}, exact greedy, then improved for up to {p.improve_seconds:g} s, {p.num_workers} layers side "
        "by side. Path cost: 1 - cosine (or the distance) of successive kernels, summed along all paths; unordered: of the "
        "kernels as they are."
    )
    return found, note


def _measure_order(arrays: list[Any], solve: tuple[str, int, float, str], repeats: int, warmup: int) -> dict[str, Any]:
    weights, (mode, _, improving, metric) = list(map(torch.from_numpy, arrays)), solve
    few = [torch.randn(2, 300, *w.shape[2:]) for w in weights[:1]]
    solve_ordering(few, mode, improve_seconds=1e-3 if improving else 0.0, metric=metric)  # compiles
    made: dict[str, Any] = {}

    def order() -> None:
        made["ordering"] = solve_ordering(weights, *solve)

    found, ordering = measured(order, CPU, repeats, warmup), made["ordering"]
    cost = path_cost(weights, ordering)
    return found | {
        "kernels": sum(w.shape[0] * w.shape[1] for w in weights),
        "layers": len(weights),
        "weight_bytes": _bytes(weights),
        "cost": cost,
        "cost_greedy": cost if ordering.cost is None else ordering.cost.greedy,
        "cost_unordered": path_cost(weights, solve_ordering(weights, "none"), metric),
    }


def bench_reconstruct(config: Config, settings: Any, say: Callable[[str], None]) -> Report:
    """Time and memory of `NeRN.reconstruct`."""
    say(_names(config))
    found = in_process(_measure_reconstruct, config, settings.repeats, settings.warmup, threads=settings.threads)
    return {_names(config): found}, "Peak memory holds the reconstructed weights themselves."


def _measure_reconstruct(config: Config, repeats: int, warmup: int) -> dict[str, Any]:
    config.nern.embeddings.permutations.permute_mode = "none"  # has no part in the time
    trainer = endless_trainer(config, False)
    nern = trainer.nern
    return measured(nern.reconstruct, trainer.device, repeats, warmup) | {
        "weight_bytes": 4 * nern.table.num_weights,
        "represented_weights": nern.table.num_weights,
        "kernels": nern.table.rows,
        "layers": len(nern.table.shapes),
        "predictor_parameters": nern.num_parameters,
        "device": str(trainer.device),
    }


def bench_scaling(config: Config, settings: Any, say: Callable[[str], None]) -> Report:
    """Networks of growing size, each in a process of its own, on the CPU."""
    config = endless(config, False)
    config.nern.reconstruction_rows = "drawn"
    config.nern.include, config.nern.exclude = None, []
    found: dict[str, dict[str, Any]] = {}
    size = settings.largest
    while size >= min(settings.smallest * 0.999, settings.largest):
        say(f"{size:,.0f} weights")
        arguments = config, round(size), settings.repeats, settings.warmup
        found = {f"{size:,.0f}": in_process(_measure_size, *arguments, threads=settings.threads)} | found
        size /= 10
    mode = config.nern.embeddings.permutations.permute_mode
    if settings.figure is not None:
        _draw_scaling(settings.figure, list(found.values()), f"Stacks of 3 x 3 convolutions, ordering {mode}")
    note = (
        f"Ordering {mode}, once; build, once: coordinates, encodings, predictor, trainer; step: reconstruction of "
        f"{config.nern.weights_batch_size} drawn rows, hidden layers of {config.nern.hidden_layer_size}. Memory: highest "
        "growth of the process in all of that, beyond the weights."
    )
    return found, note


def _measure_size(config: Config, size: int, repeats: int, warmup: int) -> dict[str, Any]:
    _order_build_and_step(config, SMALL, 1, 1)  # compiles, and brings in code that later counts as memory
    return _order_build_and_step(config, size, repeats, warmup)


def _order_build_and_step(config: Config, size: int, repeats: int, warmup: int) -> dict[str, Any]:
    """Of a stack of equal 3 x 3 convolutions with random weights, about so many in all."""
    channels = min(WIDEST, max(round(math.sqrt(size / 9 / LAYERS)), 1))
    layers = max(round(size / (9 * channels**2)), 1)
    with forked_rng(config.seed, "benchmark network"):
        network = nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(layers)))
    original, permutations = Original(network), config.nern.embeddings.permutations
    weights, mode = original.weights, permutations.permute_mode or "none"
    table, own = KernelTable.of(weights), _bytes(weights)
    held = held_memory(CPU)
    made: dict[str, Any] = {}

    def order() -> None:
        made["ordering"] = solve_ordering(table.views(weights), mode, permutations.num_workers)

    def build() -> None:
        nern = build_nern(config.nern, table, made["ordering"], config.seed)
        made["trainer"] = Trainer(config, [Member(original)], nern)

    ordering, building = [seconds_per_call(order)], [seconds_per_call(build)]
    steps = [seconds_per_call(made["trainer"].do_step) for _ in range(max(warmup, 1) + repeats)]
    peak = max(peak_memory(CPU) - held, 0)
    return {
        "weights": table.num_weights,
        "layers": layers,
        "channels": channels,
        "weight_bytes": own,
        "order_seconds": spread(ordering),
        "build_seconds": spread(building),
        "step_seconds": spread(steps[-repeats:]),
        "peak_memory_bytes": peak,
        "memory_over_weights": peak / own,
    }


def _draw_scaling(path: str, found: list[dict[str, Any]], title: str) -> None:
    """Write the picture (PNG): time and memory over the size of the network."""
    from matplotlib import rc_context  # matplotlib takes a second to import
    from matplotlib.ticker import EngFormatter

    from nern.analysis import style

    with rc_context(style.SETTINGS):
        figure = style.canvas(1050, 430)
        times, memory = figure.subplots(1, 2)
        sizes = [of["weights"] for of in found]
        for part, text in PARTS.items():
            times.plot(sizes, [of[f"{part}_seconds"]["median"] for of in found], marker="o", label=text)
        peaks = [max(of["peak_memory_bytes"], 2**12) for of in found]
        memory.plot(sizes, peaks, "o-", color=style.INK, label="memory for all of that, beyond the weights")
        memory.plot(sizes, [of["weight_bytes"] for of in found], "--", color=style.MUTED, label="the weights")
        for axes, text, unit in ((times, "Time", "s"), (memory, "Memory at its highest", "B")):
            axes.set(title=text, xlabel="represented weights", xscale="log", yscale="log")
            axes.xaxis.set_major_formatter(EngFormatter())
            axes.yaxis.set_major_formatter(EngFormatter(unit))
        style.legend(figure, 5)
        figure.suptitle(title)
        style.write_png(path, figure)


def _names(config: Config) -> str:
    return ", ".join(network.task.original_model_name for network in config.members())


def _bytes(weights: list[Tensor]) -> int:
    return sum(weight.nbytes for weight in weights)
