"""The table of a sweep, results.csv: a row for each finished run."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nern.errors import NernError
from nern.files import existing_file, write_text
from nern.sweep.file import PlannedRun

Row = dict[str, Any]  # a value for each of COLUMNS; None where there is none

COLUMNS: dict[str, type] = {
    "name": str,
    "series": str,
    "seed": int,
    "recipe": str,
    "network": str,
    "task": str,
    "order": str,
    "hidden": int,
    "represented": int,
    "parameters": int,
    "share": float,
    "ordering_bytes": int,
    "outlier_bytes": int,
    "original_test": float,
    "original_held_out": float,
    "last_held_out": float,
    "best_held_out": float,
    "last_test": float,
    "best_test": float,
    "gap": float,
    "agreement_test": float,
    "divergence_test": float,
    "reconstruction_held_out": float,
    "reconstruction_test": float,
    "refinement_held_out": float,
    "refinement_test": float,
    "relative_error": float,
    "steps": int,
    "seconds": float,
    "device": str,
    "threads": int,
    "precision": str,
    "nern": str,
    "torch": str,
    "python": str,
    "config": str,
    "command": str,
}
_NEEDED = ("name", "series", "seed", "network", "task", "order", "parameters")
# tables of older versions have no such columns
_LATER = ("outlier_bytes", "precision", "refinement_held_out", "refinement_test", "agreement_test", "divergence_test")
_LARGEST = 10**15  # of any number but a seed


def row_of(run: PlannedRun, metrics: Mapping[str, Any], hardware: Mapping[str, Any], config: str, command: str) -> Row:
    """The row of a finished run.

    Args:
        metrics: its metrics.json.
        hardware: of the machine that ran it: `cpu`, `cores`, `gpu` (or None).
        config: where its config lies.
        command: of the sweep.

    Accuracies are top-1 in percent. Of several networks: the means.

    Raises:
        NernError: the metrics lack what a finished run has, or hold something else in its place.
    """
    try:
        found = _row_of(run, metrics, hardware, config, command)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise NernError(f"{type(error).__name__}: {error}") from error
    for name, value in found.items():
        if value is None and name not in _NEEDED:
            continue
        expected = (int, float) if COLUMNS[name] is float else COLUMNS[name]
        if not isinstance(value, expected) or isinstance(value, bool):
            raise NernError(f"{name} (={_short(value)}) must be {_KINDS[COLUMNS[name]]}")
        _check_number(name, value)
    return found


def _row_of(run: PlannedRun, metrics: Mapping[str, Any], hardware: Mapping[str, Any], config: str, command: str) -> Row:
    members, sizes, versions = run.config.members(), metrics["sizes"], metrics["versions"]
    last, best = metrics.get("last") or {}, metrics.get("best") or {}
    phases = metrics.get("phases") or []
    alone = [str(phase.get("name", "")).startswith("reconstruction") for phase in phases]
    before = [phase for phase, is_alone in zip(phases, alone, strict=True) if is_alone and not alone[-1]]
    reconstruction = before[-1] if before else {}  # the figures of a last phase are those of `last`
    refinement: Mapping[str, Any] = next((phase for phase in phases[:-1] if phase.get("name") == "refinement"), {})
    found: Row = {
        "name": run.name,
        "series": run.series,
        "seed": run.config.seed,
        "recipe": run.config.recipe,
        "network": " + ".join(member.task.original_model_name for member in members),
        "task": " + ".join(dict.fromkeys(member.task.task_name for member in members)),
        "order": run.config.nern.embeddings.permutations.permute_mode,
        "hidden": run.config.nern.hidden_layer_size,
        "represented": sizes["represented_parameters"],
        "parameters": sizes["predictor_parameters"],
        "share": sizes["predictor_share"],
        "ordering_bytes": sizes["ordering_bytes"],
        "outlier_bytes": sizes.get("outlier_bytes", 0),
        "original_test": _original(metrics, "test"),
        "original_held_out": _original(metrics, "held_out"),
        "agreement_test": _figure(last, "test", "agreement"),
        "divergence_test": _figure(last, "test", "divergence"),
        "last_held_out": _top1(last, "held_out"),
        "best_held_out": _top1(best, "held_out"),
        "last_test": _top1(last, "test"),
        "best_test": _top1(best, "test"),
        "reconstruction_held_out": _top1(reconstruction, "held_out"),
        "reconstruction_test": _top1(reconstruction, "test"),
        "refinement_held_out": _top1(refinement, "held_out"),
        "refinement_test": _top1(refinement, "test"),
        "relative_error": relative_error(metrics.get("layers") or []),
        "steps": metrics["steps"],
        "seconds": metrics["seconds"],
        "device": hardware_text(hardware, str(metrics["device"])),
        "threads": metrics.get("threads"),
        "precision": metrics.get("precision"),
        **{name: versions.get(name) for name in ("nern", "torch", "python")},
        "config": config,
        "command": command,
    }
    both = (found["last_test"], found["original_test"])
    found["gap"] = None if None in both else both[0] - both[1]
    return {name: found[name] for name in COLUMNS}


_KINDS = {int: "a whole number", float: "a number", str: "a text"}


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise NernError(f"{name} (={value}) must be finite")
    if isinstance(value, int | float) and name != "seed" and abs(value) > _LARGEST:
        raise NernError(f"{name} (={_short(value)}) is too large")
    if name in ("parameters", "represented") and value < 1:
        raise NernError(f"{name} (={value}) must be at least 1")


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) <= 10**100 else f"about 2**{value.bit_length()}"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _top1(record: Mapping[str, Any], images: str) -> float | None:
    return _figure(record, images, "top1")


def _figure(record: Mapping[str, Any], images: str, name: str) -> float | None:
    return (record.get(images) or {}).get(name)


def _original(metrics: Mapping[str, Any], images: str) -> float | None:
    original = metrics.get("original") or {}
    values = [_top1(one, images) for one in (original.get("networks") or {"": original}).values()]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def relative_error(layers: Sequence[Mapping[str, Any]]) -> float | None:
    """Norm of the error of all weights over their norm, from each layer's `weights`, `rmse` and `relative`; None where a
    layer's norm cannot be told."""
    error = squares = 0.0
    for layer in layers:
        if not layer.get("relative") or layer.get("rmse") is None:
            return None
        error += layer["weights"] * layer["rmse"] ** 2
        squares += layer["weights"] * (layer["rmse"] / layer["relative"]) ** 2
    return math.sqrt(error / squares) if squares else None


def hardware_text(hardware: Mapping[str, Any], device: str) -> str:
    """What a run ran on, in words."""
    if device.startswith("cuda") and hardware.get("gpu"):
        return str(hardware["gpu"]["name"])
    return f"{hardware['cpu']}, {hardware['cores']} cores" if hardware.get("cpu") else device


def table_text(rows: Iterable[Row]) -> str:
    """The CSV: a header of COLUMNS, a line a row, lines ending in a newline."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(name, row[name]) for name in COLUMNS] for row in rows)
    return stream.getvalue()


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    digits = {"share": 6, "relative_error": 6, "divergence_test": 6, "seconds": 1}.get(name, 4)
    return f"{value:.{digits}f}" if COLUMNS[name] is float else str(value)


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Write the CSV, atomically."""
    write_text(path, table_text(rows))


def read_tables(paths: Iterable[str | Path]) -> list[Row]:
    """The rows of CSV files, one file after the other. Raises NernError for one that is missing, no CSV in UTF-8, lacks a
    column, holds what is no number where one is expected, or a run that another holds, too."""
    rows: list[Row] = []
    places: dict[str, str] = {}
    for path in paths:
        for number, row in _read_table(path):
            place = f"{path}, line {number}"
            key = json.dumps([row[name] for name in COLUMNS if name not in ("config", "command")])
            if key in places:
                raise NernError(f"{place}: run {row['name']} is in {places[key]}, too; every run counts once")
            places[key] = place
            rows.append(row)
    return rows


def _read_table(path: str | Path) -> Iterator[tuple[int, Row]]:
    """The rows of a CSV file, each with the number of its last line."""
    data = existing_file(path, "table of a sweep").read_bytes()
    try:
        text = data.decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise NernError(f"{path} is not a table of `nern sweep`: it is not text in UTF-8 ({error})") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or []) and name not in _LATER]
        if missing:
            raise NernError(f"{path} is not a table of `nern sweep`: it has no column {', '.join(missing)}")
        for line in reader:
            if None in line:
                raise NernError(f"{path}, line {reader.line_num}: more values than columns")
            try:
                row = {name: _value(name, line.get(name)) for name in COLUMNS}
            except NernError as error:
                raise NernError(f"{path}, line {reader.line_num}: {error}") from error
            yield reader.line_num, row
    except csv.Error as error:
        raise NernError(f"{path}, line {reader.reader.line_num}: not a line of a CSV file ({error})") from error


def _value(name: str, text: str | None) -> Any:
    if not text:
        if name in _NEEDED:
            raise NernError(f"{name} is empty")
        return None
    try:
        value = COLUMNS[name](text)
    except ValueError as error:
        raise NernError(f"{name} (={_short(text)}) must be {_KINDS[COLUMNS[name]]}") from error
    _check_number(name, value)
    return value
