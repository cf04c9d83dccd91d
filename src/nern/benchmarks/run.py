"""`nern bench run`: what a whole run would take, from a stretch of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nern.benchmarks.measure import PeakMemory, repeat
from nern.benchmarks.parts import build_trainer, endless, quieten
from nern.benchmarks.report import Cells, Report, Sheet, seconds_text, spread, spread_cells
from nern.benchmarks.settings import BenchSettings
from nern.benchmarks.worker import in_process
from nern.config import Config
from nern.devices import keep_memory, select_device
from nern.terminal import bytes_text
from nern.training.graph import WARM_UP
from nern.training.phases import Phase, phases_of

STEPS = {"cpu": 30, "cuda": 300}


def bench_run(config: Config, settings: BenchSettings, say: Callable[[str], None]) -> Report:
    """Steps of reconstruction only, full steps and an evaluation, times their number in the run."""
    say("building")
    of = in_process(_measure, config, settings.steps, settings.repeats, settings.warmup, threads=settings.threads)
    rows: list[Cells] = []
    for name, part in of["parts"].items():
        whole = seconds_text(part["seconds"]["median"] * part["count"])
        cells = [*spread_cells("median time of one", part["seconds"]), ("in the run", f"{part['count']:,}")]
        rows.append([("", name), *cells, ("together", whole)])
    headings = [heading for heading, _ in rows[0][1:-1]]
    rows.append([("", "whole run"), *((h, "") for h in headings), ("together", seconds_text(of["run_seconds"]))])
    of_it = f"{of['steps_timed']} steps of each kind timed" if of["steps_timed"] else "no steps"
    note = (
        f"On {of['device']}, {of['precision']}; {of_it}, images included; evaluations at their fixed intervals and at the "
        f"end. Peak memory {bytes_text(of['peak_memory_bytes'])}."
    )
    return [Sheet(f"A run of {config.logging.exp_name}", rows, note)], {"measured": of}


def _measure(config: Config, steps: int | None, repeats: int, warmup: int) -> dict[str, Any]:
    keep_memory()  # as `nern train` does
    device = select_device(config)
    memory = PeakMemory(device)
    trainer = build_trainer(endless(config, True, evaluated=True))
    quieten(trainer.nern)
    trainer.rehearse()
    per_epoch, interval = trainer.steps_per_epoch, config.logging.log_interval
    phases = phases_of(config, per_epoch)
    total = phases[-1].ends
    with_images = sum(max(p.ends - max(p.images_from, p.begins), 0) for p in phases) if trainer.needs_images else 0
    each = max((steps or STEPS[device.type]) // repeats, 1)

    def stretch() -> None:
        for _ in range(each):
            losses = trainer.do_step()
            if trainer.step % interval == 0:  # as a run reads its losses
                float(losses.total.detach())

    parts: dict[str, Any] = {}
    for name, count, images in (("reconstruction only", total - with_images, False), ("full step", with_images, True)):
        if count:
            trainer.take_phases(phases_of(endless(config, images), per_epoch))
            for _ in range(max(warmup, WARM_UP + 2 if device.type == "cuda" else 1)):
                trainer.do_step()
            seconds = [took / each for took in repeat(stretch, device, repeats, 0)]
            parts[name] = {"seconds": spread(seconds), "count": count}
    if any(member.sets for member in trainer.members):
        seconds = repeat(trainer.metrics, device, min(repeats, 3), 1)
        parts["evaluation"] = {"seconds": spread(seconds), "count": _evaluations(config, phases, per_epoch)}
    return {
        "parts": parts,
        "run_seconds": sum(part["seconds"]["median"] * part["count"] for part in parts.values()),
        "steps": total,
        "steps_per_epoch": per_epoch,
        "steps_timed": each * repeats,
        "precision": trainer.precision,
        "device": str(device),
        "peak_memory_bytes": memory.growth(),
    }


def _evaluations(config: Config, phases: list[Phase], per_epoch: int) -> int:
    """Evaluations of the run: after steps that end an interval, and at the end of each phase."""
    intervals = config.eval_iterations_interval, per_epoch * (config.eval_epochs_interval or 0)
    due = {step for interval in intervals if interval for step in range(interval, phases[-1].ends + 1, interval)}
    return len(due | {phase.ends for phase in phases})
