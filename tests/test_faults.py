"""What faults and signals leave: files of the user, run folders, one clear error."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import nern
from nern import Config, NernError, PackOptions
from nern.cli import main
from nern.config import LoggingConfig
from nern.errors import ResourceError, resource_error
from nern.files import write_json, write_text
from nern.shipped import shipped_file
from nern.stopping import Interrupted
from nern.training.run_folder import RunFolder
from nern.training.trainer import Trainer
from runs import SHORT, assert_same_result, quiet, stop_after, train

pytestmark = pytest.mark.usefixtures("no_pictures")

DATA = Path(__file__).parent / "data"
SHIPPED = "pretrained:digits-resnet8.nern"
BASE: dict[str, Any] = SHORT | {"logging.exp_name": "run", "logging.progress": False, "num_iterations": 4}

Configure = Callable[..., Config]


@pytest.fixture(scope="module")
def run(original: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    own = {"original_model_path": str(original), "logging.log_dir": str(tmp_path_factory.mktemp("runs"))}
    return train(Config.from_dict(own | BASE | {"num_iterations": 1}))


def assert_same_metrics(a: RunFolder, b: RunFolder) -> None:
    assert_same_result(a, b)
    metrics_a, metrics_b = (json.loads(folder.metrics.read_text()) for folder in (a, b))
    for key in ("original", "best", "last", "layers"):
        assert metrics_a[key] == metrics_b[key], key


@contextmanager
def limited(kind: int, number: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


def test_runs_that_begin_together_get_folders_of_their_own(tmp_path: Path) -> None:
    logging = LoggingConfig(log_dir=str(tmp_path / "runs"), exp_name="run")
    together = threading.Barrier(12)

    def begin(number: int) -> Path:
        together.wait()
        with RunFolder.claimed(logging) as folder:
            together.wait()  # all have claimed, none has written
            folder.state.write_text(str(number))
        return folder.root

    with ThreadPoolExecutor(12) as threads:
        begun = {path: str(number) for number, path in enumerate(threads.map(begin, range(12)))}
    assert len(begun) == 12
    assert {path: RunFolder(path).state.read_text() for path in (tmp_path / "runs").iterdir()} == begun


def test_the_empty_folder_of_another_run_is_left_alone(configure: Configure, tmp_path: Path) -> None:
    with RunFolder.claimed(configure().logging) as other:
        first = tmp_path / "runs" / "run"
        assert other.root == first
        with pytest.raises(NernError, match="another process is training in"), RunFolder(first).locked():
            pass
        with pytest.raises(NernError, match="feature maps"):  # which removes the folder that it has claimed
            nern.train(configure({"nern.feature_maps": [], "loss_warmup_iterations": 0}), quiet())
        assert [path.name for path in first.parent.iterdir()] == ["run"]
        assert nern.train(configure({"num_iterations": 1}), quiet())["run_folder"] == str(tmp_path / "runs" / "run-2")
        assert not any(first.iterdir())


def failing(number: int) -> None:
    raise OSError(number, os.strerror(number))


PHASES: dict[str, Any] = {
    "num_iterations": None,
    "reconstruction.iterations": 1,
    "distillation.iterations": 2,
    "quantisation.iterations": 3,
    "quantisation.images": 8,
    "learn_norms": True,
    "optim.lr": 0.05,
    "eval_iterations_interval": 1,
    "save_minutes": 0.0,
}


def test_a_kill_at_any_moment_leaves_what_belongs_together(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies of the run folder, made before each write takes effect, are what a kill there leaves."""
    root, replace = tmp_path / "runs" / "run", os.replace
    left: list[RunFolder] = []

    def replacing(source: Any, target: Any) -> None:
        if Path(target).is_relative_to(root):
            left.append(RunFolder(shutil.copytree(root, tmp_path / "left" / str(len(left)))))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replacing)
        nern.train(configure(PHASES), quiet())
    whole, saved = RunFolder(root), [folder for folder in left if folder.state.is_file()]
    for folder in saved:
        if folder.metrics.is_file():
            assert json.loads(folder.metrics.read_text())["best"]["step"] == (folder.record("best") or {})["step"]
    ahead = [folder for folder in saved if (folder.record("best") or {})["step"] > folder.load_state()["step"]]
    assert ahead  # the state is of an earlier step than the best checkpoint
    chosen = {folder.root: folder for folder in (saved[0], ahead[0], ahead[-1], left[-1])}
    for folder in chosen.values():
        config, record = nern.jobs.evaluating.config_of_run(folder.root), folder.record("best")
        assert record is not None
        assert nern.evaluate(config, console=quiet(), run=folder.root)["reconstructed"] == record["test"]
        nern.resume(folder.root, quiet())
        assert_same_metrics(whole, folder)


def test_run_folders_of_earlier_versions_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep norms and steps of rounding in files beside the predictor."""
    folder = RunFolder(shutil.copytree(DATA / "earlier-run", tmp_path / "run"))
    expected = json.loads((DATA / "earlier-run.json").read_text())
    config = nern.jobs.evaluating.config_of_run(folder.root)
    found = nern.evaluate(config, console=quiet(), run=folder.root)["reconstructed"]
    assert found == pytest.approx(expected["best of the stopped run"])
    norms = load_file(folder.root / "checkpoints" / "best.kept.safetensors")
    state = nern.load_run(folder.root).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in norms.items())
    artifact = nern.pack(folder.root, tmp_path / "net.nern", PackOptions(images=8, evaluate=True), quiet())
    assert artifact.description.networks[0].about["test"] == pytest.approx(expected["packed"]["test"])
    metrics = nern.resume(folder.root, quiet())
    for which in ("best", "last"):
        for images in ("held_out", "test"):
            assert metrics[which][images] == pytest.approx(expected[which][images]), which
    assert metrics["best"]["step"] == expected["best"]["step"]


# The file that a command would write without having been told, and what it is called with.
MADE_UP = {
    "{run}.nern": ["pack", "{run}", "--lossless", "true"],
    "digits-resnet8.safetensors": ["unpack", SHIPPED],
    "digits-resnet8_report.html": ["report", SHIPPED, "--images", "0"],
}


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(("made_up", "command"), MADE_UP.items())
def test_a_file_that_was_not_named_is_never_overwritten(
    made_up: str, command: list[str], run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    command, file = [word.format(run=run.root) for word in command], Path(made_up.format(run=run.root))
    file.write_text("mine")
    assert main(command) == 2
    assert "is there already and stays as it is. Move it, or name" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert main([*command, "-o", str(file)]) == 0
    assert file.read_bytes() != b"mine"
    assert main(command) == (0 if command[0] == "report" else 2)  # an earlier report makes way for the next
    file.unlink()


@pytest.mark.parametrize(
    "command",
    [
        ["report", "net.nern", "-o", "net.nern"],
        ["pack", "{run}", "-o", "{run}/state.pt"],
        ["pack", "{run}", "-o", "link.yaml"],
        ["info", "net.nern", "--json", "folder/last.pt"],
        ["train", "--config_path", "child.yaml", "--json", "./base.yaml"],
        ["train", "--resume", "{run}", "--json", "{original}"],
        ["evaluate", "--run", "{run}", "--json", "{original}"],
    ],
)
def test_what_is_read_and_what_a_run_needs_is_not_replaced(
    command: list[str], run: RunFolder, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("net.nern").write_bytes(shipped_file(SHIPPED, ".nern", "a NeRN").read_bytes())  # type: ignore[union-attr]
    Path("link.yaml").symlink_to(run.config)
    Path("folder").symlink_to(run.root / "checkpoints")
    Path("base.yaml").write_text(f"original_model_path: {original}")
    Path("child.yaml").write_text("base: base.yaml\noriginal_model_path: own.pt#ema")
    Path("own.pt").write_text("{}")
    files = original, *run.root.rglob("*"), *tmp_path.rglob("*")
    before = {path: path.read_bytes() for path in files if path.is_file()}
    assert main([word.format(run=run.root, original=original) for word in command]) == 2
    assert "would be lost" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_links_permissions_and_devices_stay(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.touch(0o600)
    link.symlink_to(target)
    write_text(link, "after")
    assert (link.is_symlink(), target.read_text(), target.stat().st_mode & 0o777) == (True, "after", 0o600)
    write_json("/dev/null", {"a": 1})
    assert not Path("/dev/null").is_file()
    assert len(list(tmp_path.iterdir())) == 2


def test_what_the_system_refuses_is_one_clear_error(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Too many open files" in str(resource_error(RuntimeError("received 0 items of ancdata")))
    assert resource_error(RuntimeError("shapes")) is None
    configure().save(tmp_path / "config.yaml")
    monkeypatch.setattr(Trainer, "do_step", lambda self: torch.empty(10**15))
    assert main(["train", "--config_path", str(tmp_path / "config.yaml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    said = r"error: there is not enough memory \(tried to allocate .*\)\. Take smaller.*Nothing had been saved"
    assert re.match(said, line)
    assert not any((tmp_path / "runs").iterdir())


RESUMABLE = {"eval_iterations_interval": 1, "learn_norms": True}


@pytest.fixture(scope="module")
def whole(original: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of four steps that no fault disturbs."""
    own = {"original_model_path": str(original), "logging.log_dir": str(tmp_path_factory.mktemp("whole"))}
    return train(Config.from_dict(own | BASE | RESUMABLE))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("disk", "best.pt cannot be written: File too large"),
        ("memory", "there is not enough memory"),
        ("fsync", "best.pt cannot be written: No space left on device"),
        ("gone", "was moved or deleted while the run went on"),
    ],
)
def test_a_run_goes_on_when_the_fault_is_mended(
    fault: str, said: str, whole: RunFolder, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(RESUMABLE)
    folder, do_step = RunFolder(tmp_path / "runs" / "run"), Trainer.do_step

    def at_fault(self: Trainer) -> Any:
        if self.step == 2:
            if fault == "disk":
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            elif fault == "memory":
                torch.empty(10**15)
            elif fault == "gone":
                shutil.move(folder.root, tmp_path / "moved")
            else:
                monkeypatch.setattr(os, "fsync", lambda *args, **more: failing(errno.ENOSPC))
        return do_step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "do_step", at_fault)
        with limited(resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)[0]):
            with pytest.raises(ResourceError, match=said) as caught:
                nern.train(config, quiet())
    monkeypatch.undo()
    if fault == "gone":
        assert not folder.root.exists()  # it is not made a second time
        shutil.move(tmp_path / "moved", folder.root)
    else:
        assert f"Continue with: nern train --resume {folder.root}" in str(caught.value)
    assert not list(folder.root.rglob(".*"))
    nern.resume(folder.root, quiet())
    assert_same_metrics(whole, folder)


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize(
    ("command", "file"),
    [
        (["pack", "{run}", "-o", "net.nern", "--lossless", "true"], "net.nern"),
        (["unpack", SHIPPED, "-o", "w.pt"], "w.pt"),
        (["report", "{run}", "-o", "page.html", "--images", "0"], ""),
        (["info", SHIPPED, "--json", "info.json"], "info.json"),
    ],
)
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    command: list[str], file: str, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = [word.format(run=run.root) for word in command]
    with limited(resource.RLIMIT_FSIZE, 30):
        assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert f"{file} cannot be written: File too large" in told
    assert len(told.splitlines()) == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
    assert main(words) == 0


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Signals as a terminal's processes have them, whatever started the tests."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "where"),
    [(signal.SIGTERM, "build_experiment"), (signal.SIGHUP, "store_ordering"), (signal.SIGINT, "store_ordering")],
)
def test_a_signal_before_the_first_step_ends_with_a_line_and_leaves_nothing(
    number: signal.Signals, where: str, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    configure().save(tmp_path / "config.yaml")
    monkeypatch.setattr(f"nern.jobs.training.{where}", lambda *args, **more: signal.raise_signal(number))
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert main(["train", "--config_path", str(tmp_path / "config.yaml")]) == 128 + number
    by = "" if number == signal.SIGINT else f" by {number.name}"
    assert capsys.readouterr().err == f"stopped{by}; nothing since the last save was kept\n"
    assert not list(tmp_path.glob("runs/*"))
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_training_saves(number: signal.Signals, configure: Configure, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3, number)
        with pytest.raises(Interrupted, match="stopped at step 3 of 4") as caught:
            nern.train(configure(), quiet())
    assert caught.value.signal_number == number
    assert RunFolder(tmp_path / "runs" / "run").load_state()["step"] == 3
