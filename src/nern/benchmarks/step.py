"""`nern bench step`: a training step of ours over what plain PyTorch needs for the same work."""

from __future__ import annotations

import copy
import math
from contextlib import ExitStack
from typing import Any

from nern.benchmarks.measure import Spread, ratio_text, seconds_text
from nern.benchmarks.report import Report, Sheet
from nern.benchmarks.settings import BenchSettings, Say
from nern.benchmarks.steppers import OurSteps, PlainMLPSteps, PlainSteps
from nern.benchmarks.worker import Worker
from nern.config import Config
from nern.devices import precision_of, select_device
from nern.terminal import bytes_text

ROUND = 0.5  # seconds that the steps of one round should take
DRAWN = 4096  # rows drawn where the config draws none


def bench_step(config: Config, settings: BenchSettings, say: Say) -> Report:
    """Full steps and steps of reconstruction only, in turn with plain ones; see the module."""
    precisions = list(settings.precisions or []) or [precision_of(config.precision, select_device(config))]
    on_gpu = select_device(config).type == "cuda"
    with ExitStack() as stack:
        rooms = _Rooms(stack, settings, say)
        _add_full(rooms, config, precisions, on_gpu)
        _add_reconstruction(rooms, config, precisions)
        rooms.measure()
        report = Report(figures=rooms.figures())
    of = report.figures["measured"]
    report.sheets = [_full_sheet(of, on_gpu), _reconstruction_sheet(of)]
    return report


def at_precision(config: Config, precision: str) -> Config:
    """A copy that computes in `precision`."""
    config = copy.deepcopy(config)
    config.precision = precision
    return config


def drawing(config: Config, rows: str) -> Config:
    """A copy whose reconstruction steps compare 'all' rows or those 'drawn', which it draws."""
    config = copy.deepcopy(config)
    config.nern.reconstruction_rows = rows
    if config.nern.weights_batch_method == "all":
        config.nern.weights_batch_method = "random_batch"
        config.nern.weights_batch_size = min(config.nern.weights_batch_size or DRAWN, DRAWN)
    return config


def _add_full(rooms: _Rooms, config: Config, precisions: list[str], on_gpu: bool) -> None:
    rooms.add("plain", None, PlainSteps, config)
    if on_gpu:
        rooms.add("plain, PyTorch's defaults", "plain", PlainSteps, config, False)
    for precision in precisions:
        rooms.add(f"ours, {precision}", "plain", OurSteps, at_precision(config, precision), True)


def _add_reconstruction(rooms: _Rooms, config: Config, precisions: list[str]) -> None:
    rooms.add("plain MLP", None, PlainMLPSteps, drawing(config, "drawn"))
    for precision in precisions:
        for rows in ("drawn", "all"):
            drawn = drawing(at_precision(config, precision), rows)
            rooms.add(f"{rows} rows, {precision}", "plain MLP", OurSteps, drawn, False)


class _Rooms:
    """What is measured, each in a process of its own, and by turns: drift of the machine falls on all alike."""

    def __init__(self, stack: ExitStack, settings: BenchSettings, say: Say) -> None:
        self.stack, self.settings, self.say = stack, settings, say
        self.workers: dict[str, Worker] = {}
        self.over: dict[str, str] = {}
        self.cached = False
        self.seconds: dict[str, list[float]] = {}

    def add(self, name: str, over: str | None, kind: Any, *arguments: Any) -> None:
        """Start one. `over`: the other of the two that a ratio is of."""
        self.say(f"building: {name}")
        self.workers[name] = self.stack.enter_context(Worker(kind, *arguments, threads=self.settings.threads))
        if over is not None:
            self.over[name] = over
        if kind is OurSteps and not self.cached:  # leaves its ordering in the cache for the others
            self.cached = True
            self.workers[name].ready()

    def measure(self) -> None:
        """Warm up, then rounds of all, one after the other."""
        counts = {}
        for name, worker in self.workers.items():
            self.say(f"warming up: {name}")
            seconds = worker.call("warm_up", max(self.settings.warmup, 1))
            counts[name] = min(max(math.ceil(ROUND / max(seconds, 1e-9)), 1), self.settings.most_steps)
        self.seconds = {name: [] for name in self.workers}
        for number in range(self.settings.repeats):
            for name, worker in self.workers.items():
                self.say(f"round {number + 1} of {self.settings.repeats}: {name}")
                self.seconds[name].append(worker.call("time", counts[name]))
        self.counts = counts
        ours = next(worker for name, worker in self.workers.items() if name.startswith("ours"))
        self.images = [ours.call("time_images", 3) for _ in range(self.settings.repeats)]

    def figures(self) -> dict[str, Any]:
        """Everything found, by name."""
        measured: dict[str, Any] = {}
        for name, worker in self.workers.items():
            found = {"seconds": Spread.of(self.seconds[name]).to_dict(), "steps_a_round": self.counts[name]}
            if other := self.over.get(name):
                ratio = Spread.ratio(self.seconds[name], self.seconds[other])
                found |= {"ratio": ratio.to_dict(), "ratio_of": [name, other]}
            measured[name] = found | worker.call("found")
        return {"measured": measured, "images_seconds": Spread.of(self.images).to_dict()}


def _cells(found: dict[str, Any]) -> list[str]:
    ratio = found.get("ratio")
    return [
        *Spread.of(found["seconds"]["values"]).cells(seconds_text),
        *(Spread.of(ratio["values"]).cells(ratio_text) if ratio else ["1", ""]),
        bytes_text(found["peak_memory_bytes"]),
    ]


HEADINGS = ("median time of a step", "quartiles", "over plain", "quartiles", "peak memory")


def _full_sheet(of: dict[str, Any], on_gpu: bool) -> Sheet:
    images = of["plain"]["images"]
    rows = [[name, *_cells(found)] for name, found in of.items() if name.startswith(("plain", "ours"))]
    rows = [row for row in rows if row[0] != "plain MLP"]
    note = (
        f"{'+'.join(map(str, images))} images. plain: the original forward, a network of its architecture forward and "
        "backward, PyTorch in float32, images made beforehand. ours: a whole training step, images made within it. "
        + ("TF32 is off in plain; PyTorch's defaults use it for convolutions." if on_gpu else "")
    )
    return Sheet("Full step", ("", *HEADINGS), rows, note.strip())


def _reconstruction_sheet(of: dict[str, Any]) -> Sheet:
    names = [name for name in of if name == "plain MLP" or " rows, " in name]
    drawn = next(name for name in names if name.startswith("drawn"))
    rows = [[name, *_cells(of[name])] for name in names]
    note = (
        f"{of[drawn]['rows']:,} rows drawn of {of[drawn]['all_rows']:,}. plain MLP: a network of the predictor's shape on "
        f"{of['plain MLP']['rows']:,} encodings made beforehand, root mean squared error, backward, Adam, float32."
    )
    return Sheet("Step of reconstruction only", ("", *HEADINGS), rows, note)
