r"""A page of results (Markdown) and its picture, from tables of `nern sweep`, beside published results (published.csv).

    cd docs && python ../benchmarks/results.py results-resnet20.csv results-resnet56.csv results-resnet20-cifar100.csv \
        results-resnet56-cifar100.csv results-squeezenet.csv --page results.md
    cd docs && python ../benchmarks/results.py history-resnet20.csv history-resnet56.csv --page history.md \
        --title 'Results of other recipes'

The page depends on nothing but the tables.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import os
import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nern.errors import NernError
from nern.files import check_writable, existing_file, write_text
from nern.sweeps.picture import draw
from nern.sweeps.table import COLUMNS, ORDERS, Group, Row, groups_of

SERIES = {  # of experiments/sweeps
    "nern": "recipe `nern`; for ResNet56 with half its rate of reconstruction and other steps (see the sweep files)",
    "1,500 steps": "the same with 1,500 steps of distillation",
    "one view": "recipe `nern`, but outputs are distilled for the image alone: `teacher.mirrored: false`; the row of 97 "
    "hidden units and those of ResNet56 with other rates (see the sweep files)",
    "stronger teacher": "recipe `nern`, but the outputs of a ResNet56 are distilled, by their Kullback-Leibler divergence",
    "stronger teacher, one view": "stronger teacher, with `teacher.mirrored: false`",
    "drawn filters": "refinement on drawn filters at a lower learning rate; outputs compared by divergence; one view",
    "without refinement": "an earlier recipe: no refinement, no fitted norms; outputs compared by divergence; one view",
}
NEEDED = ("name", "series", "seed", "network", "task", "order", "parameters")
KINDS = {int: "a whole number", float: "a number", str: "a text"}
TITLE = "Results"
ABOUT = 0.05  # predictors whose numbers of parameters differ by no more than this share are of one size
OWN_HEADINGS = (
    "series", "ordering", "hidden units", "parameters", "ordering, bytes", "accuracy, %", "gap, points", "n",
    "agreement, %", "best published gap, points", "accuracy after reconstruction, %", "after refinement, %",
    "relative error", "steps", "minutes",
)  # fmt: skip
THEIR_HEADINGS = (
    "method",
    "ordering",
    "hidden units",
    "parameters",
    "accuracy, %",
    "original, %",
    "gap, points",
    "source",
)


@dataclass(frozen=True)
class Published:
    """A published result: a row of published.csv. `order` and `hidden` are empty where the source does not tell them;
    accuracies are top-1 in percent, reconstructed and original."""

    source: str
    method: str
    network: str
    task: str
    order: str
    hidden: int | None
    parameters: int
    accuracy: float
    original: float
    note: str

    @property
    def gap(self) -> float:
        """Points from the original's accuracy."""
        return self.accuracy - self.original

    @property
    def label(self) -> str:
        """Method, ordering and source."""
        return f"{self.method}{f', {ORDERS[self.order]}' if self.order else ''} ({self.source})"


def read_tables(paths: Iterable[str | Path]) -> list[Row]:
    """The rows of CSV files, one file after the other; unknown columns are left out, absent ones empty.

    Raises:
        NernError: a file is missing or no such table, or a value is not of its column's kind.
    """
    rows: list[Row] = []
    for path in paths:
        file = existing_file(path, "table of a sweep")
        try:
            text = file.read_text(encoding="utf-8-sig")  # spreadsheets write a mark
            for line in csv.DictReader(io.StringIO(text, newline=""), strict=True):
                values = {name: kind(line[name]) if line.get(name) else None for name, kind in COLUMNS.items()}
                rows.append({name: checked(name, value) for name, value in values.items()})
        except (csv.Error, ValueError, TypeError) as error:
            raise NernError(f"{path} is not a table of `nern sweep`: row {len(rows) + 1}: {error}") from error
    return rows


def checked(name: str, value: Any) -> Any:
    """A value of a column. Raises ValueError for one of another kind."""
    kind: Any = COLUMNS[name]
    if value is None and name not in NEEDED:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise ValueError(f"{name} (={value!r:.60}) must be {KINDS[kind]}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} (={value}) must be finite")
    if name == "parameters" and not value > 0:
        raise ValueError(f"{name} (={value}) must be at least 1")
    return value


def spread(values: Iterable[float | None], digits: int, sign: bool = False) -> str:
    """Mean and sample standard deviation of the values there are: `91.29 ± 0.10`; of one without ±, of none `-`."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    text = f"{statistics.fmean(known):{'+' if sign else ''},.{digits}f}"
    return f"{text} ± {statistics.stdev(known):.{digits}f}" if len(known) > 1 else text


def published(network: str, task: str) -> list[Published]:
    """Published results of one network on one task, by parameters."""
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["network"], row["task"]) == (network, task)]
    found = [
        Published(
            **{name: row[name] for name in ("source", "method", "network", "task", "order", "note")},
            hidden=int(row["hidden"]) if row["hidden"] else None,
            parameters=int(row["parameters"]),
            accuracy=float(row["accuracy"]),
            original=float(row["original"]),
        )
        for row in rows
    ]
    return sorted(found, key=lambda point: point.parameters)


def best_published(network: str, task: str, parameters: float) -> Published | None:
    """The smallest gap among points of about so many parameters; None where nothing was published at this size."""
    near = [p for p in published(network, task) if abs(p.parameters - parameters) <= ABOUT * parameters]
    return max(near, key=lambda point: point.gap, default=None)


def page_text(tables: Sequence[str | Path], page: str | Path, figure: str | None = None, title: str = TITLE) -> str:
    """The page.

    Args:
        tables: CSV files.
        page: the file that the page is for; links are relative to it.
        figure: name of the picture beside it; None: none is shown.
        title: its first line.

    Raises:
        NernError: a table is missing or malformed.
    """
    rows = read_tables(tables)
    names = [Path(os.path.relpath(table, Path(page).parent)).as_posix() for table in tables]
    links = ", ".join(f"[{name}]({name})" for name in names)
    command = shlex.join(["python", "../benchmarks/results.py", *names, "--page", Path(page).name])
    command += "" if title == TITLE else f" --title {shlex.quote(title)}"
    parts = [
        f"# {title}",
        "- **Accuracy**: top-1 on the test images, last checkpoint. The test images chose nothing.\n"
        "- **Gap**: accuracy minus that of the original network. Where n is above 1: mean ± sample standard deviation over "
        "n seeds.\n"
        "- **Best published gap**: the best gap of a published predictor of this size (within 5 %), to the original "
        "network of its source. SBS is the method of arXiv 2509.07373.\n"
        "- **Agreement**: share of test images to which both networks give the same class, last checkpoint.\n"
        "- **Ordering, bytes**: of its file in the run folder. In a `.nern` file it takes half of them to two thirds.\n"
        "- **Relative error**: norm of the error of all weights over their norm, best checkpoint.",
    ]
    if figure is not None:
        parts.append(f"![accuracy over the size of the predictor]({figure})")
    series = _distinct(row["series"] for row in rows if row["series"] in SERIES)
    if series == ["nern"]:
        parts.append(f"Every row is of {SERIES['nern']}.")
    elif series:
        parts.append(_table(("series", "what"), [(name, SERIES[name]) for name in series]))
    for (network, task), groups in groups_of(rows).items():
        parts += _section(network, task, groups)
    parts += [*_circumstances(rows), f"This page is made from {links} in its folder by `{command}`."]
    return "\n\n".join(parts) + "\n"


def _section(network: str, task: str, groups: Sequence[Group]) -> list[str]:
    rows = [row for group in groups for row in group.rows]
    originals = [row["original_test"] for row in rows if row["original_test"] is not None]
    represented = sorted({row["represented"] for row in rows if row["represented"] is not None})
    about = [f"Accuracy of the original: {statistics.fmean(originals):.2f} %."] if originals else []
    if represented:
        about.append(f"Weights represented: {' or '.join(f'{count:,}' for count in represented)}.")
    lines = [_own_line(network, task, group) for group in groups]
    keep = [i for i in range(len(OWN_HEADINGS)) if any(line[i] != "-" for line in lines)]  # no empty columns
    parts = [f"## {network} on {task}", *([" ".join(about)] if about else [])]
    parts.append(_table([OWN_HEADINGS[i] for i in keep], [[line[i] for i in keep] for line in lines]))
    if theirs := published(network, task):
        parts += ["Published:", _table(THEIR_HEADINGS, [_their_line(point) for point in theirs])]
    return parts


def _their_line(point: Published) -> list[str]:
    return [
        point.method,
        ORDERS.get(point.order, point.order) or "-",
        _count(point.hidden),
        f"{point.parameters:,}",
        f"{point.accuracy:.2f}",
        f"{point.original:.2f}",
        f"{point.gap:+.2f}",
        ", ".join(filter(None, [_link(point.source), point.note])),
    ]


def _own_line(network: str, task: str, group: Group) -> list[str]:
    row = group.rows[0]
    best = best_published(network, task, group.parameters)
    share = "" if row["share"] is None else f" ({100 * row['share']:.1f} %)"
    of = {name: [row[name] for row in group.rows] for name in COLUMNS}
    return [
        row["series"],
        ORDERS.get(row["order"], row["order"]),
        _count(row["hidden"]),
        f"{group.parameters:,}{share}",
        _mean(of["ordering_bytes"], 0),
        spread(of["last_test"], 2),
        spread(of["gap"], 2, sign=True),
        str(len(group.rows)),
        spread(of["agreement_test"], 2),
        "-" if best is None else f"{best.gap:+.2f} ({best.method})",
        spread(of["reconstruction_test"], 2),
        spread(of["refinement_test"], 2),
        _mean(of["relative_error"], 3),
        _count(row["steps"]),
        _mean([None if seconds is None else seconds / 60 for seconds in of["seconds"]], 1),
    ]


def _mean(values: Iterable[float | None], digits: int) -> str:
    return spread(values, digits).partition(" ")[0]


def _circumstances(rows: Sequence[Row]) -> list[str]:
    versions = _distinct(
        ", ".join(f"{name} {row[name]}" for name in ("nern", "torch", "python") if row[name]) for row in rows
    )
    devices = _distinct(
        f"{row['device']}, {row['threads']} {'thread' if row['threads'] == 1 else 'threads'}" for row in rows
    )
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    listed = [
        f"- Versions: {'; '.join(versions)}.",
        f"- Hardware: {'; '.join(devices)}.",
        f"- Seeds: {seeds}; {len(rows)} {'run' if len(rows) == 1 else 'runs'}. Minutes are those of one run, "
        "means over its seeds. Other runs may have gone on beside it.",
    ]
    commands = _distinct(str(row["command"]) for row in rows if row["command"])
    parts = ["## How", "\n".join(listed)]
    return [*parts, "```sh\n" + "\n".join(commands) + "\n```"] if commands else parts


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns of numbers are aligned to the right."""
    rules = ["---:" if all(line[i][:1] in "-+0123456789" for line in lines) else "---" for i in range(len(headings))]
    cells = [headings, rules, *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _link(source: str) -> str:
    """A source as a link, where it is a paper of arXiv."""
    name, _, number = source.partition(" ")
    return f"[{source}](https://arxiv.org/abs/{number})" if name == "arXiv" else source


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def main() -> None:
    """Write the page, and the picture of the same name beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", metavar="TABLE", help="results.csv of a sweep")
    parser.add_argument("--page", required=True, metavar="FILE", help="the page, such as results.md")
    parser.add_argument("--title", default=TITLE, help="first line of the page (default: %(default)s)")
    given = parser.parse_args()
    check_writable(given.page, "--page")
    rows, figure = read_tables(given.tables), Path(given.page).with_suffix(".png")
    panels = {(row["network"], row["task"]) for row in rows}
    draw(figure, rows, {panel: [(p.label, p.parameters, p.gap) for p in published(*panel)] for panel in panels})
    write_text(given.page, page_text(given.tables, given.page, figure.name, given.title))


if __name__ == "__main__":
    main()
