"""`nern list` and `nern inspect`: what there is, and what of a network would be represented."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from nern import registry
from nern.catalog import SECTIONS, SOURCES, names_of, networks_and_tasks
from nern.originals.cifar_resnet import CifarResNet
from nern.terminal import bytes_text
from runs import Ended, Run


def test_every_registry_is_listed() -> None:
    registries = [value for value in vars(registry).values() if isinstance(value, registry.Registry)]
    assert {id(value) for value in registries} <= {id(value) for value in SECTIONS.values()}


@pytest.mark.parametrize("what", SECTIONS)
def test_names_of_one_kind_are_listed_one_a_line(run: Run, what: str) -> None:
    ended = run("list", what)
    assert (ended.code, ended.err) == (0, "")
    assert ended.lines == list(SECTIONS[what])


def test_an_unknown_kind_suggests_the_nearest(run: Run) -> None:
    ended = run("list", "timn")
    assert (ended.code, ended.out) == (2, "")
    assert "'timn'; did you mean 'timm'?" in ended.err
    assert all(name in ended.err for name in (*SECTIONS, *SOURCES, "pretrained"))


def rows(text: str) -> dict[str, list[str]]:
    """Cells of the Markdown tables by what their first cell names."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            first, *cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
            found |= {name.strip("`"): cells for name in first.split(", ")}
    return found


def test_without_a_kind_networks_and_tasks_are_tables(run: Run) -> None:
    ended = run("list")
    assert ended.code == 0
    assert run("list", columns=30).out == ended.out  # whole in narrow terminals
    assert ended.out.strip() == networks_and_tasks()
    found = rows(ended.out)
    assert {*registry.ORIGINALS, *registry.TASKS, "torchvision:NAME", "timm:NAME", "file.py:function"} <= found.keys()
    assert found["digits"][1:] == ["1x8x8", "10"]
    assert found["imagefolder"][1:] == ["what the network expects", "counted"]
    assert f"{len(names_of('timm')):,} networks of timm" in found["timm:NAME"][0]
    assert all(all(cells) for cells in found.values())


class Row(NamedTuple):
    name: str
    shape: str
    kernel: str
    kernels: int
    fate: str


def table(ended: Ended) -> list[Row]:
    assert ended.code == 0, ended.err
    found = []
    for line in ended.lines:
        if line.startswith("│"):
            name, shape, kernel, kernels, fate = [cell.strip() for cell in line.strip("│").split("│")]
            found.append(Row(name, shape, kernel, int(kernels.replace(",", "").replace("-", "0")), fate))
    return found


def check_sums(ended: Ended) -> None:
    """The closing lines are the sums of the table (which must list vectors, too)."""
    found = table(ended)
    taken = [row for row in found if row.fate == "taken"]
    text = ended.out.replace(",", "")
    tensors, all_tensors, weights, parameters = map(
        int, re.findall(r"(\d+) of (\d+) parameter tensors taken: (\d+) of (\d+) parameters", text)[0]
    )
    assert (tensors, all_tensors) == (len(taken), len(found))
    assert [weights, parameters] == [
        sum(math.prod(map(int, row.shape.split("x"))) for row in of) for of in (taken, found)
    ]
    assert f"({100 * weights / parameters:.1f} %)" in text


def test_globs_choose_and_every_reason_is_given(run: Run) -> None:
    without = run("inspect", "ResNet8", "--kwargs", '{"widths": [4, 6, 8]}')
    assert without.err == ""  # random weights are no cause for a warning
    found = {row.name: row for row in table(without)}
    assert found["layer2.0.conv1.weight"] == Row("layer2.0.conv1.weight", "6x4x3x3", "3x3", 24, "taken")
    assert found["linear.weight"] == Row("linear.weight", "10x8", "1x1", 80, "kept: not chosen")
    assert set(found) == {name for name, p in CifarResNet(8).named_parameters() if p.dim() > 1}
    options = ["--include", "conv1.weight", "layer1.*", "--exclude", "*.conv2.*", "--vectors", "true"]
    rows = table(run("inspect", "ResNet8", *options))
    assert {row.name for row in rows} == {name for name, _ in CifarResNet(8).named_parameters()}
    assert Row("bn1.bias", "16", "-", 0, "kept: not included") in rows
    fates = {row.name: row.fate for row in rows}
    assert [name for name, fate in fates.items() if fate == "taken"] == ["conv1.weight", "layer1.0.conv1.weight"]
    assert fates["layer1.0.conv2.weight"] == "kept: excluded"
    assert fates["layer1.0.bn1.weight"] == "kept: a vector"
    assert fates["layer2.0.conv1.weight"] == "kept: not included"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ResNet8", "--weights", "absent.pt"], "no such file: absent.pt"),
        (["ResNet9"], "unknown original network (task.original_model_name) 'ResNet9'; did you mean 'ResNet"),
        (["ResNet8", "--include", "layer9.*"], "parameter (nern.include) 'layer9.*'"),
        (["ResNet8", "--includes", "*"], "--includes"),
    ],
)
def test_bad_commands_are_one_line_of_error(run: Run, options: list[str], message: str) -> None:
    ended = run("inspect", *options)
    assert ended.code == 2
    assert message in ended.err
    assert ended.err.startswith("error: ")
    assert len(ended.err.splitlines()) == 1


MINE = """
from torch import nn


class Tied(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.embed, self.body = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width)
        self.out = nn.Linear(width, 4 * width)
        self.out.weight = self.embed.weight


def sequences():
    return nn.Sequential(nn.Conv1d(2, 3, 5), nn.Conv3d(2, 2, (1, 2, 3)), nn.ConvTranspose2d(3, 4, 2))
"""


def test_networks_in_one_s_own_file_are_shown_and_tied_weights_count_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    for name in ("mine.py:sequences", f"{tmp_path}/mine.py:sequences"):
        ended = run("inspect", name, "--vectors", "true")
        check_sums(ended)
        shapes = [("3x2x5", "5", 6), ("2x2x1x2x3", "1x2x3", 4), ("3x4x2x2", "2x2", 12)]
        assert [(row.shape, row.kernel, row.kernels) for row in table(ended)[:3]] == shapes
        assert "6 of 5 in 1 tensors; 4 of 1x2x3 in 1 tensors; 12 of 2x2 in 1 tensors" in ended.out
    ended = run("inspect", "mine.py:Tied", "--include", "*", "--kwargs", '{"width": 5}', "--vectors", "true")
    assert [row.name for row in table(ended)] == ["embed.weight", "body.weight", "body.bias", "out.bias"]
    check_sums(ended)
    assert "2 of 4 parameter tensors taken: 200 of 225 parameters" in ended.out


def log2_factorials(*counts: int) -> float:
    return sum(math.log2(k) for count in counts for k in range(2, count + 1))


def test_inspect_says_what_orderings_take(run: Run, tmp_path: Path) -> None:
    network = "Sequential(Conv2d(64, 32, 1), Conv2d(32, 64, 1), Conv2d(1, 8, 3))"
    (tmp_path / "mine.py").write_text(f"from torch.nn import Conv2d, Sequential\ndef net(): return {network}\n")
    ended, filters = run("inspect", "mine.py:net", "--include", "*weight"), [(32, 64), (64, 32), (8, 1)]
    cross = log2_factorials(*(co * ci for co, ci in filters))
    within = sum(log2_factorials(co) + co * log2_factorials(ci) for co, ci in filters)
    weights = 2 * 64 * 32 + 72
    told = {
        mode: f"{mode} {bytes_text(bits / 8)} ({100 * bits / 32 / weights:.1f} %)"
        for mode, bits in (("crossfilter", cross), ("infilter", within), ("infilter_path", within))
    }
    of = f" of the weights' {bytes_text(4 * weights)} in float32"
    assert f"an ordering of them takes at least: {', '.join(told.values())}{of}" in ended.lines
    assert ended.err.startswith("warning: ordering crossfilter of")
