"""What images a network expects, as far as it says so itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from nern.errors import NernError


@dataclass(frozen=True)
class InputFormat:
    """Images as a network expects them.

    Attributes:
        shape: (channels, height, width).
        mean, std: of each channel, on the scale 0 to 1.
        interpolation: of resizing: 'bilinear', 'bicubic', ...
        crop: share of the shorter side that the central crop of evaluation takes.
        own: said of this very network; False: of its architecture, or of weights that it may not have.
    """

    shape: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop: float = 0.875
    own: bool = field(default=True, compare=False)

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.shape[0]:
            raise NernError(
                f"images of {self.shape[0]} channels need as many numbers in mean (={list(self.mean)}) and std "
                f"(={list(self.std)})"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise NernError(f"mean (={list(self.mean)}) and std (={list(self.std)}) must be finite, std above 0")

    def having(
        self, size: int | None = None, mean: list[float] | None = None, std: list[float] | None = None
    ) -> InputFormat:
        """The same with another side, mean or std where given."""
        return replace(
            self,
            shape=self.shape if size is None else (self.shape[0], size, size),
            mean=self.mean if mean is None else tuple(mean),
            std=self.std if std is None else tuple(std),
        )


def input_format(network: nn.Module) -> InputFormat | None:
    """What the network's metadata says: an `InputFormat` of its own (`network.input_format`), or timm's
    `pretrained_cfg` (also `default_cfg`). None where it has none. Raises NernError for metadata that makes no sense."""
    own = getattr(network, "input_format", None)
    if isinstance(own, InputFormat):
        return own
    metadata = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None)
    if not isinstance(metadata, dict) or not metadata.get("input_size"):
        return None
    return _of_timm(metadata, network)


def _of_timm(metadata: dict[str, Any], network: nn.Module) -> InputFormat:
    plain = InputFormat()
    try:
        channels, height, width = (int(v) for v in metadata["input_size"])
        mean, std = (tuple(float(v) for v in metadata.get(k) or getattr(plain, k)) for k in ("mean", "std"))
        if len(mean) != channels:  # built for other channels than it was pretrained with
            mean, std = (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels
        crop = metadata.get("crop_pct") or plain.crop
        return InputFormat(
            (channels, height, width), mean, std, metadata.get("interpolation") or plain.interpolation, crop, False
        )
    except (TypeError, ValueError) as error:
        raise NernError(f"the metadata of {type(network).__name__} cannot be read: {error}") from error
