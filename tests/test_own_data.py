"""Data of a Python session: any loader, any batch, any outputs, any network."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

import nern
from nern import NernError
from nern.inputs import tensors_in
from runs import same

SHORT = {"reconstruction": 3, "refinement": 2, "distillation": 2}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return build()


def fit(network: nn.Module, data: Any = None, test: Any = None, **arguments: Any) -> nern.Fitted:
    config = nern.Config.of_recipe("nern", {"nern": {"embeddings": {"permutations": {"improve_seconds": 0.0}}}})
    config.norm_images = 8
    for phase in config.phases:
        if phase.name == "refinement" and arguments.get("phases", SHORT).get("refinement") is not None:
            phase.images = 8
    usual = {"phases": SHORT, "progress": False, "ratio": 1.0, "config": config}
    return nern.fit(network, data, test, **(usual | arguments))


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


class Classifier(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip


class Segmenter(nn.Module):
    """Images -> a dict of maps, as torchvision's segmentation networks give them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.out, self.aux = nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.body(images)
        return {"out": self.out(maps), "aux": self.aux(maps)}


@dataclass
class Pyramid:
    fine: Tensor
    coarse: Tensor
    strides: tuple[int, int]


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Pyramid:
        fine = self.first(images).relu()
        return Pyramid(fine, self.second(fine), (1, 2))


class Transformer(nn.Module):
    """Called with what a tokenizer gives, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        hidden = self.layer(
            self.embed(input_ids), src_key_padding_mask=None if attention_mask is None else attention_mask == 0
        )
        logits = self.head(hidden[:, 0])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def tokens(length: int) -> dict[str, Tensor]:
    """A batch of a tokenizer, as long as its longest text."""
    ids = torch.arange(4 * length).reshape(4, length) % 20
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


IMAGES = numbers(8, 3, 10, 10)
LABELS = torch.arange(8) % 4
NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[Any], dict[str, Any]]] = {
    "segmentation": (Segmenter, [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])], {}),
    "backbone": (Backbone, [IMAGES[:4], IMAGES[4:]], {}),
    "transformer": (Transformer, [tokens(6), tokens(9)], {"include": ["*.weight"], "exclude": ["embed*", "*norm*"]}),
    "labelled tokens": (
        Transformer,
        [tokens(6) | {"labels": torch.tensor([0, 1, 2, 0])}],
        {"include": ["layer*weight"], "exclude": ["*norm*"]},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network_of_any_inputs_and_outputs_is_fitted_and_evaluated(name: str) -> None:
    build, batches, choice = NETWORKS[name]
    network, losses = seeded(build), dict[int, dict[str, float]]()
    fitted = fit(network, batches, batches, on_step=losses.__setitem__, **choice)
    assert fitted.steps == 7
    assert losses[1].keys() == {"reconstruction"}
    assert losses[7]["distillation"] > 0
    found = fitted.evaluate()
    key = "agreement" if name == "labelled tokens" else "error"
    assert found["original"][key] == (100 if key == "agreement" else 0)
    assert 0 < found["reconstructed"][key] < math.inf
    assert found["reconstructed"]["images"] == sum(len(next(tensors_in(batch))) for batch in batches)


class Items(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return IMAGES[index], int(LABELS[index])


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(IMAGES, LABELS, strict=True)


SAME = {
    "dataset": Items(),
    "loader": DataLoader(Items(), batch_size=4),
    "shuffled loader": DataLoader(Items(), batch_size=4, shuffle=True),
    "iterable dataset": DataLoader(Endless(), batch_size=4),
    "list": [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])],
}


@pytest.mark.parametrize("kind", SAME)
def test_data_of_any_kind_give_the_same_again(kind: str) -> None:
    network = seeded(Classifier)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first, second = (fit(network, SAME[kind], SAME[kind], include=["*.weight"], exclude=["7*", "1*"]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first.nern.reconstruct(), second.nern.reconstruct())
    found = first.evaluate()
    assert found == second.evaluate()
    assert found["original"]["top1"] == first.evaluate(Items())["original"]["top1"]
    assert found["reconstructed"]["images"] == 8


def test_a_tensor_is_samples_and_labels_of_the_test_tell_of_classes() -> None:
    fitted = fit(seeded(Classifier), IMAGES, SAME["loader"])
    with pytest.raises(NernError, match="nothing to evaluate on"):
        fit(seeded(Classifier)).evaluate()
    assert set(fitted.evaluate()["reconstructed"]) == {"images", "agreement", "divergence", "top1", "top5", "loss"}
    assert set(fit(seeded(Classifier), IMAGES).evaluate(IMAGES)["reconstructed"]) == {"images", "error"}


def test_metric_is_of_the_outputs_as_they_are() -> None:
    def largest(outputs: dict[str, Tensor], batch: Any) -> Tensor:
        assert set(outputs) == {"out", "aux"}
        assert len(batch) == 2
        return outputs["out"].detach().abs().max()

    network = seeded(Segmenter)
    batches = NETWORKS["segmentation"][1]
    fitted = fit(network, batches, batches, metric=largest)
    network.eval()
    expected = sum(float(network(images)["out"].detach().abs().max()) for images, _ in batches) / 2
    assert fitted.evaluate()["original"]["metric"] == pytest.approx(expected, rel=1e-4)
    assert fitted.evaluate(metric=lambda outputs, batch: 2.0)["reconstructed"]["metric"] == 2


def test_page_tells_of_a_fit(tmp_path: Path) -> None:
    page = fit(seeded(Classifier), SAME["loader"], SAME["loader"]).report(tmp_path / "page.html")
    assert "relative error" in page.read_text()
    of_numbers = fit(seeded(Backbone), [IMAGES], [IMAGES]).report(tmp_path / "other.html").read_text()
    assert "no scores of classes" in of_numbers


def test_run_folder_goes_on_to_the_same_result(tmp_path: Path) -> None:
    network, data = seeded(Classifier), SAME["loader"]
    whole = fit(network, data, data, run_folder=tmp_path / "whole")

    def stop(step: int, losses: dict[str, float]) -> None:
        if step == 4:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(nern.errors.NernWarning, match="stopped at step 4 of 7"):
        part = fit(network, data, data, run_folder=tmp_path / "part", on_step=stop)
    assert part.interrupted
    rest = fit(network, data, data, run_folder=tmp_path / "part")
    assert rest.steps == 7
    again = fit(network, data, data, run_folder=tmp_path / "part")
    assert same(whole.nern.reconstruct(), rest.nern.reconstruct())
    assert same(again.nern.reconstruct(), rest.nern.reconstruct())


def test_run_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    data = SAME["loader"]
    fit(seeded(Classifier), data, run_folder=tmp_path / "run")
    with pytest.raises(NernError, match="other settings"):
        fit(seeded(Classifier), data, run_folder=tmp_path / "run", seed=5)
    changed = seeded(Classifier)
    with torch.no_grad():
        next(changed.parameters()).mul_(2)
    with pytest.raises(NernError, match="had other weights"):
        fit(changed, data, run_folder=tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    with pytest.raises(NernError, match="neither a run folder nor empty"):
        fit(seeded(Classifier), data, run_folder=tmp_path / "mine")


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        (5, {}, "must be a DataLoader"),
        ([], {}, "no batch"),
        (["text"], {}, "holds no tensor"),
        ([numbers(4, 2, 10, 10)], {}, r"does not take the first batch, \(4, 2, 10, 10\): RuntimeError"),
        ([IMAGES], {"forward": lambda network, batch: "text"}, "gives str without a tensor"),
        ([IMAGES], {"forward": lambda network, batch: torch.ones(3)}, r"shape \(3,\) does not belong to 8 samples"),
        ([IMAGES], {"phases": {"destillation": 3}}, "did you mean 'distillation'"),
        (iter([IMAGES]), {}, "have ended: an iterator can be read once only"),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_are_told_of(data: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(NernError, match=message):
        fit(seeded(Classifier), data, **arguments)


def test_inspect_tells_what_is_taken_of_a_module_and_of_a_name() -> None:
    found = nern.inspect(seeded(Classifier), exclude=["3*"])
    assert [choice.name for choice in found.choices if choice.taken] == ["0.weight"]
    assert (found.represented, found.name) == (216, "Classifier")
    assert found.ordering_bytes["none"] == 0 < found.ordering_bytes["crossfilter"]
    assert "1 of 8 parameter tensors taken: 216 of" in repr(found)
    assert nern.inspect("ResNet8").represented == 74_160
    with pytest.raises(NernError, match="ResNet8"):
        nern.inspect("ResNet9")


def test_networks_are_listed_by_a_pattern() -> None:
    found = nern.list_networks("resnet*")
    assert {"ResNet20", "torchvision:resnet18", "timm:resnet18"} <= set(found)
    assert not any("vit" in name for name in found)
    assert nern.list_networks("torchvision:VGG11") == ["torchvision:vgg11"]
    assert len(nern.list_networks()) > 1400
