"""Original networks: the pretrained networks that NeRNs represent. Knows nothing of NeRNs."""

from nern.originals.build import build_original_network
from nern.originals.input_format import InputFormat

__all__ = ["InputFormat", "build_original_network"]
