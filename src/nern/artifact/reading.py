"""Reading an artifact: from a file to weights, and to a network. Needs no training code, no network access, no pickle."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nern.artifact.building import GIVE_ONE, build_bounded, check_buildable
from nern.artifact.container import CODES, DamagedFileError, codes_section, header_size, read_container
from nern.artifact.description import Description
from nern.artifact.entropy import Decoder
from nern.artifact.orderings import check_ordering, decode_ordering
from nern.artifact.tensors import decode_tensors
from nern.errors import NernError, plain_errors
from nern.naming import of_number
from nern.ordering.order import Ordering
from nern.originals.base import usable
from nern.originals.build import build_network
from nern.originals.checked import DTYPES, copy_of
from nern.registry import PREDICTORS
from nern.representation.kernels import WEIGHT_IDXS, KernelTable, kernel_shape
from nern.representation.nern import CACHED_ROWS, NeRN, build_heads, build_nern, predictor_arguments
from nern.weights_file import load_into

T = TypeVar("T")
SECTIONS = ("META", "PRED", *CODES, "PRAW", "ORDR", "KEPT", "KRAW", "OUTL", "ORAW", "PROB")
LIMIT = 2**28  # numbers that reading makes, unless the caller allows more
PROBES = 16
_LEAST_BYTES, _MOST_BYTES = 2**26, 16  # of a file that is read, and for each number of `limit`
_MOST_PRODUCTS = 2**18  # multiplications for each number of `limit`
_ROWS = 32 * CACHED_ROWS  # predicted between two reports of progress
TOLERANCE = 1e-4  # of a predicted weight, in root mean squares of the probes; between machines, in float32


class Artifact:
    """What is in a file: the predictor and everything around it, decoded; weights are predicted when asked for.

    Args:
        sections: of the container.
        limit: most numbers that reading may make: weights, parameters, everything.

    Attributes:
        sections: as they are in the file.
        description: what the file says of itself.
        nern: the representation, on the CPU.
        ordering: of the kernels.
        kept: all tensors that are not predicted, by name (of several networks '0.NAME', ...).
        sizes: bytes of each section, and of the header; they add up to the file.

    Raises:
        NernError: it does not hold what it says, or more than `limit`.
    """

    def __init__(self, sections: Mapping[str, bytes], limit: int = LIMIT) -> None:
        if unknown := [name for name in sections if name not in SECTIONS]:
            raise NernError(f"it has sections of unknown kind: {', '.join(map(repr, unknown[:4]))}")
        parts = {name: sections.get(name, b"") for name in SECTIONS}
        self.sections = dict(sections)
        self.sizes = {"header": header_size(len(sections))} | {name: len(data) for name, data in sections.items()}
        self.description = Description.from_bytes(parts["META"])
        check_size(self.description, limit)
        table, config = self.description.table, self.description.config
        self.ordering: Ordering = decode_ordering(self.description.ordering, parts["ORDR"], table.shapes)
        codes = [parts[name] for name in ("PRED", *CODES) if parts[name]]
        if len(codes) > 1:
            raise NernError(f"it has two of the sections PRED, {', '.join(CODES)}; a predictor is in one of them")
        predictor = decode_tensors(self.description.predictor, codes[0] if codes else b"", parts["PRAW"])
        for name, tensor in predictor.items():
            if not tensor.isfinite().all():
                raise NernError(f"the predictor's {name} holds values that are not finite")
        self.kept = decode_tensors(self.description.kept, parts["KEPT"], parts["KRAW"])
        self.nern: NeRN = build_nern(config, table, self.ordering, seed=0)
        load_into(self.nern.predictor, predictor, "the predictor")
        outliers = decode_outliers(self.description.outliers, parts["OUTL"], parts["ORAW"], table)
        if outliers is not None:
            self.nern.keep_outliers(*outliers)
        self.nern.eval().requires_grad_(False)
        self._probes = parts["PROB"]
        if "PROB" in sections and len(self._probes) != 4 * PROBES:
            raise NernError(f"its probes are {len(self._probes)} bytes")
        self._weights: list[Tensor] | None = None
        self.limit = limit

    def __repr__(self) -> str:
        networks = self.description.networks
        weights = sum(network.weights for network in networks)
        held = "as codes" if self.coded else f"by {self.nern.num_parameters:,} parameters"
        names = ", ".join(network.name for network in networks)
        layers = len(self.nern.table.shapes)
        return f"Artifact of {names}: {self.size:,} bytes\n{weights:,} weights in {layers} layers {held}"

    @property
    def coded(self) -> bool:
        """Whether it holds codes of kernels, and no predictor."""
        return bool(codes_section(self.sections))

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(self.sizes.values())

    @property
    def weights(self) -> list[Tensor]:
        """The predicted weights of all layers, predicted when first asked for."""
        return self.predict() if self._weights is None else self._weights

    @torch.no_grad()
    def predict(self, on_layer: Callable[[int], None] | None = None) -> list[Tensor]:
        """The predicted weights of all layers.

        Args:
            on_layer: is told, now and then, how many weights there are.

        Raises:
            DamagedFileError: they are not what the writer predicted.
        """
        heads, predictions, done = self.nern.heads, [], 0
        for head, size in enumerate(heads.sizes):
            pieces = []
            for rows in heads.rows(head).split(_ROWS):  # pieces begin where a run's do, and so are rounded alike
                pieces.append(self.nern(rows)[head])
                done += len(rows) * math.prod(size)
                if on_layer is not None:
                    on_layer(min(done, self.nern.table.num_weights))
            predictions.append(torch.cat(pieces) if len(pieces) > 1 else pieces[0])
        weights = self.nern.weights(predictions)
        if self._probes:
            self.check(weights)
        self._weights = weights
        return weights

    def probes(self, weights: list[Tensor]) -> Float[Tensor, " probes"]:
        """Predicted weights at places spread evenly over all of them."""
        ends = torch.tensor([w.numel() for w in weights]).cumsum(0)
        places = torch.arange(PROBES) * int(ends[-1]) // PROBES
        layers = torch.bucketize(places, ends, right=True)
        starts = ends - torch.tensor([w.numel() for w in weights])
        return torch.stack([weights[i].flatten()[p - starts[i]] for i, p in zip(layers, places, strict=True)]).float()

    def check(self, weights: list[Tensor]) -> float:
        """The largest difference to what the writer predicted, in root mean squares of that. Raises DamagedFileError where
        it is beyond what rounding in float32 explains."""
        if not self._probes:
            raise DamagedFileError("it does not tell what its writer predicted")
        expected = torch.from_numpy(np.frombuffer(self._probes, "<f4").astype(np.float64))
        scale, largest = float(expected.square().mean().sqrt()), float((self.probes(weights) - expected).abs().max())
        difference = largest / scale if scale else 0.0 if largest == 0 else math.inf
        if not difference <= TOLERANCE:
            raise DamagedFileError(
                f"the weights predicted here differ from the writer's by {difference:.2g} of their root mean square; "
                f"rounding explains {TOLERANCE:g}. The file is of another version of nern, or this machine is at fault."
            )
        return difference

    def state_dict(self, network: int = 0) -> dict[str, Tensor]:
        """All parameters and buffers of the reconstructed network (of several, the one of this number)."""
        own = self.described(network)
        start = sum(len(n.represented) for n in self.description.networks[:network])
        state = of_number(self.kept, network, len(self.description.networks))
        for (name, shape, dtype), weight in zip(own.represented, self.weights[start:], strict=False):
            state[name] = weight.to(DTYPES[dtype]).reshape(shape)
        return state | {alias: state[name] for alias, name in own.aliases.items()}

    def network(self, network: int | nn.Module = 0) -> nn.Module:
        """The reconstructed network, ready to use, in eval mode, its parameters trainable, on the CPU.

        Args:
            network: of several, which; or a network of yours of the same architecture: a copy of it gets the weights.

        Raises:
            NernError: the file does not tell how to build it, or it is not to be had here (give a network then); or the
                network given does not fit.
        """
        number = 0 if isinstance(network, nn.Module) else network
        own, state = self.described(number), self.state_dict(number)
        if isinstance(network, nn.Module):
            built = copy_of(network)
        elif own.architecture is None:
            raise NernError(f"{own.name} is held as a state dict only; {GIVE_ONE}")
        else:
            built = self.build(number, build_network)
        load_into(built, state, f"the reconstructed {own.name}")
        return usable(built)

    def build(self, network: int, build: Callable[[str, dict[str, Any]], T]) -> T:
        """What `build` makes of the architecture and arguments of a network, which must be told.

        Raises:
            NernError: a file does not get that built, or it costs more than goes with the file's tensors; what `build`
                raises.
        """
        own = self.described(network)
        kept = of_number(self.kept, network, len(self.description.networks))
        shapes = [shape for _, shape, _ in own.represented] + [tuple(tensor.shape) for tensor in kept.values()]
        check_buildable(own.architecture, own.arguments, max(n for shape in shapes if 0 not in shape for n in shape))
        return build_bounded(own.architecture, lambda: build(own.architecture, dict(own.arguments)), shapes)

    def save_pretrained(self, folder: str | Path, **options: Any) -> Any:
        """Write the file, and a card, into a folder as on the Hugging Face Hub (see huggingface_hub's ModelHubMixin)."""
        return self._for_hub().save_pretrained(folder, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Upload the file, and a card, to the Hugging Face Hub (see huggingface_hub's ModelHubMixin)."""
        return self._for_hub().push_to_hub(repo_id, **options)

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Artifact:
        """Read an artifact from the Hugging Face Hub ('USER/NAME'), or from a folder that `save_pretrained` wrote.

        Raises:
            NernError: neither is there; or see `load`.
        """
        from nern.artifact.hub import HubArtifact  # the hub's library takes its time to import

        return HubArtifact._from_pretrained(model_id=name, **options)

    def _for_hub(self) -> Any:
        from nern.artifact.hub import HubArtifact

        return HubArtifact(self.sections, self.limit)

    def described(self, network: int | nn.Module = 0) -> Any:
        """What the file says of a network; for one of yours, of its first. Raises NernError for a number it has none of."""
        number, networks = 0 if isinstance(network, nn.Module) else network, self.description.networks
        if not 0 <= number < len(networks):
            raise NernError(f"network (={number}) must be below {len(networks)}, the number of networks in the file")
        return networks[number]


A = TypeVar("A", bound=Artifact)


@plain_errors()
def load(path: str | Path, limit: int = LIMIT) -> Artifact:
    """Read an artifact (`.nern`). Nothing in it is executed.

    Args:
        path: of the file; or 'pretrained:NAME.nern', one that ships with nern (`nern list pretrained`).
        limit: most numbers (weights, parameters, kernels) that it may hold; a file that asks for more is refused.

    Returns:
        What is in the file; `network()` of it is the reconstructed network.

    Raises:
        NernError: there is no such file; it is no artifact, of another version, damaged, or larger than `limit`.
    """
    return load_as(Artifact, path, limit)


def load_as(kind: type[A], path: str | Path, limit: int) -> A:
    """As `load`, of a kind of artifact."""
    sections = read_container(path, _LEAST_BYTES + _MOST_BYTES * limit)
    try:
        if "PROB" not in sections:
            raise NernError("it does not tell what its writer predicted")
        return kind(sections, limit)
    except DamagedFileError:
        raise
    except NernError as error:
        raise DamagedFileError(f"artifact {path} cannot be read: {error}") from error
    except Exception as error:  # whatever comes of bytes that no writer wrote
        detail = " ".join(str(error).split())[:200]
        raise DamagedFileError(f"artifact {path} is damaged ({type(error).__name__}: {detail})") from error


def check_size(description: Description, limit: int) -> None:
    """Raise NernError for what is of more numbers than `limit`, or does not fit together, before anything large is made.
    What lies between the file and the weights is bounded by multiples of `limit`."""
    check_ordering(description.ordering, [kernel_shape(s) for n in description.networks for _, s, _ in n.represented])
    _check_within(description.values, limit, "numbers")
    table, nern = description.table, description.config
    rows, e = table.rows, nern.embeddings
    if PREDICTORS.info(nern.method)["of_kernels"]:
        _check_predictor(description)
        return
    _check_within(len(table.shapes) * e.enc_levels, limit, "frequencies")
    of_kernels, heads = table.num_idxs != WEIGHT_IDXS, len(build_heads(nern, table).sizes)
    if max(heads, nern.num_blocks) > len(description.predictor):
        raise NernError("its predictor is smaller than its description")
    if nern.kind_of_heads == "shared" and of_kernels:
        _check_within(rows * nern.output_size**2, 16 * limit, "predictions")
    axes = zip(*table.shapes, strict=True)
    own = e.normalization_mode == "local"
    values = len(table.shapes) + sum(sum(axis) if own else max(axis) for axis in axes)
    _check_within(values * max(2 * e.enc_levels * (e.num_idxs + 1), nern.hidden_layer_size), limit, "coordinates")
    numbers = sum(c.count for c in description.predictor)
    _check_within(rows * (numbers + heads), _MOST_PRODUCTS * limit, "products")
    _check_predictor(description)


def _check_predictor(description: Description) -> None:
    """Raise NernError for tensors of the predictor that are others than its description asks for."""
    nern, table = description.config, description.table
    arguments = predictor_arguments(nern, build_heads(nern, table))
    with torch.device("meta"):  # shapes only
        expected = PREDICTORS[nern.method](**arguments).state_dict()
    held = {c.name: c.shape for c in description.predictor}
    for name in [*expected, *held]:
        wanted = tuple(expected[name].shape) if name in expected else None
        if held.get(name) != wanted:
            raise NernError(f"its predictor does not fit its description: {name} is {held.get(name)}, not {wanted}")


def _check_within(asked: int, limit: int, what: str) -> None:
    if asked > limit:
        raise NernError(f"it asks for {asked:,} {what}; more than {limit:,} are made only if `limit` allows")


def decode_outliers(
    described: tuple[int, int], code: bytes, raw: bytes, table: KernelTable
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]] | None:
    """The weights kept apart: rising numbers among all weights of all layers, one layer after the other, and their values;
    None: there are none. Raises NernError where they do not fit the weights of `table`."""
    count, largest = described
    if max(count, largest) > table.num_weights or (count == 0) != (largest == 0):
        raise NernError(f"it has {count:,} outliers, {largest:,} apart, of {table.num_weights:,} weights")
    if len(raw) != 4 * count:
        raise NernError(f"{count:,} outliers need {4 * count:,} bytes, {len(raw):,} are there")
    decoder = Decoder(code)
    steps = decoder.adaptive(count, largest + 1).astype(np.int64)
    decoder.finish()
    if not count:
        return None
    positions, values = steps.cumsum() - 1, np.frombuffer(raw, "<f4").astype(np.float32)
    if steps.min() < 1 or positions[-1] >= table.num_weights:
        raise NernError(f"the places of its outliers must rise, within the {table.num_weights:,} represented weights")
    if not np.isfinite(values).all():
        raise NernError("its outliers are not all finite numbers")
    return torch.from_numpy(positions), torch.from_numpy(values)
