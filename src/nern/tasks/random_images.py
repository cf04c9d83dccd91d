"""Made-up images for training without data: each kind is a function (count, generator) -> images on the device.

Registered as `kind(shape, settings, seed, device, original, held_out)`, with the `task` section as `settings`. Images are on
the scale of a network's inputs, that is normalised: mean near 0, standard deviation near 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nern.config import TaskConfig
from nern.registry import RANDOM_IMAGES

Draw = Callable[[int, torch.Generator], Tensor]
Shape = tuple[int, int, int]
RANGE = 2.0  # of uniform noise, as published
SLOPES = (0.8, 1.4)  # amplitude of natural images falls about as 1 / frequency
BRIGHTNESS, CONTRAST = 0.5, (0.5, 1.2)  # of an image: standard deviation of its mean, range of its own deviation
DISCS, SMALLEST, LARGEST = 40, 0.06, 0.5  # a leaf's radius as a share of the image's side
MOST_SHAPES, FINEST, COARSEST = 150, 0.02, 0.1  # of a scene; least radius of its shapes, from and to
RECTANGLES, CHROMA, SHADE = 0.4, 0.3, 0.5  # share of them; deviations of colours from grey, and of gradients
TEXTURES, BLUR, TINT, SCENE_CONTRAST = (0.4, 1.6), 0.02, 0.2, (0.3, 1.2)


@RANDOM_IMAGES.register("uniform")
def uniform(shape: Shape, settings: TaskConfig, seed: int, device: torch.device, *_: Any, **__: Any) -> Draw:
    """Every value uniform in [-2, 2], as published."""

    def draw(count: int, rng: torch.Generator) -> Tensor:
        return torch.rand(count, *shape, generator=rng).mul_(2 * RANGE).sub_(RANGE).to(device)

    return draw


def _spectral_noise(count: int, shape: Shape, rng: torch.Generator, powers: tuple[float, float] = SLOPES) -> Tensor:
    """Noise with the falling spectrum of natural images (Field 1987), its channels correlated: amplitudes fall as a power of
    frequency, drawn for each image; unit variance, mean 0."""
    channels, height, width = shape
    rows, columns = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    frequency = (rows[:, None].square() + columns[None, :].square()).sqrt()
    frequency[0, 0] = math.inf  # no constant part
    slopes = torch.empty(count, 1, 1, 1).uniform_(*powers, generator=rng)
    white = torch.randn(count, channels, height, width, generator=rng)
    if channels > 1:  # the channels of natural images vary together
        white = 0.85 * white[:, :1] + 0.5 * white
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * frequency.pow(-slopes), s=(height, width))
    return noise / noise.std((1, 2, 3), correction=0, keepdim=True).clamp_min(1e-6)


def _exposed(
    images: Tensor, rng: torch.Generator, contrasts: tuple[float, float] = CONTRAST, tint: Tensor | float = 0.0
) -> Tensor:
    """Brightness and contrast drawn for each image, within the range of pixels."""
    count = len(images)
    contrast = torch.empty(count, 1, 1, 1).uniform_(*contrasts, generator=rng)
    brightness = BRIGHTNESS * torch.randn(count, 1, 1, 1, generator=rng)
    return (images * contrast + brightness + tint).clamp_(-2.2, 2.6)


@RANDOM_IMAGES.register("leaves")
def leaves(shape: Shape, settings: TaskConfig, seed: int, device: torch.device, *_: Any, **__: Any) -> Draw:
    """Dead leaves: overlapping discs of random colour, their radii distributed as in natural images (Lee, Mumford and
    Huang 2001; Baradad et al. 2021), each with a texture of spectral noise."""
    channels, height, width = shape
    y, x = torch.arange(height).view(-1, 1), torch.arange(width).view(1, -1)
    side = min(height, width)

    def draw(count: int, rng: torch.Generator) -> Tensor:
        images = torch.randn(count, channels, 1, 1, generator=rng).expand(count, *shape).clone()
        for _ in range(DISCS):
            position = torch.rand(count, 2, generator=rng) * torch.tensor([height, width])
            share = torch.rand(count, generator=rng)  # density of radii falls as radius ** -3
            radius = side * (SMALLEST**-2 - share * (SMALLEST**-2 - LARGEST**-2)).pow(-0.5)
            rows = (y - position[:, 0].view(-1, 1, 1)).square()
            columns = (x - position[:, 1].view(-1, 1, 1)).square()
            inside = rows + columns < radius.view(-1, 1, 1).square()
            colour = torch.randn(count, channels, 1, 1, generator=rng)
            images = torch.where(inside.unsqueeze(1), colour, images)
        texture = torch.rand(count, 1, 1, 1, generator=rng) * _spectral_noise(count, shape, rng)
        return _exposed(images + 0.5 * texture, rng).to(device)

    return draw


@RANDOM_IMAGES.register("scenes")
def scenes(shape: Shape, settings: TaskConfig, seed: int, device: torch.device, *_: Any, **__: Any) -> Draw:
    """Leaves of many more sizes, ellipses and rectangles, each of a colour near grey with a gradient and a texture; their
    number and the smallest size are drawn for each image, and how far it is out of focus."""
    channels = shape[0]

    def draw(count: int, rng: torch.Generator) -> Tensor:
        images = torch.stack([_scene(shape, rng) for _ in range(count)])
        images = images - images.mean((1, 2, 3), keepdim=True)
        images = images / images.std((1, 2, 3), correction=0, keepdim=True).clamp_min(1e-6)
        tint = TINT * torch.randn(count, channels, 1, 1, generator=rng)
        return _exposed(images, rng, SCENE_CONTRAST, tint).to(device)

    return draw


def _scene(shape: Shape, rng: torch.Generator) -> Float[Tensor, "channels height width"]:
    channels, height, width = shape
    side = min(height, width)
    shares = torch.rand(3, generator=rng).square().tolist()  # of the number of shapes, the smallest one, the blur
    count, smallest = 8 + int(MOST_SHAPES * shares[0]), FINEST + (COARSEST - FINEST) * shares[1]
    share = torch.rand(count, generator=rng)
    radii = side * (smallest**-2 - share * (smallest**-2 - LARGEST**-2)).pow(-0.5)
    centres = torch.rand(count, 2, generator=rng) * torch.tensor([height, width])
    turns, longer = torch.rand(count, generator=rng) * math.pi, torch.empty(count).uniform_(-1, 1, generator=rng).exp()
    straight = torch.rand(count, generator=rng) < RECTANGLES
    top = torch.zeros(height, width, dtype=torch.int64)  # the shape that is seen at each place; 0: the ground
    columns = zip(radii.tolist(), centres.tolist(), turns.tolist(), longer.tolist(), straight.tolist(), strict=True)
    for number, (radius, (row, column), turn, ratio, corners) in enumerate(columns, 1):
        reach = 1.5 * radius * max(ratio, 1 / ratio)
        rows, across = (slice(max(int(at - reach), 0), int(at + reach) + 1) for at in (row, column))
        part = top[rows, across]
        y = torch.arange(rows.start, rows.start + part.shape[0]).view(-1, 1) - row
        x = torch.arange(across.start, across.start + part.shape[1]).view(1, -1) - column
        along = (y * math.cos(turn) + x * math.sin(turn)) / ratio
        beside = (x * math.cos(turn) - y * math.sin(turn)) * ratio
        square = torch.maximum(along.abs(), beside.abs()) < 0.9 * radius
        part[square if corners else along.square() + beside.square() < radius**2] = number
    of_shapes = torch.randn(count + 1, 1, generator=rng) + CHROMA * torch.randn(count + 1, channels, generator=rng)
    slopes, textures = SHADE * torch.randn(2, count + 1, generator=rng), torch.randn(2, count + 1, generator=rng).abs()
    image = of_shapes[top].movedim(2, 0)
    image = (
        image
        + slopes[0][top] * torch.linspace(-1, 1, height).view(-1, 1)
        + slopes[1][top] * torch.linspace(-1, 1, width)
    )
    for texture, noise in zip(textures, _spectral_noise(2, shape, rng, TEXTURES), strict=True):
        image = image + 0.5 * texture[top] * noise
    return _blurred(image, BLUR * side * shares[2])


def _blurred(image: Float[Tensor, "channels height width"], deviation: float) -> Float[Tensor, "channels height width"]:
    """An image behind a Gaussian filter of this deviation in pixels, mirrored at its edges."""
    if deviation < 0.3:
        return image
    reach = min(int(3 * deviation) + 1, min(image.shape[1:]) - 1)
    weights = (-(torch.arange(-reach, reach + 1.0) / deviation).square() / 2).exp()
    weights = weights / weights.sum()
    rows = F.conv2d(F.pad(image[:, None], (reach, reach, 0, 0), mode="reflect"), weights.view(1, 1, 1, -1))
    return F.conv2d(F.pad(rows, (0, 0, reach, reach), mode="reflect"), weights.view(1, 1, -1, 1))[:, 0]
