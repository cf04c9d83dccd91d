"""The commands: what they take, what they print, and how they end."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import nern
from nern import Config
from nern.cli import COMMANDS
from nern.config.settings import known_keys
from runs import SHORT, Ended, Run, stop_after

ROOT = Path(__file__).resolve().parents[1]
OWN = SHORT | {
    "original_model_path": "pretrained:digits-resnet8",
    "nern.weights_batch_method": "random_batch",
    "nern.embeddings.permutations.permute_mode": "infilter",
    "num_iterations": 6,
    "eval_iterations_interval": 2,
    "loss_warmup_iterations": 2,
}


@pytest.fixture(autouse=True)
def short(tmp_path: Path) -> None:
    """The working directory holds `short.yaml`."""
    (tmp_path / "short.yaml").write_text(json.dumps(OWN))


def test_front_page_and_the_error_of_an_unknown_command_name_every_command(run: Run) -> None:
    assert run() == run("--help") == run("-h")
    assert all(f"nern {name}" in run().out for name in COMMANDS)
    assert run("--version") == Ended(0, f"{nern.__version__}\n", "")
    ended = run("trian")
    assert (ended.code, "unknown command 'trian'; did you mean 'train'?" in ended.err) == (2, True)
    assert all(name in ended.err for name in COMMANDS)


def test_the_shell_completes_commands_and_options(run: Run, tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(run("--completion").out)
    for typed, completed in (
        ("nern ev", ["evaluate"]),
        ("nern train --nern.hid", ["--nern.hidden_layer_size"]),
        ("nern train --distillation.it", ["--distillation.iterations"]),
        ("nern pack --byt", ["--bytes"]),
        ("nern pack net.p", []),  # then the shell takes the names of files
    ):
        words = typed.split()
        call = f"COMP_WORDS=({typed}) COMP_CWORD={len(words) - 1}; _nern nern {words[-1]}; echo ${{COMPREPLY[@]}}"
        ended = subprocess.run(["bash", "-c", f"source completion; {call}"], capture_output=True, text=True, check=True)
        assert (ended.stdout.split(), ended.stderr) == (completed, "")


def test_front_page_needs_no_torch_and_names_come_when_they_are_used() -> None:
    code = (
        "import sys, nern; from nern.cli import main; assert main([]) == main(['--help']) == main(['--version']) == 0;"
        "assert not {'torch', 'numpy', 'jsonargparse', 'rich'} & set(sys.modules);"
        "assert 'fit' in dir(nern); assert not hasattr(nern, 'fitt');"
        "from nern import Config, registry; assert 'ResNet20' in registry.ORIGINALS; assert nern.config.Config is Config;"
        "names = {}; exec('from nern import *', names); assert names['fit'] is nern.fit"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert nern.__version__ in ended.stdout


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("train", "no settings were given"),
        ("evaluate --json m.json", "no settings were given"),
        ("bench", "the name of a benchmark is required: order, step, reconstruct, scaling"),
        ("pack --bits 4", "required: source"),
        ("unpack", "required: file"),
    ],
)
def test_what_is_missing_is_said_below_the_usage(run: Run, tmp_path: Path, name: str, missing: str) -> None:
    ended = run(*name.split())
    *usage, error = ended.err.splitlines()
    assert (ended.code, ended.out) == (2, "")
    assert usage[0].startswith(f"usage: nern {name.split()[0]} ")
    assert error.startswith("error: ")
    assert missing in error
    assert [path.name for path in tmp_path.iterdir()] == ["short.yaml"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_page(run: Run, name: str) -> None:
    ended = run(name, "--help")
    assert ended.code == 0
    assert ended.out.startswith(f"usage: nern {name}")
    assert ("--json FILE" in ended.out) == (name not in ("list", "inspect", "unpack"))  # which measure nothing


def test_help_describes_every_key(run: Run) -> None:
    entries = re.split(r"\n(?=  -)", run("train", "--help").out)
    texts: dict[str, str] = {}
    for entry in entries:
        if match := re.match(r"  --([\w.]+)", entry):
            parts = re.split(r"\s{2,}", entry.strip(), maxsplit=1)
            texts[match.group(1)] = " ".join(parts[1].split()) if len(parts) == 2 else ""
    for key, kind in known_keys(Config).items():
        key = key.replace("phases.", "PHASE.")
        if dataclasses.is_dataclass(kind) or key in ("PHASE.name", "PHASE.optim"):
            continue
        if key.startswith("networks.") and key.removeprefix("networks.") not in texts:
            assert key.removeprefix("networks.") in texts["networks"]
            continue
        description, _, facts = texts[key.removeprefix("networks.")].partition("(type: ")
        assert len(description.split()) >= 3, key
        assert "default: " in facts, key


def test_entries_are_added_to_lists(run: Run, configs: list[Config], tmp_path: Path) -> None:
    (tmp_path / "lists.yaml").write_text("nern: {exclude: [a]}\n")
    typed = ["--nern.exclude+", "*.bias", "--nern.exclude+=['b', 'c']", "--nern.embeddings.gauss_scale+", "0.5"]
    assert run("train", "--config_path", "lists.yaml", *typed, "--nern.include+", "*.weight").code == 0
    assert configs[0].nern.exclude == ["a", "*.bias", "b", "c"]
    assert configs[0].nern.include == ["*.weight"]
    assert configs[0].nern.embeddings.gauss_scale == [1.0, 0.1, 0.1, 0.5]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ("--seed", "5", "--logging.exp_name", "a [bold] name"),
            'published; set: logging.exp_name="a [bold] name", seed=5',
        ),
        (("--seed", "0", "--nern.act_layer", "relu"), "published"),  # as they are anyway
        (
            ("--optim.betas", "[0.5, 0.9]", "--num_iterations", "3", "--epochs", "null"),
            "published; set: optim.betas=[0.5, 0.9], epochs=null, num_iterations=3",
        ),
        (("--task.original_model_kwargs", "{depth: 8}"), "published; set: task.original_model_kwargs.depth=8"),
        (
            ("--recipe", "nern", "--reconstruction.iterations", "null", "--distillation.iterations", "7"),
            "nern; set: reconstruction.iterations=null, distillation.iterations=7",
        ),
    ],
)
def test_a_line_says_what_differs_from_the_recipe(
    run: Run, configs: list[Config], typed: tuple[str, ...], said: str
) -> None:
    line, *rest = run("train", *typed).out.splitlines()
    assert [text.partition(":")[0] for text in rest] == ["The config names no recipe"] * ("--recipe" not in typed)
    assert line == f"recipe {said}"
    (config,) = configs
    values = dict(part.split("=", 1) for part in re.split(r", (?=[a-z_.]+=)", line.partition("; set: ")[2]) if part)
    again = {key: json.loads(value) for key, value in values.items()}
    assert Config.of_recipe(config.recipe, again) == config


def test_training_an_original_says_what_is_not_as_usual(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nern.commands.training.train_original", lambda *args: None)
    ended = run("train-original", "--task.task_name", "cifar100", "--epochs", "3")
    assert ended == Ended(0, 'defaults; set: task.task_name="cifar100", epochs=3\n', "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train --config_path short.yaml --nern.num_block 3", "did you mean 'nern.num_blocks'"),
        ("train --config_path short.yaml --nern.num_blocks", "needs a "),
        ("train --config_path short.yaml --original_model_path absent.pt", "no such file: absent.pt"),
        ("train --config_path short.yaml extra", "extra"),
        ("train --config_path absent.yaml", "no such file: absent.yaml"),
        ("train --config_path unknown.yaml", "unknown.yaml: unknown configuration key 'epoch'; did you mean 'epochs'"),
        ("train --config_path malformed.yaml", "malformed.yaml is not valid YAML"),
        ("train --resume absent", "absent is not a run folder"),
        ("train --resume absent --config_path short.yaml", "drop --config_path"),
        ("evaluate --config_path short.yaml", "set nern.init to 'checkpoint'"),
        ("evaluate --config_path short.yaml --original --evaluation.test_images 0", "nothing to evaluate on"),
        ("quickstart --epochs 3", "--epochs"),
    ],
)
def test_mistake_is_one_line_and_leaves_nothing(run: Run, tmp_path: Path, arguments: str, said: str) -> None:
    (tmp_path / "unknown.yaml").write_text("epoch: 3\n")
    (tmp_path / "malformed.yaml").write_text("nern: [1\nepochs: 2\n")
    before = set(tmp_path.iterdir())
    ended = run(*arguments.split())
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert set(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("no_picture")
def test_train_writes_metrics_ends_with_a_table_and_warns_in_one_line(run: Run, tmp_path: Path) -> None:
    ended = run("train", "--config_path", "short.yaml", "--json", "results/metrics.json", "--num_gpus", "2")
    assert ended.code == 0
    assert re.fullmatch(r"warning: num_gpus is 2, .* available: the run uses .*\n", ended.err)
    metrics = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert metrics == json.loads((tmp_path / "outputs" / "NeRN_Train" / "metrics.json").read_text())
    top1, parameters = metrics["original"]["test"]["top1"], metrics["sizes"]["predictor_parameters"]
    for part in ("run folder: outputs/NeRN_Train", f"{top1:.2f} %", f"{parameters:,}", "step 2/6: test "):
        assert part in ended.out


@pytest.mark.usefixtures("no_picture")
def test_saved_weights_are_those_that_were_evaluated(run: Run, tmp_path: Path) -> None:
    options = ["--optim.lr", "0.3", "--num_iterations", "9", "--eval_iterations_interval", "1"]  # best is not last
    assert run("train", "--config_path", "short.yaml", *options).code == 0
    folder = tmp_path / "outputs" / "NeRN_Train"
    trained = json.loads((folder / "metrics.json").read_text())
    for checkpoint in ("best", "last"):
        config = Config.load(tmp_path / "short.yaml").to_dict()
        config["nern"] |= {"init": "checkpoint", "checkpoint_path": str(folder / "checkpoints" / f"{checkpoint}.pt")}
        (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(config))
        ended = run("evaluate", "--config_path", "evaluate.yaml", "--json", f"{checkpoint}.json")
        assert ended.code == 0
        evaluated = json.loads((tmp_path / f"{checkpoint}.json").read_text())
        assert evaluated["reconstructed"] == trained[checkpoint]["test"]
        assert evaluated["original"] == trained["original"]["test"]
        assert "largest reconstruction error" in ended.out
        named = ["--checkpoint", checkpoint] if checkpoint != "best" else []
        assert run("evaluate", "--run", str(folder), *named, "--json", "run.json").code == 0
        assert json.loads((tmp_path / "run.json").read_text()) == evaluated
        assert (evaluated["layers"] == trained["layers"]) == (checkpoint == "best")
    ended = run("evaluate", "--run", str(folder), "--checkpoint", "step_3")
    assert ended.code == 2
    assert "it has: best, last" in ended.err


def test_original_is_evaluated_alone(run: Run, tmp_path: Path) -> None:
    options = ["--original", "true", "--evaluation.test_images", "null", "--json", "metrics.json"]
    ended = run("evaluate", "--config_path", "short.yaml", *options)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics.keys() == {"original"}
    assert metrics["original"]["images"] == 597
    assert metrics["original"]["top1"] > 99
    assert (ended.code, "ResNet8 on digits" in ended.out) == (0, True)


@pytest.mark.usefixtures("no_picture")
def test_stopped_run_says_how_to_go_on_and_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, 3)
    ended = run("train", "--config_path", "short.yaml")
    assert ended.code == 128 + signal.SIGINT
    assert ended.err == "stopped at step 3 of 6; saved. Continue with: nern train --resume outputs/NeRN_Train\n"
    ended = run(*ended.err.split("nern ")[1].split(), "--json", "metrics.json")
    assert (ended.code, ended.err) == (0, "")
    assert "6 steps, from step 3" in ended.out
    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == 6


@pytest.mark.usefixtures("quickly", "few_drops")
def test_quickstart_runs_what_the_package_holds(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Config.load

    def short(path: str | Path) -> Config:
        config = load(path)
        config.eval_iterations_interval = 2
        for phase in config.phases:
            phase.iterations = 2
        config.evaluation.test_images = 100
        return config

    monkeypatch.setattr(Config, "load", staticmethod(short))
    ended = run("quickstart", "--log_dir", "here", "--seed", "2", "--json", "metrics.json")
    assert (ended.code, ended.err) == (0, "")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["seed"], metrics["sizes"]["predictor_share"] <= 0.5) == (2, True)
    size = (tmp_path / "here" / "quickstart.nern").stat().st_size
    for said in (
        "picture: here/quickstart/curves.png",
        "nern evaluate --run here/quickstart",
        f"one file: here/quickstart.nern ({size / 1e3:,.1f} kB in place of 302.0 kB",
        "page: here/quickstart/report.html",
        *(f'ships with nern: nern.load("{name}").network() (' for name in nern.shipped.shipped_nerns()),
    ):
        assert said in ended.out
    assert all((tmp_path / "here" / "quickstart" / name).is_file() for name in ("curves.png", "report.html"))


@pytest.mark.slow
def test_quickstart_keeps_its_promise(run: Run, tmp_path: Path) -> None:
    assert run("quickstart", "--json", "metrics.json").code == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["best"]["test"]["top1"] >= metrics["original"]["test"]["top1"] - 0.5
    assert metrics["sizes"]["predictor_share"] <= 0.5
    assert run("evaluate", "--run", "outputs/quickstart", "--json", "again.json").code == 0
    assert json.loads((tmp_path / "again.json").read_text())["reconstructed"] == metrics["best"]["test"]


@pytest.mark.usefixtures("no_picture")
@pytest.mark.parametrize(("script", "typed"), [("train", "--num_iterations 1"), ("evaluate", "--original true")])
def test_scripts_at_the_root_train_and_evaluate(
    run: Run, script: str, typed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--config_path", "short.yaml", *typed.split()])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    assert stopped.value.code == 0
    assert "ResNet8 on digits" in capsys.readouterr().out
