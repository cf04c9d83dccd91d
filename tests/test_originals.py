"""Original networks: architectures, weights files, the frozen handle."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import nern
from nern.config import Config
from nern.errors import NernError, NernWarning
from nern.evaluation import Evaluator
from nern.experiment import data_settings
from nern.originals.base import Original, OriginalNetwork, as_original
from nern.originals.build import build_original_network
from nern.originals.cifar_resnet import CifarResNet
from nern.registry import ORIGINALS
from nern.shipped import NETWORK, shipped_names
from nern.tasks.base import build_task
from runs import same, small_resnet

DEPTHS = (8, 20, 32, 44, 56, 110)


def resnet8(seed: int = 0, **kwargs: Any) -> CifarResNet:
    return small_resnet(seed, **({"in_channels": 3} | kwargs))


@pytest.mark.parametrize(("depth", "option"), [*zip(DEPTHS, "ABABAB", strict=True)])
def test_cifar_resnets(depth: int, option: str, rng: torch.Generator) -> None:
    assert {name for name in ORIGINALS if name.startswith("ResNet")} == {f"ResNet{n}" for n in (*DEPTHS, 18)}
    network = ORIGINALS[f"ResNet{depth}"](option=option, num_classes=7)
    original = Original(network)
    batch = torch.randn(2, 3, 8, 8, generator=rng)
    output, maps = original.features(batch)
    assert output.shape == (2, 7)
    assert torch.equal(output, original(batch))
    blocks = (depth - 2) // 2
    assert len(maps) == 1 + 3 * blocks
    stem, _, branch, total = maps[:4]
    assert all((m < 0).any() for m in maps)  # before the activation
    torch.testing.assert_close(total, branch + stem.relu())
    assert [m.shape[1] for m in maps] == [16] + [w for w in (16, 32, 64) for _ in range(blocks)]
    expected = ["conv1.weight"] + [
        f"layer{stage}.{block}.conv{conv}.weight"
        for stage in (1, 2, 3)
        for block in range(blocks // 3)
        for conv in (1, 2)
    ]
    assert original.weight_names == expected
    assert all(w.shape[2:] == (3, 3) for w in original.weights)
    assert len([name for name in network.state_dict() if ".shortcut.0" in name]) == (2 if option == "B" else 0)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"depth": 21}, "6n"),
        ({"depth": 8, "option": "C"}, "Choices: A, B"),
        ({"depth": 8, "widths": [4, 7, 8]}, "widths"),
    ],
)
def test_impossible_resnets_are_refused(kwargs: dict[str, Any], says: str) -> None:
    with pytest.raises(NernError, match=says):
        CifarResNet(**kwargs)


def accuracy(name: str, weights: Path | str, data: Path) -> float:
    config = Config()
    config.task.task_name, config.task.data_dir = "cifar10", str(data)
    original = Original(build_original_network(name, str(weights)))
    settings = data_settings(config.check())
    test = build_task(config.task, settings, torch.device("cpu"), train=False).test
    assert len(test) == 9806
    metrics = Evaluator(original, 500)(test)
    assert metrics.agreement == 100
    assert metrics.top1 is not None
    return metrics.top1


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "expected"), [(20, 91.67), (56, 93.31)])
def test_the_shared_networks_have_their_accuracies(depth: int, expected: float, shared: Path, cifar10: Path) -> None:
    found = accuracy(f"ResNet{depth}", shared / "weights" / f"resnet{depth}-cifar10.pt", cifar10)
    assert found == pytest.approx(expected, abs=0.02)


def test_the_json_file_beside_the_weights_goes_before_what_they_tell(tmp_path: Path) -> None:
    folder = tmp_path / "pt.models"  # "pt" in the path must not matter
    folder.mkdir()
    torch.save(resnet8(option="B").state_dict(), folder / "adapted.pt")
    (folder / "adapted.json").write_text(json.dumps({"option": "B"}))
    assert len(build_original_network("ResNet8", str(folder / "adapted.pt")).layer2[0].shortcut) == 2
    (folder / "adapted.json").write_text(json.dumps({"option": "A"}))
    with pytest.raises(NernError, match=r"not expected: layer2.0.shortcut"):
        build_original_network("ResNet8", str(folder / "adapted.pt"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{option: B", r"weights.json is damaged \(it is not valid JSON"),
        ('["B"]', r"weights.json is damaged \(it holds list, not dict\)"),
        ('{"optoin": "B"}', r"unknown argument of ResNet8 'optoin'; did you mean 'option'"),
    ],
)
def test_bad_arguments_are_one_clear_error(text: str, says: str, tmp_path: Path) -> None:
    torch.save(resnet8().state_dict(), tmp_path / "weights.pt")
    (tmp_path / "weights.json").write_text(text)
    with pytest.raises(NernError, match=says):
        build_original_network("ResNet8", str(tmp_path / "weights.pt"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layer2.0.conv1.weight": None}, r"does not fit CifarResNet: 1 missing: layer2.0.conv1.weight"),
        ({"layer9.weight": torch.zeros(2)}, r"1 not expected: layer9.weight"),
        ({"conv1.weight": torch.zeros(4, 3, 5, 5)}, r"conv1.weight: expected \(4, 3, 3, 3\), found \(4, 3, 5, 5\)"),
        ({"bn1.running_var": torch.full((4,), math.nan)}, r"bn1.running_var holds values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_one_clear_error(
    change: dict[str, Tensor | None], says: str, tmp_path: Path
) -> None:
    state = resnet8().state_dict() | change
    save_file({name: t for name, t in state.items() if t is not None}, tmp_path / "weights.safetensors")
    with pytest.raises(NernError, match=says):
        build_original_network("ResNet8", str(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0, -50])
def test_truncated_weights_are_one_clear_error(suffix: str, kept: int, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(resnet8().state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(NernError, match=r"weights.* (cannot be read: truncated|is not a complete safetensors file)"):
        build_original_network("ResNet8", str(path))


def test_a_missing_file_lists_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "resnet8.pt").touch()
    with pytest.raises(NernError, match=r"original_model_path.*no such file: .*resnet9.pt; in that folder: resnet8.pt"):
        build_original_network("ResNet8", str(tmp_path / "resnet9.pt"))
    with pytest.raises(NernError, match="is a folder"):
        build_original_network("ResNet8", str(tmp_path))


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(NernError, match=r"task.original_model_name.*did you mean 'ResNet20'"):
        build_original_network("resnet20", None)
    with pytest.raises(NernError, match=r"Choices: .*digits-resnet8"):
        build_original_network("ResNet8", "pretrained:nothing")


@pytest.mark.parametrize("name", shipped_names(NETWORK))
def test_networks_that_ship_are_loaded(name: str, rng: torch.Generator) -> None:
    architecture, shape = ("ResNet8", (1, 8, 8)) if "digits" in name else ("ResNet20", (3, 32, 32))
    network = build_original_network(architecture, f"pretrained:{name}")
    classes = 100 if "cifar100" in name else 10
    assert Original(network)(torch.randn(2, *shape, generator=rng)).shape == (2, classes)


@pytest.mark.parametrize(("name", "expected"), [("resnet20-cifar10", 91.42), ("resnet20-cifar10-smooth", 91.63)])
def test_the_networks_for_cifar10_are_as_good_as_their_cards_say(name: str, expected: float, cifar10: Path) -> None:
    assert accuracy("ResNet20", f"pretrained:{name}", cifar10) == pytest.approx(expected, abs=0.02)
    card = (Path(nern.__file__).parent / "pretrained" / f"{name}.md").read_text(encoding="utf-8")
    assert f"{expected:.2f} % on 9,806 test images" in card


@pytest.mark.usefixtures("rng_untouched")
def test_without_weights_the_network_is_random_by_the_seed_and_says_so() -> None:
    networks = []
    for seed in (1, 1, 2):
        with pytest.warns(NernWarning, match="original_model_path is not set: ResNet8 has random weights"):
            networks.append(build_original_network("ResNet8", None, seed=seed))
    assert same(dict(networks[0].state_dict()), dict(networks[1].state_dict()))
    assert not torch.equal(networks[0].conv1.weight, networks[2].conv1.weight)


def test_feature_maps_can_be_chosen_by_name_and_glob(small_cnn: Callable[..., nn.Module], images: Tensor) -> None:
    original = as_original(small_cnn(), ["5", "[13]", "5"])
    _, maps = original.features(images)
    assert [tuple(m.shape[1:]) for m in maps] == [(3, 6, 6), (4, 8, 8), (6, 8, 8), (3, 6, 6)]


def test_learnable_weights_that_cannot_be_are_one_clear_error() -> None:
    class Odd(OriginalNetwork):
        def __init__(self, change: Callable[[nn.Conv2d], Tensor]) -> None:
            super().__init__()
            self.conv, self.change = nn.Conv2d(1, 2, 3), change

        def get_learnable_weights(self) -> list[Tensor]:
            return [self.conv.weight, self.change(self.conv)]

    with pytest.raises(NernError, match="learnable weight 1 is not a parameter of Odd, but computed"):
        as_original(Odd(lambda conv: conv.weight * 2))
    with pytest.raises(NernError, match=r"conv\.bias is a vector"):
        as_original(Odd(lambda conv: conv.bias))
