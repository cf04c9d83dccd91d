"""`nern bench step`: a training step of ours over what plain PyTorch needs for the same work."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from nern.benchmarks.report import Cells, Report, Sheet, ratio_text, spread, spread_cells
from nern.benchmarks.settings import BenchSettings
from nern.benchmarks.steppers import OurSteps, PlainMLPSteps, PlainSteps
from nern.benchmarks.worker import Worker
from nern.config import Config
from nern.devices import precision_of, select_device
from nern.terminal import bytes_text

ROUND = 0.5  # seconds that the steps of one round should take
DRAWN = 4096  # rows drawn where the config draws none
PLAIN, PLAIN_MLP = "plain", "plain MLP"  # what full steps, and those of reconstruction only, are compared with


def bench_step(config: Config, settings: BenchSettings, say: Callable[[str], None]) -> Report:
    """Full steps and steps of reconstruction only, with plain ones: each in a process of its own, and by turns, so that
    drift of the machine falls on all alike."""
    device = select_device(config)
    on_gpu = device.type == "cuda"
    precisions = list(settings.precisions or []) or [precision_of(config.precision, device)]
    kinds = _kinds(config, precisions, on_gpu)
    cached = False
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name, (kind, *arguments) in kinds.items():
            say(f"building: {name}")
            workers[name] = stack.enter_context(Worker(kind, *arguments, threads=settings.threads))
            if kind is OurSteps and not cached:  # leaves its ordering in the cache for the others
                cached = True
                workers[name].ready()
        counts = {}
        for name, worker in workers.items():
            say(f"warming up: {name}")
            seconds = worker.call("warm_up", max(settings.warmup, 1))
            counts[name] = min(max(math.ceil(ROUND / max(seconds, 1e-9)), 1), settings.most_steps)
        times: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(settings.repeats):
            for name, worker in workers.items():
                say(f"round {number + 1} of {settings.repeats}: {name}")
                times[name].append(worker.call("time", counts[name]))
        ours = next(worker for name, worker in workers.items() if kinds[name][0] is OurSteps)
        images = [ours.call("time_images", 3) for _ in range(settings.repeats)]
        measured = {}
        for name, worker in workers.items():
            measured[name] = {"seconds": spread(times[name]), "steps_a_round": counts[name]}
            if name not in (PLAIN, PLAIN_MLP):
                plain = PLAIN_MLP if _is_reconstruction(name) else PLAIN
                ratios = [own / other for own, other in zip(times[name], times[plain], strict=True)]
                measured[name] |= {"ratio": spread(ratios), "ratio_of": [name, plain]}
            measured[name] |= worker.call("found")
    return _sheets(measured, on_gpu), {"measured": measured, "images_seconds": spread(images)}


def _kinds(config: Config, precisions: list[str], on_gpu: bool) -> dict[str, tuple[Any, ...]]:
    """What takes steps, by name: a class, and what to make it with."""
    kinds: dict[str, tuple[Any, ...]] = {PLAIN: (PlainSteps, config)}
    if on_gpu:
        kinds["plain, PyTorch's defaults"] = PlainSteps, config, False
    for precision in precisions:
        kinds[f"ours, {precision}"] = OurSteps, _changed(config, precision), True
    kinds[PLAIN_MLP] = PlainMLPSteps, _changed(config, rows="drawn")
    for precision in precisions:
        for rows in ("drawn", "all"):
            kinds[f"{rows} rows, {precision}"] = OurSteps, _changed(config, precision, rows), False
    return kinds


def _changed(config: Config, precision: str | None = None, rows: str | None = None) -> Config:
    """A copy that computes in `precision`, and whose reconstruction steps compare 'all' rows or those 'drawn', which it
    draws; None: as in the config."""
    config = copy.deepcopy(config)
    config.precision, n = precision or config.precision, config.nern
    if rows is not None:
        n.reconstruction_rows = rows
        if n.weights_batch_method == "all":
            n.weights_batch_method, n.weights_batch_size = "random_batch", min(n.weights_batch_size or DRAWN, DRAWN)
    return config


def _is_reconstruction(name: str) -> bool:
    return name == PLAIN_MLP or " rows, " in name


def _sheets(measured: dict[str, Any], on_gpu: bool) -> list[Sheet]:
    full = [_row(name, of) for name, of in measured.items() if not _is_reconstruction(name)]
    about = (
        f"{'+'.join(map(str, measured[PLAIN]['images']))} images. plain: the original forward, a network of its "
        "architecture forward and backward, PyTorch in float32, images made beforehand. ours: a whole training step, images "
        "made within it."
    )
    if on_gpu:
        about += " TF32 is off in plain; PyTorch's defaults use it for convolutions."
    alone = [_row(name, of) for name, of in measured.items() if _is_reconstruction(name)]
    drawn = next(of for name, of in measured.items() if name.startswith("drawn"))
    about_rows = (
        f"{drawn['rows']:,} rows drawn of {drawn['all_rows']:,}. plain MLP: a network of the predictor's shape on "
        f"{measured[PLAIN_MLP]['rows']:,} encodings made beforehand, root mean squared error, backward, Adam, float32."
    )
    return [Sheet("Full step", full, about), Sheet("Step of reconstruction only", alone, about_rows)]


def _row(name: str, of: dict[str, Any]) -> Cells:
    return [
        ("", name),
        *spread_cells("median time of a step", of["seconds"]),
        *(
            spread_cells("over plain", of["ratio"], ratio_text)
            if "ratio" in of
            else [("over plain", "1"), ("quartiles", "")]
        ),
        ("peak memory", bytes_text(of["peak_memory_bytes"])),
    ]
