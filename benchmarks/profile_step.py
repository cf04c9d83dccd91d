"""Where the time of a training step goes, by PyTorch's profiler.

    python benchmarks/profile_step.py --config_path FILE [--precision bf16] [--steps 5]

Prints a Markdown table: shares of the processor's (on a GPU: the device's) own time of full steps, images included.
"""

from __future__ import annotations

import argparse
import platform

import torch
from torch.profiler import ProfilerActivity, profile

from nern import Config
from nern.benchmarks.step import endless_trainer
from nern.devices import keep_memory
from nern.errors import NernError

KINDS = {  # what -> parts of operators' names
    "convolutions, forward (and linear layers of the predictor)": ("mkldnn_convolution", "cudnn_convolution", "addmm"),
    "convolutions, backward": ("convolution_backward", "cudnn_convolution_backward"),
    "feature-map loss": ("NormalizedDistance", "linalg_vector_norm"),
    "activations": ("clamp_min", "threshold_backward", "relu"),
    "sums, copies and products of tensors": (
        "aten::add",
        "aten::mul",
        "aten::copy_",
        "addcmul",
        "aten::sum",
        "aten::cat",
    ),
    "gathering rows": ("aten::index", "index_select", "scatter_add", "bucketize"),
}


def main() -> None:
    """Profile some steps and print shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_path", required=True)
    parser.add_argument("--weights", help="as original_model_path")
    parser.add_argument("--data_dir", help="as task.data_dir")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    try:
        config = Config.load(given.config_path)
        config.precision = given.precision
        config.original_model_path = given.weights or config.original_model_path
        config.task.data_dir = given.data_dir or config.task.data_dir
        keep_memory()
        trainer = endless_trainer(config, True)
        for _ in range(3):
            trainer.do_step()
    except NernError as error:
        parser.exit(2, f"error: {error}\n")
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + torch.cuda.is_available()]) as profiled:
        for _ in range(given.steps):
            trainer.do_step()
    on_gpu = trainer.device.type == "cuda"
    times = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in profiled.key_averages()}
    whole, left = sum(times.values()), dict(times)
    print("| | share |\n|---|---:|")
    for kind, parts in KINDS.items():
        taken = {name: left.pop(name) for name in list(left) if any(part in name for part in parts)}
        print(f"| {kind} | {sum(taken.values()) / whole:.0%} |")
    print(f"| everything else | {sum(left.values()) / whole:.0%} |")
    print(
        f"\n{given.steps} steps of {whole / given.steps / 1000:,.0f} ms under the profiler, {given.precision}; "
        f"{trainer.device}, {torch.get_num_threads()} threads; torch {torch.__version__}, Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()
