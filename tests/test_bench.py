"""`nern bench`: every benchmark at tiny size, what it writes, and what it refuses. Nothing here depends on a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

from nern.cli import main
from nern.commands.bench import BENCHMARKS
from runs import SHORT

TINY = SHORT | {
    "original_model_path": "pretrained:digits-resnet8",
    "nern.weights_batch_method": "random_batch",
    "num_iterations": 40,
    "loss_warmup_iterations": 30,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.yaml").write_text(json.dumps(TINY))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def bench(what: str, *options: str) -> dict[str, Any]:
    common = ["--repeats", "2", "--warmup", "1", "--threads", "1", "--json", "out.json"]
    assert main(["bench", what, *common, *options]) == 0
    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    return found


def check_spread(found: dict[str, Any], n: int = 2) -> None:
    assert found["n"] == len(found["values"]) == n
    assert min(found["values"]) <= found["quartiles"][0] <= found["median"] <= found["quartiles"][1]


def test_order_measures_random_kernels_and_the_network(
    folder: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"permute_mode": "crossfilter", "metric": "distance", "improve_seconds": "0.2"}
    options = [part for key, value in settings.items() for part in (f"--nern.embeddings.permutations.{key}", value)]
    found = bench("order", "--config_path", "tiny.yaml", "--kernels", "600", "--seed", "3", *options)
    kernels, network = found["results"]["measured"].values()
    assert (kernels["kernels"], kernels["layers"], kernels["weight_bytes"]) == (600, 1, 600 * 9 * 4)
    assert (network["kernels"], network["layers"]) == (8208, 7)
    for of in (kernels, network):
        check_spread(of["seconds"])
        assert 0 < of["cost"] < of["cost_greedy"] < of["cost_unordered"]
        assert of["peak_memory_bytes"] >= 0
    assert not [*folder.rglob("*.safetensors"), *cache_dir.rglob("*.safetensors")]  # the cache has no part
    assert "600 random 3x3 kernels" in capsys.readouterr().out

    assert (found["benchmark"], found["seed"], found["n"]) == ("order", 3, 2)
    assert found["settings"] == {"repeats": 2, "warmup": 1, "threads": 1, "kernels": 600}
    assert found["command"].startswith("nern bench order --repeats 2")
    (table,) = found["tables"]
    assert "crossfilter by distance, exact greedy, then improved for up to 0.2 s" in table["note"]
    assert [dict(row)[""] for row in table["rows"]] == list(found["results"]["measured"])
    assert torch.__version__ in found["about"]


def test_step_is_compared_with_plain_pytorch(folder: Path) -> None:
    options = ["--config_path", "tiny.yaml", "--most_steps", "1", "--no_cuda", "true"]
    options += ["--task.use_random_data", "true"]
    measured = bench("step", *options, "--precisions", "bf16")["results"]["measured"]
    assert list(measured) == ["plain", "ours, bf16", "plain MLP", "drawn rows, bf16", "all rows, bf16"]
    for name, of in measured.items():
        check_spread(of["seconds"])
        assert of["steps_a_round"] == 1
        assert of["device"] == "cpu"
        assert ("ratio" in of) != name.startswith("plain")
    assert measured["plain"]["images"] == [8]
    assert measured["plain MLP"]["rows"] == measured["drawn rows, bf16"]["rows"] == 64


def test_reconstruct_counts_weights(folder: Path) -> None:
    found = bench("reconstruct")
    (of,) = found["results"]["measured"].values()
    check_spread(of["seconds"])
    assert (of["represented_weights"], of["kernels"], of["layers"]) == (73872, 8208, 7)
    assert of["weight_bytes"] == 4 * 73872


def test_scaling_draws_a_figure(folder: Path) -> None:
    options = ["--smallest", "1e3", "--largest", "1e4", "--figure", "scaling.png", "--nern.hidden_layer_size", "8"]
    found = bench("scaling", *options, "--nern.embeddings.permutations.permute_mode", "none")
    assert list(found["results"]["measured"]) == ["1,000", "10,000"]
    for asked_for, of in zip((1000, 10_000), found["results"]["measured"].values(), strict=True):
        assert of["weights"] == pytest.approx(asked_for, rel=0.2)
        check_spread(of["step_seconds"])
        assert of["memory_over_weights"] >= 0
    assert found["config"]["nern"]["reconstruction_rows"] == "drawn"
    assert matplotlib.image.imread(folder / "scaling.png").shape[:2] == pytest.approx((860, 2100), abs=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the name of a benchmark is required: order, step, reconstruct, scaling"),
        (["order", "--largest", "10"], "--largest belongs to nern bench scaling; order has repeats, warmup, threads"),
        (["step", "--precisions", "float32", "fp8"], "invalid choice: 'fp8'"),
        (["scaling", "--largest", "5000"], "--largest (=5000) must be at least --smallest (=10000)"),
        (["scaling", "--figure", "."], "--figure: . cannot be written"),
    ],
)
def test_mistakes_stop_before_any_work(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = {name: (None, about) for name, (_, about) in BENCHMARKS.items()}  # that could be called
    monkeypatch.setattr("nern.commands.bench.BENCHMARKS", nothing)
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
