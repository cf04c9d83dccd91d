"""`nern bench order`: time, memory and cost of orderings, solved anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nern.benchmarks.measure import PeakMemory, Spread, repeat, seconds_per_call, seconds_text
from nern.benchmarks.parts import build_originals
from nern.benchmarks.report import Report, Sheet
from nern.benchmarks.settings import BenchSettings, Say
from nern.benchmarks.worker import in_process
from nern.config import Config
from nern.ordering import path_cost, solve_ordering
from nern.randomness import generator
from nern.registry import PREDICTORS
from nern.representation.kernels import KernelTable
from nern.terminal import bytes_text

CPU = torch.device("cpu")


def bench_order(config: Config, settings: BenchSettings, say: Say) -> Report:
    """Orderings of random kernels and of the config's network, each in a process of its own; no cache has a part."""
    permutations = config.nern.embeddings.permutations
    mode = "crossfilter" if permutations.permute_mode in (None, "none") else permutations.permute_mode
    workers, limit, improving = permutations.num_workers, permutations.exact_limit, permutations.improve_seconds
    metric = permutations.metric
    how = ((mode, workers, limit, improving, metric), settings.repeats, settings.warmup)
    say(f"{settings.kernels:,} random kernels")
    names = [network.task.original_model_name for network in config.members()]
    found = {
        f"{settings.kernels:,} random 3x3 kernels": in_process(
            _random, settings.kernels, config.seed, *how, threads=settings.threads
        )
    }
    say(", ".join(names))
    found[", ".join(names)] = in_process(_network, config, *how, threads=settings.threads)
    rows = [
        [
            name,
            f"{of['kernels']:,} in {of['layers']}",
            *Spread.of(of["seconds"]["values"]).cells(seconds_text),
            bytes_text(of["peak_memory_bytes"]),
            bytes_text(of["weight_bytes"]),
            f"{of['cost']:,.2f}",
            *([f"{of['cost_greedy']:,.2f} ({of['cost'] / of['cost_greedy'] - 1:+.1%})"] if improving else []),
            f"{of['cost_unordered']:,.2f}",
        ]
        for name, of in found.items()
    ]
    headings = (
        "",
        "kernels in layers",
        "median time",
        "quartiles",
        "peak memory",
        "weights",
        "path cost",
        *(["greedy (change)"] if improving else []),
        "unordered",
    )
    kind = "exact greedy" if limit is None else f"greedy, exact up to {limit:,} kernels a layer"
    kind += f", then improved for up to {improving:g} s" if improving else ""
    measure = "distance" if metric == "distance" else "1 - cosine"
    note = (
        f"{mode} by {metric}, {kind}, {workers} layers side by side. Path cost: {measure} of successive kernels, summed "
        "along all paths; unordered: of the kernels as they are."
    )
    return Report(
        [Sheet("Ordering", headings, rows, note)],
        {"measured": found, "mode": mode, "metric": metric, "workers": workers},
    )


def _random(count: int, seed: int, *how: Any) -> dict[str, Any]:
    kernels = torch.randn(count, 1, 3, 3, generator=generator(seed, "benchmark kernels"))
    return _measure([kernels], *how)


def _network(config: Config, *how: Any) -> dict[str, Any]:
    originals, _ = build_originals(config)
    weights = [weight.cpu() for original in originals for weight in original.weights]
    num_idxs = PREDICTORS.info(config.nern.method)["num_idxs"]
    return _measure(KernelTable.of_networks([weights], num_idxs).views(weights), *how)


def _measure(
    weights: list[Tensor], solve: tuple[str, int, int | None, float, str], repeats: int, warmup: int
) -> dict[str, Any]:
    mode, _, _, improving, metric = solve
    few = [torch.randn(2, 300, *w.shape[2:]) for w in weights[:1]]
    solve_ordering(few, mode, improve_seconds=1e-3 if improving else 0.0, metric=metric)  # compiles
    memory = PeakMemory(CPU)
    first = seconds_per_call(lambda: solve_ordering(weights, *solve), CPU)
    peak = memory.growth()
    seconds = repeat(lambda: solve_ordering(weights, *solve), CPU, repeats, max(warmup - 1, 0))
    ordering = solve_ordering(weights, *solve)
    shapes = [(w.shape[0], w.shape[1], w.shape[2], w.shape[3]) for w in weights]
    return {
        "kernels": sum(co * ci for co, ci, _, _ in shapes),
        "layers": len(shapes),
        "seconds": Spread.of(seconds).to_dict(),
        "first_seconds": first,
        "peak_memory_bytes": peak,
        "weight_bytes": sum(w.numel() * w.element_size() for w in weights),
        "cost": path_cost(weights, ordering),
        "cost_greedy": path_cost(weights, ordering) if ordering.cost is None else ordering.cost.greedy,
        "cost_unordered": path_cost(weights, solve_ordering(weights, "none"), metric),
    }
