"""The one registry: a dict and a decorator.

Everything a config chooses by name lives in one of the registries below. Registering a name twice is an error; asking
for an unknown one lists the choices.

    @PREDICTORS.register("mine")
    class MyPredictor(nn.Module): ...

    PREDICTORS["mine"]
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

from nern.errors import NernError, unknown_name

T = TypeVar("T")

# Those that register what they have.
PACKAGES = ("objectives", "ordering", "originals", "representation", "tasks", "training")


@cache
def _fill() -> None:
    """Import what registers itself; before anything is looked up."""
    for name in PACKAGES:
        importlib.import_module(f"nern.{name}")


class Registry(Generic[T]):
    """Names of one kind of thing, each with the thing itself and optional facts about it (`info`).

    Args:
        kind: what the entries are, in words, for error messages ("activation").
        removed: names of entries that version 0.1.0 had.
    """

    def __init__(self, kind: str, removed: Sequence[str] = ()) -> None:
        self.kind, self.removed = kind, removed
        self._entries: dict[str, T] = {}
        self._info: dict[str, dict[str, Any]] = {}

    def register(self, name: str, **info: Any) -> Callable[[T], T]:
        """Decorator that adds the decorated object under `name`. Raises NernError if the name is taken."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise NernError(f"{self.kind} {name!r} is registered already (as {self._entries[name]!r})")
            self._entries[name] = entry
            self._info[name] = info
            return entry

        return add

    def unregister(self, name: str) -> None:
        """Remove `name`; raises NernError if it is not there."""
        self[name]
        del self._entries[name], self._info[name]

    def info(self, name: str) -> dict[str, Any]:
        """The keyword arguments `name` was registered with."""
        self[name]
        return self._info[name]

    def __getitem__(self, name: str) -> T:
        _fill()
        if name not in self._entries:
            error = unknown_name(self.kind, name, self._entries)
            raise NernError(f"{error} ({name!r} was removed; version 0.1.0 has it)") if name in self.removed else error
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        _fill()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        _fill()
        return iter(self._entries)


ORIGINALS: Registry[Any] = Registry("original network (task.original_model_name)")
TASKS: Registry[Any] = Registry("task (task.task_name)")
RANDOM_IMAGES: Registry[Any] = Registry("kind of made-up images (task.random_data)", removed=("spectrum",))
PREDICTORS: Registry[Any] = Registry("predictor (nern.method)")
ACTIVATIONS: Registry[Any] = Registry("activation (nern.act_layer)")
NORM_LAYERS: Registry[Any] = Registry("norm layer (nern.norm_layer)")
INITS: Registry[Any] = Registry("initialisation (nern.init)")
ENCODINGS: Registry[Any] = Registry("encoding (nern.embeddings.type)")
ORDERINGS: Registry[Any] = Registry("ordering (nern.embeddings.permutations.permute_mode)", removed=("channels",))
SAMPLING_MODES: Registry[Any] = Registry("sampling mode (nern.sampling_mode)")
WEIGHT_BATCHES: Registry[Any] = Registry("weight batch method (nern.weights_batch_method)")
RECONSTRUCTION_LOSSES: Registry[Any] = Registry("reconstruction loss (nern.reconstruction_loss_type)")
FEATURE_MAP_LOSSES: Registry[Any] = Registry("feature-map loss (nern.attention_loss_type)")
DISTILLATION_LOSSES: Registry[Any] = Registry("distillation loss (nern.distillation_loss_type)")
TASK_LOSSES: Registry[Any] = Registry("task loss (nern.task_loss_type)")
SMOOTHNESS: Registry[Any] = Registry("smoothness measure")
OPTIMIZERS: Registry[Any] = Registry("optimizer (optim.optimizer_type)")
SCHEDULES: Registry[Any] = Registry("learning-rate schedule (optim.lr_scheduler_type)")
TRACKERS: Registry[Any] = Registry("tracker (logging.tracker)")
