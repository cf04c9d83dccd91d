"""Networks of torchvision and timm: what is represented, time to build the NeRN, time and memory of a training step.

    python benchmarks/networks.py            prints a Markdown table
    python benchmarks/networks.py ResNet18   of these networks only

Weights are random, the ordering is 'none', the predictor is `nern.fit`'s with hidden layers of 128: a step predicts 4,096
drawn kernels and updates. Every network is measured in a process of its own; steps are the median of 7 after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings

NETWORKS: dict[str, list[str] | None] = {  # name -> include (None: the network's own choice)
    "ResNet20": None,
    "ResNet18": None,
    "SqueezeNet1.1": None,
    "torchvision:mobilenet_v3_small": None,
    "torchvision:shufflenet_v2_x1_0": None,
    "torchvision:efficientnet_b0": None,
    "torchvision:densenet121": None,
    "torchvision:resnet50": None,
    "torchvision:regnet_y_400mf": None,
    "torchvision:r3d_18": None,
    "timm:convnext_atto": None,
    "timm:mobilenetv4_conv_small": None,
    "timm:resnet10t": None,
    "timm:repvgg_a0": None,
    "timm:vit_tiny_patch16_224": ["*.weight"],
    "timm:mixer_s32_224": ["*.weight"],
}
HIDDEN, STEPS = 128, 7


def measure(name: str) -> dict[str, object]:
    """Figures of one network."""
    import resource

    import torch

    import nern
    from nern.originals.build import build_original
    from nern.representation.kernels import KernelTable
    from nern.representation.nern import build_nern
    from nern.training.members import Member
    from nern.training.trainer import Trainer

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    warnings.simplefilter("ignore", nern.errors.NernWarning)
    original = build_original(name, None, include=NETWORKS.get(name))
    config = nern.fit_config(STEPS)
    config.nern.hidden_layer_size = HIDDEN
    config.check()
    before, started = peak(), time.perf_counter()
    table = KernelTable.of(original.weights)
    representation = build_nern(config.nern, table, None, seed=0)
    trainer = Trainer(config, [Member(original)], representation)
    built = time.perf_counter() - started
    trainer.do_step()
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        trainer.do_step()
        seconds.append(time.perf_counter() - started)
    sizes: dict[str, int] = {}
    for choice in original.choices:
        if choice.taken:
            sizes[choice.kernel_size] = sizes.get(choice.kernel_size, 0) + 1
    return {
        "parameters": original.num_parameters,
        "share": table.num_weights / original.num_parameters,
        "layers": len(table.shapes),
        "sizes": sizes,
        "kernels": table.rows,
        "build": built,
        "step": statistics.median(seconds),
        "memory": peak() - before,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names; none: all")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one)))
        return
    print(
        "| network | parameters | represented | layers by kernel size | kernels = coordinates | build | step | memory |"
    )
    print("|---|---|---|---|---|---|---|---|")
    threads = 0
    for name in given.networks or NETWORKS:
        command = [sys.executable, __file__, "--one", name]
        figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
        include = NETWORKS.get(name)
        sizes = ", ".join(f"{count} of {size}" for size, count in figures["sizes"].items())
        threads = figures["threads"]
        print(
            f"| `{name}`{f' (include {include})' if include else ''} | {figures['parameters']:,} | {figures['share']:.1%} | "
            f"{sizes} | {figures['kernels']:,} | {figures['build']:.2f} s | {1000 * figures['step']:.0f} ms | "
            f"{figures['memory'] / 1e6:,.0f} MB |",
            flush=True,
        )
    import torch

    print(f"\ntorch {torch.__version__}, Python {platform.python_version()}, {threads} threads, {platform.machine()}")


if __name__ == "__main__":
    main()
