"""Tables of sweeps, and what is made of them: the picture and the page."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nern.config import Config
from nern.errors import NernError
from nern.sweep import COLUMNS, PlannedRun, read_tables
from nern.sweep.picture import draw, look
from nern.sweep.table import Spread, groups_of, relative_error, row_of, table_text, write_table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def results() -> ModuleType:
    """benchmarks/results.py."""
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(**values: Any) -> dict[str, Any]:
    """A row of a run of ResNet20."""
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


# --- rows --------------------------------------------------------------------------------------------------------


def metrics(**values: Any) -> dict[str, Any]:
    sizes = {"represented_parameters": 10, "predictor_parameters": 5, "predictor_share": 0.5, "ordering_bytes": 0}
    return {"sizes": sizes, "versions": {}, "steps": 3, "seconds": 1.0, "device": "cpu"} | values


def made(**values: Any) -> dict[str, Any]:
    return row_of(
        PlannedRun("a-s0", "ours", Config().check()), metrics(**values), {}, "config.yaml", "nern sweep a.yaml"
    )


def test_metrics_without_test_images() -> None:
    found = made(last={"step": 3, "held_out": {"agreement": 4.0}}, original={}, best=None)
    assert found["last_test"] is None
    assert found["gap"] is None
    assert found["device"] == "cpu"


def test_nearness_to_the_original_is_that_of_the_last_checkpoint_on_test_images() -> None:
    last = {"test": {"top1": 80.0, "agreement": 97.5, "divergence": 0.0123456}, "held_out": {"agreement": 99.0}}
    found = made(last=last, best={"test": {"agreement": 96.0, "divergence": 0.5}})
    assert (found["agreement_test"], found["divergence_test"]) == (97.5, 0.0123456)
    assert "97.5000,0.012346," in table_text([found])
    found = made(last={"test": {"top1": 80.0}})
    assert (found["agreement_test"], found["divergence_test"]) == (None, None)


def test_reconstruction_phase_is_what_came_before_others() -> None:
    first = {"name": "reconstruction", "steps": 2, "test": {"top1": 70.0}, "held_out": {"top1": 71.0}}
    second = {"name": "distillation", "steps": 1, "test": {"top1": 80.0}}
    found = made(phases=[first, second])
    assert (found["reconstruction_test"], found["reconstruction_held_out"]) == (70.0, 71.0)
    assert made(phases=[first])["reconstruction_test"] is None
    assert made(phases=[{"name": "reconstruction"}, second])["reconstruction_test"] is None


def test_refinement_has_columns_of_its_own_where_a_phase_follows() -> None:
    phases = [{"name": name, "test": {"top1": top1}} for name, top1 in (("reconstruction", 60.0), ("refinement", 65.0))]
    found = made(phases=[*phases, {"name": "distillation"}])
    assert (found["reconstruction_test"], found["refinement_test"], found["refinement_held_out"]) == (60.0, 65.0, None)
    found = made(phases=phases)
    assert (found["reconstruction_test"], found["refinement_test"]) == (60.0, None)


def test_several_networks_give_means() -> None:
    networks = {"a": {"test": {"top1": 90.0}}, "b": {"test": {"top1": 80.0}}}
    found = made(original={"networks": networks}, last={"test": {"top1": 84.0}})
    assert (found["original_test"], found["gap"]) == (85.0, -1.0)
    assert made(original={"networks": networks | {"c": {}}})["original_test"] is None


def test_relative_error_of_all_weights() -> None:
    layers = [{"weights": 100, "rmse": 3.0, "relative": 0.5}, {"weights": 50, "rmse": 1.0, "relative": 0.1}]
    assert relative_error(layers) == pytest.approx(((100 * 9 + 50) / (100 * 36 + 50 * 100)) ** 0.5)
    assert relative_error([]) is None
    assert relative_error([*layers, {"weights": 1, "rmse": 0.0, "relative": None}]) is None


# --- tables ------------------------------------------------------------------------------------------------------


def test_table_reads_back(tmp_path: Path) -> None:
    rows = [*ROWS, row(name="odd", series='a, "b"\nc', device="é", share=0.1234567, last_test=90.123456)]
    write_table(tmp_path / "results.csv", rows)
    found = read_tables([tmp_path / "results.csv"])
    assert found[:-1] == rows[:-1]
    assert found[-1] == rows[-1] | {"share": 0.123457, "last_test": 90.1235}
    assert read_tables([]) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("parameters,", "params,"), "parameters .=None. must be a whole number"),
        (("94229", "many"), "row 1: invalid literal"),
        (("91.0000", "nan"), r"last_test \(=nan\) must be finite"),
        (("a-s0,", ","), "name .=None. must be a text"),
        (("94229", "0"), r"parameters \(=0\) must be at least 1"),
        (("ours", "o" * 200_000), "field larger than field limit"),
        (("nern sweep x.yaml", '"nern sweep'), "unexpected end of data"),
        (("nern sweep x.yaml", "\x00"), "."),
    ],
)
def test_mistakes_in_tables(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "results.csv"
    path.write_text(table_text(ROWS[:1]).replace(*change))
    if "\x00" in change:
        path.write_bytes(b"\xff\xfe")
    with pytest.raises(NernError, match=rf"results.csv is not a table of `nern sweep`: .*{message}"):
        read_tables([path])
    with pytest.raises(NernError, match="no such file"):
        read_tables([tmp_path / "c.csv"])


def test_tables_of_spreadsheets_and_older_versions_are_read(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text(table_text(ROWS), encoding="utf-8-sig")
    assert read_tables([path]) == ROWS
    path.write_text(table_text(ROWS).replace("agreement_test", "outlier_bytes").replace("precision", "other"))
    assert read_tables([path]) == ROWS


# --- groups and published points ---------------------------------------------------------------------------------


def test_seeds_are_brought_together() -> None:
    groups = groups_of(ROWS)
    assert list(groups) == [("ResNet20", "cifar10"), ("ResNet8", "digits")]
    found = [(group.label, group.parameters, len(group.rows)) for group in groups["ResNet20", "cifar10"]]
    assert found == [
        ("ours, cross-filter", 51_417, 1),
        ("ours, cross-filter", 94_229, 2),
        ("ours, no ordering", 94_229, 1),
    ]


def test_one_seed_twice_is_no_group() -> None:
    with pytest.raises(
        NernError, match=r"runs a-s0 and e-s0 are both of series 'ours', .* 94,229 parameters and seed 0"
    ):
        groups_of([*ROWS, row(name="e-s0")])


def test_spread_is_the_sample_standard_deviation() -> None:
    assert Spread.of([1.0, None, 2.0, 3.0]) == Spread(2.0, 1.0, 3)
    assert Spread.of([2.0]) == Spread(2.0, None, 1)
    assert Spread.of([None]) is None
    assert Spread(-0.467, 0.2, 2).text(2, sign=True) == "-0.47 ± 0.20"
    assert Spread(0.467, None, 1).text(1, sign=True) == "+0.5"


def test_best_published_point_is_of_this_size(results: ModuleType) -> None:
    best = results.best_published("ResNet20", "cifar10", 142_749)
    assert (best.accuracy, best.order, best.source) == (91.50, "crossfilter", "arXiv 2212.13554")
    assert best.gap == pytest.approx(-0.19)
    assert results.best_published("ResNet20", "cifar10", 200_000) is None
    assert results.best_published("ResNet20", "cifar100", 142_749) is None


def test_published_predictors_have_the_parameters_of_their_hidden_size(results: ModuleType) -> None:
    panels = [("ResNet20", "cifar10"), ("ResNet56", "cifar10"), ("ResNet56", "cifar100"), ("ResNet18", "imagenet")]
    points = [point for panel in panels for point in results.published(*panel)]
    assert len(points) == 20
    for point in points:
        if point.hidden is not None:  # five linear layers on an encoding of 240 numbers, kernels of 3 x 3
            size = point.hidden
            assert point.parameters == 241 * size + 3 * (size + 1) * size + 9 * (size + 1), point


# --- the picture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4])
def test_picture_of_so_many_networks(tmp_path: Path, count: int) -> None:
    text = r"x$\frac$"  # no formula
    rows = [row(network=f"{text} {i}", series=text, seed=s, gap=-80.0 * i - s) for i in range(count) for s in (0, 1)]
    rows.append(row(network="without figures", gap=None, represented=None))
    marks = {(f"{text} 0", "cifar10"): [("published (source)", 120, -0.3)]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(tmp_path / "results.png", rows, marks)
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_curves_of_a_picture_look_unlike() -> None:
    looks = [look(number) for number in range(28)]
    assert len({(of["color"], of["ls"]) for of in looks}) == len({(of["color"], of["marker"]) for of in looks}) == 28


# --- the page ----------------------------------------------------------------------------------------------------


def test_page_of_a_table(results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(tmp_path / "results.csv", ROWS)
    page = tmp_path / "results.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["results.py", "results.csv", "--page", "results.md"])
    results.main()
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    assert text == results.page_text([tmp_path / "results.csv"], page, "results.png")
    assert "Made from [results.csv](results.csv) by `python ../benchmarks/results.py results.csv --page results" in text
    assert "![accuracy over the size of the predictor](results.png)" in text
    assert "Accuracy of the original: 91.67 %. Weights represented: 267,696." in text
    lines = text.splitlines()
    assert lines[lines.index("## ResNet20 on cifar10") + 4 :][:5] == [
        "| series | ordering | hidden size | parameters | ordering, bytes | accuracy, % | gap, points | n | "
        "best published gap at this size | steps | minutes |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| ours | cross-filter | 108 | 51,417 (19.2%) | 48,000 | 90.17 | -1.50 | 1 | -1.19 (SBS) | 10 | 1.5 |",
        "| ours | cross-filter | 140 | 94,229 (35.2%) | 48,000 | 91.20 ± 0.28 | -0.47 ± 0.28 | 2 | "
        "-1.30 (NeRN) | 10 | 2.0 |",
        "| ours | no ordering | 140 | 94,229 (35.2%) | 0 | 89.00 | -2.67 | 1 | -1.30 (NeRN) | 10 | 1.5 |",
    ]
    assert (
        "| NeRN | cross-filter | 180 | 142,749 | 91.50 | 91.69 | -0.19 | [arXiv 2212.13554](https://arxiv.org" in text
    )
    assert "- Versions: nern 1.0, torch 2.0, python 3.0." in text
    assert "- Hardware: a CPU, 2 cores, 2 threads." in text
    assert "- Seeds: 0, 1; 5 runs." in text
    assert text.endswith("```sh\nnern sweep x.yaml\n```\n")
    assert "None" not in text


def test_agreement_is_shown_where_it_is_known(results: ModuleType, tmp_path: Path) -> None:
    write_table(tmp_path / "results.csv", [row(agreement_test=97.25), row(name="b-s0", series="b")])
    text = results.page_text([tmp_path / "results.csv"], tmp_path / "results.md")
    assert "| n | agreement, % | best published gap at this size |" in text
    assert "| 1 | 97.25 | -1.30 (NeRN) |" in text
    assert "| 1 | - | -1.30 (NeRN) |" in text


def test_page_of_the_docs_is_what_the_tables_say(results: ModuleType) -> None:
    tables = sorted(DOCS.glob("results*.csv"))
    assert tables
    assert (DOCS / "results.md").read_text(encoding="utf-8") == results.page_text(
        tables, DOCS / "results.md", "results.png"
    )
