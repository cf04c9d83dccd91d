"""Artifacts for tests: of small networks with random weights, without training."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nern.artifact import Artifact, Holding, NetworkParts, encoded, probed
from nern.artifact.container import to_bytes
from nern.artifact.description import Description, NetworkDescription, represented_as
from nern.artifact.entropy import Encoder
from nern.artifact.tensors import Coded
from nern.config import EmbeddingsConfig, NernConfig
from nern.ordering.order import Ordering, Shapes
from nern.registry import ORDERINGS
from nern.representation.codes import UNIT_STEP
from nern.representation.grid import quantised_names
from nern.representation.kernels import KernelTable
from nern.representation.nern import NeRN, build_nern

SHAPES = ((8, 4, 3, 3), (6, 8, 1, 1), (5, 6, 5, 5), (4, 9), (3, 2, 4))  # convolutions, linear, 1-d convolution

Sections = dict[str, bytes]
AS_IT_IS = Holding()


def nern_config(embeddings: Mapping[str, Any] | None = None, **settings: Any) -> NernConfig:
    """A small predictor by place along the order, with sines."""
    own = {
        "hidden_layer_size": 9,
        "num_blocks": 3,
        "act_layer": "sine",
        "init": "siren",
        "heads": "per_size",
    } | settings
    return NernConfig(**own, embeddings=EmbeddingsConfig(**{"type": "order", "enc_levels": 3} | dict(embeddings or {})))


def random_ordering(mode: str, shapes: Shapes, rng: torch.Generator) -> Ordering:
    """An ordering of this mode, any."""
    layers = []
    for shape in shapes:
        layer = {}
        for kind, size in ORDERINGS[mode].permutations(shape).items():
            rows = 1 if len(size) == 1 else size[0]
            orders = [torch.randperm(size[-1], generator=rng) for _ in range(rows)]
            layer[kind] = torch.stack(orders).reshape(size)
        layers.append(layer)
    return ORDERINGS[mode].from_layers(layers, shapes)


def make(
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    mode: str = "infilter_path",
    step: int | None = -24,
    kept: Holding = AS_IT_IS,
    config: NernConfig | None = None,
    networks: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    outliers: float = 0.02,
    **parts: Any,
) -> tuple[Sections, Artifact, NeRN]:
    """The sections of an artifact of a predictor that was not trained.

    Args:
        shapes: of the predicted weights of each network.
        mode: of the ordering, a random one.
        step: of the predictor's tensors; None: they are as they are.
        kept: how the other tensors are held.
        config: of the NeRN.
        networks: how many, all alike.
        dtype: of weights.
        seed: of weights, ordering, predictor.
        outliers: share of the weights that are kept apart, as version 0.1.0 did.
        parts: further arguments of `NetworkDescription`.
    """
    rng = torch.Generator().manual_seed(seed)
    config = config or nern_config(output_scales="per_layer")
    weights = [[torch.randn(s, generator=rng).to(dtype) for s in shapes] for _ in range(networks)]
    num_idxs = config.embeddings.num_idxs
    table = KernelTable.of_networks(weights, num_idxs)
    ordering = random_ordering(mode, table.shapes, rng)
    nern = build_nern(config, table, ordering, seed, weights=[w for own in weights for w in own])
    others = {
        "norm.weight": torch.rand(7, generator=rng).to(dtype), "steps": torch.tensor(41),
        "mask": torch.arange(15).reshape(3, 5) % 4 == 0,
        "empty": torch.zeros(0, 3), "scalar": torch.tensor(0.1).to(dtype),
    }  # fmt: skip
    own = {"name": "small", "architecture": None, "arguments": {}} | parts
    predicted = [represented_as({f"w{i}": w for i, w in enumerate(ws)}) for ws in weights]
    described = [NetworkParts(NetworkDescription(represented=each, **own), others) for each in predicted]
    steps: dict[str, Any] = {} if step is None else dict.fromkeys(quantised_names(nern.predictor.state_dict()), step)
    if config.method == "codes":
        numbers = range(len(table.shapes))
        nern.predictor.take([(nern.predictor.values(n) / 0.25).round() for n in numbers], [0.25] * len(numbers))
        steps |= {f"codes.{index}": Coded(UNIT_STEP) for index in range(len(table.shapes))}
        steps["steps"] = "as"
    holding = Holding(steps, "as" if step is None else "f16")
    bare = encoded(nern, config, ordering, described, holding, kept, {"who": "tests"})
    if places := round(outliers * table.num_weights):
        positions = torch.randperm(table.num_weights, generator=rng)[:places].sort().values
        apart = positions, torch.cat([w.flatten().float() for own in weights for w in own])[positions]
        nern.keep_outliers(*apart)
        counted, bare["OUTL"], bare["ORAW"] = encode_outliers(*apart)
        bare["META"] = replace(Description.from_bytes(bare["META"]), outliers=counted).to_bytes()
    artifact = probed(bare)
    return artifact.sections, artifact, nern.eval()


def encode_outliers(positions: Tensor, values: Tensor) -> tuple[tuple[int, int], bytes, bytes]:
    """As version 0.1.0 coded them: how many there are and the largest step, the code of the steps, the values."""
    steps, encoder = np.diff(positions.numpy(), prepend=-1), Encoder()
    encoder.adaptive(steps, int(steps.max()) + 1)
    return (len(steps), int(steps.max())), encoder.finish(), values.numpy().astype("<f4").tobytes()


def save(path: Path, sections: Mapping[str, bytes]) -> Path:
    """Write sections with right checksums, whatever is in them."""
    path.write_bytes(to_bytes(sections))
    return path


def with_description(sections: Mapping[str, bytes], change: Callable[[dict[str, Any]], object]) -> Sections:
    """The same sections with a changed description."""
    value = json.loads(zlib.decompress(sections["META"]))
    change(value)
    return dict(sections) | {"META": zlib.compress(json.dumps(value).encode())}


def raw_container(entries: Sequence[tuple[bytes, bytes]], **header: int) -> bytes:
    """A container's bytes with right checksums, whose names and header may be wrong.

    Args:
        entries: name and bytes of each section.
        header: 'version', 'count', 'zero', 'total' in place of the right ones.
    """
    table = b"".join(struct.pack("<4sQ16s", name, len(data), blake(data)) for name, data in entries)
    total = 40 + len(table) + sum(len(data) for _, data in entries)
    right = {"version": 1, "count": len(entries), "zero": 0, "total": total} | header
    fields = (b"\x89NERN\r\n\x1a", right["version"], right["count"], right["zero"], right["total"])
    digest = blake(struct.pack("<8sHHIQ16s", *fields, bytes(16)) + table)
    return struct.pack("<8sHHIQ16s", *fields, digest) + table + b"".join(data for _, data in entries)


def blake(data: bytes) -> bytes:
    """A digest as in the file."""
    return hashlib.blake2b(data, digest_size=16).digest()


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, NaN and signs of zero included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b) if t.numel()]
    return not bits or bits[0].equal(bits[1])
