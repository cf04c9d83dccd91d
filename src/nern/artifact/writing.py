"""Writing an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

import nern as package
from nern.artifact.codes import HELD
from nern.artifact.container import CODES, header_size
from nern.artifact.description import Description, NetworkDescription, nern_description
from nern.artifact.orderings import encode_ordering, paths
from nern.artifact.reading import PROBES, Artifact
from nern.artifact.tensors import How, encode_tensors
from nern.config import NernConfig
from nern.naming import joint_name
from nern.ordering.order import Ordering
from nern.representation.nern import NeRN


@dataclass(frozen=True)
class NetworkParts:
    """What an artifact holds of one network: its description, and all parameters and buffers that are not predicted."""

    description: NetworkDescription
    kept: Mapping[str, Tensor]


@dataclass(frozen=True)
class Holding:
    """How tensors are held, by name: the number of a step (`step_number`), `Coded`, 'f16', or 'as' they are; names that are
    missing: `otherwise`."""

    tensors: Mapping[str, How] = field(default_factory=dict)
    otherwise: str = "as"


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
    parts: dict[str, bytes] = {"META": b""}
    state = nern.predictor.state_dict()
    predictor_codes, code, parts["PRAW"] = encode_tensors(state, predictor.tensors, predictor.otherwise)
    parts[[*CODES][-1] if any(c.held in HELD for c in predictor_codes) else "PRED"] = code
    parts["ORDR"] = encode_ordering(ordering, shapes) if mode != "none" else b""
    kept_codes, parts["KEPT"], parts["KRAW"] = encode_tensors(all_kept, kept.tensors, kept.otherwise)
    parts["META"] = Description(
        writer=f"nern {package.__version__}",
        networks=[network.description for network in networks],
        nern=nern_description(config),
        ordering=mode,
        predictor=predictor_codes,
        kept=kept_codes,
        metadata=dict(metadata or {}),
    ).to_bytes()
    return {name: data for name, data in parts.items() if data}


def probed(sections: Mapping[str, bytes]) -> Artifact:
    """What a reader makes of these sections and their probes, which are added."""
    read = Artifact(sections, limit=2**62)
    return _with(read, "PROB", read.probes(read.predict()).numpy().astype("<f4").tobytes())


def described_anew(artifact: Artifact, description: Description) -> Artifact:
    """The same artifact with another description."""
    return _with(artifact, "META", description.to_bytes())


def _with(artifact: Artifact, section: str, data: bytes) -> Artifact:
    return Artifact(artifact.sections | {section: data}, limit=2**62)


def size_of(sections: Mapping[str, bytes]) -> int:
    """Bytes of the file that holds these sections and their probes."""
    parts = {"PROB": bytes(4 * PROBES), **sections}
    return header_size(len(parts)) + sum(len(data) for data in parts.values())
