"""`nern sweep`: the file, the runs, stopping and going on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from nern import Config, NernError
from nern.cli import main
from nern.files import locked
from nern.stopping import Interrupted
from nern.sweeps.file import load_sweep
from nern.sweeps.processes import Job, run_side_by_side
from nern.sweeps.run import sweep
from nern.sweeps.table import COLUMNS
from runs import TINY as TINY_RUN
from runs import quiet

ROOT = Path(__file__).resolve().parents[1]
TINY = TINY_RUN | {
    "original_model_path": "pretrained:digits-resnet8",
    "loss_warmup_iterations": 2,
    "epochs": None,
    "num_iterations": 4,
    "batch_size": 16,
    "num_gpus": 0,
}
OURS = "published recipe"  # the series of runs that name none
GRID = {"nern.hidden_layer_size": [8, 12]}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(**values: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump({"settings": TINY, **values}, sort_keys=False), encoding="utf-8")
        return path

    return make


def made_up(job: Job) -> str | None:
    """In place of training: a run folder with made-up results. Names say what goes wrong."""
    if "stopped" in job.name:
        raise Interrupted(signal.SIGINT, "stopped by SIGINT")
    *command, path = job.command[1:]
    assert command == ["-m", "nern", "train", "--config_path"]
    config = Config.load(path)
    folder = Path(config.logging.log_dir, config.logging.exp_name)
    config.save(folder / "config.yaml")
    if "fails" in job.name:
        return "no such network:\n  a hint"
    accuracy = 90 + config.nern.hidden_layer_size / 10 + config.seed
    metrics = {
        "original": {"test": {"top1": 99.0}, "held_out": {"top1": 100.0}},
        "best": {"step": 2, "test": {"top1": accuracy - 1}, "held_out": {"top1": accuracy + 1}},
        "last": {"step": 4, "test": {"top1": accuracy}, "held_out": {"top1": accuracy + 2}},
        "layers": [{"name": "a", "weights": 100, "rmse": 3.0, "relative": 0.5}],
        "sizes": {
            "represented_parameters": 1000,
            "predictor_parameters": 100,
            "predictor_share": 0.1,
            "ordering_bytes": 7,
        },
        **{"steps": 4, "seconds": 60.0, "device": "cpu", "threads": 1, "seed": config.seed},
        "versions": {"nern": "1", "torch": "2", "python": "3"},
    }
    (folder / "metrics.json").write_text("{" if "bad" in job.name else json.dumps(metrics))
    return None


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of sweeps end at once, with made-up results; no picture is drawn."""

    def run(jobs: Sequence[Job], places: Any, on_start: Callable[[Job], None], on_end: Callable[[Job], None]) -> None:
        for job in jobs:
            on_start(job)
            job.error = made_up(job)
            on_end(job)

    monkeypatch.setattr("nern.sweeps.run.run_side_by_side", run)
    monkeypatch.setattr("nern.sweeps.picture.draw", lambda path, rows: None)


def names(folder: Path) -> list[str]:
    return [line.partition(",")[0] for line in (folder / "results.csv").read_text().splitlines()[1:]]


def test_runs_grid_and_seeds_multiply(write: Write, tmp_path: Path) -> None:
    runs = [{"name": "plain"}, {"name": "gelu", "settings": {"nern.act_layer": "gelu"}}]
    order = {"nern.embeddings.permutations.permute_mode": ["crossfilter", None]}
    found = load_sweep(write(runs=runs, grid={"nern.hidden_layer_size": [12]} | order, seeds=[0, 3]), tmp_path)
    variants = ["plain-12-crossfilter", "plain-12-none", "gelu-12-crossfilter", "gelu-12-none"]
    assert [run.name for run in found] == [f"{variant}-s{seed}" for variant in variants for seed in (0, 3)]
    last = found[-1].config
    assert (last.nern.act_layer, last.nern.hidden_layer_size, last.seed) == ("gelu", 12, 3)
    assert last.nern.embeddings.permutations.permute_mode == "none"
    assert (last.logging.exp_name, last.logging.log_dir) == ("gelu-12-none-s3", str(tmp_path / "runs"))
    assert {run.series for run in found} == {"plain", "gelu"}


@pytest.mark.parametrize(
    ("values", "names", "series"),
    [
        ({}, ["tiny-s0"], [OURS]),
        ({"grid": {"optim.lr": [0.005, 1e-3]}}, ["0.005-s0", "0.001-s0"], [f"{OURS}, lr 0.005", f"{OURS}, lr 0.001"]),
        ({"grid": {"optim.betas": [[0.9, 0.99]]}}, ["0.9_0.99-s0"], [f"{OURS}, betas 0.9_0.99"]),
        ({"runs": [{"name": "x", "series": "ours"}], "grid": GRID}, ["x-8-s0", "x-12-s0"], ["ours", "ours"]),
        ({"runs": [{"name": "x"}], "grid": {"recipe": ["published"]}}, ["x-published-s0"], ["x, recipe published"]),
    ],
)  # fmt: skip
def test_names_and_series(write: Write, values: dict[str, Any], names: list[str], series: list[str]) -> None:
    found = load_sweep(write(**values), "out")
    assert [run.name for run in found] == names
    assert [run.series for run in found] == series


def test_phases_are_set_by_the_grid_and_on_the_command_line(write: Write, tmp_path: Path, fake: None) -> None:
    grid = {"distillation.iterations": [3, 4], "quantisation.optim.lr": [0.5]}
    path = write(grid=grid, settings={"recipe": "nern"}, seeds=[0])
    found = [run.config for run in load_sweep(path, tmp_path)]
    assert [config.phase("distillation").iterations for config in found] == [3, 4]
    assert all(config.phase("quantisation").optim["lr"] == 0.5 for config in found)
    typed = ["--refinement.iterations", "7", "--no_cuda", "true", "--out", str(tmp_path / "out")]
    assert main(["sweep", str(path), *typed]) == 0
    made = [Config.load(file) for file in sorted((tmp_path / "out" / "runs").glob("*.yaml"))]
    assert [config.phase("refinement").iterations for config in made] == [7, 7]
    assert [config.num_gpus for config in made] == [0, 0]


def test_config_file_lies_beneath_settings_runs_and_options(write: Write, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        yaml.safe_dump(TINY | {"nern.num_blocks": 7, "nern.act_layer": "gelu", "batch_size": 5})
    )
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(TINY | {"nern.num_blocks": 4}))
    runs = [{"name": "a", "settings": {"batch_size": 3}}, {"name": "b", "config": "other.yaml"}]
    path = write(config="base.yaml", settings={"nern": {"act_layer": "elu"}}, runs=runs)
    one, two = (run.config for run in load_sweep(path, "out", {"loss_warmup_iterations": 1}))
    assert (one.nern.num_blocks, one.nern.act_layer, one.batch_size, one.loss_warmup_iterations) == (7, "elu", 3, 1)
    assert (two.nern.num_blocks, two.nern.act_layer, two.batch_size, two.loss_warmup_iterations) == (4, "elu", 16, 1)
    assert [run.name for run in load_sweep(write(seeds=[0, 1]), "out", {"seed": 5})] == ["tiny-s5"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grids": {}}, "unknown configuration key 'grids'; did you mean 'grid'? Choices: config, grid, runs, "),
        ({"settings": {"nern": {"hiden": 1}}}, "settings: unknown configuration key 'nern.hiden'"),
        ({"settings": {"logging.exp_name": "x"}}, "logging.exp_name is set by the sweep itself: the name of the run"),
        ({"grid": {"seed": [1]}}, "grid: seed is set by the sweep itself: see seeds"),
        ({"grid": {"batch_size": [3, 3]}}, "several runs are named 3-s0"),
        ({"grid": {"original_model_path": ["x" * 200]}}, "its name is empty, too long or cannot be a folder's"),
        ({"grid": {"nern.act_layer": ["gelu", "gleu"]}}, "'gleu'; did you mean 'gelu'? Choices: elu, gelu"),
        ({"runs": [{"name": "a"}, {"name": "a"}]}, "several runs are named a-s0; give runs names that differ"),
        ({"seeds": 3}, "seeds needs a list, each entry a whole number, not 3"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file(write: Write, tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = write(**values)
    with pytest.raises(NernError, match=re.escape(message)):
        sweep(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nern.hiden", "3"], "unknown configuration key 'nern.hiden'"),
        (["--jobs", "0"], "--jobs (=0) must be at least 1"),
        (["--nern.hidden_layer_size", "3"], "grid varies nern.hidden_layer_size, --nern.hidden_layer_size sets it"),
        (["--nern", "{}"], "--nern: on the command line nern sweep takes single keys only"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["sweep", str(write(grid=GRID)), *options, "--out", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


SLOW = """
import os, time
from nern.training.trainer import Trainer
train_step = Trainer.train_step
def slow(self, *args):
    time.sleep(0.5)
    return train_step(self, *args)
if "SLOW" in os.environ:
    Trainer.train_step = slow
"""


def test_runs_are_trained_once_and_go_on_after_a_signal(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    more = {"imports": [str(tmp_path / "slow.py")], "num_iterations": 40, "save_minutes": 0.0}
    path, out = write(settings=TINY | more, seeds=[0, 1]), tmp_path / "out"
    command = ["sweep", str(path), "--out", str(out), "--batch_size", "8", "--json", str(tmp_path / "rows.json")]
    process = subprocess.Popen(
        [sys.executable, "-m", "nern", *command], env=os.environ | {"SLOW": "1"}, stderr=subprocess.PIPE, text=True
    )
    runs = out / "runs"
    try:
        deadline = time.monotonic() + 300
        while not (runs / "tiny-s0" / "state.pt").is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        messages = process.communicate(timeout=200)[1]
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; 0 of 2 runs are finished, those that had begun have saved." in messages
    assert "Traceback" not in messages
    assert not (runs / "tiny-s0" / "metrics.json").exists()

    assert main([*command, "--jobs", "2"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 runs: 0 finished, 1 to go on with, 1 to train; 2 at a time on the CPU; folder ")
    assert "tiny-s0: goes on; log " in said
    assert "tiny-s1: starts; log " in said
    assert "(2 of 2 runs are finished)" in said
    assert re.search(r"40 steps, from step \d+ on", (runs / "tiny-s0.log").read_text())
    rows = json.loads((tmp_path / "rows.json").read_text())
    for seed, row in enumerate(rows):
        metrics = json.loads((out / row["config"]).with_name("metrics.json").read_text())
        assert Config.load(out / row["config"]).batch_size == 8
        assert (row["name"], row["hidden"], row["network"], row["seed"]) == (f"tiny-s{seed}", 8, "ResNet8", seed)
        assert row["parameters"] == metrics["sizes"]["predictor_parameters"]
        assert row["last_test"] == metrics["last"]["test"]["top1"]
        assert row["command"] == "nern sweep tiny.yaml --batch_size 8"
    assert names(out) == ["tiny-s0", "tiny-s1"]
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")

    before = {file: file.stat().st_mtime_ns for file in runs.rglob("*")}
    assert main(command) == 0
    assert "2 runs: 2 finished, 0 to go on with, 0 to train" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in runs.rglob("*")} == before


@pytest.mark.usefixtures("fake")
def test_table_holds_what_the_metrics_say(write: Write, tmp_path: Path) -> None:
    rows = sweep(write(grid=GRID, seeds=[0, 1]), tmp_path / "out")
    table = (tmp_path / "out" / "results.csv").read_text()
    assert table.partition("\n")[0] == ",".join(COLUMNS)
    assert table.count("\n") == 5
    row = rows[3]
    expected = {
        "name": "12-s1", "series": "published recipe", "seed": 1, "represented": 1000, "parameters": 100, "share": 0.1,
        "ordering_bytes": 7, "original_test": 99.0, "original_held_out": 100.0, "last_test": 92.2, "best_test": 91.2,
        "last_held_out": 94.2, "best_held_out": 93.2, "gap": pytest.approx(-6.8), "reconstruction_test": None,
        "relative_error": pytest.approx(0.5), "steps": 4, "seconds": 60.0, "threads": 1, "nern": "1",
        "config": "runs/12-s1/config.yaml", "command": "nern sweep tiny.yaml",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert "cores" in row["device"]


@pytest.mark.usefixtures("fake")
def test_failed_runs_are_told_at_the_end_and_tried_again(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write(runs=[{"name": "fails"}, {"name": "works"}]), tmp_path / "out"
    for already in (0, 1):
        assert main(["sweep", str(path), "--out", str(out)]) == 2
        ended = capsys.readouterr()
        assert f"2 runs: {already} finished, 0 to go on with" in ended.out  # what a failed run left is in nobody's way
        assert "fails-s0: failed after" in ended.out
        assert ended.err == (
            "error: 1 of 2 runs failed; the same command tries them again:\n"
            f"  fails-s0: no such network:\n      a hint\n    (log: {out / 'runs' / 'fails-s0.log'})\n"
        )
        assert names(out) == ["works-s0"]


@pytest.mark.usefixtures("fake")
def test_changed_settings_of_runs_that_are_there(write: Write, tmp_path: Path) -> None:
    path, out = write(grid=GRID), tmp_path / "out"
    sweep(path, out, console=quiet())
    before = (out / "results.csv").read_bytes()
    message = r"8-s0: optim.lr, batch_size; 12-s0: optim.lr, batch_size\)\. Take another folder \(--out\)"
    with pytest.raises(NernError, match=message):
        sweep(path, out, options={"batch_size": 3, "optim.lr": 0.5})
    assert (out / "results.csv").read_bytes() == before
    sweep(path, out, options={"logging.log_interval": 3})  # changes no result


@pytest.mark.usefixtures("fake")
def test_what_lies_in_the_place_of_a_run(write: Write, tmp_path: Path) -> None:
    left = tmp_path / "out" / "runs" / "tiny-s0"
    left.mkdir(parents=True)
    (left / "notes.txt").write_text("mine")
    with pytest.raises(NernError, match=r"tiny-s0 is in the way of run tiny-s0: it is no run folder"):
        sweep(write(), tmp_path / "out")
    assert (left / "notes.txt").read_text() == "mine"
    load_sweep(write(), tmp_path / "out", {"batch_size": 3})[0].config.save(left / "config.yaml")
    assert [row["name"] for row in sweep(write(), tmp_path / "out")] == ["tiny-s0"]  # a run that had saved nothing
    assert not (left / "notes.txt").exists()


@pytest.mark.usefixtures("fake")
def test_damaged_files_of_a_run(write: Write, tmp_path: Path) -> None:
    path, out = write(), tmp_path / "out"
    sweep(path, out)
    metrics = out / "runs" / "tiny-s0" / "metrics.json"
    without_sizes = json.dumps(json.loads(metrics.read_text()) | {"sizes": {}})
    for text, message in ((without_sizes, "KeyError: 'represented_parameters'"), ("{", "")):
        metrics.write_text(text)
        with pytest.raises(NernError, match=rf"is damaged \(.*{message}.*\); delete its run folder to train it anew"):
            sweep(path, out)
    shutil.rmtree(metrics.parent)
    assert len(sweep(path, out)) == 1


@pytest.mark.usefixtures("fake")
def test_shards_train_all_runs_once_and_the_table_has_those_of_all(write: Write, tmp_path: Path) -> None:
    path, out = write(grid=GRID, seeds=[0, 1]), tmp_path / "out"
    whole = [row["name"] for row in sweep(path, tmp_path / "whole")]
    first = sweep(path, out, shard="1/3")
    assert [row["name"] for row in first] == whole[0::3]
    (out / "shard-2-of-3").mkdir()
    with locked(out / "shard-2-of-3", "busy"):  # another machine is at work
        sweep(path, out, shard="3/3")
        with pytest.raises(NernError, match="another sweep is at work"):
            sweep(path, out, shard="2/3")
    assert [row["name"] for row in sweep(path, out, shard="2/3")] == whole


@pytest.mark.parametrize("shard", ["3/2", "a/b"])
def test_shards_that_are_none_are_refused(write: Write, tmp_path: Path, shard: str) -> None:
    with pytest.raises(NernError, match=re.escape(f"--shard (={shard}) must be I/N")):
        sweep(write(), tmp_path / "out", shard=shard)


def test_why_a_job_failed(tmp_path: Path) -> None:
    reasons = {
        "raise SystemExit(3)": "exit status 3, nothing printed",
        "print(*range(9), sep='\\n'); raise SystemExit(1)": "5\n6\n7\n8",
        "print('error: a', 'error: b', '  c', sep='\\n'); raise SystemExit(2)": "b\n  c",
        "import os; os.kill(os.getpid(), 9)": "ended by a signal: Killed",
    }
    jobs = [Job(str(n), [sys.executable, "-c", code], tmp_path / f"{n}.log") for n, code in enumerate(reasons)]
    run_side_by_side(jobs, [{}] * len(jobs))
    assert [one.error for one in jobs] == list(reasons.values())


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_sweep_of_ours_loads(path: Path) -> None:
    assert load_sweep(path, "out")


def test_docs_describe_every_key_and_column_and_their_example_loads(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "many-runs.md").read_text(encoding="utf-8")
    example = re.findall(r"^```yaml\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)[0]
    path = ROOT / "experiments" / "sweeps" / "example.yaml"
    values = yaml.safe_load(example)
    values["config"] = str(path.parent / values["config"])
    (tmp_path / "example.yaml").write_text(yaml.safe_dump(values))
    runs = load_sweep(tmp_path / "example.yaml", "out")
    assert len(runs) == 36
    assert runs[0].name == "published-crossfilter-140-s0"
    assert all(f"`{column}`" in text for column in COLUMNS)
