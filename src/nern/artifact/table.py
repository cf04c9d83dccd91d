"""Where the bytes of an artifact are, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from rich.table import Table

from nern.artifact.container import CODES
from nern.artifact.description import NetworkDescription
from nern.artifact.reading import Artifact
from nern.artifact.tensors import TensorCode, tensor_bits
from nern.representation.codes import Codes, is_identity
from nern.representation.nern import share_of

# Of each part of a file its sections.
_PARTS = {
    "predictor": ("PRED", *CODES, "PRAW"), "ordering": ("ORDR",), "outliers": ("OUTL", "ORAW"), "kept": ("KEPT", "KRAW"),
    "description": ("META",), "header": ("header", "PROB"),
}  # fmt: skip


def part_sizes(artifact: Artifact) -> dict[str, tuple[int | None, int]]:
    """Of each part of a file, how many numbers it holds (None: that is not told), and its bytes; these add up to the
    file's."""
    description = artifact.description
    numbers = {
        "predictor": _count(description.predictor),
        "ordering": sum(tensor.numel() for tensor in artifact.ordering.tensors().values()) or None,
        "outliers": description.outliers[0] or None,
        "kept": _count(description.kept),
    }
    return {part: (numbers.get(part), sum(artifact.sizes.get(n, 0) for n in names)) for part, names in _PARTS.items()}


def artifact_table(artifact: Artifact) -> Table:
    """A row for each part of the file; the total is the file's size on disk."""
    description, total = artifact.description, artifact.size
    table = Table(box=None, pad_edge=False)
    for heading in ("where the bytes are", "numbers", "bits each", "bytes", "share"):
        table.add_column(heading, justify="left" if heading == "where the bytes are" else "right")
    names = {
        "predictor": "codes of kernels" if artifact.coded else f"predictor ({_held(description.predictor)})",
        "ordering": f"ordering of kernels ({description.ordering})",
        "kept": f"other parameters and buffers ({_held(description.kept)})",
        "header": "header, checksums, probes",
    }
    for part, (numbers, size) in part_sizes(artifact).items():
        if size or numbers:
            bits = f"{8 * size / numbers:.2f}" if numbers else ""
            shown = "" if numbers is None else f"{numbers:,}"
            table.add_row(names.get(part, part), shown, bits, f"{size:,}", f"{size / total:.1%}")
    weights, kept = sum(network.weights for network in description.networks), _count(description.kept)
    table.add_row(
        "file", f"{weights + kept:,} restored", f"{8 * total / (weights + kept):.2f}", f"{total:,}", "", style="bold"
    )
    return table


def about(artifact: Artifact) -> list[str]:
    """What else the file says, a line each."""
    description, lines = artifact.description, []
    for network in description.networks:
        how = f"built as {network.architecture}" if network.architecture else "state dict only"
        kind = "coded" if artifact.coded else "predicted"
        lines.append(f"{network.name}: {network.weights:,} weights {kind}, in {len(network.represented)} layers; {how}")
        if accuracy := accuracy_text(network):
            lines.append(f"{network.name}: accuracy {accuracy}, as the writer measured it")
    nern = description.nern
    if artifact.coded:
        lines.append(f"weights: codes, in a basis for each size of kernels; written by {description.writer}")
        return lines + _told(description.metadata)
    lines.append(
        f"predictor: {nern['method']}, {nern['num_blocks']} layers of width {nern['hidden_layer_size']}, "
        f"{nern['act_layer']}; encoding {nern['embeddings']['type']}; written by {description.writer}"
    )
    order, weights = artifact.ordering.bits(), sum(network.weights for network in description.networks)
    own, whole = artifact.nern.num_parameters, share_of(artifact.nern.num_parameters, order, weights)
    lines.append(
        f"share of the weights, all at 32 bits: predictor {100 * own / weights:.1f} %, with the ordering {100 * whole:.1f} %"
    )
    return lines + _told(description.metadata)


def layer_table(artifact: Artifact) -> Table | None:
    """How each layer is held, of a file of codes; None: of a predictor, which holds all layers together."""
    if not artifact.coded:
        return None
    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "weights", "held as", "bits each", "error"):
        table.add_column(heading, justify="left" if heading in ("layer", "held as") else "right")
    bits = tensor_bits(artifact.description.predictor, artifact.nern.predictor.state_dict())
    number, predictor = 0, cast(Codes, artifact.nern.predictor)
    for network in artifact.description.networks:
        errors = network.about.get("errors", [])
        for at, (name, shape, _) in enumerate(network.represented):
            count, used = bits[f"codes.{number}"]
            basis = predictor.bases[artifact.nern.heads.of_layer[number]]
            how = "whole numbers" if is_identity(basis) else "codes in a basis"
            error = f"{errors[at] / 10:.1f} %" if at < len(errors) else ""
            table.add_row(plain(name), " x ".join(map(str, shape)), how, f"{used / count:.2f}", error)
            number += 1
    return table


def _told(metadata: Mapping[str, str]) -> list[str]:
    return [f"{plain(key)}: {plain(value)}" for key, value in metadata.items()]


def accuracy_text(network: NetworkDescription) -> str:
    """The accuracy that a file tells of a network, on how many images of what; empty: it tells none."""
    told, task = network.about.get("test", {}), plain(network.about.get("task", ""))
    if not {"top1", "images"} <= told.keys():
        return ""
    return f"{told['top1']:.2f} % of {told['images']:,} test images{f' of {task}' if task else ''}"


def plain(text: str) -> str:
    """Text of a file as one line that no terminal takes for commands."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _count(codes: Sequence[TensorCode]) -> int:
    return sum(code.count for code in codes)


def _held(codes: Sequence[TensorCode]) -> str:
    """How most numbers are held."""
    names = {"grid": "quantised", "f16": "16 bits", "as": "as they are"}
    return max(names.values(), key=lambda name: _count([c for c in codes if names.get(c.held, "codes") == name]))
