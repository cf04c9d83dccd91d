"""Original networks: the pretrained networks that NeRNs represent. Knows nothing of NeRNs."""

from nern.originals.build import build_original_network

__all__ = ["build_original_network"]
