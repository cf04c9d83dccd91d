"""Outputs of a network for images and their mirror images: a teacher better than the network itself."""

from __future__ import annotations

from torch import Tensor

from nern.inputs import Images
from nern.originals.base import Original


class Mirrored:
    """A network whose outputs are the means over each image and its mirror image, left and right exchanged: data
    distillation (Radosavovic et al. 2018) by two views.

    Args:
        network: of images (n, c, h, w).
    """

    def __init__(self, network: Original) -> None:
        self.network = network

    def __call__(self, batch: Images) -> Tensor:
        """Mean output, without gradient."""
        assert isinstance(batch, Tensor)  # of images, as is checked before
        return (self.network(batch) + self.network(batch.flip(-1))) / 2

    def digest(self) -> str:
        """Digest of the network's parameters and buffers."""
        return self.network.digest()
