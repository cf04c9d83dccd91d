"""Artifacts in folders as on the Hugging Face Hub, and on the hub itself, which a stand-in plays."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from torch import nn

import nern
from nern import Artifact, NernError, PackOptions
from nern.artifact import described_anew, hub


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
    path = tmp_path_factory.mktemp("hub") / "small.nern"
    nern.save(nern.fit(network, ratio=3, iterations=2, progress=False), path, PackOptions(bits=8))
    return path


def test_a_folder_holds_the_very_file_and_a_card(file: Path, tmp_path: Path) -> None:
    nern.load(file).save_pretrained(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"network.nern", "README.md"}
    assert (tmp_path / "out" / "network.nern").read_bytes() == file.read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"# Sequential, in {file.stat().st_size:,} bytes" in card
    assert 'from_pretrained("USER/NAME").network(module)' in card
    found = Artifact.from_pretrained(tmp_path / "out")
    assert isinstance(found, Artifact)
    assert all(torch.equal(a, b) for a, b in zip(found.weights, nern.load(file).weights, strict=True))


def test_the_card_tells_of_accuracy_and_origin(tmp_path: Path) -> None:
    shipped = nern.load("pretrained:resnet20-cifar10.nern")
    metadata = {"license": "mit", "recipe": "none, seed 0"}
    described_anew(shipped, dataclasses.replace(shipped.description, metadata=metadata)).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.license) == ("nern", "mit")
    (result,) = card.data.eval_results or []
    assert (result.dataset_name, result.metric_value) == ("cifar10", 91.03)
    assert result.metric_name == "accuracy, % of 9,806 test images"
    for told in ("# ResNet20, in ", "271,117 parameters and buffers", "- recipe: none, seed 0", "91.03 %"):
        assert told in card.text


def test_limits_hold_there_too(file: Path, tmp_path: Path) -> None:
    nern.load(file).save_pretrained(tmp_path)
    with pytest.raises(NernError, match="more than 100 are made only if `limit` allows"):
        Artifact.from_pretrained(tmp_path, limit=100)


def test_the_hub_is_asked_where_there_is_no_folder(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def download(name: str, filename: str, **options: Any) -> str:
        asked.append((name, filename, options["revision"], options["local_files_only"]))
        return str(file)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    found = Artifact.from_pretrained("someone/small", revision="v1", local_files_only=True)
    assert asked == [("someone/small", "network.nern", "v1", True)]
    assert found.size == file.stat().st_size

    def refuse(*_: Any, **__: Any) -> str:
        raise OSError("no network connection")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    says = r"someone/small is no folder, and network\.nern could not be had from the hub: no net"
    with pytest.raises(NernError, match=says):
        Artifact.from_pretrained("someone/small")


def test_what_is_pushed_is_what_a_folder_would_hold(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: dict[str, Any] = {}

    class StandIn:
        def __init__(self, token: str | None = None) -> None:
            pushed["token"] = token

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str, **_: Any) -> str:
            files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            pushed.update(repo_id=repo_id, files=files, commit_message=commit_message)
            return "https://example.org/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", StandIn)
    nern.load(file).push_to_hub("someone/small", commit_message="First", token="secret")
    assert (pushed["repo_id"], pushed["commit_message"], pushed["token"]) == ("someone/small", "First", "secret")
    assert pushed["files"].keys() == {"network.nern", "README.md"}
    assert b'from_pretrained("someone/small")' in pushed["files"]["README.md"]
    assert pushed["files"]["network.nern"] == file.read_bytes()
