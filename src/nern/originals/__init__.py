"""Original networks: the pretrained networks that NeRNs represent. Knows nothing of NeRNs."""

from nern.originals.base import Original, OriginalNetwork, as_original, register_original
from nern.originals.build import build_original_network, pretrained_names
from nern.originals.cifar_resnet import CifarResNet

__all__ = [
    "CifarResNet",
    "Original",
    "OriginalNetwork",
    "as_original",
    "build_original_network",
    "pretrained_names",
    "register_original",
]
