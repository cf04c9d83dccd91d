"""The run folder: every file a run leaves, and where it lies.

config.yaml             the resolved configuration
ordering.safetensors    the ordering (absent with 'none')
kept.safetensors        parameters and buffers of the original that the NeRN does not represent
checkpoints/*.pt        predictor state dicts: best, last, step_N
checkpoints/*.steps.json  what the predictor's numbers were rounded to, where it was trained for that
checkpoints/*.kept.safetensors   parameters trained beside the predictor: fully connected layer, norms
state.pt                everything --resume needs
metrics.json            results
curves.png              losses, accuracy, errors of the layers
network.*               of train-original: weights (.safetensors), arguments (.json), card (.md)
events.out.tfevents.*   TensorBoard
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from nern.config import LoggingConfig
from nern.errors import NernError
from nern.files import load_safetensors, load_torch, save_safetensors, save_torch, write_json
from nern.ordering.store import FILE_NAME as ORDERING_FILE
from nern.representation.grid import Quantised

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STATE_VERSION = 1


class RunFolder:
    """Paths and files of one run. `root` must exist."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    @staticmethod
    def create(logging: LoggingConfig) -> RunFolder:
        """A new folder `log_dir/exp_name`, or with -2, -3, ... if that holds a run already."""
        base = Path(logging.log_dir).expanduser() / logging.exp_name
        number, root = 1, base
        while True:
            try:
                root.mkdir(parents=True)
                return RunFolder(root)
            except FileExistsError:
                if root.is_dir() and not any(root.iterdir()):
                    return RunFolder(root)
                number += 1
                root = base.with_name(f"{base.name}-{number}")
            except OSError as error:
                raise NernError(f"the run folder {root} cannot be made ({error}); see logging.log_dir") from error

    @staticmethod
    def open(path: str | Path) -> RunFolder:
        """An existing run. Raises NernError if it is not one."""
        folder = RunFolder(Path(path).expanduser())
        if not folder.config.is_file():
            raise NernError(f"{path} is not a run folder: it has no config.yaml")
        return folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While entered, no other process trains in this folder (where the system has file locks). Raises NernError if
        one does."""
        with self.config.open() as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise NernError(f"another process is training in {self.root}") from error
            try:
                yield
            finally:
                if fcntl is not None:  # closing would not do: data-loader workers hold copies of the file
                    fcntl.flock(file, fcntl.LOCK_UN)

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.yaml"

    @property
    def state(self) -> Path:
        """What --resume reads."""
        return self.root / "state.pt"

    @property
    def ordering(self) -> Path:
        """The ordering's file."""
        return self.root / ORDERING_FILE

    @property
    def kept(self) -> Path:
        """Parameters and buffers that are not represented."""
        return self.root / "kept.safetensors"

    @property
    def metrics(self) -> Path:
        """The results."""
        return self.root / "metrics.json"

    @property
    def curves(self) -> Path:
        """The picture."""
        return self.root / "curves.png"

    def checkpoint(self, name: str) -> Path:
        """A predictor's state dict."""
        return self.root / "checkpoints" / f"{name}.pt"

    def save_checkpoint(
        self,
        name: str,
        predictor: Mapping[str, Tensor],
        extra: Mapping[str, Tensor],
        quantised: Quantised | None = None,
    ) -> None:
        """Write a predictor (and trained parameters besides it, and the steps that it is rounded to)."""
        if quantised is not None:
            write_json(steps_path(self.checkpoint(name)), quantised.to_json())
        if extra:
            save_safetensors(extra_path(self.checkpoint(name)), extra)
        save_torch(self.checkpoint(name), {k: v.detach().cpu().clone() for k, v in predictor.items()})

    def save_state(self, state: dict[str, Any]) -> None:
        """Write what --resume needs: `state`, and the text of config.yaml, which a resumed run must not change."""
        save_torch(self.state, {"version": STATE_VERSION, "config": self.config.read_text(encoding="utf-8")} | state)

    def load_state(self) -> dict[str, Any]:
        """What `save_state` wrote. Raises NernError if it is missing, damaged or of another version."""
        if not self.state.is_file():
            raise NernError(f"{self.root} cannot be resumed: it has no state.pt (nothing was saved yet)")
        state = load_torch(self.state, "saved state")
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
            raise NernError(f"saved state {self.state} was not written by this version of nern")
        return state


def extra_path(checkpoint: str | Path) -> Path:
    """Where parameters trained beside the predictor lie."""
    return Path(checkpoint).with_suffix(".kept.safetensors")


def steps_path(checkpoint: str | Path) -> Path:
    """Where the steps lie that the predictor's numbers were rounded to in training."""
    return Path(checkpoint).with_suffix(".steps.json")


def load_steps(checkpoint: str | Path) -> Quantised | None:
    """The steps of a checkpoint; None: it was not trained to be rounded. Raises NernError if the file is damaged."""
    path = steps_path(checkpoint)
    if not path.is_file():
        return None
    try:
        return Quantised.from_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise NernError(f"{path} is damaged: {error}") from error


def load_extra(checkpoint: str | Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters trained beside the predictor of `checkpoint`. Raises NernError if they do not fit `expected`."""
    path = extra_path(checkpoint)
    tensors, _ = load_safetensors(path, "parameters trained beside the predictor (learn_fc_layer, learn_norms)")
    for name, value in expected.items():
        if name not in tensors or tensors[name].shape != value.shape:
            raise NernError(f"{path} does not hold {name} of shape {tuple(value.shape)}")
    return tensors
