"""How far neighbouring kernels are apart, by the order of a network's kernels or channels.

    python benchmarks/channel_order.py ResNet20 resnet20.pt                prints a Markdown table
    python benchmarks/channel_order.py torchvision:resnet18 torchvision    of pretrained weights

Steps are means over all kernels of all represented layers: from a kernel to that of the next channel in the same filter,
and to that of the same channel in the next filter; cost is 1 - cosine. 'crossfilter' has one path through all kernels of a
layer, which is cut into filters. Bytes: the least that any code for one of all such orders needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nern.ordering import ChannelOrdering, channel_ordering, solve_ordering
from nern.ordering.greedy import unit_rows
from nern.originals import build_original
from nern.representation import KernelTable

MODES = ("none", "channels", "infilter", "crossfilter")
METRICS = ("cosine", "distance")


def steps(weights: Sequence[Tensor]) -> list[float]:
    """Mean cost and distance along channels, then along filters, of weights (filters, channels, height, width)."""
    found: list[list[np.ndarray]] = [[], [], [], []]
    for weight in weights:
        kernels = weight.double().flatten(2).numpy()
        units = unit_rows(kernels)
        for axis in (1, 0):
            one, other = (np.moveaxis(rows, axis, 0) for rows in (units, kernels))
            found[2 * (1 - axis)].append((1 - (one[1:] * one[:-1]).sum(-1)).ravel())
            found[2 * (1 - axis) + 1].append(np.linalg.norm(other[1:] - other[:-1], axis=-1).ravel())
    return [float(np.concatenate(values).mean()) for values in found]


def main() -> None:
    """Order and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="as task.original_model_name")
    parser.add_argument("weights", help="as original_model_path")
    parser.add_argument("--improve_seconds", type=float, default=0.0, help="of all modes")
    given = parser.parse_args()
    original = build_original(given.network, given.weights)
    table = KernelTable.of(original.weights)
    print("| order | by | along channels: cost | distance | along filters: cost | distance | bytes |")
    print("|---|---|---|---|---|---|---|")
    for mode in MODES:
        for metric in METRICS if mode != "none" else ("",):
            weights = table.views(original.weights)
            if mode == "channels":
                ordering, source = channel_ordering([original], table.views, None, given.improve_seconds, metric)
                assert isinstance(ordering, ChannelOrdering)
                weights, bits = table.views(ordering.applied([original])[0].weights), ordering.bits()
            else:
                of_kernels = solve_ordering(
                    weights, mode, improve_seconds=given.improve_seconds, metric=metric or "cosine"
                )
                bits = of_kernels.bits()
                weights = [
                    torch.zeros_like(w).flatten(0, 1).index_copy(0, at, w.flatten(0, 1)).view_as(w)
                    for w, at in zip(weights, of_kernels.positions(table.shapes), strict=True)
                ]
            cells = " | ".join(f"{value:.4f}" for value in steps(weights))
            print(f"| {mode} | {metric or '-'} | {cells} | {bits / 8:,.0f} |", flush=True)
    print(f"\n{given.network}, {table.rows:,} kernels in {len(table.shapes)} layers; {source}")


if __name__ == "__main__":
    main()
