"""The table of a sweep, results.csv: a row for each finished run; rows brought together over seeds."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nern.errors import NernError
from nern.sweeps.file import PlannedRun

Row = dict[str, Any]  # a value for each of COLUMNS; None where there is none

COLUMNS: dict[str, type] = {
    **dict.fromkeys(("name", "series"), str),
    "seed": int,
    **dict.fromkeys(("recipe", "network", "task", "order"), str),
    **dict.fromkeys(("hidden", "represented", "parameters"), int),
    "share": float,
    "ordering_bytes": int,
    **dict.fromkeys(("original_test", "original_held_out", "last_held_out", "best_held_out", "last_test"), float),
    **dict.fromkeys(("best_test", "gap", "agreement_test", "divergence_test"), float),
    **dict.fromkeys(("reconstruction_held_out", "reconstruction_test"), float),
    **dict.fromkeys(("refinement_held_out", "refinement_test", "relative_error"), float),
    "steps": int,
    "seconds": float,
    "device": str,
    "threads": int,
    **dict.fromkeys(("precision", "nern", "torch", "python", "config", "command"), str),
}
ORDERS = {
    "crossfilter": "cross-filter",
    "infilter": "in-filter",
    "infilter_path": "in-filter path",
    "none": "no ordering",
}
DIGITS = {"share": 6, "relative_error": 6, "divergence_test": 6, "seconds": 1}


def row_of(run: PlannedRun, metrics: Mapping[str, Any], hardware: Mapping[str, Any], config: str, command: str) -> Row:
    """The row of a finished run. Accuracies are top-1 in percent. Of several networks: the means.

    Args:
        hardware: of the machine that ran it: `cpu`, `cores`, `gpu` (or None).
        config: where its config lies.

    Raises:
        NernError: the metrics lack what a finished run has, or hold something else in its place.
    """
    try:
        found = _found(run, metrics, hardware) | {"config": config, "command": command}
        values = ((name, kind, found.get(name)) for name, kind in COLUMNS.items())
        return {name: None if value is None else kind(value) for name, kind, value in values}
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise NernError(f"{type(error).__name__}: {error}") from error


def _found(run: PlannedRun, metrics: Mapping[str, Any], hardware: Mapping[str, Any]) -> Row:
    members, sizes, versions = run.config.members(), metrics["sizes"], metrics["versions"]
    earlier = {phase.get("name"): phase for phase in (metrics.get("phases") or [])[:-1]}
    records = {name: metrics.get(name) or {} for name in ("last", "best")}  # `last` is that of the last phase
    records |= {name: earlier.get(name, {}) for name in ("reconstruction", "refinement")}
    found: Row = {
        "name": run.name,
        "series": run.series,
        "seed": run.config.seed,
        "recipe": run.config.recipe,
        "network": " + ".join(member.task.original_model_name for member in members),
        "task": " + ".join(dict.fromkeys(member.task.task_name for member in members)),
        "order": run.config.nern.embeddings.permutations.permute_mode or "none",
        "hidden": run.config.nern.hidden_layer_size,
        "represented": sizes["represented_parameters"],
        "parameters": sizes["predictor_parameters"],
        "share": sizes["predictor_share"],
        "ordering_bytes": sizes["ordering_bytes"],
        "agreement_test": _figure(records["last"], "test", "agreement"),
        "divergence_test": _figure(records["last"], "test", "divergence"),
        "relative_error": relative_error(metrics.get("layers") or []),
        "steps": metrics["steps"],
        "seconds": metrics["seconds"],
        "device": str(metrics["device"]),
        **{name: metrics.get(name) for name in ("threads", "precision")},
        **{name: versions.get(name) for name in ("nern", "torch", "python")},
    }
    if found["device"].startswith("cuda") and hardware.get("gpu"):
        found["device"] = str(hardware["gpu"]["name"])
    elif hardware.get("cpu"):
        found["device"] = f"{hardware['cpu']}, {hardware['cores']} cores"
    original = metrics.get("original") or {}
    networks = list((original.get("networks") or {"": original}).values())
    for images in ("test", "held_out"):
        values = [_figure(network, images, "top1") for network in networks]
        found[f"original_{images}"] = None if None in values else sum(values) / len(values)
        found |= {f"{name}_{images}": _figure(record, images, "top1") for name, record in records.items()}
    both = found["last_test"], found["original_test"]
    return found | {"gap": None if None in both else both[0] - both[1]}


def _figure(record: Mapping[str, Any], images: str, name: str) -> Any:
    return (record.get(images) or {}).get(name)


def relative_error(layers: Sequence[Mapping[str, Any]]) -> float | None:
    """Norm of the error of all weights over their norm, from each layer's `weights`, `rmse` and `relative`; None where a
    layer's norm cannot be told."""
    if any(not layer.get("relative") or layer.get("rmse") is None for layer in layers):
        return None
    error = sum(layer["weights"] * layer["rmse"] ** 2 for layer in layers)
    squares = sum(layer["weights"] * (layer["rmse"] / layer["relative"]) ** 2 for layer in layers)
    return math.sqrt(error / squares) if squares else None


def table_text(rows: Iterable[Row]) -> str:
    """The CSV: a header of COLUMNS, a line a row."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        numbers = {name: row[name] for name, kind in COLUMNS.items() if kind is float and row[name] is not None}
        texts = {name: f"{value:.{DIGITS.get(name, 4)}f}" for name, value in numbers.items()}
        writer.writerow({name: row[name] for name in COLUMNS} | texts)
    return stream.getvalue()


@dataclass(frozen=True)
class Group:
    """Runs of one series, ordering and size, of one network and task, that differ in their seed."""

    rows: Sequence[Row]

    @property
    def label(self) -> str:
        """Series and ordering, in words."""
        row = self.rows[0]
        return f"{row['series']}, {ORDERS.get(row['order'], row['order'])}"

    @property
    def parameters(self) -> int:
        """Of the predictor."""
        return int(self.rows[0]["parameters"])


def groups_of(rows: Iterable[Row]) -> dict[tuple[str, str], list[Group]]:
    """Groups of each network and task; both in the order of rows, groups of a series and ordering by parameters.

    Raises:
        NernError: a group holds a seed twice: its runs differ in more than the seed, a mean of them says nothing.
    """
    panels: dict[tuple[str, str], dict[tuple, dict[int, Row]]] = {}
    for row in rows:
        key = row["series"], row["order"], row["parameters"], row["hidden"], row["steps"]
        by_seed = panels.setdefault((row["network"], row["task"]), {}).setdefault(key, {})
        if row["seed"] in by_seed:
            raise NernError(
                f"runs {by_seed[row['seed']]['name']} and {row['name']} are both of series {row['series']!r}, ordering "
                f"{row['order']}, {row['parameters']:,} parameters and seed {row['seed']}: they differ in more than the "
                "seed and cannot be averaged. Give them different series in the sweep file; nothing is trained again."
            )
        by_seed[row["seed"]] = row
    found = {}
    for panel, groups in panels.items():
        lines = list(dict.fromkeys(key[:2] for key in groups))
        in_order = sorted(groups, key=lambda key: (lines.index(key[:2]), key[2]))
        found[panel] = [Group(list(groups[key].values())) for key in in_order]
    return found
