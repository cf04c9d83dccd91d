"""torchvision's networks of the published experiments, with the published choice of represented layers."""

from __future__ import annotations

from typing import Any

from torch import nn

from nern.originals.base import register_original
from nern.originals.sources import find_builder


@register_original(
    "ResNet18",
    torchvision="resnet18",
    represents=["layer?.?.conv?.weight"],
    feature_maps=["relu:input", "layer?.?.relu:input", "layer?.?.bn2"],
    about="torchvision's; represented: the two 3x3 convolutions of each block",
)
def resnet18(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> nn.Module:
    """ResNet18 for ImageNet (He et al. 2016). The stem, the 1x1 shortcuts and the classifier are kept. Feature maps: what
    goes into every ReLU, that is after the first norm, and in each block after bn1 and after the addition; and bn2."""
    return find_builder("torchvision:resnet18")(num_classes=num_classes, in_channels=in_channels, **kwargs)


def _squeezenet(version: str) -> None:
    @register_original(
        f"SqueezeNet{version}",
        torchvision=f"squeezenet{version.replace('.', '_')}",
        represents=["features.*.squeeze.weight", "features.*.expand*.weight"],
        about="torchvision's; represented: the 1x1 and 3x3 convolutions of the Fire modules",
    )
    def build(num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> nn.Module:
        name = f"torchvision:squeezenet{version.replace('.', '_')}"
        return find_builder(name)(num_classes=num_classes, in_channels=in_channels, **kwargs)


_squeezenet("1.0")
_squeezenet("1.1")
