"""The one registry: a dict and a decorator.

Everything a config chooses by name lives in one of the registries below. Registering a name twice is an error; asking
for an unknown one lists the choices.

    @dataclass
    class MySettings:
        rank: int = 4

    @PREDICTORS.register("mine", settings=MySettings)
    class MyPredictor(nn.Module):
        def __init__(self, *, settings: MySettings, **arguments): ...

    PREDICTORS["mine"]  # the class, given its settings with their defaults
    PREDICTORS[{"name": "mine", "rank": 8}]  # as a config writes it
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Generic, TypeVar, cast

from nern.errors import NernError, unknown_name
from nern.typed import hints_of, typed

T = TypeVar("T")

# Modules and packages that register what they have.
REGISTERING = (
    "objectives", "ordering", "originals.cifar_resnet", "originals.sources", "representation", "tasks",
    "training.optimizers", "training.schedules", "training.tracking", "training.weight_batches",
)  # fmt: skip


@cache
def _fill() -> None:
    """Import what registers itself; before anything is looked up."""
    for name in REGISTERING:
        importlib.import_module(f"nern.{name}")


Choice = str | dict[str, Any]  # a name, or {name: NAME} and settings


@dataclass(frozen=True)
class Entry(Generic[T]):
    """What is registered under a name."""

    component: T
    settings: type | None  # dataclass of what a config may give it, as its keyword argument `settings`; None: nothing
    info: dict[str, Any]  # facts about it, by which others know how to use it


class Registry(Generic[T]):
    """Names of one kind of thing, each with the thing itself, its settings and facts about it.

    Args:
        kind: what the entries are, in words, for error messages ("activation").
        facts: what `register` may tell of an entry, each with what it is if not told. None: anything.
        removed: names of entries that version 0.1.0 had.
    """

    def __init__(self, kind: str, facts: Mapping[str, Any] | None = None, removed: Sequence[str] = ()) -> None:
        self.kind, self.facts, self.removed = kind, facts, removed
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, *, settings: type | None = None, **info: Any) -> Callable[[T], T]:
        """Decorator that adds the decorated object under `name`.

        Raises:
            NernError: the name is taken; `settings` is no dataclass with defaults; a fact that is not known here.
        """
        if self.facts is not None:
            if unknown := [fact for fact in info if fact not in self.facts]:
                raise unknown_name(f"fact about a {self.kind}", unknown[0], self.facts)
            info = {**self.facts, **info}
        if settings is not None and not dataclasses.is_dataclass(settings):
            raise NernError(f"settings of {self.kind} {name!r} must be a dataclass, not {settings!r}")

        def add(entry: T) -> T:
            if name in self._entries:
                raise NernError(f"{self.kind} {name!r} is registered already (as {self._entries[name].component!r})")
            self._entries[name] = Entry(entry, settings, info)
            return entry

        return add

    def unregister(self, name: str) -> None:
        """Remove `name`; raises NernError if it is not there."""
        self.entry(name)
        del self._entries[name]

    def entry(self, choice: Choice) -> Entry[T]:
        """What is registered under the name of `choice`. Raises NernError, with the choices, if there is nothing."""
        _fill()
        name = name_of(choice)
        if name not in self._entries:
            error = unknown_name(self.kind, name, self._entries)
            raise NernError(f"{error} ({name!r} was removed; version 0.1.0 has it)") if name in self.removed else error
        return self._entries[name]

    def info(self, choice: Choice) -> dict[str, Any]:
        """Facts about an entry."""
        return self.entry(choice).info

    def __getitem__(self, choice: Choice) -> T:
        entry = self.entry(choice)
        given = {} if isinstance(choice, str) else {key: value for key, value in choice.items() if key != "name"}
        if entry.settings is None:
            if given:
                raise NernError(f"{self.kind} {name_of(choice)!r} has no settings, but {', '.join(given)} is given")
            return entry.component
        known = self.settings_of(choice)
        if unknown := [key for key in given if key not in known]:
            raise unknown_name(f"setting of {self.kind} {name_of(choice)!r}", unknown[0], known)
        hints, where = hints_of(entry.settings), f"{self.kind} {name_of(choice)!r}: "
        values = {key: typed(value, hints[key], where + key) for key, value in given.items()}
        component, made = cast(Any, entry.component), cast(Any, entry.settings)(**values)
        return cast(T, partial(component, settings=made))

    def settings_of(self, choice: Choice) -> set[str]:
        """Names of the settings that an entry has."""
        settings = self.entry(choice).settings
        return set() if settings is None else {field.name for field in dataclasses.fields(settings)}

    def __contains__(self, choice: object) -> bool:
        _fill()
        return isinstance(choice, str | dict) and name_of(choice) in self._entries

    def __iter__(self) -> Iterator[str]:
        _fill()
        return iter(self._entries)


def name_of(choice: Choice) -> str:
    """The name in a choice."""
    return choice if isinstance(choice, str) else str(choice.get("name"))


LOSS_FACTS = {"by_image": False, "any_precision": False, "pooled": False}
ORIGINALS: Registry[Any] = Registry("original network (task.original_model_name)")
TASKS: Registry[Any] = Registry("task (task.task_name)")
RANDOM_IMAGES: Registry[Any] = Registry("kind of made-up images (task.random_data)", removed=("spectrum", "inversion"))
PREDICTORS: Registry[Any] = Registry("predictor (nern.method)", {"num_idxs": 3, "of_kernels": False})
ACTIVATIONS: Registry[Any] = Registry("activation (nern.act_layer)")
NORM_LAYERS: Registry[Any] = Registry("norm layer (nern.norm_layer)")
INITS: Registry[Any] = Registry("initialisation (nern.init)")
ENCODINGS: Registry[Any] = Registry("encoding (nern.embeddings.type)", {"by_order": False})
ORDERINGS: Registry[Any] = Registry("ordering (nern.embeddings.permutations.permute_mode)", removed=("channels",))
SAMPLING_MODES: Registry[Any] = Registry("sampling mode (nern.sampling_mode)")
WEIGHT_BATCHES: Registry[Any] = Registry(
    "weight batch method (nern.weights_batch_method)", {"needs_size": False, "whole_filters": False}
)
RECONSTRUCTION_LOSSES: Registry[Any] = Registry("reconstruction loss (nern.reconstruction_loss_type)", LOSS_FACTS)
FEATURE_MAP_LOSSES: Registry[Any] = Registry("feature-map loss (nern.attention_loss_type)", LOSS_FACTS)
DISTILLATION_LOSSES: Registry[Any] = Registry("distillation loss (nern.distillation_loss_type)", LOSS_FACTS)
TASK_LOSSES: Registry[Any] = Registry("task loss (nern.task_loss_type)", LOSS_FACTS)
LOSS_TERMS: Registry[Any] = Registry("loss term (nern.losses)", {"by_image": False, "maps": False})
SMOOTHNESS: Registry[Any] = Registry("smoothness measure")
OPTIMIZERS: Registry[Any] = Registry("optimizer (optim.optimizer_type)", {})
SCHEDULES: Registry[Any] = Registry("learning-rate schedule (optim.lr_scheduler_type)", {"rises": False})
TRACKERS: Registry[Any] = Registry("tracker (logging.tracker)")
