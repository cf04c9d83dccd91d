"""What several files of tests need around runs."""

from __future__ import annotations

import dataclasses
import io
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import nern
from nern import Config
from nern.experiment import build_experiment
from nern.originals.cifar_resnet import CifarResNet
from nern.registry import TASKS
from nern.stopping import Interrupted
from nern.training.loop import Loop
from nern.training.run_folder import RunFolder, attached_to
from nern.training.trainer import Trainer

# A run of a few steps on digits; without its length and the original's weights.
TINY: dict[str, Any] = {
    "nern.hidden_layer_size": 8,
    "nern.embeddings.enc_levels": 4,
    "task.task_name": "digits",
    "task.original_model_name": "ResNet8",
    "logging.tracker": "none",
    "evaluation.held_out_images": 20,
    "evaluation.test_images": 20,
    "batch_size": 8,
    "eval_epochs_interval": None,
    "save_epochs_interval": None,
}
LOSSES: dict[str, Any] = {  # all of the published ones, of steps at a constant rate
    "nern.attention_loss_weight": 0.3,
    "nern.distillation_loss_weight": 0.2,
    "nern.reconstruction_loss_weight": 0.7,
    "optim.lr_scheduler_type": "constant",
    "epochs": None,
}
SHORT: dict[str, Any] = TINY | {
    "nern.weights_batch_size": 64,
    "optim.lr": 5e-3,
    "logging.log_interval": 1,
    "evaluation.test_images": 40,
    "epochs": None,
}


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


Run = Callable[..., Ended]


def quiet() -> Console:
    """A console that shows nothing."""
    return Console(file=io.StringIO())


@contextmanager
def without_pictures() -> Iterator[None]:
    """Leaves the pictures of runs out, the slowest part of short ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nern.analysis.plots.plot_run", lambda *args: None)
        yield


def without_digits(patch: pytest.MonkeyPatch) -> None:
    """The task digits is known, but loading it would fail."""
    patch.setitem(TASKS._entries, "digits", dataclasses.replace(TASKS.entry("digits"), component=None))


def small_resnet(seed: int = 3, **changes: Any) -> CifarResNet:
    """A very small ResNet for digits with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CifarResNet(8, **{"in_channels": 1, "widths": [4, 6, 8]} | changes)


def moments(network: nn.Module, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance of each norm's outputs."""
    found: list[tuple[Tensor, Tensor]] = []

    def note(m: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.append((output.mean((0, 2, 3)), output.var((0, 2, 3), correction=0)))

    handles = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return found


def train(config: Config) -> RunFolder:
    """The folder of a run of this config."""
    return RunFolder(nern.train(config, quiet())["run_folder"])


def resume(folder: RunFolder) -> RunFolder:
    """The folder of a run that is continued."""
    return RunFolder(nern.resume(folder.root, quiet())["run_folder"])


def interrupted(config: Config, step: int) -> RunFolder:
    """The folder of a run that Ctrl-C ended when `step` steps were done."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Interrupted, match=rf"stopped at step {step} of \d+; saved"):
            nern.train(config, quiet())
    folder = RunFolder(max(Path(config.logging.log_dir).iterdir(), key=lambda path: path.stat().st_mtime_ns))
    assert folder.load_state()["step"] == step
    return folder


def build(config: Config) -> Trainer:
    """The trainer of a run of this config, which writes nothing."""
    return build_experiment(config).trainer()


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, in containers of any depth."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def assert_same_result(a: RunFolder, b: RunFolder) -> None:
    """Two runs saved the same state and the same checkpoints, with all that belongs to them."""
    state_a, state_b = a.load_state(), b.load_state()
    assert state_a.keys() == state_b.keys()
    for key in state_a.keys() - {"config", "seconds", "step_seconds"}:
        assert same(state_a[key], state_b[key]), key
    files = [{file.name for file in (folder.root / "checkpoints").iterdir()} for folder in (a, b)]
    assert files[0] == files[1]
    for name in sorted(files[0]):
        one, other = (folder.root / "checkpoints" / name for folder in (a, b))
        assert same(torch.load(one), torch.load(other)), name
        assert same(attached_to(one), attached_to(other)), name


def stop_after(
    patch: pytest.MonkeyPatch, step: int, number: signal.Signals = signal.SIGINT, loop: type[Loop] = Trainer
) -> None:
    """Presses Ctrl-C, or sends another signal, when `step` steps of training are done."""
    do_step = loop.do_step

    def stopping(self: Loop) -> Any:
        losses = do_step(self)
        if self.step == step:
            signal.raise_signal(number)
        return losses

    patch.setattr(loop, "do_step", stopping)


def random_weights(shapes: Sequence[tuple[int, ...]], seed: int = 0) -> list[torch.Tensor]:
    """Normal numbers, of these shapes."""
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng) for shape in shapes]
