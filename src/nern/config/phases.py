"""Phases: the list of what a run does, step by step, each with its own losses, errors, optimizer and batches.

In a file or mapping a phase can also be set by its name: `distillation: {iterations: 3000}`, or on the command line
`--distillation.iterations 3000`, changes the phase of that name in the list that lies beneath.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from nern.errors import NernError
from nern.registry import Choice
from nern.typed import FromZero

LENGTHS = ("iterations", "epochs")  # keys of a phase that set its steps
CURVATURE_IMAGES, ROUNDING_IMAGES = 1024, 128  # what `images` null means

# What each known phase is, but for what a config sets. A config may have others, with any name.
KNOWN: dict[str, dict[str, Any]] = {
    "reconstruction": {"losses": ["reconstruction"]},
    "refinement": {"losses": ["reconstruction"], "errors": "curvature", "images": CURVATURE_IMAGES},
    "distillation": {},
    "quantisation": {"bits": 6.0, "images": ROUNDING_IMAGES},
}


@dataclass(kw_only=True)
class PhaseConfig:
    """A phase: consecutive steps with their own losses, optimizer and schedule. null: as for the whole run."""

    name: str
    """Name of the phase and of the checkpoint at its end. 'reconstruction', 'refinement', 'distillation' and 'quantisation'
    have defaults of their own; other names have none."""
    iterations: FromZero | None = None
    """Length in steps; give this or `epochs`. Both null: the phase is left out. 0: no steps, but `errors` holds from here
    on."""
    epochs: FromZero | None = None
    """Length in epochs of the training images; give this or `iterations`."""
    losses: list[str] | None = None
    """Losses of the phase: 'reconstruction', 'feature_maps', 'distillation', 'task'. Only those with a weight above 0 count.
    With 'reconstruction' alone steps need no images. null: all."""
    errors: str | None = None
    """Weighting of errors in the reconstruction loss: 'plain' (all weights alike), 'curvature' (by the effect on the
    outputs: K-FAC, measured at the start of the phase). null: as in the phase before; in the first phase plain."""
    bits: float | None = None
    """Average bits of a number of the predictor after entropy coding. In every step its numbers are rounded as in a packed
    file, and `nern pack` takes these steps of rounding over. Each tensor has a step of its own, chosen by the effect of
    rounding on the outputs. null: no rounding."""
    images: FromZero | None = None
    """Number of training images on which the curvature or the effect of rounding is measured. null: 1,024 for curvature, 128
    for rounding. Without images curvature is measured on normal noise, and rounding (also with 0) on the weights."""
    weights_batch_method: Choice | None = None
    """As nern.weights_batch_method, for this phase. With errors 'curvature' and nern.reconstruction_rows 'drawn' it must
    draw whole filters."""
    weights_batch_size: FromZero | None = None
    """As nern.weights_batch_size, for this phase. 0: no limit, even if nern.weights_batch_size sets one."""
    optim: dict[str, Any] = field(default_factory=dict)
    """Keys of `optim` for this phase. A key that is left out or null has the value in `optim`. 0 for a limit of gradients:
    off, even if `optim` sets one."""

    def __post_init__(self) -> None:
        self.optim = {key: tuple(value) if isinstance(value, list) else value for key, value in self.optim.items()}

    @property
    def runs(self) -> bool:
        """Whether the phase has a part in the run."""
        return self.iterations is not None or self.epochs is not None

    @property
    def length(self) -> int:
        """Its steps or epochs."""
        return (self.epochs or 0) if self.iterations is None else self.iterations

    @property
    def needs_images(self) -> bool:
        """Whether its losses are of images, too."""
        return self.losses != ["reconstruction"]


def place_of(name: str, names: Iterable[str]) -> int:
    """Where a known phase that is added stands among others: before the known ones that follow it."""
    order, listed = list(KNOWN), list(names)
    later = order[order.index(name) + 1 :]
    return next((place for place, other in enumerate(listed) if other in later), len(listed))


def section_names(*layers: Mapping[str, Any]) -> list[str]:
    """Names under which a layer may set phases: the known ones, and those of the lists in these layers."""
    listed = [item.get("name") for layer in layers for item in _items(layer)]
    return list(dict.fromkeys([*KNOWN, *(name for name in listed if isinstance(name, str))]))


def sections_of(values: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """What `values` sets for each phase, in its list or by name."""
    found: dict[str, dict[str, Any]] = {str(item.get("name")): dict(item) for item in _items(values)}
    for name in names or section_names(values):
        if isinstance(values.get(name), Mapping):
            found[name] = found.get(name, {}) | values[name]
    return found


def listed_phases(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, nested and merged, with all phases in the list `phases`: each what it is by its name, then what the list and
    the section of its name say. Known ones without steps or settings are left out.

    Raises:
        NernError: an item of the list has no name, or two have one name.
    """
    items: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(_items(values)):
        name = item.get("name")
        if not isinstance(name, str):
            raise NernError(f"phases: item {number + 1} needs a name (one of {', '.join(KNOWN)}, or another)")
        if name in items:
            raise NernError(f"phases: two are named {name!r}; names must differ")
        items[name] = dict(item)
    names = section_names(values)
    for name in names:
        section = values.get(name)
        if isinstance(section, Mapping) and (name in items or _says_something(section)):
            items = items if name in items else _with_room(items, name)
            items[name] = _merged(items[name], section)
    asked_for = {item["name"] for item in _items(values)}
    full = {name: _merged({"name": name} | KNOWN.get(name, {}), item) for name, item in items.items()}
    usual = {name: _merged({"name": name} | keys, {}) for name, keys in KNOWN.items()}
    phases = [item for name, item in full.items() if name in asked_for or item != usual[name]]
    rest = {name: value for name, value in values.items() if name not in names and name != "phases"}
    return rest | ({"phases": phases} if phases or "phases" in values else {})


def without_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without anything about phases: what a list of phases takes the place of."""
    gone = {"phases", *section_names(values)}
    return {name: value for name, value in values.items() if name not in gone}


def settings_of(phase: PhaseConfig) -> dict[str, Any]:
    """What a phase sets otherwise than its name alone would."""
    usual = PhaseConfig(name=phase.name, **KNOWN.get(phase.name, {}))
    return {f.name: getattr(phase, f.name) for f in fields(phase) if getattr(phase, f.name) != getattr(usual, f.name)}


def _items(values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The items of the list `phases`, as far as it is one."""
    items = values.get("phases")
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []


def _merged(item: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """`section` over `item`; null takes a key back to its default."""
    optim = {**(item.get("optim") or {}), **(section.get("optim") or {})}
    both = {**item, **section, "optim": {key: value for key, value in optim.items() if value is not None}}
    return {key: value for key, value in both.items() if value is not None}


def _says_something(section: Mapping[str, Any]) -> bool:
    return any(_says_something(v) if isinstance(v, Mapping) else v is not None for v in section.values())


def _with_room(items: Mapping[str, dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    """`items` and an empty one of this known name, before the known ones that follow it."""
    before, listed = place_of(name, items), list(items.items())
    return dict([*listed[:before], (name, {}), *listed[before:]])
