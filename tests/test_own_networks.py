"""Networks of a user's own files: trained, evaluated, packed, verified and reported, whatever their files import."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import nern
from artifact_parts import with_description
from nern import NernError, registry, verify
from nern.artifact import write_artifact
from nern.cli import main
from nern.config import TaskConfig
from runs import TINY, quiet

BLOCKS = """
from torch import nn
def conv(a, b): return nn.Conv2d(a, b, 3, padding=1)
"""
NETWORK = """
import blocks_{name}
from torch import nn
import nern
from nern.config import TaskConfig

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        import later_{name}
        layers = blocks_{name}.conv(1, width), nn.ReLU(), later_{name}.conv(width, width), nn.ReLU()
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, 10)
    def forward(self, images):
        return self.head(self.body(images))

def make(width=4):
    return Net(width)
"""
REGISTERED = """
nern.register_original("Net_{name}")(Net)
"""
Own = Callable[..., Path]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_picture: None) -> Iterator[Own]:
    """Makes sub/mine.py, with modules beside it, and a run of its network in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = tmp_path.name.replace("-", "_")  # modules are imported once

    def make(network: str, imports: list[str], code: str = "") -> Path:
        folder = tmp_path / "sub"
        folder.mkdir()
        for module in ("blocks", "later"):
            (folder / f"{module}_{name}.py").write_text(BLOCKS)
        (folder / "mine.py").write_text((NETWORK + code).format(name=name))
        own = {"imports": imports, "task.original_model_name": network.format(name=name), "logging.exp_name": "own"}
        length = {"epochs": None, "num_iterations": 2, "evaluation.test_images": 50}
        (tmp_path / "own.yaml").write_text(json.dumps(TINY | own | length))
        assert main(["train", "--config_path", "own.yaml"]) == 0
        return tmp_path / "outputs" / "own"

    yield make
    if f"Net_{name}" in registry.ORIGINALS:
        registry.ORIGINALS.unregister(f"Net_{name}")


def test_a_file_s_network_goes_all_the_way(
    own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str], quickly: None
) -> None:
    network = "sub/mine.py:make"
    run = own(network, [])
    metrics = json.loads((run / "metrics.json").read_text())
    assert main(["evaluate", "--run", str(run), "--json", "e.json"]) == 0
    assert json.loads((tmp_path / "e.json").read_text())["reconstructed"] == metrics["best"]["test"]
    assert main(["pack", str(run), "-o", "own.nern", "--lossless", "true", "--evaluate", "true"]) == 0
    top1 = f"{metrics['best']['test']['top1']:.2f} % of 50 test images of digits"
    assert f"accuracy {top1}, by what the file gives" in capsys.readouterr().out
    assert main(["info", "own.nern"]) == 0
    assert f"accuracy {top1}, as the writer measured it" in capsys.readouterr().out
    task = ["--task.task_name", "digits"]
    for command in ("verify", "report"):
        assert main([command, "own.nern", *task]) == 2
        assert "--task.original_model_name FILE.py:FUNCTION" in capsys.readouterr().err
        typed = [*task, "--task.original_model_name", network]
        assert main([command, "own.nern", *typed, "--json", f"{command}.json"]) == 0
        assert ("(the same images)" in capsys.readouterr().out) == (command == "verify")
        assert main([command, "own.nern", *typed, "--network", "0"]) == 2
    assert json.loads((tmp_path / "verify.json").read_text())["test"]["top1"] == metrics["best"]["test"]["top1"]


def test_a_registered_network_needs_its_module_only(own: Own, capsys: pytest.CaptureFixture[str]) -> None:
    run = own("Net_{name}", ["sub/mine.py"], REGISTERED)
    assert main(["pack", str(run), "-o", "own.nern", "--images", "0"]) == 0
    name = nern.load("own.nern").description.networks[0].architecture
    assert name is not None
    assert main(["verify", "own.nern", "--imports", "sub/mine.py", "--task.task_name", "digits"]) == 0
    registry.ORIGINALS.unregister(name)
    capsys.readouterr()
    assert main(["verify", "own.nern", "--task.task_name", "digits"]) == 2
    assert f"unknown original network (task.original_model_name) '{name}'" in capsys.readouterr().err
    assert main(["verify", "own.nern", "--imports", "absent.py", "--task.task_name", "digits"]) == 2


@pytest.mark.parametrize("architecture", ["evil.py:make", "evil:make"])
def test_a_file_never_has_code_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('imported', 'w')\ndef make(): raise SystemExit\n")
    sections = nern.load("pretrained:digits-resnet8.nern").sections

    def name_it(description: dict[str, Any]) -> None:
        description["networks"][0]["architecture"] = architecture

    write_artifact("evil.nern", with_description(sections, name_it))
    for command in ("info", "unpack", "verify", "report"):
        typed = ["--task.task_name", "digits"] if command in ("verify", "report") else []
        assert main([command, "evil.nern", *typed]) == (2 if typed else 0)
    assert not (tmp_path / "imported").exists()


def told(folder: Path, **test: Any) -> Path:
    """The file that ships for digits, telling other figures."""
    sections = nern.load("pretrained:digits-resnet8.nern").sections

    def say(description: dict[str, Any]) -> None:
        about = description["networks"][0]["about"]
        about["task"] = test.pop("task", about["task"])
        about["test"] = about["test"] | test

    write_artifact(folder / "told.nern", with_description(sections, say))
    return folder / "told.nern"


@cache
def right_on(count: int) -> float:
    """Of the first so many images of digits, the share that the file that ships is right on."""
    network = nern.load("pretrained:digits-resnet8.nern").network()
    (images, labels), *_ = nern.tasks.digits.digits({}, {})[1].batches(count)
    return 100 * float((network(images).argmax(1) == labels).double().mean())


@pytest.mark.parametrize("count", [1, 300])
def test_verify_takes_the_images_that_the_file_tells_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    found = verify(told(tmp_path, images=count, top1=right_on(count)), TaskConfig(task_name="digits"))
    assert (found["test"]["images"], found["test"]["top1"]) == (count, right_on(count))
    text = f"{right_on(count):.2f} % of {count} test images of digits"
    assert f"{text}; the file says {text} (the same images)" in capsys.readouterr().out


def test_verify_says_what_it_cannot_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify(told(tmp_path, top1=12.0, images=10_000), TaskConfig(task_name="digits"))
    assert "12.00 % of 10,000 test images of digits (fewer are here, not compared)" in capsys.readouterr().out


def test_verify_refuses_another_accuracy_on_the_same_images(tmp_path: Path) -> None:
    for count, few, many in ((597, 0.19, 1.0), (20, 5.0, 11.0)):
        file = told(tmp_path, images=count, top1=right_on(count) - few)
        assert verify(file, TaskConfig(task_name="digits"), console=quiet())["test"]["images"] == count
        file = told(tmp_path, images=count, top1=right_on(count) - many)
        with pytest.raises(NernError, match=rf"but it is right on .* % of {count} test images of digits"):
            verify(file, TaskConfig(task_name="digits"), console=quiet())
