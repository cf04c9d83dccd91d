"""What an artifact says of itself, as JSON: networks, how the NeRN is built, how every tensor is held.

Read strictly: kinds and sizes are checked before anything is made of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nern.artifact.tensors import NAMES, TensorCode, check_name, is_int
from nern.config import EmbeddingsConfig, NernConfig
from nern.errors import NernError
from nern.naming import joint_name
from nern.originals.checked import DTYPES
from nern.registry import ACTIVATIONS, ENCODINGS, NORM_LAYERS, PREDICTORS, SAMPLING_MODES, Registry
from nern.representation.kernels import WEIGHT_IDXS, KernelTable, kernel_shape
from nern.untrusted import parse_json

MOST_BYTES = 2**23  # of the description, unpacked
MOST_LAYERS, MOST_TENSORS = 2**14, 2**16  # of predicted weights; of the predictor, and of those that are kept
MOST_WIDTH = 2**14  # of hidden layers, and of the encoding of one index
# What the NeRN of an artifact is built from: keys of `nern`, and of `nern.embeddings`; of each what a file may say: one of a
# registry or of some names, or a number within limits.
_NERN: dict[str, Any] = {
    "method": PREDICTORS, "hidden_layer_size": (1, MOST_WIDTH), "num_blocks": (2, MOST_TENSORS),
    "act_layer": ACTIVATIONS, "norm_layer": NORM_LAYERS, "heads": ("per_size", "per_layer", "shared"),
    "output_size": (1, MOST_WIDTH), "sampling_mode": SAMPLING_MODES, "output_scales": ("none", "per_layer", "per_size"),
}  # fmt: skip
_EMBEDDINGS: dict[str, Any] = {
    "type": ENCODINGS, "num_idxs": (1, WEIGHT_IDXS), "enc_levels": (1, MOST_WIDTH // 2), "base": (0.0, 2.0**20),
    "fusion_mode": ("concat", "sum"), "gauss_scale": [(0.0, 2.0**20)], "bandwidth": (0.0, 2.0**20),
    "normalization_mode": ("none", "local", "global"),
}  # fmt: skip


@dataclass(frozen=True)
class NetworkDescription:
    """One of the networks of an artifact."""

    name: str  # in words
    architecture: str | None  # a name ('ResNet20', 'timm:resnet18', ...); None: not known, there is the state dict only
    arguments: dict[str, Any]  # of the architecture
    represented: list[tuple[str, tuple[int, ...], str]]  # of each predicted weight: name, shape, dtype ('f32', ...)
    aliases: dict[str, str] = field(
        default_factory=dict
    )  # further names of tensors, and those under which they are held
    about: dict[str, Any] = field(default_factory=dict)  # what else is known, such as the task and the accuracy

    @property
    def weights(self) -> int:
        """Predicted weights."""
        return sum(math.prod(shape) for _, shape, _ in self.represented)


@dataclass(frozen=True)
class Description:
    """Everything an artifact says of itself."""

    writer: str  # what wrote it
    networks: list[NetworkDescription]
    nern: dict[str, Any]  # how the NeRN is built: keys of its config and, as 'embeddings', of its section of this name
    ordering: str  # its mode
    predictor: list[TensorCode]  # how the predictor's tensors are held
    kept: list[TensorCode]  # and all that are not predicted; of several networks named '0.NAME', '1.NAME', ...
    outliers: tuple[int, int] = (0, 0)  # weights kept apart: how many, and the largest step from place to place
    metadata: dict[str, str] = field(default_factory=dict)  # the user's, text by name

    @property
    def table(self) -> KernelTable:
        """Geometry of the predicted weights."""
        shapes = tuple(shape for network in self.networks for _, shape, _ in network.represented)
        numbers = tuple(number for number, network in enumerate(self.networks) for _ in network.represented)
        several = numbers if len(self.networks) > 1 else ()
        num_idxs = PREDICTORS.info(self.nern["method"])["num_idxs"]
        return KernelTable(tuple(kernel_shape(shape) for shape in shapes), num_idxs, shapes, several)

    @property
    def config(self) -> NernConfig:
        """The NeRN's configuration, as far as it matters for what it predicts."""
        own = {key: value for key, value in self.nern.items() if key != "embeddings"}
        return NernConfig(**own, embeddings=EmbeddingsConfig(**self.nern.get("embeddings", {})))

    @property
    def values(self) -> int:
        """Numbers that reading it makes: predicted weights, and all that is stored."""
        return sum(n.weights for n in self.networks) + sum(c.count for c in (*self.predictor, *self.kept))

    def to_bytes(self) -> bytes:
        """As JSON, compressed by zlib. Raises NernError for what JSON cannot tell."""
        own: dict[str, Any] = {name: [c.to_json() for c in getattr(self, name)] for name in ("predictor", "kept")}
        own["outliers"] = list(self.outliers) if self.outliers[0] else []
        networks = [_without_empty(dataclasses.asdict(network)) for network in self.networks]
        whole = {"writer": self.writer, "networks": networks, "nern": self.nern, "ordering": self.ordering}
        values = _without_empty(whole | own | {"metadata": self.metadata})
        try:
            text = json.dumps(values, separators=(",", ":"), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise NernError(f"an artifact tells of its networks in JSON, which cannot hold this: {error}") from error
        return zlib.compress(text.encode(), 9)

    @staticmethod
    def from_bytes(data: bytes) -> Description:
        """What `to_bytes` gave. Raises NernError for anything else."""
        return _description(_json(data))


def represented_as(weights: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...], str]]:
    """How predicted weights are described."""
    return [(name, tuple(weight.shape), NAMES[weight.dtype]) for name, weight in weights.items()]


def nern_description(config: NernConfig) -> dict[str, Any]:
    """What a NeRN is built from."""
    if PREDICTORS.info(config.method)["of_kernels"]:
        return {"method": config.method, "heads": config.kind_of_heads}
    embeddings = {key: getattr(config.embeddings, key) for key in _EMBEDDINGS}
    embeddings["normalization_mode"] = embeddings["normalization_mode"] or "none"
    own = {key: getattr(config, key) for key in _NERN}
    return own | {"norm_layer": config.norm_layer or "none", "heads": config.kind_of_heads, "embeddings": embeddings}


def _without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in ({}, [], None)}


def _json(data: bytes) -> dict[str, Any]:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MOST_BYTES)
        whole = unpacker.eof and not unpacker.unused_data
        value = parse_json(text) if whole else None
    except (zlib.error, NernError) as error:
        raise NernError(f"its description cannot be read ({repr(str(error))[1:121]})") from error
    if not isinstance(value, dict):
        raise NernError(f"its description is no JSON object of at most {MOST_BYTES:,} bytes")
    return value


def _description(value: dict[str, Any]) -> Description:
    of_networks = _take(value, "networks", list)
    if not of_networks or not all(isinstance(item, dict) for item in of_networks):
        raise NernError("its description names no network")
    if sum(len(_take(item, "represented", list)) for item in of_networks) > MOST_LAYERS:
        raise NernError(f"its description has more than {MOST_LAYERS:,} predicted weights")
    networks = [_network(item) for item in of_networks]
    nern, codes = _take(value, "nern", dict), {}
    for name in ("predictor", "kept"):
        items = _take(value, name, list, [])
        if len(items) > MOST_TENSORS:
            raise NernError(f"its description has {len(items):,} tensors of {name}; at most {MOST_TENSORS:,}")
        codes[name] = [TensorCode.from_json(item) for item in items]
        _check_unique([c.name for c in codes[name]])
    _check_names(networks, [c.name for c in codes["kept"]])
    outliers = _take(value, "outliers", list, []) or [0, 0]
    if len(outliers) != 2 or not all(is_int(number) and 0 <= number < 2**40 for number in outliers):
        raise NernError("its description has outliers that are no two numbers")
    metadata = _take(value, "metadata", dict, {})
    if not all(isinstance(item, str) and _is_text(key + item) for key, item in metadata.items()):
        raise NernError("metadata of its description is not all text")
    nern = _nern(nern)
    writer, ordering = _take(value, "writer", str), _take(value, "ordering", str)
    check_name(writer, "what wrote the file")
    return Description(writer, networks, nern, ordering, **codes, outliers=tuple(outliers), metadata=metadata)


def _nern(value: Mapping[str, Any]) -> dict[str, Any]:
    method = _checked(value, {"method": PREDICTORS})
    if PREDICTORS.info(method["method"])["of_kernels"]:
        return method | _checked(value, {"heads": ("per_size", "per_layer")})
    embeddings = _checked(_take(value, "embeddings", dict), _EMBEDDINGS)
    nern = _checked(value, _NERN) | {"embeddings": embeddings}
    num_idxs, by_order = embeddings["num_idxs"], ENCODINGS.info(embeddings["type"])["by_order"]
    rows_of_weights = num_idxs == WEIGHT_IDXS and by_order
    if num_idxs != PREDICTORS.info(nern["method"])["num_idxs"] or rows_of_weights:
        raise NernError(f"its description has num_idxs = {num_idxs}, which its predictor or its encoding does not take")
    if embeddings["type"] == "ffn" and len(embeddings["gauss_scale"]) != num_idxs:
        raise NernError(
            f"its description has {len(embeddings['gauss_scale'])} numbers in gauss_scale, and {num_idxs = }"
        )
    return nern


def _network(value: dict[str, Any]) -> NetworkDescription:
    represented = []
    for item in _take(value, "represented", list):
        code = TensorCode.from_json([*item, "as"] if isinstance(item, list) else item)
        kernel_shape(code.shape)
        if not DTYPES[code.dtype].is_floating_point:
            raise NernError(f"predicted weight {code.name!r} is of whole numbers ({code.dtype})")
        represented.append((code.name, code.shape, code.dtype))
    aliases, architecture = _take(value, "aliases", dict, {}), value.get("architecture")
    if not represented or not all(isinstance(name, str) for name in aliases.values()):
        raise NernError("its description of a network names no predicted weights, or tensors by no names")
    if architecture is not None:
        check_name(_take(value, "architecture", str), "an architecture")
    arguments, about = _take(value, "arguments", dict, {}), _take(value, "about", dict, {})
    _take(about, "task", str, "")
    if not all(is_int(error) for error in _take(about, "errors", list, [])):
        raise NernError("its description tells of errors of layers by what is no whole number")
    if not all(isinstance(figure, int | float) for figure in _take(about, "test", dict, {}).values()):
        raise NernError("its description tells of a test by what is no number")
    check_name(_take(value, "name", str), "a network")
    return NetworkDescription(value["name"], architecture, arguments, represented, aliases, about)


def _check_unique(names: Sequence[str]) -> None:
    (name, times), *_ = Counter(names).most_common(1) or [("", 1)]
    if times > 1:
        raise NernError(f"its description names tensor {name!r} twice")


def _check_names(networks: Sequence[NetworkDescription], kept: Sequence[str]) -> None:
    """Raise NernError for a tensor that is named twice, of no network, or an alias of none."""
    own: set[str] = set()
    for number, network in enumerate(networks):
        of_network = [joint_name(name, number, len(networks)) for name, _, _ in network.represented]
        aliases = [joint_name(name, number, len(networks)) for name in network.aliases]
        for name in network.aliases:
            check_name(name, "a tensor")
        _check_unique([*of_network, *aliases])
        own.update(of_network, aliases)
    numbers = set(map(str, range(len(networks))))
    for name in kept:
        if name in own or (len(networks) > 1 and name.partition(".")[0] not in numbers):
            raise NernError(f"its description names tensor {name!r} twice, or of no network")
    held = own | set(kept)
    for number, network in enumerate(networks):
        for target in network.aliases.values():
            joint = joint_name(target, number, len(networks))
            if joint not in held or target in network.aliases:
                raise NernError(f"its description has another name of {target[:80]!r}, which it does not hold")


def _checked(value: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What is wanted of it. Raises NernError for what is of another kind than the config's, unknown, or absurdly large."""
    for key, allowed in wanted.items():
        if not _allowed(value.get(key), allowed):
            whole = f"= {repr(value.get(key))[:40]}"
            told = "that is not all numbers from 0 on" if isinstance(allowed, list) else whole
            raise NernError(f"its description has {key} {told}")
    return {key: value.get(key) for key in wanted}


def _allowed(found: Any, wanted: Any) -> bool:
    """Whether a value is one of the names that are wanted, within limits and of their kind, or a list of such."""
    if isinstance(wanted, list):
        return isinstance(found, list) and all(_allowed(item, wanted[0]) for item in found)
    if isinstance(wanted, tuple) and not isinstance(wanted[0], str):
        whole = isinstance(wanted[0], int)
        fits = is_int(found) or (isinstance(found, float) and not whole)
        return fits and wanted[0] <= found <= wanted[1]
    if isinstance(found, dict) and isinstance(wanted, Registry):  # a component with settings of its own
        return found in wanted and set(found) - {"name"} <= wanted.settings_of(found)
    return isinstance(found, str) and found in wanted


def _is_text(text: str) -> bool:
    """Whether it can be written (a half of a surrogate pair cannot)."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _take(value: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    found = value.get(key, default)
    if not isinstance(found, kind):
        raise NernError(f"its description lacks {key!r}, or has it as {type(found).__name__}")
    return found
