"""What version 0.1.0 had and this one has not: its files open as before unless they ask for it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import nern
from nern import Config, NernError
from nern.cli import main
from nern.config.published import RETIRED
from nern.jobs.evaluating import config_of_run
from runs import quiet

RUN = Path(__file__).parent / "data" / "run-0.1.0"
ASKED_FOR: dict[str, object] = {
    "nern.weighting": "fisher",
    "nern.weighting_power": 1.0,
    "nern.weighting_images": 64,
    "nern.frequency_loss_weight": 0.1,
    "nern.outliers": 0.001,
    "nern.embeddings.permutations.exact_limit": 500,
    "reconstruction.rounds": 2,
    "reconstruction.round_share": 0.5,
    "task.inversion_images": 64,
    "task.inversion_steps": 20,
    "task.in_memory": "maybe",
    "cuda_graph": "maybe",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of version 0.1.0, stopped at step 10 of 12; its config names every retired key."""
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def test_a_run_of_version_010_goes_on_as_that_version_did(run: Path) -> None:
    metrics = nern.resume(run, quiet())
    assert metrics["steps"] == 12
    assert metrics["last"]["test"]["top1"] == 22.5
    assert metrics["last"]["held_out"]["top1"] == 5.0
    assert metrics["last"]["test"]["divergence"] == pytest.approx(3.2363150705702495, rel=1e-4)
    before = (run / "checkpoints" / "last.pt").read_bytes()
    # Its state now lacks the retired keys, its config has them.
    assert nern.resume(run, quiet())["last"] == metrics["last"]
    assert (run / "checkpoints" / "last.pt").read_bytes() == before


def test_a_run_of_version_010_is_evaluated_and_packed(run: Path, tmp_path: Path) -> None:
    found = nern.evaluate(config_of_run(run), console=quiet(), run=run)
    assert found["reconstructed"]["images"] == 40
    assert found["reconstructed"]["top1"] == 22.5
    file = tmp_path / "run.nern"
    nern.pack(run, file, console=quiet())
    assert nern.load(file).nern.outliers is None


@pytest.mark.parametrize(("key", "off"), [(key, off) for key, (offs, _) in RETIRED.items() for off in offs])
def test_a_retired_key_that_is_off_has_no_part(key: str, off: object, tmp_path: Path) -> None:
    assert Config.from_dict({key: off}) == Config.from_dict({})
    file = tmp_path / "config.yaml"
    file.write_text(f"{key.replace('.', ': {')}: {'null' if off is None else off}{'}' * key.count('.')}\n")
    assert Config.load(file) == Config.from_dict({})
    assert key not in Config.load(file).to_yaml()


def test_a_retired_key_of_one_of_several_networks_has_no_part() -> None:
    plain, earlier = ({"task": {"task_name": "digits"} | more} for more in ({}, {"in_memory": True}))
    assert Config.from_dict({"networks": [earlier]}) == Config.from_dict({"networks": [plain]})


@pytest.mark.parametrize(("key", "value"), ASKED_FOR.items())
def test_a_retired_key_that_asks_for_something_is_refused(key: str, value: object, run: Path, tmp_path: Path) -> None:
    message = rf"{key} \(={value}\) was removed: .* \(docs/tried\.md\)\. Version 0\.1\.0 has it$"
    with pytest.raises(NernError, match=f"^{message}"):
        Config.from_dict({key: value})
    config = run / "config.yaml"
    name = key.rpartition(".")[2]
    config.write_text(re.sub(rf"^( *){name}: .*", rf"\g<1>{name}: {value}", config.read_text(), flags=re.MULTILINE))
    with pytest.raises(NernError, match=message):
        config_of_run(run)


@pytest.mark.parametrize("key", RETIRED)
def test_a_retired_key_is_no_option(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"--{key}", "7"]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert f"{key} (=7) was removed: " in shown
    assert "Version 0.1.0 has it" in shown


@pytest.mark.parametrize(
    ("values", "name", "choices"),
    [
        ({"nern.embeddings.permutations.permute_mode": "channels"}, "channels", "crossfilter, infilter"),
        ({"task.use_random_data": True, "task.random_data": "spectrum"}, "spectrum", "leaves, scenes, uniform"),
        ({"task.use_random_data": True, "task.random_data": "inversion"}, "inversion", "leaves, scenes, uniform"),
        ({"networks": [{"task": {"use_random_data": True, "random_data": "spectrum"}}]}, "spectrum", "leaves"),
    ],
)
def test_a_name_that_was_removed_is_unknown_and_says_so(values: dict[str, Any], name: str, choices: str) -> None:
    with pytest.raises(
        NernError, match=rf"unknown .* {name!r}.*{choices}.*\({name!r} was removed; version 0\.1\.0 has it\)$"
    ):
        Config.from_dict(values)
