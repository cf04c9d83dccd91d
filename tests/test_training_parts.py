"""Schedules, optimizers, clipping, trackers."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nern.config import Config, LoggingConfig, OptimConfig
from nern.errors import NernError, NernWarning, NonFiniteLossError
from nern.training import tracking
from nern.training.optimizers import build_optimizer, check_gradients, clip_gradients, load_optimizer, set_rate
from nern.training.schedules import Schedule
from nern.training.tracking import build_tracker


def rates(config: OptimConfig, iterations: int) -> list[float]:
    """The rate of each step, and the one after the last."""
    schedule = Schedule(config, iterations)
    result = []
    for step in range(iterations):
        result.append(schedule.lr)
        schedule.after_step(step)
    return [*result, schedule.lr]


@given(st.integers(1, 300), st.floats(1e-4, 1.0), st.floats(0, 1.0))
def test_the_cosine_falls_from_lr_to_min_lr(iterations: int, lr: float, share: float) -> None:
    low = lr * share
    values = rates(OptimConfig(lr=lr, min_lr=low), iterations)
    assert values[0] == pytest.approx(lr)
    assert values[-1] == pytest.approx(low, abs=1e-12)
    assert all(low - 1e-12 <= later <= earlier + 1e-12 for earlier, later in pairwise(values))
    middle = values[iterations // 2]
    assert middle == pytest.approx((lr + low) / 2, abs=(lr - low) * 2 / iterations)


@given(st.integers(100, 400), st.integers(0, 7))
def test_a_computed_gamma_reaches_min_lr_at_the_end(iterations: int, interval: int) -> None:
    config = OptimConfig(lr=1e-2, min_lr=1e-4, lr_scheduler_type="exponential", gamma=0, step_interval=interval)
    values = rates(config, iterations)
    gamma = (1e-4 / 1e-2) ** ((interval or iterations // 100) / iterations)
    assert 1e-4 * gamma**2 <= values[-1] <= 1e-4 / gamma**2
    assert all(later <= earlier for earlier, later in pairwise(values))


def test_the_exponential_advances_after_every_interval() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.2, lr_scheduler_type="exponential", gamma=0.5, step_interval=3)
    assert rates(config, 9) == [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125, 0.125]


def test_onecycle_rises_to_its_peak_after_the_warm_up_and_falls_to_the_least() -> None:
    found, peak = rates(OptimConfig(lr_scheduler_type="onecycle", lr=0.5, warmup=0.25, min_lr=1e-3), 40), 10
    assert found[0] == pytest.approx(0.5 / 25)
    assert found[peak] == max(found) == pytest.approx(0.5)
    assert found[40] == pytest.approx(1e-3)
    assert found[39] < 0.01
    assert all(a < b for a, b in pairwise(found[: peak + 1]))
    assert all(a > b for a, b in pairwise(found[peak:]))
    assert found[peak // 2] == pytest.approx((0.5 + 0.5 / 25) / 2)  # half-way up a cosine
    assert found[(40 + peak) // 2] == pytest.approx((0.5 + 1e-3) / 2, rel=0.1)


def test_the_cosine_has_interval_1_whatever_is_set_and_says_so() -> None:
    with pytest.warns(NernWarning, match=r"optim.step_interval \(=5\) is 1 with the cosine schedule"):
        values = rates(OptimConfig(lr=1.0, step_interval=5), 50)
    assert values == rates(OptimConfig(lr=1.0), 50)


def with_gradients(*gradients: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.zeros(len(g))) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient)
    return parameters


def test_entries_are_limited_before_the_norm() -> None:
    parameters = with_gradients([30.0, 0.0], [0.0, -4.0])
    clip_gradients(parameters, OptimConfig(max_gradient=3.0, max_gradient_norm=18**0.5 / 3))
    for parameter, gradient in zip(parameters, [[1.0, 0.0], [0.0, -1.0]], strict=True):
        torch.testing.assert_close(parameter.grad, torch.tensor(gradient))


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_gradients_that_are_not_finite_are_seen(bad: float) -> None:
    parameters = {"0": nn.Parameter(torch.zeros(2)), "1": with_gradients([1.0, 2.0])[0]}
    check_gradients(parameters, 0)  # one has none
    parameters["1"].grad[1] = bad
    with pytest.raises(NonFiniteLossError, match="the gradient of 1 is not"):
        check_gradients(parameters, 0)


def test_ranger_goes_on_from_the_state_of_a_run_before_0_2() -> None:
    config, ends = OptimConfig(optimizer_type="ranger", lr=0.1, betas=(0.9, 0.999), weight_decay=0.01), []
    for stopped_at in (None, 9):
        rng = torch.Generator().manual_seed(1)
        parameters = [nn.Parameter(torch.randn(shape, generator=rng)) for shape in [(3, 4), (5,), (4, 3, 3, 2), ()]]
        optimizer = build_optimizer(config, parameters)
        for step in range(20):
            if step == stopped_at:
                state = optimizer.state_dict()
                names = ("params", "lr", "betas", "weight_decay", "eps", "k", "alpha", "step")
                older = {"n_sma_threshold": 5, "use_gc": True, "capturable": False}
                state["param_groups"] = [{n: group[n] for n in names} | older for group in state["param_groups"]]
                optimizer = build_optimizer(config, parameters)
                load_optimizer(optimizer, state)
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=rng)
            set_rate(optimizer, 0.1 / (1 + step))
            optimizer.step()
        ends.append(parameters)
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def config_of(**logging: object) -> Config:
    return Config(logging=LoggingConfig(exp_name="a run", **logging))


def scalars(folder: Path, tracker: str) -> dict[str, list[tuple[int, float]]]:
    if tracker == "csv":
        found: dict[str, list[tuple[int, float]]] = {}
        with (folder / "scalars.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["name"], []).append((int(row["step"]), float(row["value"])))
        return found
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize(
    ("logging", "tracker"),
    [
        ({}, "tensorboard"),
        ({"use_tensorboard": "true", "tracker": "tensorboard"}, "tensorboard"),
        ({"use_tensorboard": False}, "clearml"),
        ({"disable_logging": True}, "none"),
        ({"disable_logging": True, "tracker": "tensorboard"}, "none"),
    ],
)
def test_published_keys_choose_the_tracker(logging: dict[str, Any], tracker: str) -> None:
    config = Config.from_dict({"logging": logging})
    assert config.logging.tracker == tracker
    assert Config.from_dict(config.to_dict()) == config


def test_use_tensorboard_false_warns_where_clearml_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nern.config.published.clearml_installed", lambda: False)
    with pytest.warns(NernWarning, match="use_tensorboard is false, but ClearML is not installed: TensorBoard is used"):
        assert Config.from_dict({"logging.use_tensorboard": False}).logging.tracker == "tensorboard"


def test_no_cuda_is_no_gpus() -> None:
    assert [Config.from_dict({"no_cuda": off, "num_gpus": 2}).num_gpus for off in (True, False)] == [0, 2]


@pytest.mark.parametrize(
    ("tracker", "extra"),
    [("clearml", "clearml"), ("wandb", "wandb"), ("mlflow", "mlflow"), ("tensorboard", "train")],
)
def test_tracker_that_is_not_installed_is_named_with_its_extra(
    tracker: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NernError, match=rf"needs the {extra} extra: pip install 'nern\[{extra}\]'"):
        build_tracker(config_of(tracker=tracker), tmp_path)


@pytest.mark.parametrize("tracker", ["tensorboard", "csv"])
def test_a_resumed_run_replaces_what_follows(tracker: str, tmp_path: Path) -> None:
    for first, steps in ((0, range(4)), (2, range(2, 5))):
        time.sleep(1.1 * (first > 0))  # event files are read in the order of their names, which begin with the second
        writer = build_tracker(config_of(tracker=tracker), tmp_path, first)
        for step in steps:
            writer.log({"loss/total": float(step), "optim/lr": 0.5 + first}, step)
        writer.close()
    found = scalars(tmp_path, tracker)
    assert found["optim/lr"] == [(0, 0.5), (1, 0.5), (2, 2.5), (3, 2.5), (4, 2.5)]
    assert found["loss/total"] == [(step, step) for step in range(5)]


def test_mlflow_records_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker = build_tracker(config_of(tracker="mlflow"), tmp_path)
    for step in range(3):
        tracker.log({"loss/total": 1.0 / (step + 1)}, step)
    tracker.close()
    client = MlflowClient((tmp_path / "runs").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("nern").experiment_id])
    assert run.data.params["logging.tracker"] == "mlflow"
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss/total")
    assert [(metric.step, metric.value) for metric in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]


OFFLINE = """
import sys
from pathlib import Path
from nern.config import Config, LoggingConfig
from nern.training.tracking import build_tracker

folder, name = sys.argv[1:]
tracker = build_tracker(Config(logging=LoggingConfig(exp_name="offline run", tracker=name)).check(), Path(folder))
assert type(tracker).__name__.lower() == f"{name}tracker"
for step in range(3):
    tracker.log({"loss/total": 1.0 / (step + 1), "lr": 0.5}, step)
tracker.close()
"""
REFUSING = """
import os, socket

def refuse(*args, **kwargs):
    raise OSError("no network here, and no fork: beside the threads of torch it may hang")

socket.getaddrinfo = socket.create_connection = os.fork = refuse
"""


def test_wandb_records_offline(tmp_path: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    variables |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", OFFLINE, str(tmp_path), "wandb"]
    subprocess.run(command, env=variables, cwd=tmp_path, check=True, timeout=120)
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = record.read_bytes()
    assert b"loss/total" in content
    assert b"offline run" in content


def test_clearml_records_offline(tmp_path: Path) -> None:
    pytest.importorskip("clearml")
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("CLEARML", "TRAINS"))}
    variables |= {"HOME": str(tmp_path), "CLEARML_OFFLINE_MODE": "1", "CLEARML_CACHE_DIR": str(tmp_path / "clearml")}
    log = tmp_path / "log"
    command = [sys.executable, "-c", REFUSING + OFFLINE, str(run_folder), "clearml"]
    with log.open("w") as out:  # a file: what a process forks may hold a pipe open
        process = subprocess.Popen(command, stdout=out, stderr=out, env=variables, cwd=tmp_path, start_new_session=True)
        try:
            status = process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            pytest.fail(f"it hangs\n{log.read_text()}")
    assert status == 0, log.read_text()
    assert not any(run_folder.iterdir())  # no event files besides
    (session,) = tmp_path.rglob("offline-*.zip")
    with zipfile.ZipFile(session) as archive:
        task = json.loads(archive.read("task.json"))
        lines = archive.read("metrics.jsonl").decode().splitlines()
    assert (task["project_name"], task["name"]) == ("nern", "offline run")
    assert task["hyperparams"]["General"]["logging/exp_name"]["value"] == "offline run"
    events = [event for line in lines for event in json.loads(line)]
    recorded = {(e["metric"], e["variant"], e["iter"]): e["value"] for e in events if "value" in e}
    for step in range(3):
        assert math.isclose(recorded["loss", "total", step], 1.0 / (step + 1))
        assert recorded["lr", "lr", step] == 0.5
