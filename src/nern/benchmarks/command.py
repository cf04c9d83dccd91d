"""Run one benchmark, show it, write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console

from nern.benchmarks.machine import machine, machine_text, versions
from nern.benchmarks.order import bench_order
from nern.benchmarks.reconstruct import bench_reconstruct
from nern.benchmarks.report import Report
from nern.benchmarks.run import bench_run
from nern.benchmarks.scaling import bench_scaling
from nern.benchmarks.settings import BenchSettings, Say, check_kind
from nern.benchmarks.step import bench_step
from nern.config import Config
from nern.console import CleanConsole
from nern.files import check_writable

BENCHMARKS: dict[str, Callable[[Config, BenchSettings, Say], Report]] = {
    "order": bench_order,
    "step": bench_step,
    "reconstruct": bench_reconstruct,
    "scaling": bench_scaling,
    "run": bench_run,
}


def bench(
    what: str,
    config: Config,
    settings: BenchSettings,
    console: Console | None = None,
    json_path: str | None = None,
    markdown_path: str | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Measure; print the tables; returns what JSON holds.

    Args:
        what: a name in `KINDS`.
        config: a checked config.
        settings: how to measure.
        console: where tables go; None: standard output.
        json_path, markdown_path: files to write.
        command: that was typed, for the files.

    Raises:
        NernError: before any work, for what cannot be measured or written.
    """
    check_kind(what)
    settings.check()
    for path, option in ((json_path, "--json"), (markdown_path, "--markdown"), (settings.figure, "--figure")):
        check_writable(path, option)
    console = console or CleanConsole()
    with console.status(f"nern bench {what}") as status:
        report = BENCHMARKS[what](config, settings, lambda text: status.update(f"nern bench {what}: {text}"))
    threads = settings.threads or torch.get_num_threads()
    facts: dict[str, Any] = {
        "benchmark": what,
        "command": command,
        "settings": settings.of(what) | {"threads": threads},
        "seed": config.seed,
        "n": settings.repeats,
        "machine": machine(),
        "versions": versions(),
        "config": config.to_dict(),
    }
    machine_line = machine_text(facts["machine"], facts["versions"], threads)
    about = f"n = {settings.repeats}, seed {config.seed}; {machine_line}"
    report.show(console, about)
    if json_path is not None:
        report.write_json(json_path, facts)
    if markdown_path is not None:
        report.write_markdown(markdown_path, command, about)
    return facts | {"results": report.figures}
