"""The README's code and commands, run as written but for their length."""

from __future__ import annotations

import re
import shlex
import shutil
from importlib import resources
from pathlib import Path

import pytest
import torch

import nern
from nern import registry
from nern.cli import main
from nern.training.run_folder import load_steps

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FEW = ["--batch_size", "8", "--evaluation.test_images", "32", "--evaluation.held_out_images", "16"]
SHORT = ["--epochs", "null", "--num_iterations", "2", *FEW]
SHORT_PHASES = ["--reconstruction.iterations", "2", "--distillation.iterations", "2", *FEW]
SHORT_PHASES += ["--refinement.iterations", "2", "--refinement.images", "8", "--norm_images", "8"]
SHORT_PHASES += ["--nern.embeddings.permutations.improve_seconds", "0"]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str = README) -> list[list[str]]:
    lines = [line for block in blocks("sh", text) for line in block.splitlines() if line.startswith("nern ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_ten_lines_fit_a_network(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quick = nern.fit_config(3)
    quick.nern.embeddings.permutations.improve_seconds = 0.1
    monkeypatch.setattr("nern.api.fit_config", lambda: quick)
    code = next(b for b in blocks("python") if "nern.fit" in b)
    assert len(code.strip().splitlines()) <= 11
    names: dict[str, object] = {}
    exec(code.replace("iterations=2000", "iterations=3, progress=False"), names)
    assert isinstance(names["reconstructed"], torch.nn.Sequential)
    assert capsys.readouterr().out.count("relative error") == 2


def test_own_network_and_task_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _ = blocks("python", EXTENDING)
    config, _ = blocks("yaml", EXTENDING)
    Path("mine.py").write_text(code)
    Path("config.yaml").write_text(config)
    names: dict[str, object] = {}
    try:
        exec(code, names)
        torch.save(names["MyNetwork"]().state_dict(), "mine.pt")  # type: ignore[operator]
        registry.ORIGINALS.unregister("MyNetwork")
        registry.TASKS.unregister("mybenchmark")
        assert main(["train", "--config_path", "config.yaml", *SHORT, "--loss_warmup_iterations", "1"]) == 0
        assert Path("outputs/NeRN_Train/metrics.json").is_file()
    finally:
        registry.ORIGINALS.unregister("MyNetwork")
        registry.TASKS.unregister("mybenchmark")


def test_components_of_the_docs_train_and_are_kept(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("omega.py").write_text(blocks("python", EXTENDING)[1])
    Path("config.yaml").write_text(blocks("yaml", EXTENDING)[1])
    omega = re.search(r"`(--nern.method.name [^`]*)`", EXTENDING)
    assert omega is not None
    options = [*omega.group(1).split(), "--original_model_path", str(original), "--loss_warmup_iterations", "0"]
    try:
        assert main(["train", "--config_path", "config.yaml", *SHORT, *options]) == 0
        state = torch.load("outputs/NeRN_Train/state.pt", weights_only=True)
        assert {"agreement", "distillation"} <= state["losses"][-1].keys()
        assert main(["pack", "outputs/NeRN_Train", "-o", "run.nern"]) == 0
        assert main(["info", "run.nern"]) == 0
    finally:
        registry.PREDICTORS.unregister("kxk_omega")
        registry.LOSS_TERMS.unregister("agreement")


@pytest.fixture
def cifar_folder(shared: Path, cifar10: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what the README's CIFAR-10 config refers to."""
    (tmp_path / "data").symlink_to(cifar10)
    shutil.copy(shared / "weights" / "resnet20-cifar10.pt", tmp_path / "resnet20.pt")
    (tmp_path / "config.yaml").write_text(next(b for b in blocks("yaml") if "resnet20.pt" in b).replace("131", "32"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_documented_commands_run(cifar_folder: Path) -> None:
    ran = []
    for command in commands():
        if "--help" in command:
            with pytest.raises(SystemExit) as stopped:
                main(command)
            assert stopped.value.code == 0
        else:
            by_phases = "config.yaml" in command
            short = (SHORT_PHASES if by_phases else SHORT) if command[0] == "train" else FEW[2:]
            short = [] if command[0] == "sweep" else short
            short = ["--images", "2"] if command[0] == "pack" else short if "--config_path" in command else []
            few = ["4" if part == "4000" else part for part in command]  # steps of a run made longer
            assert main([*few, *short]) == 0, command
        ran.append(command[0])
    assert ran.count("train") == 5
    assert ran.count("evaluate") == 3
    for network in (nern.load_run("outputs/resnet20"), nern.load("resnet20.nern").network()):
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_documented_files_are_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = [*SHORT_PHASES, "--logging.tracker", "none"]
    quickstart = str(resources.files("nern") / "configs" / "quickstart.yaml")
    (quantised,) = blocks("yaml", FILES)
    Path("config.yaml").write_text(f"base: {quickstart}\n{quantised}".replace("1000", "2"))
    assert main(["train", "--config_path", "config.yaml", *short]) == 0
    assert load_steps("outputs/quickstart/checkpoints/best.pt") is not None
    ran = commands(FILES)
    for command in ran:
        assert main(command) == 0, command
    assert [command[0] for command in ran] == ["pack", "info", "verify", "unpack"]
    (code,) = blocks("python", FILES)
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["network"], torch.nn.Module)


@pytest.mark.parametrize(
    ("key", "entries"),
    [
        ("nern.embeddings.permutations.permute_mode", registry.ORDERINGS),
        ("nern.embeddings.type", registry.ENCODINGS),
        ("nern.method", registry.PREDICTORS),
        ("nern.weights_batch_method", registry.WEIGHT_BATCHES),
        ("task.random_data", registry.RANDOM_IMAGES),
        ("optim.optimizer_type", registry.OPTIMIZERS),
        ("optim.lr_scheduler_type", registry.SCHEDULES),
        ("logging.tracker", registry.TRACKERS),
    ],
)
def test_tables_list_every_registered_name(key: str, entries: registry.Registry[object]) -> None:
    row = next(line for line in README.splitlines() if f"| `{key}` |" in line)
    named = set(re.findall(r"`([\w.]+)`", row.split("|")[3]))
    assert set(entries) <= named


def test_networks_and_tasks_are_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    def plain(text: str) -> list[str]:  # how many networks a library has changes with its version
        return [re.sub(r"the [\d,]+ networks", "the networks", line) for line in text.strip().splitlines()]

    assert main(["list"]) == 0
    between = README.partition("<!-- nern list -->")[2].partition("<!-- end -->")[0]
    assert plain(between) == plain(capsys.readouterr().out)


@pytest.mark.parametrize(
    "path", [*sorted(p.name for p in (ROOT / "docs").glob("*.md")), "README.md", "CONTRIBUTING.md"]
)
def test_links_in_the_documentation_lead_somewhere(path: str) -> None:
    file = ROOT / path if (ROOT / path).is_file() else ROOT / "docs" / path
    links = re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (file.parent / link).exists()] == []
