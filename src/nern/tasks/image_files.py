"""Image files as 8-bit pictures: which are read, and what becomes of other modes and numbers."""

from __future__ import annotations

import os
import stat
import warnings

import numpy as np
from PIL import Image, ImageFile, ImageOps

# Formats of which Pillow gives no pixels itself: EPS would be drawn by Ghostscript, of MPEG it reads the size only.
NOT_PICTURES = ("EPS", "MPEG")
RANGES = (1, 255, 65535)  # the largest value that stands for white: of fractions, of 8 and of 16 bits


def formats() -> list[str]:
    """Names of the formats that the installed Pillow, and what is registered with it, can read."""
    Image.init()
    return [
        name
        for name in Image.ID
        if name not in NOT_PICTURES
        and not (isinstance(kind := Image.OPEN[name][0], type) and issubclass(kind, ImageFile.StubImageFile))
    ]


def suffixes() -> set[str]:
    """Suffixes of files in these formats, in lower case."""
    readable = {*formats(), "MPO"}  # several JPEGs in one, opened as a JPEG
    return {suffix for suffix, name in Image.registered_extensions().items() if name in readable}


def read_image(path: str, channels: int, upright: bool = True) -> Image.Image:
    """An image file with 8 bits a channel: grey (1 channel) or RGB (3). Of several pictures in it, the first.

    Transparency is left out: the colours are those that are stored. Numbers of 16 or 32 bits are scaled as `_scaled` says.

    Args:
        upright: turn it as its EXIF data say.

    Raises:
        Exception: whatever Pillow raises for a file that is no image, is damaged, or is too large to be honest.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for who writes to it
        raise ValueError("it is no file, but a pipe, a socket, a device or a folder")
    if status.st_size == 0:
        raise ValueError("it is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata and palettes
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=formats()) as file:
            file.load()
            if 0 in file.size:
                raise ValueError("it has no pixels")
            return _with_channels(_upright(file) if upright else file, channels)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata of a sound image
        return image


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # Pillow would clip these, not scale them
        image = Image.fromarray(_scaled(np.asarray(image).astype(np.float64), image.mode == "F"))
    if channels == 1 and image.mode in ("L", "LA", "1"):
        return image.convert("L")
    rgb = image.convert("RGB")
    return rgb if channels == 3 else rgb.convert("L")


def _scaled(values: np.ndarray, fractions: bool) -> np.ndarray:
    """Grey values as whole numbers from 0 to 255.

    They are taken to lie in the first of these ranges that holds all of them: 0 to 1 and 0 to 255 (fractions only), 0 to
    65,535, and from the smallest of them (0, if none is below it) to the largest.
    """
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    if not np.isfinite([low, high]).all():
        raise ValueError("its pixels are not finite")
    known = [top for top in (RANGES if fractions else RANGES[-1:]) if high <= top]
    if low == 0 and known:
        high = known[0]
    return ((values - low) * (255 / (high - low))).round().astype(np.uint8)
