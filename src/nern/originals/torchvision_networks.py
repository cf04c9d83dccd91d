"""torchvision's networks of the published experiments, with the published choice of represented layers.

ResNet18 for ImageNet (He et al. 2016): the stem, the 1x1 shortcuts and the classifier are kept. Its feature maps are what
goes into every ReLU, that is after the first norm, and in each block after bn1 and after the addition; and bn2.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from nern.originals.base import register_original
from nern.originals.sources import find_builder


def _build(theirs: str, num_classes: int = 1000, in_channels: int = 3, **kwargs: Any) -> nn.Module:
    return find_builder(f"torchvision:{theirs}")(num_classes=num_classes, in_channels=in_channels, **kwargs)


register_original(
    "ResNet18",
    torchvision="resnet18",
    represents=["layer?.?.conv?.weight"],
    feature_maps=["relu:input", "layer?.?.relu:input", "layer?.?.bn2"],
    about="torchvision's; represented: the two 3x3 convolutions of each block",
)(partial(_build, "resnet18"))

for _version in ("1.0", "1.1"):
    _theirs = f"squeezenet{_version.replace('.', '_')}"
    register_original(
        f"SqueezeNet{_version}",
        torchvision=_theirs,
        represents=["features.*.squeeze.weight", "features.*.expand*.weight"],
        about="torchvision's; represented: the 1x1 and 3x3 convolutions of the Fire modules",
    )(partial(_build, _theirs))
