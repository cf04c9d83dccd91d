"""What a run shows in the terminal: messages, a live progress bar, tables."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from nern.objectives.objective import Losses

WIDE = 120  # columns from which on the losses are shown, too
UPDATE_EVERY = 10  # steps between updates of the losses shown: reading a loss waits for the device


def bytes_text(count: float) -> str:
    """A size for people: 1,234 B, 12.3 kB, 1.2 MB (powers of ten)."""
    if count < 10_000:
        return f"{count:,.0f} B"
    return f"{count / 1e3:,.1f} kB" if count < 1e6 else f"{count / 1e6:,.2f} MB"


class ProgressDisplay:
    """A progress bar with phase, losses and the latest accuracy; lines at evaluations where there is no terminal."""

    def __init__(self, console: Console, total: int, warmup: int, done: int = 0, live: bool = True) -> None:
        self.console, self.total, self.warmup = console, total, warmup
        self.live = live and console.is_terminal
        self.lines = live and not console.is_terminal
        self._accuracy = ""
        self.phase_name: Callable[[], str] = str  # of the last step; empty where a run is not divided
        wide = console.width >= WIDE
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=30 if wide else 12),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            *([TimeElapsedColumn(), TextColumn("left")] if wide else []),
            TimeRemainingColumn(),
            *([TextColumn("{task.fields[losses]}")] if wide else []),
            TextColumn("[bold]{task.fields[accuracy]}"),
        ]
        self._bar = Progress(*columns, console=console, disable=not self.live)
        self._task = self._bar.add_task(self._phase(done), total=total, completed=done, losses="", accuracy="")

    def _phase(self, step: int) -> str:
        return "reconstruction" if step < min(self.warmup, self.total) else "training"

    def __enter__(self) -> ProgressDisplay:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def on_step(self, step: int, losses: Losses) -> None:
        """Show the steps done."""
        if not self.live:
            return
        shown: dict[str, Any] = {}
        if step % UPDATE_EVERY == 0 or step == self.total:
            short = {"reconstruction": "rec", "frequency": "freq", "feature_maps": "maps", "distillation": "dist"}
            parts = [f"{short.get(name, name)} {float(value.detach()):.4g}" for name, value in losses.terms.items()]
            shown = {"losses": " ".join(parts)}
        with_images = not losses.terms.keys() <= {"reconstruction", "frequency"}
        phase = "distillation" if with_images else self._phase(step - 1)
        phase = self.phase_name() or (phase if "reconstruction" in losses.terms else "training")
        self._bar.update(self._task, completed=step, description=phase, **shown)

    def on_evaluation(self, record: dict[str, Any]) -> None:
        """Show an evaluation."""
        parts: list[str] = []
        for name, label in (("test", "test"), ("held_out", "held out")):
            if name in record and (not parts or not self.live or self.console.width >= WIDE):
                metrics = record[name]
                key = "top1" if "top1" in metrics else "agreement"
                parts.append(f"{label} {metrics[key]:.2f} %" + (" agreement" if key == "agreement" else ""))
        text = ", ".join(parts)
        if self.live:
            self._bar.update(self._task, accuracy=text)
        elif self.lines and text:
            phase = f", {record['phase']}" if "phase" in record else ""
            self.console.print(f"step {record['step']}/{self.total}{phase}: {text}", highlight=False)


def metrics_table(title: str, rows: dict[str, dict[str, float]]) -> Table:
    """A table of metrics, one row a network."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("network")
    columns = {"top1": "top-1 %", "top5": "top-5 %", "loss": "loss", "agreement": "agreement %", "images": "images"}
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for name, metrics in rows.items():
        cells = []
        for key in columns:
            value = metrics.get(key)
            digits = {"loss": 4, "images": 0}.get(key, 2)
            cells.append("-" if value is None else f"{value:,.{digits}f}")
        table.add_row(name, *cells)
    return table


def result_table(metrics: dict[str, Any]) -> Table:
    """The closing table of a run, from its metrics.json."""
    table = Table(title="Result", title_justify="left", title_style="bold")
    for heading, justify in (("", "left"), ("original", "right"), ("reconstructed", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    networks = metrics["best"].get("networks")
    for name, best_sets in (networks or {"": metrics["best"]}).items():
        original = (metrics["original"]["networks"][name] if networks else metrics["original"]).get("test")
        best = best_sets.get("test")
        if original and best:
            of_network = f"{name}: " if networks else ""
            accuracies = (f"{figures['top1']:.2f} %" for figures in (original, best))
            table.add_row(f"{of_network}accuracy, {best['images']:,} test images", *accuracies)
            table.add_row(f"{of_network}agreement with the original", "", f"{best['agreement']:.2f} %")
    sizes = metrics["sizes"]
    table.add_row(
        "parameters: represented / predictor",
        f"{sizes['represented_parameters']:,}",
        f"{sizes['predictor_parameters']:,} ({sizes['predictor_share']:.1%})",
    )
    table.add_row("parameters: all", f"{sizes['original_parameters']:,}", f"{sizes['reconstructed_parameters']:,}")
    parts = {"predictor": "represented_bytes", "ordering": None, "outlier": None, "kept": "original_kept_bytes"}
    labels = {
        "predictor": "bytes: represented / predictor",
        "ordering": "bytes: ordering",
        "outlier": f"bytes: {sizes.get('outliers', 0):,} outliers",
        "kept": "bytes: the rest",
    }
    if not sizes.get("outliers"):
        del parts["outlier"]
    for part, before in parts.items():
        left = "-" if before is None else bytes_text(sizes[before])
        table.add_row(labels[part], left, bytes_text(sizes[f"{part}_bytes"]))
    total = sum(sizes[f"{part}_bytes"] for part in parts)
    table.add_row("bytes: all", bytes_text(sizes["original_bytes"]), bytes_text(total))
    table.add_row("time", "", f"{metrics['seconds']:.1f} s")
    return table


def original_table(metrics: dict[str, Any]) -> Table:
    """The closing table of `nern train-original`, from its metrics.json."""
    table = Table(title="Result", title_justify="left", title_style="bold", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    if test := metrics["test"]:
        table.add_row(f"accuracy, {test['images']:,} test images", f"{test['top1']:.2f} %")
    table.add_row("parameters", f"{metrics['parameters']:,}")
    table.add_row("neighbouring kernels, mean cosine", f"{metrics['neighbour_cosine']:.4f}")
    table.add_row("steps", f"{metrics['steps']:,}")
    table.add_row("time", f"{metrics['seconds']:.1f} s")
    return table
