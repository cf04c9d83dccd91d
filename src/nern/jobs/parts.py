"""What a file holds of one network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nern.artifact import NetworkParts
from nern.artifact.description import NetworkDescription, represented_as
from nern.files import tensors_of
from nern.originals.base import Original
from nern.registry import ORIGINALS


def network_parts(original: Original, name: str | None, task_name: str | None) -> NetworkParts:
    """What an artifact holds of one network. `name`: how it is built; None: that is not known, or not the task of its
    images."""
    state = tensors_of(original.network)
    first: dict[int, str] = {}
    for key, value in state.items():
        first.setdefault(id(value), key)
    aliases = {key: first[id(value)] for key, value in state.items() if first[id(value)] != key}
    represented = represented_as({first[id(weight)]: weight for weight in original.weights})
    kept = {key: value for key, value in original.kept().items() if key not in aliases}
    source = (name or "").rpartition(":")[0]
    known = name is not None and (source in ("torchvision", "timm") or (not source and name in ORIGINALS))
    arguments = dict(getattr(original.network, "built_with", {})) if known else {}
    about: dict[str, Any] = {} if task_name is None else {"task": task_name}
    built_as = name if known else None
    shown = Path(name or original.name).name
    return NetworkParts(NetworkDescription(shown, built_as, arguments, represented, aliases, about), kept)
