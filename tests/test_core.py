"""The core: what works with its few dependencies alone, and what is said of what does not."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nern.errors import EXTRAS

BLOCKED = "import sys\nfor name in {names}: sys.modules[name] = None\n"
MODULE = """
import torch
import nern
from nern.cli import main

network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(800, 4))
"""
FILES = """
artifact = nern.load("pretrained:digits-resnet8.nern")
assert artifact.network()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
nern.pack(network, "net.nern", nern.PackOptions(bits=4), images=torch.randn(16, 3, 12, 12))
assert main(["info", "net.nern"]) == main(["verify", "net.nern"]) == 0
assert main(["unpack", "net.nern", "-o", "net.safetensors"]) == 0
assert main(["inspect", "ResNet20"]) == main(["list"]) == 0
"""
ASKS = [
    ("nern.fit(network, iterations=1)", "train", "numba"),
    ("nern.inspect('timm:resnet18')", "vision", "torchvision"),
    ("nern.inspect('torchvision:resnet18')", "vision", "torchvision"),
    ("nern.train(nern.Config.from_dict({'logging.tracker': 'tensorboard'}))", "train", "tensorboard"),
]


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    text = BLOCKED.format(names=sorted({*EXTRAS, "llvmlite"})) + MODULE + code
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=folder, timeout=300)


def test_files_are_packed_and_read_without_any_extra(tmp_path: Path) -> None:
    ended = run(FILES, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "once it is installed: pip install 'nern[vision]'" in ended.stdout


@pytest.mark.parametrize(("code", "extra", "package"), ASKS)
def test_what_needs_an_extra_says_which(tmp_path: Path, code: str, extra: str, package: str) -> None:
    ended = run(code, tmp_path)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert f"pip install 'nern[{extra}]'" in last
    assert package in last


def test_every_extra_is_one_of_the_package() -> None:
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    names = {"PIL": "pillow", "sklearn": "scikit-learn", "mlflow": "mlflow-skinny"}
    for package, extra in EXTRAS.items():
        name = names.get(package, package.replace("_", "-"))
        assert any(line.replace("_", "-").startswith(name) for line in extras[extra]), package


LIGHT = "nern.inspect(torch.nn.Conv2d(3, 8, 3)); nern.load('pretrained:resnet20-cifar10.nern').network()"


@pytest.mark.parametrize(
    ("work", "heavy"),
    [
        ("import nern", {"torch", "numpy", "rich", "jsonargparse", *EXTRAS}),
        ("import nern.cli", {*EXTRAS}),
        (f"import nern, torch; {LIGHT}", {*EXTRAS}),
    ],
)
def test_only_what_is_needed_is_imported(work: str, heavy: set[str], tmp_path: Path) -> None:
    code = f"import sys; {work}; print(*sorted({heavy!r} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ended.stdout.strip() == ""
