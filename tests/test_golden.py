"""tests/golden/check.py: the reference vectors, and that it notices what it should."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PROGRAM = Path(__file__).parent / "golden" / "check.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_check", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_topic(folder: Path, topic: str, cases: list[dict[str, Any]], tensors: dict[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"{topic}.safetensors")
    manifest = {"topic": topic, "tensors": f"{topic}.safetensors", "about": "", "cases": cases}
    (folder / f"{topic}.json").write_text(json.dumps(manifest))


def case(name: str, kind: str, config: dict[str, Any], inputs: list[str], outputs: list[str], tolerance: float) -> dict:
    keys = [{key: f"{name}/{key}" for key in names} for names in (inputs, outputs)]
    tolerances = {"rtol": tolerance, "atol": tolerance}
    return {"name": name, "kind": kind, "config": config, "inputs": keys[0], "outputs": keys[1]} | tolerances


def basic_encoding(coordinates: Tensor, levels: int, base: float) -> Tensor:
    """sin and cos of pi * base**level * index, index-major, one entry at a time."""
    rows = []
    for row in coordinates.double().tolist():
        arguments = [math.pi * base**level * index for index in row for level in range(levels)]
        rows.append([f(argument) for argument in arguments for f in (math.sin, math.cos)])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.fixture
def other_vectors(tmp_path: Path, rng: torch.Generator) -> Path:
    """A folder of vectors with shapes and values of its own, outputs computed by plain torch."""
    folder = tmp_path / "vectors"
    coordinates = torch.randint(0, 9, (7, 3), generator=rng)
    tensors = {"enc/coordinates": coordinates, "enc/encoding": basic_encoding(coordinates, levels=6, base=0.9)}
    config = {"type": "basic", "num_idxs": 3, "enc_levels": 6, "base": 0.9, "fusion_mode": "concat"}
    write_topic(folder, "encoding", [case("enc", "encoding", config, ["coordinates"], ["encoding"], 1e-9)], tensors)

    original, reconstructed = torch.randn(5, 2, 3, 3, generator=rng), torch.randn(5, 2, 3, 3, generator=rng)
    rmse = (reconstructed - original).square().mean().sqrt()
    tensors = {"rmse/original.0": original, "rmse/reconstructed.0": reconstructed, "rmse/value": rmse}
    config = {"reconstruction_loss_type": "L2Loss"}
    inputs = ["original.0", "reconstructed.0"]
    write_topic(folder, "losses", [case("rmse", "reconstruction_loss", config, inputs, ["value"], 1e-5)], tensors)
    return folder


def edit_manifest(path: Path, **changes: Any) -> None:
    manifest = json.loads(path.read_text())
    manifest["cases"][0] |= changes
    path.write_text(json.dumps(manifest))


def test_every_shared_vector_matches(check: ModuleType, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = check.main([str(shared / "golden")])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0, "\n".join(line for line in lines if line.startswith("FAIL"))
    cases = sum(len(json.loads(path.read_text()).get("cases", [None])) for path in (shared / "golden").glob("*.json"))
    assert len(lines) == cases + 1  # one line a vector, and the count
    assert cases > 200


@pytest.mark.parametrize(
    ("topic", "key", "size"),
    [("encoding", "enc/encoding", 1e-6), ("losses", "rmse/value", 1e-3)],
)
def test_a_tampered_value_is_noticed(
    check: ModuleType, other_vectors: Path, capsys: pytest.CaptureFixture[str], topic: str, key: str, size: float
) -> None:
    path = other_vectors / f"{topic}.safetensors"
    tensors = load_file(path)
    tensors[key].view(-1)[-1] += size
    save_file(tensors, path)
    assert check.main([str(other_vectors)]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    assert failed[0].split()[1].startswith(topic)


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "encoding.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a stored NaN": (lambda f: edit_tensors(f, lambda t: t["enc/encoding"][0].fill_(math.nan)), "FAIL"),
    "an unknown kind": (
        lambda f: edit_manifest(f / "encoding.json", kind="encodings_of_tomorrow"),
        "unknown kind 'encodings_of_tomorrow'",
    ),
    "an output that is not computed": (
        lambda f: edit_manifest(f / "encoding.json", outputs={"encoding": "enc/encoding", "more": "enc/encoding"}),
        "FAIL",
    ),
    "tensors without a manifest": (
        lambda f: shutil.copy(f / "losses.safetensors", f / "stray.safetensors"),
        "FAIL  stray.safetensors",
    ),
    "a manifest without tensors": (lambda f: (f / "losses.safetensors").unlink(), "FAIL"),
    "an empty manifest": (lambda f: write_topic(f, "more", [], {"unused": torch.zeros(1)}), "has no cases"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noticed(
    check: ModuleType, other_vectors: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    change, says = FAULTS[fault]
    change(other_vectors)
    assert check.main([str(other_vectors)]) == 1
    assert says in capsys.readouterr().out


def test_the_command_exits_with_the_result(other_vectors: Path) -> None:
    for code, count in ((0, 2), (1, 1)):
        result = subprocess.run([sys.executable, str(PROGRAM), str(other_vectors)], capture_output=True, text=True)
        assert result.returncode == code, result.stderr
        assert result.stdout.splitlines()[-1] == f"{count} of 2 vectors match"
        edit_manifest(other_vectors / "losses.json", kind="unknown")
