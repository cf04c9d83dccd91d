"""Tables of sweeps, and what is made of them: the picture and the page."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest

from nern.errors import NernError
from nern.sweeps.picture import draw
from nern.sweeps.table import COLUMNS, table_text

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGE: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "results.py"))
read_tables = PAGE["read_tables"]


def row(**values: Any) -> dict[str, Any]:
    given = {
        "name": "a-s0", "series": "ours", "seed": 0, "recipe": "published", "network": "ResNet20", "task": "cifar10",
        "order": "crossfilter", "hidden": 140, "represented": 267_696, "parameters": 94_229, "share": 0.352, "steps": 10,
        "ordering_bytes": 48_000, "original_test": 91.67, "last_test": 91.0, "gap": -0.67, "seconds": 90.0, "threads": 2,
        "device": "a CPU, 2 cores", "nern": "1.0", "torch": "2.0", "python": "3.0", "command": "nern sweep x.yaml",
    }  # fmt: skip
    return dict.fromkeys(COLUMNS) | given | values


ROWS = [
    row(),
    row(name="a-s1", seed=1, last_test=91.4, gap=-0.27, seconds=150.0),
    row(name="b-s0", order="none", ordering_bytes=0, last_test=89.0, gap=-2.67),
    row(name="c-s0", hidden=108, parameters=51_417, share=0.192, last_test=90.17, gap=-1.5),
    row(name="d-s0", network="ResNet8", task="digits", parameters=10, last_test=None, gap=None, original_test=None),
]


def test_table_reads_back(tmp_path: Path) -> None:
    rows = [*ROWS, row(name="odd", series='a, "b"\nc', device="é", share=0.1234567, last_test=90.123456)]
    path = tmp_path / "results.csv"
    path.write_text(table_text(rows), encoding="utf-8")
    found = read_tables([path])
    assert found[:-1] == rows[:-1]
    assert found[-1] == rows[-1] | {"share": 0.123457, "last_test": 90.1235}
    path.write_text(table_text(ROWS), encoding="utf-8-sig")  # as spreadsheets do
    assert read_tables([path]) == ROWS
    path.write_text(table_text(ROWS).replace("agreement_test", "outlier_bytes").replace("precision", "other"))
    assert read_tables([path]) == ROWS  # of another version


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("parameters,", "params,"), "parameters .=None. must be a whole number"),
        (("91.0000", "nan"), r"last_test \(=nan\) must be finite"),
        (("a-s0,", ","), "name .=None. must be a text"),
        (("94229", "0"), r"parameters \(=0\) must be at least 1"),
        (("nern sweep x.yaml", '"nern sweep'), "unexpected end of data"),
    ],
)
def test_mistakes_in_tables(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "results.csv"
    path.write_text(table_text(ROWS[:1]).replace(*change), errors="surrogateescape")
    with pytest.raises(NernError, match=rf"results.csv is not a table of `nern sweep`: .*{message}"):
        read_tables([path])


def test_picture_of_several_networks(tmp_path: Path) -> None:
    text = r"x$\frac$"  # no formula
    rows = [row(network=f"{text} {i}", series=text, seed=s, gap=-80.0 * i - s) for i in range(4) for s in (0, 1)]
    rows.append(row(network="without figures", gap=None, represented=None))
    marks = {(f"{text} 0", "cifar10"): [("published (source)", 120, -0.3)]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "results.png", rows, marks)
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("page", "names", "title"),
    [
        ("results", ("resnet20", "resnet56", "resnet20-cifar100", "resnet56-cifar100", "squeezenet"), "Results"),
        ("history", ("resnet20", "resnet56"), "Results of other recipes"),
    ],
)
def test_pages_of_the_docs_are_what_the_tables_say(page: str, names: tuple[str, ...], title: str) -> None:
    tables = [DOCS / f"{page}-{name}.csv" for name in names]
    assert set(tables) == set(DOCS.glob(f"{page}*.csv"))
    expected = PAGE["page_text"](tables, DOCS / f"{page}.md", f"{page}.png", title)
    assert (DOCS / f"{page}.md").read_text(encoding="utf-8") == expected
