"""Small-image data: the whole set on the device as uint8, augmented there in batches, each image on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nern.devices import send
from nern.errors import NernError
from nern.files import some_names
from nern.inputs import Images, Inputs

Batch = tuple[Images, Tensor | None]
Share = Callable[[int], slice]  # of so many items, those of one of several processes
ALL = slice(None)


@dataclass(frozen=True, eq=False, repr=False)
class ImageTensors:
    """A labelled image set in memory.

    Args:
        images: uint8 (n, channels, height, width).
        labels: int64 (n,).
        mean, std: of each channel, on the scale 0 to 1; batches come out as (image / 255 - mean) / std.
        pad: augmentation: zero-pad by so many pixels and crop back at a random place.
        flip: augmentation: mirror left and right with probability 1/2.
        skipped: names of images that are not among them because they could not be read.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    mean: Sequence[float]
    std: Sequence[float]
    pad: int = 0
    flip: bool = False
    skipped: Sequence[str] = ()

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise NernError(
                f"images must be uint8 (n, channels, height, width), not {images.dtype} {tuple(images.shape)}"
            )
        if labels.dtype != torch.int64 or labels.shape != (len(images),):
            raise NernError(f"labels must be int64 ({len(images)},), not {labels.dtype} {tuple(labels.shape)}")
        if len(self.mean) != images.shape[1] or len(self.std) != images.shape[1] or min(self.std) <= 0:
            raise NernError(f"mean and std need a number for each of {images.shape[1]} channels, std above 0")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.images.shape[1:]))
        return f"ImageTensors: {len(self):,} images of {size}, labels from {self.labels.min()} to {self.labels.max()}"

    def to(self, device: torch.device) -> ImageTensors:
        """The same on another device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, indices: Tensor) -> ImageTensors:
        """These images only."""
        indices = indices.to(self.images.device)
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def normalized(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """What a network sees."""
        mean, std = self._statistics
        return images.float().div_(255).sub_(mean).div_(std)

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and std of each channel, on the device."""
        mean, std = (torch.tensor(list(v), device=self.images.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return mean, std

    def augmented(
        self, images: UInt8[Tensor, "b c h w"], rng: torch.Generator, drawn: int | None = None, part: slice = ALL
    ) -> UInt8[Tensor, "b c h w"]:
        """Random crop and flip, drawn for each image; for `drawn` images, where these are a `part` of so many."""
        count, _, height, width = images.shape
        drawn, device = count if drawn is None else drawn, images.device
        if self.flip:
            flip = torch.rand(drawn, generator=rng)[part] < 0.5
            images = mirrored(images, flip)
        if self.pad:
            shifts = send(torch.randint(0, 2 * self.pad + 1, (2, drawn), generator=rng)[:, part], device)
            padded = torch.nn.functional.pad(images, (self.pad,) * 4)
            rows = (torch.arange(height, device=device) + shifts[0, :, None]).view(count, 1, height, 1)
            columns = (torch.arange(width, device=device) + shifts[1, :, None]).view(count, 1, 1, width)
            which = torch.arange(count, device=device).view(-1, 1, 1, 1)
            channels = torch.arange(images.shape[1], device=device).view(1, -1, 1, 1)
            images = padded[which, channels, rows, columns]
        return images

    def batch(self, indices: Tensor, rng: torch.Generator | None = None, part: slice = ALL) -> Batch:
        """Images and labels of `indices`, augmented with `rng` if given; a part of this batch, if asked for."""
        mine = send(indices[part], self.images.device)
        images = self.images[mine]
        if rng is not None:
            images = self.augmented(images, rng, len(indices), part)
        return self.normalized(images), self.labels[mine]

    def batches(self, batch_size: int, share: Share | None = None) -> Iterator[Batch]:
        """All images in order, or a share of the batches; not augmented."""
        for start in shared(range(0, len(self), batch_size), share):
            yield self.batch(torch.arange(start, min(start + batch_size, len(self))))


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device."""
    images, labels = batch
    images = images.to(device) if isinstance(images, Inputs) else images.to(device, non_blocking=True)
    return images, None if labels is None else labels.to(device, non_blocking=True)


def mirrored(images: Tensor, which: Tensor) -> Tensor:
    """Images (n, channels, height, width), those of `which` (booleans) with left and right exchanged."""
    return torch.where(send(which, images.device).view(-1, 1, 1, 1), images.flip(3), images)


def shared(items: Sequence[int], share: Share | None) -> Sequence[int]:
    """A share of the items; None: all."""
    return items if share is None else items[share(len(items))]


def content(folder: Path) -> str:
    """What a folder of data holds, in words."""
    return some_names(sorted(f"{p.name}/" if p.is_dir() else p.name for p in folder.iterdir()), 8) or "nothing"
