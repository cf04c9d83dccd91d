"""Progress: in terminals of any width, in notebooks, and where there is neither."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
import types
from typing import Any

import pytest
import torch
from rich.console import Console

from nern import terminal
from nern.objectives.objective import Losses
from nern.terminal import ProgressDisplay, shows_bars

LOSSES = Losses({"reconstruction": torch.tensor(0.5), "distillation": torch.tensor(0.25)}, torch.tensor(1.25))


def show(console: Console, total: int = 200_000, done: int = 123_450, phase: str = "reconstruction") -> str:
    """What is shown of a step, with an evaluation before it."""
    screen = io.StringIO()
    console.file = screen
    display = ProgressDisplay(console, total, done - 1000)
    display.phase_name = lambda: phase
    with display:
        display.on_evaluation({"step": 100, "held_out": {"top1": 97.5}, "test": {"top1": 96.25}})
        for number in range(10):
            display._bar.get_time = lambda now=number: 100.0 + now / 1234
            display.on_step(done - 9 + number, LOSSES)
    return plain(screen.getvalue())


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize(("width", "losses"), [(80, "loss 1.25"), (100, "loss 1.25"), (160, "rec 0.5 dist 0.25")])
def test_bar_has_phase_steps_speed_losses_and_accuracy(width: int, losses: str) -> None:
    line = show(Console(force_terminal=True, width=width)).strip().splitlines()[-1].strip()
    assert line.startswith("reconstruction ")
    assert re.search(rf" 123450/200000 .*\d+:\d\d:\d\d .*1,234 steps/s {losses} test 96\.25 %", line), line
    assert len(line) <= width


class Output:
    """Of ipywidgets: keeps what is shown in it."""

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...

    def clear_output(self, wait: bool) -> None: ...


def notebook(patch: pytest.MonkeyPatch, widgets: bool) -> list[Any]:
    """Puts a notebook's modules in place; what is displayed."""
    seen: list[Any] = []
    for name in ("IPython", "IPython.display", *(["ipywidgets"] if widgets else [])):
        module: Any = types.ModuleType(name)
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        module.display, module.Output = seen.append, Output
        patch.setitem(sys.modules, name, module)
    return seen


def text_of(shown: Any) -> str:
    return plain(str(shown.text).strip())


def test_bar_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = notebook(monkeypatch, True)
    assert show(Console(force_jupyter=True)) == ""
    assert isinstance(seen[0], Output)
    assert re.search(r"123450/200000.*steps/s loss 1\.25 test 96\.25 %", " ".join(map(text_of, seen[1:])))


def test_notebook_without_widgets_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = notebook(monkeypatch, False)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    console = Console(force_jupyter=True)
    assert not shows_bars(console)
    show(console)
    texts = [text_of(shown) for shown in seen]
    assert texts == ["step 100/200000: test 96.25 %, held out 97.50 %"]


def test_lines_between_evaluations_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, now = io.StringIO(), [100.0]
    monkeypatch.setattr(terminal, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    display = ProgressDisplay(Console(file=screen, width=30), 100)
    with display:
        for step in range(1, 101):
            now[0] += 0.5 if step <= 50 else 2.0
            display.on_step(step, LOSSES)
            if step == 60:
                display.on_evaluation({"step": 60, "phase": "distillation", "test": {"agreement": 50.0}})
    lines = screen.getvalue().splitlines()
    assert lines[0] == "step 10/100, distillation: 0:00:45 left, 2.0 steps/s, loss 1.25"
    assert [line.split("/")[0] for line in lines] == [f"step {n}" for n in (10, 20, 30, 40, 50, 60, 60, 70, 80, 90)]
    assert lines[6] == "step 60/100, distillation: test 50.00 % agreement"
    assert lines[-1] == "step 90/100, distillation: 0:00:12 left, 0.9 steps/s, loss 1.25".replace(
        "0.9 steps/s", "1.2 s/step"
    )
