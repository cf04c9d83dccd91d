"""NeRNs that ship with nern: what their cards say is so, and they are loaded by their names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

import nern
from nern.config import TaskConfig
from nern.errors import NernError
from nern.jobs.artifacts import verify
from nern.originals.build import build_original_network
from nern.shipped import SHIPPED, shipped_nerns

QUIET = Console(quiet=True)


def card(name: str) -> str:
    file = Path(nern.__file__).parent / "pretrained" / f"{name.removeprefix(SHIPPED)}.md"
    return file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", shipped_nerns())
def test_what_ships_is_as_its_card_says(name: str, request: pytest.FixtureRequest) -> None:
    artifact = nern.load(name)
    described = artifact.description.networks[0]
    task = described.about["task"]
    options = {} if task == "digits" else {"data_dir": str(request.getfixturevalue(task))}
    found = verify(name, TaskConfig(task_name=task, **options), console=QUIET)
    told = re.search(r"accuracy: ([\d.]+) % of the ([\d,]+) ", card(name))
    assert told is not None
    assert found["test"]["top1"] == pytest.approx(float(told[1]), abs=0.05)
    assert found["test"]["images"] == int(told[2].replace(",", ""))
    assert f"{artifact.size:,} bytes" in card(name)
    parameters, weights = sum(code.count for code in artifact.description.predictor), artifact.nern.table.num_weights
    coded = f"{8 * artifact.sizes.get('COD3', 0) / weights:.2f} bits for each of {weights:,} weights"
    assert (coded if "COD3" in artifact.sizes else f"{parameters:,} parameters for {weights:,} weights") in card(name)


@pytest.mark.parametrize("name", shipped_nerns())
def test_what_ships_is_a_nern_of_a_network_that_ships(name: str) -> None:
    of = re.search(r"(?:A NeRN|Codes) of `(pretrained:[\w-]+)`", card(name))
    assert of is not None
    artifact = nern.load(name)
    described = artifact.description.networks[0]
    assert described.architecture is not None
    original = build_original_network(described.architecture, of[1], described.arguments).state_dict()
    weights, exact = artifact.state_dict(), 0.0
    for layer, _, _ in described.represented:
        exact += float(torch.linalg.vector_norm(weights[layer] - original[layer])) ** 2
    norm = sum(float(torch.linalg.vector_norm(original[layer])) ** 2 for layer, _, _ in described.represented)
    assert 0 < (exact / norm) ** 0.5 < 0.6


def test_one_that_does_not_ship_names_those_that_do() -> None:
    with pytest.raises(NernError, match=r"unknown pretrained NeRN.*pretrained:digits-resnet8\.nern"):
        nern.load("pretrained:digits-resnet8")
