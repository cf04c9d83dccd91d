"""Networks of other libraries and of one's own: built by name, with their weights, what they say of their images."""

from __future__ import annotations

import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nern
from nern import NernError
from nern.compat import import_torchvision
from nern.originals.base import Original
from nern.originals.build import build_network, build_original, build_original_network
from nern.originals.input_format import InputFormat, input_format
from runs import same

torchvision = import_torchvision()
import timm  # noqa: E402  (needs torchvision, which may need help)

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

MINE = """
from torch import nn

WIDTH = 4


class Net(nn.Sequential):
    def __init__(self, num_classes=10, in_channels=1, width=WIDTH):
        super().__init__(nn.Conv2d(in_channels, width, 3), nn.Flatten(), nn.Linear(width * 36, num_classes))


def make(num_classes=10):
    return Net(num_classes)


def listing():
    return [1, 2]


def fails():
    raise RuntimeError("out of luck")
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of the user's, also in a package `ownpackage`, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ownpackage").mkdir()
    (tmp_path / "ownpackage" / "__init__.py").touch()
    for path in (tmp_path / "mine.py", tmp_path / "ownpackage" / "networks.py"):
        path.write_text(MINE)
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    yield tmp_path / "mine.py"
    for name in [name for name in sys.modules if name.startswith(("ownpackage", "nern_import_"))]:
        del sys.modules[name]


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return same(dict(a.state_dict()), dict(b.state_dict()))


def test_networks_of_libraries_are_built_by_name() -> None:
    network = build_network("torchvision:squeezenet1_1", {"num_classes": 7, "dropout": 0.1})
    assert type(network) is torchvision.models.SqueezeNet
    assert (network.classifier[1].out_channels, network.classifier[0].p) == (7, 0.1)
    network = build_network("timm:resnet10t", {"num_classes": 7, "in_channels": 1})
    assert (network.fc.out_features, network.conv1[0].in_channels) == (7, 1)
    assert build_network("timm:resnet10t.c3_in1k").fc.out_features == 1000  # with a tag of pretrained weights


@pytest.mark.parametrize("source", ["mine.py", "ownpackage.networks", "{}/mine.py"])
def test_functions_and_classes_of_the_user_s_are_built(mine: Path, source: str) -> None:
    source = source.format(mine.parent)
    assert build_network(f"{source}:make", {"num_classes": 3})[2].out_features == 3
    network = build_network(f"{source}:Net", {"width": 6}, optional={"num_classes": 5, "in_channels": 2, "more": 1})
    assert network[0].weight.shape == (6, 2, 3, 3)
    assert network[2].out_features == 5


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large networks are built without drawing their weights, which takes seconds."""
    for name in ("trunc_normal_", "kaiming_normal_", "kaiming_uniform_", "normal_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.usefixtures("no_connection", "undrawn", "rng_untouched")
@pytest.mark.parametrize(
    "name", ["fcn_resnet50", "fasterrcnn_mobilenet_v3_large_320_fpn", "googlenet", "quantized_mobilenet_v2"]
)
def test_random_weights_fetch_nothing(name: str) -> None:
    build_network(f"torchvision:{name}")


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("torchvision:resnet81", {}, r"torchvision has no network 'resnet81'; the nearest are: resnet18.*nern list"),
        ("timm:resnet10t.c9_in1k", {}, r"timm has no 'resnet10t\.c9_in1k'; pretrained tags of resnet10t: c3_in1k"),
        ("mine.py:mak", {}, r"mine\.py has no function or class 'mak'; it has: Net, fails, listing, make"),
        ("absent.py:make", {}, r"no such file: .*absent\.py.*mine\.py"),
        ("mine.py:listing", {}, r"the network 'mine\.py:listing' is list, not a torch\.nn\.Module"),
        ("mine.py:fails", {}, r"mine\.py:fails cannot be built with \{\}: out of luck"),
        ("broken.py:make", {}, r"task\.original_model_name: .*broken\.py.*nothing_of_this_name"),
        ("mine.py:make", {"classes": 3}, "unknown argument of mine.py:make 'classes'; did you mean 'num_classes'"),
        ("torchvision:squeezenet1_1", {"in_channels": 1}, "squeezenet1_1 takes images of 3 channels, not 1"),
    ],
)
def test_names_and_arguments_that_are_not_there_are_one_clear_error(
    mine: Path, name: str, kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(NernError, match=message):
        build_network(name, kwargs)


@pytest.fixture
def resnet18() -> Original:
    """Of few classes, its batch norms with statistics of their own."""
    with pytest.warns(nern.errors.NernWarning, match="random weights"):
        original = build_original("ResNet18", None, {"num_classes": 5})
    rng = torch.Generator().manual_seed(0)
    for module in original.network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=rng)
            module.bias.data.normal_(generator=rng)
    return original


def plain_resnet18(network: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Output and the 25 maps, nothing done in place."""
    stem = network.bn1(network.conv1(x))
    before_relu, second_norms = [], []
    x = network.maxpool(stem.relu())
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            first = block.bn1(block.conv1(x))
            second = block.bn2(block.conv2(first.relu()))
            shortcut = x if block.downsample is None else block.downsample(x)
            before_relu += [first, second + shortcut]
            second_norms.append(second)
            x = (second + shortcut).relu()
    return network.fc(x.mean((2, 3))), [stem, *before_relu, *second_norms]


def test_the_25_maps_of_resnet18_are_taken_before_the_activation(resnet18: Original, rng: torch.Generator) -> None:
    batch = torch.randn(2, 3, 48, 48, generator=rng)
    output, maps = resnet18.features(batch)
    expected_output, expected = plain_resnet18(resnet18.network, batch)
    assert len(maps) == len(expected) == 25
    assert all((m < 0).any() for m in maps)
    for found, wanted in ((maps, expected), (output, expected_output), (resnet18(batch), expected_output)):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:original_model_path is not set")
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_squeezenets_represent_the_convolutions_of_their_fire_modules(version: str) -> None:
    original = build_original(f"SqueezeNet{version}", None, {"num_classes": 5})
    fires = [name for name, m in original.network.named_modules() if type(m).__name__ == "Fire"]
    assert len(fires) == 8
    layers = ("squeeze", "expand1x1", "expand3x3")
    assert original.weight_names == [f"{fire}.{layer}.weight" for fire in fires for layer in layers]
    assert [tuple(w.shape[2:]) for w in original.weights] == [(1, 1), (1, 1), (3, 3)] * 8
    assert {"features.0.weight", "classifier.1.weight"} <= original.kept().keys()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder of checkpoints, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr(
        timm, "create_model", lambda n, pretrained=False, **k: (refuse if pretrained else create)(n, **k)
    )


def hub_file(hub: Path, entry: Any) -> Path:
    return hub / entry.url.rpartition("/")[2]


@pytest.mark.usefixtures("no_connection")
@pytest.mark.parametrize(
    ("name", "path"), [("ResNet18", "torchvision"), ("torchvision:resnet18", "torchvision:IMAGENET1K_V1")]
)
def test_weights_in_the_folder_of_torch_hub_are_taken(hub: Path, name: str, path: str) -> None:
    weights = torchvision.models.ResNet18_Weights.IMAGENET1K_V1
    trained = build_network("ResNet18", seed=5)
    torch.save(trained.state_dict(), hub_file(hub, weights))
    network = build_original_network(name, path, task_kwargs={"num_classes": 10, "in_channels": 1})
    assert same_weights(network, trained)
    assert network.fc.out_features == 1000  # those it was trained on, whatever the task has


def test_weights_are_fetched_checked_and_never_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    trained = build_network("SqueezeNet1.1", seed=5)

    def fetch(url: str, **kwargs: Any) -> dict[str, Tensor]:
        asked.append((url, kwargs))
        return trained.state_dict()

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", fetch)
    assert same_weights(build_original_network("SqueezeNet1.1", "torchvision"), trained)
    ((url, kwargs),) = asked
    assert url == torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    assert kwargs["weights_only"] is kwargs["check_hash"] is True


@pytest.mark.usefixtures("no_connection")
def test_code_in_the_folder_of_torch_hub_is_not_executed(hub: Path, attack: Any) -> None:
    attack.save_torch(hub_file(hub, torchvision.models.ResNet18_Weights.DEFAULT))
    with pytest.raises(NernError):
        build_original_network("ResNet18", "torchvision")
    assert not attack.executed


@pytest.mark.usefixtures("no_connection")
def test_without_a_connection_torchvision_s_weights_say_where_to_put_the_file(hub: Path) -> None:
    weights = torchvision.models.ResNet18_Weights.DEFAULT
    with pytest.raises(NernError, match=r"could not be downloaded .*Temporary failure") as caught:
        build_original_network("ResNet18", "torchvision")
    assert f"Put {weights.url} at {hub_file(hub, weights)} yourself, or give the file" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tag", ["", "d2_in1k"])
def test_timm_s_weights_are_taken(tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    create, small = timm.create_model, {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}

    def offline(full: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        asked.extend([full] if pretrained else [])
        return create(full, pretrained=False, **(small | kwargs))

    monkeypatch.setattr(timm, "create_model", offline)
    drawn = build_network("timm:convnext_atto")
    network = build_original_network("timm:convnext_atto", f"timm:{tag}" if tag else "timm")
    assert asked == [f"convnext_atto.{tag}" if tag else "convnext_atto"]
    assert not torch.equal(network.stem[0].weight, drawn.stem[0].weight)
    assert network.head.fc.out_features == 1000


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("ResNet18", "torchvision:IMAGENET1K_V9", "no weights 'IMAGENET1K_V9' for resnet18; it has: IMAGENET1K_V1"),
        ("timm:convnext_atto", "timm:nope", r"no pretrained weights 'convnext_atto\.nope'; .*: d2_in1k"),
        ("ResNet8", "torchvision", "'ResNet8' is none. Give a file, or set .* to torchvision:NAME"),
    ],
)
def test_weights_that_are_not_there_are_one_clear_error(mine: Path, name: str, path: str, message: str) -> None:
    with pytest.raises(NernError, match=message):
        build_original_network(name, path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision:resnet18", InputFormat((3, 224, 224), **IMAGENET, interpolation="bilinear", crop=224 / 256)),
        ("torchvision:inception_v3", InputFormat((3, 299, 299), **IMAGENET, crop=299 / 342)),
        ("torchvision:fcn_resnet50", None),
        ("ResNet18", InputFormat((3, 224, 224), **IMAGENET)),
        ("timm:resnet10t", InputFormat((3, 176, 176), **IMAGENET, interpolation="bicubic")),
    ],
)
def test_networks_of_the_libraries_say_what_images_they_expect(
    mine: Path, undrawn: None, name: str, expected: InputFormat | None
) -> None:
    kwargs = {"weights_backbone": None} if "fcn" in name else {}
    assert input_format(build_network(name, kwargs)) == expected


# its arguments, what is included, some of what is taken, some of what is kept
NETWORKS: dict[str, tuple[dict[str, Any], list[str] | None, list[str], list[str]]] = {
    "torchvision:mobilenet_v3_small": ({"width_mult": 0.5}, None,
                                       ["features.1.block.1.fc1.weight"], ["classifier.0.weight"]),
    "timm:convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)}, None,
                           ["stem.0.weight", "stages.1.blocks.0.conv_dw.weight"], ["head.fc.weight"]),
    "timm:vit_tiny_patch16_224": ({"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 32}, ["*.weight"],
                                  ["patch_embed.proj.weight", "blocks.1.mlp.fc2.weight"], ["pos_embed", "norm.weight"]),
}  # fmt: skip


@pytest.mark.usefixtures("rng_untouched")
@pytest.mark.filterwarnings("ignore:the convolutions of .* hold only")
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_libraries_are_fitted_and_come_back(name: str) -> None:
    arguments, include, some_taken, some_kept = NETWORKS[name]
    network = build_network(name, arguments, seed=1)
    config = nern.fit_config(2)
    config.nern.embeddings.enc_levels, config.nern.num_blocks, config.nern.weights_batch_size = 2, 3, 2048
    config.nern.embeddings.permutations.permute_mode = "none"
    fitted = nern.fit(network, config=config, ratio=0.02, include=include, progress=False)
    assert 0 < fitted.predictor_share <= 0.02
    back, before = fitted.network(), network.state_dict()
    assert (str(back), back.training) == (str(network), False)
    predicted = dict(zip(fitted.original.weight_names, fitted.nern.reconstruct(), strict=True))
    assert set(some_taken) <= predicted.keys()
    assert not set(some_kept) & predicted.keys()
    assert back.state_dict().keys() == before.keys()
    for key, tensor in back.state_dict().items():
        assert torch.equal(tensor, predicted.get(key, before[key])), key
        assert key not in predicted or not torch.equal(tensor, before[key])
