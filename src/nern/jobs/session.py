"""What every training job does around its loop: a folder, a display, a tracker, an end that can be continued."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from rich.console import Console

import nern
from nern.config import OriginalConfig
from nern.config.settings import Settings, checked_keys, leaves
from nern.config.yaml_files import nested, over, parse_yaml, read_yaml
from nern.devices import keep_memory, peak_memory_bytes
from nern.errors import NernError, ResourceError, resource_error
from nern.stopping import Interrupted
from nern.terminal import ProgressDisplay
from nern.training.loop import Loop
from nern.training.run_folder import RunFolder
from nern.training.tracking import Run, build_tracker

S = TypeVar("S", bound=Settings)
L = TypeVar("L", bound=Loop)


@contextmanager
def resumable(folder: RunFolder, command: str) -> Iterator[None]:
    """Errors of the system (disk, memory, files) that leave this context say how the run goes on with `command`."""
    try:
        yield
    except Exception as error:
        told = resource_error(error)
        if told is None:
            raise
        if folder.state.is_file():
            rest = f"What was saved before is kept. Continue with: {going_on(command, folder)}"
        elif folder.root.is_dir():
            rest = "Nothing had been saved; start the run again"
        else:
            rest = f"The run folder {folder.root} is gone: it was moved or deleted while the run went on"
        raise ResourceError(f"{told}. {rest}") from error


@dataclass
class Saved(Generic[S]):
    """What continues a run: its config, the saved state, and the config that this was trained with (but for lengths the
    same)."""

    config: S
    state: dict[str, Any]
    before: S


def saved_run(folder: RunFolder, cls: type[S], lengths: Mapping[str, Any] | None = None) -> Saved[S]:
    """What was saved of a run with a config of this class. `lengths`: dotted keys of lengths, with their new values. Raises
    NernError if another key was changed since."""
    check_kind(folder, cls)
    config, state = cls.load(folder.config), folder.load_state()
    if lengths:
        config = cls.from_dict(over(config.to_dict(), checked_keys(nested(lengths), cls, "", config.to_dict())))
    try:
        before = cls.from_dict(parse_yaml(str(state.get("config"))))
    except (NernError, TypeError, AttributeError) as error:
        raise NernError(f"saved state {folder.state} is damaged: it holds no config ({error})") from error
    changed = [key for key in changed_keys(before.to_dict(), config.to_dict()) if not before.may_change(key)]
    if changed:
        raise NernError(
            f"{folder.config} is not what the saved state was trained with: {', '.join(changed)} changed. A resumed run "
            "keeps its settings, but for its lengths; start a new one for others."
        )
    best = folder.record("best")
    if best is not None and best["step"] > state.get("step", best["step"]):  # killed between checkpoint and state
        state["best"] = best
    return Saved(config, state, before)


def check_kind(folder: RunFolder, cls: type[Settings]) -> None:
    """Raise NernError if the run is not of the kind that `cls` configures."""
    original = "smoothness" in read_yaml(folder.config, lambda values, where, beneath: values)
    if original != (cls is OriginalConfig):
        command = "train-original" if original else "train"
        raise NernError(f"{folder.root} is a run of `nern {command}`; another command cannot open it")


def changed_keys(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Dotted keys whose values differ between two configs (`Settings.to_dict`), in the order of the second."""
    old, new = dict(leaves(before)), dict(leaves(after))
    missing = object()
    return [key for key in {**new, **old} if old.get(key, missing) != new.get(key, missing)]


def continue_from(loop: Loop, state: dict[str, Any], folder: RunFolder) -> None:
    """Take over a saved state. Raises NernError if it does not fit."""
    try:
        loop.load_state(state)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        if told := resource_error(error):
            raise told from error
        raise NernError(f"saved state {folder.state} is damaged: {' '.join(str(error).split())[:200]}") from error
    if loop.step > loop.total_steps:
        raise NernError(
            f"{folder.root} is at step {loop.step}; it cannot end at step {loop.total_steps}. Give it more steps, or start "
            "a new run"
        )


def going_on(command: str, folder: RunFolder) -> str:
    """How a run is continued: by a command of `nern`, or as `command` says."""
    return f"{command} --resume {folder.root}" if command.startswith("nern ") else f"{command} ({folder.root})"


def display_of(loop: Loop, console: Console, live: bool) -> ProgressDisplay:
    """The display of a loop, which calls it at each step and evaluation."""
    display = ProgressDisplay(console, loop.total_steps, loop.step, live)
    display.phase_name = lambda: loop.phase_name
    loop.on_step, loop.on_evaluation = display.on_step, display.on_evaluation
    return display


def run_loop(
    loop: L,
    config: Run,
    folder: RunFolder | None,
    console: Console,
    command: str,
    hear: Callable[[L], None] | None = None,
) -> None:
    """Train to the end, shown and tracked. Metrics of fewer steps are removed.

    Args:
        folder: of the run; None, in all processes but the main one: nothing is shown or written.
        command: that continues an interrupted run, but for its folder.
        hear: is given the loop before its first step.
    """
    keep_memory()
    if folder is None:
        loop.fit()
        return
    if loop.step < loop.total_steps:
        folder.metrics.unlink(missing_ok=True)
    loop.folder = folder
    loop.tracker = build_tracker(config, folder.root, first_step=loop.step)
    display = display_of(loop, console, config.logging.progress)
    if hear is not None:
        hear(loop)
    try:
        with display:
            loop.fit()
    except Interrupted as error:
        message = f"{error}; saved. Continue with: {going_on(command, folder)}"
        raise Interrupted(error.signal_number, message) from None
    finally:
        loop.tracker.close()


def common_metrics(loop: Loop, device: torch.device, seed: int, folder: RunFolder) -> dict[str, Any]:
    """What the metrics of every training job end with."""
    return {
        "steps": loop.step,
        "seconds": loop.seconds,
        "seconds_per_step": loop.step_seconds / max(loop.step, 1),
        "peak_memory_bytes": peak_memory_bytes(device),
        "device": str(device),
        "precision": loop.precision,
        "threads": torch.get_num_threads(),
        "versions": {"nern": nern.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "seed": seed,
        "run_folder": str(folder.root),
    }
