"""What an artifact says of itself, as JSON: networks, how the NeRN is built, how every tensor is held.

Read strictly: kinds and sizes are checked before anything is made of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nern.artifact.tensors import TensorCode
from nern.config import EmbeddingsConfig, NernConfig
from nern.errors import NernError
from nern.representation.kernels import KernelTable, kernel_shape

MOST_BYTES = 2**24  # of the description, unpacked
# What the NeRN of an artifact is built from: keys of `nern`, and of `nern.embeddings`.
NERN_KEYS = (
    "method", "hidden_layer_size", "num_blocks", "act_layer", "norm_layer", "heads", "output_size", "sampling_mode",
    "output_scales",
)  # fmt: skip
EMBEDDING_KEYS = (
    "type", "num_idxs", "enc_levels", "base", "fusion_mode", "gauss_scale", "bandwidth", "normalization_mode",
)  # fmt: skip


@dataclass(frozen=True)
class NetworkDescription:
    """One of the networks of an artifact.

    Args:
        name: in words.
        architecture: how it is built: a registered name ('ResNet20', 'timm:resnet18', ...); None: it is not known, and there
            is the state dict only.
        arguments: of the architecture.
        represented: of each predicted weight: name, shape, dtype ('f32', ...).
        aliases: further names of tensors, and the names under which they are held.
        about: what else is known, such as the task and the accuracy.
    """

    name: str
    architecture: str | None
    arguments: dict[str, Any]
    represented: list[tuple[str, tuple[int, ...], str]]
    aliases: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        """Predicted weights."""
        return sum(math.prod(shape) for _, shape, _ in self.represented)


@dataclass(frozen=True)
class Description:
    """Everything an artifact says of itself.

    Args:
        writer: what wrote it.
        networks: see there.
        nern: how the NeRN is built: `NERN_KEYS` and, as 'embeddings', `EMBEDDING_KEYS`.
        ordering: mode of the ordering.
        predictor: how the predictor's tensors are held.
        kept: how all tensors are held that are not predicted; of several networks named '0:NAME', '1:NAME', ...
        outliers: how many weights are kept apart, and the largest step from the place of one to that of the next.
        metadata: the user's, text by name.
    """

    writer: str
    networks: list[NetworkDescription]
    nern: dict[str, Any]
    ordering: str
    predictor: list[TensorCode]
    kept: list[TensorCode]
    outliers: tuple[int, int] = (0, 0)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def table(self) -> KernelTable:
        """Geometry of the predicted weights."""
        shapes = tuple(shape for network in self.networks for _, shape, _ in network.represented)
        numbers = tuple(number for number, network in enumerate(self.networks) for _ in network.represented)
        several = numbers if len(self.networks) > 1 else ()
        num_idxs = 5 if self.nern["method"] == "basic" else 3
        return KernelTable(tuple(kernel_shape(shape) for shape in shapes), num_idxs, shapes, several)

    @property
    def config(self) -> NernConfig:
        """The NeRN's configuration, as far as it matters for what it predicts."""
        own = {key: value for key, value in self.nern.items() if key != "embeddings"}
        return NernConfig(**own, embeddings=EmbeddingsConfig(**self.nern["embeddings"]))

    @property
    def values(self) -> int:
        """Numbers that reading it makes: predicted weights, and all that is stored."""
        return sum(n.weights for n in self.networks) + sum(c.count for c in (*self.predictor, *self.kept))

    def to_bytes(self) -> bytes:
        """As JSON, compressed by zlib."""
        own: dict[str, Any] = {name: [c.to_json() for c in getattr(self, name)] for name in ("predictor", "kept")}
        own["outliers"] = list(self.outliers) if self.outliers[0] else []
        networks = [_without_empty(dataclasses.asdict(network)) for network in self.networks]
        whole = {"writer": self.writer, "networks": networks, "nern": self.nern, "ordering": self.ordering}
        text = json.dumps(
            _without_empty(whole | own | {"metadata": self.metadata}), separators=(",", ":"), allow_nan=False
        )
        return zlib.compress(text.encode(), 9)

    @staticmethod
    def from_bytes(data: bytes) -> Description:
        """What `to_bytes` gave. Raises NernError for anything else."""
        return _description(_json(data))


def nern_description(config: NernConfig) -> dict[str, Any]:
    """What a NeRN is built from."""
    embeddings = {key: getattr(config.embeddings, key) for key in EMBEDDING_KEYS}
    own = {key: getattr(config, key) for key in NERN_KEYS}
    return own | {"heads": config.kind_of_heads, "embeddings": embeddings}


def _without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in ({}, [], None)}


def _json(data: bytes) -> dict[str, Any]:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MOST_BYTES)
        whole = unpacker.eof and not unpacker.unused_data
        value = json.loads(text.decode()) if whole else None
    except (zlib.error, ValueError, RecursionError) as error:
        raise NernError(f"its description cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise NernError(f"its description is no JSON object of at most {MOST_BYTES:,} bytes")
    return value


def _description(value: dict[str, Any]) -> Description:
    networks = [_network(item) for item in _take(value, "networks", list)]
    if not networks:
        raise NernError("its description names no network")
    nern, codes = _take(value, "nern", dict), {}
    for name in ("predictor", "kept"):
        codes[name] = [TensorCode.from_json(item) for item in _take(value, name, list, [])]
        names = [c.name for c in codes[name]]
        if len(set(names)) < len(names):
            raise NernError(f"its description names a tensor twice among {name}")
    outliers = _take(value, "outliers", list, []) or [0, 0]
    if len(outliers) != 2 or not all(type(number) is int and 0 <= number < 2**40 for number in outliers):
        raise NernError("its description has outliers that are no two numbers")
    metadata = _take(value, "metadata", dict, {})
    if not all(isinstance(item, str) for item in metadata.values()):
        raise NernError("metadata of its description is not all text")
    nern = {key: nern.get(key) for key in NERN_KEYS} | {"embeddings": _embeddings(_take(nern, "embeddings", dict))}
    _check_nern(nern)
    writer, ordering = _take(value, "writer", str), _take(value, "ordering", str)
    return Description(writer, networks, nern, ordering, **codes, outliers=tuple(outliers), metadata=metadata)


def _network(value: Any) -> NetworkDescription:
    if not isinstance(value, dict):
        raise NernError("its description of a network is no object")
    represented = []
    for item in _take(value, "represented", list):
        code = TensorCode.from_json([*item, "as"] if isinstance(item, list) else item)
        kernel_shape(code.shape)
        represented.append((code.name, code.shape, code.dtype))
    aliases, architecture = _take(value, "aliases", dict, {}), value.get("architecture")
    if not represented or not all(isinstance(name, str) for name in aliases.values()):
        raise NernError("its description of a network names no predicted weights, or tensors by no names")
    if architecture is not None and not isinstance(architecture, str):
        raise NernError("its description of a network has an architecture that is no name")
    arguments, about = _take(value, "arguments", dict, {}), _take(value, "about", dict, {})
    return NetworkDescription(_take(value, "name", str), architecture, arguments, represented, aliases, about)


def _embeddings(value: dict[str, Any]) -> dict[str, Any]:
    return {key: value.get(key) for key in EMBEDDING_KEYS}


def _check_nern(nern: dict[str, Any]) -> None:
    """Raise NernError for what is of another kind than the config's, or absurdly large."""
    kinds: dict[str, Any] = {
        "method": str, "hidden_layer_size": int, "num_blocks": int, "act_layer": str, "heads": str, "output_size": int,
        "sampling_mode": str, "output_scales": str,
    }  # fmt: skip
    inner: dict[str, Any] = {
        "type": str, "num_idxs": int, "enc_levels": int, "base": float, "fusion_mode": str, "gauss_scale": list,
        "bandwidth": float,
    }  # fmt: skip
    for section, expected in ((nern, kinds), (nern["embeddings"], inner)):
        for key, kind in expected.items():
            found = section[key]
            fits = isinstance(found, (int, float) if kind is float else kind) and not isinstance(found, bool)
            if not fits or (isinstance(found, int | float) and not 0 <= found < 2**20):
                raise NernError(f"its description has {key} = {str(found)[:40]}")
    if not all(isinstance(scale, int | float) for scale in nern["embeddings"]["gauss_scale"]):
        raise NernError("its description has a gauss_scale that is not all numbers")


def _take(value: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    found = value.get(key, default)
    if not isinstance(found, kind):
        raise NernError(f"its description lacks {key!r}, or has it as {type(found).__name__}")
    return found
