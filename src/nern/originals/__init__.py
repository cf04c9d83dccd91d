"""Original networks: the pretrained networks that NeRNs represent. Knows nothing of NeRNs."""

from nern.originals import torchvision_networks
from nern.originals.base import Original, OriginalNetwork, as_original, register_original
from nern.originals.build import build_network, build_original, build_original_network
from nern.originals.cifar_resnet import CifarResNet
from nern.originals.input_format import InputFormat
from nern.originals.sources import source_names

__all__ = [
    "CifarResNet",
    "InputFormat",
    "Original",
    "OriginalNetwork",
    "as_original",
    "build_network",
    "build_original",
    "build_original_network",
    "register_original",
    "source_names",
    "torchvision_networks",
]
