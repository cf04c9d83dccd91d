"""What a run shows in the terminal: messages, a live progress bar, tables."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from nern.console import PLAIN
from nern.objectives.objective import Losses
from nern.ordering.order import Shapes, ordering_bits

WIDE = 120  # columns from which on each loss is shown, and the time elapsed
LINES, LINE_SECONDS = 10, 5.0  # most lines between evaluations where there is no bar, and the seconds between two
UPDATE_EVERY = 10  # steps between updates of the losses shown: reading a loss waits for the device


def bytes_text(count: float) -> str:
    """A size for people: 1,234 B, 12.3 kB, 1.2 MB (powers of ten)."""
    if count < 10_000:
        return f"{count:,.0f} B"
    return f"{count / 1e3:,.1f} kB" if count < 1e6 else f"{count / 1e6:,.2f} MB"


def share_text(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.1f} %"


def ordering_text(mode: str, shapes: Shapes) -> str:
    """What an ordering of this mode takes at least, of layers of these shapes."""
    kernels, weights = sum(math.prod(s[:2]) for s in shapes), sum(math.prod(s) for s in shapes)
    bits = ordering_bits(mode, shapes)
    return (
        f"ordering {mode} of {kernels:,} kernels takes at least {bytes_text(bits / 8)}, {share_text(bits / (32 * weights))} "
        f"of the weights' {bytes_text(4 * weights)} in float32"
    )


def ordering_warning(mode: str, shapes: Shapes) -> str:
    """A word of warning where an ordering takes more than half of the bytes of the weights in float16; else empty."""
    if ordering_bits(mode, shapes) <= 8 * sum(math.prod(s) for s in shapes):
        return ""
    return (
        f"{ordering_text(mode, shapes)}. An ordering of kernels of one weight takes nearly as much as the weights: leave "
        "such layers out (nern.exclude; `nern inspect` lists them), or set permute_mode to 'none', which takes nothing"
    )


def shows_bars(console: Console) -> bool:
    """Whether a bar that moves can be shown: in a terminal, and in a notebook that has ipywidgets."""
    return console.is_terminal or (console.is_jupyter and importlib.util.find_spec("ipywidgets") is not None)


class _Speed(ProgressColumn):
    """Steps a second, of the last ones."""

    def render(self, task: Task) -> Text:
        return Text(speed_text(task.finished_speed or task.speed))


def speed_text(speed: float | None) -> str:
    """Steps a second, or seconds a step; empty where it is not known yet."""
    if not speed:
        return ""
    return f"{speed:,.{0 if speed >= 100 else 1}f} steps/s" if speed >= 1 else f"{1 / speed:,.1f} s/step"


class ProgressDisplay:
    """A progress bar with phase, speed, remaining time, losses and the latest accuracy. Where no bar can be shown, lines: at
    evaluations, and at times between them."""

    def __init__(self, console: Console, total: int, done: int = 0, live: bool = True) -> None:
        self.console, self.total = console, total
        self.live = live and shows_bars(console)
        self.lines = live and not self.live
        self.phase_name: Callable[[], str] = str  # of the last step; empty where a run is not divided
        self._wide = console.width >= WIDE
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24 if self._wide else 4),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            *([TimeElapsedColumn(), TextColumn("left")] if self._wide else []),
            TimeRemainingColumn(),
            _Speed(),
            TextColumn("{task.fields[losses]}", markup=False),
            TextColumn("{task.fields[accuracy]}", style="bold", markup=False),
        ]
        self._bar = Progress(*columns, console=console, disable=not self.live)
        self._task = self._bar.add_task("training", total=total, completed=done, losses="", accuracy="")
        self._first, self._began = done, time.monotonic()
        self._line_at, self._line_time = done, self._began

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.refresh()  # a notebook's is not by itself
        self._bar.stop()

    def on_step(self, step: int, losses: Losses) -> None:
        """Show the steps done."""
        if self.live:
            look = step % UPDATE_EVERY == 0 or step == self.total
            shown: dict[str, Any] = {"losses": self._losses(losses, self._wide)} if look else {}
            self._bar.update(self._task, completed=step, description=self._phase_of(losses), **shown)
        elif self.lines and step - self._line_at >= self.total / LINES and step < self.total:
            now = time.monotonic()
            if now - self._line_time >= LINE_SECONDS:
                speed = (step - self._first) / (now - self._began)
                left = timedelta(seconds=round((self.total - step) / speed))
                self._line(step, self._phase_of(losses), f"{left} left, {speed_text(speed)}, {self._losses(losses)}")

    def _phase_of(self, losses: Losses) -> str:
        alone = losses.terms.keys() == {"reconstruction"}
        usual = "reconstruction" if alone else "distillation" if "reconstruction" in losses.terms else "training"
        return self.phase_name() or usual

    def _losses(self, losses: Losses, each: bool = False) -> str:
        if not each:
            return f"loss {float(losses.total.detach()):.3g}"
        short = {"reconstruction": "rec", "feature_maps": "maps", "distillation": "dist"}
        return " ".join(f"{short.get(name, name)} {float(value.detach()):.4g}" for name, value in losses.terms.items())

    def _line(self, step: int, phase: str, text: str) -> None:
        self._line_at, self._line_time = step, time.monotonic()
        self.console.print(f"step {step}/{self.total}{phase and f', {phase}'}: {text}", **PLAIN)

    def on_evaluation(self, record: dict[str, Any]) -> None:
        """Show an evaluation."""
        parts: list[str] = []
        for name, label in (("test", "test"), ("held_out", "held out")):
            if name in record and (not parts or not self.live or self._wide):
                metrics = record[name]
                key = next((key for key in ("top1", "agreement", "error") if key in metrics), None)
                if key is not None:
                    parts.append(f"{label} {metrics[key]:.2f} %" + (f" {key}" if key != "top1" else ""))
        text = ", ".join(parts)
        if self.live:
            self._bar.update(self._task, accuracy=text)
        elif self.lines and text:
            self._line(record["step"], record.get("phase", ""), text)


def _table(title: str, *headings: str) -> Table:
    """An empty table of a column of names and columns of numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=any(headings))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table


def metrics_table(title: str, rows: dict[str, dict[str, float]]) -> Table:
    """A table of metrics, one row a network."""
    columns = {"top1": "top-1 %", "top5": "top-5 %", "loss": "loss", "agreement": "agreement %", "images": "images"}
    table = _table(title, "network", *columns.values())
    for name, metrics in rows.items():
        digits = {"loss": 4, "images": 0}
        cells = (f"{metrics[key]:,.{digits.get(key, 2)}f}" if key in metrics else "-" for key in columns)
        table.add_row(name, *cells)
    return table


def result_table(metrics: dict[str, Any]) -> Table:
    """The closing table of a run, from its metrics.json."""
    table = _table("Result", "", "original", "reconstructed")
    networks = metrics["best"].get("networks")
    for name, best_sets in (networks or {"": metrics["best"]}).items():
        original = (metrics["original"]["networks"][name] if networks else metrics["original"]).get("test")
        best = best_sets.get("test")
        if original and best and "top1" in best:
            of_network = f"{name}: " if networks else ""
            accuracies = (f"{figures['top1']:.2f} %" for figures in (original, best))
            table.add_row(f"{of_network}accuracy, {best['images']:,} test images", *accuracies)
            table.add_row(f"{of_network}agreement with the original", "", f"{best['agreement']:.2f} %")
    sizes = metrics["sizes"]
    predictor = f"{sizes['predictor_parameters']:,} ({share_text(sizes['predictor_share'])})"
    table.add_row("parameters: represented / predictor", f"{sizes['represented_parameters']:,}", predictor)
    if sizes["ordering_bytes_at_least"]:
        numbers = round(sizes["share"] * sizes["represented_parameters"])
        table.add_row("with the order, at 32 bits each", "", f"{numbers:,} ({share_text(sizes['share'])})")
    table.add_row("parameters: all", f"{sizes['original_parameters']:,}", f"{sizes['reconstructed_parameters']:,}")
    parts = [
        ("represented / predictor", sizes["represented_bytes"], sizes["predictor_bytes"]),
        ("ordering", None, sizes["ordering_bytes"]),
        ("the rest", sizes["original_kept_bytes"], sizes["kept_bytes"]),
        ("all", sizes["original_bytes"], sum(sizes[f"{part}_bytes"] for part in ("predictor", "ordering", "kept"))),
    ]
    for part, before, now in parts:
        if now:
            table.add_row(f"bytes: {part}", "-" if before is None else bytes_text(before), bytes_text(now))
    table.add_row("time", "", f"{metrics['seconds']:.1f} s")
    return table


def original_table(metrics: dict[str, Any]) -> Table:
    """The closing table of `nern train-original`, from its metrics.json."""
    table = _table("Result", "", "")
    if test := metrics["test"]:
        table.add_row(f"accuracy, {test['images']:,} test images", f"{test['top1']:.2f} %")
    table.add_row("parameters", f"{metrics['parameters']:,}")
    table.add_row("neighbouring kernels, mean cosine", f"{metrics['neighbour_cosine']:.4f}")
    table.add_row("steps", f"{metrics['steps']:,}")
    table.add_row("time", f"{metrics['seconds']:.1f} s")
    return table
