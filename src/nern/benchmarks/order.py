"""`nern bench order`: time, memory and cost of orderings, solved anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nern.benchmarks.measure import CPU, first_and_repeated
from nern.benchmarks.report import Cells, Report, Sheet, spread, spread_cells
from nern.benchmarks.settings import BenchSettings
from nern.benchmarks.worker import in_process
from nern.config import Config
from nern.experiment import build_checked_original
from nern.ordering import path_cost, solve_ordering
from nern.randomness import generator
from nern.registry import PREDICTORS
from nern.representation.kernels import KernelTable
from nern.terminal import bytes_text


def bench_order(config: Config, settings: BenchSettings, say: Callable[[str], None]) -> Report:
    """Orderings of random kernels and of the config's network, each in a process of its own; no cache has a part."""
    p = config.nern.embeddings.permutations
    mode = "crossfilter" if p.permute_mode in (None, "none") else p.permute_mode
    solve = mode, p.num_workers, p.improve_seconds, p.metric
    kernels = torch.randn(settings.kernels, 1, 3, 3, generator=generator(config.seed, "benchmark kernels"))
    originals = [build_checked_original(network, config.seed, CPU) for network in config.members()]
    weights = [weight for original in originals for weight in original.weights]
    table = KernelTable.of_networks([weights], PREDICTORS.info(config.nern.method)["num_idxs"])
    subjects = {
        f"{settings.kernels:,} random 3x3 kernels": [kernels],
        ", ".join(network.task.original_model_name for network in config.members()): table.views(weights),
    }
    found = {}
    for name, subject in subjects.items():
        say(name)
        arrays = [weight.detach().numpy() for weight in subject]
        arguments = arrays, solve, settings.repeats, settings.warmup
        found[name] = in_process(_measure, *arguments, threads=settings.threads)
    kind = "exact greedy" + (f", then improved for up to {p.improve_seconds:g} s" if p.improve_seconds else "")
    measure = "distance" if p.metric == "distance" else "1 - cosine"
    note = (
        f"{mode} by {p.metric}, {kind}, {p.num_workers} layers side by side. Path cost: {measure} of successive kernels, "
        "summed along all paths; unordered: of the kernels as they are."
    )
    sheet = Sheet("Ordering", [_row(name, of, bool(p.improve_seconds)) for name, of in found.items()], note)
    return [sheet], {"measured": found, "mode": mode, "metric": p.metric, "workers": p.num_workers}


def _row(name: str, of: dict[str, Any], improved: bool) -> Cells:
    cost, greedy = of["cost"], of["cost_greedy"]
    return [
        ("", name),
        ("kernels in layers", f"{of['kernels']:,} in {of['layers']}"),
        *spread_cells("median time", of["seconds"]),
        ("peak memory", bytes_text(of["peak_memory_bytes"])),
        ("weights", bytes_text(of["weight_bytes"])),
        ("path cost", f"{cost:,.2f}"),
        *([("greedy (change)", f"{greedy:,.2f} ({cost / greedy - 1:+.1%})")] if improved else []),
        ("unordered", f"{of['cost_unordered']:,.2f}"),
    ]


def _measure(
    arrays: list[NDArray[np.float32]], solve: tuple[str, int, float, str], repeats: int, warmup: int
) -> dict[str, Any]:
    weights, (mode, _, improving, metric) = list(map(torch.from_numpy, arrays)), solve
    few = [torch.randn(2, 300, *w.shape[2:]) for w in weights[:1]]
    solve_ordering(few, mode, improve_seconds=1e-3 if improving else 0.0, metric=metric)  # compiles
    first, peak, seconds = first_and_repeated(lambda: solve_ordering(weights, *solve), CPU, repeats, warmup)
    ordering = solve_ordering(weights, *solve)
    cost = path_cost(weights, ordering)
    return {
        "kernels": sum(w.shape[0] * w.shape[1] for w in weights),
        "layers": len(weights),
        "seconds": spread(seconds),
        "first_seconds": first,
        "peak_memory_bytes": peak,
        "weight_bytes": sum(w.numel() * w.element_size() for w in weights),
        "cost": cost,
        "cost_greedy": cost if ordering.cost is None else ordering.cost.greedy,
        "cost_unordered": path_cost(weights, solve_ordering(weights, "none"), metric),
    }
