"""Networks that files name: what a file does not get called or built, at a cost that is bounded."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from artifact_parts import Sections, make, save, with_description
from nern import NernError
from nern.artifact import Artifact, building, load
from nern.artifact.building import build_bounded, check_buildable
from nern.originals.build import builder_of
from nern.originals.cifar_resnet import CifarResNet

FAR, REFUSAL, UNFIT = "ask for a far larger network than it holds", "is refused: it", "cannot be built with"
SHAPES = [(4, 3, 3, 3)]


@pytest.fixture(scope="module")
def sections() -> Sections:
    return make(SHAPES, "none", architecture="ResNet8")[0]


@pytest.fixture
def told(sections: Sections, tmp_path: Path) -> Callable[[str, dict[str, Any]], Artifact]:
    """Reads a file that names this network with these arguments."""

    def read(architecture: str, arguments: dict[str, Any]) -> Artifact:
        own = {"architecture": architecture, "arguments": arguments}
        return load(save(tmp_path / "x.nern", with_description(sections, lambda d: d["networks"][0].update(own))))

    return read


def refused(artifact: Artifact, message: str = "") -> float:
    """Seconds of CPU in which a file's network was refused, in one line."""
    start = time.process_time()
    with pytest.raises(NernError, match=message) as caught:
        artifact.network()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1200
    return time.process_time() - start


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("os:system", {}), ("package.module:function", {}), ("network.py:build", {}), ("/tmp/network.py:build", {}),
    ("timm:hf_hub:user/model", {}), ("timm:local-dir:/etc", {}), ("torch.hub:load", {}),
    ("timm:resnet18", {"pretrained": True}), ("timm:resnet18", {"pretrained_cfg": {"file": "x"}}),
    ("timm:resnet18", {"checkpoint_path": "/etc/passwd"}), ("timm:resnet18", {"cache_dir": "x"}),
    ("timm:resnet18", {"scriptable": True}), ("torchvision:resnet18", {"weights": "DEFAULT"}),
    ("torchvision:fcn_resnet50", {"weights_backbone": "DEFAULT"}), ("torchvision:resnet18", {"block": {"a": 1}}),
    ("ResNet8", {"path": "/etc/passwd"}), ("ResNet8", {"weights": "x"}), ("timm:resnet18", {"act_layer": "a/b"}),
    ("timm:resnet18", {"layers": [[{"a": 1}]]}), ("timm:resnet18", {"act_layer": "\x1b[2J"}),
    ("timm:resnet18", {"act_layer": "C:x"}), ("timm:resnet18", {"act_layer": ["x" * 300]}),
    ("torchvision:resnet18", {"num_classes": 10**6}), ("torchvision:resnet18", {"layers": [[[-(10**6)]]]}),
    ("timm:resnet18", {"any": 1e9}), ("timm:resnet18", {"any": ["ir_r1000000_k3"]}), ("timm:resnet18", {"any": "1_000_000"}),
    ("timm:resnet18", {"any": "1e9"}), ("timm:resnet18", {"any": "\u0661" * 9}), ("ResNet8", {"any": {"a": {"1000000": 1}}}),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "arguments"), REFUSED)
def test_what_a_file_does_not_get_called(
    architecture: str, arguments: dict[str, Any], told: Callable[[str, dict[str, Any]], Artifact]
) -> None:
    refused(told(architecture, arguments), r"is not called|is refused")


COSTS: list[tuple[str, dict[str, Any], str]] = [
    ("torchvision:resnet18", {"layers": [1_000_000, 1, 1, 1]}, REFUSAL),
    ("torchvision:resnet18", {"layers": [60_000, 1, 1, 1]}, UNFIT),
    ("torchvision:resnet18", {"layers": [1] * 5000}, "hold 5,001 values; at most 4,096 are taken"),
    ("torchvision:regnet_y_400mf", {"stem_width": 60_000}, FAR),
    ("torchvision:mobilenet_v2", {"inverted_residual_setting": [[1, 1, 1_000_000_000, 1]]}, REFUSAL),
    ("torchvision:mobilenet_v2", {"inverted_residual_setting": [[1, 1, 60_000, 1]]}, FAR),
    ("torchvision:mobilenet_v2", {"inverted_residual_setting": [[1, 1, 1, 1]] * 800}, FAR),
    ("torchvision:vit_b_16", {"image_size": 60_000}, FAR),
    ("torchvision:maxvit_t", {"num_classes": 60_000, "input_size": [4000, 4000]}, UNFIT),
    ("timm:vit_tiny_patch16_224", {"depth": 100_000}, REFUSAL),
    ("timm:vit_relpos_small_patch16_224", {"img_size": 3000}, FAR),
    ("timm:resnet18", {"layers": ["60000", 1, 1, 1]}, UNFIT),
    ("timm:efficientnet_b0", {"block_args": [["ir_r1000000000_k3_s1_e1_c16"]]}, REFUSAL),
    ("timm:dla34", {"levels": [60_000] * 6}, FAR),
    ("timm:swinv2_tiny_window8_256", {"window_size": 150, "img_size": 4800}, FAR),
    ("ResNet8", {"widths": [60_000] * 3}, FAR),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "arguments", "message"), COSTS, ids=lambda value: repr(value)[:40])
def test_arguments_of_networks_cost_little(
    architecture: str, arguments: dict[str, Any], message: str, told: Callable[[str, dict[str, Any]], Artifact]
) -> None:
    builder_of(architecture)  # its library is imported
    assert refused(told(architecture, arguments), message) < 2.5


DEEP: Any = 60_000
for _ in range(50):
    DEEP = [DEEP]
HOSTILE: list[Any] = [
    10**9, 60_000, 2000, -1, -60_000, 0, 2.5, 60_000.5, 1e300, -1e-300, True, None, "60000", "9" * 200, "x" * 1000,
    "__import__('os').system('ls')", "lambda x: x", "ir_r60000_k3_s1_e1_c16", "\x00", [], [60_000], [60_000] * 4,
    [-1] * 4, [2.5] * 4, [[60_000]] * 4, [[1, 1, 60_000, 1]] * 4, [["ir_r60000_k3_s1_e60000_c60000"]], ["60000"] * 4,
    [[[[]]]], DEEP, [1] * 5000, {"a": 60_000}, [{"a": 1}], [None] * 4, [True] * 4,
]  # fmt: skip
KEYS: dict[str, str] = {
    "ResNet8": "widths num_classes in_channels option depth",
    "torchvision:resnet18": "layers groups width_per_group num_classes replace_stride_with_dilation norm_layer",
    "torchvision:mobilenet_v2": "width_mult inverted_residual_setting round_nearest dropout num_classes",
    "torchvision:densenet121": "bn_size memory_efficient drop_rate num_classes growth_rate block_config",
    "torchvision:vit_b_16": "image_size representation_size num_heads patch_size num_layers",
    "torchvision:efficientnet_b0": "dropout stochastic_depth_prob last_channel num_classes",
    "timm:vit_tiny_patch16_224": "depth embed_dim num_heads patch_size img_size num_classes mlp_ratio reg_tokens",
    "timm:resnet18": "layers block_args stem_width base_width cardinality in_chans stem_type act_layer channels",
    "timm:efficientnet_b0": "block_args channel_multiplier depth_multiplier stem_size num_features round_chs_fn",
    "timm:densenet121": "growth_rate block_config bn_size stem_type drop_rate",
    "timm:swin_tiny_patch4_window7_224": "depths embed_dim window_size num_heads img_size patch_size",
    "timm:convnext_tiny": "depths dims patch_size kernel_sizes stem_type",
    "timm:rexnet_100": "width_mult depth_mult initial_chs final_chs se_ratio ch_div",
}


@pytest.mark.parametrize("architecture", KEYS)
@pytest.mark.filterwarnings("ignore")
def test_arguments_of_any_kind_cost_little(
    architecture: str, told: Callable[[str, dict[str, Any]], Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_SECONDS", 0.1)
    builder_of(architecture)
    start = sum(len(keys.split()) for name, keys in KEYS.items() if name < architecture)
    for number, key in enumerate(KEYS[architecture].split()):
        value = HOSTILE[(start + number) * 11 % len(HOSTILE)]
        assert refused(told(architecture, {key: value})) < 2, (key, value)


def _stubborn() -> nn.Module:
    while True:
        with contextlib.suppress(Exception):
            sum(range(1000))


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.empty(10**4, 10**4), lambda: torch.zeros((10**4, 10**4)), lambda: torch.full((10**8,), 0.5),
        lambda: torch.arange(10**8), lambda: torch.randn(size=(10**8,)), lambda: nn.Linear(10**4, 10**4),
        lambda: [torch.empty(1000) for _ in range(10**4)], lambda: torch.arange(10**4)[:, None] - torch.arange(10**4),
        lambda: torch.ones(10**4).repeat(10**4), lambda: torch.outer(torch.ones(10**4), torch.ones(10**4)),
        lambda: nn.functional.pad(torch.ones(2), (0, 10**8)), lambda: torch.ones(1).expand(10**8).clone(),
        lambda: nn.Sequential(*[nn.Linear(1, 1) for _ in range(10**6)]), _stubborn,
        lambda: [nn.Identity() for _ in iter(int, 1)],
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where it was stopped within a callback
def test_the_cost_of_building_is_bounded(build: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_SECONDS", 0.1)
    start, threads = time.process_time(), threading.active_count()
    with pytest.raises(NernError, match=r"of ResNet8 ask for a far larger network than it holds"):
        build_bounded("ResNet8", build, [(3, 3)])
    assert time.process_time() - start < 2
    assert threading.active_count() == threads


def test_what_goes_with_the_file_is_built() -> None:
    assert build_bounded("ResNet8", lambda: CifarResNet(8, widths=[2, 2, 2]).linear.weight.shape, SHAPES) == (10, 2)
    assert build_bounded("ResNet8", lambda: torch.full((10,), -65504.0).tolist(), SHAPES) == [-65504.0] * 10
    assert build_bounded("ResNet8", lambda: torch.tensor([0, 3]).nonzero().tolist(), SHAPES) == [[1]]
    large = [(10**4, 10**3)] * 2
    assert build_bounded("ResNet8", lambda: torch.empty(2 * 10**7).numel(), large) == 2 * 10**7
    with pytest.raises(NernError, match=r"cannot be built with the file's arguments: 'one\\n two'"):
        build_bounded("ResNet8", lambda: {}["one\n two"], SHAPES)
    check_buildable("timm:resnet18", {"num_classes": 10**6, "x": [1, [True, None, "gelu", 0.5, "ir_r1_k3"]]}, 10**6)
