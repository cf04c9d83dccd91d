"""Are steps replayed from a CUDA graph the same as steps taken one by one? Trains the same NeRN twice.

    python benchmarks/graph_equality.py                       the quickstart's config, 200 steps, half of them full ones
    python benchmarks/graph_equality.py --config_path FILE    another config

One run has `cuda_graph: false`, the other `true`; on a CPU, or where there is no such key, both are plain, and any
difference would be one between two plain runs. Prints the largest difference of the trained parameters, and of the losses.
"""

from __future__ import annotations

import argparse
import json
from importlib import resources

import torch

from nern import Config
from nern.benchmarks.parts import build_trainer, quieten
from nern.config import known_keys
from nern.devices import select_device
from nern.errors import NernError

KEY = "cuda_graph"  # the place where the two runs differ


def trained(config: Config, steps: int, switch: int, graph: bool) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Parameters and losses after `steps` steps, the first `switch` of reconstruction only."""
    config.optim.lr, config.optim.min_lr = 1e-4, 0.0  # any untrained predictor stays finite
    values = config.to_dict() | {"epochs": None, "num_iterations": steps, "loss_warmup_iterations": switch}
    if KEY in known_keys(Config):
        values[KEY] = graph
    trainer = build_trainer(Config.from_dict(values))
    quieten(trainer.nern)
    losses = []
    while trainer.step < steps:
        losses.append(float(trainer.do_step().total.detach()))
    return {name: p.detach().cpu().clone() for name, p in trainer.named_parameters().items()}, losses


def main() -> None:
    """Train twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_path", default=str(resources.files("nern") / "configs" / "quickstart.yaml"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--switch", type=int, help="steps of reconstruction only, which come first; default: half")
    parser.add_argument("--json", help="also write the figures here")
    given = parser.parse_args()
    switch = given.steps // 2 if given.switch is None else given.switch
    try:
        config = Config.load(given.config_path)
        plain, plain_losses = trained(config, given.steps, switch, False)
        other, other_losses = trained(config, given.steps, switch, True)
    except NernError as error:
        parser.exit(2, f"error: {error}\n")
    device = select_device(config)
    compared = device.type == "cuda" and KEY in known_keys(Config)
    figures = {
        "compared": f"{KEY} false and true" if compared else "two plain runs",
        "device": str(device),
        "steps": given.steps,
        "largest_difference_of_parameters": max(float((plain[name] - other[name]).abs().max()) for name in plain),
        "largest_parameter": max(float(p.abs().max()) for p in plain.values()),
        "largest_difference_of_losses": max(abs(a - b) for a, b in zip(plain_losses, other_losses, strict=True)),
        "last_losses": [plain_losses[-1], other_losses[-1]],
    }
    for name, value in figures.items():
        print(f"{name.replace('_', ' ')}: {value}")
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
