"""Several processes: each has its share, and together they do what one would have done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import nern
from nern import Config, NernError, OriginalConfig
from nern.cli import main
from nern.devices import select_device
from nern.errors import NernWarning
from nern.processes import Processes
from nern.registry import TASKS
from nern.training.run_folder import RunFolder
from runs import SHORT, quiet

pytestmark = pytest.mark.usefixtures("no_picture")

BASE: dict[str, Any] = SHORT | {
    "original_model_path": "pretrained:digits-resnet8",
    "nern.hidden_layer_size": 16,
    "nern.embeddings.enc_levels": 8,
    "nern.weights_batch_method": "random_weighted_batch",
    "nern.weights_batch_size": 301,
    "nern.attention_loss_weight": 1e-3,
    "nern.distillation_loss_weight": 1e-5,
    "evaluation.held_out_images": 45,
    "evaluation.test_images": 70,
    "evaluation.batch_size": 20,
    "num_iterations": 3,
    "batch_size": 17,
    "loss_warmup_iterations": 1,
    "no_cuda": True,
}
MINE = """
import torch
from torch.utils.data import DataLoader, Dataset
import nern
from nern.tasks import Unreadable

class Patchy(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index % 2:
            return Unreadable(f"image {index}", "torn")
        return torch.rand(1, 8, 8) * index / 40, index % 10

@nern.register_task("patchy", input_shape=(1, 8, 8), num_classes=10)
def patchy(train_kwargs, test_kwargs, use_workers=True, **kwargs):
    return DataLoader(Patchy()), DataLoader(Patchy())
"""
STOPPED = """
import os, signal, time
from nern.stopping import StopRequest
from nern.training.trainer import Trainer

train_step, note, noted = Trainer.train_step, StopRequest._note, []

def noting(self, number, frame):
    noted.append(number)
    note(self, number, frame)

def stopping(self, *args):
    losses = train_step(self, *args)
    if self.step == 2 and os.environ.get("RANK") == "1":
        os.kill(os.getppid(), signal.SIGINT)  # as Ctrl-C does: torchrun passes it on
        while not noted:
            time.sleep(0.01)
    return losses

StopRequest._note, Trainer.train_step = noting, stopping
"""
FAILING = """
import os
from nern import NernError
from nern.training.trainer import Trainer

train_step = Trainer.train_step

def failing(self, *args):
    if self.step == 2 and os.environ.get("RANK") == "1":
        raise NernError("the second process fails")
    return train_step(self, *args)

Trainer.train_step = failing
"""
SEVERAL_RUNS = """
import io, json, os, sys, warnings
import torch
from rich.console import Console
import nern
import nern.analysis.plots

nern.analysis.plots.plot_run = lambda *args: None  # the slowest part of a short run
rank, found = int(os.environ["RANK"]), {}
for name, values in json.load(open("runs.json")).items():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found[name] = {"metrics": nern.train(nern.Config.from_dict(values), Console(file=io.StringIO()))}
        except nern.NernError as error:
            found[name] = {"error": str(error)}
    found[name]["warnings"] = [str(w.message) for w in caught if issubclass(w.category, nern.errors.NernWarning)]
json.dump(found, open(f"found-{rank}.json", "w"))
"""


def config(folder: Path, **values: Any) -> dict[str, Any]:
    return BASE | {"logging.log_dir": str(folder)} | values


def launch(folder: Path, launcher: list[str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in two processes; torchrun chooses a port that is free."""
    given = [sys.executable, "-m", *launcher, *command]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment["OMP_NUM_THREADS"] = "1"
    pipe = subprocess.PIPE
    with subprocess.Popen(given, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            output, errors = process.communicate(timeout=240)
        except BaseException:
            process.terminate()  # unlike kill, it reaches those that the launcher has started
            raise
    return subprocess.CompletedProcess(given, process.returncode, output, errors)


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def options(values: dict[str, Any]) -> list[str]:
    return [f"--{key}={'null' if value is None else value}" for key, value in values.items()]


def assert_same_training(a: RunFolder, b: RunFolder, rounding: float = 1e-4) -> None:
    """The same steps with the same losses, evaluations and predictor, up to the rounding of sums."""
    first, second = a.load_state(), b.load_state()
    assert [entry.keys() for entry in first["losses"]] == [entry.keys() for entry in second["losses"]]
    for one, two in zip(first["losses"], second["losses"], strict=True):
        assert one.pop("phase", None) == two.pop("phase", None)
        assert one == pytest.approx(two, rel=rounding), one["step"]
    assert len(first["evaluations"]) == len(second["evaluations"])
    for one, two in zip(first["evaluations"], second["evaluations"], strict=True):
        for name in {"held_out", "test"} & one.keys():
            assert one[name]["images"] == two[name]["images"]
            assert one[name]["divergence"] == pytest.approx(two[name]["divergence"], rel=10 * rounding)
    for part in ("predictor", "extra"):
        for name, value in first[part].items():
            torch.testing.assert_close(second[part][name], value, rtol=rounding, atol=rounding)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine that says it has four; what would have been set or started."""
    called: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", called.append)

    def execv(path: str, arguments: list[str]) -> None:
        called.append(arguments)
        raise SystemExit(0)  # the process is another one from here

    monkeypatch.setattr(os, "execv", execv)
    return called


def test_num_gpus_starts_so_many_processes(
    four_gpus: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "--task.task_name", "digits", "--num_gpus=8", f"--logging.log_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["nern", *command])
    with pytest.raises(SystemExit):
        main()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "-m", "nern"]
    assert four_gpus == [[sys.executable, *launcher, *command]]


@pytest.mark.parametrize(
    ("values", "environment", "code"),
    [
        ({"num_gpus": 1}, {}, 0),
        ({"num_gpus": 2, "no_cuda": True}, {}, 0),
        ({"num_gpus": 2}, {"RANK": "1", "WORLD_SIZE": "2"}, 0),  # one of several starts no others
        ({"num_gpus": 2, "batch_size": 0}, {}, 2),
    ],
)
def test_nothing_is_started_for_one_device_or_where_there_is_a_mistake(
    four_gpus: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    environment: dict[str, str],
    code: int,
) -> None:
    monkeypatch.setattr("nern.commands.training.train", lambda *args: {})
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["train", *options(values)], may_restart=True) == code
    assert four_gpus == []


def test_each_process_has_a_gpu_of_its_own(four_gpus: list[Any]) -> None:
    chosen = Config.from_dict({"num_gpus": 2})
    assert select_device(chosen.num_gpus, Processes(3, 4, 1, 2)) == torch.device("cuda", 1)
    assert four_gpus == [torch.device("cuda", 1)]
    with pytest.raises(NernError, match="5 processes were started on a machine with 4 GPUs"):
        select_device(chosen.num_gpus, Processes(0, 5, 0, 5))
    with pytest.warns(NernWarning, match=r"num_gpus is 2, 4 of them available: the run uses one GPU \(torchrun"):
        assert select_device(chosen.num_gpus) == torch.device("cuda", 0)


def test_other_commands_want_one_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for call, given in ((nern.train_original, OriginalConfig()), (nern.resume_original, tmp_path)):
        with pytest.raises(NernError, match="nern train-original works in one process"):
            call(given, quiet())
    assert main(["evaluate", "--run", str(tmp_path)]) == 2
    assert "nern evaluate works in one process" in capsys.readouterr().err


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    values = config(tmp_path / "two", num_iterations=6, eval_iterations_interval=3) | {
        "nern.embeddings.permutations.permute_mode": "crossfilter",
        "logging.tracker": "tensorboard",
        "loss_warmup_iterations": 2,
    }
    pytest.importorskip("accelerate")  # torchrun launches those below
    ended = launch(tmp_path, ACCELERATE, "-m", "nern", "train", *options(values), "--json", "metrics.json")
    assert ended.returncode == 0, ended.stderr
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["NeRN_Train"]  # one process writes
    assert ended.stdout.count("run folder: ") == ended.stdout.count("recipe published; set: ") == 1  # and talks
    assert "6 steps on 2 processes, each on a cpu" in ended.stdout
    run = RunFolder(tmp_path / "two" / "NeRN_Train")
    assert len(list(run.root.glob("events.*"))) == 1
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics == json.loads(run.metrics.read_text())
    assert metrics["processes"] == 2
    alone = nern.train(Config.from_dict(values | {"logging.log_dir": str(tmp_path / "one")}), quiet())
    assert_same_training(run, RunFolder(alone["run_folder"]))
    for name in ("held_out", "test"):
        assert metrics["original"][name] == pytest.approx(alone["original"][name])
    assert nern.load_run(run.root)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


RECONSTRUCTION = {"nern.attention_loss_weight": 0.0, "nern.distillation_loss_weight": 0.0}
NETWORK: dict[str, Any] = {"original_model_path": "pretrained:digits-resnet8", "task": {"task_name": "digits"}}
RUNS: dict[str, dict[str, Any]] = {
    "drawn rows of several kernel sizes": RECONSTRUCTION
    | {"nern.reconstruction_rows": "drawn", "nern.include": ["*.weight"], "nern.reconstruction_loss_type": "MSELoss"}
    | {"nern.weights_batch_method": "random_batch", "optim.optimizer_type": "ranger"},
    "all rows of several kernel sizes": {"nern.weights_batch_method": "all", "nern.include": ["*.weight"]}
    | {"optim.max_gradient_norm": 0.01},
    "labels and a layer beside": {"nern.task_loss_weight": 1e-3, "learn_fc_layer": True}
    | {"optim.optimizer_type": "sgd", "optim.max_gradient_norm": 1.0}  # others take steps as large for no gradient
    | {"loss_warmup_iterations": 3, "optim.weight_decay": 0.1},  # a layer without a gradient stays as it is
    "batches of one image": {"batch_size": 1, "nern.task_loss_weight": 1e-5},
    "unreadable images": {"imports": ["mine.py"], "task.task_name": "patchy", "batch_size": 3, "num_iterations": 8}
    | {"evaluation.held_out_images": 4, "evaluation.test_images": 7, "evaluation.batch_size": 1},
    "made-up images": {"task.use_random_data": True, "task.random_data": "leaves"},
    "several networks": {"networks": [NETWORK, NETWORK], "original_model_path": None},
    "refinement by drawn filters": {"nern.reconstruction_rows": "drawn", "learn_norms": True, "norm_images": 16}
    | {"num_iterations": None, "loss_warmup_iterations": 10000, "reconstruction.iterations": 1}
    | {"refinement.iterations": 2, "refinement.images": 16, "refinement.weights_batch_method": "random_filters"}
    | {"distillation.iterations": 1},
    "16 bits": {"precision": "bf16"},
}
OTHERS: dict[str, dict[str, Any]] = {
    "batch norm": {"nern.norm_layer": "bn"},
    "losses of the whole batch": {"nern.attention_loss_type": "SPAttentionLoss"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """All of RUNS and OTHERS, one after the other, by a program that two processes run; what each process got."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "mine.py").write_text(MINE)
    (folder / "program.py").write_text(SEVERAL_RUNS)
    everything = {name: config(folder / name, **values) for name, values in (RUNS | OTHERS).items()}
    (folder / "runs.json").write_text(json.dumps(everything))
    ended = launch(folder, TORCHRUN, "program.py")
    assert ended.returncode == 0, ended.stderr
    return folder, [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture
def unregistered() -> Iterator[None]:
    """What a run of this process registers is forgotten after it."""
    yield
    if "patchy" in TASKS:
        TASKS.unregister("patchy")


@pytest.mark.usefixtures("unregistered")
@pytest.mark.filterwarnings("ignore:image .* cannot be read:nern.errors.NernWarning")
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_do_what_one_does(
    runs: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder, found = runs
    assert found[0][name] == found[1][name] | {"warnings": found[0][name]["warnings"]}  # all get the metrics
    monkeypatch.chdir(folder)  # where mine.py is
    alone = nern.train(Config.from_dict(config(tmp_path, **RUNS[name])), quiet())
    metrics = found[0][name]["metrics"]
    ours, theirs = RunFolder(metrics["run_folder"]), RunFolder(alone["run_folder"])
    assert_same_training(ours, theirs, 1e-2 if "16" in name else 1e-4)
    assert metrics.get("skipped_images") == alone.get("skipped_images")


def test_batch_norm_is_refused_and_a_loss_of_the_whole_batch_warned_of(
    runs: tuple[Path, list[dict[str, Any]]],
) -> None:
    assert all("nern.norm_layer 'bn' needs" in found["batch norm"]["error"] for found in runs[1])
    told = [" ".join(found["losses of the whole batch"]["warnings"]) for found in runs[1]]
    assert "compares the images of a batch as a whole" in told[0]
    assert told[1] == ""


def test_ctrl_c_stops_all_and_one_process_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stopped.py").write_text(STOPPED)
    values = config(tmp_path / "two", num_iterations=8)
    ended = launch(tmp_path, TORCHRUN, "-m", "nern", "train", *options(values), "--imports=[stopped.py]")
    assert ended.returncode != 0
    run = RunFolder(tmp_path / "two" / "NeRN_Train")
    step = run.load_state()["step"]
    assert 2 <= step <= 5
    assert ended.stderr.count(f"stopped at step {step} of 8; saved. Continue with: nern train --resume") == 1
    monkeypatch.chdir(tmp_path)
    nern.resume(run.root, quiet())
    alone = nern.train(Config.from_dict(values | {"logging.log_dir": str(tmp_path / "one")}), quiet())
    assert_same_training(run, RunFolder(alone["run_folder"]))


def test_an_error_in_one_process_ends_all(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    values = config(tmp_path / "two", imports=["failing.py"])
    ended = launch(tmp_path, TORCHRUN, "-m", "nern", "train", *options(values))
    assert ended.returncode != 0
    assert "process 1: error: the second process fails" in ended.stderr
    assert not (tmp_path / "two" / "NeRN_Train").exists()  # nothing was trained in it
