"""CIFAR ResNets (He et al. 2016, section 4.2): depth 6n + 2, three stages of 16, 32 and 64 channels.

Shortcut option A: strided slicing and zero-padded channels, no parameters; B: 1 x 1 convolution and batch norm.
State-dict names: conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2,shortcut}, linear.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nern.errors import NernError, unknown_name
from nern.originals.base import OriginalNetwork, register_original


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.padding = stride, (channels - in_channels) // 2
        self.shortcut = nn.Sequential()
        if option == "B" and (stride != 1 or in_channels != channels):
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.sum = nn.Identity()  # a place to take the feature map after the addition from

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if len(self.shortcut):
            x = self.shortcut(x)
        elif self.stride != 1 or self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(self.sum(out + x))


class CifarResNet(OriginalNetwork):
    """ResNet for small images.

    Args:
        depth: 6n + 2.
        num_classes: outputs.
        option: shortcut, 'A' or 'B'.
        in_channels: channels of the images.
        widths: channels of the three stages.

    Represented: all 3 x 3 convolutions (not the 1 x 1 shortcuts of option B). Feature maps, all before ReLU: after bn1,
    and in each block after bn1, after bn2 and after the addition.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        option: str = "A",
        in_channels: int = 3,
        widths: tuple[int, int, int] | list[int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        if option not in ("A", "B"):
            raise unknown_name("shortcut option", option, ("A", "B"))
        if depth < 8 or (depth - 2) % 6:
            raise NernError(f"depth (={depth}) of a CIFAR ResNet must be 6n + 2")
        if len(widths) != 3 or (option == "A" and any((b - a) % 2 or b < a for a, b in pairwise(widths))):
            raise NernError(f"widths (={list(widths)}) must be three numbers; with option A rising in even steps")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages, before = [], widths[0]
        for stage, width in enumerate(widths):
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            inputs = [before] + [width] * (blocks - 1)
            stages.append(
                nn.Sequential(*(BasicBlock(i, width, s, option) for i, s in zip(inputs, strides, strict=True)))
            )
            before = width
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in_channels, height, width) -> (n, num_classes) logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        output: Tensor = self.linear(x.mean((2, 3)))
        return output

    def get_learnable_weights(self) -> list[Tensor]:
        """The 3 x 3 convolutions, in order."""
        return [m.weight for m in self.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]

    def feature_map_modules(self) -> list[str]:
        """After bn1, then three of each block."""
        blocks = [name for name, m in self.named_modules() if isinstance(m, BasicBlock)]
        return ["bn1"] + [f"{block}.{tap}" for block in blocks for tap in ("bn1", "bn2", "sum")]

    @classmethod
    def infer_kwargs(cls, state: dict[str, Tensor]) -> dict[str, Any]:
        """Option, classes, image channels and widths from the shapes of the weights."""
        inferred: dict[str, Any] = {"option": "B" if any(".shortcut." in name for name in state) else "A"}
        if "linear.weight" in state and state["linear.weight"].dim() == 2:
            inferred["num_classes"] = len(state["linear.weight"])
        if "conv1.weight" in state and state["conv1.weight"].dim() == 4:
            inferred["in_channels"] = state["conv1.weight"].shape[1]
        convolutions = [state.get(f"layer{stage}.0.conv1.weight") for stage in (1, 2, 3)]
        if all(c is not None and c.dim() == 4 for c in convolutions):
            inferred["widths"] = [len(c) for c in convolutions if c is not None]
        return inferred


for _depth in (8, 20, 32, 44, 56, 110):
    _network = partial(CifarResNet, _depth)
    _network.infer_kwargs = CifarResNet.infer_kwargs  # type: ignore[attr-defined]
    _about = "for small images, shortcut option A or B; represented: the 3x3 convolutions"
    register_original(f"ResNet{_depth}", about=_about)(_network)
