"""Before and around a run: what a dry run tells, a run that starts from another, what a silent config is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nern import Config, NernError, train
from nern.cli import main
from nern.files import load_safetensors
from nern.jobs.training import dry_run
from nern.training.run_folder import RunFolder
from runs import TINY, quiet

BASE = TINY | {
    "recipe": "nern",
    "reconstruction.iterations": 4,
    "refinement.iterations": 2,
    "refinement.images": 8,
    "distillation.iterations": 3,
    "norm_images": 8,
    "nern.weights_batch_size": 4096,
    "nern.embeddings.permutations.improve_seconds": 0.0,
}
Configure = Callable[..., Config]


def test_dry_run_tells_of_every_phase_and_writes_nothing(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure()
    before = set(tmp_path.rglob("*"))
    seconds, _ = dry_run(config)
    text = capsys.readouterr().out
    assert list(seconds) == ["reconstruction", "refinement", "distillation"]
    assert all(of_step > 0 for of_step in seconds.values())
    assert "represented by" in text
    assert "Nothing was written" in text
    assert set(tmp_path.rglob("*")) == before
    assert not Path(config.logging.log_dir).exists()


def test_dry_run_foretells_the_bytes_of_the_packed_file(configure: Configure, tmp_path: Path) -> None:
    from nern import PackOptions, pack

    config = configure()
    _, expected = dry_run(config, quiet())
    run = train(config, quiet())["run_folder"]
    size = pack(run, tmp_path / "run.nern", PackOptions(images=0), quiet()).size
    assert 0.7 * expected < size < 1.4 * expected + 2000  # the description and probes of a small network


def test_dry_run_is_an_option_of_train(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure().save(tmp_path / "config.yaml")
    assert main(["train", "--config_path", str(tmp_path / "config.yaml"), "--dry_run", "true"]) == 0
    assert "What each phase takes here" in capsys.readouterr().out


@pytest.mark.usefixtures("no_picture")
def test_a_run_starts_where_another_ended(configure: Configure) -> None:
    first = RunFolder(train(configure(), quiet())["run_folder"])
    more = {"nern.init": "checkpoint", "nern.checkpoint_path": str(first.root)}
    assert configure(from_run=str(first.root)) == configure(more)
    more |= {"reconstruction.iterations": 0, "refinement.iterations": None}
    config = configure(more, **{"distillation.iterations": 0, "refinement.images": None, "norm_images": 0})
    second = RunFolder(train(config, quiet())["run_folder"])
    before, after = (torch.load(run.checkpoint("best"), weights_only=True) for run in (first, second))
    assert all(torch.equal(before[name], after[name]) for name in before)
    orderings = [load_safetensors(run.ordering, "ordering")[0] for run in (first, second)]
    assert all(torch.equal(orderings[0][name], orderings[1][name]) for name in orderings[0])
    saved = Config.load(second.config)
    assert (saved.nern.init, saved.nern.checkpoint_path) == ("checkpoint", str(first.checkpoint("best")))


def test_starting_from_a_run_says_what_is_wrong(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(NernError, match="no such file"):
        train(configure(from_run=str(tmp_path / "none")), quiet())
    with pytest.raises(NernError, match="is not a run folder"):
        train(configure({"nern.init": "checkpoint", "nern.checkpoint_path": str(tmp_path)}), quiet())
    with pytest.raises(NernError, match="drop one"):
        configure({"from_run": "here", "nern.init": "checkpoint", "nern.checkpoint_path": "there.pt"})
    configure().save(tmp_path / "empty" / "config.yaml")
    with pytest.raises(NernError, match="no checkpoint 'best' yet"):
        train(configure(from_run=str(tmp_path / "empty")), quiet())


@pytest.mark.parametrize(("recipe", "told"), [(None, True), ("published", False), ("nern", False)])
def test_a_config_without_a_recipe_is_told_of_the_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: str | None, told: bool
) -> None:
    monkeypatch.setattr("nern.commands.training.train", lambda *args: {})
    (tmp_path / "config.yaml").write_text(f"recipe: {recipe}\n" if recipe else "seed: 0\n")
    assert main(["train", "--config_path", str(tmp_path / "config.yaml")]) == 0
    assert ("names no recipe" in capsys.readouterr().out) == told
