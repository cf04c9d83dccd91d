"""The run folder: every file a run leaves, and where it lies.

config.yaml             the resolved configuration
ordering.safetensors    the ordering (absent with 'none')
kept.safetensors        parameters and buffers of the original that the NeRN does not represent
checkpoints/*.pt        best, last, step_N: the predictor's state dict; attached to it, what belongs to the same moment
state.pt                everything --resume needs
metrics.json            results
curves.png              losses, accuracy, errors of the layers
network.*               of train-original: weights (.safetensors), arguments (.json), card (.md)
events.out.tfevents.*   TensorBoard
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from nern.config import LoggingConfig
from nern.errors import NernError
from nern.files import existing_file, load_safetensors, load_torch, locked, save_torch
from nern.ordering.store import FILE_NAME as ORDERING_FILE
from nern.representation.grid import Quantised
from nern.untrusted import parse_json

STATE_VERSION = 1
# Where a state dict keeps what is attached: among the attributes in which PyTorch keeps versions of modules.
ATTACHED = "nern.checkpoint"


class RunFolder:
    """Paths and files of one run. `root` must exist."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config, self.state, self.metrics = (self.root / n for n in ("config.yaml", "state.pt", "metrics.json"))
        self.ordering, self.kept = self.root / ORDERING_FILE, self.root / "kept.safetensors"
        self.curves = self.root / "curves.png"

    @staticmethod
    @contextmanager
    def claimed(logging: LoggingConfig) -> Iterator[RunFolder]:
        """A new folder `log_dir/exp_name`, or with -2, -3, ... if there is one of that name; locked while entered.
        If nothing was saved in it when an error leaves the context, it is removed.

        Raises:
            NernError: it cannot be made.
        """
        base = Path(logging.log_dir).expanduser() / logging.exp_name
        with ExitStack() as lock:
            for number in itertools.count(1):
                folder = RunFolder(base if number == 1 else base.with_name(f"{base.name}-{number}"))
                try:
                    base.parent.mkdir(parents=True, exist_ok=True)
                    folder.root.mkdir()  # the claim: of several processes it succeeds in one
                except FileExistsError:
                    if base.parent.is_dir():
                        continue
                    raise NernError(f"the run folder {base} cannot be made; see logging.log_dir") from None
                except OSError as error:
                    reason = f"the run folder {folder.root} cannot be made ({error}); see logging.log_dir"
                    raise NernError(reason) from error
                lock.enter_context(folder.locked())
                break
            try:
                yield folder
            except BaseException:
                if not folder.state.is_file():
                    shutil.rmtree(folder.root, ignore_errors=True)
                raise

    @staticmethod
    def open(path: str | Path) -> RunFolder:
        """An existing run. Raises NernError if it is not one."""
        folder = RunFolder(Path(path).expanduser())
        if not folder.config.is_file():
            raise NernError(f"{path} is not a run folder: it has no config.yaml")
        return folder

    def locked(self) -> AbstractContextManager[None]:
        """While entered, no other process trains in this folder. Raises NernError if one does."""
        return locked(self.root, f"another process is training in {self.root}")

    def checkpoint(self, name: str) -> Path:
        """A predictor's state dict."""
        return self.root / "checkpoints" / f"{name}.pt"

    def save_checkpoint(
        self,
        name: str,
        predictor: Mapping[str, Tensor],
        beside: Mapping[str, Tensor],
        quantised: Quantised | None,
        record: Mapping[str, Any],
    ) -> None:
        """Write a checkpoint, all in one file.

        Args:
            predictor: its state dict.
            beside: parameters trained beside it: fully connected layer, norms.
            quantised: what its numbers were rounded to, where it was trained for that.
            record: 'step', and what was measured there.
        """
        state = OrderedDict((key, value.detach().cpu().clone()) for key, value in predictor.items())
        attached = {
            "beside": {key: value.detach().cpu().clone() for key, value in beside.items()},
            "quantised": None if quantised is None else quantised.to_json(),
            "record": dict(record),
        }
        self._check_there()
        state._metadata = {ATTACHED: attached}  # type: ignore[attr-defined]
        save_torch(self.checkpoint(name), state)

    def record(self, name: str) -> dict[str, Any] | None:
        """'step' of a checkpoint, and what was measured there; None: there is no such checkpoint, or it does not tell."""
        path = self.checkpoint(name)
        found = attached_to(path).get("record") if path.is_file() else None
        return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None

    def _check_there(self) -> None:
        """Raise FileNotFoundError if the folder is gone: it is not made a second time."""
        if not self.root.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.root))

    def save_state(self, state: dict[str, Any]) -> None:
        """Write what --resume needs: `state`, and the text of config.yaml, which a resumed run must not change."""
        self._check_there()
        save_torch(self.state, {"version": STATE_VERSION, "config": self.config.read_text(encoding="utf-8")} | state)

    def load_state(self) -> dict[str, Any]:
        """What `save_state` wrote. Raises NernError if it is missing, damaged or of another version."""
        if not self.state.is_file():
            raise NernError(f"{self.root} cannot be resumed: it has no state.pt (nothing was saved yet)")
        state = load_torch(self.state, "saved state")
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
            raise NernError(f"saved state {self.state} was not written by this version of nern")
        return state


def attached_to(checkpoint: str | Path) -> dict[str, Any]:
    """What a checkpoint holds beside the predictor; {}: nothing, like files of other programs and of earlier versions."""
    path = existing_file(checkpoint, "predictor checkpoint")
    if path.suffix == ".safetensors":
        return {}
    attributes = getattr(load_torch(path, "predictor checkpoint"), "_metadata", None)
    found = attributes.get(ATTACHED) if isinstance(attributes, dict) else None
    return found if isinstance(found, dict) else {}


def load_steps(checkpoint: str | Path) -> Quantised | None:
    """The steps of a checkpoint; None: it was not trained to be rounded. Raises NernError if they are damaged."""
    path, attached = Path(checkpoint), attached_to(checkpoint)
    former = path.with_suffix(".steps.json")
    try:
        if attached:
            values = attached.get("quantised")
            return None if values is None else Quantised.from_json(values)
        return Quantised.from_json(parse_json(former.read_bytes())) if former.is_file() else None
    except ValueError as error:
        raise NernError(f"{path if attached else former} is damaged: {error}") from error


def load_beside(
    checkpoint: str | Path, expected: Mapping[str, Tensor], optional: Collection[str] = ()
) -> dict[str, Tensor] | None:
    """Parameters trained beside the predictor of `checkpoint`, and as expected those `optional` ones that it does not hold;
    None: it holds none. Raises NernError if they do not fit `expected`."""
    path, attached = Path(checkpoint), attached_to(checkpoint)
    former = path.with_suffix(".kept.safetensors")
    if attached:
        found = attached.get("beside")
    else:
        found = load_safetensors(former, "parameters trained beside the predictor")[0] if former.is_file() else None
    if not found:
        return None
    for name, value in expected.items():
        held = found.get(name, value if name in optional else None) if isinstance(found, dict) else None
        if not isinstance(held, Tensor) or held.shape != value.shape:
            raise NernError(f"{path if attached else former} does not hold {name} of shape {tuple(value.shape)}")
    return {**expected, **{name: found[name] for name in expected if name in found}}
