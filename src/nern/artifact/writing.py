"""Writing an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

import nern as package
from nern.artifact.container import header_size, write_container
from nern.artifact.description import Description, NetworkDescription, nern_description
from nern.artifact.orderings import encode_ordering, paths
from nern.artifact.reading import PROBES, Artifact
from nern.artifact.tensors import NAMES, encode_tensors
from nern.config import NernConfig
from nern.naming import joint_name
from nern.ordering.order import Ordering
from nern.representation.nern import NeRN

Held = Mapping[str, int | str]


@dataclass(frozen=True)
class NetworkParts:
    """What an artifact holds of one network.

    Args:
        name: in words.
        architecture, arguments: how it is built (see `NetworkDescription`).
        represented: its predicted weights by name, of which shapes and kinds matter.
        kept: all other parameters and buffers.
        aliases: further names of tensors of either.
        about: what else is known.
    """

    name: str
    architecture: str | None
    arguments: dict[str, Any]
    represented: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    aliases: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def description(self) -> NetworkDescription:
        """Of this network."""
        represented = [(name, tuple(w.shape), NAMES[w.dtype]) for name, w in self.represented.items()]
        return NetworkDescription(self.name, self.architecture, self.arguments, represented, self.aliases, self.about)


@dataclass(frozen=True)
class Holding:
    """How tensors are held, by name: the number of a step (`step_number`), 'f16', or 'as' they are; names that are missing:
    `otherwise`."""

    tensors: Mapping[str, int | str] = field(default_factory=dict)
    otherwise: str = "as"

    def of(self, names: Mapping[str, Tensor]) -> dict[str, int | str]:
        """For each of these names."""
        return {name: self.tensors.get(name, self.otherwise) for name in names}


def encoded(
    nern: NeRN,
    config: NernConfig,
    ordering: Ordering,
    networks: Sequence[NetworkParts],
    predictor: Holding = Holding(),
    kept: Holding = Holding(),
    metadata: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
    """A NeRN, and all that its networks have besides, as the sections of an artifact; all but the probes, for which its
    weights have to be predicted (`probed`).

    Args:
        nern: with its trained predictor.
        config: that it was built by.
        ordering: of the kernels.
        networks: in the order of the NeRN's kernel table.
        predictor: how the predictor's tensors are held.
        kept: how the tensors are held that are not predicted; of several networks they are named '0.NAME', '1.NAME', ...
        metadata: text by name, yours.

    Raises:
        NernError: a tensor that cannot be held as asked for.
    """
    shapes, count = nern.table.shapes, len(networks)
    mode = ordering.mode if any(paths(ordering.mode, shape) for shape in shapes) else "none"
    all_kept = {joint_name(name, i, count): t for i, network in enumerate(networks) for name, t in network.kept.items()}
    state = nern.predictor.state_dict()
    parts: dict[str, bytes] = {"META": b""}
    predictor_codes, parts["PRED"], parts["PRAW"] = encode_tensors(state, predictor.of(state))
    parts["ORDR"] = encode_ordering(ordering, shapes) if mode != "none" else b""
    kept_codes, parts["KEPT"], parts["KRAW"] = encode_tensors(all_kept, kept.of(all_kept))
    parts["META"] = Description(
        writer=f"nern {package.__version__}",
        networks=[network.description() for network in networks],
        nern=nern_description(config),
        ordering=mode,
        predictor=predictor_codes,
        kept=kept_codes,
        metadata=dict(metadata or {}),
    ).to_bytes()
    return {name: data for name, data in parts.items() if data}


def probed(sections: Mapping[str, bytes]) -> tuple[dict[str, bytes], Artifact]:
    """The sections with their probes; and what a reader makes of these."""
    read = Artifact(sections, limit=2**62)
    whole = dict(sections) | {"PROB": read.probes(read.predict()).numpy().astype("<f4").tobytes()}
    return whole, Artifact(whole, limit=2**62)


def size_of(sections: Mapping[str, bytes]) -> int:
    """Bytes of the file that holds these sections and their probes."""
    parts = {"PROB": bytes(4 * PROBES), **sections}
    return header_size(len(parts)) + sum(len(data) for data in parts.values())


def described_anew(sections: Mapping[str, bytes], description: Description) -> tuple[dict[str, bytes], Artifact]:
    """The same artifact with another description."""
    changed = dict(sections) | {"META": description.to_bytes()}
    return changed, Artifact(changed, limit=2**62)


def write_artifact(path: str | Path, sections: Mapping[str, bytes]) -> int:
    """Write the sections of an artifact, atomically; the bytes of the file. Raises NernError where that cannot be."""
    write_container(path, sections)
    return Path(path).stat().st_size
