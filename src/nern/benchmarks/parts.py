"""`nern bench order`, `reconstruct` and `scaling`: the parts of a NeRN, each measured alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nern.benchmarks.measure import (
    CPU,
    Cells,
    Report,
    held_memory,
    in_process,
    measured,
    peak_memory,
    seconds_per_call,
    spread,
    spread_cells,
)  # fmt: skip
from nern.benchmarks.step import endless, endless_trainer
from nern.config import Config
from nern.experiment import build_checked_original
from nern.ordering import path_cost, solve_ordering
from nern.ordering.order import CrossFilterOrdering
from nern.originals.base import Original
from nern.randomness import forked_rng, generator
from nern.registry import PREDICTORS
from nern.representation.kernels import KernelTable
from nern.representation.nern import build_nern
from nern.terminal import bytes_text
from nern.training import Member, Trainer

SMALL = 30_000  # weights of a network to warm up with: some hundred kernels a layer
WIDEST, LAYERS = 512, 8  # channels, as in ResNet18; layers of the networks that are narrower
COSTS = {"unordered": "cost_unordered", "greedy": "cost_greedy", "improved": "cost"}
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
    rows = [
        [
            ("", name),
            ("kernels in layers", f"{of['kernels']:,} in {of['layers']}"),
            *_time_and_memory(of),
            ("weights", bytes_text(of["weight_bytes"])),
            *((f"path cost, {text}", f"{of[key]:,.2f}") for text, key in COSTS.items()),
        ]
        for name, of in found.items()
    ]
    tables = [{"title": "Ordering", "rows": rows, "note": note}]
    return tables, {
        "measured": found,
        "mode": mode,
        "metric": p.metric,
        "workers": p.num_workers,
    }


def _measure_order(arrays: list[Any], solve: tuple[str, int, float, str], repeats: int, warmup: int) -> dict[str, Any]:
    weights, (mode, _, improving, metric) = list(map(torch.from_numpy, arrays)), solve
    few = [torch.randn(2, 300, *w.shape[2:]) for w in weights[:1]]
    solve_ordering(few, mode, improve_seconds=1e-3 if improving else 0.0, metric=metric)  # compiles
    found = measured(lambda: solve_ordering(weights, *solve), CPU, repeats, warmup)
    ordering = solve_ordering(weights, *solve)
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
    """Time and memory of building coordinates, encodings and predictor, and of `NeRN.reconstruct`."""
    say(_names(config))
    of = in_process(_measure_reconstruct, config, settings.repeats, settings.warmup, threads=settings.threads)
    note = (
        f"{_names(config)}: {of['represented_weights']:,} weights ({bytes_text(of['weight_bytes'])}) in {of['kernels']:,} "
        f"kernels of {of['layers']} layers, by {of['predictor_parameters']:,} parameters, on {of['device']}. Built with an "
        "ordering across filters, which is there already. Memory of the second holds the weights themselves."
    )
    rows = [
        [("", "coordinates, encodings and predictor built"), *_time_and_memory(of["build"])],
        [("", "all weights reconstructed"), *_time_and_memory(of)],
    ]
    return [{"title": "Building and reconstruction", "rows": rows, "note": note}], {"measured": of}


def _measure_reconstruct(config: Config, repeats: int, warmup: int) -> dict[str, Any]:
    config.nern.embeddings.permutations.permute_mode = "none"  # has no part in the time
    trainer = endless_trainer(config, False)
    nern, device = trainer.nern, trainer.device
    orders = [torch.randperm(co * ci, generator=generator(config.seed, "order")) for co, ci, _, _ in nern.table.shapes]
    ordering = CrossFilterOrdering([{"order": order} for order in orders])
    build = measured(lambda: build_nern(config.nern, nern.table, ordering, config.seed, device), device, repeats, 0)
    return measured(nern.reconstruct, device, repeats, warmup) | {
        "build": build,
        "weight_bytes": 4 * nern.table.num_weights,
        "represented_weights": nern.table.num_weights,
        "kernels": nern.table.rows,
        "layers": len(nern.table.shapes),
        "predictor_parameters": nern.num_parameters,
        "device": str(device),
    }


def bench_scaling(config: Config, settings: Any, say: Callable[[str], None]) -> Report:
    """Networks of growing size, each in a process of its own, on the CPU."""
    config = endless(config, False)
    config.nern.reconstruction_rows = "drawn"
    config.nern.include, config.nern.exclude = None, []
    found: list[dict[str, Any]] = []
    size = settings.largest
    while size >= min(settings.smallest * 0.999, settings.largest):
        say(f"{size:,.0f} weights")
        arguments = config, round(size), settings.repeats, settings.warmup
        found.insert(0, in_process(_measure_size, *arguments, threads=settings.threads))
        size /= 10
    mode = config.nern.embeddings.permutations.permute_mode
    if settings.figure is not None:
        _draw_scaling(settings.figure, found, f"Stacks of 3 x 3 convolutions, ordering {mode}")
    note = (
        f"Ordering {mode}, once; build, once: coordinates, encodings, predictor, trainer; step: reconstruction of "
        f"{config.nern.weights_batch_size} drawn rows, hidden layers of {config.nern.hidden_layer_size}, median. Memory: "
        "highest growth of the process in all of that, beyond the weights; the last column is that over the weights' bytes."
    )
    rows = [
        [
            ("weights", f"{of['weights']:,}"),
            ("layers of channels", f"{of['layers']} of {of['channels']}"),
            *((f"{part}: seconds", f"{of['seconds'][part]['median']:,.3g}") for part in PARTS),
            ("peak memory", bytes_text(of["peak_memory_bytes"])),
            ("weights' bytes", bytes_text(of["weight_bytes"])),
            ("memory over weights", f"{of['memory_over_weights']:,.1f}"),
        ]
        for of in found
    ]
    return [{"title": "Over the size of the network", "rows": rows, "note": note}], {"measured": found, "mode": mode}


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

    seconds = {"order": [seconds_per_call(order)], "build": [seconds_per_call(build)]}
    steps = [seconds_per_call(made["trainer"].do_step) for _ in range(max(warmup, 1) + repeats)]
    peak = max(peak_memory(CPU) - held, 0)
    return {
        "asked_for": size,
        "weights": table.num_weights,
        "layers": layers,
        "channels": channels,
        "weight_bytes": own,
        "seconds": {part: spread(values) for part, values in (seconds | {"step": steps[-repeats:]}).items()},
        "peak_memory_bytes": peak,
        "memory_over_weights": peak / own,
    }


def _draw_scaling(path: str, found: list[dict[str, Any]], title: str) -> None:
    """Write the picture (PNG): time and memory over the size of the network."""
    from matplotlib.ticker import EngFormatter  # matplotlib takes a second to import

    from nern.analysis import style

    @style.styled
    def draw() -> None:
        figure = style.canvas(1050, 430)
        times, memory = figure.subplots(
            1, 2, subplot_kw={"xscale": "log", "yscale": "log", "xlabel": "represented weights"}
        )
        sizes = [of["weights"] for of in found]
        for part, text in PARTS.items():
            times.plot(sizes, [max(of["seconds"][part]["median"], 1e-5) for of in found], marker="o", label=text)
        peaks = [max(of["peak_memory_bytes"], 2**12) for of in found]
        memory.plot(sizes, peaks, color=style.MUTED, marker="o", label="all of that, beyond the weights")
        memory.plot(
            sizes, [of["weight_bytes"] for of in found], color=style.MUTED, ls="--", label="the weights themselves"
        )
        for axes, text, unit in ((times, "Time", "s"), (memory, "Memory at its highest", "B")):
            axes.set_title(text)
            axes.yaxis.set_major_formatter(EngFormatter(unit))
            axes.xaxis.set_major_formatter(EngFormatter())
        style.legend(figure, 5)
        figure.suptitle(title)
        style.write_png(path, figure)

    draw()


def _names(config: Config) -> str:
    return ", ".join(network.task.original_model_name for network in config.members())


def _time_and_memory(of: dict[str, Any]) -> Cells:
    """Of what `measured` gives."""
    return [*spread_cells("ms (median)", of["seconds"], 1e-3), ("peak memory", bytes_text(of["peak_memory_bytes"]))]


def _bytes(weights: list[Tensor]) -> int:
    return sum(weight.nbytes for weight in weights)
