"""Images that cannot be read: left out of their batch, remembered, reported."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nern.errors import NernError, NernWarning


@dataclass(frozen=True)
class Unreadable:
    """What a dataset gives in place of an item that it cannot read.

    Attributes:
        name: of the image, its path say.
        reason: what was wrong, in words.
    """

    name: str
    reason: str


class SkippedImages:
    """Names of the images that could not be read, in the order they were met. Warns at the first."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def add(self, images: Iterable[Unreadable]) -> None:
        """Remember these."""
        for image in images:
            if not self._names:
                warnings.warn(
                    f"{image.name} cannot be read ({image.reason}). It is left out, and so are others like it: the metrics "
                    "list them as skipped_images.",
                    NernWarning,
                    stacklevel=3,
                )
            self._names[image.name] = None


class ReadableOnly:
    """Collation that leaves unreadable items out: items -> (batch, or None if nothing is left; unreadable items by place).
    Where an item is a NernError, that takes the batch's place.

    Args:
        collate: makes a batch of the others.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence[Any]) -> tuple[Any, dict[int, Unreadable]]:
        failed = next((item for item in items if isinstance(item, NernError)), None)
        if failed is not None:
            return failed, {}
        unreadable = {place: item for place, item in enumerate(items) if isinstance(item, Unreadable)}
        readable = [item for item in items if not isinstance(item, Unreadable)]
        return self.collate(readable) if readable else None, unreadable


def nothing_readable(count: int, skipped: SkippedImages) -> NernError:
    """The error where none of `count` images could be read."""
    return NernError(f"none of the {count:,} images can be read, among them: {', '.join(list(skipped)[:3])}")
