"""Kinds of made-up images compared: a NeRN of ResNet20 distilled on each, from one and the same reconstruction.

    python benchmarks/without_data.py [--data_dir DIR] [--kinds KIND ...] [--seed N]

Prints a Markdown table: accuracy on CIFAR-10's test images after reconstruction alone, and after distillation on the
training images and on made-up ones of each kind. Test images only report; nothing is chosen by them: figures are those of
the last step. Runs are written to --log_dir and not repeated if they are there.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nern.config import Config
from nern.jobs.training import train

FOLDER = Path(__file__).resolve().parents[1] / "experiments" / "without-data"
KINDS = ["training images", "uniform", "leaves"]


def run(name: str, config: Config, log_dir: str, **changes: Any) -> dict[str, Any]:
    """Metrics of a run, from its folder if it is finished."""
    metrics = Path(log_dir) / name / "metrics.json"
    if not metrics.is_file():
        values = config.to_dict()
        values["logging"] |= {"log_dir": log_dir, "exp_name": name}
        for key, value in changes.items():
            section = values
            *path, last = key.split("__")
            for part in path:
                section = section[part]
            section[last] = value
        train(Config.from_dict(values), Console(stderr=True))
    return json.loads(metrics.read_text(encoding="utf-8"))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=None)
    parser.add_argument("--log_dir", default="outputs/without-data")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs=2, default=None, help="of both phases, in place of the configs'")
    given = parser.parse_args()
    reconstruction, distillation = (Config.load(FOLDER / f"{n}.yaml") for n in ("reconstruction", "distillation"))
    common: dict[str, Any] = {"task__data_dir": given.data_dir, "seed": given.seed}
    steps = given.steps or (
        reconstruction.phase("reconstruction").iterations,
        distillation.phase("distillation").iterations,
    )
    suffix = f"-{given.seed}" if given.seed else ""
    first = run(f"reconstruction{suffix}", reconstruction, given.log_dir, reconstruction__iterations=steps[0], **common)
    print("| images | accuracy | agreement with the original | time |")
    print("|---|---|---|---|")
    test = first["original"]["test"]
    print(f"| (the original) | {test['top1']:.2f} % | | |")
    test = first["last"]["test"]
    print(f"| (reconstruction alone) | {test['top1']:.2f} % | {test['agreement']:.2f} % | {first['seconds']:.0f} s |")
    checkpoint = str(Path(given.log_dir) / f"reconstruction{suffix}" / "checkpoints" / "last.pt")
    for kind in given.kinds:
        made_up = {} if kind == "training images" else {"task__use_random_data": True, "task__random_data": kind}
        changes = common | made_up | {"nern__checkpoint_path": checkpoint, "distillation__iterations": steps[1]}
        metrics = run(f"{kind.replace(' ', '-')}{suffix}", distillation, given.log_dir, **changes)
        test = metrics["last"]["test"]
        print(f"| {kind} | {test['top1']:.2f} % | {test['agreement']:.2f} % | {metrics['seconds']:.0f} s |", flush=True)
    sizes, versions = first["sizes"], first["versions"]
    print(
        f"\nPredictor: {sizes['predictor_parameters']:,} parameters ({sizes['predictor_share']:.1%}); {steps[0]:,} steps of "
        f"reconstruction, {steps[1]:,} of distillation with {distillation.batch_size} images; {test['images']:,} test "
        f"images; seed {given.seed}; {', '.join(f'{k} {v}' for k, v in versions.items())}; {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
